//! Finds the mount point of a mount inside the root, and creates it where the image lacks it.

use crate::child::{Outcome, Stop, failed};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, StatxFlags};
use rustix::io::Errno;
use rustix::path::Arg;
use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use wardian_sys::directory::names_of;

/// The kernel's own limit (path_resolution(7)).
const MAX_LINKS: u32 = 40;
/// How many directories one mount point may need: without a limit the links of a small image could demand any number.
const MAX_MADE: u32 = 256;

/// How a path of the container is resolved: within the root, following its links, but not the magic links of procfs.
pub const INSIDE: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

/// The mounts made so far, as far as they restrict where links of the image may lead.
#[derive(Debug, Default)]
pub struct Places {
    /// Device numbers of the kernel's file systems (proc, sysfs, cgroup).
    pub kernels: Vec<u64>,
    /// Ids of the mounts at /dev and below it, whatever they are: /dev/shm, and bind mounts whose destination is
    /// there.
    pub devices: Vec<u64>,
    /// Ids of the mounts whose files are the container's alone: its root file system, and each tmpfs outside of /dev.
    pub own: Vec<u64>,
}

/// The id of the mount that a file was opened in (statx(2), `STATX_MNT_ID`).
///
/// # Errors
/// The kernel's answer.
pub fn mount_id(file: impl AsFd) -> rustix::io::Result<u64> {
    Ok(rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?.stx_mnt_id)
}

/// openat2(2) returns EAGAIN when a rename or a mount anywhere on the host interferes with a lookup of `..`. A
/// container that renames in a loop makes that likely, so the lookup is retried, and finally replaced by a walk
/// without `..`.
const TRIES: u32 = 16;

/// Opens a path below the root with openat2(2), resolved as `how` says.
///
/// # Errors
/// The kernel's; EAGAIN only after all retries.
pub fn open(
    root: &OwnedFd,
    path: impl Arg + Copy,
    flags: OFlags,
    how: ResolveFlags,
) -> rustix::io::Result<OwnedFd> {
    let mut left = TRIES;
    loop {
        left -= 1;
        match rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), how) {
            Err(Errno::AGAIN | Errno::INTR) if left > 0 => {}
            other => return other,
        }
    }
}

/// Opens the mount point `path` below the root. Missing components are created with the caller's rights: directories,
/// and as the last one a directory or an empty file.
///
/// `through`: links of the image are followed, also dangling ones; behind a link nothing is created outside of the
/// container's own file systems. Without it a link is an error. The result may be any file inside the root: whether
/// it may be covered is for the caller to judge, by the descriptor.
///
/// # Errors
/// The failed step, as text.
pub fn find(root: &OwnedFd, path: &str, directory: bool, through: Option<&Places>) -> Outcome<OwnedFd> {
    let say = |error| failed(format!("mount point {path}"))(error);
    match (open(root, path, OFlags::PATH, INSIDE | ResolveFlags::NO_SYMLINKS), through) {
        (Ok(found), _) => return Ok(found),
        (Err(Errno::LOOP), None) => {
            let text = format!("mount point {path}: it is, or is below, a symbolic link in the image");
            return Err(text.into());
        }
        (Err(Errno::NOENT | Errno::NOTDIR | Errno::AGAIN), _) => {}
        (Err(Errno::LOOP), Some(_)) => match open(root, path, OFlags::PATH, INSIDE) {
            Ok(found) => return Ok(found),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::AGAIN) => {}
            Err(Errno::LOOP) => return Err(circle(path)),
            Err(error) => return Err(say(error)),
        },
        (Err(error), _) => return Err(say(error)),
    }
    Walk { root, path, directory, through, here: PathBuf::new(), links: 0, made: 0 }.make()
}

fn circle(path: &str) -> Stop {
    let text = "the image's links lead in a circle, or through one of procfs that is not only its text";
    Stop::from(format!("mount point {path}: {text}"))
}

/// A walk to a mount point, one component after the other.
struct Walk<'a> {
    root: &'a OwnedFd,
    path: &'a str,
    directory: bool,
    through: Option<&'a Places>,
    /// Path of the current directory from the root, free of links.
    here: PathBuf,
    links: u32,
    made: u32,
}

