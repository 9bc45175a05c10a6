//! The writable parts of root file systems: what a driver of disk limits implements.
//!
//! The rest of the store knows a writable part by its name in `rootfs/`, and an open one as a [`Pair`]. There is an
//! implementation for each driver of disk limits ([`driver`](super::driver)).

use std::ffi::CStr;
use std::fmt::Debug;
use std::os::fd::OwnedFd;

use rustix::fs::{Gid, Mode, Uid};
use rustix::io::Errno;
use wardian_sys::{loop_device, mount};

use super::driver::DiskDriver;
use crate::disk::limit::{Bound, Written};
use crate::disk::{files, remove};
use crate::layers::owner::Root;

/// The mode of a new `upper`: that of most images' root directories.
pub(crate) const READY_MODE: u32 = 0o755;

/// A directory that holds `upper` and `work`, which are in one file system and empty when they are made.
#[derive(Debug)]
pub(crate) struct Pair {
    /// Its name in `rootfs/`.
    pub(crate) name: String,
    pub(crate) dir: OwnedFd,
    pub(crate) upper: OwnedFd,
}

impl Pair {
    /// Makes `upper` and `work` in an empty directory.
    pub(crate) fn make(name: &str, dir: OwnedFd, root: Root) -> rustix::io::Result<Self> {
        rustix::fs::mkdirat(&dir, "work", Mode::RWXU)?;
        rustix::fs::mkdirat(&dir, "upper", Mode::RWXU)?;
        let upper = files::open_dir(&dir, "upper")?;
        let pair = Self { name: name.to_owned(), dir, upper };
        pair.give(root)?;
        Ok(pair)
    }

    /// Gives an `upper` of the host's root to its owner, with [`READY_MODE`].
    pub(crate) fn give(&self, root: Root) -> rustix::io::Result<()> {
        if root != (0, 0) {
            rustix::fs::fchown(&self.upper, Some(Uid::from_raw(root.0)), Some(Gid::from_raw(root.1)))?;
        }
        // After the chown, and past the umask.
        rustix::fs::fchmod(&self.upper, Mode::from_raw_mode(READY_MODE))
    }
}

