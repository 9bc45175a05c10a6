//! Makes layers durable outside every request path, in one thread of the idle I/O class.
//!
//! A layer's own data is written back first, file by file, with calls that do not block other writers. Then one
//! `syncfs`, on the descriptor of the store's root that was opened before the oldest of the waiting layers began to
//! be unpacked, commits the metadata and reports every write error since that moment. Only after that does a layer's
//! record say that it is durable. If an error is reported, a `syncfs` on each waiting layer's own descriptor tells
//! whether it happened since that layer's unpack began; if so, the layer is suspect.

use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{Dir, FileType, Mode, OFlags};
use wardian_sys::{failpoint, mount};

use super::layer::{Fresh, State as Trust};
use crate::disk::blocks::BLOCK;
use crate::disk::files;
use crate::failpoints::Point;

/// The depth down to which the write-back walks, with one descriptor for each level. Deeper files are left to the
/// final `syncfs`.
const MAX_DEPTH: usize = 64;
/// The write-back of files of at least this size is awaited one by one, so that the disk's queue stays short for
/// others.
const LARGE: i64 = 1 << 20;

#[derive(Default)]
struct State {
    layers: VecDeque<Fresh>,
    /// A descriptor whose `syncfs` reports a write-back error that nobody has seen, so that volatile mounts work
    /// again.
    report: Option<OwnedFd>,
    /// The number of layers that are not durable yet, including those being written back. Each holds two descriptors.
    pending: usize,
    busy: bool,
    stop: bool,
}

/// Called with a message about each reported write error.
pub(crate) type Alarm = Box<dyn Fn(&str) + Send + Sync>;

/// The queue of the thread that makes layers durable.
pub(crate) struct Durability {
    state: Mutex<State>,
    changed: Condvar,
    alarm: Alarm,
}

impl std::fmt::Debug for Durability {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Durability").finish_non_exhaustive()
    }
}

