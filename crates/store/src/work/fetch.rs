//! From an address to layers in the store: each layer is fetched once, however many threads and processes ask.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use wardian_image::{App, Identity, Way};

use crate::disk::record::now_ms;
use crate::error::{Error, Result};
use crate::images::image::{self, Documents, Named, Wish};
use crate::images::opened::Image;
use crate::images::progress::{LayerProgress, Phase, Progress};
use crate::layers::layer::{self, Layer, State};
use crate::mounts::reaper::Place;
use crate::store::{Inner, Store};

/// Layers of one image that are unpacked side by side, two or three busy threads each. The memory for all is bounded where
/// they are unpacked.
const SIDE_BY_SIDE: usize = 4;
/// Opened images that are remembered, and bytes of their manifests and configs together.
const MOST_CACHED: usize = 4096;
const MOST_DOCUMENTS: usize = 16 << 20;
/// How often an image is fetched again whose layers are collected at the same moment.
pub(crate) const TRIES: usize = 5;
/// How often who waits for another process looks whether it is to go on waiting.
const LOOK: std::time::Duration = std::time::Duration::from_millis(20);

pub(crate) fn image_error(uri: &str, source: wardian_image::Error) -> Error {
    match source {
        wardian_image::Error::Cancelled { .. } => Error::Cancelled,
        source => Error::Image { uri: wardian_image::shown(uri), source: Box::new(source) },
    }
}

/// What an image is asked for by.
enum Address {
    /// Its name in the store.
    Name,
    /// The image below, and an app on top of it.
    App(String, Box<App>),
    Source(wardian_image::Source),
}

/// An image that was opened: its layers are known, and may be in the store or not.
#[derive(Debug)]
pub enum Opened {
    /// All its layers are there.
    Here(Box<Image>),
    /// Some are not: [`Store::fetch`](crate::Store::fetch).
    ToFetch(Box<ToFetch>),
}

/// What was read of an image to know its layers.
#[derive(Debug)]
pub struct ToFetch {
    uri: String,
    identity: Option<Identity>,
    image: wardian_image::Image,
}

impl Opened {
    /// Bytes of the manifest and the config, as long as this is held.
    pub fn documents(&self) -> usize {
        let length = |document: &Option<Vec<u8>>| document.as_ref().map_or(0, Vec::len);
        match self {
            Self::Here(_) => 0,
            Self::ToFetch(opened) => length(&opened.image.manifest) + length(&opened.image.config_json),
        }
    }
}

/// [`Store::image`] in two halves.
impl Store {
    /// What it takes to [open](Store::open_image) the image, or the one below an app; none for a name in the store. It takes
    /// no more than a look.
    ///
    /// # Errors
    /// The address is none.
    pub fn way(&self, uri: &str) -> Result<Option<Way>> {
        self.0.way(uri)
    }

    /// Whether there is such an image, or the one below an app, as far as that shows without reading it.
    ///
    /// # Errors
    /// There is none, or it may not be read.
    pub fn reach(&self, uri: &str) -> Result<()> {
        self.0.reach(uri)
    }

    /// Whether that has to be decompressed as a whole to be opened: the beginning of a compressed file is read.
    ///
    /// # Errors
    /// The address is none.
    pub fn is_packed(&self, uri: &str) -> Result<bool> {
        self.0.is_packed(uri)
    }

    /// The first half of [`Store::image`], for who bounds the halves: reads what is needed to know the layers, of an image
    /// with an app those of the image below.
    ///
    /// # Errors
    /// As [`Store::image`].
    pub fn open_image(&self, uri: &str, progress: &Progress) -> Result<Opened> {
        self.0.open(uri, progress)
    }

    /// The second half: fetches the layers that are missing.
    ///
    /// # Errors
    /// As [`Store::image`].
    pub fn fetch(&self, opened: &Opened, progress: &Progress) -> Result<Image> {
        self.0.fetch_opened(opened, progress)
    }

    /// The image of an address with an app, if `below` is the image below; `below` itself for any other address. None if a
    /// collection has taken a layer meanwhile.
    ///
    /// # Errors
    /// As [`Store::image`].
    pub fn with_app(&self, uri: &str, below: Image, progress: &Progress) -> Result<Option<Image>> {
        self.0.with_app_of(uri, below, progress)
    }
}

