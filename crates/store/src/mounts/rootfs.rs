//! Root file systems: a detached volatile overlay over the image's layers, written to `rootfs/<id>/upper`.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use rustix::fs::Mode;
use rustix::io::Errno;
use wardian_sys::layer_ns::LayerNamespace;
use wardian_sys::mount::{self, Overlay, UpperPair};

use super::upper::{self, Pair, READY_MODE};
use crate::disk::limit::{self, DiskLimit};
use crate::images::opened::Image;
use crate::layers::layer::{self, Layer, Lower, Mappings};
use crate::layers::owner::Owner;

/// Why an operation on a root file system failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The id cannot be used as a directory name.
    #[error("{id:?} is no id for a root file system")]
    Id {
        /// The id.
        id: String,
    },
    /// A root file system with this id exists.
    #[error("the root file system {id} exists")]
    Exists {
        /// The id.
        id: String,
    },
    /// Its record could not be written.
    #[error("cannot record the root file system {id}")]
    Record {
        /// The id.
        id: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// Layers of its image were collected at every try.
    #[error("the layers of the root file system {id} are collected as fast as they are fetched")]
    Gone {
        /// The id.
        id: String,
    },
    /// It could not be attached.
    #[error("cannot attach the root file system at {path:?}")]
    Attach {
        /// Where.
        path: PathBuf,
        /// What failed.
        source: std::io::Error,
    },
    /// It belongs to a container, and is removed with it.
    #[error("the root file system {id} belongs to a container: destroy that")]
    Kept {
        /// The id.
        id: String,
    },
    /// It is still used where it is attached.
    #[error("the root file system at {path:?} is busy: something has files open in it or a mount below it")]
    Busy {
        /// Where.
        path: PathBuf,
    },
    /// The image has no layers.
    #[error("the image of the root file system {id} has no layers")]
    Empty {
        /// The id.
        id: String,
    },
    /// Its writable layer could not be made: directories, a subvolume or an image, as the driver of disk limits has it.
    #[error("cannot make the writable layer of the root file system {id}")]
    Make {
        /// The id.
        id: String,
        /// What failed.
        source: upper::Error,
    },
    /// Its limit is not larger than its image.
    #[error(transparent)]
    TooSmall(#[from] limit::TooSmall),
    /// Its limit could not be set.
    #[error("cannot limit the root file system {id}")]
    Limit {
        /// The id.
        id: String,
        /// What failed.
        source: upper::Error,
    },
    /// What was changed in it cannot be listed.
    #[error("cannot list what was changed in the root file system {id}")]
    Changes {
        /// The id.
        id: String,
        /// The kernel's error.
        source: rustix::io::Errno,
    },
    /// The kernel has no overlay file system.
    #[error("this kernel has no overlay file system (CONFIG_OVERLAY_FS, or its module is not loaded)")]
    NoOverlay(#[source] mount::Error),
    /// The overlay could not be mounted.
    #[error("cannot mount the root file system {id}")]
    Mount {
        /// The id.
        id: String,
        /// The mount call that failed.
        source: mount::Error,
    },
    /// A layer could not be mounted.
    #[error(transparent)]
    Layer(#[from] layer::Error),
}

/// Checks an id. Ids are made by the engine; the check only keeps a bug there from escaping the directory.
pub(crate) fn check_id(id: &str) -> Result<(), Error> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if id.is_empty() || id.len() > 200 || id.starts_with('.') || !id.bytes().all(plain) {
        return Err(Error::Id { id: id.to_owned() });
    }
    Ok(())
}

/// What a root file system is to be.
#[derive(Debug, Clone, Copy)]
pub struct RootfsSpec<'a> {
    /// The image whose layers are below it.
    pub image: &'a Image,
    /// Whose root owns it; `None`: the host's.
    pub owner: Option<Owner<'a>>,
    /// What it may take.
    pub limit: DiskLimit,
}

impl<'a> RootfsSpec<'a> {
    /// A root file system without a limit.
    #[must_use]
    pub fn new(image: &'a Image, owner: Option<Owner<'a>>) -> Self {
        Self { image, owner, limit: DiskLimit::default() }
    }
}

/// The parts of a root file system.
pub(crate) struct Parts<'a> {
    pub(crate) id: &'a str,
    /// Bottom first.
    pub(crate) layers: &'a [Arc<Layer>],
    pub(crate) owner: Option<&'a Owner<'a>>,
    pub(crate) pair: &'a Pair,
}

