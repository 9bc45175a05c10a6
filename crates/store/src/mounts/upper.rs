//! The writable parts of root file systems: what a driver of disk limits implements.
//!
//! The rest of the store knows a writable part by its name in `rootfs/`, and an open one as a [`Pair`]. There is one
//! implementation: [`Directories`](super::directories::Directories).

use std::ffi::CStr;
use std::fmt::Debug;
use std::os::fd::OwnedFd;

use rustix::fs::{Gid, Mode, Uid};

use crate::disk::remove;
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
    /// Gives an `upper` of the host's root to its owner, with [`READY_MODE`].
    pub(crate) fn give(&self, root: Root) -> rustix::io::Result<()> {
        if root != (0, 0) {
            rustix::fs::fchown(&self.upper, Some(Uid::from_raw(root.0)), Some(Gid::from_raw(root.1)))?;
        }
        // After the chown, and past the umask.
        rustix::fs::fchmod(&self.upper, Mode::from_raw_mode(READY_MODE))
    }
}

/// Where the writable parts of root file systems are kept. Calls may come from any thread, several at a time; a part
/// is removed by the process that made it, or by a later one.
pub(crate) trait Upper: Debug + Send + Sync {
    /// Makes the part `name`, whose `upper` belongs to `root` with [`READY_MODE`]. It may wait for the disk, so
    /// requests take a part made ahead if there is one. The caller has registered the name; the remains of a failed
    /// call are trash, which [`Upper::remove`] can remove.
    ///
    /// # Errors
    /// The kernel's.
    fn make(&self, name: &str, root: Root) -> rustix::io::Result<Pair>;

    /// Returns the bytes on the disk that were written to the part since it was made; `None` if `step` has cancelled
    /// it: that is called again and again, may sleep, and returns true to end the call.
    ///
    /// # Errors
    /// There is no such part.
    fn usage(&self, name: &str, step: &dyn Fn() -> bool) -> rustix::io::Result<Option<u64>>;

    /// Whether nothing has been written to the part, as to one made ahead.
    fn is_unused(&self, name: &str) -> bool;

    /// Removes the part; a missing one is no error. `stop` is called again and again, and returns true to end the
    /// call; a later one goes on with what is left.
    ///
    /// # Errors
    /// It cannot be removed as a whole, or the call was ended.
    fn remove(&self, name: &CStr, stop: &dyn Fn() -> bool) -> Result<(), remove::Error>;
}