impl Inner {
    /// The image with all its layers in their places.
    pub(crate) fn image(&self, uri: &str, progress: &Progress) -> Result<Image> {
        match self.address(uri)? {
            Address::Name => {
                let (named, documents) = image::read_whole(&self.layout, uri)?;
                if let Some(image) = self.named(&named, &documents)? {
                    return Ok(image);
                }
                let source = wardian_image::shown(&named.source);
                tracing::info!(name = uri, source, "image.fetched-again");
                let again = self.image(&named.source, progress)?;
                // What a name stands for is the operator's to say, and not that of whoever can write to the source. A bare
                // tar, whose id is its state, and an app, which has no id of its own, are what is there now.
                let has_id =
                    documents.config.is_some() && App::parse(&named.source).is_ok_and(|app| app.is_none());
                if has_id && (again.id != named.id || again.chain_ids() != named.layers) {
                    return Err(image::Error::Moved { name: uri.to_owned() }.into());
                }
                Ok(again)
            }
            Address::App(base, app) => self.image_with_app(uri, &base, &app, progress),
            Address::Source(source) => {
                let identity = source.state();
                if let Some(image) = self.cached(uri, identity.as_ref()) {
                    return Ok(image);
                }
                let key = format!("{identity:?} {uri}");
                self.opening.run(&key, &|| progress.is_cancelled(), || {
                    if let Some(image) = self.cached(uri, identity.as_ref()) {
                        return Ok(image);
                    }
                    let image = self.read(uri, &source, &|| progress.is_cancelled())?;
                    self.fetch(uri, &image, identity.as_ref(), progress)
                })
            }
        }
    }

    /// What it takes to open the image, or the one below an app; none if that is not to be done apart, since the name alone
    /// says what is meant.
    pub(crate) fn way(&self, uri: &str) -> Result<Option<Way>> {
        Ok(match self.address(uri)? {
            Address::Name => None,
            Address::App(base, _) => self.way(&base)?,
            Address::Source(source) => Some(source.way()),
        })
    }

    pub(crate) fn reach(&self, uri: &str) -> Result<()> {
        match self.address(uri)? {
            Address::Name => Ok(image::read_whole(&self.layout, uri).map(drop)?),
            Address::App(base, _) => self.reach(&base),
            Address::Source(source) => source.reach().map_err(|error| image_error(uri, error)),
        }
    }

    pub(crate) fn is_packed(&self, uri: &str) -> Result<bool> {
        Ok(match self.address(uri)? {
            Address::Name => false,
            Address::App(base, _) => self.is_packed(&base)?,
            Address::Source(source) => source.is_packed(),
        })
    }

    /// Reads what is needed to know the layers of an image, or of the one below an app.
    pub(crate) fn open(&self, uri: &str, progress: &Progress) -> Result<Opened> {
        match self.address(uri)? {
            Address::Name => Ok(Opened::Here(Box::new(self.image(uri, progress)?))),
            Address::App(base, _) => self.open(&base, progress),
            Address::Source(source) => {
                let identity = source.state();
                if let Some(image) = self.cached(uri, identity.as_ref()) {
                    return Ok(Opened::Here(Box::new(image)));
                }
                let image = self.read(uri, &source, &|| progress.is_cancelled())?;
                self.check_layers(uri, image.layers.len())?;
                let layers = image.layers.iter().map(|layer| self.present(&layer.chain_id));
                if let Some(layers) = layers.collect::<Result<Option<Vec<_>>>>()?
                    && let Some(image) = self.remember(uri, &image, layers, identity.as_ref())
                {
                    return Ok(Opened::Here(Box::new(image)));
                }
                Ok(Opened::ToFetch(Box::new(ToFetch { uri: uri.to_owned(), identity, image })))
            }
        }
    }

