//! Peas: processes with a root file system of their own, from their start to what they leave.

use crate::age::{changed_since_boot, since_boot};
use crate::assemble::{Parts, assemble, network_files, shm_bytes};
use crate::container::Container;
use crate::container::pea::{Pea, pea_cgroup};
use crate::container::record::Record;
use crate::destroy::milliseconds;
use crate::error::Whose;
use crate::failpoints::Point;
use crate::history::{Kind, Operation, Timeline};
use crate::keeper::Keeper;
use crate::process::Process;
use crate::run::{connect, payload};
use crate::spec::{BindMount, ProcessSpec};
use crate::{Engine, Error, Result, Shared, mounts};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use wardian_runtime::bundle::Settings;
use wardian_runtime::cgroup;
use wardian_runtime::cgroup::devices::Devices;
use wardian_runtime::wire::{Exec, Feature, Run};
use wardian_store::Image;
use wardian_sys::failpoint;
use wardian_sys::namespace;

impl Engine {
    /// Starts a pea.
    pub(crate) async fn start_pea(
        &self,
        container: &Arc<Container>,
        keeper: &Keeper,
        process: &Process,
        spec: ProcessSpec,
        exec: Exec,
    ) -> Result<()> {
        let image =
            self.image("creating-volume", spec.image.as_deref().unwrap_or_default(), &spec.pull).await?;
        self.prepare_limit(&image, spec.limits.map(|limits| limits.disk).unwrap_or_default()).await?;
        let shared = self.shared.clone();
        let theirs = container.clone();
        let pea = uuid::Uuid::new_v4().simple().to_string();
        let (rootfs_id, its_keeper) = (pea.clone(), keeper.clone());
        let limits = spec.limits.unwrap_or(container.record().limits);
        let prepared = tokio::task::spawn_blocking(move || {
            prepare_pea(&shared, &theirs, &its_keeper, &spec, &image, exec, &rootfs_id)
        })
        .await;
        let answer = match prepared.map_err(Error::task("pea")).flatten() {
            Ok((payload, parts)) => {
                process.needs_cleaning();
                let made = Pea { rootfs: pea.clone(), made_ns: since_boot() };
                container.add_pea(process.id(), made);
                let run = Run {
                    id: process.id().to_owned(),
                    exec: payload.as_fd(),
                    pea: Some(parts.boxed.as_fds()),
                    place: parts.place.as_fds(),
                };
                let answer = async {
                    let asked = keeper.run(run).await?;
                    failpoint::reach(Point::PeaAsked);
                    asked.answer().await
                };
                let answer = answer.await;
                failpoint::reach(Point::PeaAnswered);
                connect(process, keeper, answer).await.map_err(|error| error.under(&limits))
            }
            Err(error) => Err(error),
        };
        if answer.is_err() {
            container.take_pea(process.id());
            clean_pea(&self.shared, &container.id, &pea);
        }
        answer
    }

    /// Cleans up after a pea whose process has ended: kills what the pea has left running, releases its root
    /// file system, then reports the end.
    pub(crate) fn after_pea(&self, container: &Arc<Container>, process: &Process) {
        let Some(pea) = container.take_pea(process.id()) else { return };
        let timeline = Timeline::begin();
        failpoint::reach(Point::PeaEnded);
        let (shared, container, process) = (self.shared.clone(), container.clone(), process.clone());
        let (its_container, its_process, phases) = (container.clone(), process.clone(), timeline.clone());
        let cleaning = tokio::task::spawn_blocking(move || {
            // The OOM-kill count is lost when the cgroup is removed.
            if pea.is_out_of_memory(&shared, &its_container.id) {
                let save = |record: &Record| shared.records.save(record);
                // The update is refused if the container is being destroyed; then nobody reads the flag.
                drop(its_container.update(|record| record.out_of_memory = true, save));
            }
            clean_pea_as(&shared, &its_container.id, &pea.rootfs, &phases);
            its_process.cleaned();
        });
        let engine = self.clone();
        tokio::spawn(async move {
            let (id, handle) = (container.id.as_str(), container.handle.as_str());
            let slow = engine.look_if_slow(Kind::Pea, id, Some(process.id()), container.keeper_pid());
            // The keeper unmounts meanwhile, and no client waits for that. A keeper of an earlier version does not
            // tell how long it took, nor does one that is gone.
            let keeper = container.any_keeper();
            let unmounting = async { keeper?.unmounted(process.id()).await.ok() };
            let (cleaned, unmounted) = tokio::join!(cleaning, unmounting);
            if let Some(us) = unmounted {
                timeline.beside("unmount", milliseconds(us));
            }
            let failed = cleaned.err().map(|error| Error::task("pea")(error).to_string());
            let operation = timeline.operation(Kind::Pea, handle, id, failed);
            engine.shared.history.add(Operation { process: Some(process.id().to_owned()), ..operation });
            drop(slow);
        });
    }

    /// Releases the root file systems of peas whose process has ended, and takes up the other peas.
    pub(crate) fn restore_peas(&self, container: &Arc<Container>) {
        for pea in self.shared.records.peas(&container.id) {
            let record = self.shared.records.path(&container.id).join("peas").join(&pea);
            let process = self.shared.records.process_of_pea(&container.id, &pea);
            let process = process.and_then(|id| container.process(&id).ok());
            match process.filter(|p| p.status().is_none()) {
                Some(process) => {
                    process.needs_cleaning();
                    let made_ns = changed_since_boot(&record);
                    container.add_pea(process.id(), Pea { rootfs: pea, made_ns });
                }
                None => clean_pea(&self.shared, &container.id, &pea),
            }
        }
    }

