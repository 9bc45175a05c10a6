//! What `GET /wardian/info` tells of the server; wardian's own.

use serde::{Deserialize, Serialize};

/// The server: what it is set to, and what it has.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServerInfo {
    /// Its version.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// The directory of its store.
    pub root: String,
    /// Its run directory.
    pub run: String,
    /// The kernel's release.
    pub kernel: String,
    /// `v1` or `v2`: where the controllers are.
    pub cgroups: String,
    /// The driver of disk limits.
    pub disk_driver: String,
    /// `bridge`, `none`, `plugin` or `cni`.
    pub network: String,
    /// What containers may have, or have to do with: `privileged`, `id-ranges`, `no-new-privileges`.
    pub features: Vec<String>,
    /// Its containers.
    pub containers: Counts,
    /// Its images.
    pub store: StoreInfo,
    /// What it knows of registries.
    pub registries: RegistryInfo,
}

/// Containers by their state.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counts {
    /// Those in which something runs.
    pub running: usize,
    /// Those in which nothing does.
    pub stopped: usize,
}

/// What is in the store.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StoreInfo {
    /// Images with a name.
    pub images: usize,
    /// Layers.
    pub layers: usize,
    /// Bytes of all layers on the disk.
    pub layers_bytes: u64,
    /// Layers that a power cut may cost: they are not known to be on the disk yet.
    pub fragile_layers: usize,
    /// Layers that no container gets, because they may be damaged.
    pub suspect_layers: usize,
    /// Directories and files that wait for their deletion.
    pub trash: usize,
    /// Bytes that are left on the file system.
    pub available_bytes: u64,
}

/// What the server knows of registries.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RegistryInfo {
    /// The file of settings; empty: there is none.
    pub conf: String,
    /// Those whose certificate is not verified, by the server's own settings.
    pub insecure: Vec<String>,
}
