//! Fetches the layers of an image into the store, each once however many threads and processes ask for it.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use wardian_image::registry::ImageName;
use wardian_image::{App, Digest, Identity};

use crate::disk::record::now_ms;
use crate::error::{Error, Result, image_error};
use crate::images::image::{self, Documents, Named, Wish};
use crate::images::opened::Image;
use crate::images::progress::{LayerProgress, Phase, Progress};
use crate::images::reference::{Below, Reference};
use crate::layers::layer::{self, Layer, State};
use crate::mounts::reaper::Place;
use crate::store::{Inner, Store};

/// How many layers of one image are unpacked in parallel, with two or three busy threads each. The unpacker bounds
/// the memory of all.
const SIDE_BY_SIDE: usize = 4;
/// The limits of the cache of opened images: their number, and the bytes of their manifests and configs.
const MOST_CACHED: usize = 4096;
const MOST_DOCUMENTS: usize = 16 << 20;
/// How often a fetch is tried whose layers are collected at the same time.
pub(crate) const TRIES: usize = 5;
/// The interval at which a thread that waits for another process checks again.
const LOOK: std::time::Duration = std::time::Duration::from_millis(20);

/// An image that was opened: its layers are known, and may be in the store or not.
#[derive(Debug)]
pub enum Opened {
    /// All its layers are in the store.
    Here(Box<Image>),
    /// Layers are missing; [`Store::fetch`](crate::Store::fetch) fetches them.
    ToFetch(Box<ToFetch>),
}

/// An image whose manifest was read, and whose layers are to be fetched.
#[derive(Debug)]
pub struct ToFetch {
    pub(crate) uri: String,
    pub(crate) identity: Option<Identity>,
    pub(crate) image: wardian_image::Image,
    /// The name that it gets, if it comes from a registry.
    pub(crate) pulled: Option<ImageName>,
}

impl Opened {
    /// Returns the bytes of manifest and config that this value holds.
    pub fn documents(&self) -> usize {
        let length = |document: &Option<Vec<u8>>| document.as_ref().map_or(0, Vec::len);
        match self {
            Self::Here(_) => 0,
            Self::ToFetch(opened) => length(&opened.image.manifest) + length(&opened.image.config_json),
        }
    }
}

/// [`Store::import`] in two halves.
impl Store {
    /// Checks that the image, or the base image of an app, exists, as far as that can be told without reading it.
    ///
    /// # Errors
    /// The image does not exist, or may not be read.
    pub fn reach(&self, reference: &Reference) -> Result<()> {
        self.0.reach(reference)
    }

    /// The first half of [`Store::import`], for callers that limit the halves separately: reads what is needed to know
    /// the layers; for an image with an app, the layers of the base image.
    ///
    /// # Errors
    /// As [`Store::import`].
    pub fn open_image(&self, reference: &Reference, progress: &Progress) -> Result<Opened> {
        self.0.open(reference, progress)
    }

    /// Returns the bytes of the image's blobs as stored, those of layers that are in the store included; 0 for a
    /// name. Reads the image's manifest.
    ///
    /// # Errors
    /// As [`Store::import`].
    pub fn blob_bytes(&self, reference: &Reference) -> Result<u64> {
        match &reference.below {
            Below::Name(_) => Ok(0),
            Below::Source(uri, source) => {
                let at_registry =
                    source.image_name().map(|name| self.0.source_at(name, reference)).transpose()?;
                let image = self.0.read(uri, at_registry.as_ref().unwrap_or(source), &|| false)?;
                Ok(image.layers.iter().map(wardian_image::Layer::size).sum())
            }
        }
    }

    /// The second half: fetches the layers that are missing.
    ///
    /// # Errors
    /// As [`Store::import`].
    pub fn fetch(&self, opened: &Opened, progress: &Progress) -> Result<Image> {
        self.0.fetch_opened(opened, progress)
    }

