//! The grace-time clock of a container, which [`crate::grace`] controls.

use tokio::task::AbortHandle;

/// A container's clock.
#[derive(Debug, Default)]
pub struct Clock {
    /// Calls under way.
    pub calls: usize,
    pub timer: Option<AbortHandle>,
    /// Incremented whenever the timer is stopped, so that a timer that was expiring at that moment is
    /// recognized as outdated.
    pub round: u64,
}

impl Clock {
    /// Stops the timer. Returns whether it was running.
    pub fn stop(&mut self) -> bool {
        self.round += 1;
        self.timer.take().map(|timer| timer.abort()).is_some()
    }
}
