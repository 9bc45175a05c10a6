//! The start of an engine: finds or makes everything on the host that the engine needs.

use crate::admission::gate::{self, Gate};
use crate::container::record::{self, Phase, Record, Records};
use crate::events::Events;
use crate::history::History;
use crate::process::files::Files;
use crate::process::kept::Room;
use crate::ready::READY;
use crate::ready::ids::{self, Home};
use crate::ready::keepers::Keepers;
use crate::ready::pool::Pool;
use crate::shared::Shared;
use crate::{Config, Result, image, instance, metrics};
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use wardian_network::{Found, Networks};
use wardian_runtime::cgroup::{self, Cgroups, Hierarchies};
use wardian_store::Store;
use wardian_sys::directory::Directory;
use wardian_sys::{namespace, procfs};

/// The most bytes of kept output on a host with much memory, and the part of the memory on others.
const KEPT_OUTPUT: usize = 256 << 20;
const KEPT_OUTPUT_PART: usize = 16;

/// Why a server cannot start on this host.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel's list of mounts cannot be read.
    #[error("mountinfo: {0}")]
    Unread(#[source] std::io::Error),
    /// The kernel's list of mounts is not understood.
    #[error("mountinfo: {0}")]
    Mountinfo(#[from] procfs::Error),
    /// The cgroup hierarchies cannot be used.
    #[error("cgroups: {0}")]
    Cgroups(#[from] cgroup::Error),
    /// A record of a later version: this server does not understand it, and would end its container.
    #[error(
        "records: {path} is of version {version}, this server understands up to {}: start a later one, or `wardian reset`",
        record::VERSION
    )]
    Later {
        /// The record's path.
        path: PathBuf,
        /// The version of its format.
        version: u64,
    },
}

pub fn open(config: Config) -> Result<Shared> {
    let (dir, lock) = instance::open(&config.run)?;
    let run = config.run.clone();
    let opened = open_all(config, &dir, lock);
    // A start that fails must leave nothing, unless there are containers for the next one to find.
    if opened.is_err() && wardian_store::run::is_unused(&run) {
        drop(wardian_network::remove(&instance::tag(&dir)));
        if let Ok(cgroups) = open_cgroups(&instance::tag(&dir)) {
            remove_strays(&cgroups, &[]);
            cgroups.close();
        }
        wardian_store::run::leave(&run);
    }
    opened
}

pub fn open_cgroups(tag: &str) -> std::result::Result<Cgroups, Error> {
    let mountinfo = std::fs::read("/proc/self/mountinfo").map_err(Error::Unread)?;
    let hierarchies = Hierarchies::parse(&mountinfo)?;
    Ok(Cgroups::open(hierarchies, tag)?)
}

