//! Containers: their life from create to destroy, their processes and peas, their properties.
//!
//! The only crate that knows store and runtime at once. `create`, `run`, `destroy`, `restore` are a file each.

mod bounds;
mod container;
mod create;
mod destroy;
mod error;
mod events;
mod gate;
mod grace;
mod history;
mod ids;
mod image;
mod instance;
mod keepers;
mod ledger;
mod leftover;
mod metrics;
mod output;
mod pool;
mod process;
mod pump;
mod record;
mod reset;
mod restore;
mod run;
mod slow;
mod spec;
mod sweeper;

pub use bounds::shown;
pub use error::{Error, Result};
pub use events::{Event, Heard, Listener, What};
pub use grace::Call;
pub use history::{Kind, Life, Operation, Step};
pub use ids::IdRanges;
pub use image::for_client;
pub use metrics::Metrics;
pub use output::{Output, Stream, Waits};
pub use process::{Input, Process};
pub use reset::{Removed, clear, reset};
pub use spec::{
    BindMount, Capacity, ContainerSpec, Info, Limits, Listed, ProcessSpec, Properties, Property, Window,
};
/// The most root file systems that are mounted ahead for an image.
pub use wardian_store::ready::MOST as MOST_READY_ROOTFS;

use container::Container;
use create::chain;
use events::Events;
use gate::Gate;
use history::History;
use ids::{Home, IdRange, Ids};
use keepers::Keepers;
use pool::Pool;
use record::{Phase, Records};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use sweeper::{Remains, Sweeper};
use wardian_runtime::bundle::Settings;
use wardian_runtime::cgroup::{Cgroups, Hierarchies};
use wardian_store::{Owner, Store};
use wardian_sys::directory::Directory;
use wardian_sys::namespace;

/// Where an engine keeps its things.
#[derive(Debug, Clone)]
pub struct Config {
    /// The store (images, layers, root file systems), on disk.
    pub root: PathBuf,
    /// Live state, on a tmpfs.
    pub run: PathBuf,
    /// Image used when a container names none.
    pub default_rootfs: Option<String>,
    /// The keeper binary; executed from a sealed memory file.
    pub keeper: PathBuf,
    /// The file with the certificate that clients are shown, for the record that `wardian doctor` reads.
    pub certificate: Option<PathBuf>,
    /// 0: no bound.
    pub max_containers: u64,
    /// Collect garbage when the store's layers take more bytes than this.
    pub gc_threshold: Option<u64>,
    /// How layers are fetched from servers.
    pub remote: wardian_store::Fetching,
    /// What one layer, and one image, may take.
    pub limits: wardian_store::Limits,
    /// Root file systems mounted ahead for each image that was asked for lately, at most [`MOST_READY_ROOTFS`]; 0: none.
    pub ready_rootfs: usize,
    /// Set no_new_privs on every process of unprivileged containers.
    pub no_new_privileges: bool,
    /// Percent of a processor that one share entitles to; 0: from the host's processors and memory.
    pub cpu_entitlement_per_share: f64,
    /// Destroy the containers that an earlier server has left, before anybody is served.
    pub destroy_on_start: bool,
    /// Grace time of containers that come without one; zero: they stay.
    pub default_grace_time: Duration,
    /// Creates at work at a time; 0: as many as suit the host's processors.
    pub max_concurrent_creates: usize,
    /// Creates that wait for their turn; more are refused.
    pub max_queued_creates: usize,
    /// Refuse to make containers whose root is the host's.
    pub disable_privileged: bool,
    /// Give the users of each unprivileged container host ids of their own; none: all share Garden's mapping.
    pub id_ranges: Option<IdRanges>,
    /// Most processes of containers, and of peas with limits of their own, that come without such a limit; 0: no bound.
    pub default_pids: u64,
    /// Bytes of /dev/shm in a container without a memory limit; 0: half of the host's memory, the kernel's own bound.
    pub shm_bytes: u64,
}

/// The engine; clones share it.
#[derive(Debug, Clone)]
pub struct Engine {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: Config,
    boot_id: String,
    records: Records,
    store: Store,
    cgroups: Cgroups,
    keepers: Keepers,
    pairs: Pool<Home>,
    privileged_pairs: Pool<Home>,
    /// A user namespace of the common mapping: what idmapped layers are made with.
    idmap: OwnedFd,
    ids: Ids,
    /// See [`wardian_runtime::bundle::host_masks`].
    masks: Vec<String>,
    containers: Mutex<HashMap<String, Arc<Container>>>,
    /// See [`Shared::weighing`].
    weighing: Mutex<()>,
    history: History,
    /// See [`Config::cpu_entitlement_per_share`].
    entitlement_per_share: f64,
    gate: Gate,
    images: image::Gates,
    /// No container goes by itself any more.
    closing: AtomicBool,
    events: Events,
    sweeper: Arc<Sweeper>,
    /// Held while a slow operation is looked at.
    looking: Arc<tokio::sync::Mutex<()>>,
    /// One server per run directory; held until the end.
    _lock: OwnedFd,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.sweeper.close();
    }
}

