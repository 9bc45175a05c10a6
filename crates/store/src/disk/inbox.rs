//! A file in `staging/` for an archive that comes from no file.

use std::fs::File;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags};

/// The file. It is removed when this is dropped, and is trash once the process has ended: only a locked entry of
/// `staging/` is somebody's.
#[derive(Debug)]
pub struct Inbox {
    /// The file, empty at first, open for writing.
    pub file: File,
    /// Its path.
    pub path: PathBuf,
    staging: OwnedFd,
    name: String,
}

impl Inbox {
    pub(crate) fn make(staging: &OwnedFd, root: &Path) -> std::io::Result<Self> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file: File = rustix::fs::openat(staging, ".", flags, Mode::RUSR | Mode::WUSR)?.into();
        // Locked before it has a name, by which others would take it for trash.
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        let name = format!("{}.tar", uuid::Uuid::new_v4().simple());
        let own = format!("/proc/self/fd/{}", file.as_raw_fd());
        rustix::fs::linkat(CWD, own, staging, &name, AtFlags::SYMLINK_FOLLOW)?;
        let path = root.join("staging").join(&name);
        Ok(Self { file, path, staging: staging.try_clone()?, name })
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        let _ = rustix::fs::unlinkat(&self.staging, &self.name, AtFlags::empty());
    }
}
