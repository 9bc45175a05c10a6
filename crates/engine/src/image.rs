//! Images of containers and peas: in the store before anything else of them is made.
//!
//! What is not at hand is opened, and then fetched. Both may take long, and both are given up when the client goes who has
//! asked for it: what it needs of the server is bounded, and others wait for it. Threads and memory are bounded by gates, one
//! for each kind of work, so that none of them stands in the way of another; nobody holds a place in one while he waits for
//! another.

use crate::admission::gate::{Gate, PATIENCE};
use crate::{Engine, Error, Result};
use std::future::{Future, pending};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, watch};
use wardian_store::{Image, Opened, Progress, Way};
use wardian_sys::memory;
use wardian_sys::text::chain;

/// Requests that fetch an image or wait for one that is fetched: each takes a thread, of which there are 512 for
/// everything that blocks, and of each image at most four layers are unpacked side by side.
pub const AT_ONCE: usize = 64;
/// Images that are opened at once, of each kind, and the bytes of memory that one may take: names in an archive, documents.
const OPENED_AT_ONCE: usize = 8;
const TO_OPEN: usize = 32 << 20;
/// Bytes of memory for what is opened at once, and for the manifests and configs of images that wait to be fetched: or this
/// part of the memory that the server may have.
const MOST: usize = 256 << 20;
const PART: usize = 16;
/// Manifests and configs of so many bytes are not counted: those of most images are much smaller.
const SMALL: usize = 64 << 10;
/// How long who wants an archive decompressed waits for those before. Its client is looked at all the while.
const TO_DECOMPRESS: Duration = Duration::from_secs(600);
/// How often an image is asked for again whose layers are collected at the same moment.
const TRIES: usize = 5;

/// What bounds the ways of images into the store.
#[derive(Debug)]
pub struct Gates {
    /// To read some documents, or the beginning of a file.
    opening: Gate,
    /// To look at directories.
    trees: Gate,
    /// To decompress archives: one at a time, since a decoder holds up to 32 MiB, as the file chooses.
    packed: Gate,
    fetching: Gate,
    /// KiB of documents.
    documents: Arc<Semaphore>,
}

impl Gates {
    /// So many more wait at each.
    pub fn new(queue: usize) -> Self {
        let gate = |what, places| Gate::new(what, "--max-queued-creates", places, queue);
        let places = (memory::budget(MOST, PART) / TO_OPEN).clamp(1, OPENED_AT_ONCE);
        Self {
            opening: gate("images that are opened", places),
            trees: gate("directories that are looked at as images", places),
            packed: gate("archives that are decompressed", 1),
            fetching: gate("fetches of images", AT_ONCE),
            documents: Arc::new(Semaphore::new(memory::budget(MOST, PART) >> 10)),
        }
    }
}

tokio::task_local! {
    static CLIENT: watch::Receiver<()>;
}

/// Does what a client wants. When the sender of `here` is dropped, the client has gone: an image that is being brought for it
/// alone is given up, and so is a create that waits for its turn. All else that was begun is finished.
pub async fn for_client<T>(here: watch::Receiver<()>, work: impl Future<Output = T>) -> T {
    CLIENT.scope(here, work).await
}

/// Ready when the client has gone for whom this task works.
pub(crate) async fn gone() {
    match CLIENT.try_with(Clone::clone) {
        Ok(mut here) => while here.changed().await.is_ok() {},
        Err(_) => pending().await,
    }
}

/// What somebody asks the store for. The store stops when this is dropped.
struct Asked(Arc<Progress>);

impl Drop for Asked {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

impl Engine {
    /// Says so if the image of containers that name none is not there. It may come later, and is no reason not to serve those
    /// who name one. Nobody waits for the look: the image may lie on a file system that does not answer.
    pub(crate) fn look_for_default_rootfs(&self) {
        let Some(uri) = self.shared.config.default_rootfs.clone() else { return };
        let store = self.shared.store.clone();
        drop(tokio::task::spawn_blocking(move || {
            if let Err(error) = store.reach(&uri)
                && !matches!(error, wardian_store::Error::Closed)
            {
                let text = "containers that name no image cannot be made until it can be opened: bring it there, or name \
                            another one by --default-rootfs";
                tracing::warn!(error = chain(&error), text, "start.default-rootfs");
            }
        }));
    }

