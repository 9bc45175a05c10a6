//! Removal of directory trees that containers and images left behind. It never follows a symlink, never enters
//! another mount, uses no recursion, and holds a bounded number of descriptors however deep the tree is.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, RenameFlags, ResolveFlags};
use rustix::io::Errno;
use wardian_sys::failpoint;

use crate::failpoints::Point;

/// How deep the walk goes; deeper directories are moved up to the top of the tree first. Each level holds one
/// descriptor, and a process may have as few as 1024.
const MAX_DEPTH: usize = 32;

/// Why a tree was not removed completely.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An entry could not be removed; the rest of the tree was.
    #[error("cannot remove {name:?}")]
    Entry {
        /// Its name, without its directories.
        name: CString,
        /// The kernel's error: EXDEV is a mount point, EPERM an immutable file.
        source: Errno,
    },
    /// The caller asked to stop.
    #[error("stopped")]
    Stopped,
}

struct Frame {
    dir: OwnedFd,
    entries: Dir,
    name: CString,
    /// Whether this pass over the entries removed one. Some file systems skip entries after a removal, and the top
    /// directory receives those that were moved up: if the directory turns out not to be empty, another pass follows.
    removed: bool,
    failed: bool,
}

impl Frame {
    fn open(parent: BorrowedFd<'_>, name: &CStr) -> Result<Self, Errno> {
        let dir = match open(parent, name) {
            Err(Errno::ACCESS) => {
                make_accessible(parent, name)?;
                open(parent, name)?
            }
            other => other?,
        };
        let entries = Dir::read_from(&dir)?;
        Ok(Self { dir, entries, name: name.to_owned(), removed: false, failed: false })
    }
}

fn resolve() -> ResolveFlags {
    ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV
}

fn open(parent: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    wardian_sys::directory::open(parent, name, flags, resolve())
}

/// Adds the owner's permissions to a directory; needed only where root lacks CAP_DAC_OVERRIDE.
fn make_accessible(parent: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    use std::os::fd::AsRawFd;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = wardian_sys::directory::open(parent, name, flags, resolve())?;
    rustix::fs::chmod(format!("/proc/self/fd/{}", dir.as_raw_fd()), Mode::RWXU)
}

/// Removes the directory `name` under `parent` with its content. A missing directory is no error.
///
/// `stop` is called before each entry; true ends the removal. Entries that cannot be removed are skipped; the first
/// such error is returned. The tree's top directory must not be writable by others: deep directories are moved into
/// it.
pub fn tree(parent: impl AsFd, name: &CStr, stop: &dyn Fn() -> bool) -> Result<(), Error> {
    let parent = parent.as_fd();
    let failure = |name: &CStr, source| Error::Entry { name: name.to_owned(), source };
    let mut first: Option<Error> = None;
    let mut moved: u64 = 0;
    let mut stack = match Frame::open(parent, name) {
        Ok(frame) => vec![frame],
        Err(Errno::NOENT) => return Ok(()),
        // A stray file or symlink.
        Err(Errno::NOTDIR | Errno::LOOP) => {
            return rustix::fs::unlinkat(parent, name, AtFlags::empty())
                .map_err(|source| failure(name, source));
        }
        Err(source) => return Err(failure(name, source)),
    };
    while let Some(depth) = stack.len().checked_sub(1) {
        if stop() {
            return Err(Error::Stopped);
        }
        let frame = &mut stack[depth];
        match frame.entries.next() {
            Some(Ok(entry)) => {
                failpoint::reach(Point::DeletedSome);
                let entry_name = entry.file_name();
                if entry_name == c"." || entry_name == c".." {
                    continue;
                }
                let result = match unlink(frame.dir.as_fd(), entry_name, entry.file_type()) {
                    Ok(true) => {
                        frame.removed = true;
                        Ok(())
                    }
                    Ok(false) if depth + 1 < MAX_DEPTH => match Frame::open(frame.dir.as_fd(), entry_name) {
                        Ok(child) => {
                            stack.push(child);
                            Ok(())
                        }
                        Err(error) => Err(error),
                    },
                    Ok(false) => {
                        let result = lift(&stack[depth].dir, entry_name, &stack[0].dir, &mut moved);
                        stack[depth].removed |= result.is_ok();
                        stack[0].removed |= result.is_ok();
                        result
                    }
                    Err(error) => Err(error),
                };
                match result {
                    Ok(()) | Err(Errno::NOENT) => {}
                    Err(source) => {
                        stack[depth].failed = true;
                        first.get_or_insert_with(|| failure(entry_name, source));
                    }
                }
            }
            Some(Err(source)) => {
                // This directory cannot be read any further.
                first.get_or_insert_with(|| failure(&frame.name, source));
                frame.failed = true;
                pop(parent, &mut stack, &mut first);
            }
            None => pop(parent, &mut stack, &mut first),
        }
    }
    first.map_or(Ok(()), Err)
}

/// Removes an entry that is no directory and returns true; returns false for a directory, which is left to the walk.
fn unlink(dir: BorrowedFd<'_>, name: &CStr, kind: FileType) -> Result<bool, Errno> {
    if kind == FileType::Directory {
        return Ok(false);
    }
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) => Ok(true),
        Err(Errno::ISDIR) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Moves a directory that lies too deep to the top of the tree, where the walk finds it again.
fn lift(from: &OwnedFd, name: &CStr, top: &OwnedFd, moved: &mut u64) -> Result<(), Errno> {
    loop {
        let new = format!(".deep-{moved}");
        *moved += 1;
        match rustix::fs::renameat_with(from, name, top, &new, RenameFlags::NOREPLACE) {
            Err(Errno::EXIST) => {}
            other => return other,
        }
    }
}

/// Leaves the innermost directory and removes it unless entries remain, or starts another pass over it.
fn pop(parent: BorrowedFd<'_>, stack: &mut Vec<Frame>, first: &mut Option<Error>) {
    let Some(mut frame) = stack.pop() else { return };
    let above = stack.last().map_or(parent, |frame| frame.dir.as_fd());
    let result = rustix::fs::unlinkat(above, &frame.name, AtFlags::REMOVEDIR);
    if frame.removed && matches!(result, Err(Errno::NOTEMPTY | Errno::EXIST)) {
        frame.removed = false;
        frame.entries.rewind();
        stack.push(frame);
        return;
    }
    let above = stack.last_mut();
    match result {
        Ok(()) | Err(Errno::NOENT) => {
            if let Some(above) = above {
                above.removed = true;
            }
        }
        Err(source) => {
            if !frame.failed {
                first.get_or_insert_with(|| Error::Entry { name: frame.name, source });
            }
            if let Some(above) = above {
                above.failed = true;
            }
        }
    }
}
