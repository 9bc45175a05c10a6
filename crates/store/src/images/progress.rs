//! The progress of an import, and its cancellation.

use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::{Duration, Instant};

use wardian_image::Watch;

use super::image::Named;

/// The state of a layer within an import.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// It is queued, or another request unpacks it.
    Waiting,
    /// It is read, verified and unpacked.
    Unpacking,
    /// It was in the store before.
    Present,
    /// It is in the store now.
    Done,
}

impl Phase {
    /// Its name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Unpacking => "unpacking",
            Self::Present => "present",
            Self::Done => "done",
        }
    }
}

/// One layer of an import.
#[derive(Debug)]
pub struct LayerProgress {
    /// The layer's chain id.
    pub chain_id: String,
    /// The size of its blob in bytes.
    pub size: u64,
    pub(crate) watch: Watch,
    phase: AtomicU8,
    /// When its unpacking began, and how long it took.
    unpacking: Mutex<(Option<Instant>, Option<Duration>)>,
}

impl LayerProgress {
    pub(crate) fn set(&self, phase: Phase) {
        let mut unpacking = self.unpacking.lock();
        match phase {
            Phase::Unpacking => *unpacking = (Some(Instant::now()), None),
            Phase::Done => unpacking.1 = unpacking.0.map(|began| began.elapsed()),
            Phase::Waiting | Phase::Present => {}
        }
        drop(unpacking);
        self.phase.store(phase as u8, Ordering::Relaxed);
    }

    /// How long it took to read, verify and unpack it; `None` while that lasts, and for a layer of which this import
    /// did not do it.
    pub fn unpacked_in(&self) -> Option<Duration> {
        self.unpacking.lock().1
    }

    /// The layer's current phase.
    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Relaxed) {
            0 => Phase::Waiting,
            1 => Phase::Unpacking,
            2 => Phase::Present,
            _ => Phase::Done,
        }
    }

    /// Bytes of the blob that have been read.
    pub fn bytes_read(&self) -> u64 {
        self.watch.bytes_read()
    }
}

/// The progress of one import.
#[derive(Debug, Default)]
pub struct Progress {
    cancelled: AtomicBool,
    /// Counts and cancels requests that are made before a layer is known.
    watch: Watch,
    layers: Mutex<Vec<Arc<LayerProgress>>>,
    replaced: Mutex<Option<Named>>,
}

impl Progress {
    /// Cancels the import, which ends soon with [`crate::Error::Cancelled`] and leaves nothing half made.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Release);
        self.watch.cancel();
        for layer in self.layers() {
            layer.watch.cancel();
        }
    }

    /// Whether it was cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }

    /// Its layers, bottom first; none before the image's manifest has been read.
    pub fn layers(&self) -> Vec<Arc<LayerProgress>> {
        self.layers.lock().clone()
    }

    /// Returns the image that had the name of the one that was pulled until then, if it was another one.
    pub fn replaced(&self) -> Option<Named> {
        self.replaced.lock().clone()
    }

    pub(crate) fn has_replaced(&self, old: Option<Named>) {
        *self.replaced.lock() = old;
    }

    pub(crate) fn watch(&self) -> &Watch {
        &self.watch
    }

    /// Resets the progress to these layers.
    pub(crate) fn begin(&self, layers: &[wardian_image::Layer]) -> Vec<Arc<LayerProgress>> {
        self.layers.lock().clear();
        layers.iter().map(|layer| self.add(layer)).collect()
    }

    /// Adds a layer.
    pub(crate) fn add(&self, layer: &wardian_image::Layer) -> Arc<LayerProgress> {
        let layer = Arc::new(LayerProgress {
            chain_id: layer.chain_id.clone(),
            size: layer.size(),
            watch: Watch::default(),
            phase: AtomicU8::new(Phase::Waiting as u8),
            unpacking: Mutex::default(),
        });
        let mut layers = self.layers.lock();
        // The layer may be listed already, from a try before a garbage collection.
        layers.retain(|other| other.chain_id != layer.chain_id);
        layers.push(Arc::clone(&layer));
        drop(layers);
        if self.is_cancelled() {
            self.cancel();
        }
        layer
    }
}
