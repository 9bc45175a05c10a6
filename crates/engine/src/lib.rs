//! Containers: their life from create to destroy, their processes and peas, their properties.
//!
//! The only crate that knows store and runtime at once.
//!
//! | folder or file | what is in it |
//! |---|---|
//! | `start`, `shared` | an engine, and what all its parts share |
//! | `create`, `destroy`, `stop`, `pause`, `restore`, `grace` | an operation each |
//! | `run`, `pea`, `transfer`, `network` | what is done in a living container |
//! | `assemble` | what a container and a pea are launched from |
//! | `container/` | one container: its state, its record, its clock, its peas |
//! | `process/` | one process: its input, its output, and the memory that output takes |
//! | `ready/` | namespaces and keepers made ahead |
//! | `admission/` | bounds of requests, and queues for what is expensive |
//! | `overall`, `inspect`, `seen`, `metrics`, `events`, `history`, `slow` | what clients and operators are told |
//! | `sweeper`, `reset` | what is removed afterwards |

mod admission;
mod age;
mod assemble;
mod container;
mod create;
mod destroy;
mod error;
mod events;
mod failpoints;
mod grace;
mod history;
mod image;
mod inspect;
mod instance;
mod keeper;
mod metrics;
mod mounts;
mod network;
mod overall;
mod pause;
mod pea;
mod process;
mod ready;
mod reset;
mod restore;
mod run;
mod seen;
mod shared;
mod slow;
mod spec;
mod start;
mod stop;
mod sweeper;
mod top;
mod transfer;
mod volumes;

pub use admission::bounds::shown;
pub use container::{Condition, Seen};
pub use error::{Error, Result, Whose};
pub use events::{Event, Heard, Listener, What};
pub use failpoints::NAMES as FAILPOINTS;
pub use grace::Call;
pub use history::{Kind, Life, Operation, Step};
pub use image::{Bringing, for_client};
pub use inspect::{Capacity, Info, Listed, Properties, Property};
pub use metrics::{Metrics, Usage};
pub use overall::Overall;
pub use process::about::{About, Ending};
pub use process::files::LEAST as LEAST_OUTPUT_FILES;
pub use process::kept::{
    Found as FoundOutput, Kept, MOST as MOST_KEPT, Reader as KeptReader, note as kept_note,
};
pub use process::output::{Output, Stream, Waits};
pub use process::{Input, Process};
pub use ready::ids::{IdRanges, highest as highest_id};
pub use reset::{Cleared, Removed, clear, reset};
pub use seen::{Mounted, Overview};
pub use spec::{
    BindMount, ContainerSpec, Defaults, Limits, OfImage, ProcessSpec, PullTerms, StopSignal, Tmpfs,
    VolumeMount, Window,
};
pub use stop::Stop;
pub use top::{Row, Top};
pub use transfer::Transfer;
pub use volumes::Used as UsedVolume;
pub use wardian_network::egress::networks;
pub use wardian_network::{Bandwidth, Driver, Mapping, Network, Order, Protocol, Rule, Transport, Wanted};
/// The failpoints of the keeper.
pub use wardian_runtime::failpoints::NAMES as KEEPER_FAILPOINTS;
/// The most root file systems that are mounted ahead for an image.
pub use wardian_store::ready::MOST as MOST_READY_ROOTFS;
pub use wardian_store::{
    Change, ChangeKind, Changes, DiskDriver, DiskLimit, LayerProgress, Login, Pull, Scope,
};

