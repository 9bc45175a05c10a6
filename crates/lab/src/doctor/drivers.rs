//! Drivers that can limit the writable layers of containers on this host.

use super::features::State;
use super::filesystem::FileSystem;
use rustix::fs::{Mode, OFlags};
use serde::Serialize;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use wardian_sys::loop_device::{Io, LoopDevices};
use wardian_sys::mount::{self, MountAttrFlags};
use wardian_sys::{ext4, project_quota as quota};

/// A mechanism to limit what a container may write, and whether this host has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Driver {
    /// `project-quota`, `btrfs`, `image` or `none`.
    pub name: &'static str,
    /// Whether it would work.
    pub state: State,
    /// What was found, or why it would not work.
    pub why: String,
}

/// Where programs are that are not in every user's PATH.
const USUAL: [&str; 2] = ["/sbin", "/usr/sbin"];
/// The driver without limits.
const NONE: &str = "none";

/// Returns the name of the driver that a server chooses if no other one is asked for: the first that works.
pub fn chosen(drivers: &[Driver]) -> &'static str {
    drivers.iter().find(|driver| driver.state == State::Yes).map_or(NONE, |driver| driver.name)
}

/// All drivers, in the order in which a server tries them.
pub fn probe(fs: &FileSystem) -> Vec<Driver> {
    let quota = std::fs::File::open(&fs.looked_at).and_then(|file| Ok(quota::state(file)?));
    vec![
        project_quota(
            &fs.kind,
            quota,
            Path::new("/proc/fs/xfs/xqmstat").exists(),
            quota_format(kernel_config().as_deref()),
        ),
        btrfs(&fs.kind, &fs.disks, Path::new("/sys/fs/btrfs")),
        image(&fs.looked_at),
        Driver {
            name: NONE,
            state: State::Yes,
            why: "on every host: a request with a limit on what is written is refused".into(),
        },
    ]
}

/// Reads how this kernel was built, where it or its package tells that.
fn kernel_config() -> Option<String> {
    /// More than a configuration has, in bytes.
    const MOST: u64 = 4 << 20;
    let mut text = String::new();
    if let Ok(file) = std::fs::File::open("/proc/config.gz") {
        flate2::read::GzDecoder::new(file).take(MOST).read_to_string(&mut text).ok()?;
    } else {
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        let file = std::fs::File::open(format!("/boot/config-{release}")).ok()?;
        file.take(MOST).read_to_string(&mut text).ok()?;
    }
    Some(text)
}

/// Whether the kernel has the format of quota files that ext4 keeps hidden (CONFIG_QFMT_V2, also as a module); `None` if
/// its configuration is not known.
fn quota_format(config: Option<&str>) -> Option<bool> {
    config.map(|text| text.lines().any(|line| matches!(line, "CONFIG_QFMT_V2=y" | "CONFIG_QFMT_V2=m")))
}

/// `xfs_can`: XFS was built with quota (CONFIG_XFS_QUOTA). `ext4_can`: see [`quota_format`].
fn project_quota(
    kind: &str,
    quota: std::io::Result<quota::State>,
    xfs_can: bool,
    ext4_can: Option<bool>,
) -> Driver {
    let (usable, why) = match (kind, quota) {
        ("xfs" | "ext4", Ok(quota)) if quota.enforced => (true, "switched on and enforced".to_owned()),
        ("xfs", _) if !xfs_can => (false, "the XFS of this kernel has none (CONFIG_XFS_QUOTA)".to_owned()),
        ("xfs", Ok(quota)) if quota.counted => {
            (false, "counted but not enforced: mount with `prjquota`, not `pqnoenforce`".into())
        }
        ("xfs", _) => (
            false,
            "switched off: mount with `prjquota` (a root file system: `rootflags=prjquota` for the kernel)"
                .into(),
        ),
        ("ext4", Ok(quota)) if quota.counted => {
            (false, "counted but not enforced: mount with `prjquota`".into())
        }
        ("ext4", _) if ext4_can == Some(false) => (
            false,
            "this kernel has none for ext4 (CONFIG_QFMT_V2): do not change the file system, with the feature `quota` it \
             could only be read"
                .into(),
        ),
        ("ext4", _) if ext4_can == Some(true) => (
            false,
            "switched off: `tune2fs -O project,quota` while unmounted, then mount with `prjquota`".into(),
        ),
        ("ext4", _) => (
            false,
            "switched off: `tune2fs -O project,quota` while unmounted, then mount with `prjquota`, if the kernel has \
             CONFIG_QFMT_V2 (without it the file system can only be read then)"
                .into(),
        ),
        _ => (false, format!("{kind} has none: XFS and ext4 do")),
    };
    Driver { name: "project-quota", state: usable.into(), why }
}

