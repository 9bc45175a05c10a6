//! The store's directories, each held open. All other code of the store uses paths relative to these descriptors, so
//! that nobody can swap a directory under it.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use super::files::open_dir;
use super::record::Records;
use super::whose;

/// Why an operation on the store's directories failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A directory could not be made.
    #[error("cannot make the directory {path:?}")]
    Make {
        /// Its path.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// A directory could not be opened.
    #[error("cannot open the directory {path:?}")]
    Open {
        /// Its path.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// Other users could change a directory.
    #[error(transparent)]
    Untrusted(#[from] wardian_sys::directory::Error),
    /// The directory is no store, and not empty.
    #[error(transparent)]
    Foreign(whose::Error),
    /// Another process holds the lock: a server, or a user with flock(1).
    #[error("the lock of the store {path:?} is held by {by}: end it, or use another --root")]
    InUse {
        /// The store's root.
        path: PathBuf,
        /// The holders, for the message.
        by: String,
    },
    /// The store's root file systems are recorded in another run directory. Without their records they would be
    /// deleted as trash.
    #[error("the store {path:?} is in use with the run directory {run:?}: give that one (--run)")]
    OtherRun {
        /// The store's root.
        path: PathBuf,
        /// The run directory in use.
        run: PathBuf,
    },
    /// The store could not be locked.
    #[error("cannot lock the store {path:?}")]
    Lock {
        /// The store's root.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// A directory could not be listed.
    #[error("cannot list the store's directory {name}")]
    List {
        /// Its name in the store.
        name: &'static str,
        /// The system's error.
        source: std::io::Error,
    },
    /// A file could not be read.
    #[error("cannot read {name}")]
    Read {
        /// Its name.
        name: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// A file could not be written.
    #[error("cannot write {name}")]
    Write {
        /// Its name.
        name: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// Something could not be moved to the trash.
    #[error("cannot move {name} to the trash")]
    Trash {
        /// Its name in the store.
        name: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// The id of this boot could not be read.
    #[error("cannot read the boot id")]
    BootId(#[source] std::io::Error),
}

/// The store's directories.
#[derive(Debug)]
pub(crate) struct Layout {
    pub(crate) root: OwnedFd,
    pub(crate) layers: OwnedFd,
    /// The records of named images.
    pub(crate) images: OwnedFd,
    pub(crate) staging: OwnedFd,
    /// Parts of blobs whose fetch ended early.
    pub(crate) partial: OwnedFd,
    pub(crate) rootfs: OwnedFd,
    /// Whether each new directory in `rootfs` is put into a block group of its own.
    pub(crate) spreads: bool,
    pub(crate) trash: OwnedFd,
    /// Named volumes; none in a store that no server has opened.
    pub(crate) volumes: Option<OwnedFd>,
    /// The path that the store was opened by.
    pub(crate) path: PathBuf,
    pub(crate) records: Records,
    /// The id of this boot (`/proc/sys/kernel/random/boot_id`).
    pub(crate) boot_id: String,
}

impl Layout {
    /// Moves a directory of the store to the trash, under this name.
    pub(crate) fn to_trash(&self, dir: impl AsFd, name: &str, new: &str) -> Result<(), Error> {
        rustix::fs::renameat(dir, name, &self.trash, new)
            .map_err(|error| Error::Trash { name: name.to_owned(), source: error.into() })
    }

    /// A new descriptor of the store's root, for a `syncfs` that is to report every write error from now on.
    pub(crate) fn sync_handle(&self) -> rustix::io::Result<OwnedFd> {
        open_dir(&self.root, ".")
    }
}
