//! What all threads of a store need: their end.

use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Waits for the end of a thread that was told to stop, but not longer than until then: one that waits for the disk cannot be
/// interrupted. False if it goes on.
pub(crate) fn join(thread: JoinHandle<()>, until: Instant) -> bool {
    while !thread.is_finished() {
        if Instant::now() >= until {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let _ = thread.join();
    true
}
