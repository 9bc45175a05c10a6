//! The errors of the store's calls.

use std::sync::Arc;

use crate::disk::format;
use crate::disk::layout;
use crate::images::image;
use crate::layers::layer;
use crate::mounts::{driver, rootfs};
use crate::work::volume;
use rustix::io::Errno;

/// An error of the store, with one variant for each part of it.
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
        /// The error of the image's source.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The certificates for registries cannot be used.
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
    /// The driver of disk limits that was asked for does not work here.
    #[error(transparent)]
    Driver(#[from] driver::Unusable),
    /// There is no root file system with this id.
    #[error("there is no root file system {id}")]
    Unknown {
        /// The id.
        id: String,
    },
    /// The store's names could not be read or changed.
    #[error(transparent)]
    Name(#[from] image::Error),
    /// The records of living root file systems could not be read.
    #[error("cannot read the records of root file systems in {path:?}")]
    Records {
        /// The run directory.
        path: std::path::PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// Garbage collection removed the layers as fast as they were fetched, at every try.
    #[error(
        "the layers of {uri:?} are collected as fast as they are fetched; pin the image, or collect less"
    )]
    Collected {
        /// The image as it was asked for.
        uri: String,
    },
    /// The image's layers would take more descriptors than this process may have.
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
    /// The disk lost the image's layers at every try.
    #[error("the disk loses what is written of {uri:?} (see dmesg): it is given to nobody")]
    Lost {
        /// The image as it was asked for.
        uri: String,
    },
    /// A login came with an image that no registry is asked for.
    #[error("{uri:?} is not an image at a registry, so a user name and password for it have no meaning")]
    NoRegistry {
        /// The image as it was asked for.
        uri: String,
    },
    /// The image is not in the store, and no registry may be asked.
    #[error(
        "the image {name:?} is not in the store, and the pull policy `never` forbids to ask a registry for it"
    )]
    NotHere {
        /// The image as it was asked for.
        name: String,
    },
    /// The image is not in the store, and there is no registry that can be asked for it.
    #[error("there is no image {name:?} in the store, and no registry can be asked for it")]
    NotAsked {
        /// The image as it was asked for.
        name: String,
        /// Why not.
        source: wardian_image::Error,
    },
    /// No registry that is searched for a short name has given it.
    #[error("no registry has given {name:?}{}", each(.failures))]
    Nowhere {
        /// The short name.
        name: String,
        /// The full names that were tried, and their failures.
        failures: Vec<(wardian_image::registry::ImageName, Error)>,
    },
    /// A named volume cannot be made, opened, listed or removed.
    #[error(transparent)]
    Volume(#[from] volume::Error),
    /// The caller has cancelled it.
    #[error("cancelled")]
    Cancelled,
    /// This request waited for an earlier one for the same thing, which failed.
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
    /// Whether what was asked for is at fault: an image that is not there, cannot be read or is damaged, or a limit that is
    /// too low. Neither the store nor its disk has failed.
    pub fn is_the_callers(&self) -> bool {
        let of_image = match self.root() {
            Self::Image { .. }
            | Self::Layer(layer::Error::Unpack { .. } | layer::Error::Name { .. })
            | Self::Name(
                image::Error::Invalid { .. } | image::Error::Unknown { .. } | image::Error::Moved { .. },
            )
            | Self::NotAsked { .. }
            | Self::Nowhere { .. } => true,
            Self::Unknown { .. }
            | Self::NoRegistry { .. }
            | Self::NotHere { .. }
            | Self::Cancelled
            | Self::Rootfs(rootfs::Error::TooSmall(_)) => return true,
            _ => false,
        };
        of_image && !is_the_hosts(self)
    }

    /// Whether the cause is a cancellation.
    pub fn is_cancelled(&self) -> bool {
        let cancelled =
            |error: &wardian_image::Error| matches!(error, wardian_image::Error::Cancelled { .. });
        matches!(self.root(), Self::Cancelled) || self.image().is_some_and(cancelled)
    }

    /// Whether a garbage collection removed a layer below meanwhile, so that another try may succeed.
    pub(crate) fn is_baseless(&self) -> bool {
        matches!(self.root(), Self::Layer(layer::Error::Baseless { .. }))
    }

    /// The error of the image's source, if that is the cause.
    fn image(&self) -> Option<&wardian_image::Error> {
        match self.root() {
            Self::Image { source, .. } | Self::Layer(layer::Error::Unpack { source, .. }) => {
                source.downcast_ref()
            }
            _ => None,
        }
    }

    /// The error itself, without the wrappers added for requests that waited for it.
    pub fn root(&self) -> &Self {
        match self {
            Self::Shared(inner) => inner.root(),
            other => other,
        }
    }
}

/// An error of an image's source; `uri` is the image as it was asked for.
pub(crate) fn image_error(uri: &str, source: wardian_image::Error) -> Error {
    match source {
        wardian_image::Error::Cancelled { .. } => Error::Cancelled,
        source => Error::Image { uri: wardian_image::shown(uri), source: Box::new(source) },
    }
}

/// The store's results.
pub type Result<T> = std::result::Result<T, Error>;

/// Lists full names and their failures.
fn each(failures: &[(wardian_image::registry::ImageName, Error)]) -> String {
    failures.iter().map(|(name, error)| format!("; {name}: {}", wardian_sys::text::chain(error))).collect()
}

/// Whether a cause says that this host has run out of something, or that its disk fails.
fn is_the_hosts(error: &Error) -> bool {
    const OF_HOST: [Errno; 8] = [
        Errno::NOSPC,
        Errno::DQUOT,
        Errno::IO,
        Errno::ROFS,
        Errno::MFILE,
        Errno::NFILE,
        Errno::NOMEM,
        Errno::STALE,
    ];
    let causes = std::iter::successors(Some(error.root() as &dyn std::error::Error), |cause| cause.source());
    causes.into_iter().any(|cause| {
        let errno = match cause.downcast_ref::<std::io::Error>() {
            Some(io) => Errno::from_io_error(io),
            None => cause.downcast_ref::<Errno>().copied(),
        };
        errno.is_some_and(|errno| OF_HOST.contains(&errno))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_not_the_callers_fault() {
        let unpack = |source: std::io::Error| {
            Error::Layer(layer::Error::Unpack { layer: "l".to_owned(), source: Box::new(source) })
        };
        let image = |source: std::io::Error| Error::Image { uri: "i".to_owned(), source: Box::new(source) };
        assert!(unpack(std::io::Error::other("a damaged layer")).is_the_callers());
        assert!(image(Errno::NOENT.into()).is_the_callers() && image(Errno::ACCESS.into()).is_the_callers());
        for errno in [Errno::NOSPC, Errno::IO, Errno::MFILE, Errno::ROFS] {
            assert!(
                !unpack(errno.into()).is_the_callers() && !image(errno.into()).is_the_callers(),
                "{errno}"
            );
        }
        assert!(!Error::Shared(Arc::new(unpack(Errno::NOSPC.into()))).is_the_callers());
        assert!(Error::Shared(Arc::new(image(Errno::NOENT.into()))).is_the_callers());
        assert!(!Error::Closed.is_the_callers() && !Error::Lost { uri: String::new() }.is_the_callers());
    }
}