    /// Returns the image of a reference with an app, given its base image `below`; for any other reference `below`
    /// itself. `None` if a layer was collected meanwhile.
    ///
    /// # Errors
    /// As [`Store::import`].
    pub fn with_app(
        &self,
        reference: &Reference,
        below: Image,
        progress: &Progress,
    ) -> Result<Option<Image>> {
        self.0.begin()?;
        match &reference.app {
            Some(app) => self.0.with_app(reference.text(), &below, app, progress),
            None => Ok(Some(below)),
        }
    }
}

impl Inner {
    /// Begins a request for an image.
    pub(crate) fn begin(&self) -> Result<()> {
        self.check_open()?;
        self.close_layers();
        Ok(())
    }

    /// Returns the image, after fetching its missing layers.
    pub(crate) fn image(&self, reference: &Reference, progress: &Progress) -> Result<Image> {
        self.begin()?;
        match &reference.app {
            Some(app) => self.image_with_app(reference, app, progress),
            None => self.image_below(reference, progress),
        }
    }

    /// Returns the image, or the base image of an app, after fetching its missing layers.
    pub(crate) fn image_below(&self, reference: &Reference, progress: &Progress) -> Result<Image> {
        if reference.is_pulled() {
            return self.fetch_opened(&self.open_pulled(reference, progress)?, progress);
        }
        match &reference.below {
            Below::Name(name) => {
                let (named, documents) = image::read_whole(&self.layout, name)?;
                if let Some(image) = self.named(&named, &documents)? {
                    return Ok(image);
                }
                tracing::info!(name, source = wardian_image::shown(&named.source), "image.fetched-again");
                // It has its name already.
                let source = Reference::parse(&named.source)?.unnamed();
                let again = self.image(&source, progress)?;
                // Only the operator decides which image a name refers to, not whoever can write to the source. Exempt
                // are a bare tar, whose id is only its state, and an app, which has no id of its own: the current
                // content is used.
                let has_id = documents.config.is_some() && !source.has_app();
                if has_id && (again.id != named.id || again.chain_ids() != named.layers) {
                    return Err(image::Error::Moved { name: name.clone() }.into());
                }
                Ok(again)
            }
            Below::Source(uri, source) => {
                let identity = source.state();
                if let Some(image) = self.cached(uri, identity.as_ref()) {
                    return Ok(image);
                }
                let key = format!("{identity:?} {uri}");
                self.opening.run(&key, &|| progress.is_cancelled(), || {
                    if let Some(image) = self.cached(uri, identity.as_ref()) {
                        return Ok(image);
                    }
                    let image = self.read(uri, source, &|| progress.is_cancelled())?;
                    self.fetch(uri, &image, identity.as_ref(), progress)
                })
            }
        }
    }

    fn reach(&self, reference: &Reference) -> Result<()> {
        self.begin()?;
        match &reference.below {
            Below::Name(name) => Ok(image::read_whole(&self.layout, name).map(drop)?),
            Below::Source(uri, source) => source.reach().map_err(|error| image_error(uri, error)),
        }
    }

    /// Reads what is needed to know the layers of an image, or of the base image of an app.
    fn open(&self, reference: &Reference, progress: &Progress) -> Result<Opened> {
        self.begin()?;
        if reference.is_pulled() {
            return self.open_pulled(reference, progress);
        }
        let (uri, source) = match &reference.below {
            Below::Name(_) => return Ok(Opened::Here(Box::new(self.image_below(reference, progress)?))),
            Below::Source(uri, source) => (uri, source),
        };
        let identity = source.state();
        if let Some(image) = self.cached(uri, identity.as_ref()) {
            return Ok(Opened::Here(Box::new(image)));
        }
        let image = self.read(uri, source, &|| progress.is_cancelled())?;
        self.check_layers(uri, image.layers.len())?;
        let layers = image.layers.iter().map(|layer| self.present(&layer.chain_id));
        if let Some(layers) = layers.collect::<Result<Option<Vec<_>>>>()?
            && let Some(image) = self.remember(uri, &image, layers, identity.as_ref())
        {
            return Ok(Opened::Here(Box::new(image)));
        }
        Ok(Opened::ToFetch(Box::new(ToFetch { uri: uri.clone(), identity, image, pulled: None })))
    }

