//! The teardown of a container. Nothing here waits for a disk.

use crate::container::Container;
use crate::container::lifecycle::Event;
use crate::events::What;
use crate::failpoints::Point;
use crate::history::{Kind, Timeline};
use crate::keeper;
use crate::process::Process;
use crate::sweeper::Remains;
use crate::{Engine, Error, Result, Shared};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::Instrument as _;
use wardian_runtime::wire::Destroyed;
use wardian_sys::failpoint;

/// The time in which killed processes must be gone; if some are left (D state) the container becomes broken.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often the destroy of a container is tried at a start.
const ATTEMPTS: u32 = 3;
/// How long the output of a process whose end ends its container may go on.
const LAST_OUTPUT: Duration = Duration::from_secs(1);
const STUCK: &str = "processes do not die, it is tried again on the next destroy";

impl Engine {
    /// Destroys a container with everything in it.
    ///
    /// # Errors
    /// Unknown handle; the container is being destroyed already; or a process does not die, and then the
    /// destroy can be tried again.
    pub async fn destroy(&self, handle: &str) -> Result<()> {
        let container = self.find(handle)?;
        container.begin_teardown(Event::Destroy)?;
        self.end(container, None).await
    }

    /// Runs the teardown of a container whose destroy has begun, by a client or because its grace time, `expired`, is
    /// over.
    pub(crate) async fn end(&self, container: Arc<Container>, expired: Option<Duration>) -> Result<()> {
        let engine = self.clone();
        let task = async move {
            let timeline = Timeline::begin();
            let _served = engine.shared.sweeper.serve();
            let slow = engine.look_if_slow(Kind::Destroy, &container.id, None, container.keeper_pid());
            let result = engine.tear_down(&container, &timeline).await;
            let failed = result.as_ref().err().map(ToString::to_string);
            let operation = timeline.operation(Kind::Destroy, &container.handle, &container.id, failed);
            let what = match &result {
                Ok(()) => {
                    tracing::info!(
                        handle = container.handle,
                        id = container.id,
                        ms = operation.ms,
                        grace_s = expired.map(|grace| grace.as_secs_f64()),
                        "destroy.done"
                    );
                    What::Destroy
                }
                Err(error) => {
                    container.teardown_failed(error);
                    What::Broken { reason: error.to_string() }
                }
            };
            engine.shared.events.tell(&container.handle, &container.id, what);
            engine.shared.history.add(operation);
            drop(slow);
            result
        };
        let task = tokio::spawn(task.in_current_span());
        task.await.map_err(Error::task("destroy"))?
    }

    /// Destroys the container of a process that has ended, if that was asked for with the process.
    pub(crate) fn after_last(&self, container: &Arc<Container>, process: &Process) {
        if !process.about().remove_container {
            return;
        }
        let (engine, container, process) = (self.clone(), container.clone(), process.clone());
        tokio::spawn(async move {
            // Whoever is attached gets the rest of the output; a descendant that goes on printing is not waited for.
            drop(tokio::time::timeout(LAST_OUTPUT, process.wait()).await);
            // Refused if it is being destroyed already. What fails here is logged there, and the container is broken.
            if container.begin_teardown(Event::Destroy).is_ok() {
                drop(engine.end(container, None).await);
            }
        });
    }

    /// Destroys every container and sweeps what it leaves, before any client is served. A container whose
    /// processes do not die stays, broken.
    pub(crate) async fn destroy_all(&self) {
        let containers: Vec<Arc<Container>> = self.shared.lock().values().cloned().collect();
        let mut tasks = tokio::task::JoinSet::new();
        for container in containers {
            let engine = self.clone();
            tasks.spawn(async move {
                for attempt in 1..=ATTEMPTS {
                    // No other teardown can be under way: no client is served yet.
                    let done = match container.begin_teardown(Event::Destroy) {
                        Ok(()) => engine.tear_down(&container, &Timeline::begin()).await,
                        Err(error) => Err(error),
                    };
                    match done {
                        Ok(()) => {
                            tracing::info!(handle = container.handle, id = container.id, "start.destroyed");
                            return;
                        }
                        Err(error) => {
                            let handle = container.handle.as_str();
                            tracing::error!(handle, id = container.id, %error, attempt, "start.destroy-failed");
                            container.teardown_failed(&error);
                        }
                    }
                }
            });
        }
        tasks.join_all().await;
        let shared = self.shared.clone();
        drop(tokio::task::spawn_blocking(move || shared.sweeper.drain()).await);
    }

