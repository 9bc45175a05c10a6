//! Layers: unpacked once, kept unshifted, given to containers as read-only (idmapped) detached mounts.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use wardian_sys::mount;

use crate::Owner;
use crate::layout::{self, Layout};

/// The mode that `fs/` has before its layer is unpacked: one that no image sets, so that afterwards one can tell
/// whether the layer has an entry for its root.
const NO_ROOT_ENTRY: u32 = 0o1000;
/// What a root directory gets that no layer describes.
const DEFAULT_ROOT_MODE: u32 = 0o755;
/// The record's file name.
const RECORD: &str = "layer.json";

/// What could not be done to a layer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A layer's name could not be the name of a directory.
    #[error("{chain:?} is no name for a layer")]
    Name {
        /// The name.
        chain: String,
    },
    /// Room for a new layer could not be made.
    #[error("cannot prepare the layer {chain}")]
    Stage {
        /// The layer's chain id.
        chain: String,
        /// The kernel's error.
        source: Errno,
    },
    /// The layer could not be fetched, verified or unpacked.
    #[error("cannot unpack the layer {chain}")]
    Unpack {
        /// The layer's chain id.
        chain: String,
        /// What the image's source says.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The layer's record could not be read or written.
    #[error("cannot read or write the record of the layer {chain}")]
    Record {
        /// The layer's chain id.
        chain: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// The unpacked layer could not be moved to its place.
    #[error("cannot commit the layer {chain}")]
    Commit {
        /// The layer's chain id.
        chain: String,
        /// The kernel's error.
        source: Errno,
    },
    /// The layer's directory could not be opened.
    #[error("cannot open the layer {chain}")]
    Open {
        /// The layer's chain id.
        chain: String,
        /// The kernel's error.
        source: Errno,
    },
    /// The layer could not be made a read-only mount.
    #[error("cannot mount the layer {chain}")]
    Mount {
        /// The layer's chain id.
        chain: String,
        /// The mount call that failed.
        source: mount::Error,
    },
    /// The file system under the store has no idmapped mounts.
    #[error(
        "cannot idmap the layer {chain}: the file system under the store, or this kernel, does not support idmapped \
         mounts (mount_setattr MOUNT_ATTR_IDMAP)"
    )]
    NoIdmap {
        /// The layer's chain id.
        chain: String,
        /// The mount call that failed.
        source: mount::Error,
    },
}

/// `layer.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) chain_id: String,
    pub(crate) diff_id: String,
    /// Entries of the layer's tar.
    pub(crate) entries: u64,
    /// Bytes of its files.
    pub(crate) bytes: u64,
    /// The boot that unpacked it.
    pub(crate) boot_id: String,
    /// Whether all of it is known to be on the disk. Otherwise it is not trusted after another boot.
    pub(crate) durable: bool,
    /// The mode of the layer's root directory; none if the layer has no entry for it.
    pub(crate) root_mode: Option<u32>,
}

impl Record {
    /// Reads the record in a layer's directory.
    pub(crate) fn read(dir: impl AsFd) -> std::io::Result<Self> {
        Ok(serde_json::from_str(&layout::read_file(dir, RECORD)?)?)
    }

    /// Writes it there, in one step, unsynced.
    pub(crate) fn write(&self, dir: impl AsFd) -> std::io::Result<()> {
        layout::write_file(dir, RECORD, &serde_json::to_string(self)?)
    }
}

/// Who root is: nobody but the host's (`None`), or these host ids. Ranges of different lengths over the same root
/// would be one mapping here; a server has one.
type Mapping = Option<(u32, u32)>;

/// User namespaces kept for idmapping, one per mapping: the first one seen.
#[derive(Debug, Default)]
pub(crate) struct Mappings(Mutex<HashMap<(u32, u32), Arc<OwnedFd>>>);

impl Mappings {
    fn userns(&self, owner: &Owner<'_>) -> rustix::io::Result<Arc<OwnedFd>> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(fd) = kept.get(&(owner.uid, owner.gid)) {
            return Ok(Arc::clone(fd));
        }
        let fd = Arc::new(rustix::io::fcntl_dupfd_cloexec(owner.userns, 3)?);
        kept.insert((owner.uid, owner.gid), Arc::clone(&fd));
        Ok(fd)
    }
}