    /// Removes cgroups of peas with limits of their own that have no record any more: an earlier server was
    /// killed after it had removed the record and before it had removed the cgroup.
    pub(crate) fn sweep_cgroups_of_peas(&self) {
        for name in self.shared.cgroups.list() {
            let Some((id, pea)) = name.split_once('.') else { continue };
            if !self.shared.records.peas(id).iter().any(|known| known == pea) {
                self.shared.cgroups.kill(&name);
                self.shared.remove_cgroup_later(name);
            }
        }
    }
}

type PreparedPea = (OwnedFd, Parts);

fn prepare_pea(
    shared: &Shared,
    container: &Container,
    keeper: &Keeper,
    spec: &ProcessSpec,
    image: &Image,
    mut exec: Exec,
    pea: &str,
) -> Result<PreparedPea> {
    let record = container.record();
    exec.env = image.config.env.iter().chain(&exec.env).cloned().collect();
    if let Some((uid, gid)) = spec.user.split_once(':')
        && (uid.parse::<u32>().is_err() || gid.parse::<u32>().is_err())
    {
        return Err(Error::Invalid(format!("parse-user: '{}' is not a valid uid:gid", spec.user)));
    }
    shared.records.pea_begins(&container.id, pea, &spec.id).map_err(Error::system("pea"))?;
    failpoint::reach(Point::PeaRecorded);
    // A pea's cgroup is below its container's, or, with limits of its own, beside it.
    let cgroup = pea_cgroup(&container.id, pea, spec.limits.is_some());
    let mut limits = spec.limits.map_or_else(cgroup::Limits::default, Into::into);
    if spec.limits.is_some() && limits.pids == 0 {
        limits.pids = shared.config.default_pids;
    }
    // Below the container's cgroup its device rules apply already.
    let devices = spec.limits.is_some().then(|| Devices::from(record.privileged));
    let entry = shared.cgroups.make(&cgroup, limits, devices)?;
    failpoint::reach(Point::PeaCgroup);
    let dir = shared.records.path(&container.id);
    let confined = keeper.has(Feature::Confinement);
    let init = container.init().ok_or_else(|| Error::Invalid("the container is not running".to_owned()))?;
    let settings = Settings {
        privileged: record.privileged,
        joins: Some(init),
        cgroups_path: format!("/{}/{cgroup}", shared.cgroups.top()),
        no_new_privileges: exec.no_new_privileges,
        memory_bytes: limits.memory_bytes,
        cpu_shares: limits.cpu_shares,
        shm_bytes: shm_bytes(shared.config.shm_bytes, spec.limits.unwrap_or(record.limits).memory_bytes),
        pids: limits.pids,
        earlier: !confined,
        ..shared.settings(record.range)
    };
    // The keeper bind-mounts the container's hosts and resolv.conf into its peas. For a keeper of an earlier
    // version they are bind-mounted from the run directory.
    let files = network_files(&dir);
    let mut binds = spec.bind_mounts.clone();
    let files: &[BindMount] = if confined { &files } else { &[] };
    if !confined {
        binds.extend(network_files(&dir));
    }
    // A user namespace made only for its id mapping: the container's own one could be opened only by way of a
    // pid, which may be reused.
    let maps = shared.ids.maps(record.range);
    let own = record.range.map(|_| namespace::user(&maps, &maps)).transpose();
    let own = own.map_err(Error::system("namespaces"))?;
    let owner = shared.root_of(record.range, own.as_ref().unwrap_or(&shared.idmap));
    let owner = (!record.privileged).then_some(owner);
    let config = dir.join("peas").join(format!("{pea}.json"));
    // A pea is in its container's cgroup namespace, and is shown that cgroup, not its own.
    let shown = !record.privileged && keeper.has(Feature::Mounts);
    let v1_mounts = if shown { shared.cgroups.v1_mounts(&container.id) } else { Vec::new() };
    let files = (files, false);
    let rootfs = wardian_store::RootfsSpec { image, owner, limit: spec.limits.unwrap_or_default().disk };
    let root = (pea, Whose::Pea(container.handle.clone()));
    let binds = (&*mounts::of_pea(&binds), &*maps);
    let parts = assemble(shared, root, &rootfs, settings, binds, files, v1_mounts, entry, &config)?;
    failpoint::reach(Point::PeaRootfs);
    Ok((payload(&exec)?, parts))
}

/// Removes a pea's processes, record, root file system and cgroups. The last reference to the root file
/// system's mount was the keeper's.
pub fn clean_pea(shared: &Shared, container: &str, pea: &str) {
    clean_pea_as(shared, container, pea, &Timeline::begin());
}

fn clean_pea_as(shared: &Shared, container: &str, pea: &str, timeline: &Timeline) {
    let cgroups = [false, true].map(|own| pea_cgroup(container, pea, own));
    for cgroup in &cgroups {
        shared.cgroups.kill(cgroup);
    }
    timeline.ended("kill");
    shared.records.pea_ends(container, pea);
    timeline.ended("forget");
    failpoint::reach(Point::PeaCleaning);
    shared.store.release_rootfs(pea, Some(pea));
    timeline.ended("release");
    for cgroup in cgroups {
        shared.remove_cgroup_later(cgroup);
    }
}
