//! The names of a store's directories and files, and functions to read and replace its files.

use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};

/// The directories of a store, those that use layers before those that hold them.
pub(crate) const DIRECTORIES: [&str; 6] = ["rootfs", "staging", "partial", "layers", "images", "trash"];
/// The directory of named volumes, which outlive what else is in the store.
pub(crate) const VOLUMES: &str = "volumes";
/// The directory of what was set up for callers of GrootFS: the id mappings of their root file systems.
pub(crate) const META: &str = "meta";
/// The file that says which versions of the program may touch the store.
pub(crate) const FORMAT: &str = "format.json";
/// The lock file, held exclusively by the server for its life and by a command for an instant.
pub(crate) const LOCK: &str = "lock";
pub(crate) const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// The maximum size of a file that is read as a whole, in bytes.
const MAX_RECORD: u64 = 32 << 20;

/// Opens the directory `name` under `dir`; a symlink is refused.
pub(crate) fn open_dir(dir: impl AsFd, name: &str) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(dir, name, DIRECTORY, Mode::empty())
}

/// Returns the names in a directory, without `.` and `..`. Names that are not UTF-8 are left out: the store makes
/// none.
pub(crate) fn names(dir: impl AsFd) -> rustix::io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        match entry.file_name().to_str() {
            Ok("." | "..") | Err(_) => {}
            Ok(name) => names.push(name.to_owned()),
        }
    }
    Ok(names)
}

/// Reads a small regular file of the store.
pub(crate) fn read_file(dir: impl AsFd, name: &str) -> std::io::Result<String> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = rustix::fs::openat(dir, name, flags, Mode::empty())?;
    if FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) != FileType::RegularFile {
        return Err(std::io::Error::from(std::io::ErrorKind::InvalidData));
    }
    // A record has a few hundred bytes, or some megabytes with a manifest and a config in it; the limit protects
    // against a file that is no record.
    let mut text = String::new();
    std::fs::File::from(file).take(MAX_RECORD).read_to_string(&mut text)?;
    Ok(text)
}

/// Replaces a file of the store atomically: writes a new file under another name and renames it. Nothing is synced:
/// after a power cut the file may have its old content, its new content or none.
pub(crate) fn write_file(dir: impl AsFd, name: &str, text: &str) -> std::io::Result<()> {
    replace(dir.as_fd(), name, text, false)
}

/// As [`write_file`], but syncs the file before the rename and the directory after it: a power cut during the call
/// leaves the old or the new content, one after it the new content. It may wait long for the disk, so only background
/// threads and commands call it.
pub(crate) fn write_file_durable(dir: impl AsFd, name: &str, text: &str) -> std::io::Result<()> {
    replace(dir.as_fd(), name, text, true)
}

/// As [`write_file_durable`], if `sync`; otherwise a power cut may leave the old content, the new, or none.
pub(crate) fn replace(dir: BorrowedFd<'_>, name: &str, text: &str, sync: bool) -> std::io::Result<()> {
    let new = format!(".{name}.{}", uuid::Uuid::new_v4().simple());
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = std::fs::File::from(rustix::fs::openat(dir, &new, flags, Mode::RUSR | Mode::WUSR)?);
    let written = file
        .write_all(text.as_bytes())
        .and_then(|()| if sync { file.sync_data() } else { Ok(()) })
        .and_then(|()| Ok(rustix::fs::renameat(dir, &new, dir, name)?))
        .and_then(|()| if sync { Ok(rustix::fs::fsync(dir)?) } else { Ok(()) });
    if written.is_err() {
        let _ = rustix::fs::unlinkat(dir, &new, AtFlags::empty());
    }
    written
}
