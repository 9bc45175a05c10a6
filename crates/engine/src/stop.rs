//! Stops of containers: their processes get TERM or another signal, then KILL; the container stays.

use crate::container::Container;
use crate::container::lifecycle::Event;
use crate::container::record::Record;
use crate::events::What;
use crate::failpoints::Point;
use crate::{Engine, Error, Result};
use rustix::process::Signal;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};
use wardian_sys::{failpoint, signal};

/// The time between TERM and KILL if a stop does not say it, and for killed processes to be gone: that of Garden's server.
const GRACE: Duration = Duration::from_secs(10);

/// How long a stop waits for the exit statuses of processes that are gone.
const HEARD: Duration = Duration::from_secs(1);

/// The longest time between the first signal and KILL.
pub const MOST_GRACE: Duration = Duration::from_secs(24 * 3600);

/// How a container is to be stopped.
#[derive(Debug, Clone, Copy, Default)]
pub struct Stop {
    /// With KILL at once.
    pub kill: bool,
    /// The number of the first signal; `None`: the container's own.
    pub signal: Option<i32>,
    /// How long the processes have after it; `None`: ten seconds.
    pub grace: Option<Duration>,
}

impl Engine {
    /// Ends the container's processes (a signal, wait, KILL; with `kill`: KILL at once); the container stays. A paused
    /// one goes on once its processes have got the signal.
    ///
    /// # Errors
    /// Unknown or broken container, no such signal, or more than [`MOST_GRACE`].
    pub async fn stop(&self, handle: &str, stop: Stop) -> Result<()> {
        let grace = stop.grace.unwrap_or(GRACE);
        if grace > MOST_GRACE {
            return Err(Error::Invalid(format!("stop: at most {} seconds", MOST_GRACE.as_secs())));
        }
        let container = self.find(handle)?;
        container.keeper()?;
        let except = container.untouchable();
        let first = stop.signal.unwrap_or_else(|| container.record().stop_signal());
        let first = signal::from_number(first).ok_or_else(|| Error::Invalid(format!("no signal {first}")))?;
        if !stop.kill && !self.signal_until(&container, &except, first, grace).await? {
            tracing::debug!(handle, id = container.id, "stop.kill");
        }
        failpoint::reach(Point::StopTermed);
        self.signal_until(&container, &except, Signal::KILL, GRACE).await?;
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

    /// Signals all processes of the container but `except`, until none is left. TERM and KILL are repeated each second;
    /// of any other signal, which may mean something else the second time, each process gets one. Returns false once
    /// the time is over. The container decides how long this takes, so no thread is held in between.
    async fn signal_until(
        &self,
        container: &Arc<Container>,
        except: &[i32],
        signal: Signal,
        grace: Duration,
    ) -> Result<bool> {
        let (started, repeated) = (Instant::now(), [Signal::TERM, Signal::KILL].contains(&signal));
        let (mut next, mut told) = (started, BTreeSet::new());
        loop {
            let again = Instant::now() >= next;
            let (shared, id, except) = (self.shared.clone(), container.id.clone(), except.to_owned());
            let look = move || {
                let left: Vec<i32> =
                    shared.cgroups.members(&id).into_iter().filter(|pid| !except.contains(pid)).collect();
                if again {
                    let except: Vec<i32> = except.iter().chain(&told).copied().collect();
                    shared.cgroups.signal(&id, &except, signal);
                    if !repeated {
                        told.extend(&left);
                    }
                }
                (left.is_empty(), told)
            };
            let done;
            (done, told) = tokio::task::spawn_blocking(look).await.map_err(Error::task("stop"))?;
            if again {
                // A frozen process gets the signal when it goes on.
                self.thaw(container).await?;
                next += Duration::from_secs(1);
            }
            if done || started.elapsed() >= grace {
                return Ok(done);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Signals one process of a container. A paused one gets the signal when it goes on; KILL ends it at once, except
    /// on hosts with cgroup v1 alone.
    ///
    /// # Errors
    /// Unknown container or process, no such signal, or the process has ended.
    pub async fn signal(&self, handle: &str, process: &str, number: i32) -> Result<()> {
        self.find(handle)?.keeper()?;
        if signal::from_number(number).is_none() {
            return Err(Error::Invalid(format!("no signal {number}")));
        }
        let process = self.attach(handle, process).await?;
        match process.status() {
            Some(status) => Err(Error::Ended { process: process.id().to_owned(), status }),
            None => process.signal(number).await,
        }
    }
}