    /// Returns the opened image, after fetching its missing layers.
    pub(crate) fn fetch_opened(&self, opened: &Opened, progress: &Progress) -> Result<Image> {
        let ToFetch { uri, identity, image, pulled } = match opened {
            Opened::Here(image) => return Ok(Image::clone(image)),
            Opened::ToFetch(opened) => &**opened,
        };
        // The id is a part of the key: a directory's identity does not tell its state, which may have changed since
        // another request opened it. So is the name: whoever brings a login gives the image none.
        let key = format!("{identity:?} {} {pulled:?} {uri}", image.id);
        self.opening.run(&key, &|| progress.is_cancelled(), || match self.cached(uri, identity.as_ref()) {
            Some(image) => Ok(image),
            None => {
                let begin = Instant::now();
                for _ in 0..TRIES {
                    let fetched = self.fetch(uri, image, identity.as_ref(), progress)?;
                    let Some(digest) = &image.digest else { return Ok(fetched) };
                    let layers = progress.layers();
                    let done = || layers.iter().filter(|layer| layer.phase() == Phase::Done);
                    let (count, bytes) = (done().count(), done().map(|layer| layer.bytes_read()).sum::<u64>());
                    let ms = begin.elapsed().as_millis();
                    tracing::info!(image = uri, %digest, layers = layers.len(), fetched = count, bytes, ms, "image.pulled");
                    let Some(name) = pulled else { return Ok(fetched) };
                    if self.name_pulled(name, digest, &fetched, progress)? {
                        return Ok(fetched);
                    }
                }
                Err(Error::Collected { uri: uri.clone() })
            }
        })
    }

    /// Returns the image if it is in the store, without asking a registry or opening its source.
    pub(crate) fn at_hand(&self, reference: &Reference) -> Result<Option<Image>> {
        self.begin()?;
        let below = match &reference.below {
            _ if reference.is_pulled() => self.pulled_at_hand(reference)?,
            Below::Name(name) => {
                let (named, documents) = image::read_whole(&self.layout, name)?;
                self.named(&named, &documents)?
            }
            Below::Source(uri, source) => self.cached(uri, source.state().as_ref()),
        };
        match (&reference.app, below) {
            (Some(app), Some(below)) => self.app_at_hand(reference.text(), &below, app),
            (_, below) => Ok(below),
        }
    }

    pub(crate) fn name(
        &self,
        name: &str,
        source: &str,
        app: Option<&App>,
        image: &Image,
        wish: Wish,
    ) -> Result<Option<Named>> {
        let text = |bytes: &Option<Vec<u8>>| bytes.clone().map(|b| String::from_utf8_lossy(&b).into_owned());
        let (id, config) = self.ordinary(app, image)?;
        let named = Named {
            name: name.to_owned(),
            source: source.to_owned(),
            id,
            layers: image.chain_ids(),
            pinned: false,
            imported_ms: now_ms(),
        };
        let documents = Documents { manifest: text(&image.manifest), config: text(&config) };
        Ok(image::save(&self.layout, named, &documents, wish)?)
    }

    pub(crate) fn read(
        &self,
        uri: &str,
        source: &wardian_image::Source,
        cancelled: &(dyn Fn() -> bool + Sync),
    ) -> Result<wardian_image::Image> {
        let opening = wardian_image::Opening {
            limits: self.limits,
            dir: Some(self.layout.staging.as_fd()),
            cancelled,
            unverified: self.unverified,
            partial: Some(self.layout.partial.as_fd()),
        };
        source.open_in(&self.remote, &opening).map_err(|error| image_error(uri, error))
    }

    /// Returns the image from the cache, if it has not changed since.
    fn cached(&self, uri: &str, identity: Option<&Identity>) -> Option<Image> {
        let images = self.images.lock();
        let (known, image) = images.get(uri)?;
        if Some(known) != identity || !self.is_whole(image) {
            return None;
        }
        image.touch();
        Some(image.clone())
    }

    /// Whether all its layers can be used, as far as that can be told without a record.
    pub(crate) fn is_whole(&self, image: &Image) -> bool {
        image.layers.iter().all(|layer| self.is_fine(layer))
    }

