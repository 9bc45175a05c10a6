//! The engine's errors. An error's text is for the client, and includes its causes; the causes are also its
//! sources.

use crate::spec::Limits;
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
    /// A teardown of the container is under way already.
    #[error("container already being destroyed")]
    BeingDestroyed,
    /// No such property.
    #[error("property does not exist: {0}")]
    UnknownProperty(String),
    /// The container is broken: it can only be destroyed.
    #[error("container {handle} is broken: {reason}")]
    Broken {
        /// The container's handle.
        handle: String,
        /// Why.
        reason: String,
    },
    /// The process has ended.
    #[error("process {process} has ended with status {status}")]
    Ended {
        /// Its id.
        process: String,
        /// Its exit status.
        status: i32,
    },
    /// The container is paused: nothing can be started in it, nor be copied.
    #[error("container {0} is paused: `wardian unpause {0}` lets it go on")]
    Paused(String),
    /// A container cannot be paused, or not go on.
    #[error(transparent)]
    Freezer(#[from] cgroup::freezer::Error),
    /// The server is overloaded: the request may succeed later. The text says what to do.
    #[error("{0}")]
    Busy(String),
    /// A bad request: the text says what is wrong.
    #[error("{0}")]
    Invalid(String),
    /// The keeper could not start the program. From outside, an unusable request and a failure inside the
    /// container look the same.
    #[error("{0}")]
    Launch(String),
    /// A failed start that may be due to a low limit.
    #[error("{source}{hint}")]
    Starved {
        /// The failure.
        source: Box<Self>,
        /// How much memory, or how many inodes, are enough.
        hint: String,
    },
    /// The operation was given up.
    #[error("{during}: {why}")]
    GivenUp {
        /// The operation.
        during: &'static str,
        /// The reason.
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
    /// The store cannot make the writable layer of a container, or of a pea in it, or cannot limit it.
    #[error("{}", of_writable(whose, source))]
    Writable {
        /// The container's handle, or that of a pea's container.
        whose: Whose,
        /// What the store says.
        source: Box<wardian_store::Error>,
    },
    /// A cgroup cannot be made or set up.
    #[error("cgroup: {0}")]
    Cgroup(#[from] cgroup::Error),
    /// A container's network cannot be made or changed.
    #[error(transparent)]
    Network(#[from] wardian_network::Error),
    /// Something cannot be mounted in a container.
    #[error("{given}: {}", chain(&**source))]
    Mount {
        /// How the client has asked for it.
        given: String,
        /// The cause.
        source: Box<crate::mounts::Error>,
    },
    /// There is no such volume.
    #[error("there is no volume {0:?}; `wardian volume ls` lists them")]
    UnknownVolume(String),
    /// Containers use the volume.
    #[error("the volume {name} is in use by {by}: destroy what uses it first (`wardian rm`)")]
    VolumeInUse {
        /// The volume's name.
        name: String,
        /// Handles of the containers.
        by: String,
    },
    /// A system call failed, or a file of this server's own cannot be read or written.
    #[error("{step}: {source}")]
    System {
        /// Doing what.
        step: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// This process's user namespace lacks the ids that containers need.
    #[error("id maps: {0}")]
    IdMaps(String),
    /// A task of this server has panicked, or was cancelled because the server ends.
    #[error("{during}: {source}")]
    Task {
        /// Doing what.
        during: &'static str,
        /// Why.
        source: tokio::task::JoinError,
    },
    /// The run directory cannot be used.
    #[error(transparent)]
    Instance(#[from] instance::Error),
    /// The server cannot start.
    #[error(transparent)]
    Start(#[from] start::Error),
    /// Not everything could be removed.
    #[error(transparent)]
    Reset(#[from] reset::Error),
}

/// Whose root file system it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Whose {
    /// A container's, with this handle.
    Container(String),
    /// A pea's in the container with this handle.
    Pea(String),
}

impl std::fmt::Display for Whose {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Container(handle) => write!(to, "container {handle}"),
            Self::Pea(handle) => write!(to, "a pea in container {handle}"),
        }
    }
}

/// The store names a root file system by an id of its own, which means nothing to the client: it is told whose it is.
fn of_writable(whose: &Whose, error: &wardian_store::Error) -> String {
    use wardian_store::rootfs::Error as Rootfs;
    match error.root() {
        wardian_store::Error::Rootfs(Rootfs::Make { source, .. }) => {
            let full = source
                .is_full()
                .then_some("; the file system under the store is full: `wardian store usage`");
            format!(
                "cannot make the writable layer of {whose}: {}{}",
                chain(source),
                full.unwrap_or_default()
            )
        }
        wardian_store::Error::Rootfs(Rootfs::Limit { source, .. }) => {
            format!("cannot limit the root file system of {whose}: {}", chain(source))
        }
        other => format!("cannot limit the root file system of {whose}: {}", chain(other)),
    }
}

/// Bytes of memory that are enough to start a process with. The kernel also charges page tables, stacks and
/// sockets, and more of them with more processors: on a host with two processors a start takes 1 MiB.
const ENOUGH: u64 = 4 << 20;

/// Inodes that are enough for the mount points of a container whose image has none of them: /proc, /sys, /dev, /tmp and
/// the files and directories on the paths to them.
const ENOUGH_INODES: u64 = 16;

/// Returns a hint for an error that a low limit may have caused; empty for limits that are high enough.
pub(crate) fn too_little(limits: &Limits) -> String {
    let memory_bytes = limits.memory_bytes;
    if memory_bytes > 0 && memory_bytes < ENOUGH {
        return format!(
            "; with a memory limit of {memory_bytes} bytes not even a container's init may fit: {} MiB are enough for that \
             and a small program",
            ENOUGH >> 20
        );
    }
    match limits.disk.inodes {
        Some(inodes) if inodes < ENOUGH_INODES => format!(
            "; with a limit of {inodes} inodes not even the mount points of a container may fit, which it makes first: \
             {ENOUGH_INODES} are enough for those"
        ),
        _ => String::new(),
    }
}

impl Error {
    /// Whether the request is at fault, or the image or container that it is about: neither the server nor its host has
    /// failed, and its operator has nothing to do.
    pub fn is_the_clients(&self) -> bool {
        match self {
            Self::UnknownHandle(_)
            | Self::HandleInUse(_)
            | Self::InvalidHandle(..)
            | Self::UnknownProcess(_)
            | Self::ProcessInUse(_)
            | Self::ExecutableNotFound(_)
            | Self::BeingDestroyed
            | Self::Ended { .. }
            | Self::Paused(_)
            | Self::UnknownProperty(_)
            // What broke it has been logged.
            | Self::Broken { .. }
            | Self::Invalid(_)
            | Self::Launch(_)
            | Self::Starved { .. }
            | Self::Mount { .. }
            | Self::UnknownVolume(_)
            | Self::VolumeInUse { .. } => true,
            // A create of which the keeper cannot say whether the image or the kernel is at fault.
            Self::Keeper { asked: "create", .. } => false,
            Self::Keeper { source, .. } => {
                matches!(source, keeper::Error::Failed { .. } | keeper::Error::Unsupported)
            }
            Self::Store { source, .. } | Self::Writable { source, .. } => source.is_the_callers(),
            Self::Network(error) => error.is_the_callers(),
            Self::Busy(_)
            | Self::GivenUp { .. }
            | Self::Cgroup(_)
            | Self::Freezer(_)
            | Self::System { .. }
            | Self::IdMaps(_)
            | Self::Task { .. }
            | Self::Instance(_)
            | Self::Start(_)
            | Self::Reset(_) => false,
        }
    }

    /// Adds a hint to the failure of a start under these limits, if they are so low that they may be the cause.
    pub(crate) fn under(self, limits: &Limits) -> Self {
        let hint = too_little(limits);
        match self {
            Self::Launch(_) | Self::Keeper { .. } if !hint.is_empty() => {
                Self::Starved { source: Box::new(self), hint }
            }
            other => other,
        }
    }

    /// Returns a conversion for failures of the kernel, or of a file of this server, at `step`.
    pub fn system<E: Into<std::io::Error>>(step: &'static str) -> impl Fn(E) -> Self + Copy {
        move |error| Self::System { step, source: error.into() }
    }

    /// Returns a conversion for a task of this server that did not finish.
    pub(crate) fn task(during: &'static str) -> impl Fn(tokio::task::JoinError) -> Self + Copy {
        move |source| Self::Task { during, source }
    }

    /// Returns a conversion for a keeper that did not do what it was `asked` for.
    pub(crate) fn keeper(asked: &'static str) -> impl Fn(keeper::Error) -> Self + Copy {
        move |source| Self::Keeper { asked, source }
    }

    /// Returns a conversion for failures of the store at `step`.
    pub(crate) fn store(step: &'static str) -> impl Fn(wardian_store::Error) -> Self + Copy {
        move |error| Self::Store { step, source: Box::new(error) }
    }

    /// Returns a conversion for failures of the store at `step`, where those of a writable layer name whose it is.
    pub(crate) fn writable(step: &'static str, whose: Whose) -> impl FnOnce(wardian_store::Error) -> Self {
        use wardian_store::rootfs::Error as Rootfs;
        move |error| {
            let source = Box::new(error);
            match source.root() {
                wardian_store::Error::Rootfs(
                    Rootfs::Make { .. } | Rootfs::Limit { .. } | Rootfs::TooSmall(_),
                ) => Self::Writable { whose, source },
                _ => Self::Store { step, source },
            }
        }
    }
}

/// A result with an engine [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whose_matter_a_failure_is() {
        let keeper = |asked| Error::Keeper {
            asked,
            source: keeper::Error::Failed {
                kind: wardian_runtime::wire::Failure::Other,
                message: "no".to_owned(),
            },
        };
        let gone = Error::Keeper { asked: "stream-in", source: keeper::Error::Gone };
        let unknown = Error::Store {
            step: "image",
            source: Box::new(wardian_store::Error::NotHere { name: "i".to_owned() }),
        };
        for error in [
            Error::UnknownHandle("h".to_owned()),
            Error::Invalid("a bad limit".to_owned()),
            Error::Launch("no such directory".to_owned()),
            keeper("create").under(&Limits { memory_bytes: 1, ..Limits::default() }),
            keeper("stream-in"),
            unknown,
            Error::Network(wardian_network::Error::Without),
        ] {
            assert!(error.is_the_clients(), "{error}");
        }
        for error in [
            keeper("create"),
            gone,
            Error::Busy("too many".to_owned()),
            Error::system("open")(std::io::Error::other("no")),
            Error::Store { step: "image", source: Box::new(wardian_store::Error::Closed) },
            Error::Network(wardian_network::Error::NoLink),
        ] {
            assert!(!error.is_the_clients(), "{error}");
        }
    }
}
