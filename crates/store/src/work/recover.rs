//! Recovery: finds what a killed process, or another boot, has left behind.

use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::fs::FlockOperation;

use super::attach::is_attached;
use super::fetch;
use crate::disk::files;
use crate::disk::layout;
use crate::error::{Error, Result};
use crate::images::progress::Progress;
use crate::layers::layer::{self, Record};
use crate::layers::partial::{self, Which};
use crate::mounts::reaper::{Item, Place};
use crate::store::{Inner, Store};

fn list(dir: &OwnedFd, name: &'static str) -> Result<Vec<String>> {
    Ok(files::names(dir).map_err(|error| layout::Error::List { name, source: error.into() })?)
}

impl Inner {
    /// Recovers the store when a server starts.
    pub(crate) fn recover(&self, live: &dyn Fn(&str) -> bool) -> Result<()> {
        let records_error = |source| self.records_error(source);
        self.layout.records.tidy().map_err(records_error)?;
        let mut sizes = HashMap::new();
        for record in self.records()? {
            let attached = record.attached.as_deref().is_some_and(is_attached);
            if !attached && record.published.is_none() && !live(&record.id) {
                self.layout.records.remove(&record.id).map_err(records_error)?;
                continue;
            }
            if let Err(error) = self.upper.adopt(&record.dir) {
                tracing::warn!(id = record.id, %error, "rootfs.not-adopted");
            }
            // The file system keeps the bound, unless somebody has switched its quota off and on, or another driver
            // has been chosen. Of inodes nobody can lose it: btrfs has none.
            let bound = record.bound;
            if bound.bytes.is_some()
                && let Err(error) = self.upper.limit(&record.dir, bound)
            {
                tracing::error!(id = record.id, bytes = bound.bytes, inodes = bound.inodes, %error, "rootfs.not-limited");
            }
            let size = record.layers.iter().map(|used| self.size_of(&used.chain, &mut sizes)).sum();
            self.measurer.add(&record.id, &record.dir, size);
            if let Some(error) = record.writeback_error {
                self.hit.lock().insert(record.id, error);
            }
        }
        self.distrust()?;
        self.discard_half_volumes()?;
        self.find_trash()?;
        Ok(())
    }

    /// Returns the bytes of a layer, as recorded; 0 if its record cannot be read.
    fn size_of(&self, chain: &str, known: &mut HashMap<String, u64>) -> u64 {
        *known.entry(chain.to_owned()).or_insert_with(|| {
            let dir = files::open_dir(&self.layout.layers, chain).ok();
            dir.and_then(|dir| Record::read(&dir).ok()).map_or(0, |record| record.bytes)
        })
    }

    /// Moves to the trash layers that another boot, or a process that has ended, left unfinished.
    pub(crate) fn distrust(&self) -> Result<()> {
        for chain in list(&self.layout.layers, "layers")? {
            let Ok(dir) = files::open_dir(&self.layout.layers, &chain) else { continue };
            let instance = match Record::read(&dir) {
                Ok(record) => match layer::trusted(&self.layout, &dir, record) {
                    (true, _) => continue,
                    (false, record) => record.instance,
                },
                // A power cut may have emptied it.
                Err(_) => uuid::Uuid::new_v4().simple().to_string(),
            };
            tracing::info!(layer = chain, "layer.distrusted");
            self.condemn(&chain, &instance)?;
        }
        Ok(())
    }

    /// Finds all trash and queues it for the reaper.
    pub(crate) fn find_trash(&self) -> Result<()> {
        let found = |place, name: &str| {
            if let Some(item) = Item::new(place, name) {
                self.reaper.add_found(item);
            }
        };
        for name in list(&self.layout.trash, "trash")? {
            found(Place::Trash, &name);
        }
        for name in list(&self.layout.staging, "staging")? {
            // Moved while it is locked: a process that has just made it sees that it is gone, and makes another one.
            // The move may fail because a reaper has begun to delete it.
            if let Some(_lock) = self.abandoned(&name)
                && self.layout.to_trash(&self.layout.staging, &name, &name).is_ok()
            {
                found(Place::Trash, &name);
            }
        }
        partial::sweep(&self.layout, Which::Old, false);
        // Listed before the records: a record is written before its directory is made.
        let names = list(&self.layout.rootfs, "rootfs")?;
        let living: HashSet<String> = self.records()?.into_iter().map(|record| record.dir).collect();
        for name in names.iter().filter(|name| !living.contains(*name) && !self.names.owns(name)) {
            found(Place::Rootfs, name);
        }
        Ok(())
    }