/// A layer in the store.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) chain: String,
    /// The mode of its root directory, if it says so.
    pub(crate) root_mode: Option<u32>,
    fs: OwnedFd,
    mounts: Mutex<HashMap<Mapping, Arc<OwnedFd>>>,
    suspect: AtomicBool,
}

impl Layer {
    /// The layer as a detached read-only mount, idmapped for the owner. Made once per mapping.
    pub(crate) fn mount(
        &self,
        owner: Option<&Owner<'_>>,
        mappings: &Mappings,
    ) -> Result<Arc<OwnedFd>, Error> {
        let failed = |source| Error::Mount { chain: self.chain.clone(), source };
        let mapping = owner.map(|owner| (owner.uid, owner.gid));
        let mut mounts = self.mounts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(fd) = mounts.get(&mapping) {
            return Ok(Arc::clone(fd));
        }
        let clone = mount::open_tree_clone(&self.fs, "", false).map_err(failed)?;
        match owner {
            None => mount::set_readonly(&clone, false).map_err(failed)?,
            Some(owner) => {
                let userns = mappings
                    .userns(owner)
                    .map_err(|source| Error::Open { chain: self.chain.clone(), source })?;
                mount::set_idmap_readonly(&clone, &*userns).map_err(|source| match source.errno() {
                    Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP => {
                        Error::NoIdmap { chain: self.chain.clone(), source }
                    }
                    _ => failed(source),
                })?;
            }
        }
        let clone = Arc::new(clone);
        mounts.insert(mapping, Arc::clone(&clone));
        Ok(clone)
    }

    /// Whether some of its data may not have reached the disk.
    pub(crate) fn is_suspect(&self) -> bool {
        self.suspect.load(Ordering::Acquire)
    }

    pub(crate) fn mark_suspect(&self) {
        self.suspect.store(true, Ordering::Release);
    }
}

/// Refuses what is not the plain name of a directory.
fn check_name(chain: &str) -> Result<(), Error> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b':' | b'.');
    if chain.is_empty() || chain.len() > 200 || chain.starts_with('.') || !chain.bytes().all(plain) {
        return Err(Error::Name { chain: chain.to_owned() });
    }
    Ok(())
}

/// A layer just unpacked, for the thread that makes it durable.
pub(crate) struct Fresh {
    pub(crate) layer: Arc<Layer>,
    pub(crate) dir: OwnedFd,
    pub(crate) record: Record,
    /// Opened before the unpack began: its `syncfs` reports every write error since.
    pub(crate) sync: OwnedFd,
}

/// Takes the layer from the store, if it is there.
pub(crate) fn load(layout: &Layout, chain: &str) -> Result<Option<(Arc<Layer>, OwnedFd, Record)>, Error> {
    check_name(chain)?;
    let dir = match layout::open_dir(&layout.layers, chain) {
        Ok(dir) => dir,
        Err(Errno::NOENT) => return Ok(None),
        Err(source) => return Err(Error::Open { chain: chain.to_owned(), source }),
    };
    let record = Record::read(&dir).map_err(|source| Error::Record { chain: chain.to_owned(), source })?;
    let layer = open(&dir, &record)?;
    Ok(Some((layer, dir, record)))
}

fn open(dir: &OwnedFd, record: &Record) -> Result<Arc<Layer>, Error> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fs = rustix::fs::openat(dir, "fs", flags, Mode::empty())
        .map_err(|source| Error::Open { chain: record.chain_id.clone(), source })?;
    Ok(Arc::new(Layer {
        chain: record.chain_id.clone(),
        root_mode: record.root_mode,
        fs,
        mounts: Mutex::default(),
        suspect: AtomicBool::new(false),
    }))
}

