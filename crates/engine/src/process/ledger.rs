//! The ledger of the memory that all output queues take together.
//!
//! A ledger divides its budget as switches divide the memory of their ports ("dynamic queue length thresholds", Choudhury
//! and Hahne, 1998): a queue may hold as much as is still free. The more queues there are the shorter each becomes, the
//! budget is never used up, and a queue that nobody reads cannot starve one that comes later. When the shares have become
//! too small to work with, the queue that nobody has read for the longest time is emptied.

use parking_lot::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::time::Instant;

/// The budget for the readers of one process: one reader alone may have a whole queue of 125 MiB.
pub const PROCESS: Budget = Budget { bytes: 256 << 20, part: 1 };
/// The budget for all readers of all processes. When one process has filled its own budget of 256 MiB, 128
/// MiB remain free; a queue of another process may use half of that.
pub const SERVER: Budget = Budget { bytes: 384 << 20, part: 2 };
/// A queue from which nothing was taken for this long is abandoned.
const UNREAD: Duration = Duration::from_secs(1);
/// How long no abandoned queue is searched for after a search has found none: there may be thousands of
/// queues.
const LOOK: Duration = Duration::from_millis(100);

/// Dropped queues are not searched for in a list that is shorter than this.
const MANY: usize = 16;

/// A number of bytes, and the divisor (1: all, 2: half) of the free bytes that one queue may hold.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    bytes: usize,
    part: usize,
}

/// A queue that a ledger counts.
pub trait Entry {
    /// Returns when something was last taken from the queue; `None` if the queue is empty.
    fn unread_since(&self) -> Option<Instant>;
    /// Discards everything that the queue holds. Returns the number of bytes.
    fn empty(&self) -> u64;
}

/// The queues, and the length of the list from which on dropped queues are removed from it.
#[derive(Debug)]
struct Queues<Q>(Vec<Weak<Q>>, usize);

/// The bytes that some queues hold.
#[derive(Debug)]
pub struct Ledger<Q> {
    budget: Budget,
    held: AtomicUsize,
    queues: Mutex<Queues<Q>>,
    /// When abandoned queues may be searched for again.
    look: Mutex<Option<Instant>>,
}

impl<Q: Entry> Ledger<Q> {
    /// Creates a ledger in which no bytes are held.
    ///
    /// On a host with little memory the budget is smaller: an eighth of the memory for the whole server's
    /// budget.
    pub fn new(mut budget: Budget) -> Self {
        let of = 8 * SERVER.bytes / budget.bytes;
        budget.bytes = wardian_sys::memory::budget(budget.bytes, of);
        Self {
            budget,
            held: AtomicUsize::new(0),
            queues: Queues(Vec::new(), 0).into(),
            look: Mutex::default(),
        }
    }

    /// Registers a queue, until it is dropped.
    pub fn enter(&self, queue: &Arc<Q>) {
        let mut queues = self.queues.lock();
        let Queues(all, bound) = &mut *queues;
        if all.len() >= *bound {
            // Each dropped queue in the list holds memory. The bound is twice the number of queues that live.
            all.retain(|queue| queue.strong_count() > 0);
            *bound = (2 * all.len()).max(MANY);
        }
        all.push(Arc::downgrade(queue));
    }

    /// Charges `bytes` to the budget.
    pub fn hold(&self, bytes: usize) {
        self.held.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Gives `bytes` back to the budget.
    pub fn release(&self, bytes: usize) {
        self.held.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Returns the bytes that are held.
    #[cfg(test)]
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// Returns how many bytes one queue may hold at present.
    pub fn share(&self) -> usize {
        self.budget.bytes.saturating_sub(self.held.load(Ordering::Relaxed)) / self.budget.part
    }

    /// Returns how many bytes a queue that may use only the first half of the budget may hold at present.
    pub fn half_share(&self) -> usize {
        let half = self.budget.bytes / 2;
        half.saturating_sub(self.held.load(Ordering::Relaxed)) / self.budget.part
    }

    /// Empties the queue that nobody has read for the longest time. Returns false if all queues are being
    /// read.
    pub fn relieve(&self) -> bool {
        let now = Instant::now();
        {
            let mut look = self.look.lock();
            if look.is_some_and(|time| time > now) {
                return false;
            }
            *look = Some(now + LOOK);
        }
        let queues: Vec<Arc<Q>> = {
            let queues = self.queues.lock();
            queues.0.iter().filter_map(Weak::upgrade).collect()
        };
        let unread = |queue: &Arc<Q>| {
            queue.unread_since().filter(|since| now.saturating_duration_since(*since) >= UNREAD)
        };
        let oldest =
            queues.iter().filter_map(|queue| Some((unread(queue)?, queue))).min_by_key(|found| found.0);
        let Some((_, oldest)) = oldest else { return false };
        let lost = oldest.empty();
        tracing::warn!(lost, reason = "memory is short, and nobody has read it", "process.output-lost");
        *self.look.lock() = None;
        true
    }
}
