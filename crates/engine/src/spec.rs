//! Requests to the engine: plain data, no wire format.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;
use wardian_network::Order;
use wardian_store::{DiskLimit, Login, Pull};

/// A request for a container.
#[derive(Debug, Clone, Default)]
pub struct ContainerSpec {
    /// Empty: the engine makes one up (UUIDv4).
    pub handle: String,
    /// Image URI; empty: the configured default.
    pub image: String,
    /// On what terms the image is had from a registry.
    pub pull: PullTerms,
    /// Container root is host root. Off by default.
    pub privileged: bool,
    /// `K=V`, given to every process (not to peas).
    pub env: Vec<String>,
    /// Free key-value pairs.
    pub properties: BTreeMap<String, String>,
    /// Host directories or files shown inside.
    pub bind_mounts: Vec<BindMount>,
    /// Named volumes shown inside.
    pub volumes: Vec<VolumeMount>,
    /// File systems in memory.
    pub tmpfs: Vec<Tmpfs>,
    /// The request comes of a command line: errors and warnings about mounts name its flags.
    pub by_flags: bool,
    /// Resource limits; zero means none.
    pub limits: Limits,
    /// The container's network.
    pub network: Order,
    /// The signal that a stop begins with.
    pub stop_signal: StopSignal,
    /// How long the container lives without a call; zero: the server's default.
    pub grace_time: Duration,
}

/// The signal that a stop of a container begins with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum StopSignal {
    /// TERM, whatever the image says: Garden's.
    #[default]
    Term,
    /// The image's, or else TERM.
    OfImage,
    /// The one with this number.
    Number(i32),
}

/// Limits of a container or a pea; zero means none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Bytes of memory, swap included.
    pub memory_bytes: u64,
    /// Relative CPU weight in v1 shares.
    pub cpu_shares: u64,
    /// Number of processes.
    pub pids: u64,
    /// Space of the root file system.
    pub disk: DiskLimit,
}

/// On what terms an image is had from a registry.
#[derive(Debug, Clone, Default)]
pub struct PullTerms {
    /// When a registry is asked. `None`: for an address of a registry as the server is configured, for a name never.
    pub when: Option<Pull>,
    /// As whom; `None`: with the logins of the host.
    pub login: Option<Login>,
}

/// A host path shown inside a container.
#[derive(Debug, Clone, Default)]
pub struct BindMount {
    /// Absolute path on the host.
    pub source: PathBuf,
    /// Absolute path in the container; made when missing.
    pub destination: PathBuf,
    /// Whether the container may write.
    pub writable: bool,
    /// Whether files have the owners inside that they have on the host, root among them: an idmapped mount.
    pub idmap: bool,
}

/// A named volume shown inside a container; it is made at its first use.
#[derive(Debug, Clone, Default)]
pub struct VolumeMount {
    /// Its name.
    pub name: String,
    /// Absolute path in the container; made when missing.
    pub destination: PathBuf,
    /// Whether the container may write.
    pub writable: bool,
}

/// A file system in memory.
#[derive(Debug, Clone, Default)]
pub struct Tmpfs {
    /// Absolute path in the container; made when missing.
    pub destination: PathBuf,
    /// The most bytes of its files; zero: 64 MiB, or half of the memory limit if that is less.
    pub bytes: u64,
    /// The permission bits of its root directory.
    pub mode: u32,
    /// Whether programs in it can be executed.
    pub exec: bool,
}

/// A request for a process, or with `image` for a pea.
#[derive(Debug, Clone, Default)]
pub struct ProcessSpec {
    /// Empty: the engine makes one up (UUIDv4).
    pub id: String,
    /// Program, searched in the process's PATH when it has no `/`.
    pub path: String,
    /// Arguments without the program itself.
    pub args: Vec<String>,
    /// `K=V`.
    pub env: Vec<String>,
    /// What the image of the container adds; not with `image`.
    pub of_image: OfImage,
    /// Working directory; empty: the user's home.
    pub dir: String,
    /// `name`, `uid`, `uid:gid`, `name:group`; empty: root.
    pub user: String,
    /// `(resource name in lower case, soft = hard value)`, e.g. `("nofile", 1024)`.
    pub rlimits: Vec<(String, u64)>,
    /// A root file system of its own makes the process a pea.
    pub image: Option<String>,
    /// On what terms the image is had from a registry; only with `image`.
    pub pull: PullTerms,
    /// Only with `image`.
    pub bind_mounts: Vec<BindMount>,
    /// A pea's own limits beside the container's; only with `image`.
    pub limits: Option<Limits>,
    /// The size of the process's terminal; `None`: it has no terminal.
    pub tty: Option<Window>,
    /// Keep this many bytes of the newest output for those who ask for it later; 0: none.
    pub keep_output: u64,
    /// Destroy the container when the process has ended.
    pub remove_container: bool,
    /// Keep standard input open although nobody holds it open.
    pub hold_input: bool,
}

/// What of its container's image a process has where its spec says nothing. Garden's processes have nothing of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OfImage {
    /// Nothing.
    #[default]
    Nothing,
    /// The user and the working directory.
    Place,
    /// These, and the command: the entrypoint comes before `path` and `args`; without these the image's own arguments follow
    /// it (OCI image spec, "Conversion to OCI Runtime Configuration").
    Command,
}

/// What the image of a container says of its processes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Defaults {
    /// The program and its first arguments.
    pub entrypoint: Vec<String>,
    /// The arguments after it, unless there are others.
    pub command: Vec<String>,
    /// As [`ProcessSpec::user`].
    pub user: String,
    /// Empty: the root directory.
    pub working_dir: String,
    /// Directories that are meant for data. They are made in the root file system where they are missing.
    pub volumes: Vec<String>,
}

/// Size of a terminal in characters; 0 is taken for the usual 80 or 24.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Window {
    /// Width.
    pub columns: u16,
    /// Height.
    pub rows: u16,
}

impl From<Window> for wardian_runtime::wire::Window {
    fn from(window: Window) -> Self {
        let or = |value, usual| if value == 0 { usual } else { value };
        Self { columns: or(window.columns, 80), rows: or(window.rows, 24) }
    }
}
