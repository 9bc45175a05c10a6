//! Layers: unpacked once, kept unshifted, given to containers as read-only (idmapped) detached mounts.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use wardian_image::{Extent, Limits, Packed, Watch};
use wardian_sys::layer_ns::{AttachedLayer, LayerNamespace};
use wardian_sys::{failpoint, mount};

use super::owner::{Owner, is_shared};
use crate::disk::files;
use crate::disk::layout::{self, Layout};
use crate::disk::record::{self, Used};
use crate::failpoints::Point;

/// The mode that `fs/` has before its layer is unpacked: one that no image sets, so that afterwards one can tell
/// whether the layer has an entry for its root.
const NO_ROOT_ENTRY: u32 = 0o1000;
/// The mode of a root directory that no layer describes.
const DEFAULT_ROOT_MODE: u32 = 0o755;
/// The record's file name.
const RECORD: &str = "layer.json";
const TRASH_PREFIX: &str = "layer-";

/// Why an operation on a layer failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A layer's name cannot be used as a directory name.
    #[error("{chain:?} is no name for a layer")]
    Name {
        /// The name.
        chain: String,
    },
    /// The staging directory of a new layer could not be made.
    #[error("cannot prepare the layer {chain}")]
    Stage {
        /// The layer's chain id.
        chain: String,
        /// The kernel's error.
        source: Errno,
    },
    /// The layer could not be fetched, verified or unpacked.
    #[error("cannot unpack {layer}")]
    Unpack {
        /// The layer's file or address: a chain id that no layer in the store has would tell an operator nothing.
        layer: String,
        /// The error of the image's source.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A layer below was collected during the unpack, so that the result may be wrong.
    #[error("the layers below the layer {chain} were thrown away while it was unpacked")]
    Baseless {
        /// The layer's chain id.
        chain: String,
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
    /// Tells this unpacking of the layer from every other one.
    pub(crate) instance: String,
    /// Entries of the layer's tar.
    pub(crate) entries: u64,
    /// Bytes of its files.
    pub(crate) bytes: u64,
    /// How it was packed; none in records of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) packed: Option<Packed>,
    /// Bytes that it takes on the disk; known once it is durable.
    pub(crate) disk_bytes: Option<u64>,
    /// The boot that unpacked it.
    pub(crate) boot_id: String,
    /// Whether all of it is known to be on the disk. Otherwise it is not trusted after another boot.
    pub(crate) durable: bool,
    /// Whether a write error was reported before it was durable: it must not be used then.
    pub(crate) suspect: bool,
    /// The mode of the layer's root directory; none if the layer has no entry for it.
    pub(crate) root_mode: Option<u32>,
}

impl Record {
    /// Reads the record in a layer's directory.
    pub(crate) fn read(dir: impl AsFd) -> std::io::Result<Self> {
        Ok(serde_json::from_str(&files::read_file(dir, RECORD)?)?)
    }

    /// Writes the record there atomically, without a sync.
    pub(crate) fn write(&self, dir: impl AsFd) -> std::io::Result<()> {
        files::write_file(dir, RECORD, &serde_json::to_string(self)?)
    }

    /// Writes the record there atomically, and waits for the disk.
    pub(crate) fn write_durable(&self, dir: impl AsFd) -> std::io::Result<()> {
        files::write_file_durable(dir, RECORD, &serde_json::to_string(self)?)
    }

    /// Returns the bytes on the disk; as long as these are unknown, the bytes of the files.
    pub(crate) fn size(&self) -> u64 {
        self.disk_bytes.unwrap_or(self.bytes)
    }
}

/// Returns whether a layer that another process has unpacked can be used, with its current record.
///
/// A layer that is not durable is trusted only while the process that unpacked it lives: that process's descriptor of
/// the store's root reports every write error since. A descriptor opened later misses errors that were already
/// reported, and the lost files would turn out empty once they are read from the disk.
pub(crate) fn trusted(layout: &Layout, dir: &OwnedFd, record: Record) -> (bool, Record) {
    if record.suspect || record.durable || record.boot_id != layout.boot_id {
        return (record.durable && !record.suspect, record);
    }
    match rustix::fs::flock(dir, FlockOperation::NonBlockingLockShared) {
        Err(_) => (true, record),
        Ok(()) => {
            let _ = rustix::fs::flock(dir, FlockOperation::Unlock);
            // The layer may have become durable after the record was read.
            let again = Record::read(dir).unwrap_or(record);
            (again.durable && !again.suspect, again)
        }
    }
}

/// The key of an id mapping: `None` without one (root is the host's root), otherwise the host's uid and gid of root
/// in a shared mapping. Mappings of different lengths with the same root would collide; a server has only one.
type Mapping = Option<(u32, u32)>;

/// User namespaces for idmapped mounts: for each mapping the first one seen is kept.
#[derive(Debug, Default)]
pub(crate) struct Mappings(Mutex<HashMap<(u32, u32), Arc<OwnedFd>>>);

impl Mappings {
    fn userns(&self, owner: &Owner<'_>) -> rustix::io::Result<Arc<OwnedFd>> {
        if !owner.shared {
            return Ok(Arc::new(rustix::io::fcntl_dupfd_cloexec(owner.userns, 3)?));
        }
        let mut kept = self.0.lock();
        if let Some(fd) = kept.get(&(owner.uid, owner.gid)) {
            return Ok(Arc::clone(fd));
        }
        let fd = Arc::new(rustix::io::fcntl_dupfd_cloexec(owner.userns, 3)?);
        kept.insert((owner.uid, owner.gid), Arc::clone(&fd));
        Ok(fd)
    }
}

/// How much a layer can be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum State {
    /// Complete, but a power cut could destroy it.
    Fresh,
    /// Known to be on the disk.
    Durable,
    /// Perhaps not on the disk; the kernel does not repeat a failed write-back.
    Suspect,
}