fn open_all(config: Config, dir: &Directory, lock: OwnedFd) -> Result<Shared> {
    // Removes the trace instance of a server that was killed while it recorded a slow operation.
    wardian_recorder::sweep();
    let boot_id = record::boot_id().map_err(crate::Error::system("boot id"))?;
    let records = Records::open(&config.run).map_err(crate::Error::system("run directory"))?;
    // A server that does not understand a record would end its container.
    if let Some((path, version)) = records.later(&boot_id) {
        return Err(Error::Later { path, version }.into());
    }
    let tag = own_tag(dir)?;
    let port = instance::next_port(dir);
    instance::write(dir, &tag, &config.root, config.certificate.as_deref(), port)?;
    let found = records.all(&boot_id);
    let mut live: BTreeSet<String> = BTreeSet::new();
    for (id, record) in &found {
        if record.as_ref().is_some_and(|r| r.phase == Phase::Created) {
            live.extend(records.peas(id));
            live.insert(id.clone());
        }
    }
    let place = wardian_store::Config {
        gc_threshold: config.gc_threshold,
        registries: config.registries.clone(),
        remote: config.remote.clone(),
        limits: config.limits,
        ready_rootfs: config.ready_rootfs,
        disk_driver: config.disk_driver,
        ..wardian_store::Config::new(config.root.clone(), config.run.clone())
    };
    let store = Store::serve(&place, &|id| live.contains(id)).map_err(crate::Error::store("store"))?;
    let cgroups = open_cgroups(&tag)?;
    // Cgroups of keepers that had no container yet when an earlier server was killed.
    let known: Vec<&str> = found.iter().map(|(id, _)| id.as_str()).collect();
    remove_strays(&cgroups, &known);
    if let Some(error) = cgroups.prepare()? {
        tracing::error!(error, "start.device-rules");
    }
    let ids = ids::own(config.id_ranges)?;
    ids::warn(&ids, config.max_containers, READY as u64);
    for record in found.iter().filter_map(|(_, record)| record.as_ref()) {
        ids.keep(record.owner, record.range);
    }
    let fail = crate::Error::system("namespaces");
    let maps = ids.maps(None);
    let idmap = namespace::user(&maps, &maps).map_err(fail)?;
    let keepers = Keepers::start(&config.keeper, &config.run.join("pool"), cgroups.clone(), READY)
        .map_err(crate::Error::system("keepers"))?;
    let networks = Networks::open(&tag, &config.network, networks_of(&records, &found), port)?;
    let (theirs, links) = (ids.clone(), networks.clone());
    let home = move || theirs.make(&links);
    let links = networks.clone();
    let privileged = move || Home::new(namespace::pair(&[], &[], 0)?, None, &links);
    let links = networks.clone();
    let subnet = move || links.subnet().map_err(std::io::Error::other);
    let creates = match config.max_concurrent_creates {
        0 => gate::sensible(),
        given => given,
    };
    let queued = config.max_queued_creates;
    let gate = Gate::new("creates", Some("--max-concurrent-creates"), creates, queued);
    // The store makes one at a time.
    let limits_gate = Gate::new("disk limits of new sizes", None, 1, queued);
    let output_files = Files::open(&config.root, config.output_files, &known);
    let kept_output = Room::new(config.kept_output.unwrap_or_else(|| kept_output(&config.run)));
    let history = History::open(&config.run, &boot_id);
    Ok(Shared {
        pairs: Pool::new("pairs", READY, home).map_err(fail)?,
        privileged_pairs: Pool::new("privileged-pairs", 1, privileged).map_err(fail)?,
        subnets: Pool::later("subnets", READY, subnet).map_err(crate::Error::system("subnets"))?,
        networks,
        entitlement_per_share: match config.cpu_entitlement_per_share {
            given if given > 0.0 => given,
            _ => metrics::default_per_share(),
        },
        config,
        boot_id,
        records,
        store,
        cgroups,
        keepers,
        idmap,
        volumes: Mutex::default(),
        ids,
        masks: wardian_runtime::bundle::host_masks(Path::new("/sys")),
        containers: Mutex::default(),
        weighing: Mutex::default(),
        history,
        gate,
        limits_gate,
        images: image::Gates::new(queued),
        closing: AtomicBool::new(false),
        events: Events::default(),
        kept_output,
        output_files,
        sweeper: Arc::default(),
        looking: Arc::default(),
        _lock: lock,
    })
}

/// Returns how many bytes of output are kept unless it is said: a sixteenth of the memory, 256 MiB at most, and no more than half
/// of the run directory's file system, where the records are too.
fn kept_output(run: &Path) -> u64 {
    let bytes = wardian_sys::memory::budget(KEPT_OUTPUT, KEPT_OUTPUT_PART) as u64;
    rustix::fs::statvfs(run).map_or(bytes, |fs| bytes.min(fs.f_blocks.saturating_mul(fs.f_frsize) / 2))
}

/// Returns the networks of the containers of an earlier server.
fn networks_of(records: &Records, found: &[(String, Option<Record>)]) -> Vec<Found> {
    let records_of = |(id, record): &(String, Option<Record>)| {
        let record = record.as_ref()?;
        let network = record.network.clone()?;
        let rules = records.egress(id).unwrap_or_else(|error| {
            tracing::error!(handle = record.handle, id, %error, "restore.egress-rules");
            Vec::new()
        });
        Some(Found { network, handle: record.handle.clone(), rules })
    };
    found.iter().filter_map(records_of).collect()
}

/// Returns the tag of this instance. The short tag of an earlier version is kept as long as there are
/// containers in its cgroups.
fn own_tag(dir: &Directory) -> Result<String> {
    let tag = instance::tag(dir);
    if !instance::is_short(&tag) || !wardian_store::run::is_unused(dir.path()) {
        return Ok(tag);
    }
    let earlier = open_cgroups(&tag)?;
    remove_strays(&earlier, &[]);
    earlier.close();
    Ok(instance::long_tag(dir.path()))
}

/// Removes the cgroups of keepers without a container; such keepers end by themselves once their connection
/// is closed.
pub fn remove_strays(cgroups: &Cgroups, known: &[&str]) {
    let mut strays = cgroups.list();
    strays.retain(|id| !known.contains(&id.split('.').next().unwrap_or(id)));
    for _ in 0..200 {
        strays.retain(|id| !cgroups.remove(id));
        if strays.is_empty() {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    tracing::warn!(?strays, "cgroup.left");
}

/// Makes this process the subreaper (prctl(2), `PR_SET_CHILD_SUBREAPER`) of processes of containers whose
/// keeper died, and reaps them and ended keepers.
pub fn reap_strangers() -> std::io::Result<()> {
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    let mut signals = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::child())?;
    tokio::spawn(async move {
        while signals.recv().await.is_some() {
            wardian_sys::children::reap_all();
        }
    });
    Ok(())
}
