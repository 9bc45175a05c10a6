//! Layers and root file systems: the one store of a host.
//!
//! ```text
//! <root>/
//! ├── format.json                       which program may touch this store
//! ├── lock                              held by the server; names the run directory
//! ├── layers/<chain>/{fs/, layer.json}  unpacked once; ids as in the image
//! ├── images/<name>.json                what names stand for, and pins
//! ├── images/<digest>.documents         manifest and config of one or more of them
//! ├── staging/<name>/                   half-made layers, each locked by its maker; without a maker, trash
//! ├── rootfs/<name>/{upper,work}        named by a record in <run>/rootfs, or trash
//! └── trash/<name>/                     layers that nobody is given any more, and other trash
//! <run>/rootfs/
//! ├── <id>.json                         a living root file system: its directory, its layers
//! └── <id>/                             where it is attached, if it was asked to be
//! ```
//!
//! Layers are durable, containers are volatile. Nothing on a request path waits for the disk: a root file system is a
//! detached volatile overlay handed out as a descriptor, releasing it removes a record on tmpfs and tells the reaper,
//! and layers are written back by a thread of their own. The store may be killed at any instruction.
//!
//! One server has the store ([`Store::serve`]); commands use it at the same time or without one ([`Store::open`]).
//! All calls block and may come from any thread.
#![forbid(unsafe_code)]

mod disk;
mod error;
mod fail;
mod images;
mod layers;
mod mounts;
mod work;

pub(crate) use disk::record;
pub use disk::{format, layout, remove, run, whose};
pub use images::image;
pub(crate) use images::{flight, progress};
pub(crate) use layers::durable;
pub use layers::layer;
pub(crate) use mounts::{measure, pool, reaper, sentinel};
pub use mounts::{ready, rootfs};
pub use work::erase;
pub(crate) use work::{attach, close, collect, fetch, open, steward, usage};

use std::collections::{HashMap, HashSet};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use wardian_image::{Identity, Remote};

pub use collect::{Collected, Garbage};
pub use error::{Error, Result};
pub use fetch::{Opened, ToFetch};
pub use image::{Documents, Named, Wish};
pub use measure::Measured;
pub use progress::{LayerProgress, Phase, Progress};
pub use record::{Record as RootfsRecord, Used};
pub use rootfs::Rootfs;
pub use wardian_image::{Host, Limits, Settings as Fetching, Way};

pub use usage::{ImageUsage, LayerInfo, RootfsUsage, Usage};

use durable::Durability;
use fail::fail_point;
use flight::Flights;
use layer::Layer;
use layout::{Layout, Lock, Role};
use measure::Measurer;
use pool::{Pair, Pool};
use ready::{Ready, Spare};
use reaper::{Item, Place, Reaper};
use record::Record;
use rootfs::Mounter;

/// Where a store is.
#[derive(Debug, Clone)]
pub struct Config {
    /// The directory of what survives a reboot. Made if missing; closed to all but root.
    pub root: PathBuf,
    /// The directory of what does not, on a tmpfs: the records of root file systems.
    pub run: PathBuf,
    /// A server collects garbage when the layers take more bytes than this; none: only when it is told to.
    pub gc_threshold: Option<u64>,
    /// How layers are fetched from servers.
    pub remote: Fetching,
    /// What one layer, and one image, may take.
    pub limits: Limits,
    /// How many root file systems a server mounts ahead for each image that creates have asked for lately, at most
    /// [`ready::MOST`]; 0: none.
    pub ready_rootfs: usize,
}

impl Config {
    /// Without automatic garbage collection, with nothing mounted ahead, and with the usual limits.
    pub fn new(root: impl Into<PathBuf>, run: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            run: run.into(),
            gc_threshold: None,
            remote: Fetching::default(),
            limits: Limits::default(),
            ready_rootfs: 0,
        }
    }
}

