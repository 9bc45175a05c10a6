//! Root file systems mounted ahead, for what creates have asked for lately.
//!
//! A spare belongs to exact unpackings of layers and to an owner; nobody else is given it. It has no record, so nothing
//! keeps its layers from being collected; its directory is the pool's until it is claimed. Whoever claims one writes the
//! record first and *then* looks whether the layers are in their places, as with a fresh one (see `disk::record`), and
//! whether a write was lost under it meanwhile. If one of the two is not as it was, the spare is thrown away.

use parking_lot::Mutex;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use wardian_sys::pressure::{self, Psi};
use wardian_sys::procfs::{self, MemInfo};

use super::reaper;
use crate::disk::files;
use crate::disk::layout::Layout;
use crate::layers::layer::Layer;
use crate::layers::owner::{Owner, Root, is_shared};

/// The most spares of one kind: a descriptor, 15 to 75 kB of the kernel's memory (1 to 60 layers) and five small directories
/// each.
pub const MOST: usize = 32;
/// Kinds that have spares, the one asked for longest ago goes: a host that works with more images at a time would make
/// spares for nothing.
const KINDS: usize = 8;
/// Nothing is mounted ahead until nobody has created for so long: while somebody waits for a processor a spare costs as
/// much as it saves.
pub(crate) const QUIET: Duration = Duration::from_millis(20);
/// What nobody has asked for in this time has no spares any more.
const FORGET: Duration = Duration::from_secs(600);
/// Below this share of memory to be had (1/N), and from this percentage of the time that somebody waits for memory, the
/// memory belongs to containers.
const MEMORY_SHARE: u64 = 10;
const MEMORY_PRESSURE: f64 = 10.0;

/// What a spare is made of.
#[derive(Debug)]
pub(crate) struct Kind {
    /// Bottom first.
    pub(crate) layers: Arc<[Arc<Layer>]>,
    owner: Option<(OwnedFd, Root)>,
}

impl Kind {
    fn fits(&self, layers: &[Arc<Layer>], owner: Option<&Owner<'_>>) -> bool {
        self.owner.as_ref().map(|(_, root)| *root) == owner.map(|owner| (owner.uid, owner.gid))
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

/// A root file system that nobody has claimed yet.
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
    /// Whether no write was lost since it was mounted: if one was, each of its fsyncs fails (see [`crate::mounts::sentinel`]). That of a
    /// volatile overlay compares two counters, and writes nothing.
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
    /// When somebody created last.
    asked: Option<Instant>,
    /// Counts how often all spares were thrown away: what was being mounted meanwhile goes too.
    generation: u64,
    /// For the steward to throw away: whoever creates does not wait for an unmount.
    gone: Vec<Spare>,
    closed: bool,
}

/// What is to be mounted ahead.
pub(crate) enum Wanted {
    /// One of this kind, in this generation.
    One(Arc<Kind>, u64),
    /// Something, once nobody creates.
    Later,
    Nothing,
}

/// The spares.
#[derive(Debug)]
pub(crate) struct Ready {
    /// How many of each kind; 0: none, ever.
    per_kind: usize,
    /// Layers of a kind at most, which stay open.
    most_layers: usize,
    state: Mutex<State>,
    /// What tests say instead of the host.
    #[cfg(test)]
    pub(crate) short: Mutex<Option<bool>>,
}

impl Ready {
    /// `most_open`: how many layers of all kinds are kept open.
    pub(crate) fn new(per_kind: usize, most_open: usize) -> Self {
        Self {
            per_kind: per_kind.min(MOST),
            most_layers: most_open / KINDS,
            state: Mutex::default(),
            #[cfg(test)]
            short: Mutex::new(Some(false)),
        }
    }

