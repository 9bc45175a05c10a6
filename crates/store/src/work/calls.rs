//! The calls of a store.

use parking_lot::Mutex;
use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use wardian_image::Remote;
use wardian_sys::failpoint;

use super::collect::{Collected, Garbage};
use super::usage::{LayerInfo, Summary, Usage};
use super::{fetch, open, steward};
use crate::config::Config;
use crate::disk::files;
use crate::disk::inbox::Inbox;
use crate::disk::layout::Layout;
use crate::disk::limit::DiskLimit;
use crate::disk::lock::Role;
use crate::disk::record::{Used, now_ms};
use crate::error::{Error, Result};
use crate::failpoints::Point;
use crate::images::flight::Flights;
use crate::images::image::{self, Documents, Named, Wish};
use crate::images::opened::Image;
use crate::images::progress::Progress;
use crate::images::reference::Reference;
use crate::layers::durable::Durability;
use crate::layers::layer;
use crate::mounts::changes::{self, Changes};
use crate::mounts::driver::{self, DiskDriver, Ground};
use crate::mounts::measure::{Measured, Measurer};
use crate::mounts::names::Names;
use crate::mounts::pool::Pool;
use crate::mounts::ready::Ready;
use crate::mounts::reaper::Reaper;
use crate::mounts::rootfs::{self, Mounter, Rootfs, RootfsSpec};
use crate::store::{Inner, Store};

impl Store {
    /// Opens the store for a server, which holds its lock until [`Store::close`], and recovers it: creates missing
    /// directories, and moves to the trash half-made layers, layers that another boot left unfinished, and every root
    /// file system that is neither attached nor known to `live`. The deleting is left to the reaper.
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

