//! The record of a container on tmpfs. The directory is authoritative, and readable with `cat`:
//!
//! ```text
//! <run>/containers/<id>/
//! ├── state.json            the record; its removal is the moment a container is gone
//! ├── config.json           the OCI bundle
//! ├── keeper.sock           the listening socket of its keeper
//! ├── egress.json           its egress rules, if it has any
//! ├── hosts, resolv.conf    the initial contents of the container's own files of these names
//! ├── processes/<n>.json    a process whose output is kept, or whose end ends the container; its output as <n>.output
//! └── peas/<root fs id>     holds the process id of a living pea; its bundle as <root fs id>.json
//! ```

use crate::Limits;
use crate::history::Operation;
use crate::process::about::About;
use crate::process::kept::Place;
use crate::ready::ids::IdRange;
use crate::spec::Defaults;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use wardian_network::{Network, Rule};
use wardian_sys::directory::Directory;

/// The record of a container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    /// Version of this format.
    pub version: u32,
    /// The container's unique id, which names its kernel objects, cgroups and directories.
    pub id: String,
    /// The container's name for clients.
    pub handle: String,
    /// `creating` or `created`.
    pub phase: Phase,
    /// The boot that the record is of: after a reboot it describes nothing.
    pub boot_id: String,
    /// Container root is host root.
    pub privileged: bool,
    /// Image and container environment, in this order.
    pub env: Vec<String>,
    /// The image's address without secrets, and its id; empty in records of earlier servers.
    #[serde(default)]
    pub image: (String, String),
    /// What the image says of processes; nothing in records of earlier servers.
    #[serde(default)]
    pub defaults: Defaults,
    /// Garden's properties.
    pub properties: BTreeMap<String, String>,
    /// A stop has ended the processes, and nothing was started since.
    pub stopped: bool,
    /// The number of the signal that a stop begins with; 0: TERM.
    #[serde(default)]
    pub stop_signal: i32,
    /// The create operation, once it is done; `None` in records of earlier servers.
    #[serde(default)]
    pub made: Option<Operation>,
    /// When the container was made, in nanoseconds since boot. 0 in records of earlier servers.
    #[serde(default)]
    pub made_ns: u64,
    /// The container's limits.
    #[serde(default)]
    pub limits: Limits,
    /// The OOM killer has killed a process of a pea that is gone by now.
    #[serde(default)]
    pub out_of_memory: bool,
    /// The owner of the container's user namespace. 0 in records of earlier servers, and for a container
    /// without one.
    #[serde(default)]
    pub owner: u32,
    /// The host ids of the container's users; `None`: the common mapping.
    #[serde(default)]
    pub range: Option<IdRange>,
    /// The names of its named volumes; none in records of earlier servers.
    #[serde(default)]
    pub volumes: Vec<String>,
    /// The container's network; `None` in records of earlier servers, and where there is loopback alone.
    #[serde(default)]
    pub network: Option<Network>,
}

impl Record {
    /// The number of the signal that a stop begins with.
    pub fn stop_signal(&self) -> i32 {
        if self.stop_signal == 0 { rustix::process::Signal::TERM.as_raw() } else { self.stop_signal }
    }

    /// See [`crate::admission::bounds::beyond`].
    pub fn beyond(&self) -> usize {
        crate::admission::bounds::beyond(&self.env, &self.properties, &self.defaults)
    }
}

/// The phase of a container's create.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// The create is not complete: the next server undoes it.
    Creating,
    /// The create is complete.
    Created,
}

/// The record.
const STATE: &str = "state.json";
/// The egress rules: there may be thousands, and the record is written often.
const EGRESS: &str = "egress.json";
/// The OCI bundle.
pub const CONFIG: &str = "config.json";

/// The directory with the records of peas, beside their bundles.
const PEAS: &str = "peas";
/// The directory with the records of processes, beside their output.
const PROCESSES: &str = "processes";
/// The most bytes of a record: requests are bounded, and so are the records that come of them.
const MOST: u64 = 64 << 20;

/// `<run>/containers`.
#[derive(Debug, Clone)]
pub struct Records {
    dir: Arc<Directory>,
    path: PathBuf,
}

impl Records {
    /// Opens the directory, and creates it if needed.
    pub fn open(run: &Path) -> io::Result<Self> {
        let path = run.join("containers");
        let this = Self { dir: Arc::new(wardian_store::run::private(&path)?), path };
        this.close_to_others()?;
        Ok(this)
    }

    /// Makes records and bundles readable by root alone: environments and properties hold secrets. Files of
    /// earlier servers, which left the mode to the umask, are corrected. Directories of other users are
    /// skipped: they belong to no container.
    fn close_to_others(&self) -> io::Result<()> {
        for name in self.dir.names()? {
            let Ok(container) = self.dir.existing(&name) else { continue };
            container.close_to_others(STATE);
            container.close_to_others(CONFIG);
            let Ok(peas) = container.existing(PEAS) else { continue };
            peas.names()?.iter().for_each(|name| peas.close_to_others(name));
        }
        Ok(())
    }

    /// Opens a container's directory.
    pub fn container(&self, id: &str) -> io::Result<Directory> {
        Ok(self.dir.child(id)?)
    }

    /// Returns the path of a container's directory.
    pub fn path(&self, id: &str) -> PathBuf {
        self.path.join(id)
    }

    /// Writes a record atomically, by a rename.
    pub fn save(&self, record: &Record) -> io::Result<()> {
        Ok(self.container(&record.id)?.write(STATE, &serde_json::to_vec_pretty(record)?)?)
    }

