//! How many creates, or fetches of images, are at work at a time: the others queue, and whoever would wait too long is
//! told so.
//!
//! A burst of hundreds of creates is not done any sooner if all of them run at once, but it would take a keeper, a thread
//! and memory for each, and leave none for those who want to destroy something.

use crate::{Error, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Longer than this nobody waits: clients give up at about that time, and would leave containers that nobody wants.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The gate.
#[derive(Debug)]
pub struct Gate {
    what: &'static str,
    flags: &'static str,
    at_work: usize,
    permits: Arc<Semaphore>,
    queue: usize,
    waiting: AtomicUsize,
}

/// As many at a time as keep the processors busy while some of them wait for the kernel (RCU, a disk).
pub fn sensible() -> usize {
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    (4 * processors).clamp(8, 128)
}

impl Gate {
    /// `at_work` of these at a time, and `queue` more wait; the flags let in more.
    pub fn new(what: &'static str, flags: &'static str, at_work: usize, queue: usize) -> Self {
        let at_work = at_work.min(Semaphore::MAX_PERMITS);
        Self {
            what,
            flags,
            at_work,
            permits: Arc::new(Semaphore::new(at_work)),
            queue,
            waiting: AtomicUsize::new(0),
        }
    }

    /// In, if nobody has to wait.
    pub fn try_enter(&self) -> Option<OwnedSemaphorePermit> {
        self.permits.clone().try_acquire_owned().ok()
    }

    /// In, in the order of arrival. Whoever drops this future is out of the queue.
    pub async fn enter(&self) -> Result<OwnedSemaphorePermit> {
        self.enter_within(PATIENCE).await
    }

    /// The same with another patience.
    pub async fn enter_within(&self, patience: Duration) -> Result<OwnedSemaphorePermit> {
        if let Some(permit) = self.try_enter() {
            return Ok(permit);
        }
        let before = self.waiting.fetch_add(1, Ordering::Relaxed);
        let _place = Place(&self.waiting);
        if before >= self.queue {
            return Err(self.busy(&format!("{before} more wait")));
        }
        match tokio::time::timeout(patience, self.permits.clone().acquire_owned()).await {
            Ok(permit) => permit.map_err(|_| Error::GivenUp { during: self.what, why: "the server ends" }),
            Err(_) => Err(self.busy(&format!("none of them has ended in {} s", patience.as_secs()))),
        }
    }

    fn busy(&self, more: &str) -> Error {
        Error::Busy(format!(
            "too many {}: {} are at work and {more}; try again in a moment, or start the server with a higher {}",
            self.what, self.at_work, self.flags
        ))
    }
}

/// In the queue.
struct Place<'a>(&'a AtomicUsize);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_works_one_waits_one_is_sent_away() {
        let gate = Gate::new("creates", "--x", 1, 1);
        let first = gate.enter().await.unwrap();
        let mut second = std::pin::pin!(gate.enter());
        assert!(tokio::time::timeout(Duration::ZERO, &mut second).await.is_err());
        let error = gate.enter().await.unwrap_err().to_string();
        assert!(error.contains("1 are at work and 1 more wait"), "{error}");
        drop(first);
        drop(second.await.unwrap());
        assert_eq!(gate.waiting.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn nobody_waits_for_ever() {
        let gate = Gate::new("creates", "--x", 1, 5);
        let _first = gate.enter().await.unwrap();
        let error = gate.enter_within(Duration::from_millis(1)).await.unwrap_err();
        assert!(matches!(error, Error::Busy(_)));
        // Whoever leaves the queue makes room in it.
        drop(gate.enter());
        assert_eq!(gate.waiting.load(Ordering::Relaxed), 0);
    }
}
