//! What can go wrong in the life of a container.

/// An engine error. Its text is what a client may read.
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
    /// The named step failed.
    #[error("{step}: {reason}")]
    Failed {
        /// Which phase.
        step: &'static str,
        /// What the layer below said.
        reason: String,
    },
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
            Self::Invalid(text) => Self::Invalid(text + &hint),
            Self::Failed { step, reason } => Self::Failed { step, reason: reason + &hint },
            other => other,
        }
    }

    /// `step` failed because of `reason`.
    pub fn failed(step: &'static str, reason: impl std::fmt::Display) -> Self {
        Self::Failed { step, reason: reason.to_string() }
    }
}

/// Shorthand.
pub type Result<T> = std::result::Result<T, Error>;
