//! Published root file systems: those that callers use by a path in the store, `images/<id>/rootfs`, as callers of
//! GrootFS do.
//!
//! The directory `images/<id>` is locked by whoever publishes or withdraws the id, so there is one of them at a time,
//! and nobody removes what another one is making. It is removed before the record: while there is a record, the id
//! is taken. A directory without a record, as after a reboot, is empty and means nothing.
//!
//! The callers' containers run as users of their own, and the root of such a container goes along the path. So the
//! directories on it let the group of the mapping's root pass ([`Directory::admit`]); all else in the store stays
//! closed.
//!
//! A root file system that the caller mounts itself is handed out in parts. Its layers are attached read-only, and
//! idmapped for its owner, at `<run>/l/<name>`, each once for all root file systems that have it; its writable part is
//! attached at `images/<id>/parts`.

use std::collections::HashSet;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, FlockOperation, Mode};
use rustix::io::Errno;
use wardian_sys::directory::Directory;
use wardian_sys::{failpoint, mount};

use super::create::Attached;
use crate::disk::record::Record;
use crate::disk::whose::{PART_DIGITS, PARTS};
use crate::disk::{files, run};
use crate::error::Result;
use crate::failpoints::Point;
use crate::images::image;
use crate::images::opened::Image;
use crate::layers::owner::{Owner, root_of};
use crate::mounts::rootfs::{self, Error as RootfsError, RootfsSpec};
use crate::store::Store;

/// The maximum length of an id, in bytes (NAME_MAX).
const MAX_ID: usize = 255;
/// The directory in `images/<id>` where the root file system is attached, or where its caller may mount it.
const ROOTFS: &str = "rootfs";
/// The directory in `images/<id>` where the writable part is attached for a caller who mounts the root file system.
const WRITABLE: &str = "parts";
/// How long a withdrawal waits until nobody uses the mount: the last process of a container may be ending.
const PATIENCE: Duration = Duration::from_secs(5);
const PERIOD: Duration = Duration::from_millis(20);

/// A published root file system.
#[derive(Debug)]
pub struct Published {
    /// `images/<id>/rootfs` in the store.
    pub path: PathBuf,
    /// What to mount there, if it is not mounted.
    pub parts: Option<Parts>,
}

/// The space of a published root file system, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublishedUsage {
    /// The files of its image's layers.
    pub image_bytes: u64,
    /// What its writable layer takes on the disk.
    pub own_bytes: u64,
    /// What its writable layer may take; 0 without a limit.
    pub bound_bytes: u64,
}

/// The parts of an overlay that the caller mounts.
#[derive(Debug)]
pub struct Parts {
    /// Topmost first.
    pub lowers: Vec<PathBuf>,
    /// The writable layer.
    pub upper: PathBuf,
    /// The overlay's work directory.
    pub work: PathBuf,
}

/// Returns the id under which a published root file system is recorded.
fn record_id(id: &str) -> std::result::Result<String, RootfsError> {
    let wrong = id.is_empty() || id.len() > MAX_ID || id.contains(['/', '\0']) || image::is_record(id);
    if wrong {
        return Err(RootfsError::Id { id: id.to_owned() });
    }
    let plain = format!("grootfs-{id}");
    // An id may have bytes that a record's may not.
    Ok(if rootfs::check_id(&plain).is_ok() {
        plain
    } else {
        format!("grootfs.{}", wardian_image::Digest::of(id.as_bytes()).as_hex())
    })
}

/// Whether something is attached on the directory `name` of `dir`; false if there is no such directory.
fn is_attached(dir: &OwnedFd, name: &str) -> bool {
    files::open_dir(dir, name).is_ok_and(|dir| mount::is_mount_root(&dir).unwrap_or(false))
}

