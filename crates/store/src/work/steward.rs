//! The steward: a server's background thread. About every second it fills the pool of pairs, mounts spares, checks
//! the sentinel for lost writes, looks for trash of other processes, saves when layers were used, and collects
//! garbage above the threshold.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use wardian_sys::failpoint;

use super::collect::Garbage;
use crate::disk::record::Record;
use crate::failpoints::Point;
use crate::layers::layer::State;
use crate::layers::partial::{self, Which};
use crate::mounts::door::Door;
use crate::mounts::ready::{self, Kind, Spare, Wanted};
use crate::mounts::reaper::{self, Place};
use crate::mounts::rootfs::{self, Parts};
use crate::mounts::sentinel::Sentinel;
use crate::store::Inner;

/// The interval between two rounds, unless the door wakes the thread earlier.
const ROUND: Duration = Duration::from_secs(1);
/// The interval of looking for trash of other processes, and of garbage collection.
const LOOK: Duration = Duration::from_secs(3);
/// The interval of saving when layers were used. A crash loses that much of their order.
const SAVE_USED: Duration = Duration::from_secs(30);

/// The longest interval between two attempts to have an unseen write-back error reported.
const REPORT_MOST: Duration = Duration::from_secs(60);

/// The remedy told to the owner of a container whose writes may have been lost.
const REMEDY: &str = "fsync and syncfs in this container fail from now on; destroy and create it again";

/// The steward's state between rounds.
#[derive(Default)]
struct Memory {
    sentinel: Option<Sentinel>,
    saved_used: Option<Instant>,
    looked: Option<Instant>,
    /// Modification times of directories that other processes change.
    seen: Vec<(i64, u64)>,
    unsettled: bool,
    /// When a report of an unseen write-back error was last requested, and the interval until the next request.
    reported: Option<(Instant, Duration)>,
    pool_failed: bool,
    /// Whether limits were found not to be enforced.
    unenforced: bool,
    ready_failed: bool,
    /// When memory and disk were last checked for shortage, and the result.
    short: Option<(Instant, bool)>,
}

/// Starts the thread, which ends with the store.
pub(crate) fn start(inner: &Arc<Inner>) -> std::io::Result<()> {
    let (door, weak) = (Arc::clone(&inner.door), Arc::downgrade(inner));
    let thread = std::thread::Builder::new().name("steward".into()).spawn(move || run(&door, &weak))?;
    *inner.door.thread.lock() = Some(thread);
    Ok(())
}

fn run(door: &Door, inner: &Weak<Inner>) {
    let (mut memory, mut wait) = (Memory::default(), ROUND);
    while door.wait(wait) {
        let Some(inner) = inner.upgrade() else { return };
        inner.round(&mut memory);
        wait = inner.fill_ready(&mut memory);
    }
}

impl Inner {
    fn round(&self, memory: &mut Memory) {
        let filled = self.pool.fill().and_then(|()| self.upper.fill());
        if let Err(error) = &filled
            && !memory.pool_failed
        {
            tracing::warn!(%error, "pool.fill-failed");
        }
        memory.pool_failed = filled.is_err();
        self.ask_sentinel(memory);
        // Each create starts a round, so work that reads all records must not run in each: the cost of a create would
        // grow with the number of root file systems and layers.
        if memory.looked.is_some_and(|then| then.elapsed() < LOOK) {
            return;
        }
        memory.looked = Some(Instant::now());
        self.look_around(memory);
        if reaper::nearly_full(&self.layout) {
            self.mark_images();
        }
        let trouble = self.upper.trouble();
        if std::mem::replace(&mut memory.unenforced, trouble.is_some()) != trouble.is_some() {
            match trouble {
                Some(why) => tracing::error!(why, "store.limits-not-enforced"),
                None => tracing::info!("store.limits-enforced-again"),
            }
        }
        self.discard(self.ready.outdated(Instant::now(), &|layer| self.is_fine(layer)));
        if memory.saved_used.is_none_or(|then| then.elapsed() >= SAVE_USED) {
            memory.saved_used = Some(Instant::now());
            self.save_used();
            partial::sweep(&self.layout, Which::Old, false);
        }
        if let Some(threshold) = self.gc_threshold
            && let Err(error) = self.collect(Garbage::Until(threshold), None)
        {
            tracing::warn!(%error, "collect.failed");
        }
    }

    /// Saves when the layers that this process keeps open were used.
    pub(crate) fn save_used(&self) {
        let layers: Vec<_> = self.layers.lock().values().cloned().collect();
        for layer in layers {
            layer.save_used(&self.layout);
        }
    }

    fn ask_sentinel(&self, memory: &mut Memory) {
        if memory.sentinel.as_ref().is_some_and(Sentinel::lost_write) {
            self.mark_hit("a write to the file system under the store was lost");
            let name = memory.sentinel.take().map(|sentinel| sentinel.name.clone());
            name.iter().for_each(|name| self.trash(Place::Rootfs, name));
        }
        if memory.sentinel.is_none() {
            match Sentinel::place(&*self.upper, &self.mounter, self.names.new_name()) {
                Ok(sentinel) => (memory.sentinel, memory.reported) = (Some(sentinel), None),
                Err((name, error)) => {
                    self.trash(Place::Rootfs, &name);
                    tracing::debug!(%error, "sentinel.not-placed");
                    // A disk that keeps failing gets no syncfs every second, because each one writes to it.
                    let due = memory.reported.is_none_or(|(then, wait)| then.elapsed() >= wait);
                    if error == Errno::IO && due {
                        let wait = memory.reported.map_or(ROUND, |(_, wait)| (wait * 2).min(REPORT_MOST));
                        memory.reported = Some((Instant::now(), wait));
                        self.report_unseen();
                    }
                }
            }
        }
    }

