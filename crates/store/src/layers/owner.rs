//! Who layers and root file systems belong to on the host.

use std::os::fd::BorrowedFd;

/// The host's uid and gid of the one who is root in the container.
pub(crate) type Root = (u32, u32);

/// Who root in a container is on the host; without it, the host's root (privileged).
#[derive(Debug, Clone, Copy)]
pub struct Owner<'a> {
    /// A user namespace with the container's mapping. The store keeps the first one it sees of each mapping that is
    /// `shared`; such a mapping is told by `uid` and `gid`.
    pub userns: BorrowedFd<'a>,
    /// The host id of the container's root user.
    pub uid: u32,
    /// The host id of the container's root group.
    pub gid: u32,
    /// Others have the same mapping. Of one that is not shared nothing is kept, and nothing is made ahead for it.
    pub shared: bool,
}

/// Whose its root directory is, on the host.
pub(crate) fn root_of(owner: Option<&Owner<'_>>) -> Root {
    owner.map_or((0, 0), |owner| (owner.uid, owner.gid))
}

/// Whether others have the same one.
pub(crate) fn is_shared(owner: Option<&Owner<'_>>) -> bool {
    owner.is_none_or(|owner| owner.shared)
}
