//! Hard links of a tar: a further name for a file that has one already.
//!
//! The first name is looked up long after its entry, in a directory that may be another user's: he can have put a file of his
//! own there, to which root would then give a name in a directory of root's. So the file is judged by a descriptor, and
//! what gets the name is what was judged.

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

/// Files that are remembered of an archive, of which each takes some 50 bytes of the helper's 256 MiB. What is beyond them is
/// taken for a file that was there before.
const MAX_FILES: usize = if cfg!(test) { 1000 } else { 1 << 20 };

/// The files, symbolic links and FIFOs that an archive has made.
#[derive(Default)]
pub struct Files {
    /// By device, inode and owner: another user who removes one can get its inode for a file of his own.
    made: RefCell<HashSet<(u64, u64, u32)>>,
    failed: Cell<bool>,
}

impl Files {
    /// The archive has made this file.
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

    /// The archive has made what has this stat.
    pub fn keep(&self, stat: &Stat) {
        let mut made = self.made.borrow_mut();
        if made.len() < MAX_FILES {
            made.insert((stat.st_dev, stat.st_ino, stat.st_uid));
        }
    }

    /// An entry of the archive could not be made. Whatever has its name is another file than the one that a link means, so from
    /// now on links lead only to what the archive has made.
    pub fn failed(&self) {
        self.failed.set(true);
    }

    /// Whether what lies in such a directory may get a further name.
    fn allow(&self, trust: Trust, above: &Place, stat: &Stat) -> io::Result<()> {
        let kind = FileType::from_raw_mode(stat.st_mode);
        // All of a symlink's mode bits are set, and mean nothing.
        let open = kind != FileType::Symlink && stat.st_mode & 0o022 != 0;
        let made = self.made.borrow().contains(&(stat.st_dev, stat.st_ino, stat.st_uid));
        // A directory gets none from the kernel, which says so.
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

/// Makes `to` another name of the file `from`. One that it has already stays: removing it could remove the file. Where there
/// can be no second name it is a file of its own. Returns the state of what has the name.
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
            // Not on this file system, or the first name lies on another one.
            let why = hard_link::impossible(&error).ok_or(error)?;
            let copy = hard_link::copy(&source, from, why, |mode| create(to, name, mode))?;
            files.add(&copy)?;
            return Ok(rustix::fs::fstat(&copy)?);
        }
        // Now, because an overlay may have changed its numbers.
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
