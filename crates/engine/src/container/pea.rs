//! A living pea, as its container knows it.

use crate::Shared;
use wardian_runtime::stats::Files;

/// A pea that lives.
#[derive(Debug, Clone)]
pub struct Pea {
    /// Its root file system, which names its cgroup.
    pub rootfs: String,
    /// When it was made: nanoseconds since boot.
    pub made_ns: u64,
}

impl Pea {
    /// Its cgroup is below its container's, or, with limits of its own, beside it.
    pub fn files(&self, shared: &Shared, container: &str) -> [Files; 2] {
        [true, false].map(|own| Files::new(&shared.cgroups, &pea_cgroup(container, &self.rootfs, own), false))
    }

    /// Whether the kernel killed something in it for want of memory.
    pub fn is_out_of_memory(&self, shared: &Shared, container: &str) -> bool {
        self.files(shared, container).iter().any(|files| files.oom_kills() > 0)
    }
}

/// Where a pea runs.
pub fn pea_cgroup(container: &str, pea: &str, own: bool) -> String {
    if own { format!("{container}.{pea}") } else { format!("{container}/{pea}") }
}
