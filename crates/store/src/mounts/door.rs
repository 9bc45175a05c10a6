//! The steward's door: the signal that wakes the steward's thread for a round.

use parking_lot::{Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::threads::join;

#[derive(Debug, Default)]
struct Knocks {
    knocked: bool,
    stop: bool,
}

/// Wakes and stops the steward's thread.
#[derive(Debug, Default)]
pub(crate) struct Door {
    state: Mutex<Knocks>,
    changed: Condvar,
    pub(crate) thread: Mutex<Option<JoinHandle<()>>>,
}

impl Door {
    /// Wakes the steward for a round now.
    pub(crate) fn knock(&self) {
        self.state.lock().knocked = true;
        self.changed.notify_all();
    }

    /// Stops the thread after the round in progress; false if that takes longer than `until`.
    pub(crate) fn stop(&self, until: Instant) -> bool {
        self.state.lock().stop = true;
        self.changed.notify_all();
        let thread = self.thread.lock().take();
        // The steward's own thread may drop the last reference to the store, and cannot join itself.
        let other = thread.filter(|thread| thread.thread().id() != std::thread::current().id());
        other.is_none_or(|thread| join(thread, until))
    }

    /// Waits until a round is asked for, or for `longest`; false if the thread is to stop.
    pub(crate) fn wait(&self, longest: Duration) -> bool {
        let mut state = self.state.lock();
        let idle = |state: &mut Knocks| !state.knocked && !state.stop;
        self.changed.wait_while_for(&mut state, idle, longest);
        state.knocked = false;
        !state.stop
    }
}
