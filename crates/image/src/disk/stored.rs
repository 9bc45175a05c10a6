//! The bytes of a file on the disk. A hole costs nothing to make, but takes as much time to read as data. So the work
//! that an image causes is limited by its bytes on the disk, and not by file sizes.

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::fs::{SeekFrom, seek};

use crate::error::Error;

/// How many bytes more than an archive has on the disk may be read from it, because of holes.
pub(crate) const HOLES: u64 = 64 << 20;

/// Returns how the file is stored: completely on the disk, unless it has holes. The file's offset changes.
pub(crate) fn of(file: &File, path: &Path) -> Result<Whole, Error> {
    let meta = file.metadata().map_err(|source| Error::Io {
        op: "stat",
        path: path.display().to_string(),
        source,
    })?;
    let (size, blocks) = (meta.len(), meta.blocks().saturating_mul(512));
    // Some file systems count no blocks, or count them later, so SEEK_HOLE is asked too: for a file without holes it
    // gives the file's end (lseek(2)).
    let has_holes = blocks < size && seek(file, SeekFrom::Hole(0)).is_ok_and(|hole| hole < size);
    Ok(Whole { stored: if has_holes { blocks } else { size }, plain: size })
}

/// The size of a file as stored, compressed or with holes, and as it is read, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Whole {
    pub(crate) stored: u64,
    pub(crate) plain: u64,
}

impl Whole {
    /// Returns how many stored bytes correspond to this many bytes read.
    pub(crate) fn part(self, plain: u64) -> u64 {
        let part = u128::from(plain) * u128::from(self.stored) / u128::from(self.plain.max(1));
        u64::try_from(part).unwrap_or(u64::MAX).min(plain)
    }
}
