//! The rights of a process: its ids, and what the kernel allows it.

use crate::seccomp::Program;
use std::sync::Arc;

/// The umask of a process that does not ask for one.
pub const UMASK: u32 = 0o022;

/// All rights of a process at the start of its program. The default: container root without capabilities.
///
/// Everything else of this kind (security labels, scheduling) is refused in a bundle, see [`crate::bundle`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rights {
    /// User id, inside.
    pub uid: u32,
    /// Group id, inside.
    pub gid: u32,
    /// Supplementary groups, inside.
    pub groups: Vec<u32>,
    /// Bounding and inheritable set; if [`uid`](Self::uid) is 0 also permitted and effective set.
    pub capabilities: u64,
    /// `PR_SET_NO_NEW_PRIVS`, prctl(2).
    pub no_new_privileges: bool,
    /// Resource limits of the process and its children. All others are inherited from the keeper.
    pub limits: Vec<Limit>,
    /// umask(2), 0 to 0777.
    pub umask: u32,
    /// Seccomp filter.
    pub seccomp: Option<Arc<Program>>,
}

impl Default for Rights {
    fn default() -> Self {
        Self {
            uid: 0,
            gid: 0,
            groups: Vec::new(),
            capabilities: 0,
            no_new_privileges: false,
            limits: Vec::new(),
            umask: UMASK,
            seccomp: None,
        }
    }
}

/// A limit (getrlimit(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// Number of the resource, `RLIMIT_*`.
    pub resource: u32,
    /// Soft and hard limit, in the resource's unit.
    pub value: u64,
}
