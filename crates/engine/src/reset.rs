//! The removal of everything that an instance has made on a host.

use crate::instance;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use wardian_network::{Network, outside};
use wardian_store::erase::Parts;
use wardian_store::whose;
use wardian_sys::directory::{self, Directory};
use wardian_sys::procfs::{self, MountInfo};
use wardian_sys::text::chain;

/// How long killed processes may take to die; those that live on are reported.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the deletion of the store's trash may take: it takes as long as the disk does.
const DRAIN: Duration = Duration::from_secs(600);
/// The entries of a run directory.
const RUN_ENTRIES: [&str; 11] = [
    "containers",
    "history",
    "rootfs",
    "pool",
    "l",
    instance::RECORD,
    "instance.json.new",
    instance::LOCK,
    ".lock.guard",
    ".lock.new",
    "garden.sock",
];
/// The most bytes of a record that is read.
const MOST: u64 = 64 << 20;

/// Why a reset fails.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A running server holds the lock.
    #[error("stop the server first: {0}")]
    InUse(#[source] instance::Error),
    /// A directory is not wardian's, or other users could change it.
    #[error("reset: {0}")]
    Owned(#[from] whose::Error),
    /// One of the two directories cannot be opened.
    #[error("reset: {0}")]
    Directory(#[source] directory::Error),
    /// Something in the run directory cannot be removed.
    #[error("reset: remove {0}")]
    Remove(#[source] directory::Error),
    /// A system call failed.
    #[error("reset: {0}")]
    System(#[source] std::io::Error),
    /// The kernel's list of mounts is not understood.
    #[error("reset: mounts: {0}")]
    Mountinfo(#[from] procfs::Error),
    /// Cgroups cannot be reached.
    #[error(transparent)]
    Cgroups(#[from] crate::start::Error),
    /// The store cannot be emptied.
    #[error("reset: store: {}", chain(.0))]
    Store(#[source] wardian_store::Error),
    /// The store cannot be erased.
    #[error("reset: {}", chain(.0))]
    Erase(#[from] wardian_store::erase::Error),
    /// The store's trash cannot be deleted.
    #[error("reset: the store's trash cannot be deleted")]
    Trash,
    /// The links or the firewall of containers cannot be removed.
    #[error("reset: {0}")]
    Network(#[from] wardian_network::Error),
    /// Processes survive SIGKILL.
    #[error("reset: these processes do not die: {0:?}")]
    Alive(Vec<i32>),
    /// There is a mount below the directories that is not wardian's.
    #[error(
        "reset: {first} is mounted by somebody else, and what is in it is not wardian's to delete. Nothing was unmounted; \
         unmount what is there first (`umount {first}`; {count} in all)"
    )]
    Foreign {
        /// One of these mounts.
        first: PathBuf,
        /// The number of such mounts.
        count: usize,
    },
    /// An attached root file system cannot be unmounted.
    #[error("reset: unmount {path}: {}", chain(source))]
    Unmount {
        /// The mount point.
        path: PathBuf,
        /// The cause.
        source: wardian_sys::mount::Error,
    },
}

type Result<T> = std::result::Result<T, Error>;

/// What was removed.
#[derive(Debug, Default, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Removed {
    /// Handles of containers; ids where there is no readable record.
    pub containers: Vec<String>,
    /// Processes that were killed, keepers among them.
    pub processes: usize,
    /// Cgroups below the instance's own.
    pub cgroups: usize,
    /// Links in the host's network namespace: bridges, and the host's ends of containers' links.
    pub links: usize,
    /// Whether there was a firewall.
    pub firewall: bool,
    /// Mounts that were attached in the host's mount namespace.
    pub mounts: Vec<PathBuf>,
    /// Root file systems, half-made layers and other trash.
    pub trees: usize,
    /// Whether there were records or other things of an instance in the run directory.
    pub run: bool,
    /// Whether there was a store, and it went with its images and layers.
    pub images: bool,
    /// Named volumes that were removed.
    pub volumes: usize,
    /// Named volumes that stay.
    pub kept_volumes: usize,
}

/// Removes what the instance of this run directory has made, and of the store these parts. `tell` is told what this waits
/// for.
///
/// # Errors
/// The directories are not a store and a run directory, other users could change them, a server uses them, or
/// there is a mount in them that is not wardian's: then nothing was touched. Or a process does not die, or
/// something cannot be removed: then a part was removed, and the reset can be tried again.
pub fn reset(root: &Path, run: &Path, parts: Parts, tell: &dyn Fn(&str)) -> Result<Removed> {
    // Taking a lock would create a missing run directory.
    let mut removed = Removed { images: whose::store(root)? && parts.images, ..Removed::default() };
    whose::run(run)?;
    let stored = open(root)?;
    let dir = open(run)?;
    // Paths without symbolic links, as in mountinfo.
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
    let cleared = clear(&tag)?;
    (removed.processes, removed.cgroups) = (cleared.processes, cleared.cgroups);
    (removed.links, removed.firewall) = (cleared.links, cleared.firewall);
    dir.iter().for_each(|dir| disconnect(dir, tell));
    removed.mounts = unmount(&real_root, &real_run)?;
    // This creates a missing run directory, which is removed with the rest.
    let store = wardian_store::erase::empty(&wardian_store::Config::new(root, run), DRAIN);
    removed.trees = store.map_err(Error::Store)?.ok_or(Error::Trash)?;
    crate::process::files::erase(root).map_err(Error::System)?;
    (removed.volumes, removed.kept_volumes) = wardian_store::erase::parts(root, parts)?;
    remove_run(run)?;
    drop(lock);
    Ok(removed)
}

/// What an instance had outside its directories.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Cleared {
    /// Processes.
    pub processes: usize,
    /// Cgroups below the instance's own.
    pub cgroups: usize,
    /// Links in the host's network namespace.
    pub links: usize,
    /// Whether there was a firewall.
    pub firewall: bool,
}

/// Kills all processes in the cgroups of an instance, and removes the cgroups, the links and the firewall. The caller
/// makes sure that no server of this tag lives: it would be killed as well. Links and firewall are those in the network
/// namespace of the caller, which must be the server's.
///
/// # Errors
/// A process does not die, or something cannot be removed.
pub fn clear(tag: &str) -> Result<Cleared> {
    let cgroups = crate::start::open_cgroups(tag)?;
    let (processes, groups) = (cgroups.members("").len(), cgroups.list().len());
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
    // Last: a firewall protects the host from containers for as long as they live.
    let left = wardian_network::remove(tag)?;
    Ok(Cleared { processes, cgroups: groups, links: left.links, firewall: left.firewall })
}

/// Opens a directory, if it exists.
fn open(path: &Path) -> Result<Option<Directory>> {
    match Directory::open(path) {
        Ok(dir) => Ok(Some(dir)),
        Err(error) if error.is_missing() => Ok(None),
        Err(error) => Err(Error::Directory(error)),
    }
}

/// Returns the handles of all containers on record, of any boot and version; ids where a record is
/// unreadable.
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

/// Has other programs take the containers out of their networks. One that fails keeps nothing else from being removed.
fn disconnect(run: &Directory, tell: &dyn Fn(&str)) {
    let Ok(dir) = run.child("containers") else { return };
    for id in dir.names().unwrap_or_default() {
        let Ok(text) = dir.child(&id).and_then(|container| container.read("state.json", MOST)) else {
            continue;
        };
        let record: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
        let network = serde_json::from_value(record["network"].clone());
        let Ok(Some(Network::Outside(state))) = network else { continue };
        if let Err(error) = outside::remove(&state, None, outside::PATIENCE) {
            tell(&format!("container {}: {error}", state.handle));
        }
    }
}

/// Whether the run directory has entries to remove; a lock does not count, since a refused start leaves one.
fn has_entries(run: &Directory) -> bool {
    let locks = [instance::LOCK, ".lock.guard", ".lock.new"];
    let goes = |name: &std::ffi::OsString| {
        RUN_ENTRIES.iter().any(|known| name == known) && !locks.iter().any(|lock| name == lock)
    };
    run.names().is_ok_and(|names| names.iter().any(goes))
}

/// Returns the root file systems that are attached in the host's mount namespace, the topmost first.
///
/// The server mounts nothing else in the host's mount namespace below these directories: an overlay is
/// attached at `<run>/rootfs/<id>`, or published at `<root>/images/<id>` with layers at `<run>/l`, and a tmpfs on the run directory itself, which
/// [`wardian_store::run::leave`] recognizes by its source. A mount on one of the two directories stays: the
/// operator has mounted a disk there on purpose.
///
/// # Errors
/// There is another mount below the directories: a disk, or another program's.
fn attached(root: &Path, run: &Path) -> Result<Vec<PathBuf>> {
    let text = std::fs::read("/proc/self/mountinfo").map_err(Error::System)?;
    let mounts = wardian_sys::procfs::mountinfo(&text)?;
    let (ours, foreign) = sorted(&mounts, root, run);
    if let Some(first) = foreign.first() {
        return Err(Error::Foreign { first: first.clone(), count: foreign.len() });
    }
    Ok(ours)
}

/// Sorts the mounts below the directories: wardian's, the topmost first, and those of others.
fn sorted(mounts: &[MountInfo], root: &Path, run: &Path) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let place = run.join("rootfs");
    let below =
        |path: &Path| (path.starts_with(root) || path.starts_with(run)) && path != root && path != run;
    // Later mounts may cover earlier ones.
    let found = mounts.iter().rev().filter(|mount| below(&mount.mount_point));
    let images = root.join("images");
    // Published root file systems, and the parts of those that somebody else mounts.
    let published = |m: &MountInfo| {
        let id = m.mount_point.parent();
        let inside = id.is_some_and(|id| id.parent() == Some(&images));
        let name = m.mount_point.file_name().and_then(|name| name.to_str());
        inside && (name == Some("rootfs") && m.fs_type == "overlay" || name == Some("parts"))
            || id == Some(&run.join("l"))
    };
    let (ours, foreign): (Vec<_>, Vec<_>) =
        found.partition(|m| m.mount_point.parent() == Some(&place) && m.fs_type == "overlay" || published(m));
    let paths = |mounts: Vec<&MountInfo>| mounts.into_iter().map(|m| m.mount_point.clone()).collect();
    (paths(ours), paths(foreign))
}

/// Unmounts the attached root file systems lazily (umount2(2), `MNT_DETACH`).
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
12 8 0:34 / /data/wardian/images/a/rootfs rw - overlay overlay rw
13 8 0:35 / /data/wardian/images/b/rootfs rw - ext4 /dev/vde rw
14 8 254:0 /x /data/wardian/images/b/parts rw - ext4 /dev/vda rw
15 3 254:0 /y /run/wardian/l/0123456789ab ro - ext4 /dev/vda rw
";
        let mounts = wardian_sys::procfs::mountinfo(text).unwrap();
        let paths = |all: &[&str]| all.iter().map(PathBuf::from).collect::<Vec<_>>();
        let (ours, foreign) = sorted(&mounts, Path::new("/data/wardian"), Path::new("/run/wardian"));
        let own = [
            "/run/wardian/l/0123456789ab",
            "/data/wardian/images/b/parts",
            "/data/wardian/images/a/rootfs",
            "/run/wardian/rootfs/a",
            "/run/wardian/rootfs/a",
        ];
        assert_eq!(ours, paths(&own));
        let others = [
            "/data/wardian/images/b/rootfs",
            "/data/wardian/rootfs/c",
            "/run/wardian/other/a",
            "/run/wardian/rootfs/a/dev",
            "/run/wardian/rootfs/b",
        ];
        assert_eq!(foreign, paths(&others));
        // All mounts are below `/`, and none of them is wardian's.
        let (ours, foreign) = sorted(&mounts, Path::new("/"), Path::new("/nowhere"));
        assert_eq!((ours.len(), foreign.len()), (0, 14));
    }
}
