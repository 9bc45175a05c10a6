//! What is known of a container on tmpfs: the directory is the truth, readable with `cat`.
//!
//! ```text
//! <run>/containers/<id>/
//! ├── state.json            the record; its removal is the moment a container is gone
//! ├── config.json           the OCI bundle
//! ├── keeper.sock           where its keeper listens
//! ├── hosts, resolv.conf    what the container's own files of these names began with
//! └── peas/<root fs id>     holds the process id of a living pea; its bundle as <root fs id>.json
//! ```

use crate::Limits;
use crate::history::Operation;
use crate::ready::ids::IdRange;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use wardian_sys::directory::Directory;

/// The record of a container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    /// Version of this format.
    pub version: u32,
    /// Unique; names every kernel object, cgroup and directory.
    pub id: String,
    /// What clients call it.
    pub handle: String,
    /// `creating` or `created`.
    pub phase: Phase,
    /// A record of another boot describes nothing.
    pub boot_id: String,
    /// Container root is host root.
    pub privileged: bool,
    /// Image and container environment, in this order.
    pub env: Vec<String>,
    /// Garden's properties.
    pub properties: BTreeMap<String, String>,
    /// Stop was called.
    pub stopped: bool,
    /// How it was made, once it is; records of earlier servers have none.
    #[serde(default)]
    pub made: Option<Operation>,
    /// When it was made: nanoseconds since boot. 0 in records of earlier servers.
    #[serde(default)]
    pub made_ns: u64,
    /// Its limits.
    #[serde(default)]
    pub limits: Limits,
    /// Something in a pea that is gone was killed for want of memory.
    #[serde(default)]
    pub out_of_memory: bool,
    /// Who owns its user namespace. 0 in records of earlier servers, and where there is none.
    #[serde(default)]
    pub owner: u32,
    /// The host ids of its users, if they are its own.
    #[serde(default)]
    pub range: Option<IdRange>,
}

impl Record {
    /// See [`crate::admission::bounds::beyond`].
    pub fn beyond(&self) -> usize {
        crate::admission::bounds::beyond(&self.env, &self.properties)
    }
}

/// How far a container has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Half made: the next server undoes it.
    Creating,
    /// Whole.
    Created,
}

/// The record.
const STATE: &str = "state.json";
/// The OCI bundle.
pub const CONFIG: &str = "config.json";

/// Those of peas, beside their bundles.
const PEAS: &str = "peas";
/// Bytes of the largest record: requests are bounded, and so is what comes of them.
const MOST: u64 = 64 << 20;

/// `<run>/containers`.
#[derive(Debug, Clone)]
pub struct Records {
    dir: Arc<Directory>,
    path: PathBuf,
}

impl Records {
    /// Make the directory.
    pub fn open(run: &Path) -> io::Result<Self> {
        let path = run.join("containers");
        let this = Self { dir: Arc::new(wardian_store::run::private(&path)?), path };
        this.close_to_others()?;
        Ok(this)
    }

    /// Environments and properties hold secrets: nobody but root reads them. Files of servers that left that to the umask
    /// are corrected. What is not root's is nobody's container.
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

    /// Its directory, open.
    pub fn container(&self, id: &str) -> io::Result<Directory> {
        Ok(self.dir.child(id)?)
    }

    /// A container's directory.
    pub fn path(&self, id: &str) -> PathBuf {
        self.path.join(id)
    }

    /// Write a record whole: another file, then a rename.
    pub fn save(&self, record: &Record) -> io::Result<()> {
        Ok(self.container(&record.id)?.write(STATE, &serde_json::to_vec_pretty(record)?)?)
    }

    /// The commit point of a destroy.
    pub fn forget(&self, id: &str) -> io::Result<()> {
        match self.container(id).and_then(|dir| Ok(dir.remove(STATE)?)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    /// Remove what is left of a directory without a record.
    pub fn clear(&self, id: &str) {
        drop(self.dir.remove(id));
    }

    /// Ids of all directories, with their records where readable and of this boot.
    pub fn all(&self, boot_id: &str) -> Vec<(String, Option<Record>)> {
        let mut all = Vec::new();
        for name in self.dir.names().unwrap_or_default() {
            // Of another name it is none of ours: a cgroup called so could be one that all containers need.
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

    /// A record of this boot that a later server has written, and its version: we do not know what it means.
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

    /// A pea's root file system lives from here on; `process` is its id for clients.
    pub fn pea_begins(&self, id: &str, rootfs: &str, process: &str) -> io::Result<()> {
        Ok(self.container(id)?.private(PEAS)?.write(rootfs, process.as_bytes())?)
    }

    /// It is trash from here on.
    pub fn pea_ends(&self, id: &str, rootfs: &str) {
        let Ok(peas) = self.container(id).and_then(|dir| Ok(dir.child(PEAS)?)) else { return };
        drop(peas.remove(format!("{rootfs}.json")));
        drop(peas.remove(rootfs));
    }

    /// Root file systems of peas.
    pub fn peas(&self, id: &str) -> Vec<String> {
        let peas = self.container(id).and_then(|dir| Ok(dir.child(PEAS)?.names()?)).unwrap_or_default();
        let names = peas.iter().map(|name| name.to_string_lossy().into_owned());
        names.filter(|name| !name.contains('.')).collect()
    }

    /// The id for clients of the process of a pea.
    pub fn process_of_pea(&self, id: &str, rootfs: &str) -> Option<String> {
        let peas = self.container(id).ok()?.child(PEAS).ok()?;
        String::from_utf8(peas.read(rootfs, MOST).ok()?).ok()
    }
}

/// Whether a container can have this id: 32 hex digits.
fn is_id(name: &OsString) -> bool {
    name.len() == 32 && name.as_encoded_bytes().iter().all(u8::is_ascii_hexdigit)
}

/// Of the format. Since version 2 cgroups have names that an earlier server does not look for.
pub const VERSION: u32 = 2;

/// This boot of the kernel (`random(4)`).
pub fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}
