//! Spares: root file systems mounted ahead, of the kinds that creates have asked for lately.
//!
//! A spare is made of exact unpackings of layers for one owner, and fits nobody else; a part that gets its bound when
//! it is made also fits that bound alone. It has no record, so its layers
//! may be collected; the name of its directory is registered until it is claimed. A create that claims a spare
//! first writes the record and *then* checks that the layers are still in place, as for a new root file system (see
//! `disk::record`), and that no write was lost since the spare was mounted. If either check fails, the spare is
//! discarded.

use parking_lot::Mutex;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use wardian_sys::pressure::{self, Psi};
use wardian_sys::procfs::{self, MemInfo};

use super::reaper;
use crate::disk::files;
use crate::disk::layout::Layout;
use crate::disk::limit::Bound;
use crate::layers::layer::Layer;
use crate::layers::owner::{Owner, Root, is_shared};

/// The most spares of one kind: a descriptor, 15 to 75 kB of the kernel's memory (1 to 60 layers) and five small directories
/// each.
pub const MOST: usize = 32;
/// The maximum number of kinds with spares; the kind asked for longest ago is evicted. A host that uses more images
/// at a time would make spares in vain.
const KINDS: usize = 8;
/// Spares are mounted only after no create has come for this long: while creates compete for the processors, a spare
/// costs as much as it saves.
pub(crate) const QUIET: Duration = Duration::from_millis(20);
/// A kind that no create has asked for in this time loses its spares.
const FORGET: Duration = Duration::from_secs(600);
/// No spares are kept if less than this share (1/N) of the memory is available, or if memory pressure (PSI `some
/// avg10`) exceeds this percentage.
const MEMORY_SHARE: u64 = 10;
const MEMORY_PRESSURE: f64 = 10.0;

/// The layers and the owner of a spare.
#[derive(Debug)]
pub(crate) struct Kind {
    /// Bottom first.
    pub(crate) layers: Arc<[Arc<Layer>]>,
    owner: Option<(OwnedFd, Root)>,
    /// What its part was made with, see [`Upper::made_with`](super::upper::Upper::made_with).
    pub(crate) bound: Bound,
    /// The most spares of it.
    most: usize,
}

impl Kind {
    fn fits(&self, layers: &[Arc<Layer>], owner: Option<&Owner<'_>>, bound: Bound) -> bool {
        self.bound == bound
            && self.owner.as_ref().map(|(_, root)| *root) == owner.map(|owner| (owner.uid, owner.gid))
            && self.layers.len() == layers.len()
            && self.layers.iter().zip(layers).all(|(own, other)| own.instance == other.instance)
    }

    pub(crate) fn owner(&self) -> Option<Owner<'_>> {
        self.owner.as_ref().map(|(userns, (uid, gid))| Owner {
            userns: userns.as_fd(),
            uid: *uid,
            gid: *gid,
            shared: true,
        })
    }

    pub(crate) fn root(&self) -> Root {
        self.owner.as_ref().map_or((0, 0), |(_, root)| *root)
    }
}

/// A root file system mounted ahead and not claimed yet.
#[derive(Debug)]
pub(crate) struct Spare {
    /// The name of its directory in `rootfs/`.
    pub(crate) name: String,
    pub(crate) mount: OwnedFd,
    pub(crate) kind: Arc<Kind>,
    /// See [`State::generation`].
    pub(crate) generation: u64,
}

impl Spare {
    /// Whether no write was lost since it was mounted: if one was, each fsync in it fails (see
    /// [`crate::mounts::sentinel`]). An fsync in a volatile overlay only compares two counters, and writes nothing.
    pub(crate) fn is_sound(&self) -> bool {
        files::open_dir(&self.mount, ".").and_then(rustix::fs::fsync).is_ok()
    }
}

#[derive(Debug)]
struct Shelf {
    kind: Arc<Kind>,
    asked: Instant,
    spares: Vec<Spare>,
}

