//! The run directory: on a tmpfs, because what lives in memory cannot make anyone wait for a disk.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::mount::MountFlags;

/// TMPFS_MAGIC (linux/magic.h).
const TMPFS: i64 = 0x0102_1994;
/// How a tmpfs that we have mounted ourselves shows in mountinfo.
pub const SOURCE: &str = "wardian";

/// What others may do in a run directory: go through it, to a socket whose mode lets them in.
const OTHERS_PASS: u32 = 0o711;

/// Makes a directory of the run directory that only root looks into: what is recorded there tells of containers, and
/// holds their environments. One that an earlier server has left open to others is closed.
///
/// # Errors
/// The system's.
pub fn private(dir: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(dir)?;
    std::fs::set_permissions(dir, PermissionsExt::from_mode(0o700))
}

/// Makes the directory, and mounts a tmpfs on it if it is on none.
///
/// # Errors
/// The system's.
pub fn prepare(run: &Path) -> std::io::Result<()> {
    let made = !run.exists();
    std::fs::create_dir_all(run)?;
    // One at a time: a tmpfs on another one would hide what is recorded in that.
    let dir = rustix::fs::open(run, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::fs::flock(&dir, FlockOperation::LockExclusive)?;
    if rustix::fs::statfs(run)?.f_type != TMPFS {
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        rustix::mount::mount(SOURCE, run, "tmpfs", flags, c"mode=0711,size=256m")?;
        tracing::info!(run = %run.display(), "run.tmpfs-mounted");
    }
    let metadata = std::fs::metadata(run)?;
    // The umask of a server closes what it makes, so that only what is opened here is open. A directory that was there
    // may be open to fewer, and stays so.
    let mode = if made { OTHERS_PASS } else { metadata.mode() & OTHERS_PASS };
    if metadata.mode() & 0o777 != mode {
        std::fs::set_permissions(run, PermissionsExt::from_mode(mode))?;
    }
    Ok(())
}

/// Whether no container and no root file system is recorded in the directory.
pub fn is_unused(run: &Path) -> bool {
    let empty = |name| std::fs::read_dir(run.join(name)).map_or(true, |mut all| all.next().is_none());
    empty("containers") && empty("rootfs")
}

/// Unmounts what [`prepare`] has mounted, if nothing is recorded there.
pub fn leave(run: &Path) {
    let run = std::fs::canonicalize(run).unwrap_or_else(|_| run.to_owned());
    let mountinfo = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mounts = wardian_sys::procfs::mountinfo(&mountinfo).unwrap_or_default();
    let ours = mounts.iter().any(|m| m.mount_point == run && m.source == Path::new(SOURCE));
    if ours && is_unused(&run) {
        // Detached: a server's socket and lock are in there until it ends.
        if let Err(error) = wardian_sys::mount::unmount_lazily(&run) {
            tracing::warn!(run = %run.display(), %error, "run.tmpfs-left");
        }
    }
}
