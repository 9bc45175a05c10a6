//! Detects lost writes without a sync.
//!
//! When the kernel cannot write a page back, it reports the error once per open file and file system (errseq_t,
//! Documentation/core-api/errseq.rst). A writer to a volatile overlay never learns of it, since nothing there is
//! synced. But a volatile overlay remembers the error state of its upper file system at mount time, and every fsync
//! in it compares the two, without writing anything (`ovl_sync_status` in fs/overlayfs/super.c). The store keeps one
//! such overlay for nothing else; an fsync in it takes a microsecond and fails from the moment a write is lost.

use std::os::fd::OwnedFd;

use rustix::fs::Mode;
use rustix::io::Errno;
use wardian_sys::mount;

use super::rootfs::Mounter;
use super::upper::Upper;
use crate::disk::files;
use crate::disk::limit::Bound;
use crate::layers::layer::Lower;

/// The overlay in which fsync is called.
#[derive(Debug)]
pub(crate) struct Sentinel {
    mount: OwnedFd,
    /// The name of its directory in `rootfs/`; trash once the sentinel is dropped.
    pub(crate) name: String,
}

impl Sentinel {
    /// Mounts it over an empty lower directory. An error comes with the name of its directory, which is trash then;
    /// EIO means that the file system has a write-back error that nobody has seen.
    pub(crate) fn place(upper: &dyn Upper, mounter: &Mounter, name: String) -> Result<Self, (String, Errno)> {
        match Self::mount(upper, mounter, &name) {
            Ok(mount) => Ok(Self { mount, name }),
            Err(error) => Err((name, error)),
        }
    }

    fn mount(upper: &dyn Upper, mounter: &Mounter, name: &str) -> Result<OwnedFd, Errno> {
        let pair =
            upper.make(name, (0, 0), Bound::NONE).map_err(|error| error.errno().unwrap_or(Errno::NOTSUP))?;
        rustix::fs::mkdirat(&pair.dir, "lower", Mode::RWXU)?;
        let lower = files::open_dir(&pair.dir, "lower")?;
        let mount = mount::open_tree_clone(&lower, "", false).map_err(|error| error.errno())?;
        let lower = Lower::new(mount);
        let overlay = mounter.overlay(&[&lower], &pair.dir, true).map_err(|error| error.errno())?;
        // fsync is called on the root, which is always an upper directory.
        files::open_dir(&overlay, ".")
    }

    /// Whether a write was lost since the sentinel was placed.
    pub(crate) fn lost_write(&self) -> bool {
        rustix::fs::fsync(&self.mount).is_err()
    }
}
