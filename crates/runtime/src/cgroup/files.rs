//! Operations on the directories and files of a cgroup hierarchy.

use std::fs;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// A failed operation on a path.
#[derive(Debug, thiserror::Error)]
#[error("{action} {path}: {source}")]
pub struct Error {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

pub(super) fn at<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Error + 'a {
    move |source| Error { action, path: path.to_owned(), source }
}

/// Writes without `O_CREAT`: a missing file is ENOENT, and not the EACCES of an attempt to create it.
pub(super) fn write_existing(path: &Path, text: &str) -> io::Result<()> {
    fs::OpenOptions::new().write(true).open(path).and_then(|mut open| open.write_all(text.as_bytes()))
}

pub(super) fn make(dir: &Path) -> Result<(), Error> {
    match fs::create_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        other => other.map_err(at("make cgroup", dir))?,
    }
    // Containers read their limits there, so the mode must not depend on the umask.
    fs::set_permissions(dir, PermissionsExt::from_mode(0o755)).map_err(at("set the mode of", dir))
}

/// Opens a file for writing, as whoever moves processes into a cgroup needs it.
pub(super) fn open_to_write(path: &Path) -> Result<OwnedFd, Error> {
    fs::OpenOptions::new().write(true).open(path).map(OwnedFd::from).map_err(at("open", path))
}

pub(super) fn remove_tree(dir: &Path) -> bool {
    match fs::remove_dir(dir) {
        Ok(()) => return true,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return true,
        Err(_) => {}
    }
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    fs::remove_dir(dir).is_ok()
}
