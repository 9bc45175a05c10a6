//! How many connections may be open at a time, and which one has to go when there is no room for another.
//!
//! A connection that waits for a request, or for the rest of one's head, is idle. When all places are taken the one that
//! has been idle longest is closed for the newcomer, so that clients that hold connections and say nothing keep nobody
//! out. Only where all are at work the newcomer waits, in the kernel's queue.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// The door.
#[derive(Debug)]
pub(crate) struct Door {
    places: Arc<Semaphore>,
    idle: Mutex<Idle>,
}

#[derive(Debug, Default)]
struct Idle {
    /// Oldest first.
    waiting: BTreeMap<u64, Arc<Notify>>,
    next: u64,
}

/// A connection's place. Its end makes room.
#[derive(Debug)]
pub(crate) struct Place {
    door: Arc<Door>,
    /// Its number while it is idle.
    idle: Mutex<Option<u64>>,
    evicted: Arc<Notify>,
    served: AtomicBool,
    _permit: OwnedSemaphorePermit,
}

impl Door {
    /// With so many places.
    pub(crate) fn new(places: usize) -> Arc<Self> {
        let places = Arc::new(Semaphore::new(places.clamp(1, Semaphore::MAX_PERMITS)));
        Arc::new(Self { places, idle: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for one more, idle at first. `None` when the server ends.
    pub(crate) async fn enter(self: &Arc<Self>) -> Option<Arc<Place>> {
        let permit = match self.places.clone().try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => {
                if let Some((_, oldest)) = self.lock().waiting.pop_first() {
                    oldest.notify_one();
                }
                self.places.clone().acquire_owned().await.ok()?
            }
        };
        let place = Place {
            door: self.clone(),
            idle: Mutex::default(),
            evicted: Arc::default(),
            served: AtomicBool::new(false),
            _permit: permit,
        };
        place.rests();
        Some(Arc::new(place))
    }
}

impl Place {
    fn number(&self) -> MutexGuard<'_, Option<u64>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It waits for a request.
    pub(crate) fn rests(&self) {
        let mut idle = self.door.lock();
        idle.next += 1;
        let number = idle.next;
        idle.waiting.insert(number, self.evicted.clone());
        *self.number() = Some(number);
    }

    /// A request has come. `false`: too late, its place is promised to somebody else.
    pub(crate) fn works(&self) -> bool {
        self.served.store(true, Ordering::Relaxed);
        let mut idle = self.door.lock();
        self.number().take().is_none_or(|number| idle.waiting.remove(&number).is_some())
    }

    /// Whether it has ever worked.
    pub(crate) fn served(&self) -> bool {
        self.served.load(Ordering::Relaxed)
    }

    /// Ready when it has to go.
    pub(crate) async fn evicted(&self) {
        self.evicted.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.works();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    async fn soon<T>(future: impl Future<Output = T>) -> Option<T> {
        tokio::time::timeout(Duration::from_millis(20), future).await.ok()
    }

    #[tokio::test]
    async fn the_longest_idle_goes_for_a_newcomer() {
        let door = Door::new(3);
        let [a, b, c] =
            [door.enter().await.unwrap(), door.enter().await.unwrap(), door.enter().await.unwrap()];
        assert!(a.works());
        // All places are taken; `b` has been idle longest.
        let mut newcomer = std::pin::pin!(door.enter());
        assert!(soon(&mut newcomer).await.is_none());
        soon(b.evicted()).await.unwrap();
        assert!(soon(c.evicted()).await.is_none() && !b.works());
        drop(b);
        let d = soon(&mut newcomer).await.unwrap().unwrap();
        // Nobody is idle: the next one waits for an end.
        assert!(c.works() && d.works() && c.works());
        let mut last = std::pin::pin!(door.enter());
        assert!(soon(&mut last).await.is_none() && soon(a.evicted()).await.is_none());
        drop(d);
        let e = soon(last).await.unwrap().unwrap();
        assert!(e.works());
        // After its request it can be asked to go again.
        a.rests();
        assert!(soon(door.enter()).await.is_none() && soon(a.evicted()).await.is_some());
    }
}
