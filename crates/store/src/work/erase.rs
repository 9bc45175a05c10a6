//! Empties or removes a store, to restore a host to its former state.

use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use wardian_sys::directory::Directory;

use crate::config::Config;
use crate::disk::files;
use crate::disk::remove;
use crate::store::Store;
use crate::work::volume;

/// A part of a store could not be removed.
#[derive(Debug, thiserror::Error)]
#[error("remove {path}", path = path.display())]
pub struct Error {
    path: PathBuf,
    source: Box<dyn std::error::Error + Send + Sync>,
}

/// Deletes every root file system, half-made layers and the trash; returns how many there were, or `None` if it takes
/// longer than `patience`. If there is no store, none is made.
///
/// # Errors
/// A server holds the store, or it cannot be opened.
pub fn empty(config: &Config, patience: Duration) -> crate::Result<Option<usize>> {
    if !exists(&config.root) {
        return Ok(Some(0));
    }
    let count = ["rootfs", "staging", "trash"]
        .iter()
        .map(|name| std::fs::read_dir(config.root.join(name)).map_or(0, Iterator::count))
        .sum();
    let store = Store::serve(config, &|_| false)?;
    for record in store.published()? {
        store.withdraw_rootfs(record.published.as_deref().unwrap_or_default())?;
    }
    store.tidy_published()?;
    let drained = store.drain(patience);
    store.close();
    Ok(drained.then_some(count))
}

/// What is removed of a store, besides what containers had.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Parts {
    /// Images and layers.
    pub images: bool,
    /// Named volumes.
    pub volumes: bool,
}

/// Removes these parts of the store, and the store itself if nothing is left in it. The directory stays if it holds
/// anything else. No process may have the store open. Returns how many volumes were removed, and how many stay.
///
/// # Errors
/// An entry cannot be removed; those after it stay.
pub fn parts(root: &Path, parts: Parts) -> Result<(usize, usize), Error> {
    if !exists(root) {
        return Ok((0, 0));
    }
    let failed = |name: &str, source| Error { path: root.join(name), source };
    let dir = Directory::open(root).map_err(|e| failed("", e.into()))?;
    let volumes = volume::count(&dir);
    let remove = |name: &str| {
        let c_name = CString::new(name).map_err(|e| failed(name, e.into()))?;
        remove::tree(&dir, &c_name, &|| false).map_err(|e| failed(name, e.into()))
    };
    if parts.volumes {
        remove(files::VOLUMES)?;
    }
    let (gone, left) = if parts.volumes { (volumes, 0) } else { (0, volumes) };
    if !parts.images {
        return Ok((gone, left));
    }
    files::DIRECTORIES.into_iter().chain([files::META]).try_for_each(remove)?;
    if left > 0 {
        return Ok((gone, left));
    }
    remove(files::VOLUMES)?;
    for name in [files::FORMAT, files::LOCK] {
        dir.remove(name).map_err(|e| failed(name, e.into()))?;
    }
    // The directory stays if it is a mount point or holds anything else.
    drop(std::fs::remove_dir(root));
    Ok((gone, left))
}

fn exists(root: &Path) -> bool {
    root.join(files::FORMAT).exists()
}
