//! Writable parts as subvolumes of btrfs, whose quota groups the file system enforces and counts. A part is removed by
//! one system call, however many files it has.

use parking_lot::Mutex;
use std::ffi::{CStr, CString};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::Mode;
use rustix::io::Errno;
use wardian_sys::btrfs;

use super::directories::Directories;
use super::driver::DiskDriver;
use super::upper::{Error, Pair, Upper};
use crate::disk::files;
use crate::disk::layout::Layout;
use crate::disk::limit::{Bound, Written};
use crate::disk::remove;
use crate::layers::owner::Root;

/// Nobody has switched quota on, or somebody has switched it off.
const OFF: &str = "quota is switched off: `btrfs quota enable` on its mount point";

/// The subvolumes `rootfs/<name>` with `upper` and `work`.
#[derive(Debug)]
pub(crate) struct Btrfs {
    layout: Arc<Layout>,
    /// For parts that another driver has made.
    directories: Directories,
    /// Where /sys shows the quota groups.
    groups: PathBuf,
    /// What an empty part counts: the root of its tree.
    empty: u64,
    /// Groups of removed subvolumes that the kernel has not let go yet.
    left: Mutex<Vec<u64>>,
}

/// Why the file system under a directory cannot limit subvolumes; `None`: it can.
pub(crate) fn missing(dir: &OwnedFd) -> Option<String> {
    match btrfs::groups(dir) {
        Ok(groups) if groups.exists() => None,
        Ok(_) => Some(OFF.into()),
        Err(_) => Some("the file system under the store is none".into()),
    }
}

impl Btrfs {
    pub(crate) fn new(layout: Arc<Layout>, directories: Directories) -> rustix::io::Result<Self> {
        let groups = btrfs::groups(&layout.rootfs)?;
        let size = std::fs::read_to_string(groups.with_file_name("nodesize"));
        let empty = size.ok().and_then(|size| size.trim().parse().ok()).unwrap_or(16 << 10);
        Ok(Self { layout, directories, groups, empty, left: Mutex::default() })
    }

    /// Opens a part; with its subvolume, unless another driver has made it.
    fn open(&self, name: &str) -> rustix::io::Result<(OwnedFd, Option<u64>)> {
        let dir = files::open_dir(&self.layout.rootfs, name)?;
        let subvolume = btrfs::is_subvolume(&dir)?.then(|| btrfs::subvolume(&dir)).transpose()?;
        Ok((dir, subvolume))
    }

    /// Removes the groups of subvolumes that are gone by now.
    fn tidy(&self) {
        let gone = |subvolume: &u64| btrfs::remove_group(&self.layout.rootfs, *subvolume) != Err(Errno::BUSY);
        self.left.lock().retain(|subvolume| !gone(subvolume));
    }
}

impl Upper for Btrfs {
    fn driver(&self) -> DiskDriver {
        DiskDriver::Btrfs
    }

    fn made_with(&self, bound: Bound) -> Result<Bound, Error> {
        if bound.inodes.is_some() {
            let why =
                "btrfs limits no inodes: leave that limit out, or choose --disk-driver image".to_owned();
            return Err(Error::Unlimited { why });
        }
        Ok(Bound::NONE)
    }

    fn make(&self, name: &str, root: Root, _bound: Bound) -> Result<Pair, Error> {
        let c_name = CString::new(name).map_err(|_| Errno::INVAL)?;
        btrfs::create(&self.layout.rootfs, &c_name)?;
        let dir = files::open_dir(&self.layout.rootfs, name)?;
        rustix::fs::fchmod(&dir, Mode::RWXU)?;
        Ok(Pair::make(name, dir, root)?)
    }

    fn limit(&self, name: &str, bound: Bound) -> Result<(), Error> {
        if self.directories.images().limit(name, bound)? {
            return Ok(());
        }
        self.made_with(bound)?;
        let (_, Some(subvolume)) = self.open(name)? else {
            let why = "this root file system was made without subvolumes: make it again".to_owned();
            return Err(Error::Unlimited { why });
        };
        let bytes = bound.bytes.map(|bytes| bytes.saturating_add(self.empty).min(u64::MAX - 1));
        // Not by the part's own directory: the change would count there, and a full part could not be given more.
        btrfs::limit(&self.layout.rootfs, subvolume, bytes).map_err(|errno| match errno {
            Errno::NOTCONN => Error::Unlimited { why: format!("btrfs: {OFF}") },
            errno => errno.into(),
        })
    }

    fn adopt(&self, name: &str) -> Result<(), Error> {
        // The file system keeps the limit.
        self.directories.adopt(name)
    }

    fn abandon(&self, name: &str) {
        self.directories.abandon(name);
    }

    fn let_go(&self) {
        self.directories.let_go();
    }

    fn written(&self, name: &str) -> rustix::io::Result<Option<Written>> {
        let (_, Some(subvolume)) = self.open(name)? else { return self.directories.written(name) };
        let group = btrfs::group(&self.groups, subvolume).map_err(|_| Errno::NOENT)?;
        Ok(Some(Written { bytes: group.bytes.saturating_sub(self.empty), inodes: None }))
    }

    fn measure(&self, name: &str, step: &dyn Fn() -> bool) -> rustix::io::Result<Option<u64>> {
        self.directories.measure(name, step)
    }

    fn open_upper(&self, name: &str) -> rustix::io::Result<OwnedFd> {
        self.directories.open_upper(name)
    }

    fn is_unused(&self, name: &str) -> bool {
        self.directories.is_unused(name)
    }

    fn with_new_errors(&self) -> Vec<String> {
        self.directories.with_new_errors()
    }

    fn trouble(&self) -> Option<&'static str> {
        (!self.groups.exists()).then_some(OFF)
    }

    fn remove(&self, name: &CStr, stop: &dyn Fn() -> bool) -> Result<(), remove::Error> {
        let subvolume = name.to_str().ok().and_then(|name| self.open(name).ok()?.1);
        if let Some(subvolume) = subvolume
            && btrfs::destroy(&self.layout.rootfs, name).is_ok()
        {
            self.left.lock().push(subvolume);
        }
        self.tidy();
        // Nothing is there, or something that is no subvolume or cannot be removed as one.
        self.directories.remove(name, stop)
    }
}
