//! The steward's door, at which those knock who have work for it.

use std::sync::{Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::threads::{join, lock};

#[derive(Debug, Default)]
struct Knocks {
    knocked: bool,
    stop: bool,
}

/// The steward's door.
#[derive(Debug, Default)]
pub(crate) struct Door {
    state: Mutex<Knocks>,
    changed: Condvar,
    pub(crate) thread: Mutex<Option<JoinHandle<()>>>,
}

impl Door {
    /// Asks for a round now.
    pub(crate) fn knock(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).knocked = true;
        self.changed.notify_all();
    }

    /// Waits for the end of the round that is under way; false if that takes longer.
    pub(crate) fn stop(&self, until: Instant) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).stop = true;
        self.changed.notify_all();
        let thread = lock(&self.thread).take();
        // The steward itself may be the last to let the store go.
        let other = thread.filter(|thread| thread.thread().id() != std::thread::current().id());
        other.is_none_or(|thread| join(thread, until))
    }

    /// Waits for the next round, at most so long; false at the end.
    pub(crate) fn wait(&self, longest: Duration) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = |state: &mut Knocks| !state.knocked && !state.stop;
        let waited = self.changed.wait_timeout_while(state, longest, idle);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.knocked = false;
        !state.stop
    }
}
