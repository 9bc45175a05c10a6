//! Stops the experiment on a signal.

use crate::Interrupted;
use anyhow::Result;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

/// Poll interval for a signal during a pause.
const LOOK: Duration = Duration::from_millis(20);

/// Tells a thread without a runtime that a signal has arrived.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<AtomicI32>);

impl Stop {
    /// Records the signal of this number.
    pub fn set(&self, signal: i32) {
        self.0.store(signal, Ordering::Relaxed);
    }

    /// Returns [`Interrupted`] if a signal has arrived.
    pub fn check(&self) -> Result<()> {
        match self.0.load(Ordering::Relaxed) {
            0 => Ok(()),
            signal => Err(Interrupted(signal).into()),
        }
    }

    /// Sleeps, unless a signal arrives.
    pub fn sleep(&self, duration: Duration) -> Result<()> {
        let until = Instant::now() + duration;
        while let Some(rest) = until.checked_duration_since(Instant::now()).filter(|rest| !rest.is_zero()) {
            self.check()?;
            std::thread::sleep(rest.min(LOOK));
        }
        self.check()
    }
}