    /// Opens the store for one command, beside a server or without one. Its trash is deleted by the server, or by
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
        let names = Arc::new(Names::default());
        let grouped = role == Role::Server && layout.spreads;
        let ground = Ground { layout: Arc::clone(&layout), names: Arc::clone(&names), grouped };
        let upper = driver::choose(&ground, config.disk_driver)?;
        let inner = Arc::new_cyclic(|weak: &std::sync::Weak<Inner>| {
            let weak = weak.clone();
            let alarm = move |what: &str| {
                if let Some(inner) = weak.upgrade() {
                    inner.mark_hit(what);
                }
            };
            Inner {
                reaper: Reaper::new(Arc::clone(&layout), Arc::clone(&upper)),
                durability: Durability::new(Box::new(alarm)),
                measurer: Measurer::new(Arc::clone(&upper)),
                door: Arc::default(),
                mounter: Mounter::default(),
                pool: Pool::new(Arc::clone(&names), Arc::clone(&upper)),
                names,
                upper,
                // Only a server has a steward, which mounts the spares.
                ready: Ready::new(if role == Role::Server { config.ready_rootfs } else { 0 }, open::most()),
                gc_threshold: config.gc_threshold,
                remote,
                registries: config.registries.clone(),
                limits: config.limits,
                unverified: config.unverified,
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
            // No server is running, so this command discards what another boot left unfinished.
            (Role::Command, Some(held)) => {
                inner.distrust()?;
                drop(held);
            }
            (Role::Command, None) => {}
        }
        Ok(Self(inner))
    }

    /// As [`Store::import`], of a reference as text, without a name and progress.
    ///
    /// # Errors
    /// As [`Store::import`], or the text is no reference.
    pub fn image(&self, reference: &str) -> Result<Image> {
        self.0.image(&Reference::parse(reference)?, &Progress::default())
    }

    /// Returns the image if that takes no fetch, no request to a registry, and no file opened except an app's. If it
    /// is `None`, [`Store::import`] may still find it in the store.
    ///
    /// # Errors
    /// As [`Store::import`].
    pub fn at_hand(&self, reference: &Reference) -> Result<Option<Image>> {
        self.0.at_hand(reference)
    }

    /// Takes the image into the store: missing layers are fetched, verified and unpacked, once for all concurrent
    /// callers. With `name`, the image gets that name, even if another one had it.
    ///
    /// # Errors
    ///
    /// The image or one of its layers cannot be read, or fails verification; layers that were complete stay. The name
    /// is invalid; the import was cancelled.
    pub fn import(&self, reference: &Reference, name: Option<&str>, progress: &Progress) -> Result<Image> {
        match name {
            Some(name) => Ok(self.import_as(reference, name, Wish::Operator, progress)?.0),
            None => self.0.image(reference, progress),
        }
    }

    /// As [`Store::import`], with a name and who gives it. Also returns the image that had the name before, if it was
    /// another one.
    ///
    /// # Errors
    ///
    /// As [`Store::import`]; the wish is the source's, and another image has the name.
    pub fn import_as(
        &self,
        reference: &Reference,
        name: &str,
        wish: Wish,
        progress: &Progress,
    ) -> Result<(Image, Option<Named>)> {
        image::check(name)?;
        let mut replaced = None;
        for _ in 0..fetch::TRIES {
            let image = self.0.image(reference, progress)?;
            let source = reference.text();
            replaced = self.0.name(name, source, reference.app.as_ref(), &image, wish)?.or(replaced);
            failpoint::reach(Point::Named);
            // A garbage collection that did not see the name may have collected a layer.
            if self.is_in_place(&image) {
                return Ok((image, replaced));
            }
        }
        Err(Error::Collected { uri: reference.shown() })
    }

    /// Gives the image of a name another name, too, of the operator's choice. Returns the image that had that name before,
    /// if it was another one. Waits for the disk.
    ///
    /// # Errors
    /// No image has the name, or the new one is none.
    pub fn tag(&self, name: &str, new: &str) -> Result<(Named, Option<Named>)> {
        let layout = &self.0.layout;
        let (image, documents) = image::read_whole(layout, name)?;
        let tagged = Named { name: new.to_owned(), pinned: false, imported_ms: now_ms(), ..image };
        let replaced = image::save(layout, tagged, &documents, Wish::Operator)?;
        Ok((image::find(layout, new)?, replaced))
    }

    /// Whether all layers of an image are still in place, so that everything read from them until now was complete.
    pub fn is_in_place(&self, image: &Image) -> bool {
        image.layers.iter().all(|layer| layer.is_in_place(&self.0.layout))
    }

    /// Waits until the layers that this process has unpacked are durable or suspect; false if it was cancelled.
    pub fn wait_durable(&self, progress: &Progress) -> bool {
        self.0.durability.drain(Duration::MAX, &|| progress.is_cancelled())
    }

    /// Waits until all layers of an image are durable, whichever process writes them; fetches lost ones again.
    /// Returns false if it was cancelled.
    ///
    /// # Errors
    /// A lost layer cannot be fetched again, or is lost at every try.
    pub fn wait_image_durable(&self, image: &Image, progress: &Progress) -> Result<bool> {
        let mut image = image.clone();
        for _ in 0..fetch::TRIES {
            if !self.wait_durable(progress) {
                return Ok(false);
            }
            if self.0.written_elsewhere(&image, &|| progress.is_cancelled()) {
                return Ok(!progress.is_cancelled());
            }
            image = self.0.image(&Reference::parse(&image.uri)?, progress)?;
        }
        Err(Error::Lost { uri: image.shown })
    }

    /// Returns all named images, sorted by name.
    ///
    /// # Errors
    /// Their records cannot be listed.
    pub fn images(&self) -> Result<Vec<Named>> {
        Ok(image::all(&self.0.layout)?)
    }

    /// Finds the image with this name.
    ///
    /// # Errors
    /// There is none.
    pub fn find_image(&self, name: &str) -> Result<Named> {
        Ok(image::find(&self.0.layout, name)?)
    }

    /// Finds the image with this name; returns it with its manifest and config.
    ///
    /// # Errors
    /// There is none, or its manifest and config cannot be read.
    pub fn read_image(&self, name: &str) -> Result<(Named, Documents)> {
        Ok(image::read_whole(&self.0.layout, name)?)
    }

    /// Refuses a name given by an image's source if another image has it. This is an early check;
    /// [`Store::import_as`] decides.
    ///
    /// # Errors
    /// Another image has the name, or the name is invalid.
    pub fn check_free(&self, name: &str, image: &wardian_image::Image) -> Result<()> {
        let layers: Vec<_> = image.layers.iter().map(|layer| layer.chain_id.clone()).collect();
        Ok(image::check_free(&self.0.layout, name, &image.id, &layers)?)
    }

    /// Removes a name, and collects those of its layers that no other image has and no root file system uses.
    ///
    /// # Errors
    /// There is no such name, it is pinned and `pinned` is false, or a layer cannot be moved.
    pub fn remove_image(&self, name: &str, pinned: bool) -> Result<Collected> {
        let named = image::take(&self.0.layout, name, pinned)?;
        image::sweep(&self.0.layout);
        let others = image::all(&self.0.layout)?;
        let shared = |chain: &String| others.iter().any(|other| other.layers.contains(chain));
        let own = named.layers.into_iter().filter(|chain| !shared(chain)).collect();
        self.0.collect(Garbage::Until(0), Some(&own))
    }

    /// Pins an image, which keeps it from being collected, or unpins it.
    ///
    /// # Errors
    /// There is no such name.
    pub fn pin(&self, name: &str, pinned: bool) -> Result<()> {
        Ok(image::change(&self.0.layout, name, |image| image.pinned = pinned)?)
    }

    /// Returns what is recorded of a layer; `None` if it is not in the store.
    pub fn layer(&self, chain: &str) -> Option<LayerInfo> {
        layer::load(&self.0.layout, chain).ok().flatten().map(|found| found.record.into())
    }

    /// Collects unused layers, the least recently used first, until the layers take at most `target_bytes`.
    ///
    /// # Errors
    /// The records cannot be read, or a layer cannot be moved.
    pub fn collect(&self, target_bytes: u64) -> Result<Collected> {
        self.0.collect(Garbage::Until(target_bytes), None)
    }

    /// Collects unused layers, with `only` no others than these, and what is kept of pulls that ended early.
    ///
    /// # Errors
    /// As [`Store::collect`].
    pub fn collect_garbage(&self, garbage: Garbage, only: Option<&HashSet<String>>) -> Result<Collected> {
        self.0.collect_all(garbage, only)
    }

    /// Returns what [`Store::collect_garbage`] would collect now.
    ///
    /// # Errors
    /// The records cannot be read.
    pub fn find_garbage(&self, garbage: Garbage) -> Result<Collected> {
        self.0.garbage(garbage)
    }

    /// Returns the numbers of layers and trash, and the bytes of all layers, from their records.
    ///
    /// # Errors
    /// The records cannot be read.
    pub fn summary(&self) -> Result<Summary> {
        self.0.summary()
    }

    /// Returns the space that the store's parts take. It walks over everything that is not a layer, which may take
    /// seconds.
    ///
    /// # Errors
    /// The records cannot be read.
    pub fn usage(&self) -> Result<Usage> {
        self.0.usage()
    }

    /// Makes a root file system: a detached mount, ready to be attached. The caller owns the only reference, and
    /// calls [`Store::release_rootfs`] after the last one is closed.
    ///
    /// # Errors
    ///
    /// The id exists or is unusable, or the kernel refuses one of the mounts. Nothing stays then.
    pub fn create_rootfs(&self, id: &str, spec: &RootfsSpec<'_>) -> Result<Rootfs> {
        self.0.create_rootfs(id, spec, None)
    }

    /// Whether a root file system over this image with this limit can be made without [`Store::prepare_limit`].
    pub fn is_prepared(&self, image: &Image, limit: DiskLimit) -> bool {
        self.0.made_with(image, limit).is_none_or(|bound| self.0.upper.is_prepared(bound))
    }

    /// Makes what root file systems with this limit have in common, which may take a tenth of a second, or seconds for a
    /// bound of many inodes. Without this call the first create does it. What fails here fails there.
    pub fn prepare_limit(&self, image: &Image, limit: DiskLimit) {
        if let Some(bound) = self.0.made_with(image, limit)
            && let Err(error) = self.0.upper.prepare(bound)
        {
            tracing::debug!(%error, "limit.not-prepared");
        }
    }

    /// Releases a root file system. The call touches no file of the store's disk and never waits. `handle` names its
    /// container in the log.
    pub fn release_rootfs(&self, id: &str, handle: Option<&str>) {
        if rootfs::check_id(id).is_ok() {
            self.0.release_rootfs(id, handle);
        }
    }

    /// Returns the directory of a root file system; `None` if there is no such root file system.
    pub fn rootfs_dir(&self, id: &str) -> Option<PathBuf> {
        rootfs::check_id(id).ok()?;
        let record = self.0.layout.records.get(id).ok()??;
        Some(self.0.layout.path.join("rootfs").join(record.dir))
    }

    /// Gives a root file system another limit, while it is used.
    ///
    /// # Errors
    /// There is no such root file system, the limit is smaller than its image, or the driver cannot change it so.
    pub fn limit_rootfs(&self, id: &str, limit: DiskLimit) -> Result<()> {
        self.0.limit_rootfs(id, limit)
    }

    /// Returns the driver that enforces limits.
    #[must_use]
    pub fn disk_driver(&self) -> DiskDriver {
        self.0.upper.driver()
    }

    /// Returns the space of a root file system: of this moment, where its file system counts it; otherwise as last
    /// measured, and then a new measurement is queued if that is too old. It never waits for the disk.
    pub fn measured(&self, id: &str) -> Measured {
        self.0.measurer.get(id)
    }

    /// Makes a file in the store for an archive that is to be imported and comes from no file. It is removed when it is
    /// dropped; one whose process was killed is trash.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn inbox(&self) -> std::io::Result<Inbox> {
        Inbox::make(&self.0.layout.staging, &self.0.layout.path)
    }