/// A layer in the store.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) chain: String,
    pub(crate) instance: String,
    /// The mode of its root directory; none if the layer has no entry for it.
    pub(crate) root_mode: Option<u32>,
    pub(crate) extent: Extent,
    /// The inode number of its directory, to check whether it is still in place.
    inode: u64,
    fs: OwnedFd,
    pub(crate) mounts: Mutex<HashMap<Mapping, Arc<Lower>>>,
    state: AtomicU8,
    /// When it was last used, in seconds since 1970; 0 until then.
    used: AtomicU64,
}

/// A layer as a mount that can be a lower directory of an overlay.
#[derive(Debug)]
pub(crate) struct Lower {
    /// The detached, read-only, perhaps idmapped mount.
    pub(crate) mount: OwnedFd,
    /// The mount attached in the layer namespace, for kernels that refuse detached lower directories.
    attached: OnceLock<AttachedLayer>,
}

impl Lower {
    pub(crate) fn new(mount: OwnedFd) -> Self {
        Self { mount, attached: OnceLock::new() }
    }

    /// Returns the mount in the layer namespace; the first call attaches it. A mount can be attached only once, so
    /// concurrent callers wait.
    pub(crate) fn attached(&self, namespace: &LayerNamespace) -> Result<&AttachedLayer, mount::Error> {
        static TURN: Mutex<()> = Mutex::new(());
        let _turn = TURN.lock();
        if let Some(attached) = self.attached.get() {
            return Ok(attached);
        }
        let attached = namespace.attach(self.mount.as_fd())?;
        Ok(self.attached.get_or_init(|| attached))
    }
}

