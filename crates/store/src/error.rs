//! What the store's calls can fail with.

use std::sync::Arc;

use crate::disk::format;
use crate::disk::layout;
use crate::images::image;
use crate::layers::layer;
use crate::mounts::rootfs;

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
    /// What is shown to servers cannot be used.
    #[error("cannot use the certificates for fetching layers")]
    Certificates {
        /// What is wrong with them.
        source: wardian_image::Error,
    },
    /// A layer could not be brought into the store.
    #[error(transparent)]
    Layer(#[from] layer::Error),
    /// A root file system could not be made.
    #[error(transparent)]
    Rootfs(#[from] rootfs::Error),
    /// The store's names could not be read or changed.
    #[error(transparent)]
    Name(#[from] image::Error),
    /// What is living could not be read.
    #[error("cannot read the records of root file systems in {path:?}")]
    Records {
        /// The run directory.
        path: std::path::PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// Garbage collection was as fast as the fetching, again and again.
    #[error(
        "the layers of {uri:?} are collected as fast as they are fetched; pin the image, or collect less"
    )]
    Collected {
        /// The image as it was asked for.
        uri: String,
    },
    /// Its layers would take more descriptors than this process may have.
    #[error(
        "the image {uri:?} has {layers} layers, and this process may keep {most} open; raise the limit of open files \
         (LimitNOFILE= of the unit, or `ulimit -n`) to eight times as many as it has"
    )]
    Layers {
        /// The image as it was asked for.
        uri: String,
        /// How many it has.
        layers: usize,
        /// How many it may have.
        most: usize,
    },
    /// What was written was lost, again and again.
    #[error("the disk loses what is written of {uri:?} (see dmesg): it is given to nobody")]
    Lost {
        /// The image as it was asked for.
        uri: String,
    },
    /// The caller has cancelled it.
    #[error("cancelled")]
    Cancelled,
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
    /// Whether somebody cancelled it.
    pub fn is_cancelled(&self) -> bool {
        let cancelled =
            |error: &wardian_image::Error| matches!(error, wardian_image::Error::Cancelled { .. });
        matches!(self.root(), Self::Cancelled) || self.image().is_some_and(cancelled)
    }

    /// Whether a collection was in its way, and it can be tried again.
    pub(crate) fn is_baseless(&self) -> bool {
        matches!(self.root(), Self::Layer(layer::Error::Baseless { .. }))
    }

    /// What the image's source says, if that is the cause.
    fn image(&self) -> Option<&wardian_image::Error> {
        match self.root() {
            Self::Image { source, .. } | Self::Layer(layer::Error::Unpack { source, .. }) => {
                source.downcast_ref()
            }
            _ => None,
        }
    }

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
