//! The lock of a store, and the lock file's note of who holds it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use wardian_sys::directory::Directory;

use super::files::LOCK;
use super::layout::{Error, Layout};
use super::record::Records;

/// The role in which a process opens a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// The one process that recovers the store and deletes its trash.
    Server,
    /// A process that does one thing, beside a server or without one.
    Command,
}

/// The content of the lock file.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Holder {
    run: PathBuf,
    /// Whether the process that holds the lock is a server; meaningless while nobody holds it.
    server: bool,
}

/// The maximum size of the lock file that is read, in bytes.
const MOST: u64 = 8192;
/// How long the lock is waited for: a server that was just killed may still be exiting, with its descriptors open.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);

/// Opens the lock file. Because the file is written to, one that another user has put there while the directory was
/// writable to others is refused.
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
    /// Reads the lock file; the default if it is new or only half written.
    fn read(file: &OwnedFd) -> Self {
        let mut text = [0; MOST as usize];
        let length = rustix::io::pread(file, &mut text, 0).unwrap_or(0);
        serde_json::from_slice(&text[..length]).unwrap_or_default()
    }

    /// Whether the holder is known to have another run directory than `run`.
    fn is_elsewhere(&self, run: &Path) -> bool {
        !self.run.as_os_str().is_empty() && self.run != run
    }

    fn write(&self, file: &OwnedFd) -> std::io::Result<()> {
        rustix::fs::ftruncate(file, 0)?;
        rustix::io::pwrite(file, &serde_json::to_vec(self)?, 0)?;
        Ok(())
    }
}

/// Returns the run directory that a store was last used with; `None` if there is no store, or it was not used yet.
pub fn run_of(root: &Path) -> Option<PathBuf> {
    let dir = Directory::open(root).ok()?;
    let holder: Holder = serde_json::from_slice(&dir.read(LOCK, MOST).ok()?).unwrap_or_default();
    (!holder.run.as_os_str().is_empty()).then_some(holder.run)
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
            // A command does not need the lock, unless the holder has another run directory: it then waits for the
            // lock, which another command releases in an instant.
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
            // It is unknown which root file systems unreadable records name.
            if !held || !others.is_ok_and(|records| records.is_empty()) {
                return Err(Error::OtherRun { path: path.to_owned(), run: holder.run.clone() });
            }
        }
        if !held {
            return Ok(None);
        }
        let ours = Holder { run, server: role == Role::Server };
        // Most commands find their own text, and leave the disk alone.
        if holder != ours {
            ours.write(&file).map_err(failed)?;
        }
        Ok(Some(Self(file)))
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Unlocked explicitly: a child forked at this moment has a copy of the descriptor, which would keep the lock.
        let _ = rustix::fs::flock(&self.0, FlockOperation::Unlock);
    }
}

impl Layout {
    /// Whether a server holds the store's lock.
    pub(crate) fn has_server(&self) -> bool {
        let Ok(file) = open_lock(self.root.as_fd()) else { return false };
        let held = match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => false,
            Err(error) => error == Errno::WOULDBLOCK,
        };
        held && Holder::read(&file).server
    }
}