impl Layer {
    /// Returns the layer as a detached read-only mount, idmapped for the owner. It is made once for each shared
    /// mapping. For an owner whose mapping is not shared it is made anew each time: nobody else could use it, and a
    /// later container with the same root may have another mapping.
    pub(crate) fn mount(&self, owner: Option<&Owner<'_>>, mappings: &Mappings) -> Result<Arc<Lower>, Error> {
        let mapping = owner.map(|owner| (owner.uid, owner.gid));
        let kept = is_shared(owner);
        let mut mounts = kept.then(|| self.mounts.lock());
        if let Some(fd) = mounts.as_ref().and_then(|mounts| mounts.get(&mapping)) {
            return Ok(Arc::clone(fd));
        }
        let lower = Arc::new(Lower::new(self.clone_mount(owner, mappings)?));
        if let Some(mounts) = &mut mounts {
            mounts.insert(mapping, Arc::clone(&lower));
        }
        Ok(lower)
    }

    /// Returns a new detached read-only mount of the layer, idmapped for the owner.
    pub(crate) fn clone_mount(
        &self,
        owner: Option<&Owner<'_>>,
        mappings: &Mappings,
    ) -> Result<OwnedFd, Error> {
        let failed = |source| Error::Mount { chain: self.chain.clone(), source };
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
        Ok(clone)
    }

    /// Whether the descriptor is open on the layer's root directory, through whichever mount.
    pub(crate) fn is_root(&self, dir: impl AsFd) -> bool {
        let id = |stat: rustix::fs::Stat| (stat.st_dev, stat.st_ino);
        let own = rustix::fs::fstat(&self.fs).map(id);
        own.is_ok() && own == rustix::fs::fstat(dir).map(id)
    }

    /// Whether this unpacking is still in the layer's place in the store. A caller that is to keep using it writes a
    /// record first, see [`crate::disk::record`].
    pub(crate) fn is_in_place(&self, layout: &Layout) -> bool {
        let stat = rustix::fs::statat(&layout.layers, &self.chain, AtFlags::SYMLINK_NOFOLLOW);
        stat.is_ok_and(|stat| stat.st_ino == self.inode)
    }

    /// Opens the layer's root directory for reading.
    pub(crate) fn fs(&self) -> rustix::io::Result<OwnedFd> {
        files::open_dir(&self.fs, ".")
    }

    pub(crate) fn as_used(&self) -> Used {
        Used { chain: self.chain.clone(), instance: self.instance.clone() }
    }

    /// Sets the time of the last use to now, in memory; [`Layer::save_used`] saves it later.
    pub(crate) fn touch(&self) {
        self.used.store(record::now_ms() / 1000, Ordering::Relaxed);
    }

    /// Returns the time of the last use in this process, in seconds since 1970, or 0.
    pub(crate) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Saves the time of the last use as the modification time of the layer's directory.
    pub(crate) fn save_used(&self, layout: &Layout) {
        let time = rustix::fs::Timespec { tv_sec: self.used().cast_signed(), tv_nsec: 0 };
        if time.tv_sec > 0 && self.is_in_place(layout) {
            let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
            // A failure only affects the order of garbage collection.
            let _ = rustix::fs::utimensat(&layout.layers, &self.chain, &times, AtFlags::SYMLINK_NOFOLLOW);
        }
    }

    pub(crate) fn state(&self) -> State {
        match self.state.load(Ordering::Acquire) {
            0 => State::Fresh,
            1 => State::Durable,
            _ => State::Suspect,
        }
    }

    pub(crate) fn set_state(&self, state: State) {
        self.state.store(state as u8, Ordering::Release);
    }
}

/// Refuses a chain id that cannot be used as a directory name.
fn check_name(chain: &str) -> Result<(), Error> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b':' | b'.');
    if chain.is_empty() || chain.len() > 200 || chain.starts_with('.') || !chain.bytes().all(plain) {
        return Err(Error::Name { chain: chain.to_owned() });
    }
    Ok(())
}

/// A layer just unpacked, with what is needed to make it durable.
pub(crate) struct Fresh {
    pub(crate) layer: Arc<Layer>,
    /// Its directory, locked: the lock tells other processes that this one is making it durable.
    pub(crate) dir: OwnedFd,
    pub(crate) record: Record,
    /// Opened before the unpack began: its `syncfs` reports every write error since.
    pub(crate) sync: OwnedFd,
    /// When `sync` was opened.
    pub(crate) opened: Instant,
}