/// Who root in a container is on the host; without it, the host's root (privileged).
#[derive(Debug, Clone, Copy)]
pub struct Owner<'a> {
    /// A user namespace with the container's mapping. The store keeps the first one it sees of each mapping that is
    /// `shared`; such a mapping is told by `uid` and `gid`.
    pub userns: BorrowedFd<'a>,
    /// The host id of the container's root user.
    pub uid: u32,
    /// The host id of the container's root group.
    pub gid: u32,
    /// Others have the same mapping. Of one that is not shared nothing is kept, and nothing is made ahead for it.
    pub shared: bool,
}

/// An image whose layers are in the store. Cheap to clone; keeps its layers open.
#[derive(Debug, Clone)]
pub struct Image {
    /// As it was asked for.
    pub uri: String,
    /// The same without what may be secret.
    pub shown: String,
    /// The digest of its config, or the chain id of a bare tar or of an app on top, in hex.
    pub id: String,
    /// What the image says about the processes in it.
    pub config: wardian_image::Config,
    /// The manifest as it was read; none for a bare tar.
    pub manifest: Option<Vec<u8>>,
    /// The config as it was read; none for a bare tar.
    pub config_json: Option<Vec<u8>>,
    /// Bottom first.
    layers: Arc<[Arc<Layer>]>,
}

impl Image {
    /// Chain ids of its layers, bottom first.
    pub fn chain_ids(&self) -> Vec<String> {
        self.layers.iter().map(|layer| layer.chain.clone()).collect()
    }

    /// The root directories of its layers, bottom first, for reading.
    ///
    /// # Errors
    /// The system's, when it runs out of descriptors.
    pub fn layer_dirs(&self) -> std::io::Result<Vec<OwnedFd>> {
        self.layers.iter().map(|layer| Ok(layer.fs()?)).collect()
    }

    /// Bytes of what was read of it, which whoever made it chose.
    fn documents(&self) -> usize {
        let length = |text: &Option<Vec<u8>>| text.as_ref().map_or(0, Vec::len);
        // The settings are a part of the config, with as much again for each string of it.
        length(&self.manifest) + 4 * length(&self.config_json)
    }

    fn touch(&self) {
        self.layers.iter().for_each(|layer| layer.touch());
    }
}

