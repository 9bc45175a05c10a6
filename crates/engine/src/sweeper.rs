//! The sweeper: a thread that removes what containers and peas leave behind outside the store (cgroups,
//! directories in `/run`, keepers). It works while no create or destroy is under way, or after half a second
//! anyway.
//!
//! Removing the nine cgroups of a container costs the kernel as much as killing its processes. Of a hundred
//! concurrent destroys the last would otherwise wait for the sweeping of all the others.

use crate::Shared;
use crate::keeper::Keeper;
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use wardian_runtime::cgroup::Held;

/// How long no create or destroy must have been under way before the sweeper works.
const QUIET: Duration = Duration::from_millis(10);
/// Entries of this age are swept even while requests are served.
const PATIENCE: Duration = Duration::from_millis(500);
/// The poll interval for quiet.
const LOOK: Duration = Duration::from_millis(5);
/// The most tries to remove a cgroup: its last member must be reaped by its parent first.
const TRIES: u32 = 50;
const TRIES_AT_THE_END: u32 = 5;
/// The time that a keeper takes to exit.
const LEAVING: Duration = Duration::from_millis(5);
/// Delay before a memory cgroup's statistics are read: the kernel's figures may be two seconds old.
const FIGURES: Duration = Duration::from_millis(2500);
/// The poll interval for the writeback of a kept cgroup's dirty pages.
const FLUSHER: Duration = Duration::from_secs(5);
/// The longest time that a cgroup is kept for its dirty pages: they are written back after 30 s, by a flusher
/// that wakes every 5 s (`dirty_expire_centisecs`, `dirty_writeback_centisecs`).
const WRITTEN: Duration = Duration::from_secs(60);
/// The most memory cgroups that are kept: a host has at most 65,535 of them.
const MOST_KEPT: usize = 4096;

/// An entry of the queue: what is to be removed.
#[derive(Debug)]
pub enum Remains {
    /// What is left of a container whose record is removed; its keeper exits when its connection is shut
    /// down.
    Container { id: String, keeper: Option<Keeper> },
    /// A cgroup that is or soon will be empty, and the number of tries so far.
    Cgroup { id: String, tries: u32 },
    /// A memory cgroup that is kept until its page cache can be dropped, and since when: see
    /// [`wardian_runtime::cgroup::Held`].
    Cache { id: String, since: Instant },
}

#[derive(Debug, Default)]
struct State {
    /// The entries, each with the time from which on it is due.
    queue: VecDeque<(Instant, Remains)>,
    closed: bool,
    /// When a create or destroy last ended.
    served: Option<Instant>,
    /// The number of containers that are not swept yet.
    containers: usize,
    /// The number of memory cgroups that are kept for their page cache.
    kept: usize,
}

