//! Opening the directories of a store.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, IFlags};
use rustix::io::Errno;
use wardian_sys::directory::Directory;

use crate::disk::files::{FORMAT, VOLUMES, read_file, write_file_durable};
use crate::disk::format::{self, Format};
use crate::disk::layout::{Error, Layout};
use crate::disk::lock::{Lock, Role};
use crate::disk::record::Records;
use crate::disk::whose;
use crate::error;

impl Layout {
    /// Creates missing directories, checks the format, and takes the lock if it is free. A server must get it; a
    /// command that gets it may recover the store.
    pub(crate) fn open(path: &Path, run: &Path, role: Role) -> error::Result<(Self, Option<Lock>)> {
        let made = |error| match error {
            wardian_sys::directory::Error::System { path, source } => Error::Make { path, source },
            error => Error::Untrusted(error),
        };
        // Checked before anything in the directory is changed.
        whose::store(path).map_err(|error| match error {
            whose::Error::Directory(error) => error::Error::from(made(error)),
            whose::Error::Format(error) => error.into(),
            error => Error::Foreign(error).into(),
        })?;
        let (root, _) = Directory::make(path, 0o700).map_err(made)?;
        // Layers keep the set-id bits and the owners of their images: nobody but root may come there. The group of a
        // mapping's root may search the directories above published root file systems.
        root.keep_searchable().map_err(made)?;
        check_format(root.as_fd())?;
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .map_err(Error::BootId)?
            .trim()
            .to_owned();
        let lock = Lock::take(root.as_fd(), path, run, role, &boot_id)?;
        let part = |name: &str| root.private(name).map(OwnedFd::from).map_err(made);
        let rootfs = part("rootfs")?;
        let spreads = spread(&rootfs);
        let records = Records::open(run, &boot_id, role == Role::Server)
            .map_err(|source| Error::Make { path: run.to_owned(), source })?;
        let layout = Self {
            layers: part("layers")?,
            images: root.searchable("images").map(OwnedFd::from).map_err(made)?,
            staging: part("staging")?,
            partial: part("partial")?,
            rootfs,
            spreads,
            trash: part("trash")?,
            volumes: match role {
                Role::Server => Some(part(VOLUMES)?),
                _ => root.existing(VOLUMES).map(OwnedFd::from).ok(),
            },
            root: root.into(),
            path: path.to_owned(),
            records,
            boot_id,
        };
        Ok((layout, lock))
    }
}

/// Asks ext4 to put each of the directory's children into a block group of its own (`chattr +T`, ext4(5)).
///
/// ext4 does not reuse an inode for a minute or more after its deletion, and walks over all such inodes of a group at
/// every create in it (`recently_deleted` in fs/ext4/ialloc.c). Where thousands of root file systems come and go in
/// one group that walk costs milliseconds. Other file systems do not have the flag, and need none. Returns whether it
/// is set.
fn spread(dir: &OwnedFd) -> bool {
    let set = |flags| rustix::fs::ioctl_setflags(dir, flags | IFlags::TOPDIR);
    rustix::fs::ioctl_getflags(dir).and_then(set).is_ok()
}

fn check_format(root: BorrowedFd<'_>) -> error::Result<()> {
    let missing = matches!(rustix::fs::statat(root, FORMAT, AtFlags::SYMLINK_NOFOLLOW), Err(Errno::NOENT));
    if missing {
        let text = serde_json::to_string(&Format::default()).map_err(format::Error::Parse)?;
        write_file_durable(root, FORMAT, &text)
            .map_err(|source| Error::Write { name: FORMAT.into(), source })?;
        return Ok(());
    }
    let text = read_file(root, FORMAT).map_err(|source| Error::Read { name: FORMAT.into(), source })?;
    let found = Format::parse(&text)?;
    let format = found.clone().upgrade();
    if format != found {
        let text = serde_json::to_string(&format).map_err(format::Error::Parse)?;
        write_file_durable(root, FORMAT, &text)
            .map_err(|source| Error::Write { name: FORMAT.into(), source })?;
    }
    Ok(())
}
