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
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use wardian_sys::hard_link;

/// Files that are remembered of an archive.
const MAX_FILES: usize = 100_000;

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

    /// The archive has made a FIFO of this name; what another user has put in its place since is none of the archive's.
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
        // A directory gets none from the kernel, which says so.
        if kind == FileType::Directory
            || self.made.borrow().contains(&(stat.st_dev, stat.st_ino, stat.st_uid))
        {
            return Ok(());
        }
        // All of a symlink's mode bits are set, and mean nothing.
        if !trust.owns(stat) || kind != FileType::Symlink && stat.st_mode & 0o022 != 0 {
            return Err(io::Error::other(
                "the file that it is a hard link to is another user's, or others may write to it",
            ));
        }
        // Of very many files not all are remembered.
        let forgotten = self.made.borrow().len() >= MAX_FILES;
        if self.failed.get() || !above.alone && !forgotten {
            return Err(io::Error::other(
                "the file that it is a hard link to was not made by this archive: either its entry has failed, or \
                 another user could have put it there",
            ));
        }
        Ok(())
    }
}

/// Makes `to` another name of the file `from`. One that it has already stays: removing it could remove the file. Where there
/// can be no second name it is a file of its own, which is given back.
pub fn link(
    files: &Files,
    trust: Trust,
    (above, old): (&Place, &OsStr),
    (to, name): (&OwnedFd, &OsStr),
) -> io::Result<Option<File>> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let source = rustix::fs::openat(&above.dir, old, flags, Mode::empty())?;
    files.allow(trust, above, &rustix::fs::fstat(&source)?)?;
    let from = (above.dir.as_fd(), old);
    let link = || match hard_link::link(&source, from, (to.as_fd(), name)) {
        // Not on this file system, or the first name lies on another one.
        Err(error) => match hard_link::impossible(&error) {
            Some(why) => hard_link::copy(&source, from, why, |mode| create(to, name, mode)).map(Some),
            None => Err(error),
        },
        Ok(()) => Ok(None),
    };
    match link() {
        Err(error) if Errno::from_io_error(&error) == Some(Errno::EXIST) => {
            let there = rustix::fs::statat(to, name, AtFlags::SYMLINK_NOFOLLOW)?;
            if hard_link::is(&source, &there)? {
                return Ok(None);
            }
            make_room(to, name)?;
            link()
        }
        other => other,
    }
}
