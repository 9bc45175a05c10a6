//! Root file systems: a detached volatile overlay over the image's layers, written to `rootfs/<id>/upper`.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{Gid, Mode, Uid};
use rustix::io::Errno;
use wardian_sys::mount::{self, Overlay, UpperPair};

use crate::Owner;
use crate::layer::{self, Layer, Mappings};
use crate::layout::{self, Layout};

/// What a root file system failed at.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The id could not be the name of a directory.
    #[error("{id:?} is no id for a root file system")]
    Id {
        /// The id.
        id: String,
    },
    /// There is one with this id, or its remains are not deleted yet.
    #[error("the root file system {id} exists")]
    Exists {
        /// The id.
        id: String,
    },
    /// The image has no layers.
    #[error("the image of the root file system {id} has no layers")]
    Empty {
        /// The id.
        id: String,
    },
    /// The directories of its writable layer could not be made.
    #[error("cannot make the directories of the root file system {id}")]
    Make {
        /// The id.
        id: String,
        /// The kernel's error.
        source: Errno,
    },
    /// The kernel has no overlay file system.
    #[error("this kernel has no overlay file system (CONFIG_OVERLAY_FS, or its module is not loaded)")]
    NoOverlay(#[source] mount::Error),
    /// The kernel does not take detached mounts as layers.
    #[error(
        "this kernel's overlay does not take detached idmapped mounts as layers (fsconfig FSCONFIG_SET_FD \
         \"lowerdir+\", Linux 6.13 or later)"
    )]
    DetachedLayers(#[source] mount::Error),
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

/// Ids are made by the engine; this only keeps a mistake there from leaving the directory.
pub(crate) fn check_id(id: &str) -> Result<(), Error> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if id.is_empty() || id.len() > 200 || id.starts_with('.') || !id.bytes().all(plain) {
        return Err(Error::Id { id: id.to_owned() });
    }
    Ok(())
}

/// Makes `rootfs/<id>`, which must not exist: until it does, nothing needs to be undone.
pub(crate) fn reserve(layout: &Layout, id: &str) -> Result<OwnedFd, Error> {
    check_id(id)?;
    let made = |source| Error::Make { id: id.to_owned(), source };
    match rustix::fs::mkdirat(&layout.rootfs, id, Mode::RWXU) {
        Ok(()) => layout::open_dir(&layout.rootfs, id).map_err(made),
        Err(Errno::EXIST) => Err(Error::Exists { id: id.to_owned() }),
        Err(source) => Err(made(source)),
    }
}

/// Makes the writable layer in the reserved directory and mounts the overlay. `unseen_error` is called when the
/// upper file system has a write error that nobody has seen: then no volatile overlay can be mounted until a
/// `syncfs` has reported it, and this one is not volatile.
pub(crate) fn build(
    dir: &OwnedFd,
    id: &str,
    layers: &[Arc<Layer>],
    owner: Option<&Owner<'_>>,
    mappings: &Mappings,
    unseen_error: &dyn Fn(),
) -> Result<OwnedFd, Error> {
    let failed = |source| Error::Mount { id: id.to_owned(), source };
    if layers.is_empty() {
        return Err(Error::Empty { id: id.to_owned() });
    }
    make_upper(dir, layer::root_mode(layers), owner)
        .map_err(|source| Error::Make { id: id.to_owned(), source })?;
    let mounts =
        layers.iter().rev().map(|layer| layer.mount(owner, mappings)).collect::<Result<Vec<_>, _>>()?;
    let lowers = mounts.iter().map(|mount| mount.as_fd()).collect();
    let pair = UpperPair::open(dir).map_err(failed)?;
    let mut overlay = Overlay::new(lowers, &pair);
    let result = match overlay.mount() {
        Err(mount::Error::Create { source: Errno::IO, .. }) => {
            unseen_error();
            overlay.volatile = false;
            overlay.mount()
        }
        other => other,
    };
    result.map_err(|error| match &error {
        mount::Error::Open { source: Errno::NODEV, .. } => Error::NoOverlay(error),
        mount::Error::Option { key, .. } if key == "lowerdir+" => Error::DetachedLayers(error),
        _ => failed(error),
    })
}

fn make_upper(dir: &OwnedFd, mode: u32, owner: Option<&Owner<'_>>) -> rustix::io::Result<()> {
    rustix::fs::mkdirat(dir, "work", Mode::RWXU)?;
    rustix::fs::mkdirat(dir, "upper", Mode::RWXU)?;
    let upper = layout::open_dir(dir, "upper")?;
    if let Some(owner) = owner {
        rustix::fs::fchown(&upper, Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid)))?;
    }
    // After the chown, and past the umask.
    rustix::fs::fchmod(&upper, Mode::from_raw_mode(mode))
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
