//! What is live: the containers of a server, its store, and the host.
//!
//! All numbers are of the moment, except the rates, which are means since the look before.

mod garden;
mod host;
mod nowhere;
mod usage;

pub use garden::Garden;
pub use nowhere::Nowhere;

use serde::Serialize;
use std::future::Future;
use std::pin::Pin;
use tokio::sync::mpsc;

/// A source of live data.
pub trait Live: Send + Sync + 'static {
    /// Tells what is there, again and again, until it is dropped. It is called when somebody begins to listen, and dropped
    /// when nobody does any more.
    fn tell<'a>(&'a self, to: mpsc::Sender<News>) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>>;
}

/// What a source tells.
#[derive(Debug, Clone, PartialEq)]
pub enum News {
    /// What is there now.
    Seen(Box<Seen>),
    /// Something happened.
    Happened(Happening),
}

/// Everything at one moment.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Seen {
    /// The moment, in ms since 1970.
    pub at_ms: u64,
    /// The server; `None`: it does not answer.
    pub server: Option<Server>,
    /// Why it does not.
    pub down: Option<String>,
    /// The host; `None`: the server is on another one.
    pub host: Option<Host>,
    /// The containers.
    #[serde(skip)]
    pub rows: Vec<Row>,
}

/// The server and its store.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Server {
    /// Its address.
    pub address: String,
    /// Its version; empty: it does not tell, because it is no wardian.
    pub version: String,
    /// Release of its kernel.
    pub kernel: String,
    /// `v1` or `v2`.
    pub cgroups: String,
    /// The driver of disk limits.
    pub disk_driver: String,
    /// The store; `None`: the server does not tell.
    pub store: Option<Store>,
}

/// The store of a server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Store {
    /// Images with a name.
    pub images: usize,
    /// Layers; `None`: the server does not tell.
    pub layers: Option<usize>,
    /// Bytes of all layers.
    pub layers_bytes: u64,
    /// Layers that a power cut may cost: they are not durable yet.
    pub fragile: Option<usize>,
    /// Layers that are given to nobody after a write error.
    pub suspect: Option<usize>,
    /// Directories that wait for their deletion.
    pub trash: Option<usize>,
    /// Bytes that are left on the file system.
    pub available_bytes: u64,
}

/// The host.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Host {
    /// Its name.
    pub name: String,
    /// `Dirty` of /proc/meminfo, in bytes.
    pub dirty: u64,
    /// `Writeback` of /proc/meminfo, in bytes.
    pub writeback: u64,
    /// `MemAvailable` of /proc/meminfo, in bytes.
    pub available: u64,
    /// `MemTotal` of /proc/meminfo, in bytes.
    pub memory: u64,
    /// Percent of the time since the look before in which some task waited for a disk, for memory, for a processor
    /// (/proc/pressure); `None`: the kernel does not tell.
    pub pressure: Pressure,
    /// One-minute load average.
    pub load: f64,
    /// Processors.
    pub cpus: usize,
}

/// Pressure stall information, in percent of time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Pressure {
    /// For a disk.
    pub io: Option<f64>,
    /// For memory.
    pub memory: Option<f64>,
    /// For a processor.
    pub cpu: Option<f64>,
}

/// A container. A limit of 0 is none; what is `None` is not known.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Row {
    /// Its id, which is never that of another one.
    pub id: String,
    /// Its handle.
    pub handle: String,
    /// The address of its image.
    pub image: String,
    /// Its state, as `wardian ps` tells it.
    pub state: String,
    /// Why it is broken.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Since when it has been in this state, in ms since 1970; 0: unknown.
    pub since_ms: u64,
    /// What runs in it, as ps(1) would show it.
    pub command: String,
    /// Its address in its network.
    pub address: String,
    /// Bytes of memory that count towards the limit.
    pub memory: u64,
    /// The limit of memory in bytes.
    pub memory_limit: u64,
    /// Bytes of its files that wait to be written to a disk (`file_dirty` or `dirty` of memory.stat).
    pub dirty: Option<u64>,
    /// Bytes that are being written.
    pub writeback: Option<u64>,
    /// Percent of one processor.
    pub cpu: Option<f64>,
    /// CPU shares.
    pub cpu_shares: u64,
    /// Bytes per second that it receives.
    pub rx: Option<u64>,
    /// Bytes per second that it sends.
    pub tx: Option<u64>,
    /// Bytes on the disk that it wrote.
    pub disk: u64,
    /// The limit of that.
    pub disk_limit: u64,
    /// Processes and threads.
    pub pids: u64,
    /// The most of them.
    pub pids_limit: u64,
    /// Pressure on it.
    pub pressure: Pressure,
}

/// An event.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Happening {
    /// When, in ms since 1970.
    pub at_ms: u64,
    /// `create`, `destroy`, `oom`, … as `wardian events` has it.
    pub what: String,
    /// The container's handle.
    pub handle: String,
    /// The container's id.
    pub id: String,
    /// The process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process: Option<String>,
    /// How it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<i32>,
    /// Why the container is broken, or the operation has failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Duration of a create or destroy in ms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ms: Option<f64>,
    /// The phases of a create or destroy: names and durations in ms.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub phases: Vec<(String, f64)>,
    /// So many events were lost, because the listener was too slow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lost: Option<u64>,
}
