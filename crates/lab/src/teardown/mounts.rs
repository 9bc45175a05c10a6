//! The mounts of an experiment, in a mount namespace of their own. All paths are relative to the working directory,
//! which is the experiment's: no character of the path above it can break the overlay's options.
//!
//! For mount N there are `N/upper`, a new `N/work-R` for each round (the kernel refuses one that a volatile overlay
//! has used) and the mount point `N/root`. A plain directory has only `N/root`.

use super::options::Order;
use super::stop::Stop;
use crate::report::Span;
use anyhow::{Context, Result};
use rustix::io::Errno;
use rustix::mount::MountFlags;
use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::sync::RwLock;
use std::time::Instant;
use wardian_sys::{mount, namespace, procfs};

/// Prefix of the names of unmounting threads, before the number of the mount: a recorder sees them.
pub const THREAD: &str = "unmount-";
/// File systems without a disk, which the experiment needs to observe the kernel.
const OF_THE_KERNEL: [&str; 9] =
    ["proc", "sysfs", "tracefs", "debugfs", "devtmpfs", "devpts", "tmpfs", "cgroup", "cgroup2"];

/// Moves the calling thread, and those that it starts from then on, into a mount namespace of their own and into
/// `dir`.
///
/// All other mounts of disks are detached there: the copy would keep them alive after an unmount elsewhere.
pub fn enter(dir: &Path) -> Result<()> {
    namespace::own_mounts().context("make a mount namespace")?;
    let text = std::fs::read("/proc/thread-self/mountinfo").context("read the list of mounts")?;
    let dir = dir.canonicalize().with_context(|| format!("find {}", dir.display()))?;
    for other in procfs::mountinfo(&text)?.iter().rev() {
        if !dir.starts_with(&other.mount_point) && !OF_THE_KERNEL.contains(&other.fs_type.as_str()) {
            // A mount that cannot be detached is only kept alive until the experiment ends.
            let _ = mount::unmount_lazily(&other.mount_point);
        }
    }
    rustix::process::chdir(&dir).with_context(|| format!("enter {}", dir.display()))
}

/// The directory through which mount `n` is written.
pub fn root(n: usize) -> PathBuf {
    PathBuf::from(format!("{n}/root"))
}

/// The directory that holds the files of mount `n`.
pub fn below(n: usize, overlay: bool) -> PathBuf {
    PathBuf::from(if overlay { format!("{n}/upper") } else { format!("{n}/root") })
}

/// Makes the common directory and those of each mount.
pub fn prepare(mounts: usize, overlay: bool) -> Result<()> {
    let make = |path: PathBuf| {
        std::fs::create_dir_all(&path).with_context(|| format!("make the directory {}", path.display()))
    };
    make("lower".into())?;
    for n in 0..mounts {
        make(root(n))?;
        make(below(n, overlay))?;
    }
    Ok(())
}

/// Mounts the overlay `n`. Returns when the system call began and how long it took.
pub fn mount(n: usize, round: usize, volatile: bool) -> Result<Span> {
    let work = format!("{n}/work-{round}");
    std::fs::create_dir(&work).with_context(|| format!("make the directory {work}"))?;
    let mut options = format!("lowerdir=lower,upperdir={n}/upper,workdir={work}");
    if volatile {
        options.push_str(",volatile");
    }
    let options = CString::new(options)?;
    let begin = Instant::now();
    let mounted =
        rustix::mount::mount("wardian-lab", root(n), "overlay", MountFlags::NODEV, options.as_c_str());
    let span = Span::since(begin);
    match mounted {
        Ok(()) => Ok(span),
        Err(error) => {
            let help = match error {
                Errno::NODEV => "this kernel has no overlay: modprobe overlay",
                Errno::IO if volatile => {
                    "a write to this file system was lost, and nobody was told yet: sync -f on it tells, and clears this"
                }
                Errno::INVAL if volatile => {
                    "the kernel has no volatile overlays, or this file system cannot be written to through an overlay"
                }
                Errno::INVAL => "this file system cannot be written to through an overlay: another --fs",
                _ => "mount(2)",
            };
            Err(error).with_context(|| help).with_context(|| format!("mount overlay {n}"))
        }
    }
}

/// Unmounts the overlays in this order. Reports the span of each `umount2(2)` to `each`, as soon as it has ended.
/// Returns the span of all together. Removes those that are unmounted from `mounted`.
pub fn unmount(
    mounted: &mut Vec<usize>,
    order: Order,
    stop: &Stop,
    each: impl Fn(usize, Span) + Sync,
) -> Result<Span> {
    let one = |n: usize| {
        let begin = Instant::now();
        mount::unmount(&root(n)).with_context(|| format!("unmount overlay {n}"))?;
        each(n, Span::since(begin));
        anyhow::Ok(())
    };
    stop.check()?;
    if order == Order::Serial {
        let begin = Instant::now();
        while let Some(n) = mounted.first().copied() {
            stop.check()?;
            one(n)?;
            mounted.remove(0);
        }
        return Ok(Span::since(begin));
    }
    // All threads are started before the first unmount begins.
    let gate = RwLock::new(());
    let closed = gate.write();
    let unmount = |n: usize| {
        drop(gate.read());
        one(n)
    };
    let (ended, whole) = std::thread::scope(|scope| {
        let spawn = |n: &usize| {
            let (n, thread) = (*n, std::thread::Builder::new().name(format!("{THREAD}{n}")));
            thread.spawn_scoped(scope, move || unmount(n)).context("start a thread")
        };
        let threads: Vec<_> = mounted.iter().map(spawn).collect();
        let begin = Instant::now();
        drop(closed);
        let ended = threads.into_iter().map(|t| t?.join().expect("an unmount does not panic"));
        (ended.collect::<Vec<Result<()>>>(), Span::since(begin))
    });
    ended.into_iter().collect::<Result<()>>()?;
    mounted.clear();
    Ok(whole)
}