impl Shared {
    /// Held while it is found out whether there is room for what is large, until it has its place.
    fn weighing(&self) -> MutexGuard<'_, ()> {
        self.weighing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Container>>> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The image that is meant: an empty address, or one that is only an app, stands on the default image.
    fn address(&self, image: &str) -> Result<String> {
        if !image.is_empty() && !image.starts_with('?') {
            return Ok(image.to_owned());
        }
        match &self.config.default_rootfs {
            Some(default) => Ok(format!("{default}{image}")),
            None => Err(Error::Invalid("no image given, and the server has no --default-rootfs".to_owned())),
        }
    }

    /// What all bundles of containers with these ids share.
    fn settings(&self, range: Option<IdRange>) -> Settings {
        let mapping = self.ids.maps(range).iter().map(|m| (m.inside, m.outside, m.size)).collect();
        Settings { mapping, masks: self.masks.clone(), ..Settings::default() }
    }

    /// Whose a container's root file systems are: of the common mapping, or of the user namespace `own`.
    fn root_of<'a>(&'a self, range: Option<IdRange>, own: &'a OwnedFd) -> Owner<'a> {
        let id = self.ids.root(range);
        let userns = if range.is_some() { own.as_fd() } else { self.idmap.as_fd() };
        Owner { userns, uid: id, gid: id, shared: range.is_none() }
    }

    /// A cgroup can be removed once its last member has been reaped, by whoever has to.
    fn remove_cgroup_later(&self, id: String) {
        self.sweeper.add(Remains::Cgroup { id, tries: 0 });
    }
}

/// Pairs and keepers ready at any time: enough for a burst of a scale-up on a small host.
const READY: usize = 12;

impl Engine {
    /// Open the store, find the containers that live, undo what was half made.
    ///
    /// # Errors
    /// Anything missing on the host, said in words.
    pub async fn start(config: Config) -> Result<Self> {
        let shared = tokio::task::spawn_blocking(move || open(config)).await;
        let shared = shared.map_err(|e| Error::failed("start", e))??;
        reap_strangers().map_err(|e| Error::failed("start", e))?;
        let engine = Self { shared: Arc::new(shared) };
        engine.shared.sweeper.start(&engine.shared).map_err(|e| Error::failed("start", e))?;
        let found = engine.shared.records.all(&engine.shared.boot_id);
        engine.restore(found).await;
        if engine.shared.config.destroy_on_start {
            engine.destroy_all().await;
        }
        let containers: Vec<Arc<Container>> = engine.shared.lock().values().cloned().collect();
        containers.iter().for_each(|container| engine.strap(container));
        Ok(engine)
    }

    /// Stop serving: containers live on.
    pub async fn shutdown(&self) {
        self.shared.closing.store(true, Ordering::Release);
        // No request is left; whoever looks at a slow one is about to end, and would leave a trace of itself.
        drop(tokio::time::timeout(Duration::from_secs(5), self.shared.looking.lock()).await);
        let shared = self.shared.clone();
        let close = move || {
            shared.sweeper.close();
            shared.store.close();
            shared.keepers.close();
            let containers: Vec<String> = shared.lock().values().map(|c| c.id.clone()).collect();
            remove_strays(&shared.cgroups, &containers.iter().map(String::as_str).collect::<Vec<_>>());
            if containers.is_empty() {
                shared.cgroups.close();
                wardian_store::run::leave(&shared.config.run);
            }
        };
        drop(tokio::task::spawn_blocking(close).await);
    }

    fn find(&self, handle: &str) -> Result<Arc<Container>> {
        self.shared.lock().get(handle).cloned().ok_or_else(|| Error::UnknownHandle(handle.to_owned()))
    }

    /// What the host can give.
    ///
    /// # Errors
    /// When the host does not say.
    pub fn capacity(&self) -> Result<Capacity> {
        let fail = |e: rustix::io::Errno| Error::failed("capacity", e);
        let disk = rustix::fs::statvfs(&self.shared.config.root).map_err(fail)?;
        let memory = rustix::system::sysinfo();
        Ok(Capacity {
            memory_bytes: memory.totalram * u64::from(memory.mem_unit),
            disk_bytes: disk.f_blocks * disk.f_frsize,
            // Schedulers take 0 for "no room".
            max_containers: match self.shared.config.max_containers {
                0 => u64::MAX,
                bound => bound,
            },
        })
    }

