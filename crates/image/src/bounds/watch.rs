//! Watching an unpack or an export from another thread.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Counts the progress of unpacks and exports, and cancels them. Share it by reference or `Arc`; if it is given to
/// several layers, it counts their sum and cancels them all.
#[derive(Debug, Default)]
pub struct Watch {
    read: AtomicU64,
    cancelled: AtomicBool,
}

impl Watch {
    /// Cancels all present and future unpacks that use this: within one piece of data they return
    /// [`Error::Cancelled`](crate::Error::Cancelled).
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// True once [`Watch::cancel`] was called.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Bytes of blobs read so far, as stored: compressed if they are. At the end it is the sum of
    /// [`crate::Layer::size`]. For an export, the bytes of files read; a file with the same content in several layers
    /// counts each time.
    pub fn bytes_read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    pub(crate) fn add(&self, bytes: u64) {
        self.read.fetch_add(bytes, Ordering::Relaxed);
    }
}
