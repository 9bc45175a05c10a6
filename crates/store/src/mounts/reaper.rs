//! The reaper: deletes trash at its own pace, in one thread for the whole store.
//!
//! **Order.** Data younger than the writeback limit (`vm.dirty_expire_centisecs`, 30 s) has mostly not been written
//! yet, and costs no I/O at all if it is deleted before. So young root file systems go first, those whose data
//! expires soonest before the others. All other trash follows in order of arrival.
//!
//! **When.** When a hundred root file systems are released at once, deleting the first would take processor time from
//! the release of the last. So the reaper waits until no more arrive.
//!
//! **Pace.** Young data is deleted from memory only, at full speed. For other data the reaper measures how long tasks
//! stall on I/O (PSI, Documentation/accounting/psi.rst) and rests in proportion, unless the file system is nearly
//! full.

use parking_lot::{Condvar, Mutex};
use std::cell::Cell;
use std::collections::VecDeque;
use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use wardian_sys::pressure;

use super::upper::Upper;
use crate::disk::layout::Layout;
use crate::disk::record::now_ms;
use crate::disk::remove;
use crate::layers::layer;
use crate::threads::join;

/// How long no trash must have arrived before the reaper begins, and how long it waits for that at most.
const QUIET: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_millis(500);
/// The delay before a failed deletion is tried again: the first one, and the longest.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MOST: Duration = Duration::from_secs(60);
/// How many entries are deleted between two readings of the pressure: some milliseconds' work.
const STRIDE: u32 = 64;
/// The longest rest between two strides.
const REST_MOST: Duration = Duration::from_millis(200);
/// If less than this share (1/N) of the blocks is free, freeing space matters more than I/O latency.
const NEARLY_FULL: u64 = 10;
/// The kernel's default of `vm.dirty_expire_centisecs`, in milliseconds.
const EXPIRE_DEFAULT: u64 = 30_000;

/// The directory of the store in which an item lies. It is deleted in place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Rootfs,
    Staging,
    Trash,
}

/// A piece of trash.
#[derive(Debug, Clone)]
pub(crate) struct Item {
    pub(crate) place: Place,
    pub(crate) name: CString,
    /// When a root file system was made, in milliseconds since 1970.
    pub(crate) made_ms: Option<u64>,
    /// The handle of its container, for the log.
    pub(crate) handle: Option<String>,
    /// The last reference to an honest root file system. Dropping it waits for the disk.
    pub(crate) keep: Option<Arc<OwnedFd>>,
    /// The number of failed tries.
    tries: u32,
}

impl Item {
    /// Returns `None` if the name is no valid file name.
    pub(crate) fn new(place: Place, name: &str) -> Option<Self> {
        let name = CString::new(name).ok()?;
        Some(Self { place, name, made_ms: None, handle: None, keep: None, tries: 0 })
    }

    /// Returns how long it takes until its oldest data is written back, in milliseconds; `None` if it probably has
    /// been.
    fn expires_in(&self, now_ms: u64, expire_ms: u64) -> Option<u64> {
        self.made_ms
            .and_then(|made| made.saturating_add(expire_ms).checked_sub(now_ms))
            .filter(|left| *left > 0)
    }
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Item>,
    later: Vec<(Instant, Item)>,
    busy: Option<Item>,
    /// When the first and the last item arrived since the queue was empty.
    came: Option<(Instant, Instant)>,
}

impl State {
    fn push(&mut self, item: Item) {
        let now = Instant::now();
        self.came = Some((self.came.map_or(now, |(first, _)| first), now));
        self.queue.push_back(item);
    }

    /// Returns how long to wait for more items. The first arrival is reset only when the queue is empty, so under a
    /// steady flow there is only one such wait.
    fn settling(&mut self, now: Instant) -> Option<Duration> {
        if self.queue.is_empty() {
            self.came = None;
        }
        let (first, last) = self.came?;
        let until = (last + QUIET).min(first + PATIENCE);
        until.checked_duration_since(now).filter(|left| !left.is_zero())
    }

    fn len(&self) -> usize {
        self.queue.len() + self.later.len() + usize::from(self.busy.is_some())
    }

    fn knows(&self, item: &Item) -> bool {
        let same = |other: &Item| other.place == item.place && other.name == item.name;
        self.queue.iter().chain(self.later.iter().map(|(_, item)| item)).chain(&self.busy).any(same)
    }

