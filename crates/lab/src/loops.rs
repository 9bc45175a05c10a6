//! Finds loop devices over images of limited root file systems that no record names: each ends with the last process
//! that has its file system, and takes space of the disk until then.

use crate::leaks::{Leak, Records};
use rustix::fs::{Mode, OFlags};
use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use wardian_sys::directory::Directory;
use wardian_sys::loop_device::{Backing, LoopDevices};
use wardian_sys::text::tame;

/// What the kernel shows behind the path of a file that had no name when it was attached.
const UNNAMED: &str = " (deleted)";
/// Directories of a store. Images begin in the first one.
const STORE: [&str; 3] = ["staging", "rootfs", "layers"];

/// The store to which the file behind a loop device belongs, by the path that the kernel shows of it.
fn store_of(backing: &str) -> Option<PathBuf> {
    let path = Path::new(backing.trim_end_matches('\n').strip_suffix(UNNAMED)?);
    let number = path.file_name()?.to_str()?.strip_prefix('#')?;
    let dir = path.parent()?;
    let is_ours = number.parse::<u64>().is_ok() && dir.file_name()? == STORE[0];
    is_ours.then(|| dir.parent().map(Path::to_owned)).flatten()
}

/// Whether a store is at this place, or was: a directory of somebody else's there tells that this one is none.
fn may_be_store(root: &Path) -> bool {
    !root.exists() || STORE.iter().all(|dir| root.join(dir).is_dir())
}

/// Whether the directory, if it is still there, is root's alone: another user can have a loop device over any path.
fn is_roots(root: &Path) -> bool {
    !root.exists() || Directory::open(root).is_ok()
}

/// Adds the devices that are listed in `sys` and belong to nobody. Only root can look at them.
pub(crate) fn leaks(sys: &Path, records: &Records, leaks: &mut BTreeSet<Leak>) {
    let found: Vec<(String, PathBuf)> = std::fs::read_dir(sys)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let backing = std::fs::read_to_string(entry.path().join("loop/backing_file")).ok()?;
            Some((entry.file_name().into_string().ok()?, store_of(&backing)?))
        })
        .collect();
    if found.is_empty() {
        return;
    }
    let Some(devices) = File::open("/dev").ok().and_then(|dev| LoopDevices::open(dev.into()).ok()) else {
        return;
    };
    for (name, root) in found {
        // A server that runs removes what is trash, and has some devices without a root file system.
        let of_server = |root: &Path| {
            records.places.values().any(|place| place.lives && place.root.as_deref() == Some(root))
        };
        if of_server(&root) || !may_be_store(&root) || !is_roots(&root) {
            continue;
        }
        let number = name.strip_prefix("loop").and_then(|number| number.parse().ok());
        let device = number.and_then(|number| devices.open_bound(number).ok());
        let Some(Ok(Some(backing))) = device.map(|device| device.backing()) else { continue };
        let is_recorded = records.parts.iter().any(|part| {
            // Nothing is opened: what has the name of an image may be anything.
            let path = root.join("rootfs").join(part).join("image");
            let image =
                rustix::fs::open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty());
            image.is_ok_and(|image| Backing::of(image).is_ok_and(|other| other == backing))
        });
        if is_recorded {
            continue;
        }
        let what =
            format!("/dev/{name}, an image of a root file system in {}", tame(&root.display().to_string()));
        let why = "no record names it; it ends with the last process that has it, as root or in a mount namespace: \
                   `grep -l upperdir=/upper /proc/*/mountinfo` finds those that may"
            .to_owned();
        leaks.insert(Leak { kind: "loop", what, why, instance: None });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instances::Place;
    use rustix::fs::{AtFlags, CWD};
    use std::os::fd::AsRawFd as _;
    use wardian_needs::needs;
    use wardian_sys::loop_device::Io;

    #[test]
    fn files_of_a_store_are_told_by_their_path() {
        assert_eq!(store_of("/var/lib/w/staging/#12 (deleted)\n"), Some("/var/lib/w".into()));
        for other in [
            "/var/lib/w/staging/#12",
            "/var/lib/w/#12 (deleted)",
            "/var/lib/w/staging/#x (deleted)",
            "/var/lib/w/staging/12 (deleted)",
            "/disk.img",
            "",
        ] {
            assert_eq!(store_of(other), None, "{other}");
        }
    }

    #[test]
    fn an_image_without_a_record_is_a_leak() {
        needs!(Root, Loop);
        let dir = tempfile::tempdir().unwrap();
        let root = std::fs::canonicalize(dir.path()).unwrap();
        STORE.iter().for_each(|name| std::fs::create_dir(root.join(name)).unwrap());
        std::fs::create_dir(root.join("rootfs/part")).unwrap();
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file = rustix::fs::open(root.join("staging"), flags, Mode::RUSR | Mode::WUSR).unwrap();
        rustix::fs::ftruncate(&file, 1 << 20).unwrap();
        let device = LoopDevices::open(File::open(&root).unwrap().into()).unwrap();
        let device = device.attach(&file, Io::Direct).unwrap();
        let find = |records: &Records| {
            let mut found = BTreeSet::new();
            leaks(Path::new("/sys/block"), records, &mut found);
            found.into_iter().filter(|leak| leak.what.contains(root.to_str().unwrap())).collect::<Vec<_>>()
        };
        let found = find(&Records::default());
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].what.starts_with(&format!("/dev/{},", device.name())), "{found:?}");

        let unnamed = format!("/proc/self/fd/{}", file.as_raw_fd());
        let image = root.join("rootfs/part/image");
        rustix::fs::linkat(CWD, unnamed, CWD, &image, AtFlags::SYMLINK_FOLLOW).unwrap();
        let mut records = Records::default();
        assert_eq!(find(&records).len(), 1);
        records.parts.insert("part".to_owned());
        assert_eq!(find(&records), []);
        records.parts.clear();
        let place = Place { run: "/run".into(), root: Some(root.clone()), lives: true };
        records.places.insert("0a1b2c3d".to_owned(), place);
        assert_eq!(find(&records), []);
    }
}
