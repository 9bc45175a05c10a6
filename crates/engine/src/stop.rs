//! Stops of containers: their processes get TERM, then KILL; the container stays.

use crate::container::Container;
use crate::container::lifecycle::Event;
use crate::container::record::Record;
use crate::events::What;
use crate::failpoints::Point;
use crate::{Engine, Error, Result};
use rustix::process::Signal;
use std::time::{Duration, Instant};
use wardian_sys::failpoint;

/// The time between TERM and KILL, and for killed processes to be gone: that of Garden's server.
const GRACE: Duration = Duration::from_secs(10);

/// How long a stop waits for the exit statuses of processes that are gone.
const HEARD: Duration = Duration::from_secs(1);

impl Engine {
    /// Ends the container's processes (TERM, wait, KILL; with `kill`: KILL at once); the container stays.
    ///
    /// # Errors
    /// Unknown or broken container.
    pub async fn stop(&self, handle: &str, kill: bool) -> Result<()> {
        let container = self.find(handle)?;
        container.keeper()?;
        let except = container.untouchable();
        if !kill && !self.signal_until(&container.id, &except, Signal::TERM).await? {
            tracing::debug!(handle, id = container.id, "stop.kill");
        }
        failpoint::reach(Point::StopTermed);
        self.signal_until(&container.id, &except, Signal::KILL).await?;
        self.hear_ends(&container).await;
        container.cut_outputs();
        failpoint::reach(Point::StopKilled);
        failpoint::reach(Point::StopRecording);
        let stopped = |record: &mut Record| {
            record.stopped = true;
            Ok(())
        };
        container.try_update(Event::Stopped, stopped, |record| self.shared.records.save(record))?;
        // A process that was started after the last look at the cgroup has found the container not stopped
        // yet.
        let (shared, id) = (self.shared.clone(), container.id.clone());
        let lives = move || shared.cgroups.members(&id).iter().any(|pid| !except.contains(pid));
        if tokio::task::spawn_blocking(lives).await.map_err(Error::task("stop"))? {
            self.resumed(&container);
        }
        self.shared.events.tell(&container.handle, &container.id, What::Stop);
        Ok(())
    }

    /// Waits until the keeper has reported the exit statuses of all that have ended, so that a client sees
    /// the ends of the processes before that of the stop. A keeper that is stopped (SIGSTOP) reports nothing,
    /// so this is bounded by [`HEARD`].
    async fn hear_ends(&self, container: &Container) {
        let started = Instant::now();
        let open = container.untold();
        while !open.is_disjoint(&container.untold()) && started.elapsed() < HEARD {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Signals all processes of the container but `except`, again each second, until none is left. Returns
    /// false once [`GRACE`] is over. The container decides how long this takes, so no thread is held in
    /// between.
    async fn signal_until(&self, id: &str, except: &[i32], signal: Signal) -> Result<bool> {
        let started = Instant::now();
        let mut next = started;
        while started.elapsed() < GRACE {
            let again = Instant::now() >= next;
            let (shared, id, except) = (self.shared.clone(), id.to_owned(), except.to_owned());
            let look = move || {
                if again {
                    shared.cgroups.signal(&id, &except, signal) == 0
                } else {
                    shared.cgroups.members(&id).iter().all(|pid| except.contains(pid))
                }
            };
            if tokio::task::spawn_blocking(look).await.map_err(Error::task("stop"))? {
                return Ok(true);
            }
            if again {
                next += Duration::from_secs(1);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(false)
    }
}
