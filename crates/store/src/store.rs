//! The state of an open store, shared by its parts.

use parking_lot::Mutex;
use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use wardian_image::{Identity, Limits, Remote};

use crate::disk::layout::Layout;
use crate::disk::lock::Lock;
use crate::disk::record::Used;
use crate::error::{Error, Result};
use crate::images::flight::Flights;
use crate::images::opened::Image;
use crate::layers::durable::Durability;
use crate::layers::layer::Layer;
use crate::mounts::door::Door;
use crate::mounts::measure::Measurer;
use crate::mounts::names::Names;
use crate::mounts::pool::Pool;
use crate::mounts::ready::Ready;
use crate::mounts::reaper::{Item, Place, Reaper};
use crate::mounts::rootfs::Mounter;
use crate::mounts::upper::Upper;

/// An open store. Clones refer to the same one.
#[derive(Debug, Clone)]
pub struct Store(pub(crate) Arc<Inner>);

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) layout: Arc<Layout>,
    /// The lock; a server holds it until the store is closed.
    pub(crate) lock: Mutex<Option<Lock>>,
    pub(crate) reaper: Reaper,
    pub(crate) durability: Arc<Durability>,
    pub(crate) measurer: Measurer,
    pub(crate) door: Arc<Door>,
    pub(crate) mounter: Mounter,
    pub(crate) names: Arc<Names>,
    pub(crate) upper: Arc<dyn Upper>,
    pub(crate) pool: Pool,
    pub(crate) ready: Ready,
    pub(crate) gc_threshold: Option<u64>,
    pub(crate) remote: Remote,
    pub(crate) registries: wardian_image::registry::Known,
    pub(crate) limits: Limits,
    pub(crate) unverified: bool,
    pub(crate) images: Mutex<HashMap<String, (Identity, Image)>>,
    pub(crate) layers: Mutex<HashMap<String, Arc<Layer>>>,
    /// How many of `layers` are kept open.
    pub(crate) most_open: usize,
    /// Honest root file systems, kept open: closing the last reference waits for the disk, and that is left to the
    /// reaper.
    pub(crate) honest: Mutex<HashMap<String, OwnedFd>>,
    /// The messages of write-back errors, by the id of the root file system that they affect.
    pub(crate) hit: Mutex<HashMap<String, String>>,
    pub(crate) opening: Flights<String, Image>,
    pub(crate) unpacking: Flights<String, Arc<Layer>>,
    pub(crate) closed: AtomicBool,
}

impl Inner {
    pub(crate) fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) { Err(Error::Closed) } else { Ok(()) }
    }

    pub(crate) fn trash(&self, place: Place, name: &str) {
        if place == Place::Rootfs {
            self.names.disown(name);
        }
        if let Some(item) = Item::new(place, name) {
            self.reaper.add(item);
        }
    }

    pub(crate) fn records_error(&self, source: std::io::Error) -> Error {
        Error::Records { path: self.layout.records.path().to_owned(), source }
    }

    pub(crate) fn used_layers(&self) -> Result<HashSet<Used>> {
        self.layout.records.used_layers().map_err(|source| self.records_error(source))
    }
}
