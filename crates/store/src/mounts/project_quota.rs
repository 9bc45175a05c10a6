//! Writable parts as directories of a project each, whose quota the file system enforces and counts (XFS, ext4).
//!
//! **Which projects.** A project is free if it takes nothing: the kernel's own count tells that, also of projects that
//! others use, and of files that are deleted but still open. Each store begins to look at another place among the
//! upper half of all ids, and takes the lowest free one: so the file system's quota file stays small.
//!
//! **What cannot get out.** The kernel lets no process in another user namespace than the host's change a project
//! (`fileattr_set_prepare` in fs/file_attr.c). But an overlay repeats the call on the file that it has copied up, with the
//! credentials of whoever mounted it, so that setting what the image's file has takes the copy out of its project. The
//! seccomp profile of containers therefore refuses the ioctls that set attributes of files. Overlays write with the credentials of whoever mounted them, without
//! CAP_SYS_RESOURCE (`ovl_fill_super` in fs/overlayfs/super.c), so that ext4 makes no exception for a privileged
//! container's root.

use parking_lot::Mutex;
use std::collections::VecDeque;
use std::ffi::CStr;
use std::os::fd::OwnedFd;

use rustix::fs::AtFlags;
use rustix::io::Errno;
use wardian_sys::project_quota::{self as quota, Quota};

use super::directories::Directories;
use super::driver::DiskDriver;
use super::upper::{Error, Pair, Upper};
use crate::disk::blocks::BLOCK;
use crate::disk::files;
use crate::disk::layout::Layout;
use crate::disk::limit::{Bound, Written};
use crate::disk::remove;
use crate::layers::owner::Root;

/// The ids that stores use. Administrators number from 1 on, by hand or in /etc/projid.
const FIRST: u32 = 1 << 31;
/// The ids between the places where two stores begin to look.
const STRIDE: u32 = 1 << 16;
/// The directories of a part which the store and the overlay make themselves.
const OWN: [&str; 6] =
    [".", "upper", "work", "work/work", "work/work/incompat", "work/work/incompat/volatile"];
/// An empty file of the overlay's.
const DIRTY: &str = "work/work/incompat/volatile/dirty";

/// The directories `rootfs/<name>/{upper,work}`, each of a project of its own.
#[derive(Debug)]
pub(crate) struct ProjectQuota {
    directories: Directories,
    free: Mutex<Free>,
}

/// Where to look for a free project.
#[derive(Debug)]
struct Free {
    /// Projects that this process has had, those given back first before the others.
    returned: VecDeque<u32>,
    /// The lowest one that it has not looked at.
    next: u32,
}

/// Why the file system under a directory cannot limit projects; `None`: it can.
pub(crate) fn missing(dir: &OwnedFd) -> Option<String> {
    match quota::state(dir) {
        Ok(state) if state.enforced => None,
        Ok(state) if state.counted => Some("it is counted but not enforced: mount with `prjquota`".into()),
        Ok(_) => Some("it is switched off: mount with `prjquota`".into()),
        Err(Errno::PERM) => Some("root lacks CAP_SYS_ADMIN".into()),
        Err(_) => Some("the file system under the store has none, or it is switched off (`prjquota`)".into()),
    }
}

impl ProjectQuota {
    pub(crate) fn new(directories: Directories) -> rustix::io::Result<Self> {
        let inode = rustix::fs::fstat(&directories.layout().rootfs)?.st_ino;
        // Neighbours in an inode table begin at distant places.
        let place = (inode.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 49) as u32;
        let next = FIRST + place * STRIDE;
        Ok(Self { directories, free: Mutex::new(Free { returned: VecDeque::new(), next }) })
    }

    fn layout(&self) -> &Layout {
        self.directories.layout()
    }