    /// How many containers there are, those in the making included.
    pub fn count(&self) -> usize {
        self.shared.lock().len()
    }

    /// The created containers that have all these properties, by handle (Garden §2.1 rules for `garden.state`).
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

    /// What it says of itself.
    ///
    /// # Errors
    /// Unknown handle.
    pub fn info(&self, handle: &str) -> Result<Info> {
        let container = self.find(handle)?;
        let record = container.record();
        if record.phase == Phase::Creating {
            return Err(Error::UnknownHandle(handle.to_owned()));
        }
        let broken = container.broken();
        Ok(Info {
            state: if record.stopped || broken.is_some() { "stopped" } else { "active" }.to_owned(),
            events: container
                .is_out_of_memory(&self.shared)
                .then(|| "Out of memory".to_owned())
                .into_iter()
                .chain(broken.map(|reason| format!("broken: {reason}")))
                .chain(self.shared.store.writeback_error(&container.id))
                .collect(),
            container_path: self.shared.records.path(&container.id).to_string_lossy().into_owned(),
            properties: Properties(record),
        })
    }

    /// What its last create and destroy were made of; it need not live any more.
    ///
    /// # Errors
    /// Unknown handle, or one that has been forgotten.
    pub fn history(&self, handle: &str) -> Result<Life> {
        self.shared.history.life(handle).ok_or_else(|| Error::UnknownHandle(handle.to_owned()))
    }

    /// Hear of everything that happens from now on.
    pub fn listen(&self) -> Listener {
        self.shared.events.listen()
    }

    /// All properties; `None` when the handle is unknown.
    pub fn properties(&self, handle: &str) -> Option<Properties> {
        self.find(handle).ok().map(|container| Properties(container.record()))
    }

    /// One property.
    ///
    /// # Errors
    /// When it is not there (or the container is not: as the real server, which does not tell).
    pub fn property(&self, handle: &str, key: &str) -> Result<Property> {
        let properties = self.properties(handle).filter(|properties| properties.contains_key(key));
        let properties = properties.ok_or_else(|| Error::UnknownProperty(key.to_owned()))?;
        Ok(Property { properties, key: key.to_owned() })
    }

    /// Set one.
    ///
    /// # Errors
    /// Unknown handle, or too much with those that are there.
    pub fn set_property(&self, handle: &str, key: &str, value: &str) -> Result<()> {
        let insert = |record: &mut record::Record| {
            bounds::property(&record.properties, key, value)?;
            record.properties.insert(key.to_owned(), value.to_owned());
            Ok(())
        };
        let container = self.find(handle)?;
        // A copy tells what it would be: nearly all records are small.
        let before = container.record();
        let mut after = record::Record::clone(&before);
        after.properties.insert(key.to_owned(), value.to_owned());
        let bytes = after.beyond();
        // What becomes less needs no room.
        let grows = bytes > before.beyond();
        let _weighing = grows.then(|| self.shared.weighing());
        if grows {
            let containers = self.shared.lock();
            let others = containers.values().filter(|other| !Arc::ptr_eq(other, &container));
            bounds::beside(bytes, others.map(|other| other.record().beyond()))?;
        }
        container.try_update(insert, |record| self.shared.records.save(record))
    }

    /// Remove one; it need not be there.
    ///
    /// # Errors
    /// Unknown handle.
    pub fn remove_property(&self, handle: &str, key: &str) -> Result<()> {
        let remove = |record: &mut record::Record| drop(record.properties.remove(key));
        self.find(handle)?.update(remove, |record| self.shared.records.save(record))
    }
}

/// A tar on its way into or out of a container. Dropping it unfinished cancels it.
#[derive(Debug)]
pub struct Transfer<P> {
    /// The tar. `None` once taken.
    pub pipe: Option<P>,
    task: tokio::task::JoinHandle<Result<()>>,
    /// Its drop cancels the transfer: the keeper kills the helper, even one that is stopped.
    _wanted: tokio::sync::oneshot::Sender<std::convert::Infallible>,
}

impl<P> Transfer<P> {
    /// How it went, after the pipe has been dropped or read to its end.
    ///
    /// # Errors
    /// What the container's side says.
    pub async fn finish(self) -> Result<()> {
        let Self { pipe, task, _wanted } = self;
        drop(pipe);
        task.await.map_err(|e| Error::failed("transfer", e))?
    }
}

