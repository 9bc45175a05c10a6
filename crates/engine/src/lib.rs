//! Containers: their life from create to destroy, their processes and peas, their properties.

mod error;
mod process;
mod spec;

pub use error::{Error, Result};
pub use process::{Output, Process};
pub use spec::{BindMount, Capacity, ContainerSpec, Info, Limits, ProcessSpec};

use std::collections::BTreeMap;
use std::path::PathBuf;
use tokio::net::unix::pipe;

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
    /// 0: no bound.
    pub max_containers: u64,
    /// Set no_new_privs on every process.
    pub no_new_privileges: bool,
}

/// The engine; clones share it.
#[derive(Debug, Clone)]
pub struct Engine {}

impl Engine {
    /// Open the store, find the containers that live, undo what was half made.
    pub async fn start(_config: Config) -> Result<Self> {
        Ok(Self {})
    }
    /// Stop serving: containers live on.
    pub async fn shutdown(&self) {}
    /// What the host can give.
    pub fn capacity(&self) -> Result<Capacity> {
        Err(Error::Invalid("no".into()))
    }
    /// Handles of created containers that have all these properties (Garden §2.1 rules for `garden.state`).
    pub fn list(&self, _filter: &BTreeMap<String, String>) -> Vec<String> {
        Vec::new()
    }
    /// Make a container; its handle.
    pub async fn create(&self, spec: ContainerSpec) -> Result<String> {
        Ok(spec.handle)
    }
    /// Destroy it with everything in it.
    pub async fn destroy(&self, _handle: &str) -> Result<()> {
        Ok(())
    }
    /// End its processes (TERM, wait, KILL; `kill`: KILL at once); the container stays.
    pub async fn stop(&self, _handle: &str, _kill: bool) -> Result<()> {
        Ok(())
    }
    /// What it says of itself.
    pub fn info(&self, handle: &str) -> Result<Info> {
        Err(Error::UnknownHandle(handle.into()))
    }
    /// All properties; `None` when the handle is unknown.
    pub fn properties(&self, _handle: &str) -> Option<BTreeMap<String, String>> {
        None
    }
    /// One property.
    pub fn property(&self, _handle: &str, key: &str) -> Result<String> {
        Err(Error::UnknownProperty(key.into()))
    }
    /// Set one.
    pub fn set_property(&self, _handle: &str, _key: &str, _value: &str) -> Result<()> {
        Ok(())
    }
    /// Remove one.
    pub fn remove_property(&self, _handle: &str, _key: &str) -> Result<()> {
        Ok(())
    }
    /// Start a process or a pea.
    pub async fn run(&self, _handle: &str, spec: ProcessSpec) -> Result<Process> {
        Ok(Process { id: spec.id })
    }
    /// Find a process, running or ended.
    pub async fn attach(&self, _handle: &str, id: &str) -> Result<Process> {
        Err(Error::UnknownProcess(id.into()))
    }
    /// Unpack a tar inside the container: write it to the pipe, drop the pipe, then `finish`.
    pub async fn stream_in(&self, handle: &str, _user: &str, _destination: &str) -> Result<Transfer<pipe::Sender>> {
        Err(Error::UnknownHandle(handle.into()))
    }
    /// Pack a path inside the container: read the tar from the pipe to its end, then `finish`.
    pub async fn stream_out(&self, handle: &str, _user: &str, _source: &str) -> Result<Transfer<pipe::Receiver>> {
        Err(Error::UnknownHandle(handle.into()))
    }
}

/// A tar on its way into or out of a container. Dropping it unfinished cancels it.
#[derive(Debug)]
pub struct Transfer<P> {
    /// The tar. `None` once taken.
    pub pipe: Option<P>,
}

impl<P> Transfer<P> {
    /// How it went, after the pipe has been dropped or read to its end.
    pub async fn finish(self) -> Result<()> {
        Ok(())
    }
}
