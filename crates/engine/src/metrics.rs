//! Resource usage of containers and peas, read from their cgroups.

use crate::age::since_boot;
use crate::container::Container;
use crate::container::lifecycle::Event;
use crate::container::pea::Pea;
use crate::container::record::Record;
use crate::error::Whose;
use crate::{DiskLimit, Engine, Error, Limits, Result};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;
use wardian_network::Network;
use wardian_runtime::stats::{Files, Stalls, Stats};

/// Containers that one thread reads: another thread for fewer is not worth its wake-up.
const CHUNK: usize = 64;

/// The resource usage of a container or a pea.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    /// Memory, processor time, processes.
    pub stats: Stats,
    /// Bytes that the container has received and sent; `None`: loopback alone, or a pea.
    pub traffic: Option<(u64, u64)>,
    /// Bytes on the disk that it wrote: of this moment where the file system counts them, otherwise as last measured in
    /// the background.
    pub disk_exclusive_bytes: u64,
    /// Inodes that it wrote; `None`: nobody counts them.
    pub disk_exclusive_inodes: Option<u64>,
    /// Bytes of its image's layers.
    pub disk_image_bytes: u64,
    /// Most processes; 0: no limit.
    pub pids_max: u64,
    /// The time since it was made.
    pub age: Duration,
    /// Nanoseconds of processor time it is entitled to by its shares and its age; 0 for a pea.
    pub cpu_entitlement: u64,
}

/// The bytes that a process's network namespace has received and sent, without those of loopback.
fn traffic(pid: i32) -> Option<(u64, u64)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/net/dev")).ok()?;
    wardian_sys::procfs::traffic(&text)
}

/// What a container uses, and its limits.
#[derive(Debug, Clone)]
pub struct Usage {
    /// Its handle.
    pub handle: String,
    /// Its id.
    pub id: String,
    /// What it uses.
    pub metrics: Metrics,
    /// Its limits, as [`Engine::limits`] returns them.
    pub limits: Limits,
    /// How long its tasks have waited for resources.
    pub stalls: Stalls,
}

type Peas = HashMap<String, (Arc<Container>, Pea)>;

impl Engine {
    /// Returns the usage of a container, or of the pea whose process has this id.
    ///
    /// # Errors
    /// Neither is known, or the cgroup cannot be read.
    pub async fn metrics(&self, handle: &str) -> Result<Metrics> {
        let (engine, handle) = (self.clone(), handle.to_owned());
        let read = move || engine.read_metrics(&handle, &mut None);
        tokio::task::spawn_blocking(read).await.map_err(Error::task("metrics"))?
    }

    /// Returns the usage of several containers or peas.
    pub async fn bulk_metrics(&self, handles: &[String]) -> BTreeMap<String, Result<Metrics>> {
        let chunks = handles.chunks(CHUNK).map(|handles| {
            let (engine, handles) = (self.clone(), handles.to_vec());
            tokio::task::spawn_blocking(move || {
                let mut peas = None;
                let read = |handle: String| {
                    let metrics = engine.read_metrics(&handle, &mut peas);
                    (handle, metrics)
                };
                handles.into_iter().map(read).collect::<Vec<_>>()
            })
        });
        let chunks: Vec<_> = chunks.collect();
        let mut all = BTreeMap::new();
        for chunk in chunks {
            // The panic of a task is logged; the handles of its chunk are missing from the result.
            all.extend(chunk.await.unwrap_or_default());
        }
        all
    }