    /// Returns the next item to delete and whether it is young, or the time until a retry is due, if there is one.
    fn next(&mut self, now: Instant, now_ms: u64, expire_ms: u64) -> Result<(Item, bool), Option<Duration>> {
        let young = self.queue.iter().enumerate();
        let young =
            young.filter_map(|(index, item)| Some((item.expires_in(now_ms, expire_ms)?, index))).min();
        if let Some((_, index)) = young
            && let Some(item) = self.queue.remove(index)
        {
            return Ok((item, true));
        }
        if let Some(item) = self.queue.pop_front() {
            return Ok((item, false));
        }
        if let Some(index) = self.later.iter().position(|(when, _)| *when <= now) {
            return Ok((self.later.swap_remove(index).1, false));
        }
        Err(self.later.iter().map(|(when, _)| when.saturating_duration_since(now)).min())
    }
}

#[derive(Debug)]
struct Shared {
    layout: Arc<Layout>,
    upper: Arc<dyn Upper>,
    state: Mutex<State>,
    changed: Condvar,
    stop: AtomicBool,
    expire_ms: u64,
}

/// The reaper's queue and thread.
#[derive(Debug)]
pub(crate) struct Reaper {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Reaper {
    /// Creates the queue; nothing is deleted before [`Reaper::start`].
    pub(crate) fn new(layout: Arc<Layout>, upper: Arc<dyn Upper>) -> Self {
        let expire = std::fs::read_to_string("/proc/sys/vm/dirty_expire_centisecs").ok();
        let expire_ms = expire.and_then(|text| text.trim().parse::<u64>().ok()).map(|centi| centi * 10);
        let shared = Arc::new(Shared {
            layout,
            upper,
            state: Mutex::default(),
            changed: Condvar::new(),
            stop: AtomicBool::new(false),
            expire_ms: expire_ms.unwrap_or(EXPIRE_DEFAULT),
        });
        Self { shared, thread: Mutex::new(None) }
    }

    pub(crate) fn start(&self) -> std::io::Result<()> {
        let thread = Arc::clone(&self.shared);
        let thread = std::thread::Builder::new().name("reaper".into()).spawn(move || thread.run())?;
        *self.thread.lock() = Some(thread);
        Ok(())
    }

    /// Queues an item. The deleting is left to the thread.
    pub(crate) fn add(&self, item: Item) {
        self.shared.state.lock().push(item);
        self.shared.changed.notify_all();
    }

    /// Queues an item, unless it is known already.
    pub(crate) fn add_found(&self, item: Item) {
        let mut state = self.shared.state.lock();
        if !state.knows(&item) {
            state.push(item);
            self.shared.changed.notify_all();
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.shared.state.lock().len()
    }

    /// Waits until nothing is left to delete; false on timeout. Layers that a root file system still uses do not
    /// count.
    pub(crate) fn drain(&self, timeout: Duration) -> bool {
        let mut state = self.shared.state.lock();
        let open = |state: &State| {
            let waiting = |item: &Item| item.tries > 0 || item.place != Place::Trash;
            state.busy.is_some()
                || !state.queue.is_empty()
                || state.later.iter().any(|(_, item)| waiting(item))
        };
        let waits = |state: &mut State| open(state) && !self.shared.stopped();
        self.shared.changed.wait_while_for(&mut state, waits, timeout);
        !open(&state)
    }

    /// Whether only items in delay are left, at least one of which has failed.
    pub(crate) fn is_stuck(&self) -> bool {
        let state = self.shared.state.lock();
        state.queue.is_empty() && state.busy.is_none() && state.later.iter().any(|(_, item)| item.tries > 0)
    }

    /// Stops the thread between two entries of a directory; false if that takes longer than `until`: on a disk that
    /// discards, one entry can take a minute. The next server finds what is left.
    pub(crate) fn stop(&self, until: Instant) -> bool {
        {
            let _state = self.shared.state.lock();
            self.shared.stop.store(true, Ordering::Release);
            self.shared.changed.notify_all();
        }
        let thread = self.thread.lock().take();
        thread.is_none_or(|thread| join(thread, until))
    }
}

/// The outcome of a try to delete an item.
enum End {
    Deleted,
    /// A root file system still uses the layer.
    Used,
    Stopped,
    Failed,
}

impl Shared {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    fn run(&self) {
        // The thread runs at low priority, behind requests.
        let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), 10);
        let mut state = self.state.lock();
        while !self.stopped() {
            if let Some(wait) = state.settling(Instant::now()) {
                self.changed.wait_for(&mut state, wait);
                continue;
            }
            match state.next(Instant::now(), now_ms(), self.expire_ms) {
                Ok((mut item, young)) => {
                    let keep = item.keep.take();
                    state.busy = Some(item.clone());
                    drop(state);
                    drop(keep);
                    let end = self.delete(&item, young);
                    state = self.state.lock();
                    state.busy = None;
                    state.later.extend(again(item, &end));
                    self.changed.notify_all();
                }
                Err(None) => {
                    self.changed.wait(&mut state);
                }
                Err(Some(wait)) => {
                    self.changed.wait_for(&mut state, wait);
                }
            }
        }
    }

