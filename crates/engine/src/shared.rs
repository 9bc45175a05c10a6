//! The state that all parts of the engine share.

use crate::admission::gate::Gate;
use crate::container::Container;
use crate::container::record::Records;
use crate::events::Events;
use crate::history::History;
use crate::process::files::Files;
use crate::process::kept::Room;
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
use wardian_network::{Networks, Subnet};
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
    pub networks: Networks,
    /// Subnets of the network pool with their bridges.
    pub subnets: Pool<Option<Subnet>>,
    /// A user namespace with the common mapping, for idmapped mounts of layers.
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
    /// Held while a named volume is made, opened or removed.
    pub volumes: Mutex<()>,
    /// Where creates wait for what the store makes for a new disk limit.
    pub limits_gate: Gate,
    pub images: image::Gates,
    /// The server ends: no grace time expires any more.
    pub closing: AtomicBool,
    pub events: Events,
    /// The bound of the output that is kept of all processes.
    pub kept_output: Arc<Room>,
    /// Files with the output of processes.
    pub output_files: Files,
    pub sweeper: Arc<Sweeper>,
    /// Held while a slow operation is recorded.
    pub looking: Arc<tokio::sync::Mutex<()>>,
    /// The run directory's lock, held until the end.
    pub _lock: OwnedFd,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.sweeper.close();
    }
}

impl Shared {
    /// Locks the check for room for large records, until the record that was checked is in its place.
    pub fn weighing(&self) -> MutexGuard<'_, ()> {
        self.weighing.lock()
    }

    pub fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Container>>> {
        self.containers.lock()
    }

    /// Forgets a process: its record, its kept output, and that on disk.
    pub fn forget_process(&self, container: &str, number: u64) {
        self.records.forget_process(container, number);
        self.output_files.forget(container, number);
    }

    /// Returns the full address of an image: an empty address, or one of an app alone (`?…`), is completed
    /// with the default image.
    pub fn address(&self, image: &str) -> Result<String> {
        if !image.is_empty() && !image.starts_with('?') {
            return Ok(image.to_owned());
        }
        match &self.config.default_rootfs {
            Some(default) => Ok(format!("{default}{image}")),
            None => Err(Error::Invalid("no image given, and the server has no --default-rootfs".to_owned())),
        }
    }

    /// Returns the settings that all bundles of containers with these ids share.
    pub fn settings(&self, range: Option<IdRange>) -> Settings {
        let mapping = self.ids.maps(range).iter().map(|m| (m.inside, m.outside, m.size)).collect();
        Settings { mapping, masks: self.masks.clone(), ..Settings::default() }
    }

    /// Returns the owner of a container's root file systems: that of the common mapping, or of the user
    /// namespace `own`.
    pub fn root_of<'a>(&'a self, range: Option<IdRange>, own: &'a OwnedFd) -> Owner<'a> {
        let id = self.ids.root(range);
        let userns = if range.is_some() { own.as_fd() } else { self.idmap.as_fd() };
        Owner { userns, uid: id, gid: id, shared: range.is_none() }
    }

    /// Hands a cgroup to the sweeper: it can be removed once its last member has been reaped by its parent.
    pub fn remove_cgroup_later(&self, id: String) {
        self.sweeper.add(Remains::Cgroup { id, tries: 0 });
    }
}
