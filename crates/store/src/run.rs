//! The run directory: on a tmpfs, because what lives in memory cannot make anyone wait for a disk.

use std::path::Path;

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::mount::MountFlags;

/// TMPFS_MAGIC (linux/magic.h).
const TMPFS: i64 = 0x0102_1994;
/// How a tmpfs that we have mounted ourselves shows in mountinfo.
pub const SOURCE: &str = "wardian";

/// Makes the directory, and mounts a tmpfs on it if it is on none.
///
/// # Errors
/// The system's.
pub fn prepare(run: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(run)?;
    // One at a time: a tmpfs on another one would hide what is recorded in that.
    let dir = rustix::fs::open(run, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::fs::flock(&dir, FlockOperation::LockExclusive)?;
    if rustix::fs::statfs(run)?.f_type != TMPFS {
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        rustix::mount::mount(SOURCE, run, "tmpfs", flags, c"mode=0755,size=256m")?;
        tracing::info!(run = %run.display(), "run.tmpfs-mounted");
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