    fn delete(&self, item: &Item, young: bool) -> End {
        let started = Instant::now();
        let name = item.name.to_string_lossy();
        if item.place == Place::Trash
            && let Some(instance) = layer::instance_of(&name)
        {
            // The layer was moved to the trash before the records are read here, see `crate::disk::record`.
            match self.layout.records.used_layers() {
                Ok(used) if used.iter().any(|layer| layer.instance == instance) => return End::Used,
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(%error, "reaper.records-unreadable");
                    return End::Used;
                }
            }
        }
        let handle = item.handle.as_deref();
        if handle.is_some() {
            tracing::debug!(handle, dir = %name, young, "rootfs.removing");
        }
        let pace = Pace::new(self, young);
        let stop = || pace.step();
        let removed = match item.place {
            Place::Rootfs => self.upper.remove(&item.name, &stop),
            Place::Staging => remove::tree(&self.layout.staging, &item.name, &stop),
            Place::Trash => remove::tree(&self.layout.trash, &item.name, &stop),
        };
        match removed {
            Ok(()) => {
                let ms = started.elapsed().as_secs_f64() * 1e3;
                if handle.is_some() {
                    tracing::debug!(handle, dir = %name, ms, rested_ms = pace.rested_ms(), "rootfs.removed");
                } else {
                    tracing::debug!(dir = %name, place = ?item.place, ms, "trash.removed");
                }
                End::Deleted
            }
            Err(remove::Error::Stopped) => End::Stopped,
            Err(error) => {
                if item.tries == 0 {
                    tracing::warn!(name = ?item.name, place = ?item.place, %error, cause = ?cause(&error),
                        "trash cannot be deleted yet, will try again");
                }
                End::Failed
            }
        }
    }

    fn nearly_full(&self) -> bool {
        nearly_full(&self.layout)
    }
}

/// Whether the file system under the store is nearly full.
pub(crate) fn nearly_full(layout: &Layout) -> bool {
    rustix::fs::fstatvfs(&layout.root).is_ok_and(|fs| fs.f_bavail < fs.f_blocks / NEARLY_FULL)
}

/// Returns when to try an item again; `None` if it was deleted.
fn again(mut item: Item, end: &End) -> Option<(Instant, Item)> {
    let wait = match end {
        End::Deleted => return None,
        End::Stopped => Duration::ZERO,
        End::Used => RETRY_FIRST,
        End::Failed => {
            let wait = RETRY_FIRST.saturating_mul(1 << item.tries.min(6)).min(RETRY_MOST);
            item.tries = item.tries.saturating_add(1);
            wait
        }
    };
    Some((Instant::now() + wait, item))
}

fn cause(error: &remove::Error) -> Option<String> {
    std::error::Error::source(error).map(ToString::to_string)
}

/// The pace of one deletion.
struct Pace<'a> {
    shared: &'a Shared,
    /// Whether the data is young, and is deleted at full speed.
    young: bool,
    steps: Cell<u32>,
    /// When the pressure was last read, and the total stall time then, in microseconds.
    last: Cell<(Instant, u64)>,
    rested: Cell<Duration>,
}

/// Returns the total time since boot in which some task stalled on I/O, in microseconds.
fn waited_us() -> Option<u64> {
    pressure::io().ok().flatten().map(|psi| psi.some.total_us)
}

