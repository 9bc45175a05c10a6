//! Filters of system calls: the `linux.seccomp` object of an OCI bundle, made into the program that the kernel runs.
//!
//! [`garden`] is the profile of every unprivileged container and pea: the one that Garden gives them, with the
//! deviations below. [`Profile::read`] takes any such object and refuses what is not implemented; [`Profile::compile`]
//! makes the program, [`wardian_sys::seccomp::install`] puts a process under it.
//!
//! # System calls that no rule names
//!
//! As runc does it: `ENOSYS` when its number is larger than every number that the profile names for its architecture,
//! the default action otherwise. A C library takes `ENOSYS` for "this kernel has it not yet" and uses what there was
//! before; `EPERM` it hands on to the program. The libraries begin with `clone3`, which is refused with `ENOSYS` by a
//! rule of its own: its flags are in memory, where a filter cannot look.
//!
//! # Where the profile deviates from Garden's
//!
//! | system call | Garden's profile | here | why |
//! |---|---|---|---|
//! | `socket`, `socketpair` | any address family | unspecified, local, IPv4, IPv6, netlink, packet; else `EPERM` | AF_VSOCK reaches the host and its neighbours past the network namespace; AF_ALG and the rare families are kernel code that a container has been left by more than once |
//! | `clone` with CLONE_NEWCGROUP | allowed | `EPERM` | the other new namespaces are refused already |
//! | `clone` with CLONE_PARENT | allowed | `EPERM` | it makes children of the keeper, for it to reap |
//! | `syslog` | allowed | `EPERM` | the kernel log is the host's; it is readable where `kernel.dmesg_restrict` is 0 |
//! | `close_range`, `rseq`, `membarrier` | `EPERM` | allowed | they reach nothing but the caller and its own memory, and today's C libraries and language runtimes begin with them |
//! | `pidfd_open`, `pidfd_send_signal` | `EPERM` | allowed | `kill` in another form, within the pid namespace |
//! | `clock_gettime64` and the other calls of 32-bit programs with 64-bit times | `EPERM` | allowed where the call with 32-bit times is | a 32-bit musl takes `EPERM` for the clock's answer |
//! | `personality` by a program of the x32 kind, with upper bits in its argument | compared without them | `EPERM` | arguments are compared as the kernel gets them |
//!
//! A filter sees registers. So a 32-bit program still gets any address family through `socketcall`, whose arguments are
//! in memory; without that call the 32-bit programs of glibc would have no network at all.
//!
//! Argument registers are 64 bits wide, but the kernel looks at 32 of them where a parameter is an `int`: the rules on
//! `socket` compare these alone, or a family with a bit too many would pass as another.

mod calls;
mod compile;
mod profile;
#[cfg(test)]
mod tests;

pub use profile::{Action, Architecture, Comparison, Operator, Profile, Rule};

use crate::oci::Seccomp;
use serde_json::Value;
use std::io;
use std::sync::{Arc, LazyLock};
use wardian_sys::seccomp::Instruction;

/// What cannot be made into a filter.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not of the shape that the OCI runtime spec gives.
    #[error("{path}: {what}")]
    Shape {
        /// Where in the bundle.
        path: String,
        /// In words.
        what: String,
    },
    /// Of the right shape, but not implemented.
    #[error("{path} is not supported by the native runtime")]
    Unsupported {
        /// Where in the bundle, and what.
        path: String,
    },
    /// More rules than a program can hold.
    #[error("linux.seccomp: the filter takes {0} instructions, the kernel's limit is 4096")]
    TooLong(usize),
}

/// A filter as the kernel takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// Classic BPF.
    pub instructions: Vec<Instruction>,
    /// For seccomp(2).
    pub flags: u32,
    /// Names of the profile that no architecture of the filter has as a system call. They are passed over, as the OCI
    /// runtime spec wants it: profiles are written for many kernels and architectures.
    pub unknown: usize,
}

impl Program {
    /// Put the calling thread, and what it will execute, under the filter.
    ///
    /// # Errors
    /// See [`wardian_sys::seccomp::install`].
    pub fn install(&self) -> io::Result<()> {
        wardian_sys::seccomp::install(&self.instructions, self.flags)
    }
}

/// What [`garden`] compiles to.
static COMPILED: LazyLock<Option<Arc<Program>>> = LazyLock::new(|| compile().ok());

fn compile() -> Result<Arc<Program>, Error> {
    let profile: Seccomp = serde_json::from_value(garden())
        .map_err(|error| Error::Shape { path: "garden.json".to_owned(), what: error.to_string() })?;
    Profile::read(&profile)?.compile().map(Arc::new)
}

/// [`garden`] as it stands in bundles. Nearly all have this one, so that it is told by its text, which costs less than to
/// understand it each time.
pub static TEXT: LazyLock<String> = LazyLock::new(|| garden().to_string());

/// Compiles [`garden`] ahead of the first use of [`compiled`].
pub fn prepare() {
    LazyLock::force(&COMPILED);
    LazyLock::force(&TEXT);
}

/// [`garden`], compiled at most once.
///
/// # Errors
/// Never: the profile is part of the program, and a test compiles it. But nothing may run without it.
pub fn compiled() -> Result<Arc<Program>, Error> {
    COMPILED.clone().map_or_else(compile, Ok)
}

/// The profile of unprivileged containers and peas, as a `linux.seccomp` object.
///
/// # Panics
/// Never: the text is part of the program.
pub fn garden() -> Value {
    serde_json::from_str(include_str!("garden.json")).expect("garden.json is part of the program")
}