    /// The image that was opened, with all its layers in their places.
    pub(crate) fn fetch_opened(&self, opened: &Opened, progress: &Progress) -> Result<Image> {
        let ToFetch { uri, identity, image } = match opened {
            Opened::Here(image) => return Ok(Image::clone(image)),
            Opened::ToFetch(opened) => &**opened,
        };
        // Of a directory the identity says nothing, and it may have changed since another one opened it.
        let key = format!("{identity:?} {} {uri}", image.id);
        self.opening.run(&key, &|| progress.is_cancelled(), || match self.cached(uri, identity.as_ref()) {
            Some(image) => Ok(image),
            None => self.fetch(uri, image, identity.as_ref(), progress),
        })
    }

    /// The image if it is there, nobody needs to be asked and nothing needs to be opened.
    pub(crate) fn at_hand(&self, uri: &str) -> Result<Option<Image>> {
        match self.address(uri)? {
            Address::Name => {
                let (named, documents) = image::read_whole(&self.layout, uri)?;
                self.named(&named, &documents)
            }
            Address::App(base, app) => match self.at_hand(&base)? {
                Some(below) => self.app_at_hand(uri, &below, &app),
                None => Ok(None),
            },
            Address::Source(source) => {
                let identity = source.state();
                if let Some(image) = self.cached(uri, identity.as_ref()) {
                    return Ok(Some(image));
                }
                Ok(None)
            }
        }
    }

    /// The app of the address on top of `below`, if it has one.
    pub(crate) fn with_app_of(&self, uri: &str, below: Image, progress: &Progress) -> Result<Option<Image>> {
        match self.address(uri)? {
            Address::App(_, app) => self.with_app(uri, &below, &app, progress),
            _ => Ok(Some(below)),
        }
    }

    pub(crate) fn name(&self, name: &str, uri: &str, image: &Image, wish: Wish) -> Result<Option<Named>> {
        let text = |bytes: &Option<Vec<u8>>| bytes.clone().map(|b| String::from_utf8_lossy(&b).into_owned());
        let (id, config) = self.ordinary(uri, image)?;
        let named = Named {
            name: name.to_owned(),
            source: uri.to_owned(),
            id,
            layers: image.chain_ids(),
            pinned: false,
            imported_ms: now_ms(),
        };
        let documents = Documents { manifest: text(&image.manifest), config: text(&config) };
        Ok(image::save(&self.layout, named, &documents, wish)?)
    }

    fn read(
        &self,
        uri: &str,
        source: &wardian_image::Source,
        cancelled: &(dyn Fn() -> bool + Sync),
    ) -> Result<wardian_image::Image> {
        let opening =
            wardian_image::Opening { limits: self.limits, dir: Some(self.layout.staging.as_fd()), cancelled };
        source.open_in(&self.remote, &opening).map_err(|error| image_error(uri, error))
    }

    fn address(&self, uri: &str) -> Result<Address> {
        self.check_open()?;
        self.close_layers();
        if image::check(uri).is_ok() {
            return Ok(Address::Name);
        }
        let app = App::parse(uri).map_err(|error| image_error(uri, error))?;
        if let Some((base, app)) = app {
            return Ok(Address::App(base, Box::new(app)));
        }
        let source = wardian_image::Source::parse(uri).map_err(|error| image_error(uri, error))?;
        Ok(Address::Source(source))
    }

    /// One that was opened before and has not changed.
    fn cached(&self, uri: &str, identity: Option<&Identity>) -> Option<Image> {
        let images = self.images.lock();
        let (known, image) = images.get(uri)?;
        if Some(known) != identity || !self.is_whole(image) {
            return None;
        }
        image.touch();
        Some(image.clone())
    }

    /// Whether its layers can be given to somebody, as far as one can tell without a record.
    pub(crate) fn is_whole(&self, image: &Image) -> bool {
        image.layers.iter().all(|layer| self.is_fine(layer))
    }

    pub(crate) fn is_fine(&self, layer: &Layer) -> bool {
        layer.is_in_place(&self.layout)
            && match layer.state() {
                State::Durable => true,
                State::Suspect => false,
                // Of another process, which alone knows.
                State::Fresh => {
                    self.layers.lock().get(&layer.chain).is_some_and(|own| own.instance == layer.instance)
                        || matches!(layer::load(&self.layout, &layer.chain), Ok(Some(found)) if found.trusted)
                }
            }
    }

