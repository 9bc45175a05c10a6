//! A living pea, as its container knows it.

use crate::Shared;
use wardian_runtime::stats::Files;

/// A pea that lives.
#[derive(Debug, Clone)]
pub struct Pea {
    /// The id of its root file system, which also names its cgroup.
    pub rootfs: String,
    /// When the pea was made, in nanoseconds since boot.
    pub made_ns: u64,
}

impl Pea {
    /// Returns the statistics files of the two possible cgroups of the pea: with limits of its own its cgroup
    /// is beside its container's, otherwise below it.
    pub fn files(&self, shared: &Shared, container: &str) -> [Files; 2] {
        [true, false].map(|own| Files::new(&shared.cgroups, &pea_cgroup(container, &self.rootfs, own), false))
    }

    /// Whether the OOM killer has killed a process of the pea.
    pub fn is_out_of_memory(&self, shared: &Shared, container: &str) -> bool {
        self.files(shared, container).iter().any(|files| files.oom_kills() > 0)
    }
}

/// Returns the name of a pea's cgroup; `own`: the pea has limits of its own.
pub fn pea_cgroup(container: &str, pea: &str, own: bool) -> String {
    if own { format!("{container}.{pea}") } else { format!("{container}/{pea}") }
}
