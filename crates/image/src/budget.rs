//! What the layers of one image may take together, however many of them are unpacked side by side.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::Error;
use crate::unpack::Limits;

/// Bytes that the tar streams of an image may have whatever its blobs' size: images of some empty files, and tests, are
/// small and compress well.
const FLOOR: u64 = 256 << 20;
/// Bytes of a tar stream after which they are counted for the image.
const STEP: u64 = 64 << 10;

const ALL_BYTES: &str = "the size of the files of all layers";
const ALL_ENTRIES: &str = "the number of entries of all layers";

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

    /// Counts what is in its place already.
    pub(crate) fn add(&self, entries: u64, bytes: u64) {
        self.entries.fetch_add(entries, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts a tar stream that was unpacked before.
    pub(crate) fn add_unpacked(&self, bytes: u64) {
        self.unpacked.fetch_add(bytes, Ordering::Relaxed);
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
        let stored = self.budget.stored.load(Ordering::Relaxed);
        if self.ratio > 0 && unpacked > FLOOR.saturating_add(stored.saturating_mul(self.ratio)) {
            return Err(Error::Ratio { unpacked, stored, ratio: self.ratio });
        }
        Ok(())
    }
}
