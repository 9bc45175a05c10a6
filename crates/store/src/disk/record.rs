//! The records of root file systems and the layers they use: one file for each living root file system, on tmpfs.
//!
//! `<run>/rootfs/<id>.json` is written before the root file system is made and removed when it is released. A
//! directory in `rootfs/` that no record names is trash; a layer that no record names may be collected. After a
//! reboot there is no record; where the run directory is on a disk, the boot id tells that a record is outdated.
//!
//! Several processes share the directory, without a lock. A process that makes a root file system first writes its
//! record and *then* checks that its layers are still in place; one that deletes a layer first moves it to the trash
//! and *then* looks for records. So at least one of the two sees the other.

use std::collections::HashSet;
use std::io::Write as _;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use wardian_sys::directory::Directory;

use super::{files, run};
use crate::disk::limit::Bound;

/// The directory's name in the run directory.
const DIRECTORY: &str = "rootfs";
const SUFFIX: &str = ".json";

/// The record of a root file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its id.
    pub id: String,
    /// The name of its directory in the store's `rootfs/`.
    pub dir: String,
    /// The boot that made it.
    pub boot_id: String,
    /// The image, as it was asked for.
    pub image: String,
    /// Its layers, bottom first.
    pub layers: Vec<Used>,
    /// When it was made: milliseconds since 1970.
    pub created_ms: u64,
    /// Where it is attached; none for a container's, which is held open by its keeper only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attached: Option<PathBuf>,
    /// What may be written to it.
    #[serde(default, skip_serializing_if = "Bound::is_none")]
    pub bound: Bound,
    /// The id under which it is published in the store's `images/`, if it is: then it lives until it is withdrawn,
    /// whatever is attached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub published: Option<String>,
    /// Whether its parts are attached for somebody else to mount.
    #[serde(default)]
    pub in_parts: bool,
    /// Whether its overlay syncs, because no volatile one could be mounted when it was made.
    #[serde(default)]
    pub honest: bool,
    /// A write-back error that happened under it, with the remedy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub writeback_error: Option<String>,
}

/// One layer of a root file system.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Used {
    /// The layer's chain id.
    pub chain: String,
    /// The id of this unpacking of the layer.
    pub instance: String,
}

/// The records' directory. A server keeps it open; a command opens it anew for each use, because a server may mount a
/// tmpfs there meanwhile.
#[derive(Debug)]
pub(crate) struct Records {
    path: PathBuf,
    kept: Option<OwnedFd>,
    boot_id: String,
}

impl Records {
    /// Opens the records below the run directory `run`; with `make`, creates the directory and keeps it open.
    pub(crate) fn open(run: &Path, boot_id: &str, make: bool) -> std::io::Result<Self> {
        let path = run.join(DIRECTORY);
        let kept = if make { Some(run::private(&path)?.into()) } else { None };
        Ok(Self { path, kept, boot_id: boot_id.to_owned() })
    }

