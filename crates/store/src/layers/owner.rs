//! The owners of layers and root file systems on the host.

use std::os::fd::BorrowedFd;

/// The host's uid and gid of the container's root.
pub(crate) type Root = (u32, u32);

/// The id mapping of a container's root user; where there is none, it is the host's root (privileged).
#[derive(Debug, Clone, Copy)]
pub struct Owner<'a> {
    /// A user namespace with the container's mapping. The store keeps the first one it sees of each `shared` mapping,
    /// which it identifies by `uid` and `gid`.
    pub userns: BorrowedFd<'a>,
    /// The host id of the container's root user.
    pub uid: u32,
    /// The host id of the container's root group.
    pub gid: u32,
    /// Whether other containers have the same mapping. For a mapping that is not shared nothing is cached or made
    /// ahead.
    pub shared: bool,
}

/// Returns the owner, on the host, of the root directory.
pub(crate) fn root_of(owner: Option<&Owner<'_>>) -> Root {
    owner.map_or((0, 0), |owner| (owner.uid, owner.gid))
}

/// Whether other containers have the same mapping.
pub(crate) fn is_shared(owner: Option<&Owner<'_>>) -> bool {
    owner.is_none_or(|owner| owner.shared)
}
