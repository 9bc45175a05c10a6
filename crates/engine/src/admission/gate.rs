//! Gates, which bound how many creates or fetches of images run at a time: further ones queue, and fail with
//! a busy error if they would wait too long.
//!
//! A burst of hundreds of creates does not finish any sooner if all of them run at once, but each would take
//! a keeper, a thread and memory, and leave none for destroys.

use crate::{Error, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The longest wait in the queue: clients give up at about that time, and would leave containers that nobody
/// wants.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The option of the server for more places in each queue, for errors.
const QUEUE_FLAG: &str = "--max-queued-creates";

/// A semaphore with a bounded queue.
#[derive(Debug)]
pub struct Gate {
    what: &'static str,
    /// For whom, in a message; empty for all.
    whose: String,
    flag: Option<&'static str>,
    at_work: usize,
    permits: Arc<Semaphore>,
    queue: usize,
    waiting: AtomicUsize,
}

/// Returns a default number of concurrent creates: enough to keep the processors busy while some creates wait
/// for the kernel (RCU, a disk).
pub fn sensible() -> usize {
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    (4 * processors).clamp(8, 128)
}

impl Gate {
    /// Makes a gate for `at_work` of `what` at a time, and `queue` more that wait. `flag` is the option
    /// for more at a time, if there is one, for errors.
    pub fn new(what: &'static str, flag: Option<&'static str>, at_work: usize, queue: usize) -> Self {
        let at_work = at_work.min(Semaphore::MAX_PERMITS);
        Self {
            what,
            whose: String::new(),
            flag,
            at_work,
            permits: Arc::new(Semaphore::new(at_work)),
            queue,
            waiting: AtomicUsize::new(0),
        }
    }

    /// Makes a gate for `at_work` of the same, of those for `whom`.
    pub fn divided(&self, at_work: usize, queue: usize, whom: &str) -> Self {
        Self { whose: format!(" of {whom}"), ..Self::new(self.what, self.flag, at_work, queue) }
    }

    /// How many may be at work at a time.
    pub fn places(&self) -> usize {
        self.at_work
    }

    /// Whether nobody is at work, and nobody waits.
    pub fn is_empty(&self) -> bool {
        self.permits.available_permits() == self.at_work && self.waiting.load(Ordering::Relaxed) == 0
    }

    /// Enters if there is a free place.
    pub fn try_enter(&self) -> Option<OwnedSemaphorePermit> {
        self.permits.clone().try_acquire_owned().ok()
    }

    /// Enters in the order of arrival. Dropping this future leaves the queue.
    pub async fn enter(&self) -> Result<OwnedSemaphorePermit> {
        self.enter_within(PATIENCE).await
    }

    /// Enters as [`Self::enter`] does, with another bound on the wait.
    pub async fn enter_within(&self, patience: Duration) -> Result<OwnedSemaphorePermit> {
        if let Some(permit) = self.try_enter() {
            return Ok(permit);
        }
        let before = self.waiting.fetch_add(1, Ordering::Relaxed);
        let _place = Place(&self.waiting);
        if before >= self.queue {
            let flags: Vec<_> = self.flag.into_iter().chain([QUEUE_FLAG]).collect();
            return Err(self.busy(&format!("{before} more wait"), &flags));
        }
        match tokio::time::timeout(patience, self.permits.clone().acquire_owned()).await {
            Ok(permit) => permit.map_err(|_| Error::GivenUp { during: self.what, why: "the server ends" }),
            Err(_) => {
                let more = format!("none of them has ended in {} s", patience.as_secs());
                Err(self.busy(&more, self.flag.as_slice()))
            }
        }
    }

    fn busy(&self, more: &str, flags: &[&str]) -> Error {
        let remedy = match flags.join(" or ") {
            none if none.is_empty() => none,
            flags => format!(", or start the server with a higher {flags}"),
        };
        Error::Busy(format!(
            "too many {}{}: {} are at work and {more}; try again in a moment{remedy}",
            self.what, self.whose, self.at_work
        ))
    }
}

/// A place in the queue.
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
        let gate = Gate::new("creates", None, 1, 1);
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
        let gate = Gate::new("creates", None, 1, 5);
        let _first = gate.enter().await.unwrap();
        let error = gate.enter_within(Duration::from_millis(1)).await.unwrap_err();
        assert!(matches!(error, Error::Busy(_)));
        // Leaving the queue makes room in it.
        drop(gate.enter());
        assert_eq!(gate.waiting.load(Ordering::Relaxed), 0);
    }
}