    pub(crate) fn is_fine(&self, layer: &Layer) -> bool {
        layer.is_in_place(&self.layout)
            && match layer.state() {
                State::Durable => true,
                State::Suspect => false,
                // A fresh layer of another process: its record and lock tell.
                State::Fresh => {
                    self.layers.lock().get(&layer.chain).is_some_and(|own| own.instance == layer.instance)
                        || matches!(layer::load(&self.layout, &layer.chain), Ok(Some(found)) if found.trusted)
                }
            }
    }

    /// Returns a named image; `None` if one of its layers is not in the store.
    pub(crate) fn named(&self, named: &Named, documents: &Documents) -> Result<Option<Image>> {
        self.check_layers(&named.name, named.layers.len())?;
        let layers = named.layers.iter().map(|chain| self.present(chain)).collect::<Result<Option<_>>>()?;
        let Some(layers) = layers else { return Ok(None) };
        let name = named.name.as_str();
        let config = match &documents.config {
            Some(text) => {
                wardian_image::ImageConfig::parse(text.as_bytes(), name)
                    .map_err(|error| image_error(name, error))?
                    .config
            }
            None => wardian_image::Config::default(),
        };
        let image = Image {
            unasked: None,
            uri: name.to_owned(),
            shown: name.to_owned(),
            id: named.id.clone(),
            config,
            layers,
            manifest: documents.manifest.clone().map(String::into_bytes),
            config_json: documents.config.clone().map(String::into_bytes),
        };
        image.touch();
        Ok(Some(image))
    }

    fn fetch(
        &self,
        uri: &str,
        opened: &wardian_image::Image,
        identity: Option<&Identity>,
        progress: &Progress,
    ) -> Result<Image> {
        opened.check(&self.limits).map_err(|error| image_error(uri, error))?;
        self.check_layers(uri, opened.layers.len())?;
        let watches = progress.begin(&opened.layers);
        for _ in 0..TRIES {
            let layers = match self.layers_of(uri, &opened.layers, &watches, progress) {
                Err(error) if error.is_baseless() => continue,
                layers => layers?,
            };
            if let Some(image) = self.remember(uri, opened, layers, identity) {
                return Ok(image);
            }
        }
        Err(Error::Collected { uri: uri.to_owned() })
    }

    /// Makes the image of these layers and caches it; `None` if a layer was collected meanwhile. The identity was
    /// taken before the image was read, so a change since then is detected by the next request.
    fn remember(
        &self,
        uri: &str,
        opened: &wardian_image::Image,
        layers: Vec<Arc<Layer>>,
        identity: Option<&Identity>,
    ) -> Option<Image> {
        let image = Image {
            unasked: None,
            uri: uri.to_owned(),
            shown: uri.to_owned(),
            id: opened.id.clone(),
            config: opened.config.clone(),
            layers: layers.into(),
            manifest: opened.manifest.clone(),
            config_json: opened.config_json.clone(),
        };
        if !self.is_whole(&image) {
            return None;
        }
        image.touch();
        if let Some(identity) = identity {
            let mut images = self.images.lock();
            let documents: usize = images.values().map(|(_, image)| image.documents()).sum();
            // Opening an image again is cheap, and requests for ever more images must not fill the memory.
            if images.len() >= MOST_CACHED || documents + image.documents() > MOST_DOCUMENTS {
                images.clear();
            }
            images.insert(uri.to_owned(), (identity.clone(), image.clone()));
        }
        Some(image)
    }