    /// Gives an empty directory to a project that nobody uses.
    fn assign(&self, dir: &OwnedFd) -> rustix::io::Result<()> {
        let mut free = self.free.lock();
        for _ in 0..STRIDE {
            let project = match free.returned.pop_front() {
                Some(project) => project,
                None => {
                    let next = free.next;
                    free.next = next.checked_add(1).filter(|next| *next != u32::MAX).unwrap_or(FIRST);
                    next
                }
            };
            let used = quota::get(dir, project)?;
            if (used.bytes, used.inodes) != (0, 0) {
                continue;
            }
            if (used.most_bytes, used.most_inodes) != (0, 0) {
                quota::set(dir, project, 0, 0)?;
            }
            quota::assign(dir, project)?;
            // Another process may have taken it at the same moment: then both give it up.
            if quota::get(dir, project)?.inodes == 1 {
                return Ok(());
            }
            quota::assign(dir, 0)?;
        }
        Err(Errno::BUSY)
    }

    fn open(&self, name: &str) -> rustix::io::Result<(OwnedFd, u32)> {
        let dir = files::open_dir(&self.layout().rootfs, name)?;
        let project = quota::project(&dir)?;
        Ok((dir, project))
    }
}

/// What a part's own directories take.
struct Own {
    bytes: u64,
    directories: u64,
    inodes: u64,
}

impl Own {
    /// `upper` counts with one block at most: more of them are the container's.
    fn of(dir: &OwnedFd) -> Self {
        let stat = |name: &str| rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).ok();
        let (bytes, directories) =
            OWN.iter().filter_map(|name| stat(name)).fold((0, 0), |(bytes, directories), stat| {
                let block = stat.st_blksize.unsigned_abs();
                (bytes + (stat.st_blocks.unsigned_abs() * BLOCK).min(block), directories + 1)
            });
        Self { bytes, directories, inodes: directories + u64::from(stat(DIRTY).is_some()) }
    }
}

impl Upper for ProjectQuota {
    fn driver(&self) -> DiskDriver {
        DiskDriver::ProjectQuota
    }

    fn made_with(&self, _bound: Bound) -> Result<Bound, Error> {
        Ok(Bound::NONE)
    }

    fn make(&self, name: &str, root: Root, _bound: Bound) -> Result<Pair, Error> {
        // Before the directories in it are made, which inherit the project.
        Ok(self.directories.make_in(name, root, |dir| self.assign(dir))?)
    }

    fn limit(&self, name: &str, bound: Bound) -> Result<(), Error> {
        let (dir, project) = self.open(name)?;
        if project == 0 {
            if self.directories.images().limit(name, bound)? {
                return Ok(());
            }
            let why = "this root file system was made without project quota: make it again".to_owned();
            return Err(Error::Unlimited { why });
        }
        // An overlay that is mounted later makes the rest of these directories; each has a block, or none has one.
        let own = Own::of(&dir);
        let all = OWN.len() as u64;
        let inodes = bound.inodes.map_or(0, |inodes| inodes.saturating_add(all + 1));
        let each = own.bytes / own.directories.max(1);
        let bytes = bound.bytes.map_or(0, |bytes| bytes.saturating_add(each * all));
        Ok(quota::set(&dir, project, bytes, inodes)?)
    }

    fn adopt(&self, name: &str) -> Result<(), Error> {
        // The directory names its project, and the file system keeps the limit.
        self.directories.adopt(name)
    }

    fn abandon(&self, name: &str) {
        self.directories.abandon(name);
    }

    fn let_go(&self) {
        self.directories.let_go();
    }

    fn written(&self, name: &str) -> rustix::io::Result<Option<Written>> {
        let (dir, project) = self.open(name)?;
        if project == 0 {
            return self.directories.written(name);
        }
        let Quota { bytes, inodes, .. } = quota::get(&dir, project)?;
        let own = Own::of(&dir);
        Ok(Some(Written {
            bytes: bytes.saturating_sub(own.bytes),
            inodes: Some(inodes.saturating_sub(own.inodes)),
        }))
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

    fn remove(&self, name: &CStr, stop: &dyn Fn() -> bool) -> Result<(), remove::Error> {
        let project = name.to_str().ok().and_then(|name| self.open(name).ok()).map(|(_, project)| project);
        self.directories.remove(name, stop)?;
        if let Some(project) = project.filter(|project| *project >= FIRST) {
            // Without a limit ext4 forgets it. What is deleted but still open counts until it is closed, and a
            // project that counts anything is not used again.
            let _ = quota::set(&self.layout().rootfs, project, 0, 0);
            self.free.lock().returned.push_back(project);
        }
        Ok(())
    }
}
