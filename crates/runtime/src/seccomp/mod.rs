//! seccomp filters: the `linux.seccomp` object of an OCI bundle, compiled to the program that the kernel runs.
//!
//! [`garden`] is the profile of every unprivileged container and pea: Garden's, with the deviations below.
//! [`Profile::read`] takes any such object and refuses what is not implemented; [`Profile::compile`] compiles the
//! program, [`wardian_sys::seccomp::install`] installs it for a process.
//!
//! # System calls that no rule names
//!
//! As in runc, the result is `ENOSYS` when the number is larger than every number that the profile names for its
//! architecture, and the default action otherwise. A C library takes `ENOSYS` for "this kernel lacks the call" and
//! falls back to an older one; `EPERM` it returns to the program. The libraries first try `clone3`, which is refused
//! with `ENOSYS` by a rule of its own: its flags are in memory, which a filter cannot read.
//!
//! # Where the profile deviates from Garden's
//!
//! | system call | Garden's profile | here | why |
//! |---|---|---|---|
//! | `socket`, `socketpair` | any address family | unspecified, local, IPv4, IPv6, netlink, packet; else `EPERM` | AF_VSOCK reaches the host and its neighbours past the network namespace; AF_ALG and the rare families are kernel code through which containers have been escaped more than once |
//! | `clone` with CLONE_NEWCGROUP | allowed | `EPERM` | the other new namespaces are refused already |
//! | `clone` with CLONE_PARENT | allowed | `EPERM` | it creates children of the keeper, which the keeper has to reap |
//! | `syslog` | allowed | `EPERM` | the kernel log is the host's; it is readable where `kernel.dmesg_restrict` is 0 |
//! | `close_range`, `rseq`, `membarrier` | `EPERM` | allowed | they reach nothing but the caller and its own memory, and today's C libraries and language runtimes begin with them |
//! | `pidfd_open`, `pidfd_send_signal` | `EPERM` | allowed | `kill` in another form, within the pid namespace |
//! | `clock_gettime64` and the other calls of 32-bit programs with 64-bit times | `EPERM` | allowed where the call with 32-bit times is | a 32-bit musl returns `EPERM` to the program instead of trying the older call |
//! | `personality` by an x32 program, with upper bits in its argument | compared without them | `EPERM` | arguments are compared as the kernel gets them |
//!
//! A filter sees registers only. So a 32-bit program can still use any address family through `socketcall`, whose
//! arguments are in memory; without that call the 32-bit programs of glibc would have no network at all.
//!
//! Argument registers have 64 bits, but the kernel uses only 32 of them where a parameter is an `int`: the rules on
//! `socket` compare these alone, or a family with an additional high bit would pass as another.

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

/// Why a profile cannot be compiled.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It does not have the shape that the OCI runtime spec defines.
    #[error("{path}: {what}")]
    Shape {
        /// The path in the bundle.
        path: String,
        /// The error text.
        what: String,
    },
    /// It has the right shape, but asks for something that is not implemented.
    #[error("{path} is not supported by the native runtime")]
    Unsupported {
        /// The path in the bundle, and the value.
        path: String,
    },
    /// It needs more instructions than a program can have.
    #[error("linux.seccomp: the filter takes {0} instructions, the kernel's limit is 4096")]
    TooLong(usize),
}

/// A compiled filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// The classic BPF instructions.
    pub instructions: Vec<Instruction>,
    /// Flags for seccomp(2).
    pub flags: u32,
    /// Number of the profile's names that are no system call on any architecture of the filter. They are ignored, as
    /// the OCI runtime spec requires: profiles are written for many kernels and architectures.
    pub unknown: usize,
}

impl Program {
    /// Installs the filter for the calling thread; it stays over an exec.
    ///
    /// # Errors
    /// See [`wardian_sys::seccomp::install`].
    pub fn install(&self) -> io::Result<()> {
        wardian_sys::seccomp::install(&self.instructions, self.flags)
    }
}

/// The compiled [`garden`].
static COMPILED: LazyLock<Option<Arc<Program>>> = LazyLock::new(|| compile().ok());

fn compile() -> Result<Arc<Program>, Error> {
    let profile: Seccomp = serde_json::from_value(garden())
        .map_err(|error| Error::Shape { path: "garden.json".to_owned(), what: error.to_string() })?;
    Profile::read(&profile)?.compile().map(Arc::new)
}

/// [`garden`] as text in bundles. Nearly all bundles have this profile, so it is recognised by its text, which costs
/// less than parsing it each time.
pub static TEXT: LazyLock<String> = LazyLock::new(|| garden().to_string());

/// Compiles [`garden`] ahead of the first use of [`compiled`].
pub fn prepare() {
    LazyLock::force(&COMPILED);
    LazyLock::force(&TEXT);
}

/// [`garden`], compiled at most once.
///
/// # Errors
/// Never: the profile is part of the program, and a test compiles it. The error exists because nothing may run
/// without the filter.
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
