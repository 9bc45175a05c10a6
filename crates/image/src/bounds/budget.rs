//! Limits that the layers of one image share, however many of them are unpacked in parallel.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use super::limits::Limits;
use crate::error::Error;

/// Bytes that the tar streams of an image may have regardless of the size of its blobs: very small images compress
/// well.
const FLOOR: u64 = 256 << 20;
/// The step, in bytes of a tar stream, in which a stream is counted for its image.
const STEP: u64 = 64 << 10;

const ALL_BYTES: &str = "the size of the files of all layers";
const ALL_ENTRIES: &str = "the number of entries of all layers";

/// The size of an unpacked layer, as it counts for the limits of an image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Extent {
    /// Entries of its tar.
    pub entries: u64,
    /// Bytes of its files, holes included.
    pub bytes: u64,
    /// How it was packed. If that is unknown, the layer counts on neither side of the ratio: the size that an image
    /// claims for a blob cannot be trusted unless the blob is read.
    pub packed: Option<Packed>,
}

/// The sizes of a tar stream and of its blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packed {
    /// Bytes read of the blob as stored.
    pub stored: u64,
    /// Bytes of the uncompressed stream: holes of files are not in it.
    pub stream: u64,
}

/// The counters of an image, shared by its layers.
#[derive(Debug, Default)]
pub(crate) struct Budget {
    /// Bytes of files, holes included, and of skipped data.
    bytes: AtomicU64,
    /// Entries, and directories made implicitly because no entry names them.
    entries: AtomicU64,
    /// Bytes of tar streams.
    unpacked: AtomicU64,
    /// Bytes of blobs as stored, each blob once.
    stored: AtomicU64,
}

impl Budget {
    /// Resets all counters.
    pub(crate) fn clear(&self) {
        for count in [&self.bytes, &self.entries, &self.unpacked, &self.stored] {
            count.store(0, Ordering::Relaxed);
        }
    }

    /// Counts a layer that is in the store already; `again` if its blob was counted with another layer.
    pub(crate) fn add(&self, extent: Extent, again: bool) {
        self.entries.fetch_add(extent.entries, Ordering::Relaxed);
        self.bytes.fetch_add(extent.bytes, Ordering::Relaxed);
        if let Some(Packed { stored, stream }) = extent.packed {
            self.unpacked.fetch_add(stream, Ordering::Relaxed);
            self.add_stored(if again { 0 } else { stored });
        }
    }

    /// Fails if the sums exceed the limits.
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

    /// Counts the bytes of a file, before it is made; fails above the limit.
    pub(crate) fn take_bytes(&self, bytes: u64, limits: &Limits) -> Result<(), Error> {
        let before = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let (sum, limit) = (before.saturating_add(bytes), limits.max_image_bytes);
        if sum > limit { Err(Error::image_bytes(ALL_BYTES, limit)) } else { Ok(()) }
    }

    /// Counts entries; fails above the limit.
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
    /// The offset in the stream at which [`Meter::count`] is due again.
    pub(crate) next: u64,
    counted: u64,
}

impl Meter {
    pub(crate) fn new(budget: &Arc<Budget>, limits: &Limits) -> Self {
        Self { budget: Arc::clone(budget), ratio: limits.max_ratio, next: STEP, counted: 0 }
    }

    /// Counts the stream up to this offset.
    ///
    /// The reader is ahead of the decoder, so the count of stored bytes always covers those from which the counted
    /// bytes were decoded.
    pub(crate) fn count(&mut self, offset: u64) -> Result<(), Error> {
        let new = offset - self.counted;
        let unpacked = self.budget.unpacked.fetch_add(new, Ordering::Relaxed) + new;
        (self.counted, self.next) = (offset, offset.saturating_add(STEP));
        self.budget.check_ratio(unpacked, self.ratio)
    }
}
