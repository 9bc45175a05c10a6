//! Directories that somebody names on a command line, and that lie where others may write.

use crate::error::{Error, at, show};
use crate::format::stream::Stream;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, StatxFlags, fstat, mkdirat, openat, statx};
use rustix::io::Errno;
use rustix::path::Arg;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use wardian_sys::directory::{self, others_rename_in};

/// So much earlier than the clock says a file system may date what it makes: it takes the time of the last tick, at most
/// 10 ms ago, and some keep no more than hundredths of a second.
const TICK: Duration = Duration::from_millis(20);

/// What is said of a directory that is not the one it was.
pub(crate) const REPLACED: &str = "somebody has put something else in its place meanwhile";

pub(super) fn unsafe_path(path: &[u8], why: &'static str) -> Error {
    Error::UnsafePath { path: show(path), why }
}

/// Opens the directory that a path leads to; none if there is none.
///
/// The path is walked by descriptors, one component after the other. A symlink on it is followed only where nobody but
/// root and the caller could have put it: see [`directory::reach`].
///
/// # Errors
/// [`Error::UnsafePath`] for the link of another user, [`Error::Io`] for what the kernel refuses.
pub fn directory(path: &Path) -> Result<Option<OwnedFd>, Error> {
    let shown = path.as_os_str().as_bytes();
    let source = match directory::reach(path) {
        Ok(dir) => return Ok(Some(dir)),
        Err(directory::Error::Owner { .. } | directory::Error::Writable { .. }) => {
            return Err(unsafe_path(
                shown,
                "on its way is a symlink of another user, or one in a directory in which other users may rename, who can \
                 make it lead anywhere: name the directory that it should lead to",
            ));
        }
        Err(directory::Error::System { source, .. }) => source,
        Err(other) => other.into(),
    };
    match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Ok(None),
        _ => Err(Error::Io { op: "open", path: show(shown), source }),
    }
}

/// Makes a new directory and opens it. Its mode is 0777 less the umask.
///
/// # Errors
/// There is something of this name already, or another user has put something else in its place.
pub fn make(above: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd, Error> {
    let shown = name.as_bytes();
    fresh(above, name, Mode::from_raw_mode(0o777) - umask()?).map_err(|failure| failure.at(shown))
}

/// The umask, for modes that are less it already: where a directory has a default access control list the kernel leaves it out
/// (umask(2)), and the list of another user's directory would let him write to what is the caller's.
pub(super) fn umask() -> Result<Mode, Error> {
    let path = "/proc/thread-self/status";
    let error = |source| Error::Io { op: "read the umask in", path: path.into(), source };
    let text = std::fs::read_to_string(path).map_err(error)?;
    let umask = text.lines().find_map(|line| line.strip_prefix("Umask:"));
    let umask = umask.and_then(|umask| u32::from_str_radix(umask.trim(), 8).ok());
    umask.map(Mode::from_raw_mode).ok_or_else(|| error(io::ErrorKind::InvalidData.into()))
}

/// Why there is no new directory.
#[derive(Debug)]
pub(crate) enum NotMade {
    /// The kernel's answer.
    Kernel(Errno),
    /// What was opened is not what was made.
    Replaced,
}

impl From<Errno> for NotMade {
    fn from(errno: Errno) -> Self {
        Self::Kernel(errno)
    }
}

impl NotMade {
    /// As the error of something that is unpacked.
    pub(super) fn at(self, path: &[u8]) -> Error {
        match self {
            Self::Kernel(errno) => at("make the directory", path)(errno),
            Self::Replaced => unsafe_path(path, REPLACED),
        }
    }
}

/// Makes a directory of this mode, less the umask, and opens it.
///
/// mkdir(2) gives no descriptor: who may rename in the directory `above` can put another directory of root's in the place of
/// the new one before it is opened, which would be filled and opened to others as if it were the new one. So what is
/// opened must be empty, the caller's, on the same file system and, where others may rename, no older than this call.
/// Another new and empty directory of the caller's may still be exchanged for it, which is as if it were renamed later.
pub(crate) fn fresh(above: BorrowedFd<'_>, name: impl Arg + Copy, mode: Mode) -> Result<OwnedFd, NotMade> {
    let before = SystemTime::now();
    mkdirat(above, name, mode)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match openat(above, name, flags, Mode::empty()) {
        Ok(dir) if is_new(above, &dir, before)? => Ok(dir),
        Ok(_) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Err(NotMade::Replaced),
        Err(errno) => Err(errno.into()),
    }
}

/// Whether a directory can only be one that this program has made in `above` since `before`.
fn is_new(above: BorrowedFd<'_>, dir: &OwnedFd, before: SystemTime) -> Result<bool, Errno> {
    let stat = fstat(dir)?;
    if stat.st_uid != rustix::process::geteuid().as_raw() || stat.st_dev != fstat(above)?.st_dev {
        return Ok(false);
    }
    for entry in Dir::read_from(dir)? {
        if !matches!(entry?.file_name().to_bytes(), b"." | b"..") {
            return Ok(false);
        }
    }
    // Elsewhere the clock of a server need not be that of this host.
    Ok(!others_rename_in(above)? || born(dir)? >= before.checked_sub(TICK).unwrap_or(UNIX_EPOCH))
}

/// When a directory was made; where the file system does not keep that, when something was last made or removed in it,
/// which only those can change who may write to it.
fn born(dir: &OwnedFd) -> Result<SystemTime, Errno> {
    let stat = statx(dir, "", AtFlags::EMPTY_PATH, StatxFlags::BTIME | StatxFlags::MTIME)?;
    let has_birth = stat.stx_mask & StatxFlags::BTIME.bits() != 0;
    let time = if has_birth { stat.stx_btime } else { stat.stx_mtime };
    let seconds = Duration::from_secs(u64::try_from(time.tv_sec).unwrap_or(0));
    // Where only seconds are kept, all of the second counts.
    let nanos = if time.tv_nsec == 0 { 999_999_999 } else { time.tv_nsec };
    Ok(UNIX_EPOCH + seconds + Duration::from_nanos(nanos.into()))
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

/// The same of a place in a container, by the beginning of the tar that it gives; also of a link to the files of a process, as
/// /dev/stdout is one, which leads every process to a file of its own.
pub fn special_in(tar: &[u8]) -> Option<&'static str> {
    use tar::EntryType;
    match Stream::new(tar, u64::MAX).next(false) {
        // Tars have no sockets.
        Ok(None) => special(FileType::Socket),
        Ok(Some(entry)) => match entry.kind {
            EntryType::Char | EntryType::Block => special(FileType::CharacterDevice),
            EntryType::Fifo => special(FileType::Fifo),
            EntryType::Symlink if entry.link.starts_with(b"/proc/") => Some(PROCESS),
            _ => None,
        },
        // It was cut off behind a long record: files have those.
        Err(_) => None,
    }
}

/// What a link is whose text leads to the open files of whoever follows it.
pub const PROCESS: &str = "a link to the files of a process";

#[cfg(test)]
mod tests;
