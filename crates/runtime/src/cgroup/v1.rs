//! What is particular to cgroup v1: one hierarchy for each controller or group of them, limits in their files, and
//! single threads as members.

use super::files::{Error, open_to_write, write_existing};
use super::hierarchies::Hierarchy;
use super::{Cgroups, Limits};
use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;

/// This file is missing on a kernel that does not account for swap (`swapaccount=0`).
pub(super) const SWAP_LIMIT: &str = "memory.memsw.limit_in_bytes";

/// Files and values for a hierarchy, in the order in which they must be written.
pub(super) fn limit_files(hierarchy: &Hierarchy, limits: Limits) -> Vec<(&'static str, u64)> {
    let mut files = Vec::new();
    if limits.memory_bytes > 0 && hierarchy.has("memory") {
        let bytes = limits.memory_bytes.min(i64::MAX as u64);
        // Memory and swap are counted together.
        files.extend([("memory.limit_in_bytes", bytes), (SWAP_LIMIT, bytes)]);
    }
    if limits.cpu_shares > 0 && hierarchy.has("cpu") {
        files.push(("cpu.shares", limits.cpu_shares));
    }
    if limits.pids > 0 && hierarchy.has("pids") {
        // The keeper's parked thread is a member too, and counts.
        files.push(("pids.max", limits.pids + 1));
    }
    files
}

/// Sets up the top cgroup of a hierarchy. cpuset refuses tasks until its masks are set: child cgroups are made to copy
/// them.
pub(super) fn set_up(hierarchy: &Hierarchy, top: &Path) {
    if hierarchy.has("cpuset") {
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if let Ok(value) = fs::read_to_string(hierarchy.path.join(file)) {
                let _ = fs::write(top.join(file), value);
            }
        }
        let _ = fs::write(top.join("cgroup.clone_children"), "1");
    }
}

/// The threads of a cgroup.
pub(super) fn tasks(dir: &Path) -> Vec<i32> {
    let text = fs::read_to_string(dir.join("tasks")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

/// Moves threads into a cgroup. One that has ended is left out.
pub(super) fn move_tasks(tasks: &[i32], to: &Path) {
    for task in tasks {
        drop(write_existing(&to.join("tasks"), &task.to_string()));
    }
}

impl Cgroups {
    /// Names of the v1 hierarchies.
    pub fn v1_names(&self) -> Vec<String> {
        self.hierarchies.v1.iter().map(|h| h.name.clone()).collect()
    }

    /// Opens the files of `id` that a process, or with `tasks` a thread, is moved into the cgroup by: one for each
    /// hierarchy.
    pub(super) fn open_v1(&self, id: &str, file: &str) -> Result<Vec<OwnedFd>, Error> {
        self.hierarchies
            .v1
            .iter()
            .map(|hierarchy| open_to_write(&self.dir(hierarchy, id).join(file)))
            .collect()
    }

    /// Moves the calling thread into the keepers' cgroup, so that the keepers it starts need not be moved one by one:
    /// each move waits for an RCU grace period on an idle host. Only v1 takes single threads; on v2 the new keepers
    /// must be moved by [`Self::adopt_keeper_v2`].
    ///
    /// # Errors
    /// A hierarchy is gone.
    pub fn become_keepers_parent(&self) -> Result<(), Error> {
        // 0 stands for the writing thread.
        self.hierarchies.v1.iter().try_for_each(|hierarchy| self.attach_keeper(hierarchy, "tasks", 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_go_to_the_hierarchy_that_has_the_controller() {
        let limits = Limits { memory_bytes: 5, cpu_shares: 7, pids: 9 };
        let files = |name: &str| limit_files(&Hierarchy { name: name.into(), path: "/x".into() }, limits);
        assert_eq!(files("cpu,cpuacct"), [("cpu.shares", 7)]);
        assert_eq!(files("memory"), [("memory.limit_in_bytes", 5), ("memory.memsw.limit_in_bytes", 5)]);
        assert_eq!(files("pids"), [("pids.max", 10)]);
        assert_eq!(files("name=systemd"), []);
    }
}