/// A root file system, ready to be attached.
#[derive(Debug)]
pub struct Rootfs {
    /// The detached mount. The caller owns its last reference.
    pub mount: OwnedFd,
    /// The directory that holds its writable layer.
    pub dir: PathBuf,
    /// Whether it syncs, which it does only if no volatile one could be mounted.
    pub honest: bool,
}

/// Mounts overlays in the way that this kernel requires.
#[derive(Debug, Default)]
pub(crate) struct Mounter {
    mappings: Mappings,
    /// The layer namespace, where overlays are mounted if this kernel refuses detached lower directories. Determined
    /// when the first overlay is mounted.
    namespace: OnceLock<Option<LayerNamespace>>,
}

impl Mounter {
    /// Mounts the overlay over the layers; true if it is honest. `unseen_error` is called when the upper file system
    /// has a write error that nobody has seen: then no volatile overlay can be mounted until a `syncfs` has reported it,
    /// and this one is not volatile.
    pub(crate) fn build(&self, parts: &Parts<'_>, unseen_error: &dyn Fn()) -> Result<(OwnedFd, bool), Error> {
        match self.build_volatile(parts) {
            Err(Error::Mount { source: mount::Error::Create { source: Errno::IO, .. }, .. }) => {
                unseen_error();
                Ok((self.mount(parts, false)?, true))
            }
            other => Ok((other?, false)),
        }
    }

    /// As [`Mounter::build`], but fails where only an honest overlay could be mounted.
    pub(crate) fn build_volatile(&self, parts: &Parts<'_>) -> Result<OwnedFd, Error> {
        let Parts { id, layers, pair, .. } = *parts;
        if layers.is_empty() {
            return Err(Error::Empty { id: id.to_owned() });
        }
        let mode = layer::root_mode(layers);
        if mode != READY_MODE {
            rustix::fs::fchmod(&pair.upper, Mode::from_raw_mode(mode))
                .map_err(|errno| Error::Make { id: id.to_owned(), source: errno.into() })?;
        }
        self.mount(parts, true)
    }

    fn mount(&self, parts: &Parts<'_>, volatile: bool) -> Result<OwnedFd, Error> {
        let Parts { id, layers, owner, pair } = *parts;
        let lowers = layers.iter().rev().map(|layer| layer.mount(owner, &self.mappings));
        let lowers = lowers.collect::<Result<Vec<_>, _>>()?;
        let lowers: Vec<&Lower> = lowers.iter().map(|lower| &**lower).collect();
        self.overlay(&lowers, &pair.dir, volatile).map_err(|error| match &error {
            mount::Error::Open { source: Errno::NODEV, .. } => Error::NoOverlay(error),
            _ => Error::Mount { id: id.to_owned(), source: error },
        })
    }

    /// Returns a layer as a new detached mount, for somebody else to use.
    pub(crate) fn clone_layer(&self, layer: &Layer, owner: Option<&Owner<'_>>) -> Result<OwnedFd, Error> {
        Ok(layer.clone_mount(owner, &self.mappings)?)
    }

    /// Mounts an overlay, detached. `lowers` are topmost first; `dir` holds `upper` and `work`.
    pub(crate) fn overlay(
        &self,
        lowers: &[&Lower],
        dir: &OwnedFd,
        volatile: bool,
    ) -> Result<OwnedFd, mount::Error> {
        let pair = UpperPair::open(dir)?;
        if let Some(namespace) = self.namespace()? {
            let lowers =
                lowers.iter().map(|lower| lower.attached(namespace)).collect::<Result<Vec<_>, _>>()?;
            return namespace.overlay(&lowers, &pair, volatile);
        }
        let mut overlay = Overlay::new(lowers.iter().map(|lower| lower.mount.as_fd()).collect(), &pair);
        overlay.volatile = volatile;
        overlay.mount()
    }

    fn namespace(&self) -> Result<Option<&LayerNamespace>, mount::Error> {
        if let Some(known) = self.namespace.get() {
            return Ok(known.as_ref());
        }
        let found =
            if mount::overlay_takes_detached_layers()? { None } else { Some(LayerNamespace::start()?) };
        Ok(self.namespace.get_or_init(|| found).as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids() {
        check_id("0f-a_b.c").unwrap();
        for bad in ["", ".", "..", ".a", "a/b", "a b", "a\n"] {
            assert!(check_id(bad).is_err(), "{bad:?}");
        }
    }
}
