//! Images of containers and peas: an image is in the store before anything else of its container or pea is
//! made.
//!
//! An image that is not in the store is opened, and then fetched. Both may take long, and both are given up
//! when the client that asked for the image disconnects: their threads and memory are bounded, and other
//! requests queue for them. There is one gate for each kind of work, so that no kind delays another, and no
//! request holds a place in one gate while it queues at another.

use crate::admission::gate::{Gate, PATIENCE};
use crate::admission::shares::Shares;
use crate::{Engine, Error, PullTerms, Result};
use parking_lot::Mutex;
use std::future::{Future, pending};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, watch};
use wardian_store::{Image, LayerProgress, Opened, Progress, Reference, Way};
use wardian_sys::memory;
use wardian_sys::text::chain;

/// Requests that fetch images, or wait for another request's fetch of one: each takes one of the 512 threads for
/// blocking work. There are as many for images of this host as for those of registries. At most four layers of an image
/// are unpacked side by side.
pub const AT_ONCE: usize = 64;
/// How many of these may be for images of one registry, which may be slow, or limit how often it is asked.
const OF_ONE: usize = 16;
/// As how many bytes of memory a registry's answers are counted until its image is known. Each of index, manifest and
/// config may have so many, and nearly all have some kilobytes.
const TO_ASK: usize = 4 << 20;
/// The most images that are opened at once, of each kind, and the bytes of memory that one may take: names in
/// an archive, documents.
const OPENED_AT_ONCE: usize = 8;
const TO_OPEN: usize = 32 << 20;
/// Bytes of memory for images that are opened at once, and for the manifests and configs of images that wait
/// to be fetched; at most one `PART`th of the memory that the server may have.
const MOST: usize = 256 << 20;
const PART: usize = 16;
/// Manifests and configs of up to this many bytes are not counted: those of most images are much smaller.
const SMALL: usize = 64 << 10;
/// How long a request queues to decompress an archive. It is given up when its client disconnects.
const TO_DECOMPRESS: Duration = Duration::from_secs(600);
/// How long a shutdown waits for fetches that are given up, and how often it looks.
const TO_END: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(10);
/// How often an image is opened again whose layers are garbage-collected at the same moment.
const TRIES: usize = 5;

/// The gates for images on their way into the store.
#[derive(Debug)]
pub struct Gates {
    /// For reading some documents, or the beginning of a file.
    opening: Gate,
    /// For reading directories.
    trees: Gate,
    /// For manifests from registries, which may take long to answer.
    registries: Shares,
    /// For decompressing archives: one at a time, since a decoder holds up to 32 MiB, as the file chooses.
    packed: Gate,
    fetching: Gate,
    /// For layers from registries.
    receiving: Shares,
    /// Permits for KiB of manifests and configs.
    documents: Arc<Semaphore>,
    /// What is under way, oldest first; `None` once the server ends.
    under_way: Arc<Mutex<Option<Vec<Arc<Asked>>>>>,
}

/// An image that is brought into the store for a request.
#[derive(Debug)]
struct Asked {
    /// The image's address, as it may be shown.
    image: String,
    progress: Arc<Progress>,
}

/// The state of an image on its way into the store.
#[derive(Debug)]
pub struct Bringing {
    /// The address that the client gave, without secrets.
    pub image: String,
    /// Its layers, bottom first; none before its manifest has been read.
    pub layers: Vec<Arc<LayerProgress>>,
}

impl Gates {
    /// Makes gates at each of which `queue` requests may wait.
    pub fn new(queue: usize) -> Self {
        let gate = |what, places| Gate::new(what, None, places, queue);
        let shares = |what, places| Shares::new(gate(what, places), OF_ONE, queue);
        let asked = (memory::budget(MOST, PART) / TO_ASK).clamp(1, AT_ONCE);
        let places = (memory::budget(MOST, PART) / TO_OPEN).clamp(1, OPENED_AT_ONCE);
        Self {
            opening: gate("images that are opened", places),
            trees: gate("directories that are looked at as images", places),
            registries: shares("images that registries are asked for", asked),
            packed: gate("archives that are decompressed", 1),
            fetching: gate("fetches of images", AT_ONCE),
            receiving: shares("fetches of images from registries", AT_ONCE),
            documents: Arc::new(Semaphore::new(memory::budget(MOST, PART) >> 10)),
            under_way: Arc::new(Mutex::new(Some(Vec::new()))),
        }
    }
}

