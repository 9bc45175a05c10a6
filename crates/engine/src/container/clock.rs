//! The grace-time clock of a container; [`crate::grace`] winds it.

use tokio::task::AbortHandle;

/// A container's clock.
#[derive(Debug, Default)]
pub struct Clock {
    /// Calls under way.
    pub calls: usize,
    pub timer: Option<AbortHandle>,
    /// Tells the timer that runs from one that was replaced as it ran out.
    pub round: u64,
}

impl Clock {
    /// Stop it; whether it ran.
    pub fn stop(&mut self) -> bool {
        self.round += 1;
        self.timer.take().map(|timer| timer.abort()).is_some()
    }
}
