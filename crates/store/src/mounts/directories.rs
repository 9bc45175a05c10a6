//! Writable parts as plain directories, which cannot be limited.

use parking_lot::Mutex;
use std::collections::HashSet;
use std::ffi::CStr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{AtFlags, Mode};
use rustix::io::Errno;

use super::driver::DiskDriver;
use super::mounted::MountedImages;
use super::names::Names;
use super::upper::{Error, Pair, Upper};
use crate::disk::blocks::{BLOCK, entry_bytes};
use crate::disk::files;
use crate::disk::layout::Layout;
use crate::disk::limit::{Bound, Written};
use crate::disk::remove;
use crate::layers::owner::Root;

/// Pairs that are made in one block group.
const TOGETHER: usize = 32;

/// The directories `rootfs/<name>/{upper,work}`, and whatever a server with the driver image has made.
#[derive(Debug)]
pub(crate) struct Directories {
    layout: Arc<Layout>,
    names: Arc<Names>,
    /// Whether pairs are made in groups, see [`Group`].
    grouped: bool,
    group: Mutex<Option<Group>>,
    /// Images end as images under any driver.
    images: MountedImages,
    /// Why there is no driver that could limit them.
    why: String,
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

impl Directories {
    /// `grouped`: whether pairs are made in groups, which pays where there will be many. `why`: why there is no driver
    /// that could limit them, with the remedy.
    pub(crate) fn new(layout: Arc<Layout>, names: Arc<Names>, grouped: bool, why: String) -> Self {
        let images = MountedImages::new(Arc::clone(&layout));
        Self { layout, names, grouped, group: Mutex::default(), images, why }
    }

    fn refuse(&self, bound: Bound) -> Result<(), Error> {
        if bound.is_none() { Ok(()) } else { Err(Error::Unlimited { why: self.why.clone() }) }
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    pub(crate) fn images(&self) -> &MountedImages {
        &self.images
    }

    /// As [`Upper::make`]; `prepare` is called with the part's directory while it is empty.
    pub(crate) fn make_in(
        &self,
        name: &str,
        root: Root,
        prepare: impl FnOnce(&OwnedFd) -> rustix::io::Result<()>,
    ) -> rustix::io::Result<Pair> {
        if self.grouped {
            self.make_in_group(name)?;
        } else {
            rustix::fs::mkdirat(&self.layout.rootfs, name, Mode::RWXU)?;
        }
        let dir = files::open_dir(&self.layout.rootfs, name)?;
        prepare(&dir)?;
        Pair::make(name, dir, root)
    }

    fn make_in_group(&self, name: &str) -> rustix::io::Result<()> {
        let mut current = self.group.lock();
        // Once the store is closed the directory is nobody's.
        let group = match current.take().filter(|group| self.names.owns(&group.name)) {
            Some(group) => group,
            None => {
                let name = self.names.new_name();
                let dir = rustix::fs::mkdirat(&self.layout.rootfs, &name, Mode::RWXU)
                    .and_then(|()| files::open_dir(&self.layout.rootfs, &name))
                    .inspect_err(|_| self.names.disown(&name))?;
                Group { name, dir, used: 0 }
            }
        };
        let made = rustix::fs::mkdirat(&group.dir, name, Mode::RWXU)
            .and_then(|()| rustix::fs::renameat(&group.dir, name, &self.layout.rootfs, name));
        let used = group.used + 1;
        if made.is_ok() && used < TOGETHER {
            *current = Some(Group { used, ..group });
        } else {
            // A directory that cannot be removed is trash.
            let _ = rustix::fs::unlinkat(&self.layout.rootfs, &group.name, AtFlags::REMOVEDIR);
            self.names.disown(&group.name);
        }
        made
    }
}

impl Upper for Directories {
    fn driver(&self) -> DiskDriver {
        DiskDriver::None
    }

    fn made_with(&self, bound: Bound) -> Result<Bound, Error> {
        self.refuse(bound).map(|()| bound)
    }

    fn make(&self, name: &str, root: Root, bound: Bound) -> Result<Pair, Error> {
        self.refuse(bound)?;
        Ok(self.make_in(name, root, |_| Ok(()))?)
    }

    fn limit(&self, name: &str, bound: Bound) -> Result<(), Error> {
        if self.images.limit(name, bound)? { Ok(()) } else { self.refuse(bound) }
    }

    fn adopt(&self, name: &str) -> Result<(), Error> {
        self.images.adopt(name)
    }

    fn abandon(&self, name: &str) {
        self.images.abandon(name);
    }

    fn let_go(&self) {
        self.images.let_go();
    }

    fn written(&self, name: &str) -> rustix::io::Result<Option<Written>> {
        self.images.written(name)
    }

    fn measure(&self, name: &str, step: &dyn Fn() -> bool) -> rustix::io::Result<Option<u64>> {
        let dir = files::open_dir(&self.layout.rootfs, name)?;
        let own = match rustix::fs::statat(&dir, c"upper", AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => {
                return match self.images.written(name)? {
                    Some(written) => Ok(Some(written.bytes)),
                    // It is mounted nowhere.
                    None => Ok(entry_bytes(&dir, c"image", &mut HashSet::new(), step)),
                };
            }
            own => own?,
        };
        let bytes = entry_bytes(&dir, c"upper", &mut HashSet::new(), step);
        // The blocks of the `upper` directory itself do not count: it existed before anything was written.
        let own = own.st_blocks.unsigned_abs() * BLOCK;
        Ok(bytes.map(|bytes| bytes.saturating_sub(own)))
    }

    fn open_upper(&self, name: &str) -> rustix::io::Result<OwnedFd> {
        let dir = files::open_dir(&self.layout.rootfs, name)?;
        match files::open_dir(&dir, "upper") {
            Err(Errno::NOENT) => self.images.open_upper(name),
            opened => opened,
        }
    }

    fn is_unused(&self, name: &str) -> bool {
        if let Some(unused) = self.images.is_unused(name) {
            return unused;
        }
        let empty = |name: &str| {
            let dir = files::open_dir(&self.layout.rootfs, name);
            dir.and_then(files::names).is_ok_and(|names| names.is_empty())
        };
        // The second is the directory in which pairs are made.
        empty(&format!("{name}/upper")) || empty(name)
    }

    fn with_new_errors(&self) -> Vec<String> {
        self.images.with_new_errors()
    }

    fn remove(&self, name: &CStr, stop: &dyn Fn() -> bool) -> Result<(), remove::Error> {
        let image = self.images.shut_down(&name.to_string_lossy());
        let removed = remove::tree(&self.layout.rootfs, name, stop);
        if let Some(image) = image {
            self.images.drop_later(image);
        }
        removed
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
        let (layout, names) = (Arc::new(layout), Arc::new(Names::default()));
        let upper = Directories::new(Arc::clone(&layout), Arc::clone(&names), true, "none".to_owned());
        let make = || {
            let name = names.new_name();
            upper.make(&name, (0, 0), Bound::NONE).inspect_err(|_| names.disown(&name))
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
        assert!(names.owns(&group));
        // If somebody deletes the group's directory by hand, one pair cannot be made, but the next can.
        rustix::fs::unlinkat(&layout.rootfs, &group, AtFlags::REMOVEDIR).unwrap();
        make().unwrap_err();
        made.push(make().unwrap().name);
        let mut owned = names.disown_all();
        owned.sort();
        assert_eq!((owned.len(), there()), (made.len() + 1, owned));
    }
}
