//! Cgroups that experiments and their servers make, in all hierarchies.

use std::path::{Path, PathBuf};

/// The directories of a cgroup: one for each hierarchy of version 1, and that of version 2.
pub(crate) fn groups(name: &str) -> Vec<PathBuf> {
    let top = Path::new("/sys/fs/cgroup");
    let hierarchies = std::fs::read_dir(top)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()).then(|| entry.path()));
    hierarchies
        .chain([top.to_owned()])
        .map(|hierarchy| hierarchy.join(name))
        .filter(|dir| dir.is_dir())
        .collect()
}

/// Removes a cgroup and those below it, as far as they are empty.
pub(crate) fn remove_group(dir: &Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_group(&entry.path());
        }
    }
    let _ = std::fs::remove_dir(dir);
}

/// The processes in a cgroup and those below it. Those of another pid namespace, shown as 0, die with its init.
pub(crate) fn members(group: &Path) -> Vec<u32> {
    let here = std::fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    let mut all: Vec<u32> =
        here.split_whitespace().filter_map(|pid| pid.parse().ok()).filter(|pid| *pid > 0).collect();
    for entry in std::fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            all.extend(members(&entry.path()));
        }
    }
    all
}
