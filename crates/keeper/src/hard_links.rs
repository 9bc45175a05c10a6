//! Hard links of a tar: a further name for a file that has one already.
//!
//! The first name is looked up long after its entry, in a directory that may be another user's, who can have put a
//! file of his own there: root would then give that file a name in a directory of root's. So the file is judged
//! through a descriptor, and the new name is given to the file behind that descriptor.

use crate::dirs::{Place, Trust};
use crate::transfer::{create, make_room};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use wardian_sys::hard_link;

/// Limit of the files that are remembered of an archive; each takes some 50 bytes of the helper's 256 MiB. Files
/// beyond it count as files that were there before.
const MAX_FILES: usize = if cfg!(test) { 1000 } else { 1 << 20 };

/// The files, symbolic links and FIFOs that an archive has made.
#[derive(Default)]
pub struct Files {
    /// By device, inode and owner: another user who removes one can get its inode number for a file of his own.
    made: RefCell<HashSet<(u64, u64, u32)>>,
    failed: Cell<bool>,
}

impl Files {
    /// Records a file that this archive has made.
    pub fn add(&self, file: impl AsFd) -> rustix::io::Result<()> {
        self.keep(&rustix::fs::fstat(file)?);
        Ok(())
    }

    /// Records a FIFO that this archive has made, unless another user has replaced it since.
    pub fn add_fifo(&self, trust: Trust, parent: &OwnedFd, name: &OsStr) -> rustix::io::Result<()> {
        let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if trust.owns(&stat) && FileType::from_raw_mode(stat.st_mode) == FileType::Fifo {
            self.keep(&stat);
        }
        Ok(())
    }

    /// Records, by its stat, a file that this archive has made.
    pub fn keep(&self, stat: &Stat) {
        let mut made = self.made.borrow_mut();
        if made.len() < MAX_FILES {
            made.insert((stat.st_dev, stat.st_ino, stat.st_uid));
        }
    }

    /// Records that an entry of the archive could not be made. A file of its name then is not the one that a later
    /// hard link means, so from now on hard links lead only to files that this archive has made.
    pub fn failed(&self) {
        self.failed.set(true);
    }

    /// Fails unless a file in the directory `above` may get a further name.
    fn allow(&self, trust: Trust, above: &Place, stat: &Stat) -> io::Result<()> {
        let kind = FileType::from_raw_mode(stat.st_mode);
        // All mode bits of a symlink are set, without a meaning.
        let open = kind != FileType::Symlink && stat.st_mode & 0o022 != 0;
        let made = self.made.borrow().contains(&(stat.st_dev, stat.st_ino, stat.st_uid));
        // For a directory the kernel refuses a hard link, with an error of its own.
        if kind == FileType::Directory || made && !open {
            return Ok(());
        }
        if open || !trust.owns(stat) {
            return Err(io::Error::other(
                "the file that it is a hard link to is another user's, or others may write to it",
            ));
        }
        if self.failed.get() || !above.alone {
            return Err(io::Error::other(
                "the file that it is a hard link to was not made by this archive, or not among its first million of files: \
                 either its entry has failed, or another user could have put it there",
            ));
        }
        Ok(())
    }
}

/// Makes `to` another name of the file `from`. If `to` names that file already, it is left alone: removing the name
/// could remove the file. Where no second name is possible, the file is copied. Returns the stat of the file with the
/// new name.
pub fn link(
    files: &Files,
    trust: Trust,
    (above, old): (&Place, &OsStr),
    (to, name): (&OwnedFd, &OsStr),
) -> io::Result<Stat> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let source = rustix::fs::openat(&above.dir, old, flags, Mode::empty())?;
    files.allow(trust, above, &rustix::fs::fstat(&source)?)?;
    let from = (above.dir.as_fd(), old);
    let link = || {
        if let Err(error) = hard_link::link(&source, from, (to.as_fd(), name)) {
            // This file system has no hard links, or the first name is on another one.
            let why = hard_link::impossible(&error).ok_or(error)?;
            let copy = hard_link::copy(&source, from, why, |mode| create(to, name, mode))?;
            files.add(&copy)?;
            return Ok(rustix::fs::fstat(&copy)?);
        }
        // Read after the link, because an overlay may have changed the file's inode number.
        Ok(rustix::fs::fstat(&source)?)
    };
    match link() {
        Err(error) if Errno::from_io_error(&error) == Some(Errno::EXIST) => {
            let there = rustix::fs::statat(to, name, AtFlags::SYMLINK_NOFOLLOW)?;
            if hard_link::is(&source, &there)? {
                return Ok(there);
            }
            make_room(to, name)?;
            link()
        }
        other => other,
    }
}
