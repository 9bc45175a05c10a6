//! What the layers of one image may take together, however many of them are unpacked side by side.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use super::limits::Limits;
use crate::error::Error;

/// Bytes that the tar streams of an image may have whatever its blobs' size: images of some empty files, and tests, are
/// small and compress well.
const FLOOR: u64 = 256 << 20;
/// Bytes of a tar stream after which they are counted for the image.
const STEP: u64 = 64 << 10;

const ALL_BYTES: &str = "the size of the files of all layers";
const ALL_ENTRIES: &str = "the number of entries of all layers";

/// A layer that was unpacked, as it counts for the limits of an image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Extent {
    /// Entries of its tar.
    pub entries: u64,
    /// Bytes of its files, holes included.
    pub bytes: u64,
    /// How it was packed. None if that was not noted: then the layer counts on neither side of the ratio, since what an
    /// image says of a blob that nobody reads could be anything.
    pub packed: Option<Packed>,
}

/// A tar stream, and the blob that it was read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packed {
    /// Bytes of the blob as stored, as they were read.
    pub stored: u64,
    /// Bytes of the uncompressed stream: holes of files are not in it.
    pub stream: u64,
}

/// What is counted for an image. Its layers share one.
#[derive(Debug, Default)]
pub(crate) struct Budget {
    /// Bytes of files, holes included, and of data that is passed over.
    bytes: AtomicU64,
    /// Entries, and directories that are made because no entry names them.
    entries: AtomicU64,
    /// Bytes of tar streams.
    unpacked: AtomicU64,
    /// Bytes of blobs as stored, each blob once.
    stored: AtomicU64,
}

impl Budget {
    /// Begins anew, with nothing.
    pub(crate) fn clear(&self) {
        for count in [&self.bytes, &self.entries, &self.unpacked, &self.stored] {
            count.store(0, Ordering::Relaxed);
        }
    }

    /// Counts what is in its place already; `again` if its blob was counted as part of another layer.
    pub(crate) fn add(&self, extent: Extent, again: bool) {
        self.entries.fetch_add(extent.entries, Ordering::Relaxed);
        self.bytes.fetch_add(extent.bytes, Ordering::Relaxed);
        if let Some(Packed { stored, stream }) = extent.packed {
            self.unpacked.fetch_add(stream, Ordering::Relaxed);
            self.add_stored(if again { 0 } else { stored });
        }
    }

    /// Refuses what is too much together.
    pub(crate) fn check(&self, limits: &Limits) -> Result<(), Error> {
        self.take_bytes(0, limits)?;
        self.take_entries(0, limits)?;
        self.check_ratio(self.unpacked.load(Ordering::Relaxed), limits.max_ratio)
    }

    fn check_ratio(&self, unpacked: u64, ratio: u64) -> Result<(), Error> {
        let stored = self.stored.load(Ordering::Relaxed);
        if ratio > 0 && unpacked > FLOOR.saturating_add(stored.saturating_mul(ratio)) {
            return Err(Error::Ratio { unpacked, stored, ratio });
        }
        Ok(())
    }

    /// Counts bytes of a blob.
    pub(crate) fn add_stored(&self, bytes: u64) {
        self.stored.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Takes bytes for a file, before it is made.
    pub(crate) fn take_bytes(&self, bytes: u64, limits: &Limits) -> Result<(), Error> {
        let before = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let (sum, limit) = (before.saturating_add(bytes), limits.max_image_bytes);
        if sum > limit { Err(Error::image_bytes(ALL_BYTES, limit)) } else { Ok(()) }
    }

    /// Takes entries.
    pub(crate) fn take_entries(&self, entries: u64, limits: &Limits) -> Result<(), Error> {
        let before = self.entries.fetch_add(entries, Ordering::Relaxed);
        let (sum, limit) = (before.saturating_add(entries), limits.max_image_entries);
        if sum > limit { Err(Error::image_entries(ALL_ENTRIES, limit)) } else { Ok(()) }
    }
}

/// Counts the bytes of one tar stream for its image.
#[derive(Debug)]
pub(crate) struct Meter {
    budget: Arc<Budget>,
    ratio: u64,
    /// Where in the stream it has to be asked again.
    pub(crate) next: u64,
    counted: u64,
}

impl Meter {
    pub(crate) fn new(budget: &Arc<Budget>, limits: &Limits) -> Self {
        Self { budget: Arc::clone(budget), ratio: limits.max_ratio, next: STEP, counted: 0 }
    }

    /// Counts up to this place of the stream.
    ///
    /// The reader is ahead of the decoder, so what was read of the blobs is never less than what the counted bytes were
    /// made of.
    pub(crate) fn count(&mut self, offset: u64) -> Result<(), Error> {
        let new = offset - self.counted;
        let unpacked = self.budget.unpacked.fetch_add(new, Ordering::Relaxed) + new;
        (self.counted, self.next) = (offset, offset.saturating_add(STEP));
        self.budget.check_ratio(unpacked, self.ratio)
    }
}