    /// Mounts missing spares while no creates are in progress; returns how long to wait until the next round.
    fn fill_ready(&self, memory: &mut Memory) -> Duration {
        if self.ready.is_idle() {
            return ROUND;
        }
        if memory.short.is_none_or(|(then, _)| then.elapsed() >= ROUND) {
            memory.short = Some((Instant::now(), self.ready.is_short(&self.layout)));
        }
        if memory.short.is_some_and(|(_, short)| short) {
            self.discard(self.ready.empty());
            return ROUND;
        }
        while self.check_open().is_ok() {
            let (kind, generation) = match self.ready.wanted() {
                Wanted::One(kind, generation) => (kind, generation),
                Wanted::Later => return ready::QUIET,
                Wanted::Nothing => break,
            };
            match self.mount_ahead(kind, generation) {
                Ok(spare) => {
                    memory.ready_failed = false;
                    self.discard(self.ready.put(spare).err());
                }
                Err(error) => {
                    if !memory.ready_failed {
                        tracing::warn!(%error, "ready.mount-failed");
                    }
                    memory.ready_failed = true;
                    break;
                }
            }
        }
        ROUND
    }

    fn mount_ahead(&self, kind: Arc<Kind>, generation: u64) -> Result<Spare, rootfs::Error> {
        let name = self.names.new_name();
        let made = self.upper.make(&name, kind.root(), kind.bound);
        let made = made.map_err(|source| rootfs::Error::Make { id: name.clone(), source }).and_then(|pair| {
            let owner = kind.owner();
            let parts = Parts { id: &name, layers: &kind.layers, owner: owner.as_ref(), pair: &pair };
            self.mounter.build_volatile(&parts)
        });
        failpoint::reach(Point::MountedAhead);
        match made {
            Ok(mount) => Ok(Spare { name, mount, kind, generation }),
            Err(error) => {
                self.trash(Place::Rootfs, &name);
                Err(error)
            }
        }
    }

    /// Unmounts spares and moves their directories to the trash.
    pub(crate) fn discard(&self, spares: impl IntoIterator<Item = Spare>) {
        for Spare { name, mount, .. } in spares {
            drop(mount);
            self.trash(Place::Rootfs, &name);
        }
    }

    /// Marks every living volatile root file system as affected by a lost write: each later fsync in it fails.
    pub(crate) fn mark_hit(&self, what: &str) {
        // The spares go first. One claimed before is checked by its create ([`Spare::is_sound`]).
        self.discard(self.ready.empty());
        let records = self.layout.records.all().unwrap_or_else(|error| {
            tracing::error!(%error, "writeback.nobody-marked");
            Vec::new()
        });
        let mut hit = Vec::new();
        for mut record in records {
            if record.honest || record.writeback_error.is_some() {
                continue;
            }
            let text = format!("{what}: {REMEDY}");
            record.writeback_error = Some(text.clone());
            self.hit.lock().insert(record.id.clone(), text);
            // On failure the record is gone, or `hit` has the error all the same.
            let _ = self.layout.records.update_existing(&record);
            hit.push(record.id);
        }
        let fresh: Vec<String> = self
            .layers
            .lock()
            .values()
            .filter(|layer| layer.state() == State::Fresh)
            .map(|layer| layer.chain.clone())
            .collect();
        tracing::error!(what, rootfs = ?hit, layers_not_durable = ?fresh, "writeback.error");
    }

    /// Marks each root file system with an image that has lost writes.
    fn mark_images(&self) {
        let parts = self.upper.with_new_errors();
        if parts.is_empty() {
            return;
        }
        let records = self.layout.records.all().unwrap_or_default();
        let untold = |record: &Record| parts.contains(&record.dir) && record.writeback_error.is_none();
        for mut record in records.into_iter().filter(untold) {
            let what = "a write to its image may have been lost, because the file system under the store is nearly full";
            tracing::error!(id = record.id, dir = record.dir, what, "image.lost-writes");
            let text = format!("{what}: {REMEDY}");
            self.hit.lock().insert(record.id.clone(), text.clone());
            record.writeback_error = Some(text);
            // On failure the record is gone, or `hit` has the error all the same.
            let _ = self.layout.records.update_existing(&record);
        }
    }

    /// Requests a syncfs that reports the unseen write-back error: until then no volatile overlay can be mounted.
    pub(crate) fn report_unseen(&self) {
        match self.layout.sync_handle() {
            Ok(sync) => self.durability.report(sync),
            Err(error) => tracing::warn!(%error, "writeback.error-not-reported"),
        }
    }

    /// Finds trash and unfinished layers of other processes.
    fn look_around(&self, memory: &mut Memory) {
        let layout = &self.layout;
        let time = |dir| rustix::fs::fstat(dir).map_or((0, 0), |stat| (stat.st_mtime, stat.st_mtime_nsec));
        let records = layout.records.changed();
        let seen = vec![time(&layout.trash), time(&layout.layers), time(&layout.staging), records];
        let changed = memory.seen != seen;
        if !changed && !memory.unsettled {
            return;
        }
        // A change within the same clock tick as the look would be missed, so another look follows each change.
        memory.unsettled = changed;
        memory.seen = seen;
        if let Err(error) = self.distrust().and_then(|()| self.find_trash()) {
            tracing::warn!(%error, "steward.cannot-look");
        }
    }
}