    /// Takes the lock on an entry of `staging/`, if nobody holds it.
    fn abandoned(&self, name: &str) -> Option<OwnedFd> {
        use rustix::fs::{AtFlags, Mode, OFlags};
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.layout.staging, name, flags, Mode::empty()).ok()?;
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).ok()?;
        if name.ends_with(fetch::TURN) {
            // The lock file is removed while it is locked, so that the next process to lock it sees that it is gone.
            let _ = rustix::fs::unlinkat(&self.layout.staging, name, AtFlags::empty());
            return None;
        }
        Some(file)
    }
}

impl Store {
    /// Whether there is trash to delete. Layers that root file systems use do not count, nor do a server's pairs and
    /// spares.
    ///
    /// # Errors
    /// The store's directories or records cannot be read.
    pub fn has_trash(&self) -> Result<bool> {
        let layout = &self.0.layout;
        // Listed before the records: a record is written before its directory is made.
        let (trash, names) = (list(&layout.trash, "trash")?, list(&layout.rootfs, "rootfs")?);
        // Read once: each is a file.
        let records = self.0.records()?;
        let used = || records.iter().flat_map(|record| &record.layers);
        let in_use = |name: &str| {
            layer::instance_of(name).is_some_and(|instance| used().any(|used| used.instance == instance))
        };
        if trash.iter().any(|name| !in_use(name))
            || list(&layout.staging, "staging")?.iter().any(|name| self.0.abandoned(name).is_some())
        {
            return Ok(true);
        }
        let served = self.has_server();
        let living: HashSet<&str> = records.iter().map(|record| record.dir.as_str()).collect();
        // A server's unused pairs and spares are no trash.
        Ok(names
            .iter()
            .any(|name| !(living.contains(name.as_str()) || served && self.0.upper.is_unused(name))))
    }

    /// Whether a process that deletes trash will look for it after this call: it waits for another one to end.
    pub fn is_reaper_waiting(&self) -> bool {
        // See [`Store::reaper_turn`]. A lock that is shared disturbs no other process that asks.
        let waiting = files::open_dir(&self.0.layout.staging, ".");
        let lock = waiting.and_then(|dir| rustix::fs::flock(&dir, FlockOperation::NonBlockingLockShared));
        lock == Err(rustix::io::Errno::WOULDBLOCK)
    }

    /// Takes the lock for processes that only [`reap`](Store::reap); waits while another one deletes. Returns `None`
    /// if another one waits already, since that will delete our trash as well.
    ///
    /// # Errors
    /// The system's.
    pub fn reaper_turn(&self) -> std::io::Result<Option<OwnedFd>> {
        let waiting = files::open_dir(&self.0.layout.staging, ".")?;
        let deleting = files::open_dir(&self.0.layout.trash, ".")?;
        match rustix::fs::flock(&waiting, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            other => other?,
        }
        rustix::fs::flock(&deleting, FlockOperation::LockExclusive)?;
        Ok(Some(deleting))
    }

    /// Deletes the trash in this process, unless a server does it; false if some of it is left. Layers that root file
    /// systems use stay.
    ///
    /// # Errors
    /// The store's directories or records cannot be read.
    pub fn reap(&self, progress: &Progress) -> Result<bool> {
        if self.has_server() {
            return Ok(true);
        }
        self.0.find_trash()?;
        self.0.reaper.start().map_err(|source| Error::Thread { name: "reaper", source })?;
        while !progress.is_cancelled() {
            if self.0.reaper.drain(Duration::from_millis(100)) {
                return Ok(true);
            }
            if self.0.reaper.is_stuck() {
                break;
            }
        }
        Ok(false)
    }
}
