//! Opens a file of an image, and detects changes of it.

use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use sha2::{Digest as _, Sha256};
use wardian_sys::directory;

use crate::digest::Digest;
use crate::error::Error;

/// How often a file that keeps changing is waited for.
const MAX_WAITS: u32 = 50;

/// Identifies a state of a file, without reading it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Identity {
    pub(crate) size: u64,
    mtime: (i64, i64),
    /// Unlike the modification time, it cannot be set.
    ctime: (i64, i64),
    device: u64,
    inode: u64,
}

/// How old the last change must be for the next one to get another time: file systems use the time of the kernel's
/// last tick, and ticks are at most 10 ms apart (`CONFIG_HZ`); the clock read here is ahead of that.
const TICK: Duration = Duration::from_millis(25);
/// As [`TICK`], for file systems with times in whole seconds, or two seconds on FAT.
const COARSE_TICK: Duration = Duration::from_millis(2050);

impl Identity {
    pub(crate) fn of(meta: &std::fs::Metadata) -> Self {
        Self {
            size: meta.len(),
            mtime: (meta.mtime(), meta.mtime_nsec()),
            ctime: (meta.ctime(), meta.ctime_nsec()),
            device: meta.dev(),
            inode: meta.ino(),
        }
    }

    /// Returns how long it takes until another change of the file gets a later time than the last one; `None` if it
    /// would now.
    pub(crate) fn settles_in(meta: &std::fs::Metadata) -> Option<Duration> {
        Self::settles(meta.ctime(), meta.ctime_nsec())
    }

    /// As [`Identity::settles_in`], from the time of the last change in seconds and nanoseconds.
    pub(crate) fn settles(seconds: i64, nanoseconds: i64) -> Option<Duration> {
        let tick = if nanoseconds == 0 { COARSE_TICK } else { TICK };
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let changed = Duration::new(
            u64::try_from(seconds).unwrap_or_default(),
            u32::try_from(nanoseconds).unwrap_or_default(),
        );
        // A time in the future is from before the clock was set back: the next change gets an earlier one.
        let age = now.checked_sub(changed)?;
        tick.checked_sub(age).filter(|left| !left.is_zero())
    }

    /// Returns a digest of the path and this state of its file.
    pub(crate) fn of_path(&self, path: &Path) -> Digest {
        let mut hasher = Sha256::new();
        // The path ends with a NUL, which no path contains; the rest has a fixed width.
        hasher.update(path.as_os_str().as_bytes());
        hasher.update([0]);
        hasher.update(self.size.to_le_bytes());
        hasher.update(self.mtime.0.to_le_bytes());
        hasher.update(self.mtime.1.to_le_bytes());
        hasher.update(self.inode.to_le_bytes());
        hasher.update(self.ctime.0.to_le_bytes());
        hasher.update(self.ctime.1.to_le_bytes());
        hasher.update(self.device.to_le_bytes());
        Digest::finish(hasher)
    }
}

/// Opens a tar file; returns it with its path without symlinks. A symlink is not followed where another user could
/// have put it or could move one of root's: it could lead root to files of that user's choice. FIFOs and devices are
/// refused, since opening them may block or have side effects.
pub(crate) fn open_tar(path: &Path) -> Result<(File, PathBuf), Error> {
    directory::reach_file(path).map_err(|error| match error {
        directory::Error::Strange { .. } => {
            Error::Corrupt { what: path.display().to_string(), why: "it is no regular file".into() }
        }
        error => Error::Io { op: "open", path: path.display().to_string(), source: error.into() },
    })
}

/// Returns a file's path without symlinks, and its state. If the file was changed just now, the call waits for the
/// next clock tick: a second change within the same tick would not show.
pub(crate) fn state_of(path: &Path) -> Result<(PathBuf, Identity), Error> {
    let error = |op, source| Error::Io { op, path: path.display().to_string(), source };
    let (file, path) = open_tar(path)?;
    for _ in 0..MAX_WAITS {
        let meta = file.metadata().map_err(|e| error("stat", e))?;
        match Identity::settles_in(&meta) {
            None => return Ok((path, Identity::of(&meta))),
            Some(time) => std::thread::sleep(time),
        }
    }
    Err(Error::Changed { path: path.display().to_string() })
}
