//! What can go wrong in the life of a container. An error's text is for the client, and has its causes in it; the causes
//! themselves are its sources.

use crate::{instance, keeper, reset, start};
use wardian_runtime::cgroup;
use wardian_sys::text::chain;

/// An engine error.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such container.
    #[error("unknown handle: {0}")]
    UnknownHandle(String),
    /// The handle is taken.
    #[error("Handle '{0}' already in use")]
    HandleInUse(String),
    /// The handle cannot name a container.
    #[error("invalid handle {0:?}: {1}")]
    InvalidHandle(String, &'static str),
    /// No such process.
    #[error("unknown process: {0}")]
    UnknownProcess(String),
    /// The process id is taken.
    #[error("process ID '{0}' already in use")]
    ProcessInUse(String),
    /// The program was not found in the container.
    #[error("{0}")]
    ExecutableNotFound(String),
    /// A second destroy while one runs.
    #[error("container already being destroyed")]
    BeingDestroyed,
    /// No such property.
    #[error("property does not exist: {0}")]
    UnknownProperty(String),
    /// The container cannot be used any more; only destroyed.
    #[error("container {handle} is broken: {reason}")]
    Broken {
        /// Whose.
        handle: String,
        /// Why.
        reason: String,
    },
    /// Too much to do: it may succeed later. The text says what to do.
    #[error("{0}")]
    Busy(String),
    /// A bad request: the text says what is wrong.
    #[error("{0}")]
    Invalid(String),
    /// The keeper could not start what was asked for: what a container is asked for and what fails inside of it look the same
    /// from outside.
    #[error("{0}")]
    Launch(String),
    /// The same where it may be for want of memory.
    #[error("{source}{hint}")]
    Starved {
        /// The failure.
        source: Box<Self>,
        /// How much memory is enough.
        hint: String,
    },
    /// What was begun for a client was given up.
    #[error("{during}: {why}")]
    GivenUp {
        /// Doing what.
        during: &'static str,
        /// For which reason.
        why: &'static str,
    },
    /// The container's keeper did not do what it was asked for.
    #[error("{asked}: {source}")]
    Keeper {
        /// What it was asked for.
        asked: &'static str,
        /// Why not.
        source: keeper::Error,
    },
    /// The store failed.
    #[error("{step}: {}", chain(&**source))]
    Store {
        /// Doing what.
        step: &'static str,
        /// What it says.
        source: Box<wardian_store::Error>,
    },
    /// A cgroup.
    #[error("cgroup: {0}")]
    Cgroup(#[from] cgroup::Error),
    /// What is bound into a container.
    #[error("bind mount: {path}: {}", chain(&**source))]
    BindMount {
        /// On the host.
        path: String,
        /// Why it cannot be.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The kernel said no, or a file of this server's own cannot be read or written.
    #[error("{step}: {source}")]
    System {
        /// Doing what.
        step: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// This process has not the ids that containers need.
    #[error("id maps: {0}")]
    IdMaps(String),
    /// A task of this server did not come to its end: it has panicked, or the server ends.
    #[error("{during}: {source}")]
    Task {
        /// Doing what.
        during: &'static str,
        /// Why.
        source: tokio::task::JoinError,
    },
    /// The run directory is not this server's.
    #[error(transparent)]
    Instance(#[from] instance::Error),
    /// The server cannot start.
    #[error(transparent)]
    Start(#[from] start::Error),
    /// Not everything could be removed.
    #[error(transparent)]
    Reset(#[from] reset::Error),
}

/// Bytes of memory that are enough to start something with. The kernel counts page tables, stacks and sockets as well, more of
/// them where there are more processors: on a host with two it takes 1 MiB.
const ENOUGH: u64 = 4 << 20;

/// What is added to an error where the limit of a container's memory may be its cause; nothing where it is not.
pub(crate) fn too_little(memory_bytes: u64) -> String {
    if memory_bytes == 0 || memory_bytes >= ENOUGH {
        return String::new();
    }
    format!(
        "; with a memory limit of {memory_bytes} bytes not even a container's init may fit: {} MiB are enough for that and a \
         small program",
        ENOUGH >> 20
    )
}

impl Error {
    /// The same where it may be for want of memory: nothing was started, under a limit of so many bytes.
    pub(crate) fn under(self, memory_bytes: u64) -> Self {
        let hint = too_little(memory_bytes);
        match self {
            Self::Launch(_) | Self::Keeper { .. } if !hint.is_empty() => {
                Self::Starved { source: Box::new(self), hint }
            }
            other => other,
        }
    }

    /// The kernel, or a file of this server, failed at `step`.
    pub fn system<E: Into<std::io::Error>>(step: &'static str) -> impl Fn(E) -> Self + Copy {
        move |error| Self::System { step, source: error.into() }
    }

    /// A task of this server did not end `during` this.
    pub(crate) fn task(during: &'static str) -> impl Fn(tokio::task::JoinError) -> Self + Copy {
        move |source| Self::Task { during, source }
    }

    /// A keeper did not do what it was `asked` for.
    pub(crate) fn keeper(asked: &'static str) -> impl Fn(keeper::Error) -> Self + Copy {
        move |source| Self::Keeper { asked, source }
    }

    /// The store failed at `step`.
    pub(crate) fn store(step: &'static str) -> impl Fn(wardian_store::Error) -> Self + Copy {
        move |error| Self::Store { step, source: Box::new(error) }
    }
}

/// Shorthand.
pub type Result<T> = std::result::Result<T, Error>;
