//! Pauses: all processes of a container and its peas are frozen, and go on later as if nothing had been.

use crate::container::Container;
use crate::container::pea::pea_cgroup;
use crate::events::What;
use crate::{Engine, Error, Result};
use rustix::process::Signal;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::RwLockReadGuard;
use tracing::Instrument as _;

/// How long a pause waits for starts of processes that are under way: one that is frozen half started would hold its
/// keeper up.
const STARTS: Duration = Duration::from_secs(10);

impl Container {
    /// The container's cgroup, and those of its peas that are beside it.
    fn groups(&self) -> Vec<String> {
        let peas = self.peas().into_iter().map(|(_, pea)| pea_cgroup(&self.id, &pea.rootfs, true));
        std::iter::once(self.id.clone()).chain(peas).collect()
    }

    /// Waits until no pause is under way, and keeps the next one from beginning.
    ///
    /// # Errors
    /// The container is paused.
    pub async fn going(&self) -> Result<RwLockReadGuard<'_, ()>> {
        let starting = self.starts.read().await;
        if self.is_paused() { Err(Error::Paused(self.handle.clone())) } else { Ok(starting) }
    }
}

impl Engine {
    /// Freezes all processes of a container and its peas; nothing to do for one that is paused.
    ///
    /// # Errors
    /// Unknown or broken container; the host has no freezer; or a process cannot be frozen now, and then none is.
    pub async fn pause(&self, handle: &str) -> Result<()> {
        // A client that goes must not leave it half done.
        let (engine, handle) = (self.clone(), handle.to_owned());
        let task = async move { engine.pause_now(&handle).await };
        tokio::spawn(task.in_current_span()).await.map_err(Error::task("pause"))?
    }

    async fn pause_now(&self, handle: &str) -> Result<()> {
        let container = self.find(handle)?;
        container.keeper()?;
        let waiting = tokio::time::timeout(STARTS, container.starts.write());
        let busy =
            Error::GivenUp { during: "pause", why: "the start of a process takes too long, try it again" };
        let _nothing_starts = waiting.await.map_err(|_| busy)?;
        container.keeper()?;
        if container.is_paused() {
            return Ok(());
        }
        // From here on nothing is started: of what a pea would leave behind the next step would not know.
        container.set_paused(true);
        let (shared, groups) = (self.shared.clone(), container.groups());
        let freeze = move || {
            for (at, group) in groups.iter().enumerate() {
                // A pea without limits of its own has no such cgroup, and is below its container's.
                if at > 0 && !shared.cgroups.exists(group) {
                    continue;
                }
                if let Err(error) = shared.cgroups.freeze(group) {
                    groups[..at].iter().for_each(|group| drop(shared.cgroups.thaw(group)));
                    return Err(error);
                }
            }
            Ok(())
        };
        let frozen = tokio::task::spawn_blocking(freeze).await.map_err(Error::task("pause"));
        let frozen = frozen.and_then(|frozen| frozen.map_err(Error::Freezer));
        if frozen.is_err() {
            container.set_paused(false);
        } else {
            tracing::info!(handle, id = container.id, "pause.done");
            self.shared.events.tell(&container.handle, &container.id, What::Pause);
        }
        frozen
    }

    /// Lets a paused container go on; nothing to do for one that is not paused.
    ///
    /// # Errors
    /// Unknown or broken container, or the kernel refuses it.
    pub async fn unpause(&self, handle: &str) -> Result<()> {
        let container = self.find(handle)?;
        container.keeper()?;
        let engine = self.clone();
        let task = async move { engine.thaw(&container).await };
        tokio::spawn(task.in_current_span()).await.map_err(Error::task("unpause"))?
    }

    /// Thaws a container if it is paused.
    pub(crate) async fn thaw(&self, container: &Arc<Container>) -> Result<()> {
        if !container.is_paused() {
            return Ok(());
        }
        // A pause that is under way is waited for.
        let _nothing_starts = container.starts.write().await;
        if !container.is_paused() {
            return Ok(());
        }
        let (shared, groups) = (self.shared.clone(), container.groups());
        let thaw = move || groups.iter().try_for_each(|group| shared.cgroups.thaw(group));
        let thawed = tokio::task::spawn_blocking(thaw).await.map_err(Error::task("unpause"))?;
        thawed.map_err(Error::Freezer)?;
        container.set_paused(false);
        tracing::info!(handle = container.handle, id = container.id, "pause.over");
        self.shared.events.tell(&container.handle, &container.id, What::Unpause);
        Ok(())
    }

    /// Thaws a container that is about to be torn down, so that its processes can end; they are killed before, and do
    /// nothing any more.
    pub(crate) async fn kill_frozen(&self, container: &Arc<Container>) {
        if !container.is_paused() {
            return;
        }
        let (shared, groups, except) = (self.shared.clone(), container.groups(), container.untouchable());
        let kill = move || {
            for group in &groups {
                shared.cgroups.signal(group, &except, Signal::KILL);
            }
        };
        drop(tokio::task::spawn_blocking(kill).await);
        if let Err(error) = self.thaw(container).await {
            tracing::warn!(handle = container.handle, id = container.id, %error, "pause.still-frozen");
        }
    }

    /// Finds out whether an earlier server has paused a container, and does again for its peas what a server that was
    /// killed may not have done.
    pub(crate) fn restore_pause(&self, container: &Container) {
        if !self.shared.cgroups.is_frozen(&container.id) {
            return;
        }
        container.set_paused(true);
        for group in container.groups().iter().skip(1).filter(|group| self.shared.cgroups.exists(group)) {
            if let Err(error) = self.shared.cgroups.freeze(group) {
                tracing::warn!(handle = container.handle, %error, "restore.pea-not-paused");
            }
        }
    }
}
