//! The steward's door, at which those knock who have work for it.

use parking_lot::{Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::threads::join;

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
        self.state.lock().knocked = true;
        self.changed.notify_all();
    }

    /// Waits for the end of the round that is under way; false if that takes longer.
    pub(crate) fn stop(&self, until: Instant) -> bool {
        self.state.lock().stop = true;
        self.changed.notify_all();
        let thread = self.thread.lock().take();
        // The steward itself may be the last to let the store go.
        let other = thread.filter(|thread| thread.thread().id() != std::thread::current().id());
        other.is_none_or(|thread| join(thread, until))
    }

    /// Waits for the next round, at most so long; false at the end.
    pub(crate) fn wait(&self, longest: Duration) -> bool {
        let mut state = self.state.lock();
        let idle = |state: &mut Knocks| !state.knocked && !state.stop;
        self.changed.wait_while_for(&mut state, idle, longest);
        state.knocked = false;
        !state.stop
    }
}