impl Walk<'_> {
    fn error(&self, why: &str) -> Stop {
        Stop::from(format!("mount point {}: {why}", self.path))
    }

    /// Opens the current directory from the root, by components that were checked: `..` is never resolved by the
    /// kernel.
    fn open(&self) -> Outcome<OwnedFd> {
        let path = if self.here.as_os_str().is_empty() { Path::new(".") } else { &self.here };
        let how = INSIDE | ResolveFlags::NO_SYMLINKS;
        open(self.root, path, OFlags::PATH | OFlags::DIRECTORY, how).map_err(|error| {
            let here = path.display();
            self.error(&format!("/{here}: {error}"))
        })
    }

    /// Walks the path and creates what is missing. Returns the very file that was checked, not the result of a second
    /// lookup.
    fn make(&mut self) -> Outcome<OwnedFd> {
        let mut todo: VecDeque<OsString> = names_of(Path::new(self.path)).collect();
        let mut at = self.open()?;
        while let Some(name) = todo.pop_front() {
            if name == ".." {
                self.here.pop();
                at = self.open()?;
                continue;
            }
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let shown = self.here.join(&name).display().to_string();
            let found = match rustix::fs::openat(&at, &name, flags, Mode::empty()) {
                Err(Errno::NOENT) => {
                    self.made += 1;
                    if self.made > MAX_MADE {
                        return Err(self.error("its directories are too many to be meant"));
                    }
                    self.make_in(&at, &name, self.directory || !todo.is_empty())?;
                    todo.push_front(name);
                    continue;
                }
                other => other.map_err(|error| self.error(&format!("/{shown}: {error}")))?,
            };
            let stat =
                rustix::fs::fstat(&found).map_err(|error| self.error(&format!("/{shown}: {error}")))?;
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => {
                    self.here.push(&name);
                    at = found;
                }
                FileType::Symlink => {
                    let Some(places) = self.through else {
                        return Err(self.error("it is, or is below, a symbolic link in the image"));
                    };
                    self.links += 1;
                    if self.links > MAX_LINKS {
                        return Err(circle(self.path));
                    }
                    // The links of procfs may be magic links, and what is missing behind a link would belong to a
                    // file system of the kernel.
                    if places.kernels.contains(&stat.st_dev) {
                        return Err(in_kernel(self.path));
                    }
                    let target = rustix::fs::readlinkat(&found, "", Vec::new())
                        .map_err(|error| self.error(&format!("/{shown}: {error}")))?;
                    let target = OsString::from_vec(target.into_bytes());
                    if Path::new(&target).is_absolute() {
                        self.here.clear();
                        at = self.open()?;
                    }
                    for part in names_of(Path::new(&target)).rev() {
                        todo.push_front(part);
                    }
                }
                _ if todo.is_empty() => return Ok(found),
                _ => {
                    return Err(
                        self.error(&format!("/{shown} is no directory in the image, and must be one"))
                    );
                }
            }
        }
        Ok(at)
    }

    /// Creates one missing directory or file.
    fn make_in(&self, at: &OwnedFd, name: &OsStr, directory: bool) -> Outcome<()> {
        let shown = self.here.join(name).display().to_string();
        if let Some(places) = self.through {
            let stat = rustix::fs::fstat(at).map_err(failed(format!("look at /{shown}")))?;
            if places.kernels.contains(&stat.st_dev) {
                return Err(in_kernel(self.path));
            }
            let id = mount_id(at).map_err(failed(format!("look at /{shown}")))?;
            if places.devices.contains(&id) && !is_in_dev(self.path) {
                return Err(in_dev(self.path));
            }
            // A bind mount shows files from outside the container: a link of the image must not decide that something
            // is created there.
            if self.links > 0 && !places.own.contains(&id) {
                return Err(self.error(&format!(
                    "a link of the image leads to /{shown}, which is missing in another mount, where nothing is made"
                )));
            }
        }
        let made = if directory {
            rustix::fs::mkdirat(at, name, Mode::from_raw_mode(0o755))
        } else {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::WRONLY;
            rustix::fs::openat(at, name, flags, Mode::from_raw_mode(0o644)).map(drop)
        };
        match made {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(error) => Err(self.error(&format!("make /{shown}: {error}"))),
        }
    }
}