    /// Lists what a root file system holds beside its image. Empty files and directories at the paths `own` (without a
    /// leading slash) are left out: whoever made the container made them. It walks, and may wait for the disk.
    ///
    /// # Errors
    /// There is no such root file system, or it cannot be read.
    pub fn changes(&self, id: &str, own: &[&str]) -> Result<Changes> {
        rootfs::check_id(id)?;
        let record = self.0.layout.records.get(id).map_err(|source| self.0.records_error(source))?;
        let record = record.ok_or_else(|| Error::Unknown { id: id.to_owned() })?;
        let failed = |source| rootfs::Error::Changes { id: id.to_owned(), source };
        let layer = |used: &Used| {
            files::open_dir(&self.0.layout.layers, &used.chain).and_then(|layer| files::open_dir(layer, "fs"))
        };
        let layers =
            record.layers.iter().rev().map(layer).collect::<std::result::Result<_, _>>().map_err(failed)?;
        let upper = self.0.upper.open_upper(&record.dir).map_err(failed)?;
        Ok(changes::changes(upper, layers, own).map_err(failed)?)
    }

    /// Returns the write-back error that affects a root file system, with the remedy.
    pub fn writeback_error(&self, id: &str) -> Option<String> {
        self.0.hit.lock().get(id).cloned()
    }

