//! Joins a store's threads with a deadline.

use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Waits for the end of a thread that was told to stop, until the deadline: a thread that waits for the disk cannot
/// be interrupted. Returns false if it is still running then.
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
