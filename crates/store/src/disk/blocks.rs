//! Measures the disk space of a directory tree.

use std::collections::HashSet;
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType};

use super::files;

/// The size of a block as counted in `st_blocks` of `stat(2)`, in bytes.
pub(crate) const BLOCK: u64 = 512;
/// The depth down to which trees are walked. The unpacker makes no deeper ones, containers may.
const MAX_DEPTH: usize = 300;
/// How many hard-linked inodes are remembered (16 MB of memory); further ones may count more than once.
const MAX_LINKED: usize = 1 << 20;

/// Returns the bytes on the disk of one directory entry and of everything below it in the same file system. `linked`
/// holds the hard-linked inodes seen so far, so that each counts once. `step` is called for each entry and may sleep;
/// if it returns true, the walk ends and the result is `None`.
pub(crate) fn entry_bytes(
    dir: &OwnedFd,
    name: &CStr,
    linked: &mut HashSet<u64>,
    step: &dyn Fn() -> bool,
) -> Option<u64> {
    let (mut bytes, mut device) = (0, None);
    let mut add = |dir: BorrowedFd<'_>, name: &CStr| -> Option<OwnedFd> {
        let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        if *device.get_or_insert(stat.st_dev) != stat.st_dev {
            return None;
        }
        let is_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if stat.st_nlink == 1 || is_dir || linked.len() >= MAX_LINKED || linked.insert(stat.st_ino) {
            bytes += stat.st_blocks.unsigned_abs() * BLOCK;
        }
        let open = || rustix::fs::openat(dir, name, files::DIRECTORY, rustix::fs::Mode::empty()).ok();
        if is_dir { open() } else { None }
    };
    let mut stack = Vec::new();
    stack.extend(add(dir.as_fd(), name).and_then(|dir| Dir::new(dir).ok()));
    while let Some(entries) = stack.last_mut() {
        if step() {
            return None;
        }
        let Some(Ok(entry)) = entries.read() else {
            stack.pop();
            continue;
        };
        if matches!(entry.file_name().to_bytes(), b"." | b"..") {
            continue;
        }
        let child = entries.fd().ok().and_then(|dir| add(dir, entry.file_name()));
        // Each level holds a descriptor; entries below the maximum depth do not count.
        if stack.len() < MAX_DEPTH {
            stack.extend(child.and_then(|dir| Dir::new(dir).ok()));
        }
    }
    Some(bytes)
}