tokio::task_local! {
    static CLIENT: watch::Receiver<()>;
}

/// Runs a client's request. The client has disconnected when the sender of `here` is dropped: then the fetch
/// of an image for it alone is given up, and so is a create that queues. Everything else that has begun is
/// finished.
pub async fn for_client<T>(here: watch::Receiver<()>, work: impl Future<Output = T>) -> T {
    CLIENT.scope(here, work).await
}

/// Ready when the client of this task has disconnected.
pub(crate) async fn gone() {
    match CLIENT.try_with(Clone::clone) {
        Ok(mut here) => while here.changed().await.is_ok() {},
        Err(_) => pending().await,
    }
}

/// A request to the store. Dropping it cancels the request.
struct Request {
    asked: Arc<Asked>,
    under_way: Arc<Mutex<Option<Vec<Arc<Asked>>>>>,
}

impl Gates {
    fn begin(&self, step: &'static str, image: String) -> Result<Request> {
        let asked = Arc::new(Asked { image, progress: Arc::default() });
        match &mut *self.under_way.lock() {
            Some(all) => all.push(Arc::clone(&asked)),
            None => return Err(ends(step)),
        }
        Ok(Request { asked, under_way: Arc::clone(&self.under_way) })
    }

    fn are_closed(&self) -> bool {
        self.under_way.lock().is_none()
    }
}

fn ends(step: &'static str) -> Error {
    Error::GivenUp {
        during: step,
        why: "the server ends; what has come of the image is kept for the next time",
    }
}

impl Request {
    fn progress(&self) -> Arc<Progress> {
        Arc::clone(&self.asked.progress)
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        self.asked.progress.cancel();
        if let Some(all) = &mut *self.under_way.lock() {
            all.retain(|other| !Arc::ptr_eq(other, &self.asked));
        }
    }
}

impl Engine {
    /// Gives up what brings images into the store, now and from now on: it may take longer than a server that ends can
    /// wait. Waits for the threads, which remove what they have half unpacked.
    pub async fn give_up_images(&self) {
        let all = self.shared.images.under_way.lock().take().unwrap_or_default();
        all.iter().for_each(|asked| asked.progress.cancel());
        let ended = async {
            while all.iter().any(|asked| Arc::strong_count(&asked.progress) > 1) {
                tokio::time::sleep(LOOK).await;
            }
        };
        if tokio::time::timeout(TO_END, ended).await.is_err() {
            tracing::warn!("images were still under way at shutdown");
        }
    }

    /// Returns the images that are on their way into the store, oldest first.
    pub fn images_under_way(&self) -> Vec<Bringing> {
        let under_way = self.shared.images.under_way.lock().clone().unwrap_or_default();
        let state =
            |asked: &Arc<Asked>| Bringing { image: asked.image.clone(), layers: asked.progress.layers() };
        under_way.iter().map(state).collect()
    }

    /// Logs a warning if the default image is not there. It may come later, and containers that name an image
    /// do not need it. The check runs in the background: the image may lie on a file system that does not
    /// answer.
    pub(crate) fn look_for_default_rootfs(&self) {
        let Some(uri) = self.shared.config.default_rootfs.clone() else { return };
        let store = self.shared.store.clone();
        drop(tokio::task::spawn_blocking(move || {
            if let Err(error) = Reference::parse(&uri).and_then(|image| store.reach(&image))
                && !matches!(error, wardian_store::Error::Closed)
            {
                let text = "containers that name no image cannot be made until it can be opened: bring it there, or name \
                            another one by --default-rootfs";
                tracing::warn!(error = chain(&error), text, "start.default-rootfs");
            }
        }));
    }

    /// Returns the image with all its layers. A fetch may take as long as a registry takes to send the image:
    /// meanwhile the create holds no keeper and no place in the gate, so that creates whose image is in the
    /// store do not wait. `step` names the failed step in errors for clients.
    pub(crate) async fn image(&self, step: &'static str, uri: &str, terms: &PullTerms) -> Result<Image> {
        let image = self.find_image(step, uri, terms).await?;
        if let Some(platform) = &image.config.foreign {
            tracing::debug!(image = image.shown, platform, "image.foreign-platform");
        }
        Ok(image)
    }