    /// A spare of this kind, if there is one. Asking opens the kind's shelf, for the steward to fill.
    pub(crate) fn claim(&self, layers: &Arc<[Arc<Layer>]>, owner: Option<&Owner<'_>>) -> Option<Spare> {
        // What is one container's alone nobody else could claim.
        if self.per_kind == 0 || layers.is_empty() || !is_shared(owner) || layers.len() > self.most_layers {
            return None;
        }
        let (mut state, now) = (self.state.lock(), Instant::now());
        state.asked = Some(now);
        if let Some(shelf) = state.shelves.iter_mut().find(|shelf| shelf.kind.fits(layers, owner)) {
            shelf.asked = now;
            return shelf.spares.pop();
        }
        let owner = match owner {
            None => None,
            // Out of descriptors: no time to make anything ahead.
            Some(owner) => Some((owner.userns.try_clone_to_owned().ok()?, (owner.uid, owner.gid))),
        };
        if state.shelves.len() >= KINDS
            && let Some((oldest, _)) = state.shelves.iter().enumerate().min_by_key(|(_, shelf)| shelf.asked)
        {
            let shelf = state.shelves.swap_remove(oldest);
            state.gone.extend(shelf.spares);
        }
        let kind = Arc::new(Kind { layers: Arc::clone(layers), owner });
        state.shelves.push(Shelf { kind, asked: now, spares: Vec::new() });
        None
    }

    /// What is missing.
    pub(crate) fn wanted(&self) -> Wanted {
        let state = self.state.lock();
        let short = state.shelves.iter().filter(|shelf| shelf.spares.len() < self.per_kind);
        match short.max_by_key(|shelf| shelf.asked) {
            None => Wanted::Nothing,
            Some(_) if state.asked.is_some_and(|then| then.elapsed() < QUIET) => Wanted::Later,
            Some(shelf) => Wanted::One(Arc::clone(&shelf.kind), state.generation),
        }
    }

    /// Takes a new spare, or one back that was claimed for nothing; says no to one that nobody wants any more.
    pub(crate) fn put(&self, spare: Spare) -> Result<(), Spare> {
        let mut state = self.state.lock();
        let current = !state.closed && spare.generation == state.generation;
        let shelf = state.shelves.iter_mut().find(|shelf| Arc::ptr_eq(&shelf.kind, &spare.kind));
        match shelf.filter(|shelf| current && shelf.spares.len() < self.per_kind) {
            Some(shelf) => {
                shelf.spares.push(spare);
                Ok(())
            }
            None => Err(spare),
        }
    }

    /// Gives up all spares, also those that are being mounted. What is asked for is remembered.
    pub(crate) fn empty(&self) -> Vec<Spare> {
        let mut state = self.state.lock();
        state.generation += 1;
        let State { shelves, gone, .. } = &mut *state;
        shelves.iter_mut().flat_map(|shelf| shelf.spares.drain(..)).chain(gone.drain(..)).collect()
    }

    /// Gives up all spares for good.
    pub(crate) fn close(&self) -> Vec<Spare> {
        self.state.lock().closed = true;
        let spares = self.empty();
        self.state.lock().shelves.clear();
        spares
    }

    /// Gives up those that nobody can use or has asked for in a long time, and those that had to make room.
    pub(crate) fn outdated(&self, now: Instant, is_fine: &dyn Fn(&Layer) -> bool) -> Vec<Spare> {
        // Looked at without the lock: that is a file for each layer.
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

    /// Whether nobody has asked for anything.
    pub(crate) fn is_idle(&self) -> bool {
        self.state.lock().shelves.is_empty()
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.state.lock().shelves.iter().map(|shelf| shelf.spares.len()).sum()
    }

    /// Whether others need the memory or the disk that spares take.
    pub(crate) fn is_short(&self, layout: &Layout) -> bool {
        #[cfg(test)]
        if let Some(short) = *self.short.lock() {
            return short;
        }
        let memory = std::fs::read_to_string("/proc/meminfo").ok();
        let memory = memory.and_then(|text| procfs::meminfo(&text).ok());
        let waited = pressure::memory().ok().flatten();
        // What cannot be told is not made ahead.
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

/// Whether others need the memory.
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