    /// Opens the directory; `None` if it does not exist, and so holds no record.
    fn dir(&self) -> std::io::Result<Option<OwnedFd>> {
        match &self.kept {
            Some(dir) => Ok(Some(rustix::io::fcntl_dupfd_cloexec(dir, 3)?)),
            None => match Directory::open(&self.path) {
                Ok(dir) => Ok(Some(dir.into())),
                Err(error) if error.is_missing() => Ok(None),
                Err(error) => Err(error.into()),
            },
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns where the record's root file system is attached, if it is attached.
    pub(crate) fn mount_point(&self, id: &str) -> PathBuf {
        self.path.join(id)
    }

    /// Writes a new record; false if the id has a record already.
    pub(crate) fn create(&self, record: &Record) -> std::io::Result<bool> {
        let dir = self.make_dir()?;
        let new = self.write_new(&dir, record)?;
        let name = format!("{}{SUFFIX}", record.id);
        match rustix::fs::renameat_with(&dir, &new, &dir, &name, RenameFlags::NOREPLACE) {
            Ok(()) => Ok(true),
            Err(Errno::EXIST) => {
                let _ = rustix::fs::unlinkat(&dir, &new, AtFlags::empty());
                // A record of another boot is outdated, and replaced.
                match self.read(&dir, &name) {
                    Ok(old) if old.boot_id == self.boot_id => Ok(false),
                    _ => {
                        self.remove(&record.id)?;
                        self.create(record)
                    }
                }
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Replaces a record that is still there.
    pub(crate) fn update_existing(&self, record: &Record) -> std::io::Result<()> {
        let dir = self.make_dir()?;
        let (new, name) = (self.write_new(&dir, record)?, format!("{}{SUFFIX}", record.id));
        // RENAME_EXCHANGE fails if the old record is gone: a record that was removed must not come back.
        let exchanged = rustix::fs::renameat_with(&dir, &new, &dir, &name, RenameFlags::EXCHANGE);
        rustix::fs::unlinkat(&dir, &new, AtFlags::empty())?;
        match exchanged {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns the directory's modification time, which changes whenever a record is created or removed.
    pub(crate) fn changed(&self) -> (i64, u64) {
        let dir = self.dir().ok().flatten();
        let stat = dir.and_then(|dir| rustix::fs::fstat(dir).ok());
        stat.map_or((0, 0), |stat| (stat.st_mtime, stat.st_mtime_nsec))
    }

    fn make_dir(&self) -> std::io::Result<OwnedFd> {
        if self.kept.is_none() {
            return Ok(run::private(&self.path)?.into());
        }
        self.dir()?.ok_or_else(|| std::io::Error::from(Errno::NOENT))
    }

    fn write_new(&self, dir: &OwnedFd, record: &Record) -> std::io::Result<String> {
        // The name is unique among processes and threads; its leading dot keeps it from being read as a record.
        let new = format!(".{}", uuid::Uuid::new_v4().simple());
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(dir, &new, flags, Mode::RUSR | Mode::WUSR)?;
        std::fs::File::from(file).write_all(&serde_json::to_vec(record)?)?;
        Ok(new)
    }

    /// Removes a record; it need not be there.
    pub(crate) fn remove(&self, id: &str) -> std::io::Result<()> {
        let Some(dir) = self.dir()? else { return Ok(()) };
        match rustix::fs::unlinkat(&dir, format!("{id}{SUFFIX}"), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads one record, if it is of this boot.
    pub(crate) fn get(&self, id: &str) -> std::io::Result<Option<Record>> {
        let Some(dir) = self.dir()? else { return Ok(None) };
        match self.read(&dir, &format!("{id}{SUFFIX}")) {
            Ok(record) => Ok((record.boot_id == self.boot_id).then_some(record)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn read(&self, dir: impl AsFd, name: &str) -> std::io::Result<Record> {
        Ok(serde_json::from_str(&files::read_file(dir, name)?)?)
    }

    /// Reads all records of this boot.
    ///
    /// A record that cannot be read is an error, because it is unknown which layers it names.
    pub(crate) fn all(&self) -> std::io::Result<Vec<Record>> {
        let Some(dir) = self.dir()? else { return Ok(Vec::new()) };
        let mut records = Vec::new();
        for name in files::names(&dir)? {
            if !name.ends_with(SUFFIX) || name.starts_with('.') {
                continue;
            }
            match self.read(&dir, &name) {
                Ok(record) if record.boot_id == self.boot_id => records.push(record),
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(records)
    }

    /// Returns the unpackings of layers that root file systems use.
    pub(crate) fn used_layers(&self) -> std::io::Result<HashSet<Used>> {
        Ok(self.all()?.into_iter().flat_map(|record| record.layers).collect())
    }

    /// Removes half-written records of killed processes, and records of another boot.
    pub(crate) fn tidy(&self) -> std::io::Result<()> {
        let Some(dir) = self.dir()? else { return Ok(()) };
        for name in files::names(&dir)? {
            let other_boot =
                || matches!(self.read(&dir, &name), Ok(record) if record.boot_id != self.boot_id);
            // A living process renames the new file within microseconds.
            let old = || {
                rustix::fs::statat(&dir, &name, AtFlags::SYMLINK_NOFOLLOW)
                    .is_ok_and(|stat| stat.st_mtime.saturating_add(60) < now_ms().cast_signed() / 1000)
            };
            let half = name.starts_with('.') && old();
            if half || (name.ends_with(SUFFIX) && other_boot()) {
                let _ = rustix::fs::unlinkat(&dir, &name, AtFlags::empty());
            }
        }
        Ok(())
    }
}

/// Now, in milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: &str, boot: &str) -> Record {
        Record {
            id: id.into(),
            dir: format!("d-{id}"),
            boot_id: boot.into(),
            image: "/x.tar".into(),
            layers: vec![Used { chain: "c".into(), instance: "i".into() }],
            created_ms: now_ms(),
            attached: None,
            bound: Bound::NONE,
            published: None,
            in_parts: false,
            honest: false,
            writeback_error: None,
        }
    }

    #[test]
    fn a_record_is_made_once_and_outlives_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path(), "now", false).unwrap();
        assert!(records.all().unwrap().is_empty());
        assert!(records.create(&record("a", "now")).unwrap());
        assert!(!records.create(&record("a", "now")).unwrap());
        assert_eq!(records.get("a").unwrap().unwrap(), records.all().unwrap()[0]);
        assert_eq!(records.used_layers().unwrap().len(), 1);
        records.remove("a").unwrap();
        records.remove("a").unwrap();
        assert_eq!(records.get("a").unwrap(), None);
        // A record of another boot is ignored, and replaced.
        let old = Records::open(dir.path(), "before", true).unwrap();
        assert!(old.create(&record("a", "before")).unwrap());
        assert!(records.all().unwrap().is_empty());
        assert!(records.create(&record("a", "now")).unwrap());
        assert!(old.create(&record("b", "before")).unwrap());
        let half = std::fs::File::create(dir.path().join("rootfs/.half")).unwrap();
        records.tidy().unwrap();
        assert!(dir.path().join("rootfs/.half").exists());
        half.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        records.tidy().unwrap();
        assert_eq!(std::fs::read_dir(dir.path().join("rootfs")).unwrap().count(), 1);
        std::fs::write(dir.path().join("rootfs/bad.json"), "{").unwrap();
        assert!(records.used_layers().is_err());
    }
}
