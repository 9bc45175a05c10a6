//! What clients ask about containers, and their properties.

use crate::admission::bounds;
use crate::container::Container;
use crate::container::lifecycle::Event;
use crate::container::record::Record;
use crate::events::Listener;
use crate::history::Life;
use crate::network::CUT_OFF;
use crate::{Engine, Error, Result};
use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;
use wardian_network::Network;
use wardian_store::Changes;

/// Mount points that a container's create makes in its root file system where the image has none.
const OWN: [&str; 9] =
    ["dev", "proc", "sys", "tmp", "etc", "etc/hosts", "etc/resolv.conf", "etc/hostname", "dev/shm"];

/// Information about a container.
#[derive(Debug, Clone)]
pub struct Info {
    /// `active` or `stopped`; a broken container says why in `events`.
    pub state: String,
    /// Its processes are frozen.
    pub paused: bool,
    /// Conditions that clients should know of: out of memory, broken, a failed writeback.
    pub events: Vec<String>,
    /// The container's directory on the host.
    pub container_path: String,
    /// The container's network; `None`: loopback alone.
    pub network: Option<Network>,
    /// Current properties.
    pub properties: Properties,
}

/// A container's properties at one moment. They may be long: they are shared with the container, not copied.
#[derive(Debug, Clone)]
pub struct Properties(pub(crate) Arc<Record>);

impl Deref for Properties {
    type Target = BTreeMap<String, String>;
    fn deref(&self) -> &Self::Target {
        &self.0.properties
    }
}

/// One property of a container.
#[derive(Debug, Clone)]
pub struct Property {
    pub(crate) properties: Properties,
    pub(crate) key: String,
}

impl AsRef<str> for Property {
    fn as_ref(&self) -> &str {
        self.properties.get(&self.key).map_or("", String::as_str)
    }
}

/// A listed container, which shows as its handle. There may be many of them: they are not copied.
#[derive(Debug, Clone)]
pub struct Listed(pub(crate) Arc<Container>);

impl AsRef<str> for Listed {
    fn as_ref(&self) -> &str {
        &self.0.handle
    }
}

/// The capacity of the host.
#[derive(Debug, Clone, Copy)]
pub struct Capacity {
    /// Bytes of memory of the host.
    pub memory_bytes: u64,
    /// Bytes of the file system that holds the store.
    pub disk_bytes: u64,
    /// Most containers at a time; `u64::MAX`: no bound but the host's.
    pub max_containers: u64,
}

impl Engine {
    /// Returns the capacity of the host.
    ///
    /// # Errors
    /// The size of the store's file system cannot be read.
    pub fn capacity(&self) -> Result<Capacity> {
        let fail = Error::system::<rustix::io::Errno>("capacity");
        let disk = rustix::fs::statvfs(&self.shared.config.root).map_err(fail)?;
        let memory = rustix::system::sysinfo();
        Ok(Capacity {
            memory_bytes: memory.totalram * u64::from(memory.mem_unit),
            disk_bytes: disk.f_blocks * disk.f_frsize,
            // Schedulers take 0 for "no room".
            max_containers: {
                let bound = Some(self.shared.config.max_containers).filter(|bound| *bound > 0);
                bound.into_iter().chain(self.shared.networks.capacity()).min().unwrap_or(u64::MAX)
            },
        })
    }

    /// Returns the number of containers, those that are still being created included.
    pub fn count(&self) -> usize {
        self.shared.lock().len()
    }

    /// Returns the containers that have all these properties, by handle. Without a filter for `garden.state`
    /// these are the created ones (Garden §2.1).
    pub fn list(&self, filter: &BTreeMap<String, String>) -> Vec<Listed> {
        let mut filter = filter.clone();
        if filter.get("garden.state").is_some_and(|state| state == "all") {
            filter.remove("garden.state");
        } else {
            filter.entry("garden.state".to_owned()).or_insert_with(|| "created".to_owned());
        }
        let mut found: Vec<Listed> = self.shared.lock().values().cloned().map(Listed).collect();
        let matches = |properties: &BTreeMap<String, String>| {
            filter.iter().all(|(k, v)| properties.get(k).map_or("", String::as_str) == v)
        };
        found.retain(|container| matches(&container.0.record().properties));
        found.sort_unstable_by(|a, b| a.as_ref().cmp(b.as_ref()));
        found
    }