/// The store. Clones are the same store.
#[derive(Debug, Clone)]
pub struct Store(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    layout: Arc<Layout>,
    /// A server's, for its life.
    lock: Mutex<Option<Lock>>,
    reaper: Reaper,
    durability: Arc<Durability>,
    measurer: Measurer,
    door: Arc<steward::Door>,
    mounter: Mounter,
    pool: Pool,
    ready: Ready,
    gc_threshold: Option<u64>,
    remote: Remote,
    limits: Limits,
    images: Mutex<HashMap<String, (Identity, Image)>>,
    layers: Mutex<HashMap<String, Arc<Layer>>>,
    /// How many of them are kept.
    most_open: usize,
    /// Honest root file systems, kept open: whoever closes the last reference waits for the disk, and that is the
    /// reaper's side.
    honest: Mutex<HashMap<String, OwnedFd>>,
    /// Write-back errors that root file systems were hit by, in words.
    hit: Mutex<HashMap<String, String>>,
    opening: Flights<String, Image>,
    unpacking: Flights<String, Arc<Layer>>,
    closed: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a root file system begins with: all of it, its directories, or nothing.
enum Start {
    Spare(Spare),
    Pair(Pair),
    Nothing,
}

/// Whose its root directory is, on the host.
fn root_of(owner: Option<&Owner<'_>>) -> pool::Root {
    owner.map_or((0, 0), |owner| (owner.uid, owner.gid))
}

/// Whether others have the same one.
fn is_shared(owner: Option<&Owner<'_>>) -> bool {
    owner.is_none_or(|owner| owner.shared)
}

impl Store {
    /// Opens the store for a server, which keeps it until it is closed, and puts it in order: makes what is missing,
    /// throws away half-made layers, layers that another boot left unfinished, and every root file system that is not
    /// attached and that `live` does not know. The deleting itself is left to the reaper.
    ///
    /// # Errors
    ///
    /// Another server uses the store, a later program made it, it is in use with another run directory, or its
    /// directories cannot be used.
    pub fn serve(config: &Config, live: &dyn Fn(&str) -> bool) -> Result<Self> {
        let store = Self::new(config, Role::Server)?;
        store.0.recover(live)?;
        let thread = |name| move |source| Error::Thread { name, source };
        store.0.reaper.start().map_err(thread("reaper"))?;
        steward::start(&store.0).map_err(thread("steward"))?;
        store.0.measurer.start().map_err(thread("measurer"))?;
        store.0.door.knock();
        Ok(store)
    }

    /// Opens the store for one command, beside a server or without one. What it throws away the server deletes, or
    /// [`Store::reap`].
    ///
    /// # Errors
    ///
    /// A later program made the store, it is in use with another run directory, or its directories cannot be used.
    pub fn open(config: &Config) -> Result<Self> {
        Self::new(config, Role::Command)
    }

    fn new(config: &Config, role: Role) -> Result<Self> {
        let (layout, lock) = Layout::open(&config.root, &config.run, role)?;
        let layout = Arc::new(layout);
        let remote = Remote::new(config.remote.clone()).map_err(|source| Error::Certificates { source })?;
        let inner = Arc::new_cyclic(|weak: &std::sync::Weak<Inner>| {
            let weak = weak.clone();
            let alarm = move |what: &str| {
                if let Some(inner) = weak.upgrade() {
                    inner.mark_hit(what);
                }
            };
            Inner {
                reaper: Reaper::new(Arc::clone(&layout)),
                durability: Durability::new(Box::new(alarm)),
                measurer: Measurer::new(Arc::clone(&layout)),
                door: Arc::default(),
                mounter: Mounter::default(),
                pool: Pool::new(role == Role::Server && layout.spreads),
                // Only a server's steward fills it.
                ready: Ready::new(if role == Role::Server { config.ready_rootfs } else { 0 }, open::most()),
                gc_threshold: config.gc_threshold,
                remote,
                limits: config.limits,
                images: Mutex::default(),
                layers: Mutex::default(),
                most_open: open::most(),
                honest: Mutex::default(),
                hit: Mutex::default(),
                opening: Flights::default(),
                unpacking: Flights::default(),
                closed: AtomicBool::new(false),
                lock: Mutex::new(None),
                layout,
            }
        });
        inner.durability.start().map_err(|source| Error::Thread { name: "durability", source })?;
        match (role, lock) {
            (Role::Server, held) => *self::lock(&inner.lock) = held,
            // Nobody else is here, and so what another boot has left is nobody's.
            (Role::Command, Some(held)) => {
                inner.distrust()?;
                drop(held);
            }
            (Role::Command, None) => {}
        }
        Ok(Self(inner))
    }

    /// Takes the image into the store: what is missing is fetched, verified and unpacked, once however many ask. `uri`
    /// is an address as [`wardian_image::Source::parse`] understands it, or the name of an image in the store; with an
    /// app on top as in [`wardian_image::App`].
    ///
    /// # Errors
    ///
    /// The image or one of its layers cannot be read or is not what it says. Layers that were whole stay.
    pub fn image(&self, uri: &str) -> Result<Image> {
        self.0.image(uri, &Progress::default())
    }

    /// The image, if that can be told without fetching anything, without asking anybody and without opening more than a file
    /// of an app. None: [`Store::image`] may have it all the same.
    ///
    /// # Errors
    /// As [`Store::image`].
    pub fn at_hand(&self, uri: &str) -> Result<Option<Image>> {
        self.0.at_hand(uri)
    }

    /// The same, watched; with `name`, the image is called that from then on, whatever was before.
    ///
    /// # Errors
    ///
    /// As [`Store::image`]; the name is no name; it was cancelled.
    pub fn import(&self, uri: &str, name: Option<&str>, progress: &Progress) -> Result<Image> {
        match name {
            Some(name) => Ok(self.import_as(uri, name, Wish::Operator, progress)?.0),
            None => self.0.image(uri, progress),
        }
    }

    /// The same with a name that somebody wishes for. Gives also the image that had the name until now, if that was
    /// another one.
    ///
    /// # Errors
    ///
    /// As [`Store::import`]; the wish is the source's, and another image has the name.
    pub fn import_as(
        &self,
        uri: &str,
        name: &str,
        wish: Wish,
        progress: &Progress,
    ) -> Result<(Image, Option<Named>)> {
        image::check(name)?;
        let mut replaced = None;
        for _ in 0..fetch::TRIES {
            let image = self.0.image(uri, progress)?;
            replaced = self.0.name(name, uri, &image, wish)?.or(replaced);
            fail_point!("named");
            // A collection that did not see the name may have taken a layer.
            if self.is_in_place(&image) {
                return Ok((image, replaced));
            }
        }
        Err(Error::Collected { uri: wardian_image::shown(uri) })
    }

    /// Whether all layers of an image are in their places still: what was read from them until now was complete.
    pub fn is_in_place(&self, image: &Image) -> bool {
        image.layers.iter().all(|layer| layer.is_in_place(&self.0.layout))
    }

    /// Waits until the layers that this process has brought in are durable or suspect; false if it was cancelled.
    pub fn wait_durable(&self, progress: &Progress) -> bool {
        self.0.durability.drain(Duration::MAX, &|| progress.is_cancelled())
    }

    /// Waits until all layers of an image are on the disk, whoever writes them; fetches again what was not. False if it
    /// was cancelled.
    ///
    /// # Errors
    /// What was lost cannot be fetched again.
    pub fn wait_image_durable(&self, image: &Image, progress: &Progress) -> Result<bool> {
        let mut image = image.clone();
        for _ in 0..fetch::TRIES {
            if !self.wait_durable(progress) {
                return Ok(false);
            }
            if self.0.written_elsewhere(&image, &|| progress.is_cancelled()) {
                return Ok(!progress.is_cancelled());
            }
            image = self.0.image(&image.uri, progress)?;
        }
        Err(Error::Lost { uri: image.shown })
    }

    /// All named images, by name.
    ///
    /// # Errors
    /// Their records cannot be listed.
    pub fn images(&self) -> Result<Vec<Named>> {
        Ok(image::all(&self.0.layout)?)
    }

    /// The image of this name.
    ///
    /// # Errors
    /// There is none.
    pub fn find_image(&self, name: &str) -> Result<Named> {
        Ok(image::find(&self.0.layout, name)?)
    }

    /// The same with its manifest and config.
    ///
    /// # Errors
    /// There is none, or what it says of itself cannot be read.
    pub fn read_image(&self, name: &str) -> Result<(Named, Documents)> {
        Ok(image::read_whole(&self.0.layout, name)?)
    }

    /// Refuses a name that an image's source brings along if another image has it. A look ahead: whether it gets the name
    /// is told by [`Store::import_as`].
    ///
    /// # Errors
    /// Another image has the name, or it is no name.
    pub fn check_free(&self, name: &str, image: &wardian_image::Image) -> Result<()> {
        let layers: Vec<_> = image.layers.iter().map(|layer| layer.chain_id.clone()).collect();
        Ok(image::check_free(&self.0.layout, name, &image.id, &layers)?)
    }

    /// Takes a name away, and throws away those of its layers that nothing else has or uses.
    ///
    /// # Errors
    /// There is no such name, it is pinned and that is not meant (`pinned`), or a layer cannot be moved.
    pub fn remove_image(&self, name: &str, pinned: bool) -> Result<Collected> {
        let named = image::take(&self.0.layout, name, pinned)?;
        image::sweep(&self.0.layout);
        let others = image::all(&self.0.layout)?;
        let shared = |chain: &String| others.iter().any(|other| other.layers.contains(chain));
        let own = named.layers.into_iter().filter(|chain| !shared(chain)).collect();
        self.0.collect(Garbage::Until(0), Some(&own))
    }

    /// Keeps an image from being collected, or no longer.
    ///
    /// # Errors
    /// There is no such name.
    pub fn pin(&self, name: &str, pinned: bool) -> Result<()> {
        Ok(image::change(&self.0.layout, name, |image| image.pinned = pinned)?)
    }

    /// What is known of a layer; none if it is not in the store.
    pub fn layer(&self, chain: &str) -> Option<LayerInfo> {
        layer::load(&self.0.layout, chain).ok().flatten().map(|found| found.record.into())
    }

    /// Throws away layers that nobody uses, those used longest ago first, until the layers take at most so many bytes.
    ///
    /// # Errors
    /// The records cannot be read, or a layer cannot be moved.
    pub fn collect(&self, target_bytes: u64) -> Result<Collected> {
        self.0.collect(Garbage::Until(target_bytes), None)
    }

    /// Throws away layers that nobody uses; with `only`, no others than these.
    ///
    /// # Errors
    /// As [`Store::collect`].
    pub fn collect_garbage(&self, garbage: Garbage, only: Option<&HashSet<String>>) -> Result<Collected> {
        self.0.collect(garbage, only)
    }

    /// What [`Store::collect_garbage`] would throw away now.
    ///
    /// # Errors
    /// The records cannot be read.
    pub fn find_garbage(&self, garbage: Garbage) -> Result<Collected> {
        self.0.garbage(garbage)
    }

    /// What takes how much space. Walks over everything that is not a layer: seconds, if that is much.
    ///
    /// # Errors
    /// The records cannot be read.
    pub fn usage(&self) -> Result<Usage> {
        self.0.usage()
    }

    /// Makes a root file system: a detached mount, ready to be attached. The caller owns the only reference;
    /// [`Store::release_rootfs`] comes after its last one is closed.
    ///
    /// # Errors
    ///
    /// The id exists or is unusable, or the kernel refuses one of the mounts. Nothing stays then.
    pub fn create_rootfs(&self, id: &str, image: &Image, owner: Option<&Owner<'_>>) -> Result<Rootfs> {
        self.0.create_rootfs(id, image, owner, None)
    }

    /// Says that a root file system is not needed any more. Touches no file of the store and never waits. `handle` is
    /// what the log calls it.
    pub fn release_rootfs(&self, id: &str, handle: Option<&str>) {
        if rootfs::check_id(id).is_ok() {
            self.0.release_rootfs(id, handle);
        }
    }

    /// The space of a root file system as it is known: measured a while ago, and from now on anew if that is too long
    /// ago. Touches no file.
    pub fn measured(&self, id: &str) -> Measured {
        self.0.measurer.get(id)
    }

    /// The write-back error that a root file system was hit by, with the remedy.
    pub fn writeback_error(&self, id: &str) -> Option<String> {
        lock(&self.0.hit).get(id).cloned()
    }

    /// A new file without a name on the store's file system, which has room for what is made of its images. It is gone when
    /// it is closed.
    ///
    /// # Errors
    /// The file system has no such files, or no room.
    pub fn scratch(&self) -> std::io::Result<std::fs::File> {
        use rustix::fs::{Mode, OFlags};
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&self.0.layout.staging, ".", flags, Mode::RUSR | Mode::WUSR)?.into())
    }

    /// Waits until everything that is trash now or becomes trash meanwhile is deleted; false if that takes longer.
    pub fn drain(&self, timeout: Duration) -> bool {
        self.0.reaper.drain(timeout)
    }

    /// How many root file systems and layers wait to be deleted.
    pub fn trash_count(&self) -> usize {
        self.0.reaper.len()
    }

    /// How many root file systems are mounted ahead.
    pub fn ready_rootfs(&self) -> usize {
        self.0.ready.len()
    }

    /// Whether a server has this store, and so deletes its trash.
    pub fn has_server(&self) -> bool {
        self.0.layout.has_server()
    }

    /// Stops the store's threads and lets another server have the store. What is still trash stays for it. A layer's
    /// write-back that is under way ends by itself, and so does what still waits for the disk after 2 s.
    pub fn close(&self) {
        self.0.close();
    }
}

