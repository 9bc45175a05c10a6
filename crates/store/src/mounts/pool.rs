//! A pool of empty upper/work pairs made ahead, with one shelf for each owner of root directories.

use parking_lot::{Mutex, MutexGuard};
use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, Gid, Mode, Uid};

use crate::disk::files;
use crate::disk::layout::Layout;
use crate::layers::owner::Root;

/// Pairs kept ready on each shelf: enough for the burst of a scale-up on a small host.
const READY: usize = 16;
/// Pairs that are made in one block group.
const TOGETHER: usize = 32;
/// The mode of a ready `upper`: that of most images' root directories.
pub(crate) const READY_MODE: u32 = 0o755;

/// A directory in `rootfs/` that holds `upper` and `work`, both empty.
#[derive(Debug)]
pub(crate) struct Pair {
    /// Its name in `rootfs/`.
    pub(crate) name: String,
    pub(crate) dir: OwnedFd,
    pub(crate) upper: OwnedFd,
}

impl Pair {
    /// Creates `work` and `upper` in the new directory `name`.
    fn open(layout: &Layout, name: &str, root: Root) -> rustix::io::Result<Self> {
        let dir = files::open_dir(&layout.rootfs, name)?;
        rustix::fs::mkdirat(&dir, "work", Mode::RWXU)?;
        rustix::fs::mkdirat(&dir, "upper", Mode::RWXU)?;
        let upper = files::open_dir(&dir, "upper")?;
        if root != (0, 0) {
            rustix::fs::fchown(&upper, Some(Uid::from_raw(root.0)), Some(Gid::from_raw(root.1)))?;
        }
        // After the chown, and past the umask.
        rustix::fs::fchmod(&upper, Mode::from_raw_mode(READY_MODE))?;
        Ok(Self { name: name.to_owned(), dir, upper })
    }
}

/// The ready pairs, and the names of all directories in `rootfs/` that this process has made: they are no trash even
/// without a record.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    pub(crate) shelves: Mutex<HashMap<Root, Vec<Pair>>>,
    own: Mutex<HashSet<String>>,
    /// Held while a pair is made; true once the pool is closed.
    closed: Mutex<bool>,
    /// Whether pairs are made in groups, see [`Group`].
    grouped: bool,
    group: Mutex<Option<Group>>,
}

/// An empty directory in `rootfs/`: a directory that is made in it and moved out of it stays in its block group.
///
/// A directory made in `rootfs/` itself gets an otherwise unused block group ([`Layout::spreads`]), so each pair
/// would dirty two bitmaps and an inode table block of its own.
#[derive(Debug)]
struct Group {
    name: String,
    dir: OwnedFd,
    used: usize,
}

impl Pool {
    /// `grouped`: whether pairs are made in groups, which pays where there will be many.
    pub(crate) fn new(grouped: bool) -> Self {
        Self { grouped, ..Self::default() }
    }

