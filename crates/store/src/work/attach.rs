//! Root file systems attached in the host's mount namespace, for scripts. They outlive the process that made them.

use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::io::Errno;
use wardian_sys::mount;

use super::create::Attached;
use crate::disk::files;
use crate::disk::record::Record;
use crate::disk::run;
use crate::error::{Error, Result};
use crate::mounts::rootfs::{self, Error as RootfsError, RootfsSpec};
use crate::store::Store;

/// Whether something is mounted there.
pub(crate) fn is_attached(path: &Path) -> bool {
    let dir = rustix::fs::open(path, files::DIRECTORY, Mode::empty());
    dir.is_ok_and(|dir| mount::is_mount_root(&dir).unwrap_or(false))
}

impl Store {
    /// Makes a root file system and attaches it below the run directory; returns the path. Without `suid` its set-uid
    /// and set-gid bits and file capabilities have no effect there, nor in mounts cloned from it.
    ///
    /// Only root can access the directory in which it is attached ([`run::private`]), because the mode of the root
    /// file system's own root is up to the image.
    ///
    /// # Errors
    /// As [`Store::create_rootfs`], or it cannot be attached.
    pub fn attach_rootfs(&self, id: &str, spec: &RootfsSpec<'_>, suid: bool) -> Result<PathBuf> {
        rootfs::check_id(id)?;
        let records = &self.0.layout.records;
        let path = records.mount_point(id);
        let failed = |source| Error::from(RootfsError::Attach { path: path.clone(), source });
        let attached = Attached { path: path.clone(), published: None };
        let made = self.0.create_rootfs(id, spec, Some(attached))?;
        let attached = std::fs::create_dir_all(&path).map_err(failed).and_then(|()| {
            if !suid {
                mount::set_nosuid(&made.mount).map_err(|error| failed(error.errno().into()))?;
            }
            let target = rustix::fs::open(&path, files::DIRECTORY, Mode::empty());
            let target = target.map_err(|error| failed(error.into()))?;
            mount::attach(&made.mount, &target).map_err(|error| failed(error.errno().into()))
        });
        if attached.is_err() {
            let _ = std::fs::remove_dir(&path);
            self.0.release_rootfs(id, None);
        }
        attached.map(|()| path)
    }

    /// Detaches and releases a root file system; false if the id is unknown.
    ///
    /// # Errors
    /// It is busy, or belongs to a container.
    pub fn detach_rootfs(&self, id: &str) -> Result<bool> {
        rootfs::check_id(id)?;
        let records = &self.0.layout.records;
        let record = records.get(id).map_err(|source| self.0.records_error(source))?;
        let Some(record) = record else { return Ok(false) };
        if let Some(published) = record.published {
            return self.withdraw_rootfs(&published);
        }
        let Some(path) = record.attached else {
            return Err(RootfsError::Kept { id: id.to_owned() }.into());
        };
        let started = std::time::Instant::now();
        if is_attached(&path) {
            tracing::debug!(id, path = %path.display(), "rootfs.unmounting");
            // With a reference of ours this unmount is not the one that has to write, see [`crate::mounts::image`].
            if let Err(error) = self.0.upper.adopt(&record.dir) {
                tracing::warn!(id, %error, "rootfs.not-adopted");
            }
            mount::unmount(&path).map_err(|error| match error.errno() {
                Errno::BUSY => RootfsError::Busy { path: path.clone() },
                errno => RootfsError::Attach { path: path.clone(), source: errno.into() },
            })?;
            tracing::debug!(id, ms = started.elapsed().as_secs_f64() * 1e3, "rootfs.unmounted");
        }
        let _ = std::fs::remove_dir(&path);
        self.0.release_rootfs(id, Some(id));
        self.0.upper.abandon(&record.dir);
        Ok(true)
    }

    /// Returns the records of the living root file systems, sorted by id.
    ///
    /// # Errors
    /// Their records cannot be read.
    pub fn rootfs(&self) -> Result<Vec<Record>> {
        let mut records = self.0.records()?;
        records.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(records)
    }

    /// Returns the bytes on the disk of a root file system's writable layer; `None` if the id is unknown.
    ///
    /// # Errors
    /// Its record cannot be read.
    pub fn rootfs_bytes(&self, id: &str) -> Result<Option<u64>> {
        rootfs::check_id(id)?;
        let record = self.0.layout.records.get(id).map_err(|source| self.0.records_error(source))?;
        Ok(record.map(|record| self.0.rootfs_bytes(&record)))
    }

    /// Unmounts the run directory's tmpfs, if there is no server and it holds no record.
    pub fn leave_run(&self) {
        if !self.has_server()
            && let Some(run) = self.0.layout.records.path().parent()
        {
            run::leave(run);
        }
    }
}
