//! What is particular to cgroup v2: one hierarchy, whose controllers are enabled for each level, and weights instead of
//! shares.

use super::files::{Error, at};
use super::{Cgroups, Limits};
use crate::wire::Placement;
use rustix::fs::{Mode, OFlags};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

/// This file is missing on a kernel that does not account for swap (`swapaccount=0`).
pub(super) const SWAP_LIMIT: &str = "memory.swap.max";

/// Files and values, in the order in which they must be written.
pub(super) fn limit_files(limits: Limits) -> Vec<(&'static str, u64)> {
    let mut files = Vec::new();
    if limits.memory_bytes > 0 {
        // Swap is counted by itself.
        files.extend([("memory.max", limits.memory_bytes.min(i64::MAX as u64)), (SWAP_LIMIT, 0)]);
    }
    if limits.cpu_shares > 0 {
        files.push(("cpu.weight", weight(limits.cpu_shares)));
    }
    if limits.pids > 0 {
        files.push(("pids.max", limits.pids));
    }
    files
}

/// Enables the controllers in the hierarchy's root and in the top cgroup.
pub(super) fn set_up(root: &Path, top: &Path) {
    for dir in [root, top] {
        for controller in ["cpu", "memory", "pids"] {
            // A missing controller is reported when a limit is asked for.
            let _ = fs::write(dir.join("cgroup.subtree_control"), format!("+{controller}"));
        }
    }
}

/// Converts shares to a weight as runc does since 1.3.
fn weight(shares: u64) -> u64 {
    match shares {
        0..=2 => 1,
        262_144.. => 10_000,
        _ => {
            let l = (shares as f64).log2();
            10f64.powf((l * l + 125.0 * l) / 612.0 - 7.0 / 34.0).ceil() as u64
        }
    }
}

impl Cgroups {
    /// Whether the host has cgroup v2 only.
    pub fn is_v2(&self) -> bool {
        self.hierarchies.is_v2()
    }

    /// The shares as this host represents them: v2 has only weights.
    pub fn shown_shares(&self, shares: u64) -> u64 {
        if shares > 0 && self.is_v2() { weight(shares) } else { shares }
    }

    /// The placement of a process that is cloned by a thread in the v1 part of the cgroup: only v2 is left to enter.
    ///
    /// # Errors
    /// The cgroup is gone.
    pub fn enter_v2(&self, id: &str) -> Result<Placement<OwnedFd>, Error> {
        let mut place = Placement { v1_procs: Vec::new(), v2_dir: None };
        if let Some(hierarchy) = &self.hierarchies.v2 {
            let path = self.dir(hierarchy, id);
            let fd =
                rustix::fs::open(&path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
            place.v2_dir = Some(fd.map_err(io::Error::from).map_err(at("open", &path))?);
        }
        Ok(place)
    }

    /// Moves a keeper whose parent is in the keepers' cgroup already: only v2 is left.
    ///
    /// # Errors
    /// The process is gone.
    pub fn adopt_keeper_v2(&self, pid: i32) -> Result<(), Error> {
        self.hierarchies
            .v2
            .iter()
            .try_for_each(|hierarchy| self.attach_keeper(hierarchy, "cgroup.procs", pid))
    }

    /// Asks the kernel to kill the members of `id`. It reaches all of them only where every process is a member of the
    /// v2 hierarchy; elsewhere it does no harm.
    pub(super) fn kill_v2(&self, id: &str) {
        if let Some(v2) = &self.hierarchies.v2 {
            drop(fs::write(self.dir(v2, id).join("cgroup.kill"), "1"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_become_weights() {
        assert_eq!((weight(2), weight(1024), weight(262_144)), (1, 100, 10_000));
    }

    #[test]
    fn limits_have_their_files() {
        let limits = Limits { memory_bytes: 5, cpu_shares: 7, pids: 9 };
        let files = [("memory.max", 5), ("memory.swap.max", 0), ("cpu.weight", weight(7)), ("pids.max", 9)];
        assert_eq!(limit_files(limits), files);
        assert_eq!(limit_files(Limits::default()), []);
    }
}