/// The sweeper thread and its queue.
#[derive(Debug, Default)]
pub struct Sweeper {
    state: Mutex<State>,
    changed: Condvar,
    /// The number of creates and destroys under way.
    served: AtomicUsize,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// A create or destroy, which delays the sweeper until this is dropped.
#[derive(Debug)]
pub struct Served(Arc<Sweeper>);

impl Drop for Served {
    fn drop(&mut self) {
        self.0.state.lock().served = Some(Instant::now());
        self.0.served.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Sweeper {
    /// Starts the thread; it ends with [`Sweeper::close`].
    pub fn start(self: &Arc<Self>, shared: &Arc<Shared>) -> std::io::Result<()> {
        let (sweeper, shared) = (self.clone(), Arc::downgrade(shared));
        let thread = std::thread::Builder::new().name("sweeper".into());
        let thread = thread.spawn(move || sweeper.run(&shared))?;
        *self.thread.lock() = Some(thread);
        Ok(())
    }

    /// Delays the sweeper until the result is dropped.
    pub fn serve(self: &Arc<Self>) -> Served {
        self.served.fetch_add(1, Ordering::AcqRel);
        Served(self.clone())
    }

    /// Adds an entry to the queue.
    pub fn add(&self, remains: Remains) {
        if matches!(remains, Remains::Container { .. }) {
            self.state.lock().containers += 1;
        }
        self.add_due(Duration::ZERO, remains);
    }

    /// Waits until all containers are swept; cgroups may still be queued.
    pub fn drain(&self) {
        let mut state = self.state.lock();
        self.changed.wait_while(&mut state, |state| state.containers > 0 && !state.closed);
    }

    fn add_due(&self, wait: Duration, remains: Remains) {
        self.state.lock().queue.push_back((Instant::now() + wait, remains));
        self.changed.notify_all();
    }

    /// Sweeps the rest of the queue without waiting for quiet, and ends the thread.
    pub fn close(&self) {
        self.state.lock().closed = true;
        self.changed.notify_all();
        let thread = self.thread.lock().take();
        if let Some(thread) = thread.filter(|thread| thread.thread().id() != std::thread::current().id()) {
            drop(thread.join());
        }
    }

    fn run(&self, shared: &Weak<Shared>) {
        while let Some(remains) = self.next() {
            let Some(shared) = shared.upgrade() else { return };
            match remains {
                Remains::Container { id, keeper: Some(keeper) } => {
                    keeper.hang_up();
                    self.add_due(LEAVING, Remains::Container { id, keeper: None });
                }
                Remains::Container { id, keeper: None } => {
                    sweep(&shared, &id);
                    self.state.lock().containers -= 1;
                    self.changed.notify_all();
                }
                Remains::Cache { id, since } => {
                    if !self.state.lock().closed {
                        match shared.cgroups.held(&id) {
                            Held::Dirty | Held::Much if since.elapsed() < WRITTEN => {
                                self.add_due(FLUSHER, Remains::Cache { id, since });
                                continue;
                            }
                            Held::Clean => shared.cgroups.drop_cache(&id),
                            _ => {}
                        }
                    }
                    self.state.lock().kept -= 1;
                    if !shared.cgroups.remove(&id) {
                        tracing::warn!(id, "cgroup.left");
                    }
                }
                Remains::Cgroup { id, tries } => {
                    if shared.cgroups.remove_but_memory(&id) && shared.cgroups.members(&id).is_empty() {
                        if shared.cgroups.charged(&id) && self.keep() {
                            shared.cgroups.close_memory(&id);
                            let since = Instant::now();
                            self.add_due(FIGURES, Remains::Cache { id, since });
                            continue;
                        }
                        if shared.cgroups.remove(&id) {
                            continue;
                        }
                    }
                    // After the sweeper is closed, the shutdown tries once more to remove the cgroups that
                    // are left.
                    let most = if self.state.lock().closed { TRIES_AT_THE_END } else { TRIES };
                    if tries >= most {
                        tracing::warn!(id, "cgroup.left");
                        continue;
                    }
                    let wait = Duration::from_millis(2 << (tries / 5));
                    self.add_due(wait, Remains::Cgroup { id, tries: tries + 1 });
                }
            }
        }
    }

    /// Reserves room for one more kept memory cgroup. Returns false if there is none.
    fn keep(&self) -> bool {
        let mut state = self.state.lock();
        let keep = !state.closed && state.kept < MOST_KEPT;
        state.kept += usize::from(keep);
        keep
    }

    /// Waits for the next entry that is due and may be swept; `None` once the closed queue is empty.
    fn next(&self) -> Option<Remains> {
        let mut state = self.state.lock();
        loop {
            let now = Instant::now();
            let due = state.queue.iter().position(|(due, remains)| {
                // A closed sweeper does not wait for writeback.
                *due <= now || state.closed && matches!(remains, Remains::Cache { .. })
            });
            let Some(at) = due else {
                if state.closed && state.queue.is_empty() {
                    return None;
                }
                let wait = state.queue.iter().map(|(due, _)| *due - now).min().unwrap_or(Duration::MAX);
                self.changed.wait_for(&mut state, wait.min(Duration::from_secs(3600)));
                continue;
            };
            let quiet = self.served.load(Ordering::Acquire) == 0
                && state.served.is_none_or(|then| now.duration_since(then) >= QUIET);
            if quiet || state.closed || now.duration_since(state.queue[at].0) >= PATIENCE {
                return state.queue.remove(at).map(|(_, remains)| remains);
            }
            drop(state);
            std::thread::sleep(LOOK);
            state = self.state.lock();
        }
    }
}

/// Sweeps what a container without a record has left outside the store.
pub fn sweep(shared: &Shared, id: &str) {
    for pea in shared.records.peas(id) {
        crate::pea::clean_pea(shared, id, &pea);
    }
    if !shared.cgroups.kill(id) {
        tracing::warn!(id, "destroy.processes-left");
    }
    shared.records.clear(id);
    shared.remove_cgroup_later(id.to_owned());
    // Last: it may wait for the disk.
    shared.output_files.remove(id);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cgroup(id: &str) -> Remains {
        Remains::Cgroup { id: id.into(), tries: 0 }
    }

    fn id(remains: Option<Remains>) -> String {
        match remains {
            Some(Remains::Cgroup { id, .. }) => id,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn nothing_is_swept_while_somebody_is_served_but_not_for_ever() {
        let sweeper = Arc::new(Sweeper::default());
        let served = sweeper.serve();
        let begin = Instant::now();
        sweeper.add(cgroup("a"));
        sweeper.add(cgroup("b"));
        assert_eq!(id(sweeper.next()), "a");
        assert!(begin.elapsed() >= PATIENCE);
        drop(served);
        assert_eq!(id(sweeper.next()), "b");
    }

    #[test]
    fn what_is_left_is_swept_at_the_end() {
        let sweeper = Arc::new(Sweeper::default());
        let _served = sweeper.serve();
        sweeper.add(cgroup("a"));
        sweeper.state.lock().closed = true;
        assert_eq!(id(sweeper.next()), "a");
        assert!(sweeper.next().is_none());
    }
}