/// A layer found in its place.
pub(crate) struct Found {
    pub(crate) layer: Arc<Layer>,
    pub(crate) record: Record,
    /// Whether it can be used, see [`trusted`].
    pub(crate) trusted: bool,
}

/// Loads the layer from the store; `None` if it is missing.
pub(crate) fn load(layout: &Layout, chain: &str) -> Result<Option<Found>, Error> {
    check_name(chain)?;
    let dir = match files::open_dir(&layout.layers, chain) {
        Ok(dir) => dir,
        Err(Errno::NOENT) => return Ok(None),
        Err(source) => return Err(Error::Open { chain: chain.to_owned(), source }),
    };
    let record = Record::read(&dir).map_err(|source| Error::Record { chain: chain.to_owned(), source })?;
    let (trusted, record) = trusted(layout, &dir, record);
    let layer = open(&dir, &record)?;
    Ok(Some(Found { layer, record, trusted }))
}

fn open(dir: &OwnedFd, record: &Record) -> Result<Arc<Layer>, Error> {
    let failed = |source| Error::Open { chain: record.chain_id.clone(), source };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fs = rustix::fs::openat(dir, "fs", flags, Mode::empty()).map_err(failed)?;
    let inode = rustix::fs::fstat(dir).map_err(failed)?.st_ino;
    let state = match record {
        Record { suspect: true, .. } => State::Suspect,
        Record { durable: true, .. } => State::Durable,
        _ => State::Fresh,
    };
    Ok(Arc::new(Layer {
        chain: record.chain_id.clone(),
        instance: record.instance.clone(),
        root_mode: record.root_mode,
        extent: Extent { entries: record.entries, bytes: record.bytes, packed: record.packed },
        inode,
        fs,
        mounts: Mutex::default(),
        state: AtomicU8::new(state as u8),
        used: AtomicU64::new(0),
    }))
}

/// Returns the name in the trash of an unpacking; [`instance_of`] is the inverse.
pub(crate) fn trash_name(instance: &str) -> String {
    format!("{TRASH_PREFIX}{instance}")
}

/// Returns the unpacking that lies in the trash under this name; `None` if the name is not a layer's.
pub(crate) fn instance_of(trash: &str) -> Option<&str> {
    trash.strip_prefix(TRASH_PREFIX)
}

/// Moves a layer from its place to the trash, where it stays as long as root file systems use it.
pub(crate) fn condemn(layout: &Layout, chain: &str, instance: &str) -> Result<(), layout::Error> {
    layout.to_trash(&layout.layers, chain, &trash_name(instance))
}

/// Unpacks a layer in `staging/`, verifies it and moves it to its place. Nothing is synced. On failure the half-made
/// directory's name is given to `discard`. `below` are the layers under it, topmost first.
pub(crate) fn unpack(
    layout: &Layout,
    source: &wardian_image::Layer,
    below: &[Arc<Layer>],
    limits: &Limits,
    watch: &Watch,
    discard: &dyn Fn(&str),
) -> Result<Fresh, Error> {
    let chain = source.chain_id.as_str();
    check_name(chain)?;
    let (name, dir) = reserve(layout).map_err(|source| Error::Stage { chain: chain.to_owned(), source })?;
    failpoint::reach(Point::Staged);
    let result = stage(layout, source, below, limits, watch, &name, dir);
    if result.is_err() {
        discard(&name);
    }
    result
}

