//! Removal of untrusted directory trees.

use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, Dir, Mode, OFlags, openat, unlinkat};
use rustix::io::Errno;

use crate::bounds::watch::Watch;
use crate::error::{Error, at, show};

const DIR: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Removes the entry `name`; a directory with its content, down to `depth` levels. No symlink is followed.
pub(crate) fn remove(
    above: BorrowedFd<'_>,
    name: &[u8],
    path: &[u8],
    depth: usize,
    watch: &Watch,
) -> Result<(), Error> {
    if watch.is_cancelled() {
        return Err(Error::Cancelled { what: show(path) });
    }
    match unlinkat(above, name, AtFlags::empty()) {
        Err(Errno::ISDIR) => {}
        other => return other.map_err(at("replace", path)),
    }
    if depth == 0 {
        return Err(Error::UnsafePath {
            path: show(path),
            why: "the directory to replace is nested too deeply",
        });
    }
    let mut dir = openat(above, name, DIR, Mode::empty()).and_then(Dir::new).map_err(at("list", path))?;
    while let Some(entry) = dir.read() {
        let entry = entry.map_err(at("list", path))?;
        let child = entry.file_name().to_bytes();
        if child != b"." && child != b".." {
            remove(dir.fd().map_err(at("list", path))?, child, path, depth - 1, watch)?;
        }
    }
    unlinkat(above, name, AtFlags::REMOVEDIR).map_err(at("replace", path))
}