    /// Returns information about a container.
    ///
    /// # Errors
    /// Unknown handle.
    pub fn info(&self, handle: &str) -> Result<Info> {
        let container = self.find(handle)?;
        let (record, is_stopped, broken) = container.look()?;
        // The link of one that has ended is gone with its namespace.
        let is_cut = |network| broken.is_none() && self.shared.networks.is_cut(network);
        let cut = record.network.as_ref().is_some_and(is_cut).then(|| CUT_OFF.to_owned());
        Ok(Info {
            state: if is_stopped { "stopped" } else { "active" }.to_owned(),
            paused: container.is_paused(),
            events: container
                .is_out_of_memory(&self.shared)
                .then(|| "Out of memory".to_owned())
                .into_iter()
                .chain(broken.map(|reason| format!("broken: {reason}")))
                .chain(self.shared.store.writeback_error(&container.id))
                .chain(cut)
                .collect(),
            container_path: self.shared.records.path(&container.id).to_string_lossy().into_owned(),
            network: record.network.clone(),
            properties: Properties(record),
        })
    }

    /// Returns the phases of the last create and destroy of a handle, whose container need not live any more.
    ///
    /// # Errors
    /// Unknown handle, or one whose history has been dropped.
    pub fn history(&self, handle: &str) -> Result<Life> {
        self.shared.history.life(handle).ok_or_else(|| Error::UnknownHandle(handle.to_owned()))
    }

    /// Subscribes to all events from now on, and before that to the remembered ones since a time, in milliseconds since 1970.
    pub fn listen(&self, since: Option<u64>) -> Listener {
        self.shared.events.listen(since)
    }

    /// Lists what a container has changed in its root file system.
    ///
    /// # Errors
    /// Unknown container, one of its kind is under way, or it cannot be read.
    pub async fn changes(&self, handle: &str) -> Result<Changes> {
        let container = self.find(handle)?;
        container.look()?;
        let looking = container.look_alone()?;
        let shared = self.shared.clone();
        let list = move || {
            let _looking = looking;
            shared.store.changes(&container.id, &OWN)
        };
        let listed = tokio::task::spawn_blocking(list).await.map_err(Error::task("diff"))?;
        listed.map_err(Error::store("diff"))
    }

    /// Returns all properties of a container; `None` if the handle is unknown.
    pub fn properties(&self, handle: &str) -> Option<Properties> {
        self.find(handle).ok().map(|container| Properties(container.record()))
    }

    /// Returns one property.
    ///
    /// # Errors
    /// The property does not exist, or the container does not: Garden's server gives the same error for both.
    pub fn property(&self, handle: &str, key: &str) -> Result<Property> {
        let properties = self.properties(handle).filter(|properties| properties.contains_key(key));
        let properties = properties.ok_or_else(|| Error::UnknownProperty(key.to_owned()))?;
        Ok(Property { properties, key: key.to_owned() })
    }

    /// Sets a property.
    ///
    /// # Errors
    /// Unknown handle, the properties would exceed their bounds, or the property is a setting of the container.
    pub fn set_property(&self, handle: &str, key: &str, value: &str) -> Result<()> {
        crate::network::no_setting(key)?;
        let insert = |record: &mut Record| {
            bounds::property(&record.properties, key, value)?;
            record.properties.insert(key.to_owned(), value.to_owned());
            Ok(())
        };
        let container = self.find(handle)?;
        // The change is made to a copy, to measure the record's size after it: nearly all records are small.
        let before = container.record();
        let mut after = Record::clone(&before);
        after.properties.insert(key.to_owned(), value.to_owned());
        let bytes = after.beyond();
        // A record that does not grow needs no room.
        let grows = bytes > before.beyond();
        let _weighing = grows.then(|| self.shared.weighing());
        if grows {
            let containers = self.shared.lock();
            let others = containers.values().filter(|other| !Arc::ptr_eq(other, &container));
            bounds::beside(bytes, others.map(|other| other.record().beyond()))?;
        }
        container.try_update(Event::Change, insert, |record| self.shared.records.save(record))
    }

    /// Removes a property; it need not exist.
    ///
    /// # Errors
    /// Unknown handle, or the property is a setting of the container.
    pub fn remove_property(&self, handle: &str, key: &str) -> Result<()> {
        crate::network::no_setting(key)?;
        let remove = |record: &mut Record| drop(record.properties.remove(key));
        self.find(handle)?.update(remove, |record| self.shared.records.save(record))
    }
}
