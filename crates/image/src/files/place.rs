//! Directories given on a command line, which may lie where other users can write.

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

/// How far the time of a new file may lag behind the clock: file systems use the time of the last tick, at most 10 ms
/// ago, and some keep only hundredths of a second.
const TICK: Duration = Duration::from_millis(20);

/// The error text for a directory that was replaced.
pub(crate) const REPLACED: &str = "somebody has put something else in its place meanwhile";

pub(super) fn unsafe_path(path: &[u8], why: &'static str) -> Error {
    Error::UnsafePath { path: show(path), why }
}

/// Opens the directory that a path leads to; `None` if it does not exist.
///
/// The path is walked by descriptors, one component after the other. A symlink on it is followed only where nobody but
/// root and the caller could have put it: see [`directory::reach`].
///
/// # Errors
/// [`Error::UnsafePath`] for a symlink of another user, [`Error::Io`] for an error of the kernel.
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
/// The name exists already, or another user has replaced the new directory.
pub fn make(above: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd, Error> {
    let shown = name.as_bytes();
    fresh(above, name, Mode::from_raw_mode(0o777) - umask()?).map_err(|failure| failure.at(shown))
}

/// Returns the umask, to be applied to modes explicitly: in a directory with a default ACL the kernel ignores it
/// (umask(2)), and the ACL of another user's directory could give that user write access to the caller's files.
pub(super) fn umask() -> Result<Mode, Error> {
    let path = "/proc/thread-self/status";
    let error = |source| Error::Io { op: "read the umask in", path: path.into(), source };
    let text = std::fs::read_to_string(path).map_err(error)?;
    let umask = text.lines().find_map(|line| line.strip_prefix("Umask:"));
    let umask = umask.and_then(|umask| u32::from_str_radix(umask.trim(), 8).ok());
    umask.map(Mode::from_raw_mode).ok_or_else(|| error(io::ErrorKind::InvalidData.into()))
}

/// Why a new directory was not made.
#[derive(Debug)]
pub(crate) enum NotMade {
    /// The kernel's error.
    Kernel(Errno),
    /// The directory that was opened is not the one that was made.
    Replaced,
}

impl From<Errno> for NotMade {
    fn from(errno: Errno) -> Self {
        Self::Kernel(errno)
    }
}

impl NotMade {
    /// Converts it to the error of an unpacked entry.
    pub(super) fn at(self, path: &[u8]) -> Error {
        match self {
            Self::Kernel(errno) => at("make the directory", path)(errno),
            Self::Replaced => unsafe_path(path, REPLACED),
        }
    }
}

/// Makes a directory with this mode, less the umask, and opens it.
///
/// mkdir(2) returns no descriptor: a user who may rename entries of `above` can replace the new directory, before it
/// is opened, by another directory of root's, which would then be filled and made accessible in its place. So the
/// opened directory must be empty, owned by the caller, on the same file system and, where others may rename, no
/// older than this call. It may still be exchanged for another new and empty directory of the caller's, which does no
/// more harm than a later rename.
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

/// Whether a directory must be one that this program has made in `above` since `before`.
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
    // The time counts only where others may rename: on a network file system the server's clock may differ from this
    // host's.
    Ok(!others_rename_in(above)? || born(dir)? >= before.checked_sub(TICK).unwrap_or(UNIX_EPOCH))
}

/// Returns when a directory was made. If the file system does not keep the birth time, it returns the modification
/// time, which can be changed only by users who may write to the directory.
fn born(dir: &OwnedFd) -> Result<SystemTime, Errno> {
    let stat = statx(dir, "", AtFlags::EMPTY_PATH, StatxFlags::BTIME | StatxFlags::MTIME)?;
    let has_birth = stat.stx_mask & StatxFlags::BTIME.bits() != 0;
    let time = if has_birth { stat.stx_btime } else { stat.stx_mtime };
    let seconds = Duration::from_secs(u64::try_from(time.tv_sec).unwrap_or(0));
    // If only seconds are kept, the whole second counts.
    let nanos = if time.tv_nsec == 0 { 999_999_999 } else { time.tv_nsec };
    Ok(UNIX_EPOCH + seconds + Duration::from_nanos(nanos.into()))
}

/// Returns the name of a kind of file that a copy never replaces, for messages; `None` for a file, a directory or a
/// symlink.
pub fn special(kind: FileType) -> Option<&'static str> {
    match kind {
        FileType::CharacterDevice | FileType::BlockDevice => Some("a device"),
        FileType::Fifo => Some("a FIFO"),
        FileType::Socket => Some("a socket"),
        _ => None,
    }
}

/// As [`special`], for a path in a container, judged by the beginning of its tar. Also detects a symlink to the files
/// of a process, such as /dev/stdout, which leads each process to its own file.
pub fn special_in(tar: &[u8]) -> Option<&'static str> {
    use tar::EntryType;
    match Stream::new(tar, u64::MAX).next(false) {
        // A socket has no entry in a tar.
        Ok(None) => special(FileType::Socket),
        Ok(Some(entry)) => match entry.kind {
            EntryType::Char | EntryType::Block => special(FileType::CharacterDevice),
            EntryType::Fifo => special(FileType::Fifo),
            EntryType::Symlink if entry.link.starts_with(b"/proc/") => Some(PROCESS),
            _ => None,
        },
        // The tar was cut off in a long record, which only an ordinary file has.
        Err(_) => None,
    }
}

/// The name for a symlink whose target depends on the process that follows it.
pub const PROCESS: &str = "a link to the files of a process";

#[cfg(test)]
mod tests;
