//! Directories that somebody names on a command line, and that lie where others may write.

use super::{unsafe_path, write};
use crate::error::{Error, show};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, fstat, mkdirat, openat, readlinkat, statat};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::Path;
use wardian_sys::directory::names_of;

/// As the kernel's own (path_resolution(7)).
const MAX_LINKS: u32 = 40;

/// Opens the directory that a path leads to; none if there is none.
///
/// The path is walked by descriptors, one component after the other, and a symlink on it is followed only if root or the
/// caller owns it: another user could make his own lead anywhere after the caller has looked.
///
/// # Errors
/// [`Error::UnsafePath`] for the link of another user, [`Error::Io`] for what the kernel refuses.
pub fn directory(path: &Path) -> Result<Option<OwnedFd>, Error> {
    let shown = path.as_os_str().as_bytes();
    match walk(path) {
        Ok(dir) => Ok(Some(dir)),
        Err(Stop::Kernel(Errno::NOENT | Errno::NOTDIR)) => Ok(None),
        Err(Stop::Kernel(errno)) => Err(Error::Io { op: "open", path: show(shown), source: errno.into() }),
        Err(Stop::Stranger) => Err(unsafe_path(
            shown,
            "a symlink of another user is on its way, who can make it lead anywhere: name the directory that it \
             should lead to",
        )),
    }
}

/// Makes a new directory and opens it. Its mode is 0777 less the umask.
///
/// # Errors
/// There is something of this name already, or another user has put something else in its place.
pub fn make(above: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd, Error> {
    let shown = name.as_bytes();
    mkdirat(above, name, Mode::from_raw_mode(0o777)).map_err(write("make the directory", shown))?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let made = openat(above, name, flags, Mode::empty()).map_err(write("open", shown))?;
    let stat = fstat(&made).map_err(write("look at", shown))?;
    if stat.st_uid != rustix::process::geteuid().as_raw() {
        return Err(unsafe_path(shown, super::REPLACED));
    }
    Ok(made)
}

/// What a copy never takes the place of, for people; none if it is a file, a directory or a link.
pub fn special(kind: FileType) -> Option<&'static str> {
    match kind {
        FileType::CharacterDevice | FileType::BlockDevice => Some("a device"),
        FileType::Fifo => Some("a FIFO"),
        FileType::Socket => Some("a socket"),
        _ => None,
    }
}

enum Stop {
    Kernel(Errno),
    Stranger,
}

impl From<Errno> for Stop {
    fn from(errno: Errno) -> Self {
        Self::Kernel(errno)
    }
}

fn walk(path: &Path) -> Result<OwnedFd, Stop> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = |at: BorrowedFd<'_>, name: &OsStr| openat(at, name, flags | OFlags::DIRECTORY, Mode::empty());
    let start = |path: &Path| OsStr::new(if path.is_absolute() { "/" } else { "." }).to_owned();
    let trusted = [0, rustix::process::geteuid().as_raw()];
    let mut here = open(CWD, &start(path))?;
    let mut todo: VecDeque<OsString> = names_of(path).collect();
    let mut links = 0;
    while let Some(name) = todo.pop_front() {
        let stat = statat(&here, &name, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
            // If it has become a link meanwhile, this fails.
            here = open(here.as_fd(), &name)?;
            continue;
        }
        // What is looked at is what is read: by its descriptor.
        let link = openat(&here, &name, flags, Mode::empty())?;
        if !trusted.contains(&fstat(&link)?.st_uid) {
            return Err(Stop::Stranger);
        }
        links += 1;
        if links > MAX_LINKS {
            return Err(Errno::LOOP.into());
        }
        let target = OsString::from_vec(readlinkat(&link, "", Vec::new())?.into_bytes());
        let target = Path::new(&target);
        if target.is_absolute() {
            here = open(here.as_fd(), &start(target))?;
        }
        names_of(target).rev().for_each(|part| todo.push_front(part));
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(openat(&here, ".", flags, Mode::empty())?)
}
