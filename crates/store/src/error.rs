//! What the store's calls can fail with.

use std::sync::Arc;

use crate::{format, layer, layout, rootfs};

/// The store's error: one variant per part of the store, each with its own operations and subjects.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The store's directories could not be made, read or locked.
    #[error(transparent)]
    Layout(#[from] layout::Error),
    /// The store's format is not one that this program may touch.
    #[error(transparent)]
    Format(#[from] format::Error),
    /// The image could not be found or read.
    #[error("cannot open the image {uri:?}")]
    Image {
        /// The image as it was asked for.
        uri: String,
        /// What the image's source says.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A layer could not be brought into the store.
    #[error(transparent)]
    Layer(#[from] layer::Error),
    /// A root file system could not be made.
    #[error(transparent)]
    Rootfs(#[from] rootfs::Error),
    /// A request that was first to ask for the same thing failed, and this one waited for it.
    #[error(transparent)]
    Shared(Arc<Error>),
    /// A thread of the store could not be started.
    #[error("cannot start the store's {name} thread")]
    Thread {
        /// The thread's name.
        name: &'static str,
        /// The system's error.
        source: std::io::Error,
    },
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
}

impl Error {
    /// The error itself, without the wrapping of those that waited for another request.
    pub fn root(&self) -> &Self {
        match self {
            Self::Shared(inner) => inner.root(),
            other => other,
        }
    }
}

/// The store's results.
pub type Result<T> = std::result::Result<T, Error>;