/// btrfs quotas appear as a directory in its part of /sys (`qgroups/`), with a mode since Linux 6.7.
fn btrfs(kind: &str, disks: &[String], sys: &Path) -> Driver {
    let driver =
        |usable, why: &str| Driver { name: "btrfs", state: State::from(usable), why: why.to_owned() };
    if kind != "btrfs" {
        return driver(false, &format!("the file system is {kind}"));
    }
    let ours = std::fs::read_dir(sys).into_iter().flatten().flatten().map(|entry| entry.path());
    let ours = ours.into_iter().find(|fs| disks.iter().any(|disk| fs.join("devices").join(disk).exists()));
    let Some(ours) = ours else { return driver(false, "it is not found in /sys/fs/btrfs") };
    let read = |file: &str| std::fs::read_to_string(ours.join("qgroups").join(file)).unwrap_or_default();
    match (read("enabled").trim(), read("mode").trim()) {
        ("1", "squota") => driver(true, "subvolumes, simple quota switched on; no limits of inodes"),
        ("1", _) => driver(true, "subvolumes, qgroups switched on; no limits of inodes"),
        _ => driver(false, "quota is switched off: `btrfs quota enable` on its mount point"),
    }
}

/// Bytes of the file system that is tried.
const TRIAL: u64 = 8 << 20;

/// A file system image for each container: needs a loop device and a program that makes file systems. One is made in an
/// unnamed file in the directory, mounted and shut down.
fn image(at: &Path) -> Driver {
    let (state, why) = if !rustix::process::geteuid().is_root() {
        (State::Unknown, "only root can try".to_owned())
    } else if !is_program("mkfs.ext4") {
        (State::No, "no mkfs.ext4: install e2fsprogs".to_owned())
    } else {
        match try_image(at) {
            Ok(()) => (State::Yes, "loop devices and mkfs.ext4".to_owned()),
            Err(error) => (State::No, format!("{error:#}")),
        }
    };
    Driver { name: "image", state, why }
}