    /// The image with all its layers. What is not in the store may take as long as a server on the net takes to send it:
    /// meanwhile no keeper is taken and no turn of a create, so that those whose image is at hand do not wait.
    /// `step` is what clients are told of as failed.
    pub(crate) async fn image(&self, step: &'static str, uri: &str) -> Result<Image> {
        let image = self.find_image(step, uri).await?;
        if let Some(platform) = &image.config.foreign {
            tracing::info!(image = image.shown, platform, "image.foreign-platform");
        }
        Ok(image)
    }

    async fn find_image(&self, step: &'static str, uri: &str) -> Result<Image> {
        let address: Arc<str> = self.shared.address(uri)?.into();
        let (store, theirs) = (self.shared.store.clone(), address.clone());
        let look = move || match store.at_hand(&theirs)? {
            Some(image) => Ok((Some(image), None)),
            None => Ok((None, store.way(&theirs)?)),
        };
        match blocking(step, look).await? {
            (Some(image), _) => Ok(image),
            (None, way) => tokio::select! {
                image = self.bring(step, &address, way) => image,
                () = gone() => Err(Error::GivenUp { during: step, why: "the client has gone before its image was there" }),
            },
        }
    }

    /// The same of what is not at hand.
    async fn bring(&self, step: &'static str, address: &Arc<str>, way: Option<Way>) -> Result<Image> {
        let (gates, store) = (&self.shared.images, &self.shared.store);
        let asked = Asked(Arc::default());
        let Some(way) = way else {
            let place = gates.fetching.enter().await?;
            let (store, address, progress) = (store.clone(), address.clone(), asked.0.clone());
            let fetch = move || {
                let _place = place;
                store.import(&address, None, &progress)
            };
            return blocking(step, fetch).await;
        };
        for _ in 0..TRIES {
            let opened = self.open(step, address, way, &asked).await?;
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
                // Without an app there is nothing more to do; an app's file may be read.
                Opened::Here(image) if *image.uri == **address => return Ok((**image).clone()),
                _ => gates.fetching.enter().await?,
            };
            let (store, address, progress) = (store.clone(), address.clone(), asked.0.clone());
            let fetch = move || {
                let _held = (place, room);
                let below = store.fetch(&opened, &progress)?;
                store.with_app(&address, below, &progress)
            };
            if let Some(image) = blocking(step, fetch).await? {
                return Ok(image);
            }
        }
        Err(Error::GivenUp { during: step, why: "layers of the image are collected again and again" })
    }

    async fn open(&self, step: &'static str, address: &Arc<str>, way: Way, asked: &Asked) -> Result<Opened> {
        let (gates, store) = (&self.shared.images, &self.shared.store);
        let mut packed = false;
        let mut gate = if way == Way::Tree { &gates.trees } else { &gates.opening };
        if way == Way::Compressed {
            let (store, address, place) = (store.clone(), address.clone(), gate.enter().await?);
            let look = move || {
                let _place = place;
                store.is_packed(&address)
            };
            packed = blocking(step, look).await?;
        }
        if packed {
            gate = &gates.packed;
        }
        let place = gate.enter_within(if packed { TO_DECOMPRESS } else { PATIENCE }).await?;
        let (store, address, progress) = (store.clone(), address.clone(), asked.0.clone());
        let open = move || {
            let _place = place;
            store.open_image(&address, &progress)
        };
        blocking(step, open).await
    }
}

/// Does work of the store on a thread that may block. What was begun goes on when nobody waits for it any more: it holds its
/// places until it has seen that.
async fn blocking<T: Send + 'static>(
    step: &'static str,
    work: impl FnOnce() -> wardian_store::Result<T> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(Error::task(step))?.map_err(Error::store(step))
}
