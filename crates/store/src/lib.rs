//! Layers and root file systems: the one store of a host.
//!
//! ```text
//! <root>/
//! ├── format.json                       which program may touch this store
//! ├── layers/<chain>/{fs/, layer.json}  unpacked once; ids as in the image
//! ├── staging/<name>/                   half-made layers; trash at the next open
//! ├── rootfs/<id>/{upper,work}          of a container, or trash
//! ├── suspect/<name>/                   layers whose data may not be on the disk; trash once no container runs
//! └── trash/<name>/
//! ```
//!
//! Layers are durable, containers are volatile. Nothing on a request path waits for the disk: a root file system is a
//! detached volatile overlay handed out as a descriptor, releasing it only tells the reaper, and layers are written
//! back by a thread of their own. The store may be killed at any instruction; [`Store::open`] puts it in order.
//!
//! All calls block and may come from any thread.
#![forbid(unsafe_code)]

mod durable;
mod error;
mod flight;
pub mod format;
pub mod layer;
pub mod layout;
mod reaper;
pub mod remove;
pub mod rootfs;

use std::collections::HashMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub use error::{Error, Result};

use durable::Durability;
use flight::Flights;
use layer::{Fresh, Identity, Layer, Mappings, Record};
use layout::Layout;
use reaper::{Place, Reaper};

/// Where a store is.
#[derive(Debug, Clone)]
pub struct Config {
    /// The directory of what survives a reboot. Made if missing; closed to all but root.
    pub root: PathBuf,
    /// The directory of what does not, on a tmpfs. The store itself keeps nothing there yet.
    pub run: PathBuf,
}

/// Who root in a container is on the host; without it, the host's root (privileged).
#[derive(Debug, Clone, Copy)]
pub struct Owner<'a> {
    /// A user namespace with the container's mapping. The store keeps the first one it sees of each mapping; a
    /// mapping is told by `uid` and `gid`.
    pub userns: BorrowedFd<'a>,
    /// The host id of the container's root user.
    pub uid: u32,
    /// The host id of the container's root group.
    pub gid: u32,
}

/// An image whose layers are in the store. Cheap to clone; keeps its layers open.
#[derive(Debug, Clone)]
pub struct Image {
    /// What the image says about the processes in it.
    pub config: wardian_image::Config,
    /// Bottom first.
    layers: Arc<[Arc<Layer>]>,
}

