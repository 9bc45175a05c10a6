//! What a container is shown of its own cgroups.

use super::Cgroups;
use std::os::fd::OwnedFd;
use wardian_sys::mount::{self, MountAttrFlags};

impl Cgroups {
    /// A detached, read-only mount of the cgroup `id` in each v1 hierarchy, in the order of [`Cgroups::v1_names`]; none
    /// if one of them cannot be made, as where the host's own mount is locked or unbindable: then the keeper mounts them.
    ///
    /// Each is a clone of the host's mount that begins at the cgroup's directory. A mount that a process makes in a
    /// cgroup namespace whose root is this cgroup has the same superblock and the same root directory, so neither
    /// reaches above it. But for the latter the kernel takes `cgroup_mutex` and walks all cgroups of the default
    /// hierarchy (`cgroup_lock_and_drain_offline` in kernel/cgroup/cgroup.c): the launch of a container would become
    /// slower with each other one.
    pub fn v1_mounts(&self, id: &str) -> Vec<OwnedFd> {
        let attrs = MountAttrFlags::MOUNT_ATTR_RDONLY
            | MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let clone = |dir: std::path::PathBuf| {
            let clone = mount::open_tree_clone(rustix::fs::CWD, dir.to_str()?, false).ok()?;
            // At once, so that no clone that is writable, or a peer of the host's mount, leaves this function.
            mount::set_alone(&clone, attrs).ok()?;
            Some(clone)
        };
        let clones = self.hierarchies.v1.iter().map(|hierarchy| clone(self.dir(hierarchy, id)));
        clones.collect::<Option<_>>().unwrap_or_default()
    }
}
