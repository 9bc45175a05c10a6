//! Creates and releases root file systems.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{Gid, Mode, Uid};
use rustix::io::Errno;
use wardian_sys::failpoint;

use super::fetch;
use crate::disk::files;
use crate::disk::limit::{Bound, DiskLimit};
use crate::disk::record::{self, Record};
use crate::error::{Error, Result};
use crate::failpoints::Point;
use crate::images::opened::Image;
use crate::images::progress::Progress;
use crate::images::reference::Reference;
use crate::layers::layer;
use crate::layers::owner::{Root, is_shared, root_of};
use crate::mounts::ready::Spare;
use crate::mounts::reaper::{Item, Place};
use crate::mounts::rootfs::{self, Rootfs, RootfsSpec};
use crate::mounts::upper::Pair;
use crate::store::Inner;

/// What a root file system is made from: a spare, a pair of directories, or nothing.
enum Start {
    Spare(Spare),
    Pair(Pair),
    Nothing,
}

/// Where a root file system is to be attached.
pub(crate) struct Attached {
    pub(crate) path: PathBuf,
    /// The id under which it is published.
    pub(crate) published: Option<String>,
}

impl Inner {
    pub(crate) fn create_rootfs(
        &self,
        id: &str,
        spec: &RootfsSpec<'_>,
        attached: Option<Attached>,
    ) -> Result<Rootfs> {
        self.check_open()?;
        rootfs::check_id(id)?;
        let (mut image, owner) = (spec.image.clone(), spec.owner.as_ref());
        let limited = |source| rootfs::Error::Limit { id: id.to_owned(), source };
        let bound = spec.limit.above(image.bytes()).map_err(rootfs::Error::from)?;
        let made_with = self.upper.made_with(bound).map_err(limited)?;
        let most = self.upper.most_ahead(made_with);
        let start = match self.ready.claim(&image.layers, owner, made_with, most) {
            Some(spare) => Start::Spare(spare),
            None if made_with.is_none() => {
                self.pool.take(root_of(owner), is_shared(owner)).map_or(Start::Nothing, Start::Pair)
            }
            None => Start::Nothing,
        };
        let dir = match &start {
            Start::Spare(spare) => spare.name.clone(),
            Start::Pair(pair) => pair.name.clone(),
            Start::Nothing => self.names.new_name(),
        };
        let mut record = self.record(id, dir, &image, attached, bound);
        let new = self.layout.records.create(&record);
        if !matches!(new, Ok(true)) {
            match start {
                Start::Spare(spare) => self.discard(self.ready.put(spare).err()),
                // A pair that was taken is not returned to the pool, but deleted.
                _ => self.trash(Place::Rootfs, &record.dir),
            }
            return Err(match new {
                Err(source) => rootfs::Error::Record { id: id.to_owned(), source },
                Ok(_) => rootfs::Error::Exists { id: id.to_owned() },
            }
            .into());
        }
        failpoint::reach(Point::RootfsRecorded);
        let built = self.furnish(&mut record, &mut image, spec, start);
        failpoint::reach(Point::RootfsMounted);
        self.door.knock();
        let (mount, honest) = match built {
            Ok(built) => built,
            Err(error) => {
                self.release_rootfs(id, None);
                return Err(error);
            }
        };
        if honest {
            record.honest = true;
            // Best effort: the field is informational only.
            let _ = self.layout.records.update_existing(&record);
            if let Ok(kept) = mount.try_clone() {
                self.honest.lock().insert(id.to_owned(), kept);
            }
        }
        image.touch();
        self.measurer.add(id, &record.dir, image.bytes());
        Ok(Rootfs { mount, dir: self.layout.path.join("rootfs").join(record.dir), honest })
    }

    fn record(
        &self,
        id: &str,
        dir: String,
        image: &Image,
        attached: Option<Attached>,
        bound: Bound,
    ) -> Record {
        let (attached, published) = attached.map_or((None, None), |at| (Some(at.path), at.published));
        Record {
            id: id.to_owned(),
            dir,
            boot_id: self.layout.boot_id.clone(),
            image: image.shown.clone(),
            layers: image.layers.iter().map(|layer| layer.as_used()).collect(),
            created_ms: record::now_ms(),
            attached,
            published,
            in_parts: false,
            bound,
            honest: false,
            writeback_error: None,
        }
    }

