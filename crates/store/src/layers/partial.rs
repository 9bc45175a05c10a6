//! What is kept of blobs whose fetch ended early: `partial/sha256-HEX`, locked by whoever fetches it.

use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};

use crate::disk::files;
use crate::disk::layout::Layout;

/// After this time nobody is expected to fetch the rest.
const KEEP: Duration = Duration::from_secs(24 * 3600);
/// The most bytes of all of them.
const MOST: u64 = 4 << 30;

/// Which of them are removed. Those that are being received now stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    /// Old ones, and the oldest of those that take too much space together.
    Old,
    /// All.
    All,
}

/// Removes parts of blobs; returns their bytes on the disk. With `dry` it only counts.
pub(crate) fn sweep(layout: &Layout, which: Which, dry: bool) -> u64 {
    let mut found: Vec<_> = files::names(&layout.partial)
        .unwrap_or_default()
        .into_iter()
        .filter_map(|name| {
            let stat = rustix::fs::statat(&layout.partial, &name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
            Some((stat.st_mtime, u64::try_from(stat.st_blocks).unwrap_or(0) * 512, name))
        })
        .collect();
    found.sort();
    let since =
        SystemTime::now().checked_sub(KEEP).and_then(|then| then.duration_since(SystemTime::UNIX_EPOCH).ok());
    let since = since.map_or(0, |since| since.as_secs().cast_signed());
    let mut all: u64 = found.iter().map(|(_, bytes, _)| bytes).sum();
    let mut freed = 0;
    for (time, bytes, name) in found {
        if which == Which::Old && time >= since && all <= MOST {
            break;
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let Ok(file) = rustix::fs::openat(&layout.partial, &name, flags, Mode::empty()) else { continue };
        // Removed while it is locked, so that the next process that locks it sees that it is gone.
        if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            continue;
        }
        if !dry && rustix::fs::unlinkat(&layout.partial, &name, AtFlags::empty()).is_err() {
            continue;
        }
        all -= bytes;
        freed += bytes;
    }
    freed
}
