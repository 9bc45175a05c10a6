//! The lock of a store, and what its file says of who holds it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::files::LOCK;
use super::layout::{Error, Layout};
use super::record::Records;

/// As whom a store is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// The one process that puts the store in order and deletes its trash.
    Server,
    /// Any process that does one thing beside it.
    Command,
}

/// What the lock file says.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Holder {
    run: PathBuf,
    /// Whether the process that holds the lock is a server; meaningless while nobody holds it.
    server: bool,
}

/// A server that was killed a moment ago may still be on its way out, with all its descriptors.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);

/// The lock file. It is written to: what somebody has put in its place while the directory was open to others is refused.
fn open_lock(root: BorrowedFd<'_>) -> std::io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::openat(root, LOCK, flags, Mode::RUSR | Mode::WUSR)?;
    let stat = rustix::fs::fstat(&file)?;
    let own = stat.st_uid == 0 || stat.st_uid == rustix::process::geteuid().as_raw();
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || !own || stat.st_nlink > 1 {
        return Err(std::io::Error::other("its file `lock` is not root's, or no regular file: remove it"));
    }
    Ok(file)
}

impl Holder {
    /// Nothing if the file is new or was cut off in the writing.
    fn read(file: &OwnedFd) -> Self {
        let mut text = [0; 8192];
        let length = rustix::io::pread(file, &mut text, 0).unwrap_or(0);
        serde_json::from_slice(&text[..length]).unwrap_or_default()
    }

    /// Whether it is known to have a run directory that is not `run`.
    fn is_elsewhere(&self, run: &Path) -> bool {
        !self.run.as_os_str().is_empty() && self.run != run
    }

    fn write(&self, file: &OwnedFd) -> std::io::Result<()> {
        rustix::fs::ftruncate(file, 0)?;
        rustix::io::pwrite(file, &serde_json::to_vec(self)?, 0)?;
        Ok(())
    }
}

/// The store's lock, held.
#[derive(Debug)]
pub(crate) struct Lock(OwnedFd);

impl Lock {
    pub(crate) fn take(
        root: BorrowedFd<'_>,
        path: &Path,
        run: &Path,
        role: Role,
        boot_id: &str,
    ) -> Result<Option<Self>, Error> {
        let failed = |source: std::io::Error| Error::Lock { path: path.to_owned(), source };
        let file = open_lock(root).map_err(failed)?;
        let run = std::path::absolute(run).map_err(failed)?;
        let (started, mut told) = (Instant::now(), false);
        let (held, holder) = loop {
            let held = match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => true,
                Err(Errno::WOULDBLOCK) => false,
                Err(error) => return Err(failed(error.into())),
            };
            let holder = Holder::read(&file);
            // A command goes on beside whoever holds the lock, but with another run directory only if that is a command
            // as well, which lets go of it in an instant.
            let content = role == Role::Command && !holder.is_elsewhere(&run);
            if held || content || started.elapsed() >= LOCK_PATIENCE {
                break (held, holder);
            }
            if !told && started.elapsed() >= LOCK_PATIENCE / 5 {
                let by = wardian_sys::lock::told(&wardian_sys::lock::holders(file.as_fd()));
                tracing::warn!(store = %path.display(), by, "store.lock-held");
                told = true;
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        if !held && role == Role::Server {
            let by = wardian_sys::lock::told(&wardian_sys::lock::holders(file.as_fd()));
            return Err(Error::InUse { path: path.to_owned(), by });
        }
        if holder.is_elsewhere(&run) {
            let others = Records::open(&holder.run, boot_id, false).and_then(|records| records.all());
            // Unreadable records name nobody knows what.
            if !held || !others.is_ok_and(|records| records.is_empty()) {
                return Err(Error::OtherRun { path: path.to_owned(), run: holder.run });
            }
        }
        if !held {
            return Ok(None);
        }
        let ours = Holder { run, server: role == Role::Server };
        ours.write(&file).map_err(failed)?;
        Ok(Some(Self(file)))
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Explicit: a child forked at this moment has a copy of the descriptor.
        let _ = rustix::fs::flock(&self.0, FlockOperation::Unlock);
    }
}

impl Layout {
    /// Whether a server has the store.
    pub(crate) fn has_server(&self) -> bool {
        let Ok(file) = open_lock(self.root.as_fd()) else { return false };
        let held = match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => false,
            Err(error) => error == Errno::WOULDBLOCK,
        };
        held && Holder::read(&file).server
    }
}