    /// Returns all layers, unpacking several missing ones in parallel; the first failure cancels the others.
    fn layers_of(
        &self,
        uri: &str,
        sources: &[wardian_image::Layer],
        watches: &[Arc<LayerProgress>],
        progress: &Progress,
    ) -> Result<Vec<Arc<Layer>>> {
        let mut found =
            sources.iter().map(|source| self.present(&source.chain_id)).collect::<Result<Vec<_>>>()?;
        for (watch, _) in watches.iter().zip(&found).filter(|(_, found)| found.is_some()) {
            watch.set(Phase::Present);
        }
        // Layers that need those below them are unpacked after the others, one by one.
        let missing: Vec<usize> = (0..sources.len())
            .filter(|index| found[*index].is_none() && !sources[*index].needs_layers_below())
            .collect();
        let count = |found: &[Option<Arc<Layer>>]| {
            let there = |(source, found): (_, &Option<Arc<Layer>>)| Some((source, found.as_ref()?.extent));
            if let Some(any) = sources.first() {
                any.count(sources.iter().zip(found).filter_map(there));
            }
        };
        count(&found);
        let any_missing = found.iter().any(Option::is_none);
        let next = AtomicUsize::new(0);
        let work = || -> Result<Vec<(usize, Arc<Layer>)>> {
            let mut done = Vec::new();
            while let Some(index) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
                let layer = self.layer(&sources[*index], None, &[], &watches[*index], progress);
                if layer.is_err() {
                    next.store(missing.len(), Ordering::Relaxed);
                    watches.iter().for_each(|other| other.watch.cancel());
                }
                done.push((*index, layer?));
            }
            Ok(done)
        };
        let results: Vec<_> = std::thread::scope(|scope| {
            let helpers: Vec<_> = (1..missing.len().min(SIDE_BY_SIDE)).map(|_| scope.spawn(work)).collect();
            let own = work();
            let join =
                |helper: std::thread::ScopedJoinHandle<'_, _>| helper.join().unwrap_or(Err(Error::Closed));
            std::iter::once(own).chain(helpers.into_iter().map(join)).collect()
        });
        // Layers that were cancelled because of another's failure sort last: they are not the cause.
        let mut failures = Vec::new();
        for result in results {
            match result {
                Ok(done) => done.into_iter().for_each(|(index, layer)| found[index] = Some(layer)),
                Err(error) => failures.push(error),
            }
        }
        failures.sort_by_key(Error::is_cancelled);
        if let Some(cause) = failures.into_iter().next() {
            return Err(if progress.is_cancelled() { Error::Cancelled } else { cause });
        }
        for index in 0..sources.len() {
            if found[index].is_none() {
                let below: Vec<_> = found[..index].iter().rev().flatten().cloned().collect();
                found[index] = Some(self.layer(&sources[index], None, &below, &watches[index], progress)?);
            }
        }
        // Layers that others unpacked meanwhile were not counted.
        if let Some(any) = sources.first().filter(|_| any_missing) {
            count(&found);
            any.check_sum(&self.limits).map_err(|error| image_error(uri, error))?;
        }
        Ok(found.into_iter().flatten().collect())
    }

    /// Returns the layer, if it is in the store and can be used. A layer that cannot be trusted is moved to the
    /// trash.
    pub(crate) fn present(&self, chain: &str) -> Result<Option<Arc<Layer>>> {
        let known = self.layers.lock().get(chain).cloned();
        if let Some(layer) = known.filter(|layer| layer.is_in_place(&self.layout)) {
            if layer.state() != State::Suspect {
                return Ok(Some(layer));
            }
            // Decided without its record, which may not say that it is suspect: the disk has failed.
            self.condemn(chain, &layer.instance)?;
            return Ok(None);
        }
        let found = match layer::load(&self.layout, chain) {
            Ok(None) => return Ok(None),
            Ok(Some(found)) => found,
            Err(layer::Error::Record { .. }) => {
                // A layer without a readable record is used by nobody.
                self.condemn(chain, &uuid::Uuid::new_v4().simple().to_string())?;
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        if !found.trusted {
            self.condemn(chain, &found.record.instance)?;
            return Ok(None);
        }
        // A layer that another process is still making durable is not cached, but checked each time.
        if found.record.durable {
            self.layers.lock().insert(chain.to_owned(), Arc::clone(&found.layer));
        }
        Ok(Some(found.layer))
    }

    /// Waits for other processes that make layers of this image durable; false if a layer was lost.
    pub(crate) fn written_elsewhere(&self, image: &Image, cancelled: &dyn Fn() -> bool) -> bool {
        image.layers.iter().all(|layer| {
            loop {
                match layer::load(&self.layout, &layer.chain) {
                    Ok(Some(found)) if found.trusted && !found.record.durable && !cancelled() => {
                        std::thread::sleep(LOOK);
                    }
                    Ok(Some(found)) => return found.trusted,
                    _ => return false,
                }
            }
        })
    }

    /// Returns the layer, unpacked now unless another caller does it. Callers with the same `origin` share one try
    /// and its result. Others wait for the lock and try themselves: the failure of one address says nothing of
    /// another. A layer of an image passes no origin, because the opening of the image is already shared by all who
    /// ask for it: another image may claim the same layer without having it, or exceed the limits as a whole.
    pub(crate) fn layer(
        &self,
        source: &wardian_image::Layer,
        origin: Option<&str>,
        below: &[Arc<Layer>],
        watch: &LayerProgress,
        progress: &Progress,
    ) -> Result<Arc<Layer>> {
        let chain = &source.chain_id;
        let cancelled = || progress.is_cancelled();
        let unpack = || {
            let _turn = self.turn(chain, source.registry(), &cancelled)?;
            if let Some(layer) = self.present(chain)? {
                watch.set(Phase::Present);
                return Ok(layer);
            }
            // This limit is below the number of an image's layers only where few descriptors are allowed.
            if !self.durability.at_most(self.most_open / 2, &cancelled) {
                return Err(Error::Cancelled);
            }
            watch.set(Phase::Unpacking);
            let begin = Instant::now();
            let discard = |name: &str| self.trash(Place::Staging, name);
            let fresh = match layer::unpack(&self.layout, source, below, &self.limits, &watch.watch, &discard)
            {
                // From another registry it was here first.
                Err(layer::Error::Commit { source, .. })
                    if source == Errno::EXIST
                        && let Some(layer) = self.present(chain)? =>
                {
                    return Ok(layer);
                }
                fresh => fresh?,
            };
            let layer = Arc::clone(&fresh.layer);
            let (ms, read, bytes) = (begin.elapsed().as_millis(), watch.bytes_read(), layer.extent.bytes);
            tracing::debug!(chain, read, bytes, ms, "layer.unpacked");
            self.layers.lock().insert(chain.clone(), Arc::clone(&layer));
            self.durability.layer(fresh);
            Ok(layer)
        };
        let layer = match origin {
            Some(origin) => self.unpacking.run(&format!("{chain} {origin}"), &cancelled, unpack),
            None => unpack(),
        };
        if layer.is_ok() && watch.phase() != Phase::Present {
            watch.set(Phase::Done);
        }
        layer
    }

    /// Takes the lock among processes to unpack the layer; it is released when it is dropped. There is one for each
    /// registry: any of them may claim a layer of another one, and then send a blob as slowly as it likes.
    fn turn(&self, chain: &str, registry: Option<&str>, cancelled: &dyn Fn() -> bool) -> Result<Turn> {
        let failed = |source| Error::from(layer::Error::Stage { chain: chain.to_owned(), source });
        let name = match registry {
            Some(registry) => format!("{chain}.{}{TURN}", &Digest::of(registry.as_bytes()).as_hex()[..16]),
            None => format!("{chain}{TURN}"),
        };
        loop {
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = rustix::fs::openat(&self.layout.staging, &name, flags, Mode::RUSR | Mode::WUSR)
                .map_err(failed)?;
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                // If the previous holder has just removed the file, the lock is worthless.
                Ok(()) if rustix::fs::fstat(&file).map_err(failed)?.st_nlink > 0 => {
                    let staging = self.layout.staging.try_clone();
                    let staging =
                        staging.map_err(|error| failed(Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
                    return Ok(Turn { staging, name, _file: file });
                }
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => {
                    if cancelled() {
                        return Err(Error::Cancelled);
                    }
                    std::thread::sleep(LOOK);
                }
                Err(error) => return Err(failed(error)),
            }
        }
    }
}

/// The suffix of a lock file in `staging/`.
pub(crate) const TURN: &str = ".lock";

struct Turn {
    staging: OwnedFd,
    name: String,
    _file: OwnedFd,
}

impl Drop for Turn {
    fn drop(&mut self) {
        let _ = rustix::fs::unlinkat(&self.staging, &self.name, AtFlags::empty());
    }
}