    async fn find_image(&self, step: &'static str, uri: &str, terms: &PullTerms) -> Result<Image> {
        let (store, address) = (self.shared.store.clone(), self.shared.address(uri)?);
        let shown = wardian_store::shown(uri);
        let (PullTerms { when, login }, by_default) = (terms.clone(), self.shared.config.pull);
        let look = move || {
            let mut reference = Reference::parse(&address)?;
            // Whoever brings a login means an image of a registry, also by a name alone.
            let is_asked_for = reference.is_pulled() || login.is_some();
            if let Some(when) = when.or(is_asked_for.then_some(by_default)) {
                reference = reference.pulled(when);
            }
            if let Some(login) = login {
                reference = reference.with_login(login)?;
            }
            Ok(match store.at_hand(&reference)? {
                Some(image) => Ok(image),
                None => Err((reference.way(), Arc::new(reference))),
            })
        };
        match blocking(step, look).await? {
            Ok(image) => Ok(image),
            Err((way, reference)) => tokio::select! {
                image = self.bring(step, shown, &reference, way) => match image {
                    Err(_) if self.shared.images.are_closed() => Err(ends(step)),
                    image => image,
                },
                () = gone() => Err(Error::GivenUp { during: step, why: "the client has gone before its image was there" }),
            },
        }
    }

    /// Opens and fetches an image that is not in the store.
    async fn bring(
        &self,
        step: &'static str,
        shown: String,
        reference: &Arc<Reference>,
        way: Option<Way>,
    ) -> Result<Image> {
        let (gates, store) = (&self.shared.images, &self.shared.store);
        let request = gates.begin(step, shown)?;
        let Some(way) = way else {
            let place = gates.fetching.enter().await?;
            let (store, reference, progress) = (store.clone(), reference.clone(), request.progress());
            let fetch = move || {
                let _place = place;
                store.import(&reference, None, &progress)
            };
            return blocking(step, fetch).await;
        };
        for _ in 0..TRIES {
            let opened = self.open(step, reference, way, &request).await?;
            let documents = opened.documents();
            let kib = u32::try_from(documents >> 10).unwrap_or(u32::MAX);
            let room = if documents > SMALL {
                let room = gates.documents.clone().try_acquire_many_owned(kib);
                let busy =
                    "too many images with manifests of some megabytes are fetched: try again in a moment";
                Some(room.map_err(|_| Error::Busy(busy.to_owned()))?)
            } else {
                None
            };
            let place = match &opened {
                // Without an app nothing is left to do; an app's file may have to be read.
                Opened::Here(image) if !reference.has_app() => return Ok((**image).clone()),
                Opened::ToFetch(_) if let Some(registry) = reference.registry() => {
                    gates.receiving.enter(&registry).await?
                }
                _ => gates.fetching.enter().await?.into(),
            };
            let (store, reference, progress) = (store.clone(), reference.clone(), request.progress());
            let fetch = move || {
                let _held = (place, room);
                let below = store.fetch(&opened, &progress)?;
                store.with_app(&reference, below, &progress)
            };
            if let Some(image) = blocking(step, fetch).await? {
                return Ok(image);
            }
        }
        Err(Error::GivenUp { during: step, why: "layers of the image are collected again and again" })
    }

    async fn open(
        &self,
        step: &'static str,
        reference: &Arc<Reference>,
        way: Way,
        request: &Request,
    ) -> Result<Opened> {
        let (gates, store) = (&self.shared.images, &self.shared.store);
        let mut packed = false;
        let mut gate = match way {
            Way::Tree => &gates.trees,
            // A registry's are below.
            Way::Registry | Way::Short | Way::Compressed => &gates.opening,
        };
        if way == Way::Compressed {
            let (reference, place) = (reference.clone(), gate.enter().await?);
            let look = move || {
                let _place = place;
                Ok(reference.is_packed())
            };
            packed = blocking(step, look).await?;
        }
        if packed {
            gate = &gates.packed;
        }
        let place = match reference.registry() {
            Some(registry) => gates.registries.enter(&registry).await?,
            None => gate.enter_within(if packed { TO_DECOMPRESS } else { PATIENCE }).await?.into(),
        };
        let (store, reference, progress) = (store.clone(), reference.clone(), request.progress());
        let open = move || {
            let _place = place;
            store.open_image(&reference, &progress)
        };
        blocking(step, open).await
    }
}

/// Runs work of the store on a thread that may block. Dropping this future does not stop the work: it holds
/// its places in the gates until it has noticed the cancellation.
async fn blocking<T: Send + 'static>(
    step: &'static str,
    work: impl FnOnce() -> wardian_store::Result<T> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(Error::task(step))?.map_err(Error::store(step))
}