/// Unpacks a layer in `staging/`, verifies it and moves it to its place. Nothing is synced. On failure the half-made
/// directory's name is given to `discard`.
pub(crate) fn unpack(
    layout: &Layout,
    source: &wardian_image::Layer,
    discard: &dyn Fn(&str),
) -> Result<Fresh, Error> {
    let chain = source.chain_id.as_str();
    check_name(chain)?;
    let name = uuid::Uuid::new_v4().simple().to_string();
    let result = stage(layout, source, &name);
    if result.is_err() {
        discard(&name);
    }
    result
}

fn stage(layout: &Layout, source: &wardian_image::Layer, name: &str) -> Result<Fresh, Error> {
    let chain = source.chain_id.as_str();
    let staged = |source| Error::Stage { chain: chain.to_owned(), source };
    let sync = layout.sync_handle().map_err(staged)?;
    rustix::fs::mkdirat(&layout.staging, name, Mode::RWXU).map_err(staged)?;
    let dir = layout::open_dir(&layout.staging, name).map_err(staged)?;
    rustix::fs::mkdirat(&dir, "fs", Mode::RWXU).map_err(staged)?;
    let fs = layout::open_dir(&dir, "fs").map_err(staged)?;
    rustix::fs::fchmod(&fs, Mode::from_raw_mode(NO_ROOT_ENTRY)).map_err(staged)?;
    let unpacked = source
        .unpack(fs.as_fd(), &[], &wardian_image::Limits::default(), &wardian_image::Watch::default())
        .map_err(|source| Error::Unpack { chain: chain.to_owned(), source: Box::new(source) })?;
    let mode = rustix::fs::fstat(&fs).map_err(staged)?.st_mode & 0o7777;
    let root_mode = (mode != NO_ROOT_ENTRY).then_some(mode);
    if root_mode.is_none() {
        rustix::fs::fchmod(&fs, Mode::from_raw_mode(DEFAULT_ROOT_MODE)).map_err(staged)?;
    }
    let record = Record {
        chain_id: chain.to_owned(),
        diff_id: unpacked.diff_id.to_string(),
        entries: unpacked.entries,
        bytes: unpacked.bytes,
        boot_id: layout.boot_id.clone(),
        durable: false,
        root_mode,
    };
    record.write(&dir).map_err(|source| Error::Record { chain: chain.to_owned(), source })?;
    let layer = open(&dir, &record)?;
    rustix::fs::renameat(&layout.staging, name, &layout.layers, chain)
        .map_err(|source| Error::Commit { chain: chain.to_owned(), source })?;
    Ok(Fresh { layer, dir, record, sync })
}

/// The mode of a container's root directory: what the topmost layer that describes it says. `layers` is bottom
/// first.
pub(crate) fn root_mode(layers: &[Arc<Layer>]) -> u32 {
    layers.iter().rev().find_map(|layer| layer.root_mode).unwrap_or(DEFAULT_ROOT_MODE)
}

/// What tells one state of an image from another without opening it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Identity {
    dev: u64,
    inode: u64,
    size: i64,
    mtime: (i64, i64),
    ctime: (i64, i64),
}

impl Identity {
    /// Of a tar its file's state, of an OCI layout its index's. None where it is not to be had; such an image is
    /// opened each time.
    pub(crate) fn of(source: &wardian_image::Source) -> Option<Self> {
        let uri = source.to_uri();
        let stat = if let Some(path) = uri.strip_prefix("tar://") {
            rustix::fs::stat(path)
        } else {
            let path = uri.strip_prefix("oci://")?;
            let dir = match path.rsplit_once(':') {
                Some((dir, tag)) if !tag.contains('/') => dir,
                _ => path,
            };
            rustix::fs::stat(Path::new(dir).join("index.json"))
        };
        let stat = stat.ok()?;
        Some(Self {
            dev: stat.st_dev,
            inode: stat.st_ino,
            size: stat.st_size,
            mtime: (stat.st_mtime, stat.st_mtime_nsec.cast_signed()),
            ctime: (stat.st_ctime, stat.st_ctime_nsec.cast_signed()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_layers() {
        for good in ["a", "sha256:0123abc", "0123abc", "a.b_c-d"] {
            check_name(good).unwrap();
        }
        let long = "a".repeat(201);
        for bad in ["", ".", "..", "../x", "a/b", "a\0", "a\n", ".new", long.as_str()] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
    }
}