    /// An image by its name in the store; none if one of its layers is gone.
    fn named(&self, named: &Named, documents: &Documents) -> Result<Option<Image>> {
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

    /// The image of these layers; none if one of them has gone meanwhile. The identity was taken before the image was
    /// read: had it changed since, the next asker would see that.
    fn remember(
        &self,
        uri: &str,
        opened: &wardian_image::Image,
        layers: Vec<Arc<Layer>>,
        identity: Option<&Identity>,
    ) -> Option<Image> {
        let image = Image {
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
            // To open one again costs little; who asks for ever more of them shall not fill the memory.
            if images.len() >= MOST_CACHED || documents + image.documents() > MOST_DOCUMENTS {
                images.clear();
            }
            images.insert(uri.to_owned(), (identity.clone(), image.clone()));
        }
        Some(image)
    }

    /// All layers, several at a time; the first failure ends the others.
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
        // Those that need what is below them come after the others, one by one.
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
        // Those that were ended because of another's failure are not the cause.
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
        // Of what others unpacked meanwhile nothing was counted.
        if let Some(any) = sources.first().filter(|_| any_missing) {
            count(&found);
            any.check_sum(&self.limits).map_err(|error| image_error(uri, error))?;
        }
        Ok(found.into_iter().flatten().collect())
    }

    /// The layer, if it is in the store and can be given to somebody. What cannot be trusted is thrown away.
    pub(crate) fn present(&self, chain: &str) -> Result<Option<Arc<Layer>>> {
        let known = self.layers.lock().get(chain).cloned();
        if let Some(layer) = known.filter(|layer| layer.is_in_place(&self.layout)) {
            if layer.state() != State::Suspect {
                return Ok(Some(layer));
            }
            // Its record may not say so: the disk is what failed.
            self.condemn(chain, &layer.instance)?;
            return Ok(None);
        }
        let found = match layer::load(&self.layout, chain) {
            Ok(None) => return Ok(None),
            Ok(Some(found)) => found,
            Err(layer::Error::Record { .. }) => {
                // Nobody uses what has no record.
                self.condemn(chain, &uuid::Uuid::new_v4().simple().to_string())?;
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        if !found.trusted {
            self.condemn(chain, &found.record.instance)?;
            return Ok(None);
        }
        // One that another process is making durable is looked at anew each time.
        if found.record.durable {
            self.layers.lock().insert(chain.to_owned(), Arc::clone(&found.layer));
        }
        Ok(Some(found.layer))
    }

    /// Waits for other processes that make layers of this image durable; false if one of them was lost.
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

    /// The layer, unpacked now unless somebody else does it. Those who have it from the same `origin` share one try, and
    /// how it ends. Others wait for their turn: what one address is refused for says nothing of another. A layer of an
    /// image has no origin but that image, which is opened once for all who ask for it: another one may say that it has
    /// the same layer, and not have it, or be too large as a whole.
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
            let _turn = self.turn(chain, &cancelled)?;
            if let Some(layer) = self.present(chain)? {
                watch.set(Phase::Present);
                return Ok(layer);
            }
            // Only where few descriptors are allowed that is less than an image has.
            if !self.durability.at_most(self.most_open / 2, &cancelled) {
                return Err(Error::Cancelled);
            }
            watch.set(Phase::Unpacking);
            let begin = Instant::now();
            let discard = |name: &str| self.trash(Place::Staging, name);
            let fresh = layer::unpack(&self.layout, source, below, &self.limits, &watch.watch, &discard)?;
            let layer = Arc::clone(&fresh.layer);
            let (ms, read, bytes) = (begin.elapsed().as_millis(), watch.bytes_read(), layer.extent.bytes);
            tracing::info!(chain, read, bytes, ms, "layer.unpacked");
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

    /// This process's turn to unpack the layer: a lock among processes, given back when it is dropped.
    fn turn(&self, chain: &str, cancelled: &dyn Fn() -> bool) -> Result<Turn> {
        let failed = |source| Error::from(layer::Error::Stage { chain: chain.to_owned(), source });
        let name = format!("{chain}{TURN}");
        loop {
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = rustix::fs::openat(&self.layout.staging, &name, flags, Mode::RUSR | Mode::WUSR)
                .map_err(failed)?;
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                // Unless the one before has just removed it.
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

/// What ends the name of a lock file in `staging/`.
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