/// Why a driver has not done what it was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel's error.
    #[error(transparent)]
    System(#[from] Errno),
    /// No driver here can enforce a limit.
    #[error("a limit on what is written cannot be enforced here: {why}")]
    Unlimited {
        /// What each driver lacks, with the remedy.
        why: String,
    },
    /// The driver cannot give a root file system such a limit.
    #[error("{why}")]
    Fixed {
        /// Why not.
        why: String,
    },
    /// A program that the driver needs has failed.
    #[error("{program} has failed: {said}")]
    Program {
        /// The program.
        program: String,
        /// Its status, and what it said.
        said: String,
    },
    /// The part's image is mounted nowhere, so the root file system over it has ended.
    #[error("its image is mounted nowhere: the root file system over it has ended")]
    Lost,
    /// There is no loop device for it.
    #[error(transparent)]
    LoopDevice(#[from] loop_device::Error),
    /// Its file system could not be mounted.
    #[error(transparent)]
    Mount(#[from] mount::Error),
}

impl Error {
    /// Whether the file system under the store has no space left for it.
    pub fn is_full(&self) -> bool {
        match self {
            Self::Program { said, .. } => said.contains("No space left on device"),
            error => error.errno() == Some(Errno::NOSPC),
        }
    }

    /// The kernel's error, if there is one.
    pub(crate) fn errno(&self) -> Option<Errno> {
        match self {
            Self::System(errno) => Some(*errno),
            Self::LoopDevice(error) => Some(error.errno()),
            Self::Mount(error) => Some(error.errno()),
            Self::Unlimited { .. } | Self::Fixed { .. } | Self::Program { .. } | Self::Lost => None,
        }
    }
}

/// Where the writable parts of root file systems are kept. Calls may come from any thread, several at a time; a part
/// is removed by the process that made it, or by a later one.
pub(crate) trait Upper: Debug + Send + Sync {
    /// The driver.
    fn driver(&self) -> DiskDriver;

    /// Returns the bound with which parts are made that are to have `bound` in the end: the same, if a part gets its
    /// bound when it is made; [`Bound::NONE`], if any part can be given one later, by [`Upper::limit`]; or a larger
    /// one, from which that goes. So it tells which parts made ahead can be taken.
    ///
    /// # Errors
    /// The driver cannot enforce such a bound.
    fn made_with(&self, bound: Bound) -> Result<Bound, Error>;

    /// Returns the most parts with a bound of [`Upper::made_with`] that are worth making ahead.
    fn most_ahead(&self, _bound: Bound) -> usize {
        usize::MAX
    }

    /// Whether [`Upper::prepare`] has nothing to do.
    fn is_prepared(&self, _bound: Bound) -> bool {
        true
    }

    /// Makes what [`Upper::make`] needs for such a part and would wait for: it may start a program.
    ///
    /// # Errors
    /// As for [`Upper::make`].
    fn prepare(&self, _bound: Bound) -> Result<(), Error> {
        Ok(())
    }

    /// Makes ahead what parts of any bound can use; a server calls it about every second.
    ///
    /// # Errors
    /// As for [`Upper::make`].
    fn fill(&self) -> Result<(), Error> {
        Ok(())
    }

    /// Makes the part `name`, whose `upper` belongs to `root` with [`READY_MODE`]; `bound` is one that
    /// [`Upper::made_with`] has returned. It may wait for the disk, so requests take a part made ahead if there is
    /// one. The caller has registered the name; the remains of a failed call are trash, which [`Upper::remove`] can
    /// remove.
    ///
    /// # Errors
    /// The kernel's, or the driver's program has failed.
    fn make(&self, name: &str, root: Root, bound: Bound) -> Result<Pair, Error>;

    /// Gives a part a bound, the same or another one, also while it is in use. It does not wait for the disk.
    ///
    /// # Errors
    /// The driver cannot change it so, or the kernel refuses it.
    fn limit(&self, name: &str, bound: Bound) -> Result<(), Error>;

    /// Takes over a part in use that another process has made, when a server starts.
    ///
    /// # Errors
    /// It cannot be kept as the driver wants to: what that means is in the text.
    fn adopt(&self, name: &str) -> Result<(), Error>;

    /// Ends a part that [`Upper::adopt`] has taken over and nobody uses any more, before its removal by this process or
    /// a later one: what it has not written yet is never written, and the end of this process does not wait for it.
    fn abandon(&self, name: &str);

    /// Gives up what this process holds of parts in use, which another process may adopt: it is closing.
    fn let_go(&self) {}

    /// Returns what has been written to the part since it was made, exactly and without a walk over its files; `None`
    /// if its file system does not count it, see [`Upper::measure`].
    ///
    /// # Errors
    /// There is no such part.
    fn written(&self, name: &str) -> rustix::io::Result<Option<Written>>;

    /// Returns the bytes on the disk that were written to the part since it was made, by a walk; `None` if `step` has
    /// cancelled it: that is called again and again, may sleep, and returns true to end the call.
    ///
    /// # Errors
    /// There is no such part.
    fn measure(&self, name: &str, step: &dyn Fn() -> bool) -> rustix::io::Result<Option<u64>>;

    /// Opens the `upper` of a part in use.
    ///
    /// # Errors
    /// There is no such part, or its image is mounted nowhere.
    fn open_upper(&self, name: &str) -> rustix::io::Result<OwnedFd>;

    /// Whether nothing has been written to the part, as to one made ahead.
    fn is_unused(&self, name: &str) -> bool;

    /// Returns the parts whose own file systems have lost writes since the last call, as far as they have any.
    fn with_new_errors(&self) -> Vec<String> {
        Vec::new()
    }

    /// Why limits that were set are not enforced at the moment; `None`: they are.
    fn trouble(&self) -> Option<&'static str> {
        None
    }

    /// Removes the part; a missing one is no error. `stop` is called again and again, and returns true to end the
    /// call; a later one goes on with what is left.
    ///
    /// # Errors
    /// It cannot be removed as a whole, or the call was ended.
    fn remove(&self, name: &CStr, stop: &dyn Fn() -> bool) -> Result<(), remove::Error>;
}
