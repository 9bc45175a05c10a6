//! Containers as an operator sees them: what runs in them, of which image, and how it has ended. Garden's own questions are
//! answered in [`crate::inspect`].

use crate::age::{now_ms, since_boot};
use crate::container::record::{CONFIG, Record};
use crate::container::{Condition, Container, Seen};
use crate::inspect::Properties;
use crate::process::Process;
use crate::{Engine, Error, Result};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

/// The most bytes of a bundle.
const BUNDLE: u64 = 64 << 20;

/// The fields of an image's config (OCI image spec) that are shown.
const SAID: [&str; 5] = ["ExposedPorts", "Healthcheck", "Labels", "StopSignal", "Volumes"];

/// Where every container has a tmpfs.
const OF_EVERY_ONE: [&str; 2] = ["/dev", "/dev/shm"];

/// A container in a list.
#[derive(Debug, Clone)]
pub struct Overview {
    /// Its handle.
    pub handle: String,
    /// Its id.
    pub id: String,
    /// Its state.
    pub condition: Condition,
    /// When it was created, in milliseconds since 1970; 0: it is being created, or unknown.
    pub created_ms: u64,
    /// Its processes, running and ended.
    pub processes: Vec<Seen>,
    record: Arc<Record>,
}

/// A file or directory of the host that is mounted in a container, or a file system made for it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Mounted {
    /// Where it is in the container.
    pub destination: String,
    /// `bind`, or the kind of a file system that was made for it.
    #[serde(rename = "type", default)]
    pub kind: String,
    /// What is mounted: a path of the host.
    #[serde(default)]
    pub source: String,
    /// Its options, as in mount(8).
    #[serde(default)]
    pub options: Vec<String>,
}

impl Overview {
    /// Returns the container's image: its address without secrets, and its id.
    pub fn image(&self) -> (&str, &str) {
        (&self.record.image.0, &self.record.image.1)
    }

    /// Returns the container's network; `None`: loopback alone.
    pub fn network(&self) -> Option<&wardian_network::Network> {
        self.record.network.as_ref()
    }

    /// Returns the container's properties.
    pub fn properties(&self) -> Properties {
        Properties(self.record.clone())
    }

    /// Whether container root is host root.
    pub fn is_privileged(&self) -> bool {
        self.record.privileged
    }

    /// Returns the variables that all its processes have, as `K=V`: secrets may be among them.
    pub fn env(&self) -> &[String] {
        &self.record.env
    }

    /// Returns what the image says of processes.
    pub fn defaults(&self) -> &crate::Defaults {
        &self.record.defaults
    }
}

impl Container {
    fn overview(&self) -> Overview {
        let (record, condition) = self.condition();
        let age_ms = since_boot().saturating_sub(record.made_ns) / 1_000_000;
        let created_ms = if record.made_ns == 0 { 0 } else { now_ms().saturating_sub(age_ms) };
        Overview {
            handle: self.handle.clone(),
            id: self.id.clone(),
            condition,
            created_ms,
            processes: self.processes(),
            record,
        }
    }
}

impl Engine {
    /// Returns all containers that have these properties, by handle; those that are being created or destroyed, and broken
    /// ones, too.
    pub fn overviews(&self, properties: &BTreeMap<String, String>) -> Vec<Overview> {
        let all: Vec<Arc<Container>> = self.shared.lock().values().cloned().collect();
        let mut found: Vec<Overview> = all
            .iter()
            .filter(|container| {
                let record = container.record();
                properties.iter().all(|(key, value)| record.properties.get(key) == Some(value))
            })
            .map(|container| container.overview())
            .collect();
        found.sort_unstable_by(|a, b| a.handle.cmp(&b.handle));
        found
    }

    /// Returns a container as in a list.
    ///
    /// # Errors
    /// Unknown handle.
    pub fn overview(&self, handle: &str) -> Result<Overview> {
        Ok(self.find(handle)?.overview())
    }

    /// Returns the directory of a container's record, by the container's id.
    pub fn container_path(&self, id: &str) -> PathBuf {
        self.shared.records.path(id)
    }

    /// Returns the directory of a container's root file system in the store, by the container's id.
    pub fn rootfs_path(&self, id: &str) -> Option<PathBuf> {
        self.shared.store.rootfs_dir(id)
    }

    /// Returns what is mounted in a container at the wish of whoever has created it.
    ///
    /// # Errors
    /// Unknown handle, or its bundle cannot be read.
    pub fn mounts(&self, handle: &str) -> Result<Vec<Mounted>> {
        #[derive(Deserialize)]
        struct Bundle {
            #[serde(default)]
            mounts: Vec<Mounted>,
        }
        let container = self.find(handle)?;
        let fail = Error::system("bundle");
        let dir = self.shared.records.container(&container.id).map_err(fail)?;
        let text = dir.read(CONFIG, BUNDLE).map_err(|error| fail(error.into()))?;
        let bundle: Bundle = serde_json::from_slice(&text).map_err(|error| fail(error.into()))?;
        let own = self.shared.records.path(&container.id);
        let is_given = |mount: &Mounted| {
            let is_bind = mount.options.iter().any(|option| option == "bind" || option == "rbind");
            let is_memory = mount.kind == "tmpfs" && !OF_EVERY_ONE.contains(&mount.destination.as_str());
            is_memory || (is_bind && !std::path::Path::new(&mount.source).starts_with(&own))
        };
        Ok(bundle.mounts.into_iter().filter(is_given).collect())
    }

    /// Returns what the config of an image says besides what containers heed, as the image has it: ports, labels, a health check,
    /// volumes, the signal for a stop. `None`: the image has no name any more, or says nothing. It reads the disk.
    pub fn image_says(&self, id: &str) -> Option<serde_json::Map<String, serde_json::Value>> {
        let image = self.shared.store.images().ok()?.into_iter().find(|image| image.id == id)?;
        let (image, documents) = self.shared.store.read_image(&image.name).ok()?;
        let mut config: serde_json::Value = serde_json::from_str(&documents.config?).ok()?;
        let serde_json::Value::Object(config) = config["config"].take() else { return None };
        let said = config.into_iter().filter(|(key, value)| SAID.contains(&key.as_str()) && !value.is_null());
        // The name may have been given to another image meanwhile.
        (image.id == id).then(|| said.collect())
    }

    /// Returns the handle that is meant by a name: the handle itself, or else the beginning of a container's id.
    ///
    /// # Errors
    /// No container is called so, or the ids of several begin so.
    pub fn named(&self, name: &str) -> Result<String> {
        let containers = self.shared.lock();
        if containers.contains_key(name) {
            return Ok(name.to_owned());
        }
        let mut found = containers.values().filter(|container| container.id.starts_with(name));
        match (found.next(), found.next()) {
            (Some(one), None) if !name.is_empty() => Ok(one.handle.clone()),
            (Some(_), Some(_)) if !name.is_empty() => Err(Error::Invalid(format!(
                "the ids of several containers begin with {name}: give more digits"
            ))),
            _ => Err(Error::UnknownHandle(name.to_owned())),
        }
    }

    /// Finds a process, running or ended. In contrast to [`Engine::attach`] an unknown container is told as such.
    ///
    /// # Errors
    /// Unknown container or process.
    pub fn process(&self, handle: &str, id: &str) -> Result<Process> {
        let process = self.find(handle)?.process(id)?;
        if process.is_started() { Ok(process) } else { Err(Error::UnknownProcess(id.to_owned())) }
    }
}