impl Inner {
    fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) { Err(Error::Closed) } else { Ok(()) }
    }

    fn trash(&self, place: Place, name: &str) {
        if place == Place::Rootfs {
            self.pool.disown(name);
        }
        if let Some(item) = Item::new(place, name) {
            self.reaper.add(item);
        }
    }

    fn records_error(&self, source: std::io::Error) -> Error {
        Error::Records { path: self.layout.records.path().to_owned(), source }
    }

    fn used_layers(&self) -> Result<HashSet<Used>> {
        self.layout.records.used_layers().map_err(|source| self.records_error(source))
    }

    fn name(&self, name: &str, uri: &str, image: &Image, wish: Wish) -> Result<Option<Named>> {
        let text = |bytes: &Option<Vec<u8>>| bytes.clone().map(|b| String::from_utf8_lossy(&b).into_owned());
        let (id, config) = self.ordinary(uri, image)?;
        let named = Named {
            name: name.to_owned(),
            source: uri.to_owned(),
            id,
            layers: image.chain_ids(),
            pinned: false,
            imported_ms: record::now_ms(),
        };
        let documents = Documents { manifest: text(&image.manifest), config: text(&config) };
        Ok(image::save(&self.layout, named, &documents, wish)?)
    }

    fn create_rootfs(
        &self,
        id: &str,
        image: &Image,
        owner: Option<&Owner<'_>>,
        attached: Option<PathBuf>,
    ) -> Result<Rootfs> {
        self.check_open()?;
        rootfs::check_id(id)?;
        let start = match self.ready.claim(&image.layers, owner) {
            Some(spare) => Start::Spare(spare),
            None => self.pool.take(root_of(owner), is_shared(owner)).map_or(Start::Nothing, Start::Pair),
        };
        let dir = match &start {
            Start::Spare(spare) => spare.name.clone(),
            Start::Pair(pair) => pair.name.clone(),
            Start::Nothing => self.pool.new_name(),
        };
        let mut image = image.clone();
        let mut record = Record {
            id: id.to_owned(),
            dir,
            boot_id: self.layout.boot_id.clone(),
            image: image.shown.clone(),
            layers: image.layers.iter().map(|layer| layer.as_used()).collect(),
            created_ms: record::now_ms(),
            attached,
            honest: false,
            writeback_error: None,
        };
        let new = self.layout.records.create(&record);
        if !matches!(new, Ok(true)) {
            match start {
                Start::Spare(spare) => self.discard(self.ready.put(spare).err()),
                // The pair, if there is one, is as good as trash.
                _ => self.trash(Place::Rootfs, &record.dir),
            }
            return Err(match new {
                Err(source) => rootfs::Error::Record { id: id.to_owned(), source },
                Ok(_) => rootfs::Error::Exists { id: id.to_owned() },
            }
            .into());
        }
        fail_point!("rootfs-recorded");
        let built = self.furnish(&mut record, &mut image, owner, start);
        fail_point!("rootfs-mounted");
        self.door.knock();
        let (mount, honest) = match built {
            Ok(built) => built,
            Err(error) => {
                self.release_rootfs(id, None);
                return Err(error);
            }
        };
        if honest {
            record.honest = true;
            // Only for show: who reads it learns that this one syncs.
            let _ = self.layout.records.update_existing(&record);
            if let Ok(kept) = mount.try_clone() {
                lock(&self.honest).insert(id.to_owned(), kept);
            }
        }
        image.touch();
        self.measurer.made(id, image.layers.iter().map(|layer| layer.extent.bytes).sum());
        Ok(Rootfs { mount, dir: self.layout.path.join("rootfs").join(record.dir), honest })
    }

    /// The mount of a root file system that has its record; true if it is honest.
    fn furnish(
        &self,
        record: &mut Record,
        image: &mut Image,
        owner: Option<&Owner<'_>>,
        start: Start,
    ) -> Result<(OwnedFd, bool)> {
        // Whoever closes the store looks for records after it has said so, and takes what has none for its own.
        self.check_open()?;
        let asked = Arc::clone(&image.layers);
        let settled = self.settle(record, image);
        let made = |source, record: &Record| rootfs::Error::Make { id: record.id.clone(), source };
        let pair = match start {
            // Asked after the record was written: of a write that is lost later the record hears.
            Start::Spare(spare)
                if settled.is_ok() && Arc::ptr_eq(&asked, &image.layers) && spare.is_sound() =>
            {
                fail_point!("spare-claimed");
                return Ok((spare.mount, false));
            }
            Start::Spare(spare) => {
                settled?;
                // Its own directories cannot be mounted a second time.
                record.dir = self.pool.new_name();
                self.layout.records.update_existing(record).map_err(|source| {
                    self.pool.disown(&record.dir);
                    rootfs::Error::Record { id: record.id.clone(), source }
                })?;
                // What befell the spare was no affair of this one; and a close since the look above knows the old name only.
                lock(&self.hit).remove(&record.id);
                self.check_open()?;
                fail_point!("spare-refused");
                self.discard([spare]);
                self.pool
                    .make(&self.layout, &record.dir, root_of(owner))
                    .map_err(|source| made(source, record))?
            }
            Start::Pair(pair) => settled.map(|()| pair)?,
            Start::Nothing => {
                settled?;
                self.pool
                    .make(&self.layout, &record.dir, root_of(owner))
                    .map_err(|source| made(source, record))?
            }
        };
        fail_point!("rootfs-paired");
        let parts = rootfs::Parts { id: &record.id, layers: &image.layers, owner, pair: &pair };
        Ok(self.mounter.build(&parts, &|| self.report_unseen())?)
    }

    /// Sees, now that the record names them, that the image's layers are in their places; otherwise fetches them again.
    fn settle(&self, record: &mut Record, image: &mut Image) -> Result<()> {
        for _ in 0..fetch::TRIES {
            if image.layers.iter().all(|layer| self.is_fine(layer)) {
                return Ok(());
            }
            *image = self.image(&image.uri, &Progress::default())?;
            record.layers = image.layers.iter().map(|layer| layer.as_used()).collect();
            let recorded = |source| rootfs::Error::Record { id: record.id.clone(), source };
            self.layout.records.update_existing(record).map_err(recorded)?;
        }
        Err(rootfs::Error::Gone { id: record.id.clone() }.into())
    }

    fn release_rootfs(&self, id: &str, handle: Option<&str>) {
        let record = self.layout.records.get(id);
        if let Err(error) = self.layout.records.remove(id) {
            tracing::warn!(id, %error, "rootfs.record-not-removed");
            return;
        }
        fail_point!("rootfs-released");
        self.measurer.forget(id);
        lock(&self.hit).remove(id);
        let honest = lock(&self.honest).remove(id);
        let Ok(Some(record)) = record else { return };
        self.pool.disown(&record.dir);
        if let Some(mut item) = Item::new(Place::Rootfs, &record.dir) {
            item.made_ms = Some(record.created_ms);
            item.handle = handle.map(str::to_owned);
            // The last reference to an honest overlay syncs.
            item.keep = honest.map(Arc::new);
            self.reaper.add(item);
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
mod tests;
