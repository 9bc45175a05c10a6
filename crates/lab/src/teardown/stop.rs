//! The experiment's brake.

use crate::Interrupted;
use anyhow::Result;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

/// How long a pause may last after somebody has asked for the end.
const LOOK: Duration = Duration::from_millis(20);

/// Tells a thread that works without a runtime that somebody has asked for the end.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<AtomicI32>);

impl Stop {
    /// The signal of this number has come.
    pub fn set(&self, signal: i32) {
        self.0.store(signal, Ordering::Relaxed);
    }

    /// [`Interrupted`], if one has come.
    pub fn check(&self) -> Result<()> {
        match self.0.load(Ordering::Relaxed) {
            0 => Ok(()),
            signal => Err(Interrupted(signal).into()),
        }
    }

    /// Pause, unless one comes.
    pub fn sleep(&self, duration: Duration) -> Result<()> {
        let until = Instant::now() + duration;
        while let Some(rest) = until.checked_duration_since(Instant::now()).filter(|rest| !rest.is_zero()) {
            self.check()?;
            std::thread::sleep(rest.min(LOOK));
        }
        self.check()
    }
}
