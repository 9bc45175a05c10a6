//! What all parts of the engine share.

use crate::admission::gate::Gate;
use crate::container::Container;
use crate::container::record::Records;
use crate::events::Events;
use crate::history::History;
use crate::ready::ids::{Home, IdRange, Ids};
use crate::ready::keepers::Keepers;
use crate::ready::pool::Pool;
use crate::sweeper::{Remains, Sweeper};
use crate::{Config, Error, Result, image};
use parking_lot::{Mutex, MutexGuard};
use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use wardian_runtime::bundle::Settings;
use wardian_runtime::cgroup::Cgroups;
use wardian_store::{Owner, Store};

#[derive(Debug)]
pub struct Shared {
    pub config: Config,
    pub boot_id: String,
    pub records: Records,
    pub store: Store,
    pub cgroups: Cgroups,
    pub keepers: Keepers,
    pub pairs: Pool<Home>,
    pub privileged_pairs: Pool<Home>,
    /// A user namespace of the common mapping: what idmapped layers are made with.
    pub idmap: OwnedFd,
    pub ids: Ids,
    /// See [`wardian_runtime::bundle::host_masks`].
    pub masks: Vec<String>,
    pub containers: Mutex<HashMap<String, Arc<Container>>>,
    /// See [`Shared::weighing`].
    pub weighing: Mutex<()>,
    pub history: History,
    /// See [`Config::cpu_entitlement_per_share`].
    pub entitlement_per_share: f64,
    pub gate: Gate,
    pub images: image::Gates,
    /// No container goes by itself any more.
    pub closing: AtomicBool,
    pub events: Events,
    pub sweeper: Arc<Sweeper>,
    /// Held while a slow operation is looked at.
    pub looking: Arc<tokio::sync::Mutex<()>>,
    /// One server per run directory; held until the end.
    pub _lock: OwnedFd,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.sweeper.close();
    }
}

impl Shared {
    /// Held while it is found out whether there is room for what is large, until it has its place.
    pub fn weighing(&self) -> MutexGuard<'_, ()> {
        self.weighing.lock()
    }

    pub fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Container>>> {
        self.containers.lock()
    }

    /// The image that is meant: an empty address, or one that is only an app, stands on the default image.
    pub fn address(&self, image: &str) -> Result<String> {
        if !image.is_empty() && !image.starts_with('?') {
            return Ok(image.to_owned());
        }
        match &self.config.default_rootfs {
            Some(default) => Ok(format!("{default}{image}")),
            None => Err(Error::Invalid("no image given, and the server has no --default-rootfs".to_owned())),
        }
    }

    /// What all bundles of containers with these ids share.
    pub fn settings(&self, range: Option<IdRange>) -> Settings {
        let mapping = self.ids.maps(range).iter().map(|m| (m.inside, m.outside, m.size)).collect();
        Settings { mapping, masks: self.masks.clone(), ..Settings::default() }
    }

    /// Whose a container's root file systems are: of the common mapping, or of the user namespace `own`.
    pub fn root_of<'a>(&'a self, range: Option<IdRange>, own: &'a OwnedFd) -> Owner<'a> {
        let id = self.ids.root(range);
        let userns = if range.is_some() { own.as_fd() } else { self.idmap.as_fd() };
        Owner { userns, uid: id, gid: id, shared: range.is_none() }
    }

    /// A cgroup can be removed once its last member has been reaped, by whoever has to.
    pub fn remove_cgroup_later(&self, id: String) {
        self.sweeper.add(Remains::Cgroup { id, tries: 0 });
    }
}