impl<'a> Pace<'a> {
    fn new(shared: &'a Shared, young: bool) -> Self {
        let last = Cell::new((Instant::now(), waited_us().unwrap_or(0)));
        Self { shared, young, steps: Cell::new(0), last, rested: Cell::default() }
    }

    fn rested_ms(&self) -> f64 {
        self.rested.get().as_secs_f64() * 1e3
    }

    /// Called before each entry; returns true to stop.
    fn step(&self) -> bool {
        self.steps.set(self.steps.get() + 1);
        if !self.young && self.steps.get().is_multiple_of(STRIDE) {
            let (then, waited_then) = self.last.get();
            let worked = then.elapsed();
            let waited = waited_us().unwrap_or(waited_then);
            let rest = rest(worked, Duration::from_micros(waited.saturating_sub(waited_then)));
            if !rest.is_zero() && !self.shared.nearly_full() {
                let mut state = self.shared.state.lock();
                // A stop ends the rest.
                let goes_on = |_: &mut State| !self.shared.stopped();
                self.shared.changed.wait_while_for(&mut state, goes_on, rest);
                drop(state);
                self.rested.set(self.rested.get() + rest);
            }
            self.last.set((Instant::now(), waited_us().unwrap_or(waited)));
        }
        self.shared.stopped()
    }
}

/// Returns how long to rest after a stride that took `worked`, during which tasks stalled on I/O for `waited`: as
/// long as the stride if that was a quarter of the time, up to three times as long if it was more.
fn rest(worked: Duration, waited: Duration) -> Duration {
    let share = (waited.as_secs_f64() / worked.as_secs_f64().max(1e-6)).min(1.0);
    if share < 0.05 { Duration::ZERO } else { worked.mul_f64((4.0 * share).min(3.0)).min(REST_MOST) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(name: &str, made_ms: Option<u64>) -> Item {
        Item { made_ms, ..Item::new(Place::Rootfs, name).unwrap() }
    }

    #[test]
    fn what_expires_soonest_goes_first_and_the_old_in_turn() {
        let mut state = State::default();
        for (name, made) in
            [("old", Some(10_000)), ("fresh", Some(99_000)), ("soon", Some(71_000)), ("none", None)]
        {
            state.queue.push_back(item(name, made));
        }
        let mut order = Vec::new();
        while let Ok((item, young)) = state.next(Instant::now(), 100_000, 30_000) {
            order.push((item.name.into_string().unwrap(), young));
        }
        let order: Vec<_> = order.iter().map(|(name, young)| (name.as_str(), *young)).collect();
        assert_eq!(order, [("soon", true), ("fresh", true), ("old", false), ("none", false)]);
        state.later.push((Instant::now() + Duration::from_secs(9), item("later", None)));
        assert!(
            matches!(state.next(Instant::now(), 0, 0), Err(Some(wait)) if wait <= Duration::from_secs(9))
        );
    }

    #[test]
    fn what_comes_in_a_burst_waits_until_nothing_more_comes_but_not_for_ever() {
        let mut state = State::default();
        let now = Instant::now();
        assert_eq!(state.settling(now), None);
        state.push(item("a", None));
        let (first, _) = state.came.unwrap();
        assert_eq!(state.settling(first), Some(QUIET));
        state.came = Some((first, first + PATIENCE - QUIET / 2));
        assert_eq!(state.settling(first + PATIENCE - QUIET / 2), Some(QUIET / 2));
        assert_eq!(state.settling(first + PATIENCE), None);
        // Items that arrive during the deletion do not delay it again.
        state.push(item("b", None));
        assert_eq!(state.settling(first + PATIENCE), None);
        state.queue.clear();
        assert_eq!(state.settling(first + PATIENCE), None);
        assert_eq!(state.came, None);
    }

    #[test]
    fn the_more_others_wait_the_longer_the_rest() {
        let stride = Duration::from_millis(10);
        assert_eq!(rest(stride, Duration::ZERO), Duration::ZERO);
        assert_eq!(rest(stride, Duration::from_micros(2500)), stride);
        assert_eq!(rest(stride, stride), 3 * stride);
        assert_eq!(rest(Duration::from_secs(9), Duration::from_secs(9)), REST_MOST);
    }
}