#[derive(Debug, Default)]
struct State {
    shelves: Vec<Shelf>,
    /// When the last create came.
    asked: Option<Instant>,
    /// Counts how often all spares were discarded; a spare whose mounting began before is discarded as well.
    generation: u64,
    /// Spares that the steward is to discard, so that no create waits for an unmount.
    gone: Vec<Spare>,
    closed: bool,
}

/// What the steward is to mount ahead.
pub(crate) enum Wanted {
    /// A spare of this kind, in this generation.
    One(Arc<Kind>, u64),
    /// A spare is missing, but creates are in progress.
    Later,
    Nothing,
}

/// The spares.
#[derive(Debug)]
pub(crate) struct Ready {
    /// The number of spares of each kind; 0 disables them.
    per_kind: usize,
    /// The maximum number of layers of a kind, since these stay open.
    most_layers: usize,
    state: Mutex<State>,
    /// Replaces the host's state of memory and disk in tests.
    #[cfg(test)]
    pub(crate) short: Mutex<Option<bool>>,
}

impl Ready {
    /// `most_open` is the number of layers that the store keeps open.
    pub(crate) fn new(per_kind: usize, most_open: usize) -> Self {
        Self {
            per_kind: per_kind.min(MOST),
            most_layers: most_open / KINDS,
            state: Mutex::default(),
            #[cfg(test)]
            short: Mutex::new(Some(false)),
        }
    }

    /// Takes a spare of this kind, if there is one. The call creates the kind's shelf, which the steward fills with at
    /// most `most` spares.
    pub(crate) fn claim(
        &self,
        layers: &Arc<[Arc<Layer>]>,
        owner: Option<&Owner<'_>>,
        bound: Bound,
        most: usize,
    ) -> Option<Spare> {
        // A spare with an unshared mapping could be claimed by nobody else.
        if self.per_kind == 0 || layers.is_empty() || !is_shared(owner) || layers.len() > self.most_layers {
            return None;
        }
        let (mut state, now) = (self.state.lock(), Instant::now());
        state.asked = Some(now);
        if let Some(shelf) = state.shelves.iter_mut().find(|shelf| shelf.kind.fits(layers, owner, bound)) {
            shelf.asked = now;
            return shelf.spares.pop();
        }
        let owner = match owner {
            None => None,
            // Without free descriptors nothing is to be made ahead.
            Some(owner) => Some((owner.userns.try_clone_to_owned().ok()?, (owner.uid, owner.gid))),
        };
        if state.shelves.len() >= KINDS
            && let Some((oldest, _)) = state.shelves.iter().enumerate().min_by_key(|(_, shelf)| shelf.asked)
        {
            let shelf = state.shelves.swap_remove(oldest);
            state.gone.extend(shelf.spares);
        }
        let kind = Arc::new(Kind { layers: Arc::clone(layers), owner, bound, most: most.min(self.per_kind) });
        state.shelves.push(Shelf { kind, asked: now, spares: Vec::new() });
        None
    }

    /// Returns what is to be mounted next.
    pub(crate) fn wanted(&self) -> Wanted {
        let state = self.state.lock();
        let short = state.shelves.iter().filter(|shelf| shelf.spares.len() < shelf.kind.most);
        match short.max_by_key(|shelf| shelf.asked) {
            None => Wanted::Nothing,
            Some(_) if state.asked.is_some_and(|then| then.elapsed() < QUIET) => Wanted::Later,
            Some(shelf) => Wanted::One(Arc::clone(&shelf.kind), state.generation),
        }
    }

    /// Adds a new spare, or returns one that was claimed in vain; refuses one that is not needed any more.
    pub(crate) fn put(&self, spare: Spare) -> Result<(), Spare> {
        let mut state = self.state.lock();
        let current = !state.closed && spare.generation == state.generation;
        let shelf = state.shelves.iter_mut().find(|shelf| Arc::ptr_eq(&shelf.kind, &spare.kind));
        match shelf.filter(|shelf| current && shelf.spares.len() < shelf.kind.most) {
            Some(shelf) => {
                shelf.spares.push(spare);
                Ok(())
            }
            None => Err(spare),
        }
    }