    /// Opens a new unnamed file (O_TMPFILE) on the store's file system, for large temporary data. It is gone when it
    /// is closed.
    ///
    /// # Errors
    /// The file system does not support O_TMPFILE, or is full.
    pub fn scratch(&self) -> std::io::Result<std::fs::File> {
        use rustix::fs::{Mode, OFlags};
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&self.0.layout.staging, ".", flags, Mode::RUSR | Mode::WUSR)?.into())
    }

    /// Waits until everything that is trash now or becomes trash meanwhile is deleted; false if that takes longer.
    pub fn drain(&self, timeout: Duration) -> bool {
        self.0.reaper.drain(timeout)
    }

    /// Returns how many root file systems and layers wait to be deleted.
    pub fn trash_count(&self) -> usize {
        self.0.reaper.len()
    }

    /// Returns how many root file systems are mounted ahead.
    pub fn ready_rootfs(&self) -> usize {
        self.0.ready.len()
    }

    /// Whether a server holds this store, and so deletes its trash.
    pub fn has_server(&self) -> bool {
        self.0.layout.has_server()
    }

    /// Stops the store's threads and releases the lock. Remaining trash is left to the next server. A write-back in
    /// progress, and a thread that still waits for the disk after 2 s, are not waited for.
    pub fn close(&self) {
        self.0.close();
    }
}
