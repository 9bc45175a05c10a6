//! What of a file lies on the disk. A hole costs nothing to whoever makes the file, and takes whoever reads it as much time as
//! data does: so what an image makes its reader do is bounded by what lies on the disk, and not by sizes.

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::fs::{SeekFrom, seek};

use crate::error::Error;

/// Bytes of holes that are read of an archive beyond what it has on the disk.
pub(crate) const HOLES: u64 = 64 << 20;

/// What of the file lies on the disk: all of it, unless it has holes. Its position moves.
pub(crate) fn of(file: &File, path: &Path) -> Result<Whole, Error> {
    let meta = file.metadata().map_err(|source| Error::Io {
        op: "stat",
        path: path.display().to_string(),
        source,
    })?;
    let (size, blocks) = (meta.len(), meta.blocks().saturating_mul(512));
    // Some file systems count no blocks, or count them later. One that has no holes says that the first is at the end (lseek(2)).
    let has_holes = blocks < size && seek(file, SeekFrom::Hole(0)).is_ok_and(|hole| hole < size);
    Ok(Whole { stored: if has_holes { blocks } else { size }, plain: size })
}

/// A file that takes less than is read of it, by compression or by holes: its size as stored, and as it is read, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Whole {
    pub(crate) stored: u64,
    pub(crate) plain: u64,
}

impl Whole {
    /// The part of what is stored that so many bytes stand for.
    pub(crate) fn part(self, plain: u64) -> u64 {
        let part = u128::from(plain) * u128::from(self.stored) / u128::from(self.plain.max(1));
        u64::try_from(part).unwrap_or(u64::MAX).min(plain)
    }
}
