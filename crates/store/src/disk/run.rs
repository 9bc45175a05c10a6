//! The run directory. It is on a tmpfs, so that no access to it waits for a disk.

use std::path::Path;
use std::time::Duration;

use rustix::fs::Mode;
use rustix::mount::MountFlags;
use wardian_sys::directory::Directory;
use wardian_sys::lock;

use super::whose;

/// TMPFS_MAGIC (linux/magic.h).
const TMPFS: i64 = 0x0102_1994;
/// The mount source, in mountinfo, of a tmpfs that this program has mounted.
pub const SOURCE: &str = "wardian";

/// How long the guard lock is waited for; a mount takes microseconds.
const MOUNT_PATIENCE: Duration = Duration::from_secs(5);

/// S_ISVTX (inode(7)).
const STICKY: u32 = 0o1000;

/// The mode of a run directory: other users may only search it, to reach a socket whose own mode admits them.
const OTHERS_PASS: u32 = 0o711;

/// Creates a directory inside the run directory that only root can access, because the records in it contain the
/// containers' environments. If an earlier server has left it open to others, its mode is restricted.
///
/// # Errors
/// Other users could change a directory above it, it belongs to another user, or a system call failed.
pub fn private(dir: &Path) -> std::io::Result<Directory> {
    let (Some(above), Some(name)) = (dir.parent(), dir.file_name()) else {
        return Err(std::io::ErrorKind::InvalidInput.into());
    };
    Ok(Directory::make(above, OTHERS_PASS)?.0.private(name)?)
}

/// Creates a directory as [`private`] does, whose group keeps the permission to search it, if it has that.
pub(crate) fn searchable(run: &Path, name: &str) -> std::io::Result<Directory> {
    Ok(Directory::make(run, OTHERS_PASS)?.0.searchable(name)?)
}

/// Creates the run directory, and mounts a tmpfs on it unless it is on one already.
///
/// # Errors
/// The directory is not one of wardian's ([`whose::run`]), other users could change it or a directory above it, or a
/// system call failed.
pub fn prepare(run: &Path) -> std::io::Result<Directory> {
    whose::run(run).map_err(|error| match error {
        whose::Error::Directory(error) => error.into(),
        error => std::io::Error::other(error),
    })?;
    let (mut dir, made) = Directory::make(run, OTHERS_PASS)?;
    if rustix::fs::fstatfs(&dir)?.f_type != TMPFS {
        // Under a lock among processes: a second tmpfs would hide the records in the first.
        lock::guarded(&dir, "mount", MOUNT_PATIENCE, || {
            if rustix::fs::statfs(dir.path())?.f_type != TMPFS {
                let flags = MountFlags::NOSUID | MountFlags::NODEV;
                rustix::mount::mount(SOURCE, dir.path(), "tmpfs", flags, c"mode=0711,size=256m")?;
                tracing::info!(run = %run.display(), "run.tmpfs-mounted");
            }
            Ok(())
        })?;
        dir = Directory::open(run)?;
    }
    let sticky = rustix::fs::fstat(&dir)?.st_mode & STICKY != 0;
    sweep(&dir, sticky)?;
    // A server's umask denies others all access to the directory it has created; the mode set here admits them. The
    // mode of an existing directory is never widened.
    let now = rustix::fs::fstat(&dir)?.st_mode & 0o7777;
    let mode = if made { OTHERS_PASS } else { now & OTHERS_PASS };
    if now != mode {
        rustix::fs::fchmod(&dir, Mode::from_raw_mode(mode))?;
    }
    Ok(dir)
}

/// Sets aside entries that other users have planted under the names of a server's own files while they could write to
/// the directory: nobody but root may keep a server from starting. If the directory was `open` to other users until
/// now, every entry that is not root's is set aside. Otherwise the directories of records stay, since an
/// administrator may have changed their owner; they are refused later if they are not root's.
///
/// # Errors
/// A mount point is in the way, or a system call failed.
pub fn sweep(dir: &Directory, open: bool) -> std::io::Result<()> {
    let kept = |name: &str| !open && !whose::REPLACED.contains(&name);
    for name in whose::RUN_ENTRIES.iter().filter(|name| !kept(name)) {
        if dir.foreign(name)?.is_none() {
            continue;
        }
        // Under a lock among processes, so that the entry that was checked is the one that is set aside.
        lock::guarded(dir, "mount", MOUNT_PATIENCE, || {
            let Some(stat) = dir.foreign(name)? else { return Ok(()) };
            let path = dir.path().join(name);
            tracing::warn!(path = %path.display(), uid = stat.st_uid, "run.planted");
            Ok(dir.set_aside(name, &stat)?)
        })?;
    }
    Ok(())
}

/// Whether no container and no root file system is recorded in the directory.
pub fn is_unused(run: &Path) -> bool {
    // A directory that cannot be read may hold a record.
    let empty = |name| match std::fs::read_dir(run.join(name)) {
        Ok(mut all) => all.next().is_none(),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    };
    empty("containers") && empty("rootfs")
}

/// Unmounts the tmpfs that [`prepare`] has mounted, if it holds no record.
pub fn leave(run: &Path) {
    let run = std::fs::canonicalize(run).unwrap_or_else(|_| run.to_owned());
    let mountinfo = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    let mounts = wardian_sys::procfs::mountinfo(&mountinfo).unwrap_or_default();
    let ours = mounts.iter().any(|m| m.mount_point == run && m.source == Path::new(SOURCE));
    if ours && is_unused(&run) {
        // A lazy unmount, because a server's socket and lock are in use there until it exits.
        if let Err(error) = wardian_sys::mount::unmount_lazily(&run) {
            tracing::warn!(run = %run.display(), %error, "run.tmpfs-left");
        }
    }
}
