//! Overlays of others whose unmount syncs the store's file system.

use serde::Serialize;
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use wardian_sys::procfs::{self, MountInfo};

/// A host with thousands of mount namespaces is not searched to the end.
const BUDGET: Duration = Duration::from_millis(500);

/// How many there are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Overlays {
    /// Overlays on the store's file system that are not volatile, by whose they seem to be.
    pub syncing: BTreeMap<&'static str, usize>,
    /// Not all processes could be looked at.
    pub incomplete: bool,
}

impl Overlays {
    /// All of them.
    pub fn count(&self) -> usize {
        self.syncing.values().sum()
    }
}

/// Look through the mount namespaces of all processes for overlays that write to the device of `on`.
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
                // A process may end meanwhile.
                found.incomplete |= error.kind() == std::io::ErrorKind::PermissionDenied;
                continue;
            }
        }
        let text = std::fs::read_to_string(process.join("mountinfo")).unwrap_or_default();
        for upper in procfs::mountinfo(&text).unwrap_or_default().iter().filter_map(syncing) {
            let path = upper.strip_prefix("/").unwrap_or(&upper);
            let inside = std::fs::metadata(process.join("root").join(path));
            // What was mounted before its process moved to another root is seen from here.
            let here = || std::fs::metadata(&upper);
            if let Ok(found) = inside.or_else(|_| here()).map(|upper| (upper.dev(), upper.ino()))
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

/// The upper directory of an overlay that syncs.
fn syncing(mount: &MountInfo) -> Option<PathBuf> {
    if mount.fs_type != "overlay" || mount.is_volatile() {
        return None;
    }
    mount.super_options.iter().find_map(|option| option.strip_prefix("upperdir=")).map(PathBuf::from)
}

/// Whose an upper directory is, from where it lies.
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