fn open(config: Config) -> Result<Shared> {
    let (dir, lock) = instance::open(&config.run)?;
    let run = config.run.clone();
    let opened = open_all(config, &dir, lock);
    // A start that fails must leave nothing, unless there are containers for the next one to find.
    if opened.is_err() && wardian_store::run::is_unused(&run) {
        if let Ok(cgroups) = open_cgroups(&instance::tag(&dir)) {
            remove_strays(&cgroups, &[]);
            cgroups.close();
        }
        wardian_store::run::leave(&run);
    }
    opened
}

fn open_cgroups(tag: &str) -> Result<Cgroups> {
    let mountinfo = std::fs::read("/proc/self/mountinfo").map_err(|e| Error::failed("mountinfo", e))?;
    let hierarchies = Hierarchies::parse(&mountinfo).map_err(|e| Error::failed("mountinfo", e))?;
    Cgroups::open(hierarchies, tag).map_err(|e| Error::failed("cgroups", e))
}

fn open_all(config: Config, dir: &Directory, lock: OwnedFd) -> Result<Shared> {
    // Of a server that was killed while it looked at something slow.
    wardian_recorder::sweep();
    let boot_id = record::boot_id().map_err(|e| Error::failed("boot id", e))?;
    let records = Records::open(&config.run).map_err(|e| Error::failed("run directory", e))?;
    // Whoever does not know what it means would end its container.
    if let Some((path, version)) = records.later(&boot_id) {
        let text = format!(
            "{} is of version {version}, this server understands up to {}: start a later one, or `wardian reset`",
            path.display(),
            record::VERSION
        );
        return Err(Error::failed("records", text));
    }
    let tag = own_tag(dir)?;
    instance::write(dir, &tag, &config.root, config.certificate.as_deref())?;
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
        remote: config.remote.clone(),
        limits: config.limits,
        ready_rootfs: config.ready_rootfs,
        ..wardian_store::Config::new(config.root.clone(), config.run.clone())
    };
    let store =
        Store::serve(&place, &|id| live.contains(id)).map_err(|e| Error::failed("store", chain(&e)))?;
    let cgroups = open_cgroups(&tag)?;
    // Of keepers that had no container yet when an earlier server was killed.
    let known: Vec<&str> = found.iter().map(|(id, _)| id.as_str()).collect();
    remove_strays(&cgroups, &known);
    if let Some(error) = cgroups.prepare().map_err(|e| Error::failed("cgroups", e))? {
        tracing::error!(error, "start.device-rules");
    }
    let ids = ids::own(config.id_ranges)?;
    ids::warn(&ids, config.max_containers, READY as u64);
    for record in found.iter().filter_map(|(_, record)| record.as_ref()) {
        ids.keep(record.owner, record.range);
    }
    let fail = |e: std::io::Error| Error::failed("namespaces", e);
    let maps = ids.maps(None);
    let idmap = namespace::user(&maps, &maps).map_err(fail)?;
    let keepers = Keepers::start(&config.keeper, &config.run.join("pool"), cgroups.clone(), READY)
        .map_err(|e| Error::failed("keepers", e))?;
    let theirs = ids.clone();
    let privileged = || Ok(Home { pair: namespace::pair(&[], &[], 0)?, lease: None });
    let creates = match config.max_concurrent_creates {
        0 => gate::sensible(),
        given => given,
    };
    let queued = config.max_queued_creates;
    let gate = Gate::new("creates", "--max-concurrent-creates or --max-queued-creates", creates, queued);
    Ok(Shared {
        pairs: Pool::new("pairs", READY, move || theirs.make()).map_err(fail)?,
        privileged_pairs: Pool::new("privileged-pairs", 1, privileged).map_err(fail)?,
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
        ids,
        masks: wardian_runtime::bundle::host_masks(Path::new("/sys")),
        containers: Mutex::default(),
        weighing: Mutex::default(),
        history: History::default(),
        gate,
        images: image::Gates::new(queued),
        closing: AtomicBool::new(false),
        events: Events::default(),
        sweeper: Arc::default(),
        looking: Arc::default(),
        _lock: lock,
    })
}

/// The tag of this instance. That of an earlier version stays as long as there are containers in its cgroups.
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

/// Remove the cgroups of keepers without a container; they end by themselves once nobody talks to them.
fn remove_strays(cgroups: &Cgroups, known: &[&str]) {
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

/// Be the parent of orphans (processes of a container whose keeper died), and of ended keepers.
fn reap_strangers() -> std::io::Result<()> {
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    let mut signals = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::child())?;
    tokio::spawn(async move {
        while signals.recv().await.is_some() {
            wardian_sys::children::reap_all();
        }
    });
    Ok(())
}