    /// Writes a container's egress rules.
    pub fn save_egress(&self, id: &str, rules: &[Rule]) -> io::Result<()> {
        Ok(self.container(id)?.write(EGRESS, &serde_json::to_vec(rules)?)?)
    }

    /// Reads a container's egress rules; none where there is no file of them.
    pub fn egress(&self, id: &str) -> io::Result<Vec<Rule>> {
        match self.container(id)?.read(EGRESS, MOST) {
            Ok(text) => Ok(serde_json::from_slice(&text)?),
            Err(error) if error.is_missing() => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes a record: the commit point of a destroy.
    pub fn forget(&self, id: &str) -> io::Result<()> {
        match self.container(id).and_then(|dir| Ok(dir.remove(STATE)?)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    /// Removes what is left of a directory without a record.
    pub fn clear(&self, id: &str) {
        drop(self.dir.remove(id));
    }

    /// Returns the ids of all directories, with those records that are readable and of this boot.
    pub fn all(&self, boot_id: &str) -> Vec<(String, Option<Record>)> {
        let mut all = Vec::new();
        for name in self.dir.names().unwrap_or_default() {
            // A directory that is not named by an id is removed: a cgroup of that name could be one that all
            // containers need.
            if !is_id(&name) {
                drop(self.dir.remove(&name));
                continue;
            }
            let text = self.state(&name).unwrap_or_default();
            let id = name.to_string_lossy().into_owned();
            let record = serde_json::from_slice::<Record>(&text).ok();
            all.push((id, record.filter(|r| r.boot_id == boot_id && (1..=VERSION).contains(&r.version))));
        }
        all
    }

    /// Finds a record of this boot that a later version has written, which this server does not understand.
    /// Returns its path and version.
    pub fn later(&self, boot_id: &str) -> Option<(PathBuf, u64)> {
        self.dir.names().unwrap_or_default().iter().find_map(|name| {
            let record: serde_json::Value = serde_json::from_slice(&self.state(name)?).ok()?;
            let version = record["version"].as_u64().filter(|version| *version > VERSION.into())?;
            (record["boot_id"] == boot_id).then(|| (self.path.join(name).join(STATE), version))
        })
    }

    fn state(&self, name: &OsString) -> Option<Vec<u8>> {
        self.dir.child(name).ok()?.read(STATE, MOST).ok()
    }

    /// Records a pea, before its root file system is made; `process` is the id of its process for clients.
    pub fn pea_begins(&self, id: &str, rootfs: &str, process: &str) -> io::Result<()> {
        Ok(self.container(id)?.private(PEAS)?.write(rootfs, process.as_bytes())?)
    }

    /// Removes the record of a pea: its root file system is trash from here on.
    pub fn pea_ends(&self, id: &str, rootfs: &str) {
        let Ok(peas) = self.container(id).and_then(|dir| Ok(dir.child(PEAS)?)) else { return };
        drop(peas.remove(format!("{rootfs}.json")));
        drop(peas.remove(rootfs));
    }

    /// Returns the ids of the root file systems of a container's peas.
    pub fn peas(&self, id: &str) -> Vec<String> {
        let peas = self.container(id).and_then(|dir| Ok(dir.child(PEAS)?.names()?)).unwrap_or_default();
        let names = peas.iter().map(|name| name.to_string_lossy().into_owned());
        names.filter(|name| !name.contains('.')).collect()
    }

    /// Returns the id, for clients, of a pea's process.
    pub fn process_of_pea(&self, id: &str, rootfs: &str) -> Option<String> {
        let peas = self.container(id).ok()?.child(PEAS).ok()?;
        String::from_utf8(peas.read(rootfs, MOST).ok()?).ok()
    }
}

impl Records {
    /// Writes the record of a process, which is the `number`th one of its container that has a record.
    pub fn save_process(&self, id: &str, number: u64, about: &About) -> io::Result<()> {
        let processes = self.container(id)?.private(PROCESSES)?;
        Ok(processes.write(&format!("{number}.json"), &serde_json::to_vec(about)?)?)
    }

    /// Removes the record of a process, and its output.
    pub fn forget_process(&self, id: &str, number: u64) {
        let Ok(processes) = self.container(id).and_then(|dir| Ok(dir.child(PROCESSES)?)) else { return };
        drop(processes.remove(format!("{number}.json")));
        drop(processes.remove(self.output(id, number).name));
    }

    /// Returns the records of a container's processes with their numbers, the oldest first.
    pub fn processes(&self, id: &str) -> Vec<(u64, About)> {
        let Ok(processes) = self.container(id).and_then(|dir| Ok(dir.child(PROCESSES)?)) else {
            return Vec::new();
        };
        let read = |name: &OsString| {
            let number = name.to_str()?.strip_suffix(".json")?.parse().ok()?;
            Some((number, serde_json::from_slice(&processes.read(name, MOST).ok()?).ok()?))
        };
        let mut all: Vec<_> = processes.names().unwrap_or_default().iter().filter_map(read).collect();
        all.sort_unstable_by_key(|(number, _)| *number);
        all
    }

    /// Returns where the kept output of a process is.
    pub fn output(&self, id: &str, number: u64) -> Place {
        Place { dir: self.path(id).join(PROCESSES), name: format!("{number}.output") }
    }
}

/// Whether a container can have this id: 32 hex digits.
fn is_id(name: &OsString) -> bool {
    name.len() == 32 && name.as_encoded_bytes().iter().all(u8::is_ascii_hexdigit)
}

/// The version of the record format. Since version 2 cgroups have names that earlier servers do not look for.
pub const VERSION: u32 = 2;

/// Returns the id of this boot (`random(4)`).
pub fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}