/// The store. Clones are the same store.
#[derive(Debug, Clone)]
pub struct Store(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    layout: Arc<Layout>,
    reaper: Reaper,
    durability: Arc<Durability>,
    mappings: Mappings,
    images: Mutex<HashMap<String, (Identity, Image)>>,
    layers: Mutex<HashMap<String, Arc<Layer>>>,
    opening: Flights<String, Image>,
    unpacking: Flights<String, Arc<Layer>>,
    closed: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Store {
    /// Opens the store and puts it in order: makes what is missing, takes the lock, throws away half-made layers,
    /// layers that another boot left unfinished, and every root file system that `live` does not know. The deleting
    /// itself is left to the reaper.
    ///
    /// # Errors
    ///
    /// Another server uses the store, a later program made it, or its directories cannot be used.
    pub fn open(config: Config, live: &dyn Fn(&str) -> bool) -> Result<Self> {
        let Config { root, run: _ } = config;
        let layout = Arc::new(Layout::open(&root)?);
        let durability =
            Durability::start().map_err(|source| Error::Thread { name: "durability", source })?;
        let reaper =
            Reaper::start(Arc::clone(&layout)).map_err(|source| Error::Thread { name: "reaper", source })?;
        let store = Self(Arc::new(Inner {
            layout,
            reaper,
            durability,
            mappings: Mappings::default(),
            images: Mutex::default(),
            layers: Mutex::default(),
            opening: Flights::default(),
            unpacking: Flights::default(),
            closed: AtomicBool::new(false),
        }));
        store.0.recover(live)?;
        Ok(store)
    }

    /// Takes the image into the store: what is missing is fetched, verified and unpacked, once however many ask.
    ///
    /// # Errors
    ///
    /// The image or one of its layers cannot be read or is not what it says; then the store holds nothing new of it.
    pub fn image(&self, uri: &str) -> Result<Image> {
        let inner = &*self.0;
        inner.check_open()?;
        let image_error =
            |source: wardian_image::Error| Error::Image { uri: uri.to_owned(), source: Box::new(source) };
        let source = wardian_image::Source::parse(uri).map_err(image_error)?;
        let identity = Identity::of(&source);
        let cached = |identity: &Option<Identity>| {
            let images = lock(&inner.images);
            let (known, image) = images.get(uri)?;
            let fine =
                Some(known) == identity.as_ref() && !image.layers.iter().any(|layer| layer.is_suspect());
            fine.then(|| image.clone())
        };
        if let Some(image) = cached(&identity) {
            return Ok(image);
        }
        let key = format!("{identity:?} {uri}");
        inner.opening.run(&key, || {
            if let Some(image) = cached(&identity) {
                return Ok(image);
            }
            let opened = source.open().map_err(image_error)?;
            let layers =
                opened.layers.iter().map(|layer| inner.layer(layer)).collect::<Result<Arc<[_]>>>()?;
            let image = Image { config: opened.config, layers };
            // The identity was taken before the image was read: had it changed since, the next asker would see that.
            if let Some(identity) = identity.clone() {
                lock(&inner.images).insert(uri.to_owned(), (identity, image.clone()));
            }
            Ok(image)
        })
    }

    /// Makes a root file system: a detached mount, ready to be attached, whose writable layer is `rootfs/<id>`. The
    /// caller owns the only reference; [`Store::release_rootfs`] comes after its last one is closed.
    ///
    /// # Errors
    ///
    /// The id exists or is unusable, or the kernel refuses one of the mounts. Nothing stays then.
    pub fn create_rootfs(&self, id: &str, image: &Image, owner: Option<&Owner<'_>>) -> Result<OwnedFd> {
        let inner = &*self.0;
        inner.check_open()?;
        let dir = rootfs::reserve(&inner.layout, id)?;
        let unseen_error = || {
            if let Ok(sync) = inner.layout.sync_handle() {
                inner.durability.report(sync);
            }
        };
        let result = rootfs::build(&dir, id, &image.layers, owner, &inner.mappings, &unseen_error);
        if result.is_err() {
            inner.reaper.add(Place::Rootfs, id);
        }
        Ok(result?)
    }

    /// Says that `rootfs/<id>` is trash. Touches no file and never waits.
    pub fn release_rootfs(&self, id: &str) {
        if rootfs::check_id(id).is_ok() {
            self.0.reaper.add(Place::Rootfs, id);
        }
    }

    /// Waits until everything that is trash now or becomes trash meanwhile is deleted; false if that takes longer.
    pub fn drain(&self, timeout: Duration) -> bool {
        self.0.reaper.drain(timeout)
    }

    /// How many root file systems and layers wait to be deleted.
    pub fn trash_count(&self) -> usize {
        self.0.reaper.len()
    }

    /// Stops the store's threads and lets another server have the store. What is still trash stays for it. A layer's
    /// write-back that is under way ends by itself.
    pub fn close(&self) {
        self.0.close();
    }
}

impl Inner {
    fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) { Err(Error::Closed) } else { Ok(()) }
    }

    fn close(&self) {
        if !self.closed.swap(true, Ordering::AcqRel) {
            self.durability.stop();
            self.reaper.stop();
            self.layout.unlock();
        }
    }

    fn recover(&self, live: &dyn Fn(&str) -> bool) -> Result<()> {
        let list = |dir: &OwnedFd, name| {
            layout::names(dir).map_err(|error| layout::Error::List { name, source: error.into() })
        };
        for name in list(&self.layout.trash, "trash")? {
            self.reaper.add(Place::Trash, &name);
        }
        // Moved first: staging is for the living from here on.
        for name in list(&self.layout.staging, "staging")? {
            self.reaper.add(Place::Trash, &self.layout.to_trash(&self.layout.staging, &name)?);
        }
        let (alive, dead): (Vec<_>, Vec<_>) =
            list(&self.layout.rootfs, "rootfs")?.into_iter().partition(|id| live(id));
        for id in dead {
            self.reaper.add(Place::Rootfs, &id);
        }
        if alive.is_empty() {
            for name in list(&self.layout.suspect, "suspect")? {
                self.reaper.add(Place::Suspect, &name);
            }
        }
        for chain in list(&self.layout.layers, "layers")? {
            self.recover_layer(&chain)?;
        }
        Ok(())
    }

    /// Keeps a layer that can be trusted. One that this boot unpacked and that is not durable yet gets another chance:
    /// its write errors before now are known only if nobody else has seen them.
    fn recover_layer(&self, chain: &str) -> Result<()> {
        match layer::load(&self.layout, chain) {
            Ok(Some((layer, dir, record))) if record.durable || record.boot_id == self.layout.boot_id => {
                lock(&self.layers).insert(chain.to_owned(), Arc::clone(&layer));
                self.finish(layer, dir, record);
            }
            Ok(None) => {}
            result => {
                let error = result.err().map(|error| error.to_string());
                tracing::info!(layer = chain, error, "the layer cannot be trusted and will be fetched again");
                self.reaper.add(Place::Trash, &self.layout.to_trash(&self.layout.layers, chain)?);
            }
        }
        Ok(())
    }

    fn finish(&self, layer: Arc<Layer>, dir: OwnedFd, record: Record) {
        if record.durable {
            return;
        }
        match self.layout.sync_handle() {
            Ok(sync) => self.durability.layer(Fresh { layer, dir, record, sync }),
            Err(error) => tracing::warn!(layer = layer.chain, %error, "the layer cannot be made durable"),
        }
    }

    /// The layer, unpacked now if it is not in the store or cannot be trusted.
    fn layer(&self, source: &wardian_image::Layer) -> Result<Arc<Layer>> {
        let chain = &source.chain_id;
        let known = || lock(&self.layers).get(chain).cloned();
        if let Some(layer) = known().filter(|layer| !layer.is_suspect()) {
            return Ok(layer);
        }
        self.unpacking.run(chain, || {
            match known() {
                Some(layer) if !layer.is_suspect() => return Ok(layer),
                Some(_) => {
                    // Running containers may use it, so it only gets out of the way.
                    let name = uuid::Uuid::new_v4().simple().to_string();
                    rustix::fs::renameat(&self.layout.layers, chain, &self.layout.suspect, &name)
                        .map_err(|source| layer::Error::Commit { chain: chain.clone(), source })?;
                    lock(&self.layers).remove(chain);
                }
                None => {}
            }
            let discard = |name: &str| self.reaper.add(Place::Staging, name);
            let fresh = layer::unpack(&self.layout, source, &discard)?;
            let layer = Arc::clone(&fresh.layer);
            lock(&self.layers).insert(chain.clone(), Arc::clone(&layer));
            self.durability.layer(fresh);
            Ok(layer)
        })
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
mod tests;