fn try_image(at: &Path) -> anyhow::Result<()> {
    use anyhow::Context as _;
    let dir = File::open(at).with_context(|| format!("open {}", at.display()))?;
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let file: File = rustix::fs::openat(&dir, ".", flags, Mode::RUSR | Mode::WUSR)
        .context("the file system under the store has no files without a name (O_TMPFILE)")?
        .into();
    file.set_len(TRIAL)?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(std::env::split_paths(&path).chain(USUAL.map(PathBuf::from)))?;
    let made = Command::new("mkfs.ext4")
        .args(["-q", "-F", "-b", "4096", "-O", "^has_journal", "/proc/self/fd/0"])
        .env("PATH", path)
        .env("MKE2FS_CONFIG", "/dev/null")
        .stdin(file.try_clone()?)
        .output()
        .context("start mkfs.ext4")?;
    let said = String::from_utf8_lossy(&made.stderr);
    anyhow::ensure!(made.status.success(), "mkfs.ext4 has failed ({}): {}", made.status, said.trim());
    // Nodes are made only where /dev has none, for an instant.
    let device = LoopDevices::open(dir.into())?.attach(&file, Io::Direct)?;
    let attrs = MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID;
    let mounted = mount::device_mount("ext4", &device, &[], &["noinit_itable", "nobarrier"], attrs)?;
    // Its limit is set in sysfs.
    ext4::reserve(&device.name(), 1).context("set a limit in /sys/fs/ext4 (mount sysfs read-write)")?;
    let root = rustix::fs::openat(&mounted, ".", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let _ = ext4::silence(&device.name());
    ext4::shut_down(root).context("shut down an ext4")
}

fn is_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).chain(USUAL.map(PathBuf::from)).any(|dir| dir.join(name).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;
    use wardian_needs::needs;

    #[test]
    fn an_image_is_tried_and_leaves_nothing() {
        needs!(Root, Loop);
        let dir = tempfile::tempdir().unwrap();
        let tried = image(dir.path());
        // A host without the program says so.
        assert_eq!(tried.state, State::from(is_program("mkfs.ext4")), "{tried:?}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        // On a file system without such files, the reason is told.
        let lacking = image(Path::new("/proc"));
        assert!(lacking.state == State::No && lacking.why.contains("O_TMPFILE"), "{lacking:?}");
    }

    #[test]
    fn a_quota_must_be_enforced() {
        let on = quota::State { counted: true, enforced: true };
        let counted = quota::State { counted: true, enforced: false };
        let off = || Err(std::io::Error::from_raw_os_error(38));
        let works = project_quota("xfs", Ok(on), true, None);
        assert_eq!((works.state, chosen(&[works])), (State::Yes, "project-quota"));
        assert_eq!(chosen(&[project_quota("xfs", Ok(counted), true, None)]), NONE);
        assert_eq!(project_quota("ext4", Ok(on), false, None).state, State::Yes);
        for (kind, quota, says) in [
            ("xfs", off(), "mount with `prjquota`"),
            ("xfs", Ok(counted), "not enforced"),
            ("ext4", Ok(counted), "not enforced"),
            ("ext4", off(), "tune2fs"),
            ("btrfs", off(), "btrfs has none"),
            // An overlay or another file system may return the answer of the one below it.
            ("overlay", Ok(on), "overlay has none"),
        ] {
            let driver = project_quota(kind, quota, true, None);
            assert!(driver.state == State::No && driver.why.contains(says), "{kind}: {driver:?}");
        }
    }

    #[test]
    fn a_kernel_without_quota_says_so() {
        let off = Err(std::io::Error::from_raw_os_error(38));
        assert!(project_quota("xfs", off, false, None).why.contains("CONFIG_XFS_QUOTA"));
    }

    #[test]
    fn a_kernel_without_the_format_of_ext4s_quota_says_so_before_a_file_system_is_changed() {
        let why = |config: Option<&str>| {
            let off = Err(std::io::Error::from_raw_os_error(38));
            project_quota("ext4", off, true, quota_format(config)).why
        };
        for with in ["CONFIG_QUOTA=y\nCONFIG_QFMT_V2=y\n", "CONFIG_QFMT_V2=m"] {
            assert!(why(Some(with)).contains("tune2fs") && !why(Some(with)).contains("QFMT"), "{with}");
        }
        for without in ["# CONFIG_QFMT_V2 is not set\n", "CONFIG_QFMT_V1=y\nCONFIG_XQFMT_V2=y\n", ""] {
            let why = why(Some(without));
            assert!(why.contains("CONFIG_QFMT_V2") && !why.contains("tune2fs"), "{without}: {why}");
        }
        assert!(why(None).contains("if the kernel has CONFIG_QFMT_V2"));
        // What works is not doubted.
        let on = quota::State { counted: true, enforced: true };
        assert_eq!(project_quota("ext4", Ok(on), true, Some(false)).state, State::Yes);
    }

    #[test]
    fn btrfs_says_so_in_sys() {
        let sys = tempfile::tempdir().unwrap();
        let fs = sys.path().join("f00");
        std::fs::create_dir_all(fs.join("devices/vdb")).unwrap();
        let probe = || btrfs("btrfs", &["vdb".into()], sys.path());
        assert!(probe().why.contains("btrfs quota enable"));
        std::fs::create_dir_all(fs.join("qgroups")).unwrap();
        std::fs::write(fs.join("qgroups/enabled"), "1\n").unwrap();
        assert_eq!(probe().state, State::Yes);
        std::fs::write(fs.join("qgroups/mode"), "squota\n").unwrap();
        assert!(probe().why.contains("simple"));
        assert_eq!(btrfs("btrfs", &["vdc".into()], sys.path()).state, State::No);
        assert_eq!(btrfs("xfs", &["vdb".into()], sys.path()).state, State::No);
    }
}
