//! Tells how much the living root file systems have written. Where their file system counts it, callers get its figures
//! of this moment. Otherwise they are measured in the background, one at a time, and callers get the last known value
//! without waiting.
//!
//! That walk is over the store's own directory, from the host's side: it follows no symlink, enters no other file
//! system (nothing is mounted there), and works at most a fifth of the time, so that a tree of a million files is no
//! burden.

use parking_lot::{Condvar, Mutex};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::upper::Upper;
use crate::threads::join;

/// How old a measurement may be before it is repeated …
const OLD: Duration = Duration::from_secs(5);
/// … unless taking it lasted more than 1/N of its age.
const SHARE: u32 = 10;
/// How many entries are walked between two rests: about a millisecond's work if they are cached.
const STRIDE: u32 = 256;
/// A rest is this many times as long as the work before it …
const REST: u32 = 4;
/// … and no longer than this.
const REST_MOST: Duration = Duration::from_millis(200);

/// The space of a root file system, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Measured {
    /// The bytes on the disk that were written to it; 0 until they have been measured for the first time.
    pub exclusive_bytes: u64,
    /// The inodes that were written to it; `None`: its file system does not count them.
    pub exclusive_inodes: Option<u64>,
    /// The size of the image's layers below it, as recorded.
    pub image_bytes: u64,
}

#[derive(Debug, Default)]
struct Known {
    /// The name of its part.
    dir: String,
    exclusive_bytes: u64,
    image_bytes: u64,
    /// When it was measured, and how long that took.
    measured: Option<(Instant, Duration)>,
    queued: bool,
}

impl Known {
    fn is_old(&self) -> bool {
        self.measured.is_none_or(|(when, took)| when.elapsed() >= OLD.max(took * SHARE))
    }
}

#[derive(Debug, Default)]
struct State {
    known: HashMap<String, Known>,
    queue: VecDeque<String>,
}

#[derive(Debug)]
struct Shared {
    upper: Arc<dyn Upper>,
    state: Mutex<State>,
    changed: Condvar,
    stop: AtomicBool,
}

/// The thread that measures.
#[derive(Debug)]
pub(crate) struct Measurer {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Measurer {
    pub(crate) fn new(upper: Arc<dyn Upper>) -> Self {
        let shared =
            Shared { upper, state: Mutex::default(), changed: Condvar::new(), stop: AtomicBool::new(false) };
        Self { shared: Arc::new(shared), thread: Mutex::default() }
    }

    pub(crate) fn start(&self) -> std::io::Result<()> {
        let shared = Arc::clone(&self.shared);
        let thread = std::thread::Builder::new().name("measurer".into()).spawn(move || shared.run())?;
        *self.thread.lock() = Some(thread);
        Ok(())
    }

    /// Stops the thread; false if it still runs at `until`.
    pub(crate) fn stop(&self, until: Instant) -> bool {
        {
            let _state = self.shared.state.lock();
            self.shared.stop.store(true, Ordering::Release);
            self.shared.changed.notify_all();
        }
        let thread = self.thread.lock().take();
        thread.is_none_or(|thread| join(thread, until))
    }

    /// Adds a root file system, with the name of its part and the size of its layers.
    pub(crate) fn add(&self, id: &str, dir: &str, image_bytes: u64) {
        let known = Known { dir: dir.to_owned(), image_bytes, ..Known::default() };
        self.shared.state.lock().known.insert(id.to_owned(), known);
    }

    #[cfg(test)]
    pub(crate) fn known(&self) -> usize {
        self.shared.state.lock().known.len()
    }

    pub(crate) fn forget(&self, id: &str) {
        self.shared.state.lock().known.remove(id);
    }

    /// Returns what is counted or known now; an old value is queued for another measurement.
    pub(crate) fn get(&self, id: &str) -> Measured {
        let part = self.shared.state.lock().known.get(id).map(|known| (known.dir.clone(), known.image_bytes));
        if let Some((dir, image_bytes)) = part
            && let Ok(Some(written)) = self.shared.upper.written(&dir)
        {
            return Measured {
                exclusive_bytes: written.bytes,
                exclusive_inodes: written.inodes,
                image_bytes,
            };
        }
        let mut state = self.shared.state.lock();
        let state = &mut *state;
        let Some(known) = state.known.get_mut(id) else { return Measured::default() };
        if !known.queued && known.is_old() {
            known.queued = true;
            state.queue.push_back(id.to_owned());
            self.shared.changed.notify_all();
        }
        Measured {
            exclusive_bytes: known.exclusive_bytes,
            exclusive_inodes: None,
            image_bytes: known.image_bytes,
        }
    }
}

impl Shared {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    fn run(&self) {
        // The thread runs at low priority.
        let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), 10);
        let mut state = self.state.lock();
        while !self.stopped() {
            let Some(id) = state.queue.pop_front() else {
                self.changed.wait(&mut state);
                continue;
            };
            // It may have been released meanwhile.
            let Some(dir) = state.known.get(&id).map(|known| known.dir.clone()) else { continue };
            drop(state);
            let started = Instant::now();
            let pace = Pace::new(self, &id);
            let found = self.upper.measure(&dir, &|| pace.step());
            state = self.state.lock();
            if let Some(known) = state.known.get_mut(&id) {
                // The last figure stays where the walk has not been completed.
                if let Ok(Some(bytes)) = found {
                    known.exclusive_bytes = bytes;
                }
                known.measured = Some((Instant::now(), started.elapsed()));
                known.queued = false;
            }
        }
    }
}

/// Paces the walk with rests between strides.
struct Pace<'a> {
    shared: &'a Shared,
    id: &'a str,
    steps: std::cell::Cell<u32>,
    last: std::cell::Cell<Instant>,
}

impl<'a> Pace<'a> {
    fn new(shared: &'a Shared, id: &'a str) -> Self {
        Self { shared, id, steps: std::cell::Cell::new(0), last: std::cell::Cell::new(Instant::now()) }
    }

    /// Called for each directory entry; returns true if the measurement is cancelled.
    fn step(&self) -> bool {
        let steps = self.steps.get().wrapping_add(1);
        self.steps.set(steps);
        if !steps.is_multiple_of(STRIDE) {
            return false;
        }
        let rest = (self.last.get().elapsed() * REST).min(REST_MOST);
        let wanted = |state: &State| state.known.contains_key(self.id) && !self.shared.stopped();
        let waiting = |state: &mut State| wanted(state);
        // A new request wakes this thread too, and only causes another check of the condition.
        let mut state = self.shared.state.lock();
        self.shared.changed.wait_while_for(&mut state, waiting, rest);
        self.last.set(Instant::now());
        !wanted(&state)
    }
}