/// Whether a destination itself is in /dev, without regard to the image's links.
pub fn is_in_dev(path: &str) -> bool {
    let mut plain = PathBuf::new();
    for name in names_of(Path::new(path)) {
        if name == ".." {
            plain.pop();
        } else {
            plain.push(name);
        }
    }
    plain.starts_with("dev")
}

/// Error for a bind mount that would cover a file system of the kernel.
pub fn in_kernel(path: &str) -> Stop {
    Stop::from(format!(
        "a mount over {path} is not allowed: it is, or a link of the image leads, into /proc or /sys, which show the \
         kernel"
    ))
}

/// Error for a bind mount that a link leads into /dev: there only a destination that names /dev itself is allowed.
pub fn in_dev(path: &str) -> Stop {
    Stop::from(format!("a mount over {path} is not allowed: a link of the image leads into /dev"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// A root with `etc`, beside a directory that no link may reach.
    struct Cage {
        dir: tempfile::TempDir,
        places: Places,
    }

    impl Cage {
        fn new(links: &[(&str, &str)]) -> Self {
            let dir = tempfile::tempdir().unwrap();
            for name in ["root/etc", "outside"] {
                std::fs::create_dir_all(dir.path().join(name)).unwrap();
            }
            let own = vec![mount_id(std::fs::File::open(dir.path()).unwrap()).unwrap()];
            for (name, target) in links {
                symlink(target, dir.path().join("root").join(name)).unwrap();
            }
            Self { dir, places: Places { own, ..Places::default() } }
        }

        fn root(&self) -> PathBuf {
            self.dir.path().join("root")
        }

        fn find(&self, path: &str, directory: bool, through: bool) -> Result<(u64, u64), String> {
            let root = OwnedFd::from(std::fs::File::open(self.root()).unwrap());
            let found = find(&root, path, directory, through.then_some(&self.places));
            let stat = found.map(|found| rustix::fs::fstat(found).unwrap()).map_err(|stop| stop.text);
            assert_eq!(std::fs::read_dir(self.dir.path().join("outside")).unwrap().count(), 0);
            assert_eq!(std::fs::read_dir(self.dir.path()).unwrap().count(), 2);
            stat.map(|stat| (stat.st_dev, stat.st_ino))
        }

        fn leads(&self, path: &str, to: &str, directory: bool) {
            let found = self.find(path, directory, true).unwrap();
            let meta = self.root().join(to).symlink_metadata().unwrap();
            use std::os::unix::fs::MetadataExt;
            assert_eq!(found, (meta.dev(), meta.ino()), "{path}");
            assert!(if directory { meta.is_dir() } else { meta.is_file() }, "{path}");
        }
    }

    #[test]
    fn what_a_link_points_to_is_made() {
        for directory in [false, true] {
            let cage = Cage::new(&[
                ("etc/resolv.conf", "../run/systemd/resolve/stub-resolv.conf"),
                ("etc/absolute", "/var/a/b"),
                ("etc/one", "two"),
                ("etc/two", "/etc/three"),
                ("etc/three", "../../../../../four"),
                ("etc/up", "new/../../five"),
                ("lib", "usr/lib"),
                ("etc/out", "../../outside/x"),
                ("etc/slashes", "//six///./seven"),
            ]);
            for (path, to) in [
                ("/etc/resolv.conf", "run/systemd/resolve/stub-resolv.conf"),
                ("/etc/absolute", "var/a/b"),
                ("/etc/one", "four"),
                ("/etc/up", "five"),
                ("/lib/x/y", "usr/lib/x/y"),
                ("/etc/out", "outside/x"),
                ("/etc/slashes", "six/seven"),
                ("/plain/new", "plain/new"),
                ("/etc/../elsewhere", "elsewhere"),
                ("/../../top", "top"),
            ] {
                cage.leads(path, to, directory);
                // The second time the mount point exists.
                cage.leads(path, to, directory);
            }
        }
    }

    #[test]
    fn loops_and_files_on_the_way_are_refused() {
        let cage = Cage::new(&[("a", "b"), ("b", "a"), ("self", "self/x"), ("long", "m")]);
        for path in ["/a", "/a/x", "/self", "/self/y"] {
            assert!(cage.find(path, false, true).unwrap_err().contains("in a circle"), "{path}");
        }
        std::fs::write(cage.root().join("file"), "").unwrap();
        for through in [false, true] {
            let error = cage.find("/file/x", true, through).unwrap_err();
            assert_eq!(error, "mount point /file/x: /file is no directory in the image, and must be one");
        }
        // As many links as the kernel follows, and one more.
        for n in 0..41 {
            let target = if n == 0 { "made".to_owned() } else { format!("l{}", n - 1) };
            symlink(target, cage.root().join(format!("l{n}"))).unwrap();
        }
        assert!(cage.find("/l40", false, true).is_err());
        cage.leads("/l39", "made", false);
        // More directories than the limit.
        let deep = "d/".repeat(1000);
        assert!(cage.find(&deep, true, true).unwrap_err().contains("too many"));
    }

    #[test]
    fn without_links_none_is_followed() {
        let cage = Cage::new(&[("proc", "/etc"), ("sys", "missing")]);
        for path in ["/proc", "/proc/x", "/sys", "/sys/fs/cgroup"] {
            let error = cage.find(path, true, false).unwrap_err();
            assert!(error.contains("symbolic link in the image"), "{error}");
        }
        assert!(!cage.root().join("missing").exists() && !cage.root().join("etc/x").exists());
        assert!(cage.find("/dev", true, false).is_ok());
    }

    #[test]
    fn a_link_makes_nothing_in_other_mounts() {
        let mut cage = Cage::new(&[("etc/hosts", "../data/hosts"), ("etc/data", "../data")]);
        cage.places.own.clear();
        for path in ["/etc/hosts", "/etc/data/x"] {
            assert!(cage.find(path, false, true).unwrap_err().contains("another mount"), "{path}");
        }
        assert!(!cage.root().join("data").exists());
        // A destination without links is created also where links must not create.
        cage.leads("/data/named", "data/named", false);
        // An existing file may be covered through a link.
        cage.leads("/etc/data/named", "data/named", false);
        cage.places.devices.push(mount_id(std::fs::File::open(cage.root()).unwrap()).unwrap());
        assert!(cage.find("/etc/data/made", false, true).unwrap_err().contains("into /dev"));
        assert!(cage.find("/dev/made", false, true).is_ok());
        assert!(!cage.root().join("data/made").exists());
        let meta = std::fs::metadata(cage.root()).unwrap();
        cage.places.kernels.push(std::os::unix::fs::MetadataExt::dev(&meta));
        assert!(cage.find("/data/kernels", false, true).unwrap_err().contains("show the kernel"));
    }

    #[test]
    fn what_is_named_in_dev_is_told_from_what_links_lead_there() {
        for (path, inside) in [
            ("/dev", true),
            ("/dev/null", true),
            ("//etc/../dev/./shm/x", true),
            ("/dev/../data", false),
            ("/dev/../../data", false),
            ("/device", false),
            ("/data/dev", false),
            ("/", false),
        ] {
            assert_eq!(is_in_dev(path), inside, "{path}");
        }
    }

    /// Another process renames in a loop elsewhere on the host.
    #[test]
    fn renames_elsewhere_keep_no_mount_point_from_being_found() {
        let cage = Cage::new(&[("etc/resolv.conf", "../run/systemd/resolve/stub-resolv.conf")]);
        let elsewhere = tempfile::tempdir().unwrap();
        let [a, b] = ["a", "b"].map(|name| elsewhere.path().join(name));
        std::fs::write(&a, "").unwrap();
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !done.load(std::sync::atomic::Ordering::Relaxed) {
                        let _ = std::fs::rename(&a, &b);
                        let _ = std::fs::rename(&b, &a);
                    }
                });
            }
            let found: Vec<_> = (0..5000)
                .map(|_| cage.find("/etc/../etc/resolv.conf", false, true))
                .filter(Result::is_err)
                .collect();
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            assert!(found.is_empty(), "{found:?}");
        });
        cage.leads("/etc/resolv.conf", "run/systemd/resolve/stub-resolv.conf", false);
    }
}
