//! The rights of a process: as whom it runs, and what the kernel lets it do.

use crate::seccomp::Program;
use std::sync::Arc;

/// The umask of a process that asks for none.
pub const UMASK: u32 = 0o022;

/// All that a process has of rights when its program begins. The default: container root without capabilities.
///
/// Everything else that would belong here (security labels, scheduling) is refused in a bundle, see [`crate::bundle`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rights {
    /// User id, inside.
    pub uid: u32,
    /// Group id, inside.
    pub gid: u32,
    /// Supplementary groups, inside.
    pub groups: Vec<u32>,
    /// Bounding and inheritable set, and if [`uid`](Self::uid) is 0 permitted and effective set as well.
    pub capabilities: u64,
    /// `PR_SET_NO_NEW_PRIVS`, prctl(2).
    pub no_new_privileges: bool,
    /// Of the process and its children. All others are the keeper's.
    pub limits: Vec<Limit>,
    /// umask(2), 0 to 0777.
    pub umask: u32,
    /// Filter of system calls.
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