    fn shelves(&self) -> MutexGuard<'_, HashMap<Root, Vec<Pair>>> {
        self.shelves.lock()
    }

    /// Returns a new name, and registers it as a directory of this process.
    pub(crate) fn new_name(&self) -> String {
        let name = uuid::Uuid::new_v4().simple().to_string();
        self.own.lock().insert(name.clone());
        name
    }

    /// Whether this process has made the directory and not discarded it.
    pub(crate) fn owns(&self, name: &str) -> bool {
        self.own.lock().contains(name)
    }

    /// Gives the directory up: without a record it is trash from now on.
    pub(crate) fn disown(&self, name: &str) {
        self.own.lock().remove(name);
    }

    /// Takes a ready pair, if there is one. The call creates the owner's shelf, for [`Pool::fill`]. An owner whose
    /// mapping is not `shared` has no shelf, because shelves are never removed; such an owner gets a pair of the
    /// host's root, with `upper` changed to the new owner.
    pub(crate) fn take(&self, root: Root, shared: bool) -> Option<Pair> {
        if shared {
            return self.shelves().entry(root).or_default().pop();
        }
        let pair = self.shelves().entry((0, 0)).or_default().pop()?;
        let owner = (Some(Uid::from_raw(root.0)), Some(Gid::from_raw(root.1)));
        let given = rustix::fs::fchown(&pair.upper, owner.0, owner.1)
            .and_then(|()| rustix::fs::fchmod(&pair.upper, Mode::from_raw_mode(READY_MODE)));
        // A pair that was given up and has no record is trash.
        given.inspect_err(|_| self.disown(&pair.name)).ok().map(|()| pair)
    }

    /// Makes a pair. The remains of a failed call have no record, and so are trash.
    pub(crate) fn make(&self, layout: &Layout, name: &str, root: Root) -> rustix::io::Result<Pair> {
        if self.grouped {
            self.make_in_group(layout, name)?;
        } else {
            rustix::fs::mkdirat(&layout.rootfs, name, Mode::RWXU)?;
        }
        Pair::open(layout, name, root)
    }

    fn make_in_group(&self, layout: &Layout, name: &str) -> rustix::io::Result<()> {
        let mut current = self.group.lock();
        let group = match current.take() {
            Some(group) => group,
            None => {
                let name = self.new_name();
                let dir = rustix::fs::mkdirat(&layout.rootfs, &name, Mode::RWXU)
                    .and_then(|()| files::open_dir(&layout.rootfs, &name))
                    .inspect_err(|_| self.disown(&name))?;
                Group { name, dir, used: 0 }
            }
        };
        let made = rustix::fs::mkdirat(&group.dir, name, Mode::RWXU)
            .and_then(|()| rustix::fs::renameat(&group.dir, name, &layout.rootfs, name));
        let used = group.used + 1;
        if made.is_ok() && used < TOGETHER {
            *current = Some(Group { used, ..group });
        } else {
            // A directory that cannot be removed is trash.
            let _ = rustix::fs::unlinkat(&layout.rootfs, &group.name, AtFlags::REMOVEDIR);
            self.disown(&group.name);
        }
        made
    }

    /// Fills the shelves; [`Pool::take`] need not wait meanwhile.
    pub(crate) fn fill(&self, layout: &Layout) -> rustix::io::Result<()> {
        loop {
            let closed = self.closed.lock();
            if *closed {
                return Ok(());
            }
            let short = self.shelves().iter().find(|(_, shelf)| shelf.len() < READY).map(|(root, _)| *root);
            let Some(root) = short else { return Ok(()) };
            let name = self.new_name();
            let pair = self.make(layout, &name, root).inspect_err(|_| self.disown(&name))?;
            self.shelves().entry(root).or_default().push(pair);
        }
    }

    /// Closes the pool, after a pair that is being made; returns the names of all directories that this process has
    /// made and not discarded.
    pub(crate) fn close(&self) -> Vec<String> {
        *self.closed.lock() = true;
        self.shelves().clear();
        *self.group.lock() = None;
        self.own.lock().drain().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::lock::Role;

    #[test]
    fn pairs_that_are_made_in_groups_are_pairs() {
        let dir = tempfile::tempdir().unwrap();
        let open = Layout::open(&dir.path().join("store"), &dir.path().join("run"), Role::Server);
        let (layout, _lock) = open.unwrap();
        let pool = Pool::new(true);
        let make = || {
            let name = pool.new_name();
            pool.make(&layout, &name, (0, 0)).inspect_err(|_| pool.disown(&name))
        };
        let mut made: Vec<String> = (0..TOGETHER).map(|_| make().unwrap().name).collect();
        made.sort();
        let there = || {
            let mut names = files::names(files::open_dir(&layout.rootfs, ".").unwrap()).unwrap();
            names.sort();
            names
        };
        // The group is full, and its directory gone.
        assert_eq!(there(), made);
        made.push(make().unwrap().name);
        let group = there().into_iter().find(|name| !made.contains(name)).unwrap();
        assert!(pool.owns(&group));
        // If somebody deletes the group's directory by hand, one pair cannot be made, but the next can.
        rustix::fs::unlinkat(&layout.rootfs, &group, AtFlags::REMOVEDIR).unwrap();
        make().unwrap_err();
        made.push(make().unwrap().name);
        let mut owned = pool.close();
        owned.sort();
        assert_eq!((owned.len(), there()), (made.len() + 1, owned));
    }
}
