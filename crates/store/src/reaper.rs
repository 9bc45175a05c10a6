//! The reaper: deletes, at its own pace and in one thread for the whole store, what nobody needs any more.

use std::collections::VecDeque;
use std::ffi::CString;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::layout::Layout;
use crate::remove;

/// How long to wait before trying again what could not be deleted: the first time, and at most.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MOST: Duration = Duration::from_secs(60);

/// Which of the store's directories a piece of trash lies in. It is deleted where it lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Rootfs,
    Staging,
    Suspect,
    Trash,
}

#[derive(Debug)]
struct Item {
    place: Place,
    name: CString,
    /// How often it was tried.
    tries: u32,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Item>,
    later: Vec<(Instant, Item)>,
    busy: bool,
}

impl State {
    fn len(&self) -> usize {
        self.queue.len() + self.later.len() + usize::from(self.busy)
    }

    /// The next thing to delete, or how long until there may be one.
    fn next(&mut self, now: Instant) -> Result<Item, Option<Duration>> {
        if let Some(item) = self.queue.pop_front() {
            return Ok(item);
        }
        if let Some(index) = self.later.iter().position(|(when, _)| *when <= now) {
            return Ok(self.later.swap_remove(index).1);
        }
        Err(self.later.iter().map(|(when, _)| when.saturating_duration_since(now)).min())
    }
}

#[derive(Debug)]
struct Shared {
    layout: Arc<Layout>,
    state: Mutex<State>,
    changed: Condvar,
    stop: AtomicBool,
}

/// The reaper's queue and thread.
#[derive(Debug)]
pub(crate) struct Reaper {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Reaper {
    pub(crate) fn start(layout: Arc<Layout>) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            layout,
            state: Mutex::default(),
            changed: Condvar::new(),
            stop: AtomicBool::new(false),
        });
        let thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("reaper".into()).spawn(move || thread.run())?;
        Ok(Self { shared, thread: Mutex::new(Some(thread)) })
    }

    /// Tells the reaper what is trash. Does nothing itself.
    pub(crate) fn add(&self, place: Place, name: &str) {
        // A name with a NUL is no file's name.
        let Ok(name) = CString::new(name) else { return };
        self.shared.lock().queue.push_back(Item { place, name, tries: 0 });
        self.shared.changed.notify_all();
    }

    pub(crate) fn len(&self) -> usize {
        self.shared.lock().len()
    }

    pub(crate) fn drain(&self, timeout: Duration) -> bool {
        let state = self.shared.lock();
        let (state, _) = self
            .shared
            .changed
            .wait_timeout_while(state, timeout, |state| {
                state.len() > 0 && !self.shared.stop.load(Ordering::Acquire)
            })
            .unwrap_or_else(PoisonError::into_inner);
        state.len() == 0
    }

    /// Stops between two entries of a directory. What is left, the next server finds.
    pub(crate) fn stop(&self) {
        {
            let _state = self.shared.lock();
            self.shared.stop.store(true, Ordering::Release);
            self.shared.changed.notify_all();
        }
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut state = self.lock();
        while !self.stop.load(Ordering::Acquire) {
            match state.next(Instant::now()) {
                Ok(item) => {
                    state.busy = true;
                    drop(state);
                    let again = self.delete(item);
                    state = self.lock();
                    state.busy = false;
                    state.later.extend(again);
                    self.changed.notify_all();
                }
                Err(None) => {
                    state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
                Err(Some(wait)) => {
                    state = self.changed.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        }
    }

    /// Deletes one item; gives it back, with the time of the next try, if some of it is still there.
    fn delete(&self, mut item: Item) -> Option<(Instant, Item)> {
        let dir = match item.place {
            Place::Rootfs => &self.layout.rootfs,
            Place::Staging => &self.layout.staging,
            Place::Suspect => &self.layout.suspect,
            Place::Trash => &self.layout.trash,
        };
        let stop = || self.stop.load(Ordering::Acquire);
        match remove::tree(dir, &item.name, &stop) {
            Ok(()) => None,
            Err(remove::Error::Stopped) => Some((Instant::now(), item)),
            Err(error) => {
                if item.tries == 0 {
                    tracing::warn!(name = ?item.name, place = ?item.place, %error, cause = ?cause(&error),
                        "trash cannot be deleted yet, will try again");
                }
                let wait = RETRY_FIRST.saturating_mul(1 << item.tries.min(6)).min(RETRY_MOST);
                item.tries = item.tries.saturating_add(1);
                Some((Instant::now() + wait, item))
            }
        }
    }
}

fn cause(error: &remove::Error) -> Option<String> {
    std::error::Error::source(error).map(ToString::to_string)
}
