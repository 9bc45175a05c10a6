//! A gate whose places no single one of those for whom they are can take.

use super::gate::Gate;
use crate::Result;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::OwnedSemaphorePermit;

/// How many names are remembered; those at which nobody is are forgotten then.
const NAMES: usize = 256;

/// A gate for requests that depend on others, each known by a name, as registries: one that does not answer, or has its
/// clients wait, takes its share of the places, and the rest is for the others.
#[derive(Debug)]
pub struct Shares {
    all: Gate,
    share: usize,
    queue: usize,
    of: Mutex<HashMap<String, Arc<Gate>>>,
}

/// A place at such a gate. Dropping it leaves.
#[derive(Debug)]
pub struct Place {
    _own: Option<OwnedSemaphorePermit>,
    _all: OwnedSemaphorePermit,
}

impl From<OwnedSemaphorePermit> for Place {
    fn from(all: OwnedSemaphorePermit) -> Self {
        Self { _own: None, _all: all }
    }
}

impl Shares {
    /// Divides the places of a gate: one name has at most `share` of them, and half of them if that is less; `queue`
    /// requests may wait for the share of one.
    pub fn new(all: Gate, share: usize, queue: usize) -> Self {
        let share = share.min(all.places().div_ceil(2));
        Self { all, share, queue, of: Mutex::default() }
    }

    /// Enters for this one: first its share, then the places of all.
    pub async fn enter(&self, name: &str) -> Result<Place> {
        let own = self.gate_of(name).enter().await?;
        Ok(Place { _own: Some(own), _all: self.all.enter().await? })
    }

    fn gate_of(&self, name: &str) -> Arc<Gate> {
        let mut of = self.of.lock();
        if of.len() >= NAMES && !of.contains_key(name) {
            of.retain(|_, gate| Arc::strong_count(gate) > 1 || !gate.is_empty());
        }
        let gate = || Arc::new(self.all.divided(self.share, self.queue, name));
        Arc::clone(of.entry(name.to_owned()).or_insert_with(gate))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn nobody_takes_all_places() {
        let shares = Shares::new(Gate::new("fetches", None, 4, 9), 16, 9);
        let slow = [shares.enter("slow").await.unwrap(), shares.enter("slow").await.unwrap()];
        let mut third = std::pin::pin!(shares.enter("slow"));
        assert!(tokio::time::timeout(Duration::from_millis(5), &mut third).await.is_err());
        let other = shares.enter("other").await.unwrap();
        drop(slow);
        third.await.unwrap();
        drop(other);
    }

    #[tokio::test]
    async fn names_are_forgotten() {
        let shares = Shares::new(Gate::new("fetches", None, 4, 9), 16, 9);
        let place = shares.enter("kept").await.unwrap();
        for n in 0..3 * NAMES {
            drop(shares.enter(&n.to_string()).await.unwrap());
        }
        let names = shares.of.lock();
        assert!(names.len() <= NAMES && names.contains_key("kept"), "{}", names.len());
        drop(place);
    }
}
