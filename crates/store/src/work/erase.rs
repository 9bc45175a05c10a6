//! Empties or removes a store, to restore a host to its former state.

use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use wardian_sys::directory::Directory;

use crate::config::Config;
use crate::disk::files;
use crate::disk::remove;
use crate::store::Store;

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

/// Removes the store with its images. The directory itself stays if it holds anything else. No process may have the
/// store open.
///
/// # Errors
/// An entry cannot be removed; those after it stay.
pub fn all(root: &Path) -> Result<(), Error> {
    if !exists(root) {
        return Ok(());
    }
    let failed = |name: &str, source| Error { path: root.join(name), source };
    let dir = Directory::open(root).map_err(|e| failed("", e.into()))?;
    for name in files::DIRECTORIES.into_iter().chain([files::META]) {
        let c_name = CString::new(name).map_err(|e| failed(name, e.into()))?;
        remove::tree(&dir, &c_name, &|| false).map_err(|e| failed(name, e.into()))?;
    }
    for name in [files::FORMAT, files::LOCK] {
        dir.remove(name).map_err(|e| failed(name, e.into()))?;
    }
    // The directory stays if it is a mount point or holds anything else.
    drop(std::fs::remove_dir(root));
    Ok(())
}

fn exists(root: &Path) -> bool {
    root.join(files::FORMAT).exists()
}