use container::Container;
use shared::Shared;
use start::{open, reap_strangers, remove_strays};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// The configuration of an engine.
#[derive(Debug, Clone)]
pub struct Config {
    /// The store (images, layers, root file systems), on disk.
    pub root: PathBuf,
    /// Live state, on a tmpfs.
    pub run: PathBuf,
    /// Image used when a container names none.
    pub default_rootfs: Option<String>,
    /// When a registry is asked for an image whose address is of one, unless the request says it.
    pub pull: Pull,
    /// The keeper binary; executed from a sealed memory file.
    pub keeper: PathBuf,
    /// The server's certificate file, noted in the instance record, where `wardian doctor` reads it.
    pub certificate: Option<PathBuf>,
    /// The most containers at a time; 0: no bound.
    pub max_containers: u64,
    /// Collect garbage when the store's layers take more bytes than this.
    pub gc_threshold: Option<u64>,
    /// How layers are fetched from servers.
    pub remote: wardian_store::Fetching,
    /// What this host knows of registries.
    pub registries: wardian_store::Known,
    /// The most that one layer, and one image, may take.
    pub limits: wardian_store::Limits,
    /// Root file systems mounted ahead for each recently used image, at most [`MOST_READY_ROOTFS`]; 0: none.
    pub ready_rootfs: usize,
    /// The driver of disk limits; `None`: the first one that works on the store's file system.
    pub disk_driver: Option<DiskDriver>,
    /// Set no_new_privs on every process of unprivileged containers.
    pub no_new_privileges: bool,
    /// Percent of a processor that one share entitles to; 0: from the host's processors and memory.
    pub cpu_entitlement_per_share: f64,
    /// Destroy the containers of an earlier server before any client is served.
    pub destroy_on_start: bool,
    /// Grace time of containers that are created without one; zero: none, they stay.
    pub default_grace_time: Duration,
    /// The most concurrent creates; 0: as many as suit the host's processors.
    pub max_concurrent_creates: usize,
    /// The most creates that queue; more are refused.
    pub max_queued_creates: usize,
    /// Refuse to create containers whose root is the host's.
    pub disable_privileged: bool,
    /// Gives the users of each unprivileged container host ids of their own; `None`: all share Garden's
    /// mapping.
    pub id_ranges: Option<IdRanges>,
    /// The default limit of processes for containers, and for peas with limits of their own; 0: no bound.
    pub default_pids: u64,
    /// Which network containers get.
    pub network: wardian_network::Driver,
    /// Directories with network namespaces of the operator's, which clients may have containers created into.
    pub network_namespaces: Vec<PathBuf>,
    /// Bytes of /dev/shm in a container without a memory limit; 0: half of the host's memory, the kernel's own bound.
    pub shm_bytes: u64,
    /// The most bytes that the kept output of all processes takes; `None`: 256 MiB, or a sixteenth of the host's memory.
    pub kept_output: Option<u64>,
    /// The most bytes of files with a process's output, which are in the store's directory; 0: there are none.
    pub output_files: u64,
}

/// The engine; clones share it.
#[derive(Debug, Clone)]
pub struct Engine {
    shared: Arc<Shared>,
}

impl Engine {
    /// Opens the store, takes up the living containers of an earlier server, and undoes half-made ones.
    ///
    /// # Errors
    /// Something is missing on the host; the error names it.
    pub async fn start(config: Config) -> Result<Self> {
        let shared = tokio::task::spawn_blocking(move || open(config)).await;
        let shared = shared.map_err(Error::task("start"))??;
        reap_strangers().map_err(Error::system("start"))?;
        let engine = Self { shared: Arc::new(shared) };
        engine.shared.sweeper.start(&engine.shared).map_err(Error::system("start"))?;
        let found = engine.shared.records.all(&engine.shared.boot_id);
        engine.restore(found).await;
        if engine.shared.config.destroy_on_start {
            engine.destroy_all().await;
        }
        let containers: Vec<Arc<Container>> = engine.shared.lock().values().cloned().collect();
        containers.iter().for_each(|container| engine.strap(container));
        engine.look_for_default_rootfs();
        engine.watch_network();
        Ok(engine)
    }

    /// Stops serving; the containers live on.
    pub async fn shutdown(&self) {
        self.shared.closing.store(true, Ordering::Release);
        // No request is left. A recording of a slow operation is about to end; cut off, it would leave its
        // trace instance behind.
        drop(tokio::time::timeout(Duration::from_secs(5), self.shared.looking.lock()).await);
        let shared = self.shared.clone();
        let close = move || {
            shared.history.close();
            shared.sweeper.close();
            shared.store.close();
            shared.keepers.close();
            shared.close_networks();
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
}