/// Makes a directory in `staging/` and locks it. Running processes hold the locks of theirs; an unlocked directory is
/// a half-made layer, and trash.
fn reserve(layout: &Layout) -> rustix::io::Result<(String, OwnedFd)> {
    loop {
        let name = uuid::Uuid::new_v4().simple().to_string();
        rustix::fs::mkdirat(&layout.staging, &name, Mode::RWXU)?;
        // Until it is locked, another process may take it for trash; the loop then makes another one.
        let dir = match files::open_dir(&layout.staging, &name) {
            Err(Errno::NOENT) => continue,
            other => other?,
        };
        if rustix::fs::flock(&dir, FlockOperation::NonBlockingLockExclusive).is_err() {
            continue;
        }
        let there = rustix::fs::statat(&layout.staging, &name, AtFlags::SYMLINK_NOFOLLOW);
        if there.is_ok_and(|stat| rustix::fs::fstat(&dir).is_ok_and(|own| own.st_ino == stat.st_ino)) {
            return Ok((name, dir));
        }
    }
}

fn stage(
    layout: &Layout,
    source: &wardian_image::Layer,
    below: &[Arc<Layer>],
    limits: &Limits,
    watch: &Watch,
    name: &str,
    dir: OwnedFd,
) -> Result<Fresh, Error> {
    let chain = source.chain_id.as_str();
    let staged = |source| Error::Stage { chain: chain.to_owned(), source };
    let (sync, opened) = (layout.sync_handle().map_err(staged)?, Instant::now());
    rustix::fs::mkdirat(&dir, "fs", Mode::RWXU).map_err(staged)?;
    let fs = files::open_dir(&dir, "fs").map_err(staged)?;
    rustix::fs::fchmod(&fs, Mode::from_raw_mode(NO_ROOT_ENTRY)).map_err(staged)?;
    let dirs = below.iter().map(|layer| layer.fs()).collect::<Result<Vec<_>, _>>().map_err(staged)?;
    let dirs: Vec<_> = dirs.iter().map(AsFd::as_fd).collect();
    let unpacked = source.unpack(fs.as_fd(), &dirs, limits, watch);
    // No record protected the layers below. If one was being deleted, the unpacked layer may be wrong.
    if !below.iter().all(|layer| layer.is_in_place(layout)) {
        return Err(Error::Baseless { chain: chain.to_owned() });
    }
    let unpacked =
        unpacked.map_err(|error| Error::Unpack { layer: source.to_string(), source: Box::new(error) })?;
    failpoint::reach(Point::Unpacked);
    let mode = rustix::fs::fstat(&fs).map_err(staged)?.st_mode & 0o7777;
    let root_mode = (mode != NO_ROOT_ENTRY).then_some(mode);
    if root_mode.is_none() {
        rustix::fs::fchmod(&fs, Mode::from_raw_mode(DEFAULT_ROOT_MODE)).map_err(staged)?;
    }
    let record = Record {
        chain_id: chain.to_owned(),
        diff_id: unpacked.diff_id.to_string(),
        instance: name.to_owned(),
        entries: unpacked.entries,
        bytes: unpacked.bytes,
        packed: Some(unpacked.packed),
        disk_bytes: None,
        boot_id: layout.boot_id.clone(),
        durable: false,
        suspect: false,
        root_mode,
    };
    record.write(&dir).map_err(|source| Error::Record { chain: chain.to_owned(), source })?;
    failpoint::reach(Point::Recorded);
    let layer = open(&dir, &record)?;
    let commit = rustix::fs::RenameFlags::NOREPLACE;
    rustix::fs::renameat_with(&layout.staging, name, &layout.layers, chain, commit)
        .map_err(|source| Error::Commit { chain: chain.to_owned(), source })?;
    failpoint::reach(Point::Committed);
    layer.touch();
    Ok(Fresh { layer, dir, record, sync, opened })
}

/// Returns the mode of a container's root directory, which the topmost layer with an entry for it sets. `layers` is
/// bottom first.
pub(crate) fn root_mode(layers: &[Arc<Layer>]) -> u32 {
    layers.iter().rev().find_map(|layer| layer.root_mode).unwrap_or(DEFAULT_ROOT_MODE)
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
