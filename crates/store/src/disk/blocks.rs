//! How much of a disk something takes.

use std::collections::HashSet;
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType};

use super::files;

/// Blocks of `stat(2)`, in bytes.
pub(crate) const BLOCK: u64 = 512;
/// How deep trees are walked; the unpacker makes no deeper ones, containers may.
const MAX_DEPTH: usize = 300;
/// How many files of several names are told apart, 16 MB of memory; the rest may count more than once.
const MAX_LINKED: usize = 1 << 20;

/// Bytes on the disk of one entry of a directory with all that is below it in the same file system. Files of several
/// names count once, which is what `linked` is for. `step` is called for each entry; it may rest, and `true` ends the
/// walk: `None`.
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
        // A descriptor a level; what lies deeper does not count.
        if stack.len() < MAX_DEPTH {
            stack.extend(child.and_then(|dir| Dir::new(dir).ok()));
        }
    }
    Some(bytes)
}
