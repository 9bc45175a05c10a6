//! Overlays of other programs whose unmount syncs the store's file system.

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, StatxFlags, makedev, openat2, statx};
use rustix::io::Errno;
use serde::Serialize;
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use wardian_sys::procfs::{self, MountInfo};

/// Time limit: on a host with thousands of mount namespaces the search is incomplete.
const BUDGET: Duration = Duration::from_millis(500);
/// How often a lookup is retried that a rename has interfered with.
const TRIES: usize = 8;

/// The number of these overlays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Overlays {
    /// Overlays on the store's file system that are not volatile, by presumed owner.
    pub syncing: BTreeMap<&'static str, usize>,
    /// Whether some processes could not be examined.
    pub incomplete: bool,
}

impl Overlays {
    /// Number of all these overlays.
    pub fn count(&self) -> usize {
        self.syncing.values().sum()
    }
}

/// Searches the mount namespaces of all processes for overlays that write to the device of `on`.
pub fn probe(on: &Path) -> Overlays {
    let mut found = Overlays::default();
    let Ok(device) = std::fs::metadata(on).map(|metadata| metadata.dev()) else { return found };
    let started = Instant::now();
    let mut seen = std::collections::BTreeSet::new();
    let mut uppers = BTreeMap::new();
    for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        if !process.file_name().as_encoded_bytes()[0].is_ascii_digit() {
            continue;
        }
        let process = process.path();
        if started.elapsed() > BUDGET {
            found.incomplete = true;
            break;
        }
        match std::fs::read_link(process.join("ns/mnt")) {
            Ok(namespace) if seen.insert(namespace.clone()) => {}
            Ok(_) => continue,
            Err(error) => {
                // The process may have ended meanwhile.
                found.incomplete |= error.kind() == std::io::ErrorKind::PermissionDenied;
                continue;
            }
        }
        let text = std::fs::read(process.join("mountinfo")).unwrap_or_default();
        for upper in procfs::mountinfo(&text).unwrap_or_default().iter().filter_map(syncing) {
            // What was mounted before its process changed its root is found from this process's root.
            let found = in_use(&process.join("root"), &upper).or_else(|| in_use(Path::new("/"), &upper));
            if let Some(found) = found
                && found.0 == device
            {
                uppers.insert(found, owner(&upper));
            }
        }
    }
    for owner in uppers.into_values() {
        *found.syncing.entry(owner).or_default() += 1;
    }
    found
}

/// Device and inode of a directory that an overlay uses, by its path below a root. Such paths can be chosen by any
/// user, also on a file system of hers that does not answer. Therefore only the dentry cache is asked
/// (`RESOLVE_CACHED`): a directory in use is in it.
fn in_use(root: &Path, path: &Path) -> Option<(u64, u64)> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(root, flags, Mode::empty()).ok()?;
    let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::CACHED;
    let opened = (0..TRIES).find_map(|_| match openat2(&root, path, flags, Mode::empty(), how) {
        Err(Errno::AGAIN | Errno::INTR) => None,
        other => Some(other.ok()),
    })??;
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let stat = statx(opened, c"", flags, StatxFlags::INO).ok()?;
    Some((makedev(stat.stx_dev_major, stat.stx_dev_minor), stat.stx_ino))
}

/// The upper directory of an overlay that is not volatile.
fn syncing(mount: &MountInfo) -> Option<PathBuf> {
    if mount.fs_type != "overlay" || mount.is_volatile() {
        return None;
    }
    mount.super_options.iter().find_map(|option| option.strip_prefix("upperdir=")).map(PathBuf::from)
}

/// Presumed owner of an upper directory, by its path.
fn owner(upper: &Path) -> &'static str {
    let known = [
        ("/docker/", "docker"),
        ("/containerd/", "containerd"),
        ("/containers/storage/", "podman or cri-o"),
        ("/buildkit/", "buildkit"),
        ("/grootfs/", "grootfs"),
    ];
    let upper = upper.to_string_lossy();
    known.into_iter().find(|(part, _)| upper.contains(part)).map_or("others", |(_, owner)| owner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_syncs() {
        let line = |options: &str| {
            let text = format!("40 27 0:50 / /mnt/x rw - overlay overlay rw,{options}\n");
            procfs::mountinfo(&text).unwrap().remove(0)
        };
        let upper =
            syncing(&line("lowerdir=/l,upperdir=/var/lib/docker/overlay2/1/diff,workdir=/w")).unwrap();
        assert_eq!((upper.to_str(), owner(&upper)), (Some("/var/lib/docker/overlay2/1/diff"), "docker"));
        assert_eq!(owner(Path::new("/srv/upper")), "others");
        for quiet in ["lowerdir=/l", "upperdir=/u,volatile", "upperdir=/u,fsync=volatile"] {
            assert_eq!(syncing(&line(quiet)), None, "{quiet}");
        }
    }
}