    /// Returns what each container uses, by handle; without those that are being created or destroyed. It reads cgroups,
    /// one container after the other.
    pub fn usages(&self) -> impl Iterator<Item = Usage> + '_ {
        let mut all: Vec<Arc<Container>> = self.shared.lock().values().cloned().collect();
        all.sort_unstable_by(|a, b| a.handle.cmp(&b.handle));
        all.into_iter().filter_map(|container| {
            let metrics = self.read_metrics(&container.handle, &mut None).ok()?;
            let limits = self.limits(&container.handle).ok()?;
            let stalls = container.files(&self.shared).stalls();
            Some(Usage {
                handle: container.handle.clone(),
                id: container.id.clone(),
                metrics,
                limits,
                stalls,
            })
        })
    }

    /// Reads one usage. `peas` is filled once a handle is not that of a container.
    fn read_metrics(&self, handle: &str, peas: &mut Option<Peas>) -> Result<Metrics> {
        let unknown = || Error::UnknownHandle(handle.to_owned());
        let container = self.find(handle).ok();
        if let Some((container, record, broken)) =
            container.and_then(|c| c.look().ok().map(|(record, _, broken)| (c, record, broken)))
        {
            let stats = stats(handle, &[container.files(&self.shared)])?;
            let shares = record.limits.cpu_shares;
            let age = age(&record);
            return Ok(Metrics {
                stats,
                traffic: match &record.network {
                    // Its link is known to those programs alone. The pid of a broken container may be another
                    // process's by now.
                    Some(Network::Outside(_)) if broken.is_none() => container.init().and_then(traffic),
                    Some(Network::Outside(_)) | None => None,
                    Some(network) => self.shared.networks.traffic(network),
                },
                pids_max: record.limits.pids,
                age,
                cpu_entitlement: entitlement(shares, self.shared.entitlement_per_share, age),
                ..self.disk(&container.id)
            });
        }
        let (container, pea) = peas.get_or_insert_with(|| self.peas()).get(handle).ok_or_else(unknown)?;
        let files = pea.files(&self.shared, &container.id);
        Ok(Metrics {
            stats: stats(handle, &[&files[0], &files[1]])?,
            age: Duration::from_nanos(since_boot().saturating_sub(pea.made_ns)),
            ..self.disk(&pea.rootfs)
        })
    }

    fn disk(&self, rootfs: &str) -> Metrics {
        let measured = self.shared.store.measured(rootfs);
        Metrics {
            disk_exclusive_bytes: measured.exclusive_bytes,
            disk_exclusive_inodes: measured.exclusive_inodes,
            disk_image_bytes: measured.image_bytes,
            ..Metrics::default()
        }
    }

    /// Returns all living peas by the ids of their processes. Ids are unique only within a container: of two
    /// peas with the same id one is returned.
    fn peas(&self) -> Peas {
        let containers: Vec<Arc<Container>> = self.shared.lock().values().cloned().collect();
        let mut all = Peas::new();
        for container in containers {
            all.extend(container.peas().into_iter().map(|(id, pea)| (id, (container.clone(), pea))));
        }
        all
    }

    /// Returns the limits of a container's create; the shares as this host shows them, since cgroup v2 knows
    /// weights only.
    ///
    /// # Errors
    /// Unknown handle.
    pub fn limits(&self, handle: &str) -> Result<Limits> {
        let (record, ..) = self.find(handle)?.look()?;
        let cpu_shares = self.shared.cgroups.shown_shares(record.limits.cpu_shares);
        Ok(Limits { cpu_shares, ..record.limits })
    }

    /// Gives a living container another limit on the space of its root file system. It does not wait for the disk.
    ///
    /// # Errors
    /// Unknown handle; the driver cannot enforce the limit, or not change it so.
    pub async fn limit_disk(&self, handle: &str, limit: DiskLimit) -> Result<()> {
        let container = self.find(handle)?;
        let shared = self.shared.clone();
        let set = move || {
            let change = |record: &mut Record| {
                let whose = Whose::Container(record.handle.clone());
                let limited = shared.store.limit_rootfs(&container.id, limit);
                limited.map_err(Error::writable("disk limit", whose))?;
                record.limits.disk = limit;
                Ok(())
            };
            container.try_update(Event::Change, change, |record| shared.records.save(record))
        };
        tokio::task::spawn_blocking(set).await.map_err(Error::task("disk limit"))?
    }
}

/// Reads the first of these cgroups that exists.
fn stats(handle: &str, places: &[&Files]) -> Result<Stats> {
    for files in places {
        match files.read() {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            read => return read.map_err(Error::system("metrics")),
        }
    }
    // The container or pea has ended meanwhile.
    Err(Error::UnknownHandle(handle.to_owned()))
}

fn age(record: &Record) -> Duration {
    if record.made_ns > 0 {
        return Duration::from_nanos(since_boot().saturating_sub(record.made_ns));
    }
    // A record of an earlier server has only the wall-clock time.
    let made = record.made.as_ref().map_or(0.0, |made| (made.began_ms + made.ms) / 1e3);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    now.saturating_sub(Duration::try_from_secs_f64(made).unwrap_or(now))
}

/// Returns the default entitlement: percent of a processor for one share, which is all processors over all
/// memory in MiB, for a platform that gives a container a share for each MiB.
pub fn default_per_share() -> f64 {
    let memory = rustix::system::sysinfo();
    let mebibytes = (memory.totalram * u64::from(memory.mem_unit)) >> 20;
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    processors as f64 * 100.0 / (mebibytes.max(1)) as f64
}

fn entitlement(shares: u64, per_share: f64, age: Duration) -> u64 {
    (shares as f64 * (per_share / 100.0) * age.as_nanos() as f64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The figures of a real Garden server: two processors, 24105 MiB.
    #[test]
    fn entitlement_is_shares_by_age() {
        let per_share = 200.0 / 24105.0;
        assert_eq!(entitlement(100, per_share, Duration::from_nanos(120_468_817)), 999_533);
        assert_eq!(entitlement(0, per_share, Duration::from_secs(1)), 0);
    }
}
