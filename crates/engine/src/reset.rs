//! Everything that an instance has ever made, removed: for hosts that are to be as they were.

use crate::create::chain;
use crate::{Error, Result};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What does not die of SIGKILL by then is reported.
const PATIENCE: Duration = Duration::from_secs(10);
/// Deleting what containers have written takes as long as the disk does.
const DRAIN: Duration = Duration::from_secs(600);
/// What a run directory holds.
const RUN_ENTRIES: [&str; 6] = ["containers", "rootfs", "pool", "instance.json", "lock", "garden.sock"];

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

/// Remove what the instance of this run directory has made; with `images` also what it has fetched.
///
/// # Errors
/// A server uses the directories, something does not die, or something cannot be removed. What was removed until then is
/// gone: it can be tried again.
pub fn reset(root: &Path, run: &Path, images: bool) -> Result<Removed> {
    let mut removed = Removed { images, ..Removed::default() };
    // Where there is no run directory a lock would make one.
    let in_use = |error: Error| Error::failed("stop the server first", error);
    let lock = if run.is_dir() { Some(crate::lock_run(run).map_err(in_use)?) } else { None };
    wardian_recorder::sweep();
    removed.containers = containers(run);
    let cgroups = crate::open_cgroups(&crate::tag(run))?;
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

/// Names of the containers on record, whatever boot or version they are of.
fn containers(run: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(run.join("containers")).into_iter().flatten().flatten() {
        let text = std::fs::read(entry.path().join("state.json")).unwrap_or_default();
        let record: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
        let handle = record["handle"].as_str().map(str::to_owned);
        names.push(handle.unwrap_or_else(|| entry.file_name().to_string_lossy().into_owned()));
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
    for name in RUN_ENTRIES {
        let path = run.join(name);
        let gone = if path.is_dir() { std::fs::remove_dir_all(&path) } else { remove_file(&path) };
        gone.map_err(|e| Error::failed("reset", format!("remove {}: {e}", path.display())))?;
    }
    wardian_store::run::leave(run);
    drop(std::fs::remove_dir(run));
    Ok(())
}

fn remove_file(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}