impl Durability {
    /// Creates the queue; nothing is written back before [`Durability::start`].
    pub(crate) fn new(alarm: Alarm) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), changed: Condvar::new(), alarm })
    }

    /// Starts the thread. It ends some time after [`Durability::stop`], because a `syncfs` cannot be interrupted.
    pub(crate) fn start(self: &Arc<Self>) -> std::io::Result<()> {
        let thread = Arc::clone(self);
        std::thread::Builder::new().name("durability".into()).spawn(move || thread.run()).map(drop)
    }

    pub(crate) fn layer(&self, fresh: Fresh) {
        let mut state = self.state.lock();
        // The layer may be in the queue already.
        if !state.layers.iter().any(|waiting| waiting.layer.instance == fresh.layer.instance) {
            state.layers.push_back(fresh);
            state.pending += 1;
            self.changed.notify_all();
        }
    }

    /// Waits until at most `pending` layers are not durable yet; false if `cancelled` returns true first.
    pub(crate) fn at_most(&self, pending: usize, cancelled: &dyn Fn() -> bool) -> bool {
        let mut state = self.state.lock();
        while state.pending > pending && !state.stop {
            if cancelled() {
                return false;
            }
            let wait = Duration::from_millis(50);
            self.changed.wait_for(&mut state, wait);
        }
        true
    }

    pub(crate) fn report(&self, sync: OwnedFd) {
        self.state.lock().report = Some(sync);
        self.changed.notify_all();
    }

    pub(crate) fn stop(&self) {
        self.state.lock().stop = true;
        self.changed.notify_all();
    }

    /// Waits until the queue is empty; false on timeout, or if `cancelled` returns true.
    pub(crate) fn drain(&self, timeout: Duration, cancelled: &dyn Fn() -> bool) -> bool {
        let started = Instant::now();
        let mut state = self.state.lock();
        while state.busy || !state.layers.is_empty() || state.report.is_some() {
            if state.stop || started.elapsed() >= timeout || cancelled() {
                return false;
            }
            let wait = Duration::from_millis(50);
            self.changed.wait_for(&mut state, wait);
        }
        true
    }

    fn stopped(&self) -> bool {
        self.state.lock().stop
    }

    fn run(&self) {
        // A failure is harmless: the write-back then only competes with containers for the disk.
        let _ = mount::idle_io_class();
        let mut state = self.state.lock();
        while !state.stop {
            let layers: Vec<Fresh> = state.layers.drain(..).collect();
            let report = state.report.take();
            if layers.is_empty() && report.is_none() {
                self.changed.wait(&mut state);
                continue;
            }
            state.busy = true;
            drop(state);
            let done = layers.len();
            if !layers.is_empty() {
                self.make_durable(layers);
            }
            if let Some(sync) = report
                && let Err(error) = rustix::fs::syncfs(&sync)
            {
                (self.alarm)(&format!("the file system under the store reports a lost write: {error}"));
            }
            state = self.state.lock();
            state.busy = false;
            state.pending = state.pending.saturating_sub(done);
            self.changed.notify_all();
        }
    }

    fn make_durable(&self, mut layers: Vec<Fresh>) {
        // One layer at a time, to bound the data in write-back.
        let mut written = Vec::new();
        for fresh in &mut layers {
            let fs = files::open_dir(&fresh.dir, "fs").map_err(std::io::Error::from);
            let result = fs.and_then(|fs| self.write_back(fs.as_fd()));
            written.push(result.map(|bytes| fresh.record.disk_bytes = Some(bytes)));
        }
        failpoint::reach(Point::WrittenBack);
        // Layers come in the order in which they were finished: a large one that was begun first may be the last.
        let oldest = (0..layers.len()).min_by_key(|index| layers[*index].opened);
        let synced = oldest.map_or(Ok(()), |index| rustix::fs::syncfs(&layers[index].sync));
        failpoint::reach(Point::Synced);
        if self.stopped() && synced.is_ok() {
            return;
        }
        let names: Vec<String> = layers.iter().map(|fresh| fresh.layer.chain.clone()).collect();
        for (index, (mut fresh, written)) in layers.into_iter().zip(written).enumerate() {
            let own = match synced {
                Ok(()) => Ok(()),
                error if oldest == Some(index) => error,
                Err(_) => rustix::fs::syncfs(&fresh.sync),
            };
            let marked = written.and_then(|()| Ok(own?)).and_then(|()| {
                fresh.record.durable = true;
                fresh.record.write_durable(&fresh.dir)
            });
            failpoint::reach(Point::Marked);
            match marked {
                Ok(()) => fresh.layer.set_state(Trust::Durable),
                // The layer was moved to the trash and deleted meanwhile.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => {
                    fresh.layer.set_state(Trust::Suspect);
                    (fresh.record.durable, fresh.record.suspect) = (false, true);
                    // If this cannot be written either, the record still does not say durable.
                    let _ = fresh.record.write(&fresh.dir);
                    let neighbours: Vec<_> =
                        names.iter().filter(|name| **name != fresh.layer.chain).cloned().collect();
                    tracing::error!(layer = fresh.layer.chain, %error, ?neighbours, "layer.suspect");
                    (self.alarm)(&format!("the layer {} may not be on the disk: {error}", fresh.layer.chain));
                }
            }
        }
    }

    /// Starts the write-back of each file's data, and awaits that of large files. Returns the bytes that the tree
    /// takes on the disk.
    fn write_back(&self, fs: BorrowedFd<'_>) -> std::io::Result<u64> {
        let mut stack = vec![(rustix::io::fcntl_dupfd_cloexec(fs, 3)?, Dir::read_from(fs)?)];
        let mut bytes = 0;
        while let Some((dir, entries)) = stack.last_mut() {
            if self.stopped() {
                return Ok(bytes);
            }
            let Some(entry) = entries.next() else {
                bytes += rustix::fs::fstat(&*dir)?.st_blocks.unsigned_abs() * BLOCK;
                stack.pop();
                continue;
            };
            let entry = entry?;
            if entry.file_name() == c"." || entry.file_name() == c".." {
                continue;
            }
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            match entry.file_type() {
                // Only regular files are opened: opening a device may have side effects.
                FileType::RegularFile => {
                    let file = rustix::fs::openat(&*dir, entry.file_name(), flags, Mode::empty())?;
                    let stat = rustix::fs::fstat(&file)?;
                    // Awaiting each of thousands of small files would cost a disk round trip for each.
                    if stat.st_size < LARGE {
                        mount::begin_write_back(&file)?;
                    } else {
                        mount::write_back(&file)?;
                    }
                    // Each of a file's hard links counts an equal part of its size.
                    bytes += stat.st_blocks.unsigned_abs() * BLOCK / stat.st_nlink.max(1);
                }
                FileType::Directory if stack.len() < MAX_DEPTH => {
                    let dir = &stack[stack.len() - 1].0;
                    let flags = flags | OFlags::DIRECTORY;
                    let child = rustix::fs::openat(dir, entry.file_name(), flags, Mode::empty())?;
                    let entries = Dir::read_from(&child)?;
                    stack.push((child, entries));
                }
                _ => {}
            }
        }
        Ok(bytes)
    }
}