    /// Makes the parts of a root file system that somebody else mounts: its layers, and the pair of its writable part.
    pub(crate) fn create_parts(
        &self,
        id: &str,
        spec: &RootfsSpec<'_>,
        attached: Attached,
    ) -> Result<(Image, Pair)> {
        self.check_open()?;
        rootfs::check_id(id)?;
        let (mut image, root) = (spec.image.clone(), root_of(spec.owner.as_ref()));
        let bound = spec.limit.above(image.bytes()).map_err(rootfs::Error::from)?;
        let mut record = self.record(id, self.names.new_name(), &image, Some(attached), bound);
        record.in_parts = true;
        let new = self.layout.records.create(&record);
        if !matches!(new, Ok(true)) {
            self.names.disown(&record.dir);
            return Err(match new {
                Err(source) => rootfs::Error::Record { id: id.to_owned(), source },
                Ok(_) => rootfs::Error::Exists { id: id.to_owned() },
            }
            .into());
        }
        failpoint::reach(Point::RootfsRecorded);
        let made = self.settle(&mut record, &mut image, spec.limit).and_then(|()| {
            let pair = self.make_part(&record, root)?;
            self.bind(&record)?;
            let failed = |errno: Errno| rootfs::Error::Make { id: id.to_owned(), source: errno.into() };
            let mode = Mode::from_raw_mode(layer::root_mode(&image.layers));
            rustix::fs::fchmod(&pair.upper, mode).map_err(failed)?;
            // The kernel makes a directory of its own in it, as the user who mounts the overlay.
            let work = files::open_dir(&pair.dir, "work").map_err(failed)?;
            let (uid, gid) = (Uid::from_raw(root.0), Gid::from_raw(root.1));
            rustix::fs::fchown(&work, Some(uid), Some(gid)).map_err(failed)?;
            // Whoever mounts it only passes the directory above: the root of an image has records of the store, too.
            let above = files::open_dir(&pair.dir, ".").map_err(failed)?;
            rustix::fs::fchown(&above, None, Some(gid)).map_err(failed)?;
            rustix::fs::fchmod(&above, Mode::RWXU | Mode::XGRP).map_err(failed)?;
            Ok(pair)
        });
        failpoint::reach(Point::RootfsPaired);
        let pair = made.inspect_err(|_| self.release_rootfs(id, None))?;
        image.touch();
        Ok((image, pair))
    }

    /// Mounts a root file system whose record is written; true if it is honest.
    fn furnish(
        &self,
        record: &mut Record,
        image: &mut Image,
        spec: &RootfsSpec<'_>,
        start: Start,
    ) -> Result<(OwnedFd, bool)> {
        let owner = spec.owner.as_ref();
        // Checked after the record is written: a close reads the records after it has set `closed`, and deletes
        // directories without one.
        self.check_open()?;
        let asked = Arc::clone(&image.layers);
        let settled = self.settle(record, image, spec.limit);
        let pair = match start {
            // The check comes after the record is written: a write lost later is noted in the record.
            Start::Spare(spare)
                if settled.is_ok() && Arc::ptr_eq(&asked, &image.layers) && spare.is_sound() =>
            {
                failpoint::reach(Point::SpareClaimed);
                self.bind(record)?;
                return Ok((spare.mount, false));
            }
            Start::Spare(spare) => {
                settled?;
                // The spare's own directories cannot be mounted a second time.
                record.dir = self.names.new_name();
                self.layout.records.update_existing(record).map_err(|source| {
                    self.names.disown(&record.dir);
                    rootfs::Error::Record { id: record.id.clone(), source }
                })?;
                // A write-back error of the spare does not concern its replacement. A close since the check above
                // knows only the old directory name, so check again.
                self.hit.lock().remove(&record.id);
                self.check_open()?;
                failpoint::reach(Point::SpareRefused);
                self.discard([spare]);
                self.make_part(record, root_of(owner))?
            }
            Start::Pair(pair) => settled.map(|()| pair)?,
            Start::Nothing => {
                settled?;
                self.make_part(record, root_of(owner))?
            }
        };
        failpoint::reach(Point::RootfsPaired);
        self.bind(record)?;
        let parts = rootfs::Parts { id: &record.id, layers: &image.layers, owner, pair: &pair };
        Ok(self.mounter.build(&parts, &|| self.report_unseen())?)
    }

