//! Deduplication of concurrent work: the first thread that asks does the work, the others wait for its result.

use parking_lot::{Condvar, Mutex};
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use crate::error::Error;

#[derive(Debug)]
struct Seat<V> {
    result: Mutex<Option<Result<V, Arc<Error>>>>,
    landed: Condvar,
}

/// The work in progress, by key. Results are not cached.
#[derive(Debug)]
pub(crate) struct Flights<K, V>(Mutex<HashMap<K, Arc<Seat<V>>>>);

impl<K, V> Default for Flights<K, V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

/// Removes the key and wakes the waiting threads when it is dropped, also if the work panics.
struct Landing<'a, K: Eq + Hash, V: Clone> {
    flights: &'a Flights<K, V>,
    key: K,
    seat: Arc<Seat<V>>,
    result: Option<Result<V, Arc<Error>>>,
}

impl<K: Eq + Hash, V: Clone> Drop for Landing<'_, K, V> {
    fn drop(&mut self) {
        self.flights.0.lock().remove(&self.key);
        let result = self.result.take().unwrap_or_else(|| Err(Arc::new(Error::Closed)));
        *self.seat.result.lock() = Some(result);
        self.seat.landed.notify_all();
    }
}

/// The interval at which a waiting thread checks whether it was cancelled.
const LOOK: Duration = Duration::from_millis(50);

impl<K: Eq + Hash + Clone, V: Clone> Flights<K, V> {
    /// Does the work, or waits for the thread that does it. `work` itself must check whether the result exists
    /// already. A waiting thread can be cancelled; if the working one is, a waiting one takes over.
    pub(crate) fn run(
        &self,
        key: &K,
        cancelled: &dyn Fn() -> bool,
        work: impl FnOnce() -> Result<V, Error>,
    ) -> Result<V, Error> {
        loop {
            let mut flights = self.0.lock();
            let Some(seat) = flights.get(key).cloned() else {
                let seat = Arc::new(Seat { result: Mutex::new(None), landed: Condvar::new() });
                flights.insert(key.clone(), Arc::clone(&seat));
                drop(flights);
                return self.lead(key, seat, work);
            };
            drop(flights);
            let mut result = seat.result.lock();
            let landed = loop {
                match &*result {
                    Some(result) => break result.clone(),
                    None if cancelled() => return Err(Error::Cancelled),
                    None => drop(seat.landed.wait_for(&mut result, LOOK)),
                }
            };
            match landed {
                Err(error) if error.is_cancelled() => {}
                landed => return landed.map_err(Error::Shared),
            }
        }
    }

    fn lead(&self, key: &K, seat: Arc<Seat<V>>, work: impl FnOnce() -> Result<V, Error>) -> Result<V, Error> {
        let mut landing = Landing { flights: self, key: key.clone(), seat, result: None };
        let result = work().map_err(Arc::new);
        landing.result = Some(result.clone());
        drop(landing);
        // The error is not wrapped if nobody waited, so that callers can match it.
        result.map_err(|error| Arc::try_unwrap(error).unwrap_or_else(Error::Shared))
    }
}
