//! Everything that an instance has ever made, removed: for hosts that are to be as they were.

use crate::create::chain;
use crate::{Error, Result, instance};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use wardian_sys::directory::Directory;

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
    /// The store's images and layers too.
    pub images: bool,
}

/// Remove what the instance of this run directory has made; with `images` also what it has fetched. `tell` hears what it waits
/// for.
///
/// # Errors
/// Others could change the directories, a server uses them, something does not die, or something cannot be removed. What was removed until then is
/// gone: it can be tried again.
pub fn reset(root: &Path, run: &Path, images: bool, tell: &dyn Fn(&str)) -> Result<Removed> {
    let mut removed = Removed { images, ..Removed::default() };
    // Where there is no run directory a lock would make one.
    let in_use = |error: Error| Error::failed("stop the server first", error);
    open(root)?;
    let dir = open(run)?;
    let lock = dir.as_ref().map(|dir| instance::take_lock(dir, tell)).transpose().map_err(in_use)?;
    wardian_recorder::sweep();
    removed.containers = dir.as_ref().map(containers).unwrap_or_default();
    let tag = dir.as_ref().map_or_else(|| instance::long_tag(run), instance::tag);
    let cgroups = crate::open_cgroups(&tag)?;
    removed.processes = cgroups.members("").len();
    removed.cgroups = cgroups.list().len();
    let started = Instant::now();
    loop {
        let left = cgroups.kill_all();
        if left.is_empty() {
            break;
        }
        if started.elapsed() > PATIENCE {
            return Err(Error::failed("reset", format!("these processes do not die: {left:?}")));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    crate::remove_strays(&cgroups, &[]);
    cgroups.close();
    removed.mounts = unmount_below(&[root, run])?;
    // Makes the run directory where there was none; it goes with the rest.
    let store = wardian_store::erase::empty(&wardian_store::Config::new(root, run), DRAIN);
    removed.trees = store
        .map_err(|e| Error::failed("reset", format!("store: {}", chain(&e))))?
        .ok_or_else(|| Error::failed("reset", "the store's trash cannot be deleted"))?;
    if images {
        wardian_store::erase::all(root).map_err(|e| Error::failed("reset", chain(&e)))?;
    }
    remove_run(run)?;
    drop(lock);
    Ok(removed)
}

/// One of the two directories, if it is there.
fn open(path: &Path) -> Result<Option<Directory>> {
    match Directory::open(path) {
        Ok(dir) => Ok(Some(dir)),
        Err(error) if error.is_missing() => Ok(None),
        Err(error) => Err(Error::failed("reset", error)),
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

/// Detach every mount below these directories, the deepest first. A mount on one of them stays: whoever has mounted a
/// disk there wants to keep it.
fn unmount_below(dirs: &[&Path]) -> Result<Vec<PathBuf>> {
    let fail = |e: &dyn std::fmt::Display| Error::failed("reset", format!("mounts: {e}"));
    let text = std::fs::read_to_string("/proc/self/mountinfo").map_err(|e| fail(&e))?;
    let mounts = wardian_sys::procfs::mountinfo(&text).map_err(|e| fail(&e))?;
    let dirs: Vec<PathBuf> =
        dirs.iter().map(|dir| std::fs::canonicalize(dir).unwrap_or_else(|_| (*dir).to_owned())).collect();
    let below = |path: &Path| dirs.iter().any(|dir| path.starts_with(dir) && path != dir);
    let mut found: Vec<PathBuf> = mounts.into_iter().map(|m| m.mount_point).filter(|p| below(p)).collect();
    // Later ones may lie on top of earlier ones.
    found.reverse();
    for path in &found {
        wardian_sys::mount::unmount_lazily(path)
            .map_err(|e| Error::failed("reset", format!("unmount {}: {}", path.display(), chain(&e))))?;
    }
    Ok(found)
}

fn remove_run(run: &Path) -> Result<()> {
    let Some(dir) = open(run)? else { return Ok(()) };
    for name in RUN_ENTRIES {
        dir.remove(name).map_err(|e| Error::failed("reset", format!("remove {e}")))?;
    }
    wardian_store::run::leave(run);
    drop(std::fs::remove_dir(run));
    Ok(())
}
