//! The run directory: on a tmpfs, because what lives in memory cannot make anyone wait for a disk.

use std::path::Path;
use std::time::Duration;

use rustix::fs::Mode;
use rustix::mount::MountFlags;
use wardian_sys::directory::Directory;
use wardian_sys::lock;

use super::whose;

/// TMPFS_MAGIC (linux/magic.h).
const TMPFS: i64 = 0x0102_1994;
/// How a tmpfs that we have mounted ourselves shows in mountinfo.
pub const SOURCE: &str = "wardian";

/// A mount takes microseconds.
const MOUNT_PATIENCE: Duration = Duration::from_secs(5);

/// S_ISVTX (inode(7)).
const STICKY: u32 = 0o1000;

/// What others may do in a run directory: go through it, to a socket whose mode lets them in.
const OTHERS_PASS: u32 = 0o711;

/// Makes a directory of the run directory that only root looks into: what is recorded there tells of containers, and
/// holds their environments. One that an earlier server has left open to others is closed.
///
/// # Errors
/// Others could change what is above it, it is another user's, or the system's.
pub fn private(dir: &Path) -> std::io::Result<Directory> {
    let (Some(above), Some(name)) = (dir.parent(), dir.file_name()) else {
        return Err(std::io::ErrorKind::InvalidInput.into());
    };
    Ok(Directory::make(above, OTHERS_PASS)?.0.private(name)?)
}

/// Makes the directory, and mounts a tmpfs on it if it is on none.
///
/// # Errors
/// It is somebody else's ([`whose::run`]), others could change it or what is above it, or the system's.
pub fn prepare(run: &Path) -> std::io::Result<Directory> {
    whose::run(run).map_err(|error| match error {
        whose::Error::Directory(error) => error.into(),
        error => std::io::Error::other(error),
    })?;
    let (mut dir, made) = Directory::make(run, OTHERS_PASS)?;
    if rustix::fs::fstatfs(&dir)?.f_type != TMPFS {
        // One at a time: a tmpfs on another one would hide what is recorded in that.
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
    // The umask of a server closes what it makes, so that only what is opened here is open. A directory that was there
    // may be open to fewer, and stays so.
    let now = rustix::fs::fstat(&dir)?.st_mode & 0o7777;
    let mode = if made { OTHERS_PASS } else { now & OTHERS_PASS };
    if now != mode {
        rustix::fs::fchmod(&dir, Mode::from_raw_mode(mode))?;
    }
    Ok(dir)
}

/// Sets aside what other users have put in the place of a server's own things while they could write to the directory: nobody
/// but root may keep a server from starting. In one that was `open` to them until now nothing but what is root's counts; in
/// others the directories of records stay, and are refused where they are not root's: an administrator may have changed
/// their owner.
///
/// # Errors
/// Something is mounted there, or the system's.
pub fn sweep(dir: &Directory, open: bool) -> std::io::Result<()> {
    let kept = |name: &str| !open && !whose::REPLACED.contains(&name);
    for name in whose::RUN_ENTRIES.iter().filter(|name| !kept(name)) {
        if dir.foreign(name)?.is_none() {
            continue;
        }
        // One at a time: what is looked at is what is set aside.
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
    // What cannot be read may hold something.
    let empty = |name| match std::fs::read_dir(run.join(name)) {
        Ok(mut all) => all.next().is_none(),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    };
    empty("containers") && empty("rootfs")
}

/// Unmounts what [`prepare`] has mounted, if nothing is recorded there.
pub fn leave(run: &Path) {
    let run = std::fs::canonicalize(run).unwrap_or_else(|_| run.to_owned());
    let mountinfo = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    let mounts = wardian_sys::procfs::mountinfo(&mountinfo).unwrap_or_default();
    let ours = mounts.iter().any(|m| m.mount_point == run && m.source == Path::new(SOURCE));
    if ours && is_unused(&run) {
        // Detached: a server's socket and lock are in there until it ends.
        if let Err(error) = wardian_sys::mount::unmount_lazily(&run) {
            tracing::warn!(run = %run.display(), %error, "run.tmpfs-left");
        }
    }
}