    /// Removes and returns all spares; those being mounted will be refused. The shelves stay.
    pub(crate) fn empty(&self) -> Vec<Spare> {
        let mut state = self.state.lock();
        state.generation += 1;
        let State { shelves, gone, .. } = &mut *state;
        shelves.iter_mut().flat_map(|shelf| shelf.spares.drain(..)).chain(gone.drain(..)).collect()
    }

    /// Removes and returns all spares; no more are accepted.
    pub(crate) fn close(&self) -> Vec<Spare> {
        self.state.lock().closed = true;
        let spares = self.empty();
        self.state.lock().shelves.clear();
        spares
    }

    /// Removes and returns the spares whose layers are no longer usable, those not asked for in [`FORGET`], and
    /// evicted ones.
    pub(crate) fn outdated(&self, now: Instant, is_fine: &dyn Fn(&Layer) -> bool) -> Vec<Spare> {
        // The layers are checked without the lock, because each check reads a file.
        let kinds: Vec<_> = self.state.lock().shelves.iter().map(|shelf| Arc::clone(&shelf.kind)).collect();
        let bad: Vec<_> =
            kinds.into_iter().filter(|kind| !kind.layers.iter().all(|layer| is_fine(layer))).collect();
        let mut state = self.state.lock();
        let State { shelves, gone, .. } = &mut *state;
        let mut out = std::mem::take(gone);
        shelves.retain_mut(|shelf| {
            let keep = now.saturating_duration_since(shelf.asked) < FORGET
                && !bad.iter().any(|kind| Arc::ptr_eq(kind, &shelf.kind));
            if !keep {
                out.append(&mut shelf.spares);
            }
            keep
        });
        out
    }

    /// Whether there is no shelf.
    pub(crate) fn is_idle(&self) -> bool {
        self.state.lock().shelves.is_empty()
    }

    /// Returns the number of spares.
    pub(crate) fn len(&self) -> usize {
        self.state.lock().shelves.iter().map(|shelf| shelf.spares.len()).sum()
    }

    /// Whether memory or disk is short, so that no spares should be kept.
    pub(crate) fn is_short(&self, layout: &Layout) -> bool {
        #[cfg(test)]
        if let Some(short) = *self.short.lock() {
            return short;
        }
        let memory = std::fs::read_to_string("/proc/meminfo").ok();
        let memory = memory.and_then(|text| procfs::meminfo(&text).ok());
        let waited = pressure::memory().ok().flatten();
        // If the memory's state is unknown, it counts as short.
        memory.is_none_or(|memory| memory_is_short(&memory, waited.as_ref())) || reaper::nearly_full(layout)
    }
}

#[cfg(test)]
impl Ready {
    /// The directories of all spares, in order.
    pub(crate) fn names(&self) -> Vec<String> {
        let state = self.state.lock();
        let mut names: Vec<_> = state
            .shelves
            .iter()
            .flat_map(|shelf| shelf.spares.iter().map(|spare| spare.name.clone()))
            .collect();
        names.sort();
        names
    }
}

/// Whether memory is short.
pub(crate) fn memory_is_short(memory: &MemInfo, waited: Option<&Psi>) -> bool {
    memory.available < memory.total / MEMORY_SHARE
        || waited.is_some_and(|psi| psi.some.avg10 > MEMORY_PRESSURE)
}

#[cfg(test)]
mod tests {
    use wardian_sys::pressure::Stall;

    use super::*;

    #[test]
    fn memory_is_short_when_little_is_left_or_somebody_waits_for_it() {
        let memory = |available| MemInfo { total: 1000, available, ..MemInfo::default() };
        let waited = |avg10| Psi { some: Stall { avg10, ..Stall::default() }, ..Psi::default() };
        assert!(!memory_is_short(&memory(100), None));
        assert!(memory_is_short(&memory(99), None));
        assert!(!memory_is_short(&memory(500), Some(&waited(10.0))));
        assert!(memory_is_short(&memory(500), Some(&waited(10.1))));
    }
}
