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
use crate::ids::IdRange;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

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

fn is_dir(entry: &fs::DirEntry) -> bool {
    entry.file_type().is_ok_and(|kind| kind.is_dir())
}

/// `<run>/containers`.
#[derive(Debug, Clone)]
pub struct Records {
    dir: PathBuf,
}

impl Records {
    /// Make the directory.
    pub fn open(run: &Path) -> io::Result<Self> {
        let dir = run.join("containers");
        wardian_store::run::private(&dir)?;
        let this = Self { dir };
        this.close_to_others()?;
        Ok(this)
    }

    /// Environments and properties hold secrets: nobody but root reads them. Files of servers that left that to the umask
    /// are corrected.
    fn close_to_others(&self) -> io::Result<()> {
        for container in fs::read_dir(&self.dir)?.flatten().filter(is_dir) {
            fs::set_permissions(container.path(), Permissions::from_mode(0o700))?;
            for name in [STATE, CONFIG] {
                match fs::set_permissions(container.path().join(name), Permissions::from_mode(0o600)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
            let peas = container.path().join("peas");
            if peas.is_dir() {
                fs::set_permissions(&peas, Permissions::from_mode(0o700))?;
            }
            for bundle in fs::read_dir(&peas).into_iter().flatten().flatten() {
                fs::set_permissions(bundle.path(), Permissions::from_mode(0o600))?;
            }
        }
        Ok(())
    }

    /// A container's directory.
    pub fn path(&self, id: &str) -> PathBuf {
        self.dir.join(id)
    }

    /// Write a record whole: another file, then a rename.
    pub fn save(&self, record: &Record) -> io::Result<()> {
        let dir = self.path(&record.id);
        let temporary = dir.join("state.json.new");
        fs::write(&temporary, serde_json::to_vec_pretty(record)?)?;
        fs::rename(temporary, dir.join(STATE))
    }

    /// The commit point of a destroy.
    pub fn forget(&self, id: &str) -> io::Result<()> {
        match fs::remove_file(self.path(id).join(STATE)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    /// Remove what is left of a directory without a record.
    pub fn clear(&self, id: &str) {
        drop(fs::remove_dir_all(self.path(id)));
    }

    /// Ids of all directories, with their records where readable and of this boot.
    pub fn all(&self, boot_id: &str) -> Vec<(String, Option<Record>)> {
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let id = entry.file_name().to_string_lossy().into_owned();
            let text = fs::read(entry.path().join(STATE)).unwrap_or_default();
            let record = serde_json::from_slice::<Record>(&text).ok();
            all.push((id, record.filter(|r| r.boot_id == boot_id && r.version == VERSION)));
        }
        all
    }

    /// A record of this boot that a later server has written, and its version: we do not know what it means.
    pub fn later(&self, boot_id: &str) -> Option<(PathBuf, u64)> {
        let mut entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        entries.find_map(|entry| {
            let path = entry.path().join(STATE);
            let record: serde_json::Value = serde_json::from_slice(&fs::read(&path).ok()?).ok()?;
            let version = record["version"].as_u64().filter(|version| *version > VERSION.into())?;
            (record["boot_id"] == boot_id).then_some((path, version))
        })
    }

    /// A pea's root file system lives from here on; `process` is its id for clients.
    pub fn pea_begins(&self, id: &str, rootfs: &str, process: &str) -> io::Result<()> {
        let dir = self.path(id).join("peas");
        match fs::create_dir(&dir) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
        fs::write(dir.join(rootfs), process)
    }

    /// It is trash from here on.
    pub fn pea_ends(&self, id: &str, rootfs: &str) {
        let dir = self.path(id).join("peas");
        drop(fs::remove_file(dir.join(format!("{rootfs}.json"))));
        drop(fs::remove_file(dir.join(rootfs)));
    }

    /// Root file systems of peas.
    pub fn peas(&self, id: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(id).join("peas")).into_iter().flatten().flatten();
        let names = entries.map(|e| e.file_name().to_string_lossy().into_owned());
        names.filter(|name| !name.contains('.')).collect()
    }
}

/// Of the format.
pub const VERSION: u32 = 1;

/// This boot of the kernel (`random(4)`).
pub fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}
