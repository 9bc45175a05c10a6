//! The calls of a store.

use parking_lot::Mutex;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use wardian_image::Remote;

use super::collect::{Collected, Garbage};
use super::usage::{LayerInfo, Usage};
use super::{fetch, open, steward};
use crate::config::Config;
use crate::disk::layout::Layout;
use crate::disk::lock::Role;
use crate::error::{Error, Result};
use crate::fail::fail_point;
use crate::images::flight::Flights;
use crate::images::image::{self, Documents, Named, Wish};
use crate::images::opened::Image;
use crate::images::progress::Progress;
use crate::layers::durable::Durability;
use crate::layers::layer;
use crate::layers::owner::Owner;
use crate::mounts::measure::{Measured, Measurer};
use crate::mounts::pool::Pool;
use crate::mounts::ready::Ready;
use crate::mounts::reaper::Reaper;
use crate::mounts::rootfs::{self, Mounter, Rootfs};
use crate::store::{Inner, Store};

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
            (Role::Server, held) => *inner.lock.lock() = held,
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
        self.0.hit.lock().get(id).cloned()
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
