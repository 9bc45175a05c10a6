//! What a client may know of the server as a whole.

use crate::container::Container;
use crate::{Engine, Error, Result};
use std::path::PathBuf;
use std::sync::Arc;
use wardian_network::Driver;
use wardian_network::outside::Programs;
use wardian_store::Summary;

/// The server: what it is set to, and what it has.
#[derive(Debug, Clone)]
pub struct Overall {
    /// The directory of the store.
    pub root: PathBuf,
    /// The run directory.
    pub run: PathBuf,
    /// The release of the kernel, as uname(2) tells it.
    pub kernel: String,
    /// The cgroup hierarchies with controllers: `v1` or `v2`.
    pub cgroups: &'static str,
    /// The driver of disk limits.
    pub disk_driver: &'static str,
    /// Where containers have their network from.
    pub network: &'static str,
    /// Containers in which something runs.
    pub running: usize,
    /// Containers in which nothing runs.
    pub stopped: usize,
    /// Images with a name.
    pub images: usize,
    /// The layers of the store, and its trash.
    pub store: Summary,
    /// Bytes that are left on the store's file system.
    pub available_bytes: u64,
    /// What containers may have or must do with, by the server's settings, in words that do not change.
    pub features: Vec<&'static str>,
    /// The file of settings for registries, if there is one.
    pub registries_conf: Option<PathBuf>,
    /// Registries whose certificate is not verified, by the server's own settings.
    pub insecure_registries: Vec<String>,
}

impl Engine {
    /// Returns what a client may know of the server. Reads the records of images and layers.
    ///
    /// # Errors
    /// They cannot be read, or the size of the store's file system cannot.
    pub async fn overall(&self) -> Result<Overall> {
        let engine = self.clone();
        tokio::task::spawn_blocking(move || engine.look_at_all()).await.map_err(Error::task("info"))?
    }

    fn look_at_all(&self) -> Result<Overall> {
        let (shared, config) = (&self.shared, &self.shared.config);
        let disk = rustix::fs::statvfs(&config.root).map_err(Error::system("info"))?;
        let containers: Vec<_> = shared.lock().values().cloned().collect();
        let runs =
            |container: &Arc<Container>| container.processes().iter().any(|process| process.ending.is_none());
        let running = containers.iter().filter(|container| runs(container)).count();
        let (conf, insecure) = config.registries.sources();
        Ok(Overall {
            root: config.root.clone(),
            run: config.run.clone(),
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            cgroups: if shared.cgroups.is_v2() { "v2" } else { "v1" },
            disk_driver: shared.store.disk_driver().name(),
            network: match &config.network {
                Driver::Loopback => "none",
                Driver::Bridged(_) => "bridge",
                Driver::Outside(settings) => match settings.programs {
                    Programs::Plugin(_) => "plugin",
                    Programs::Cni { .. } => "cni",
                },
            },
            running,
            stopped: containers.len() - running,
            images: shared.store.images().map_err(Error::store("info"))?.len(),
            store: shared.store.summary().map_err(Error::store("info"))?,
            available_bytes: disk.f_bavail * disk.f_frsize,
            features: [
                (!config.disable_privileged, "privileged"),
                (config.id_ranges.is_some(), "id-ranges"),
                (config.no_new_privileges, "no-new-privileges"),
            ]
            .into_iter()
            .filter_map(|(has, name)| has.then_some(name))
            .collect(),
            registries_conf: conf.filter(|path| path.exists()).cloned(),
            insecure_registries: insecure.to_vec(),
        })
    }
}
