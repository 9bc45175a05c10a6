//! Everything that an instance has ever made, removed: for hosts that are to be as they were.

use crate::instance;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use wardian_store::whose;
use wardian_sys::directory::{self, Directory};
use wardian_sys::procfs::{self, MountInfo};
use wardian_sys::text::chain;

/// What does not die of SIGKILL by then is reported.
const PATIENCE: Duration = Duration::from_secs(10);
/// Deleting what containers have written takes as long as the disk does.
const DRAIN: Duration = Duration::from_secs(600);
/// What a run directory holds.
const RUN_ENTRIES: [&str; 9] = [
    "containers",
    "rootfs",
    "pool",
    instance::RECORD,
    "instance.json.new",
    instance::LOCK,
    ".lock.guard",
    ".lock.new",
    "garden.sock",
];
/// Bytes of the largest record that is looked at.
const MOST: u64 = 64 << 20;

/// Why something stays.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A server has it.
    #[error("stop the server first: {0}")]
    InUse(#[source] instance::Error),
    /// It is not wardian's, or somebody else could change it.
    #[error("reset: {0}")]
    Owned(#[from] whose::Error),
    /// One of the two directories cannot be opened.
    #[error("reset: {0}")]
    Directory(#[source] directory::Error),
    /// Something in the run directory cannot be removed.
    #[error("reset: remove {0}")]
    Remove(#[source] directory::Error),
    /// The kernel said no.
    #[error("reset: {0}")]
    System(#[source] std::io::Error),
    /// The kernel's list of mounts is not understood.
    #[error("reset: mounts: {0}")]
    Mountinfo(#[from] procfs::Error),
    /// Cgroups cannot be reached.
    #[error(transparent)]
    Cgroups(#[from] crate::start::Error),
    /// The store.
    #[error("reset: store: {}", chain(.0))]
    Store(#[source] wardian_store::Error),
    /// The whole store.
    #[error("reset: {}", chain(.0))]
    Erase(#[from] wardian_store::erase::Error),
    /// What lies in the store's trash stays there.
    #[error("reset: the store's trash cannot be deleted")]
    Trash,
    /// Processes survive SIGKILL.
    #[error("reset: these processes do not die: {0:?}")]
    Alive(Vec<i32>),
    /// Something of somebody else's is mounted in the directories.
    #[error(
        "reset: {first} is mounted by somebody else, and what is in it is not wardian's to delete. Nothing was unmounted; \
         unmount what is there first (`umount {first}`; {count} in all)"
    )]
    Foreign {
        /// One of these mounts.
        first: PathBuf,
        /// How many there are.
        count: usize,
    },
    /// An attached root file system.
    #[error("reset: unmount {path}: {}", chain(source))]
    Unmount {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: wardian_sys::mount::Error,
    },
}

type Result<T> = std::result::Result<T, Error>;

/// What was removed.
#[derive(Debug, Default, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Removed {
    /// Handles where a record says so, else ids.
    pub containers: Vec<String>,
    /// Processes that were killed, keepers among them.
    pub processes: usize,
    /// Cgroups below the instance's own.
    pub cgroups: usize,
    /// Mounts that everybody saw.
    pub mounts: Vec<PathBuf>,
    /// Root file systems, half-made layers and other trash.
    pub trees: usize,
    /// Whether there were records or other things of an instance in the run directory.
    pub run: bool,
    /// Whether there was a store, and it went with its images and layers.
    pub images: bool,
}

/// Remove what the instance of this run directory has made; with `images` also what it has fetched. `tell` hears what it waits
/// for.
///
/// # Errors
/// The directories are not a store and a run directory, others could change them, a server uses them, or something of somebody
/// else's is mounted in them: then nothing was touched. Or something does not die, or cannot be removed: what was removed until
/// then is gone, and it can be tried again.
pub fn reset(root: &Path, run: &Path, images: bool, tell: &dyn Fn(&str)) -> Result<Removed> {
    // Where there is no run directory a lock would make one.
    let mut removed = Removed { images: whose::store(root)? && images, ..Removed::default() };
    whose::run(run)?;
    let stored = open(root)?;
    let dir = open(run)?;
    // Without links, as the kernel tells of mounts.
    let real = |dir: &Option<Directory>, path: &Path| dir.as_ref().map_or(path, Directory::path).to_owned();
    let (real_root, real_run) = (real(&stored, root), real(&dir, run));
    attached(&real_root, &real_run)?;
    removed.run = dir.as_ref().is_some_and(has_entries);
    let lock = dir.as_ref().map(|dir| instance::take_lock(dir, tell)).transpose().map_err(Error::InUse)?;
    if let Some(dir) = &dir {
        wardian_store::run::sweep(dir, false).map_err(Error::System)?;
    }
    wardian_recorder::sweep();
    removed.containers = dir.as_ref().map(containers).unwrap_or_default();
    let tag = dir.as_ref().map_or_else(|| instance::long_tag(run), instance::tag);
    (removed.processes, removed.cgroups) = clear(&tag)?;
    removed.mounts = unmount(&real_root, &real_run)?;
    // Makes the run directory where there was none; it goes with the rest.
    let store = wardian_store::erase::empty(&wardian_store::Config::new(root, run), DRAIN);
    removed.trees = store.map_err(Error::Store)?.ok_or(Error::Trash)?;
    if images {
        wardian_store::erase::all(root)?;
    }
    remove_run(run)?;
    drop(lock);
    Ok(removed)
}

/// End everything in the cgroups of an instance, and remove them; how many processes and cgroups there were. The caller knows
/// that no server of this tag lives: one would be ended as well.
///
/// # Errors
/// Something does not die.
pub fn clear(tag: &str) -> Result<(usize, usize)> {
    let cgroups = crate::start::open_cgroups(tag)?;
    let found = (cgroups.members("").len(), cgroups.list().len());
    let started = Instant::now();
    loop {
        let left = cgroups.kill_all();
        if left.is_empty() {
            break;
        }
        if started.elapsed() > PATIENCE {
            return Err(Error::Alive(left));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    crate::start::remove_strays(&cgroups, &[]);
    cgroups.close();
    Ok(found)
}

/// One of the two directories, if it is there.
fn open(path: &Path) -> Result<Option<Directory>> {
    match Directory::open(path) {
        Ok(dir) => Ok(Some(dir)),
        Err(error) if error.is_missing() => Ok(None),
        Err(error) => Err(Error::Directory(error)),
    }
}

/// Names of the containers on record, whatever boot or version they are of.
fn containers(run: &Directory) -> Vec<String> {
    let mut names = Vec::new();
    let Ok(dir) = run.child("containers") else { return names };
    for id in dir.names().unwrap_or_default() {
        let text =
            dir.child(&id).and_then(|container| container.read("state.json", MOST)).unwrap_or_default();
        let record: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
        let handle = record["handle"].as_str().map(str::to_owned);
        names.push(handle.unwrap_or_else(|| id.to_string_lossy().into_owned()));
    }
    names.sort_unstable();
    names
}

/// Whether there is something in the run directory that goes; a lock tells nothing, a start that was refused leaves one.
fn has_entries(run: &Directory) -> bool {
    let locks = [instance::LOCK, ".lock.guard", ".lock.new"];
    let goes = |name: &std::ffi::OsString| {
        RUN_ENTRIES.iter().any(|known| name == known) && !locks.iter().any(|lock| name == lock)
    };
    run.names().is_ok_and(|names| names.iter().any(goes))
}

/// The root file systems that were attached for everybody to see, the topmost first.
///
/// Nothing else is mounted by us below these directories where others see it: an overlay is attached at `<run>/rootfs/<id>`,
/// and a tmpfs on the run directory itself, which [`wardian_store::run::leave`] knows by its source. What is mounted on one of
/// the two directories stays: whoever has mounted a disk there wants to keep it.
///
/// # Errors
/// Something else is mounted below: a disk, or another program's.
fn attached(root: &Path, run: &Path) -> Result<Vec<PathBuf>> {
    let text = std::fs::read("/proc/self/mountinfo").map_err(Error::System)?;
    let mounts = wardian_sys::procfs::mountinfo(&text)?;
    let (ours, foreign) = sorted(&mounts, root, run);
    if let Some(first) = foreign.first() {
        return Err(Error::Foreign { first: first.clone(), count: foreign.len() });
    }
    Ok(ours)
}

/// The mounts below the directories: ours, the topmost first, and those of others.
fn sorted(mounts: &[MountInfo], root: &Path, run: &Path) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let place = run.join("rootfs");
    let below =
        |path: &Path| (path.starts_with(root) || path.starts_with(run)) && path != root && path != run;
    // Later ones may lie on top of earlier ones.
    let found = mounts.iter().rev().filter(|mount| below(&mount.mount_point));
    let (ours, foreign): (Vec<_>, Vec<_>) =
        found.partition(|m| m.mount_point.parent() == Some(&place) && m.fs_type == "overlay");
    let paths = |mounts: Vec<&MountInfo>| mounts.into_iter().map(|m| m.mount_point.clone()).collect();
    (paths(ours), paths(foreign))
}

/// Detach them.
fn unmount(root: &Path, run: &Path) -> Result<Vec<PathBuf>> {
    let found = attached(root, run)?;
    for path in &found {
        wardian_sys::mount::unmount_lazily(path)
            .map_err(|source| Error::Unmount { path: path.clone(), source })?;
    }
    Ok(found)
}

fn remove_run(run: &Path) -> Result<()> {
    let Some(dir) = open(run)? else { return Ok(()) };
    for name in RUN_ENTRIES {
        dir.remove(name).map_err(Error::Remove)?;
    }
    wardian_store::run::leave(run);
    drop(std::fs::remove_dir(run));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_attached_root_file_systems_are_ours() {
        let text = "\
1 0 254:0 / / rw - ext4 /dev/vda rw
2 1 0:25 / /proc rw - proc proc rw
3 1 0:26 / /run/wardian rw - tmpfs wardian rw
4 3 0:27 / /run/wardian/rootfs/a rw - overlay overlay rw
5 3 0:28 / /run/wardian/rootfs/b rw - ext4 /dev/vdb rw
6 4 0:29 / /run/wardian/rootfs/a/dev rw - tmpfs tmpfs rw
7 3 0:27 / /run/wardian/other/a rw - overlay overlay rw
8 1 0:30 / /data/wardian rw - ext4 /dev/vdc rw
9 8 0:31 / /data/wardian/rootfs/c rw - overlay overlay rw
10 1 0:32 / /data/wardians rw - ext4 /dev/vdd rw
11 3 0:33 / /run/wardian/rootfs/a rw - overlay overlay rw
";
        let mounts = wardian_sys::procfs::mountinfo(text).unwrap();
        let paths = |all: &[&str]| all.iter().map(PathBuf::from).collect::<Vec<_>>();
        let (ours, foreign) = sorted(&mounts, Path::new("/data/wardian"), Path::new("/run/wardian"));
        assert_eq!(ours, paths(&["/run/wardian/rootfs/a", "/run/wardian/rootfs/a"]));
        let others = [
            "/data/wardian/rootfs/c",
            "/run/wardian/other/a",
            "/run/wardian/rootfs/a/dev",
            "/run/wardian/rootfs/b",
        ];
        assert_eq!(foreign, paths(&others));
        // Everything is below it, and nothing of that is ours.
        let (ours, foreign) = sorted(&mounts, Path::new("/"), Path::new("/nowhere"));
        assert_eq!((ours.len(), foreign.len()), (0, 10));
    }
}
