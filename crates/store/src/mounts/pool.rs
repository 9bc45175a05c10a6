//! Empty upper/work pairs made ahead, one shelf for each owner of root directories.

use parking_lot::{Mutex, MutexGuard};
use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, Gid, Mode, Uid};

use crate::disk::files;
use crate::disk::layout::Layout;
use crate::layers::owner::Root;

/// Pairs ready on each shelf: enough for a burst of a scale-up on a small host.
const READY: usize = 16;
/// Pairs that are made in one block group.
const TOGETHER: usize = 32;
/// The mode that a ready upper has; what most images' root directories have.
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
    /// Fills the new directory.
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

/// The pairs that are ready, and the names of all directories in `rootfs/` that this process has made: they may have no
/// record and are no trash all the same.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    pub(crate) shelves: Mutex<HashMap<Root, Vec<Pair>>>,
    own: Mutex<HashSet<String>>,
    /// Held while a pair is made; true once nothing is made any more.
    closed: Mutex<bool>,
    /// Whether directories are made in groups.
    grouped: bool,
    group: Mutex<Option<Group>>,
}

/// An empty directory in `rootfs/`: what is made in it and moved out of it is in its block group.
///
/// The group of a new directory in `rootfs/` itself is one where nobody else is ([`Layout::spreads`]), and so each
/// pair would dirty two bitmaps and a block of the inode table that no other pair does.
#[derive(Debug)]
struct Group {
    name: String,
    dir: OwnedFd,
    used: usize,
}

impl Pool {
    /// `grouped`: there will be many pairs.
    pub(crate) fn new(grouped: bool) -> Self {
        Self { grouped, ..Self::default() }
    }

    fn shelves(&self) -> MutexGuard<'_, HashMap<Root, Vec<Pair>>> {
        self.shelves.lock()
    }

    /// A new name for a directory that this process is going to make.
    pub(crate) fn new_name(&self) -> String {
        let name = uuid::Uuid::new_v4().simple().to_string();
        self.own.lock().insert(name.clone());
        name
    }

    /// Whether this process has made it and not thrown it away.
    pub(crate) fn owns(&self, name: &str) -> bool {
        self.own.lock().contains(name)
    }

    /// It is trash from here on.
    pub(crate) fn disown(&self, name: &str) {
        self.own.lock().remove(name);
    }

    /// A ready pair, if there is one. Asking opens the owner's shelf, for [`Pool::fill`]. An owner who is not `shared` has
    /// none: shelves are there for good. He is given a pair of the host's root.
    pub(crate) fn take(&self, root: Root, shared: bool) -> Option<Pair> {
        if shared {
            return self.shelves().entry(root).or_default().pop();
        }
        let pair = self.shelves().entry((0, 0)).or_default().pop()?;
        let owner = (Some(Uid::from_raw(root.0)), Some(Gid::from_raw(root.1)));
        let given = rustix::fs::fchown(&pair.upper, owner.0, owner.1)
            .and_then(|()| rustix::fs::fchmod(&pair.upper, Mode::from_raw_mode(READY_MODE)));
        // Without a record it is trash, once it is not ours.
        given.inspect_err(|_| self.disown(&pair.name)).ok().map(|()| pair)
    }

    /// Makes one. What a failure leaves has no record, and so is trash.
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
            // If it cannot be removed it is trash.
            let _ = rustix::fs::unlinkat(&layout.rootfs, &group.name, AtFlags::REMOVEDIR);
            self.disown(&group.name);
        }
        made
    }

    /// Makes what is missing, without holding anybody up.
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

    /// Gives up the pairs; the names of all that this process has made and not thrown away. One that is being made is
    /// waited for.
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
        // Somebody tidies up by hand: one cannot be made, the next is.
        rustix::fs::unlinkat(&layout.rootfs, &group, AtFlags::REMOVEDIR).unwrap();
        make().unwrap_err();
        made.push(make().unwrap().name);
        let mut owned = pool.close();
        owned.sort();
        assert_eq!((owned.len(), there()), (made.len() + 1, owned));
    }
}
