//! What earlier servers have left in a store's directory, read without opening the store.

use crate::ground::json;
use rustix::fs::FlockOperation;
use serde::Serialize;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use wardian_sys::directory::Directory;

/// Marker that a volatile overlay leaves in its work directory, so that it is not mounted again by mistake
/// (`ovl_create_volatile_dirty` in fs/overlayfs/super.c). An unmount does not remove it.
const MARKER: &str = "work/work/incompat/volatile";

/// The findings in a store.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Remains {
    /// Whether a server uses the store: it is emptying the trash then.
    pub server: bool,
    /// Writable layers with the marker and without a record.
    pub markers: Vec<PathBuf>,
    /// Root file systems on which a write was lost.
    pub lost_writes: Vec<String>,
    /// Bytes that limited root file systems in images may still take of the store's file system.
    pub images_may_take: u64,
}

/// Examines the store's directory; finds nothing where there is no store, or where access is denied.
pub fn probe(root: &Path) -> Remains {
    let (run, server) = holder(root);
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let mut remains = Remains { server, ..Remains::default() };
    let mut living = BTreeSet::new();
    // In a directory that other users may write to, records cannot be trusted.
    let records = Directory::open(&run.join("rootfs")).ok();
    let names = records.as_ref().and_then(|dir| dir.names().ok()).unwrap_or_default();
    for (dir, name) in names.iter().filter_map(|name| records.as_ref().zip(name.to_str())) {
        let record = if name.ends_with(".json") { json(dir, name) } else { continue };
        if record["boot_id"].as_str() != Some(boot.trim()) {
            continue;
        }
        living.extend(record["dir"].as_str().map(str::to_owned));
        remains.images_may_take = remains.images_may_take.saturating_add(may_take(root, &record));
        if !record["writeback_error"].is_null() {
            remains.lost_writes.extend(record["id"].as_str().map(str::to_owned));
        }
    }
    if !server {
        let recorded = |dir: &PathBuf| {
            let name = dir.file_name().and_then(|name| name.to_str());
            name.is_some_and(|name| living.contains(name))
        };
        remains.markers = entries(&root.join("rootfs"));
        remains.markers.retain(|dir| !recorded(dir) && dir.join(MARKER).exists());
    }
    remains
}

/// Bytes that the image of a root file system may still take; 0 if it has none.
fn may_take(root: &Path, record: &serde_json::Value) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let Some(name) = record["dir"].as_str().filter(|name| !name.contains('/')) else { return 0 };
    let image = std::fs::symlink_metadata(root.join("rootfs").join(name).join("image"));
    let Ok(image) = image.map(|image| (image.len(), image.blocks() * 512)) else { return 0 };
    // With its inodes it may take an eighth more than its limit.
    let bound = record["bound"]["bytes"].as_u64().map_or(u64::MAX, |bytes| bytes.saturating_add(bytes / 8));
    let most = bound.min(image.0);
    most.saturating_sub(image.1)
}

/// The run directory that the store was used with, and whether a server uses it now.
fn holder(root: &Path) -> (PathBuf, bool) {
    let usual = || PathBuf::from("/run/wardian");
    let Ok(dir) = Directory::open(root) else { return (usual(), false) };
    let Ok(file) = dir.file("lock") else { return (usual(), false) };
    let holder = json(&dir, "lock");
    // The lock is released with the file. A server that starts at this moment retries for a second.
    let free = rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared).is_ok();
    let run = holder["run"].as_str().filter(|run| !run.is_empty()).map_or_else(usual, PathBuf::from);
    (run, !free && holder["server"] == true)
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_without_a_record() {
        let dir = tempfile::tempdir().unwrap();
        let (root, run) = (dir.path().join("root"), dir.path().join("run"));
        assert_eq!(probe(&root), Remains::default());
        for name in ["lost", "known", "earlier"] {
            std::fs::create_dir_all(root.join("rootfs").join(name).join(MARKER)).unwrap();
        }
        std::fs::create_dir_all(root.join("rootfs/spare/work")).unwrap();
        std::fs::create_dir_all(run.join("rootfs")).unwrap();
        let lock = serde_json::json!({"run": run, "server": true}).to_string();
        std::fs::write(root.join("lock"), lock).unwrap();
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        let record = |name: &str, boot: &str, error: Option<&str>| {
            let text = serde_json::json!({"id": name, "dir": name, "boot_id": boot, "writeback_error": error,
                    "bound": {"bytes": 3 << 20}});
            std::fs::write(run.join(format!("rootfs/{name}.json")), text.to_string()).unwrap();
        };
        record("known", boot.trim(), Some("lost"));
        record("earlier", "another", None);
        let image = std::fs::File::create(root.join("rootfs/known/image")).unwrap();
        image.set_len(8 << 20).unwrap();
        let found = probe(&root);
        assert_eq!(found.images_may_take, (3 << 20) + (3 << 20) / 8);
        assert_eq!(found.markers, [root.join("rootfs/earlier"), root.join("rootfs/lost")]);
        assert_eq!((found.lost_writes, found.server), (vec!["known".to_owned()], false));

        let server = std::fs::File::open(root.join("lock")).unwrap();
        server.lock().unwrap();
        let found = probe(&root);
        assert!(found.server && found.markers.is_empty(), "{found:?}");
    }
}
