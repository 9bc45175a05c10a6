//! Named volumes, and who uses them.
//!
//! Making, opening and removing a volume is done under one lock, and a container is in the table of containers before its
//! volumes are opened: so a removal either sees the container, or is over before the volume is made anew for it.

use crate::admission::bounds::check_volume as check;
use crate::shared::Shared;
use crate::{Engine, Error, Result};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use wardian_store::Volume;
use wardian_store::volume::Error as VolumeError;

/// A volume, and the handles of the containers that use it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Used {
    /// The volume.
    pub volume: Volume,
    /// The handles, sorted.
    pub by: Vec<String>,
}

impl Shared {
    /// Opens the data of a volume for a container that is in the table of containers; makes the volume if it is missing.
    pub fn volume(&self, name: &str) -> std::result::Result<OwnedFd, wardian_store::Error> {
        let _one = self.volumes.lock();
        let (data, made) = self.store.volume(name)?;
        if made {
            tracing::info!(name, "volume.made");
        }
        Ok(data)
    }

    /// Returns the handles of the containers that use each volume.
    fn users(&self) -> BTreeMap<String, Vec<String>> {
        let mut users: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for container in self.lock().values() {
            for name in &container.record().volumes {
                users.entry(name.clone()).or_default().push(container.handle.clone());
            }
        }
        users.values_mut().for_each(|handles| handles.sort_unstable());
        users
    }

    fn used_volumes(&self) -> Result<Vec<Used>> {
        let mut users = self.users();
        let volumes = self.store.volumes().map_err(Error::store("volumes"))?;
        let used = |volume: Volume| Used { by: users.remove(&volume.name).unwrap_or_default(), volume };
        Ok(volumes.into_iter().map(used).collect())
    }

    fn remove_volume(&self, name: &str) -> Result<()> {
        let _one = self.volumes.lock();
        if let Some(by) = self.users().remove(name) {
            return Err(Error::VolumeInUse { name: name.to_owned(), by: by.join(", ") });
        }
        self.store.remove_volume(name).map_err(|error| match error {
            wardian_store::Error::Volume(VolumeError::Unknown { name }) => Error::UnknownVolume(name),
            error => Error::store("volume")(error),
        })?;
        tracing::info!(name, "volume.removed");
        Ok(())
    }

    fn prune_volumes(&self) -> Result<Vec<String>> {
        let unused: Vec<_> = self.used_volumes()?.into_iter().filter(|used| used.by.is_empty()).collect();
        let mut removed = Vec::new();
        for Used { volume, .. } in unused {
            match self.remove_volume(&volume.name) {
                Ok(()) => removed.push(volume.name),
                // A container, or another removal, was faster.
                Err(Error::VolumeInUse { .. } | Error::UnknownVolume(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(removed)
    }
}

impl Engine {
    /// Returns all named volumes, by name.
    ///
    /// # Errors
    /// The store cannot list them.
    pub async fn volumes(&self) -> Result<Vec<Used>> {
        self.with_volumes(Shared::used_volumes).await
    }

    /// Returns one volume.
    ///
    /// # Errors
    /// There is none of this name.
    pub async fn volume(&self, name: &str) -> Result<Used> {
        check(name)?;
        let all = self.volumes().await?;
        all.into_iter()
            .find(|used| used.volume.name == name)
            .ok_or_else(|| Error::UnknownVolume(name.to_owned()))
    }

    /// Returns the path of a volume's data on the host.
    pub fn volume_path(&self, name: &str) -> PathBuf {
        self.shared.store.volume_path(name)
    }

    /// Makes a volume; one that is there stays as it is.
    ///
    /// # Errors
    /// The name is invalid, or the store cannot make it.
    pub async fn make_volume(&self, name: &str) -> Result<()> {
        check(name)?;
        let name = name.to_owned();
        self.with_volumes(move |shared| shared.volume(&name).map(drop).map_err(Error::store("volume"))).await
    }

    /// Removes a volume; its files are deleted later.
    ///
    /// # Errors
    /// A container uses it, there is none of this name, or the store cannot remove it.
    pub async fn remove_volume(&self, name: &str) -> Result<()> {
        check(name)?;
        let name = name.to_owned();
        self.with_volumes(move |shared| shared.remove_volume(&name)).await
    }

    /// Removes all volumes that no container uses. Returns their names.
    ///
    /// # Errors
    /// The store cannot list them, or remove one: those before it are gone.
    pub async fn prune_volumes(&self) -> Result<Vec<String>> {
        self.with_volumes(Shared::prune_volumes).await
    }

    async fn with_volumes<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Shared) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let shared = self.shared.clone();
        let done = tokio::task::spawn_blocking(move || work(&shared)).await;
        done.map_err(Error::task("volumes"))?
    }
}
