//! What ends a fetch or an unpack early.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::room::{Room, Share};
use super::watch::Watch;

/// The interval at which a waiting thread checks whether it is to stop.
const LOOK: Duration = Duration::from_millis(20);

/// Ends a fetch early: on cancellation by its watcher, or because the writer has given up.
pub(crate) struct Stop<'a> {
    pub(crate) watch: &'a Watch,
    /// Cancels as well, if it returns true.
    cancelled: Option<&'a (dyn Fn() -> bool + Sync)>,
    given_up: AtomicBool,
    /// The share of the room, returned while a fetch waits.
    pub(crate) share: Share<'a>,
}

impl fmt::Debug for Stop<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stop").field("watch", &self.watch).field("share", &self.share).finish_non_exhaustive()
    }
}

impl<'a> Stop<'a> {
    pub(crate) fn new(watch: &'a Watch) -> Self {
        Self::within(Room::of_all(), watch)
    }

    /// As [`Stop::new`], for an unpack that takes its memory from `room`.
    pub(crate) fn within(room: &'a Room, watch: &'a Watch) -> Self {
        Self { watch, cancelled: None, given_up: AtomicBool::new(false), share: Share::of(room) }
    }

    /// As [`Stop::new`], for the opening of an image: `cancelled` ends it too.
    pub(crate) fn or(watch: &'a Watch, cancelled: &'a (dyn Fn() -> bool + Sync)) -> Self {
        Self { cancelled: Some(cancelled), ..Self::new(watch) }
    }

    /// Returns another one that the same watcher and caller end, and that is given up apart from this one.
    pub(crate) fn apart(&self) -> Self {
        Self { cancelled: self.cancelled, ..Self::new(self.watch) }
    }

    pub(crate) fn give_up(&self) {
        self.given_up.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_set(&self) -> bool {
        self.watch.is_cancelled()
            || self.given_up.load(Ordering::Relaxed)
            || self.cancelled.is_some_and(|cancelled| cancelled())
    }

    pub(crate) async fn asked_for(&self) {
        while !self.is_set() {
            self.share.idle();
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Sleeps; false if it was stopped meanwhile.
    pub(crate) fn sleep(&self, time: Duration) -> bool {
        let end = Instant::now() + time;
        while !self.is_set() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            self.share.idle();
            thread::sleep(left.min(LOOK));
        }
        false
    }
}