    /// Kills the processes, releases the root file system, and removes the record. The container's state is
    /// already Ending. Everything else is left to the sweeper.
    pub(crate) async fn tear_down(&self, container: &Arc<Container>, timeline: &Timeline) -> Result<()> {
        let id = container.id.clone();
        let handle = container.handle.as_str();
        // Operators look for these log events when a destroy is slow. The keeper unmounts by closing the last
        // reference.
        tracing::debug!(handle, id, "rootfs.unmounting");
        let mut unmount_ms = 0.0;
        let mut by_force = true;
        self.kill_frozen(container).await;
        if let Some(keeper) = container.any_keeper() {
            by_force = false;
            failpoint::reach(Point::DestroyKilling);
            let answer = tokio::time::timeout(PATIENCE, keeper.destroy()).await;
            failpoint::reach(Point::DestroyAnswered);
            match answer {
                Ok(Ok(Some(Destroyed { killed_us, unmounted_us }))) => {
                    unmount_ms = milliseconds(unmounted_us);
                    timeline.ended_as(&[("kill", milliseconds(killed_us)), ("unmount", unmount_ms)]);
                }
                // A keeper of an earlier version does not return durations.
                Ok(Ok(None)) => timeline.ended("keeper"),
                // The keeper has exited, and its container has ended with it, or is about to.
                Ok(Err(keeper::Error::Gone)) => {
                    timeline.ended("keeper");
                    by_force = true;
                }
                Ok(Err(error)) => {
                    timeline.ended("keeper");
                    return Err(Error::keeper("destroy")(error));
                }
                Err(_) => {
                    timeline.ended("kill");
                    // Either a process does not die, or the keeper is stopped (SIGSTOP).
                    by_force = true;
                }
            }
        }
        if by_force {
            let (shared, id) = (self.shared.clone(), id.clone());
            let ended = tokio::task::spawn_blocking(move || end_by_force(&shared, &id)).await;
            timeline.ended("force");
            if !ended.map_err(Error::task("destroy"))? {
                return Err(Error::GivenUp { during: "destroy", why: STUCK });
            }
        }
        tracing::debug!(handle, id, ms = unmount_ms, "rootfs.unmounted");
        container.end_processes();
        container.tell_ends(&self.shared.events);
        let shared = self.shared.clone();
        let handle = container.handle.clone();
        if container.is_outside() {
            // Only the record says how, so it comes first. If it fails the destroy can be tried again.
            let (shared, theirs) = (shared.clone(), container.clone());
            let left = tokio::task::spawn_blocking(move || shared.disconnect(&theirs)).await;
            timeline.ended("disconnect");
            left.map_err(Error::task("destroy"))??;
        }
        // The commit point: without its record the container is gone, even if this server is killed now.
        shared.records.forget(&id).map_err(Error::system("forget"))?;
        failpoint::reach(Point::DestroyForgotten);
        let keeper = container.any_keeper();
        container.happens(Event::Ended)?;
        {
            let mut containers = shared.lock();
            if containers.get(&handle).is_some_and(|c| c.id == id) {
                containers.remove(&handle);
            }
        }
        Self::defuse(container);
        timeline.ended("forget");
        shared.store.release_rootfs(&id, Some(&handle));
        timeline.ended("release");
        if let Some(state) = container.leave_network() {
            shared.networks.release(&state);
            timeline.ended("network");
        }
        // Left to the sweeper, after the reply: directories, cgroups, remains of peas.
        failpoint::reach(Point::DestroySweeping);
        shared.sweeper.add(Remains::Container { id, keeper });
        Ok(())
    }
}

#[allow(clippy::cast_precision_loss)]
pub fn milliseconds(us: u64) -> f64 {
    us as f64 / 1e3
}

/// Ends a container whose keeper does not answer, and the keeper. Returns false if a process does not die.
pub fn end_by_force(shared: &Shared, id: &str) -> bool {
    let started = Instant::now();
    let kill = || {
        // The keeper is killed first: pid 1 dies with it, and the other processes with pid 1.
        let keeper = shared.cgroups.kill_keeper(id);
        shared.cgroups.kill(id) && keeper
    };
    while !kill() {
        if started.elapsed() > PATIENCE {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}
