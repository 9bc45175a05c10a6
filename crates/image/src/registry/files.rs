//! The files of a host that say something of registries.

use std::fs::{self, Metadata};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, OFlags, flock, makedev};
use rustix::io::Errno;

/// The most bytes of one file.
const MOST: u64 = 4 << 20;
/// How long the lock of a file is waited for: its holder reads and writes some kilobytes.
const PATIENCE: Duration = Duration::from_secs(10);
/// The pause between two tries to take it.
const PERIOD: Duration = Duration::from_millis(5);
/// How many links lead to a file at most (path_resolution(7)).
const MAX_LINKS: u32 = 40;
/// The device `/dev/null` (Documentation/admin-guide/devices.txt), as which a file is empty.
const NULL: (u32, u32) = (1, 3);

/// Reads a text file, if `check` has nothing against it; `None` if it is missing.
///
/// # Errors
/// It cannot be read, is no file, or is larger than 4 MiB.
pub(super) fn text(
    path: &Path,
    check: impl FnOnce(&Metadata) -> io::Result<()>,
) -> io::Result<Option<String>> {
    let file = match opening(OFlags::empty()).read(true).open(path) {
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        file => file?,
    };
    let found = file.metadata()?;
    if found.file_type().is_char_device() && found.rdev() == makedev(NULL.0, NULL.1) {
        return Ok(Some(String::new()));
    }
    if !found.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    check(&found)?;
    let mut text = String::new();
    file.take(MOST + 1).read_to_string(&mut text)?;
    match text.len() as u64 > MOST {
        true => Err(io::Error::other("it is larger than 4 MiB")),
        false => Ok(Some(text)),
    }
}

/// A FIFO would be waited for.
fn opening(flags: OFlags) -> fs::OpenOptions {
    let mut options = fs::OpenOptions::new();
    options.custom_flags((flags | OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed());
    options
}

/// Returns the file that a name leads to by links, which need not exist: of a link the target is replaced, as the one
/// who made it expects.
///
/// # Errors
/// There are too many links.
pub(super) fn target(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        let Ok(to) = fs::read_link(&path) else { return Ok(path) };
        path = path.parent().unwrap_or(Path::new("/")).join(to);
    }
    Err(Errno::LOOP.into())
}

/// Locks a file, which may be missing, until the returned one is closed: what is read and written again meanwhile is
/// read and written by nobody else. The lock is a file beside it, because the file itself is replaced. Nobody but the
/// owner can open that, and so hold the lock.
///
/// # Errors
/// The lock cannot be made, or its holder keeps it for too long.
pub(super) fn lock(path: &Path) -> io::Result<fs::File> {
    let (dir, name) = split(path)?;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let mut options = opening(OFlags::NOFOLLOW);
    let lock = options.write(true).create(true).mode(0o600).open(dir.join(format!(".{name}.lock")))?;
    let started = Instant::now();
    loop {
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(lock),
            Err(Errno::WOULDBLOCK) if started.elapsed() < PATIENCE => thread::sleep(PERIOD),
            Err(Errno::WOULDBLOCK) => return Err(io::Error::other("another process is changing it")),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Replaces a file by one that only its owner may read; a reader sees the old or the new one.
///
/// # Errors
/// The system's.
pub(super) fn write(path: &Path, text: &str) -> io::Result<()> {
    let (dir, name) = split(path)?;
    let new = dir.join(format!(".{name}.{}.{:x}", std::process::id(), fastrand::u64(..)));
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    let done =
        file.write_all(text.as_bytes()).and_then(|()| file.sync_data()).and_then(|()| fs::rename(&new, path));
    if done.is_err() {
        let _ = fs::remove_file(&new);
    }
    done
}

/// Returns the directory of a file, and its name.
fn split(path: &Path) -> io::Result<(&Path, String)> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy().into_owned();
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok((dir, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let read = || text(&path, |_| Ok(()));
        assert_eq!(read().unwrap(), None);
        assert_eq!(text(&path.join("below"), |_| Ok(())).unwrap(), None);
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        assert!(read().unwrap_err().to_string().contains("no file"));
        assert!(text(dir.path(), |_| Ok(())).is_err());
        assert!(text(Path::new("/dev/zero"), |_| Ok(())).is_err());
        assert_eq!(text(Path::new("/dev/null"), |_| Ok(())).unwrap().as_deref(), Some(""));
        fs::remove_file(&path).unwrap();
        fs::write(&path, "a".repeat((4 << 20) + 1)).unwrap();
        assert!(read().unwrap_err().to_string().contains("larger"));
    }

    #[test]
    fn where_links_lead() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::os::unix::fs::symlink("b", at("a")).unwrap();
        std::os::unix::fs::symlink(at("missing"), at("b")).unwrap();
        assert_eq!(target(&at("a")).unwrap(), at("missing"));
        assert_eq!(target(&at("missing")).unwrap(), at("missing"));
        std::os::unix::fs::symlink("c", at("c")).unwrap();
        assert!(target(&at("c")).is_err());
    }
}
