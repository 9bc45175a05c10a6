//! A pool of empty upper/work pairs made ahead, with one shelf for each owner of root directories.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;

use super::names::Names;
use super::upper::{self, Pair, Upper};
use crate::disk::limit::Bound;
use crate::layers::owner::Root;

/// Pairs kept ready on each shelf: enough for the burst of a scale-up on a small host.
const READY: usize = 16;

/// The ready pairs.
#[derive(Debug)]
pub(crate) struct Pool {
    pub(crate) shelves: Mutex<HashMap<Root, Vec<Pair>>>,
    names: Arc<Names>,
    upper: Arc<dyn Upper>,
    /// Held while a pair is made; true once the pool is closed.
    closed: Mutex<bool>,
}

impl Pool {
    /// `upper` makes the pairs, under names from `names`.
    pub(crate) fn new(names: Arc<Names>, upper: Arc<dyn Upper>) -> Self {
        Self { shelves: Mutex::default(), names, upper, closed: Mutex::default() }
    }

    /// Takes a ready pair, if there is one. The call creates the owner's shelf, for [`Pool::fill`]. An owner whose
    /// mapping is not `shared` has no shelf, because shelves are never removed; such an owner gets a pair of the
    /// host's root, with `upper` changed to the new owner.
    pub(crate) fn take(&self, root: Root, shared: bool) -> Option<Pair> {
        if shared {
            return self.shelves.lock().entry(root).or_default().pop();
        }
        let pair = self.shelves.lock().entry((0, 0)).or_default().pop()?;
        // A pair that was given up and has no record is trash.
        pair.give(root).inspect_err(|_| self.names.disown(&pair.name)).ok().map(|()| pair)
    }

    /// Fills the shelves; [`Pool::take`] need not wait meanwhile.
    pub(crate) fn fill(&self) -> Result<(), upper::Error> {
        loop {
            let closed = self.closed.lock();
            if *closed {
                return Ok(());
            }
            let short =
                self.shelves.lock().iter().find(|(_, shelf)| shelf.len() < READY).map(|(root, _)| *root);
            let Some(root) = short else { return Ok(()) };
            let name = self.names.new_name();
            let pair = self.upper.make(&name, root, Bound::NONE).inspect_err(|_| self.names.disown(&name))?;
            self.shelves.lock().entry(root).or_default().push(pair);
        }
    }

    /// Closes the pool, after a pair that is being made. Its pairs still have their names.
    pub(crate) fn close(&self) {
        *self.closed.lock() = true;
        self.shelves.lock().clear();
    }
}