fn remove_dir(dir: &OwnedFd, name: &str) -> rustix::io::Result<()> {
    match rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

/// Unmounts, and waits while somebody uses the mount.
fn unmount(path: &Path) -> std::result::Result<(), RootfsError> {
    let started = Instant::now();
    loop {
        match mount::unmount(path).map_err(|error| error.errno()) {
            Ok(()) => return Ok(()),
            Err(Errno::BUSY) if started.elapsed() < PATIENCE => std::thread::sleep(PERIOD),
            Err(Errno::BUSY) => return Err(RootfsError::Busy { path: path.to_owned() }),
            Err(error) => return Err(RootfsError::Attach { path: path.to_owned(), source: error.into() }),
        }
    }
}

impl Store {
    /// Makes a root file system and attaches it at `images/<id>/rootfs`, with device nodes disabled; or, `in_parts`,
    /// attaches what its caller mounts there. It lives until [`Store::withdraw_rootfs`], or the next boot.
    ///
    /// # Errors
    /// As [`Store::create_rootfs`]; it exists, the id is no file name or that of a record, or it cannot be attached.
    pub fn publish_rootfs(&self, id: &str, spec: &RootfsSpec<'_>, in_parts: bool) -> Result<Published> {
        let name = record_id(id)?;
        let failed = |source: std::io::Error| RootfsError::Attach { path: self.published_path(id), source };
        self.admit(spec.owner.as_ref()).map_err(failed)?;
        let Some(dir) = self.lock_published(id, true).map_err(|error| failed(error.into()))? else {
            return Err(failed(Errno::NOENT.into()).into());
        };
        let records = &self.0.layout.records;
        if records.get(&name).map_err(|source| self.0.records_error(source))?.is_some() {
            return Err(RootfsError::Exists { id: id.to_owned() }.into());
        }
        let place = self.place_in(&dir, spec.owner.as_ref());
        let published = place.map_err(|error| failed(error).into()).and_then(|target| {
            let path = self.published_path(id);
            let attached = Attached { path: path.clone(), published: Some(id.to_owned()) };
            if in_parts {
                let parts = self.attach_parts(id, &name, &dir, spec, attached)?;
                return Ok(Published { path, parts: Some(parts) });
            }
            let made = self.0.create_rootfs(&name, spec, Some(attached))?;
            if let Err(error) = mount::attach(&made.mount, &target) {
                self.0.release_rootfs(&name, None);
                return Err(failed(error.errno().into()).into());
            }
            Ok(Published { path, parts: None })
        });
        failpoint::reach(Point::Published);
        if published.is_err() {
            // Empty, or somebody else's by now.
            let _ = self.remove_published(id, &dir);
        }
        published
    }

    /// Detaches and releases a published root file system; false if the id is unknown.
    ///
    /// # Errors
    /// The id is no file name, it is busy for longer than 5 s, or there is something else in its directory. It stays
    /// then as it was.
    pub fn withdraw_rootfs(&self, id: &str) -> Result<bool> {
        let name = record_id(id)?;
        let path = self.published_path(id);
        let failed = |source: std::io::Error| RootfsError::Attach { path: path.clone(), source };
        let dir = self.lock_published(id, false).map_err(|error| failed(error.into()))?;
        let record = self.0.layout.records.get(&name).map_err(|source| self.0.records_error(source))?;
        if let Some(dir) = &dir {
            // Before it is unmounted: its caller may still want it.
            let foreign = |name: &String| name != ROOTFS && name != WRITABLE;
            if files::names(dir).map_err(|error| failed(error.into()))?.iter().any(foreign) {
                return Err(failed(Errno::NOTEMPTY.into()).into());
            }
            let started = Instant::now();
            // As in [`Store::detach_rootfs`].
            if let Some(record) = &record
                && let Err(error) = self.0.upper.adopt(&record.dir)
            {
                tracing::warn!(id, %error, "rootfs.not-adopted");
            }
            for part in [ROOTFS, WRITABLE].into_iter().filter(|part| is_attached(dir, part)) {
                tracing::debug!(id, path = %path.display(), "rootfs.unmounting");
                unmount(&path.with_file_name(part))?;
                tracing::debug!(id, ms = started.elapsed().as_secs_f64() * 1e3, "rootfs.unmounted");
            }
            failpoint::reach(Point::Withdrawing);
            self.remove_published(id, dir).map_err(|error| failed(error.into()))?;
        }
        let Some(record) = record else { return Ok(dir.is_some()) };
        self.0.release_rootfs(&name, Some(id));
        self.0.upper.abandon(&record.dir);
        if record.in_parts
            && let Err(error) = self.detach_layers()
        {
            // The next withdrawal tries it again.
            tracing::warn!(id, %error, "published.layers-stay");
        }
        Ok(true)
    }

    /// Returns the records of the published root file systems, sorted by id.
    ///
    /// # Errors
    /// Their records cannot be read.
    pub fn published(&self) -> Result<Vec<Record>> {
        let mut records = self.0.records()?;
        records.retain(|record| record.published.is_some());
        records.sort_by(|a, b| a.published.cmp(&b.published));
        Ok(records)
    }

    /// Returns the record of a published root file system; `None` if the id is unknown.
    ///
    /// # Errors
    /// The id is no file name, or the record cannot be read.
    pub fn find_published(&self, id: &str) -> Result<Option<Record>> {
        let name = record_id(id)?;
        self.0.layout.records.get(&name).map_err(|source| self.0.records_error(source))
    }

    /// Returns the space of a published root file system; `None` if the id is unknown. It walks over the writable
    /// layer, which may take seconds.
    ///
    /// # Errors
    /// The id is no file name, or the record cannot be read.
    pub fn published_usage(&self, id: &str) -> Result<Option<PublishedUsage>> {
        let Some(record) = self.find_published(id)? else { return Ok(None) };
        let layers = record.layers.iter().filter_map(|used| self.layer(&used.chain));
        // It may have been withdrawn meanwhile.
        let counted = self.0.upper.written(&record.dir).ok().flatten().map(|written| written.bytes);
        let own = counted.or_else(|| self.0.upper.measure(&record.dir, &|| false).ok().flatten());
        Ok(Some(PublishedUsage {
            image_bytes: layers.map(|layer| layer.bytes).sum(),
            own_bytes: own.unwrap_or(0),
            bound_bytes: record.bound.bytes.unwrap_or(0),
        }))
    }

    /// Removes the directories in `images/` that another boot, or a killed process, has left without a record.
    ///
    /// # Errors
    /// The directory or the records cannot be read.
    pub fn tidy_published(&self) -> Result<()> {
        let list = |error: Errno| crate::layout::Error::List { name: "images", source: error.into() };
        for id in files::names(&self.0.layout.images).map_err(list)? {
            let Ok(name) = record_id(&id) else { continue };
            // Whoever is making one holds the lock, and is not waited for.
            let Ok(dir) = files::open_dir(&self.0.layout.images, &id) else { continue };
            if rustix::fs::flock(&dir, FlockOperation::NonBlockingLockExclusive).is_err() {
                continue;
            }
            let record = self.0.layout.records.get(&name).map_err(|source| self.0.records_error(source))?;
            if record.is_none() && self.remove_published(&id, &dir).is_ok() {
                tracing::info!(id, "published.tidied");
            }
        }
        Ok(())
    }

    fn published_path(&self, id: &str) -> PathBuf {
        self.0.layout.path.join("images").join(id).join(ROOTFS)
    }

    /// Opens and locks `images/<id>`; `None` if it is not there and is not to be made.
    fn lock_published(&self, id: &str, make: bool) -> rustix::io::Result<Option<OwnedFd>> {
        let images = &self.0.layout.images;
        loop {
            if make {
                match rustix::fs::mkdirat(images, id, Mode::RWXU) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(error),
                }
            }
            let dir = match files::open_dir(images, id) {
                Err(Errno::NOENT) if make => continue,
                Err(Errno::NOENT) => return Ok(None),
                other => other?,
            };
            rustix::fs::flock(&dir, FlockOperation::LockExclusive)?;
            // The process that held the lock may have removed the directory.
            let there = rustix::fs::statat(images, id, AtFlags::SYMLINK_NOFOLLOW);
            if there.is_ok_and(|stat| rustix::fs::fstat(&dir).is_ok_and(|own| own.st_ino == stat.st_ino)) {
                return Ok(Some(dir));
            }
        }
    }

    /// Removes the locked directory `images/<id>` with the places in it, which nothing may be attached to.
    fn remove_published(&self, id: &str, dir: &OwnedFd) -> rustix::io::Result<()> {
        remove_dir(dir, ROOTFS)?;
        remove_dir(dir, WRITABLE)?;
        remove_dir(&self.0.layout.images, id)
    }

    /// Lets the root of the owner's mapping search the directories above published root file systems.
    fn admit(&self, owner: Option<&Owner<'_>>) -> std::io::Result<()> {
        let Some(owner) = owner else { return Ok(()) };
        let root = Directory::open(&self.0.layout.path)?;
        root.admit(owner.gid)?;
        Ok(root.searchable("images")?.admit(owner.gid)?)
    }

    /// Makes the directory at which the root file system is attached, in its locked directory; returns it.
    fn place_in(&self, dir: &OwnedFd, owner: Option<&Owner<'_>>) -> std::io::Result<OwnedFd> {
        if is_attached(dir, ROOTFS) || is_attached(dir, WRITABLE) {
            return Err(Errno::BUSY.into());
        }
        if let Some(owner) = owner {
            let gid = rustix::fs::Gid::from_raw(owner.gid);
            rustix::fs::fchown(dir, None, Some(gid))?;
            rustix::fs::fchmod(dir, Mode::RWXU | Mode::XGRP)?;
        }
        remove_dir(dir, ROOTFS)?;
        rustix::fs::mkdirat(dir, ROOTFS, Mode::RWXU)?;
        let target = files::open_dir(dir, ROOTFS)?;
        let root = root_of(owner);
        let (uid, gid) = (rustix::fs::Uid::from_raw(root.0), rustix::fs::Gid::from_raw(root.1));
        rustix::fs::fchown(&target, Some(uid), Some(gid))?;
        rustix::fs::fchmod(&target, Mode::from_raw_mode(0o755))?;
        Ok(target)
    }

    /// Makes a root file system in parts, and attaches them.
    fn attach_parts(
        &self,
        id: &str,
        name: &str,
        dir: &OwnedFd,
        spec: &RootfsSpec<'_>,
        attached: Attached,
    ) -> Result<Parts> {
        let path = attached.path.with_file_name(WRITABLE);
        let (image, pair) = self.0.create_parts(name, spec, attached)?;
        let attach = || -> std::io::Result<Vec<PathBuf>> {
            let lowers = self.attach_layers(&image, spec.owner.as_ref())?;
            remove_dir(dir, WRITABLE)?;
            rustix::fs::mkdirat(dir, WRITABLE, Mode::RWXU)?;
            // Both directories of an overlay's writable part must be on one mount.
            let clone = mount::open_tree_clone(&pair.dir, "", false).map_err(std::io::Error::other)?;
            mount::attach(&clone, files::open_dir(dir, WRITABLE)?).map_err(std::io::Error::other)?;
            Ok(lowers)
        };
        let lowers = attach().map_err(|source| {
            let _ = mount::unmount_lazily(&path);
            self.0.release_rootfs(name, None);
            let _ = self.detach_layers();
            RootfsError::Attach { path: self.published_path(id), source }
        })?;
        Ok(Parts { lowers, upper: path.join("upper"), work: path.join("work") })
    }

    fn run_dir(&self) -> &Path {
        self.0.layout.records.path().parent().unwrap_or(Path::new("/"))
    }

    /// Opens and locks the directory in which layers are attached.
    fn lock_layers(&self) -> std::io::Result<Directory> {
        let dir = run::searchable(self.run_dir(), PARTS)?;
        rustix::fs::flock(&dir, FlockOperation::LockExclusive)?;
        Ok(dir)
    }

    /// Attaches the layers of an image, unless they are; returns where, topmost first. A record must name them.
    fn attach_layers(&self, image: &Image, owner: Option<&Owner<'_>>) -> std::io::Result<Vec<PathBuf>> {
        let dir = self.lock_layers()?;
        if let Some(owner) = owner {
            dir.admit(owner.gid)?;
        }
        let mut paths = Vec::new();
        for layer in image.layers.iter().rev() {
            let short = layer.instance.get(..PART_DIGITS).unwrap_or(&layer.instance);
            match rustix::fs::mkdirat(&dir, short, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
            let target = files::open_dir(&dir, short)?;
            if !mount::is_mount_root(&target).map_err(std::io::Error::other)? {
                let clone = self.0.mounter.clone_layer(layer, owner).map_err(std::io::Error::other)?;
                mount::attach(&clone, &target).map_err(std::io::Error::other)?;
            } else if !layer.is_root(&target) {
                return Err(Errno::EXIST.into());
            }
            paths.push(self.run_dir().join(PARTS).join(short));
        }
        Ok(paths)
    }

    /// Detaches the layers that no root file system in parts has.
    fn detach_layers(&self) -> std::io::Result<()> {
        let dir = self.lock_layers()?;
        // Listed under the lock: a record is written before its layers are attached.
        let records = self.0.layout.records.all()?;
        let parts = records.iter().filter(|record| record.in_parts);
        let used: HashSet<&str> = parts
            .flat_map(|record| &record.layers)
            .map(|layer| layer.instance.get(..PART_DIGITS).unwrap_or(&layer.instance))
            .collect();
        for name in files::names(dir.as_fd())?.iter().filter(|name| !used.contains(name.as_str())) {
            // Overlays that somebody has mounted of it have mounts of their own.
            match mount::unmount_lazily(&dir.path().join(name)).map_err(|error| error.errno()) {
                Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
            rustix::fs::unlinkat(&dir, name.as_str(), AtFlags::REMOVEDIR)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_file_names() {
        for good in ["a", "a b", "ü", "0f-a_b.c", "-x", &"x".repeat(255)] {
            let name = record_id(good).unwrap();
            rootfs::check_id(&name).unwrap();
            assert!(name.starts_with("grootfs"), "{name}");
        }
        assert_eq!(record_id("a-b").unwrap(), "grootfs-a-b");
        for bad in ["", ".", "..", ".x", "a/b", "a\0", "x.json", "x.documents", &"x".repeat(256)] {
            assert!(matches!(record_id(bad), Err(RootfsError::Id { .. })), "{bad:?}");
        }
    }
}