    /// What a part for this limit is made with; `None`: there can be none.
    pub(crate) fn made_with(&self, image: &Image, limit: DiskLimit) -> Option<Bound> {
        limit.above(image.bytes()).ok().and_then(|bound| self.upper.made_with(bound).ok())
    }

    fn make_part(&self, record: &Record, root: Root) -> Result<Pair> {
        let made = self.upper.made_with(record.bound);
        let made = made.and_then(|bound| self.upper.make(&record.dir, root, bound));
        Ok(made.map_err(|source| rootfs::Error::Make { id: record.id.clone(), source })?)
    }

    /// Gives the part its bound, unless it was made with it.
    fn bind(&self, record: &Record) -> Result<()> {
        let bound = record.bound;
        let limited = self.upper.made_with(bound).and_then(|made| match made == bound {
            true => Ok(()),
            false => self.upper.limit(&record.dir, bound),
        });
        Ok(limited.map_err(|source| rootfs::Error::Limit { id: record.id.clone(), source })?)
    }

    pub(crate) fn limit_rootfs(&self, id: &str, limit: DiskLimit) -> Result<()> {
        rootfs::check_id(id)?;
        let record = self.layout.records.get(id).map_err(|source| self.records_error(source))?;
        let mut record = record.ok_or_else(|| Error::Unknown { id: id.to_owned() })?;
        record.bound = limit.above(self.measurer.get(id).image_bytes).map_err(rootfs::Error::from)?;
        let limited = |source| rootfs::Error::Limit { id: id.to_owned(), source };
        self.upper.limit(&record.dir, record.bound).map_err(limited)?;
        let recorded = |source| rootfs::Error::Record { id: id.to_owned(), source };
        Ok(self.layout.records.update_existing(&record).map(drop).map_err(recorded)?)
    }

    /// Checks, now that the record names the image's layers, that they are in place; otherwise fetches them again.
    fn settle(&self, record: &mut Record, image: &mut Image, limit: DiskLimit) -> Result<()> {
        for _ in 0..fetch::TRIES {
            if image.layers.iter().all(|layer| self.is_fine(layer)) {
                return Ok(());
            }
            *image = self.image(&Reference::parse(&image.uri)?, &Progress::default())?;
            record.layers = image.layers.iter().map(|layer| layer.as_used()).collect();
            record.bound = limit.above(image.bytes()).map_err(rootfs::Error::from)?;
            let recorded = |source| rootfs::Error::Record { id: record.id.clone(), source };
            self.layout.records.update_existing(record).map_err(recorded)?;
        }
        Err(rootfs::Error::Gone { id: record.id.clone() }.into())
    }

    pub(crate) fn release_rootfs(&self, id: &str, handle: Option<&str>) {
        let record = self.layout.records.get(id);
        if let Err(error) = self.layout.records.remove(id) {
            tracing::warn!(id, %error, "rootfs.record-not-removed");
            return;
        }
        failpoint::reach(Point::RootfsReleased);
        self.measurer.forget(id);
        self.hit.lock().remove(id);
        let honest = self.honest.lock().remove(id);
        let Ok(Some(record)) = record else { return };
        self.names.disown(&record.dir);
        if let Some(mut item) = Item::new(Place::Rootfs, &record.dir) {
            item.made_ms = Some(record.created_ms);
            item.handle = handle.map(str::to_owned);
            // Dropping the last reference to an honest overlay syncs it.
            item.keep = honest.map(Arc::new);
            self.reaper.add(item);
        }
    }
}
