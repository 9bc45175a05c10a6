//! Garbage collection of unused layers, the least recently used first, down to a number of bytes.
//!
//! Collecting a layer is one rename into the trash; the reaper deletes it later, and not before the last root file
//! system that uses it is gone (see [`crate::disk::record`]). No lock is held, and creates go on meanwhile. A name
//! whose layers were collected is removed with them; pinned images are never touched.

use std::collections::{BTreeSet, HashSet};

use serde::Serialize;
use wardian_sys::failpoint;

use crate::disk::files;
use crate::disk::layout;
use crate::error::Result;
use crate::failpoints::Point;
use crate::images::image::{self, Named};
use crate::layers::layer::{self, Record, State};
use crate::layers::partial::{self, Which};
use crate::mounts::reaper::Place;
use crate::store::Inner;

/// A layer as garbage collection and reports see it.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) record: Record,
    /// Whether it can be used, see [`layer::trusted`].
    pub(crate) trusted: bool,
    /// When it was last used, in seconds since 1970.
    pub(crate) used: u64,
}

/// Which layers a collection may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Garbage {
    /// Layers that no named image has.
    Unnamed,
    /// Layers of named images, too, the least recently used first, until the layers take at most this many bytes.
    /// Names whose layers are collected are removed. The manifests and configs of named images count, too: if those
    /// alone are too many, the names that were imported first are removed.
    Until(u64),
}

/// The result of a collection, or of a dry run.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Collected {
    /// The chain ids of the collected layers, in order of collection.
    pub layers: Vec<String>,
    /// The names that were removed with their layers.
    pub images: Vec<String>,
    /// The bytes that are freed once the reaper has deleted the layers.
    pub freed_bytes: u64,
    /// The bytes that were kept of blobs whose fetch ended early, and are freed, too.
    pub partial_bytes: u64,
    /// The bytes of manifests and configs that are freed with the names that had them.
    pub documents_bytes: u64,
    /// The bytes of the layers that stay.
    pub kept_bytes: u64,
    /// Of those, the bytes that must not be collected: used by root file systems, pinned, or of named images that
    /// this collection spares.
    pub needed_bytes: u64,
}

impl Inner {
    /// Returns all layers in place whose records can be read.
    pub(crate) fn seen_layers(&self) -> Result<Vec<Seen>> {
        let names = files::names(&self.layout.layers)
            .map_err(|error| layout::Error::List { name: "layers", source: error.into() })?;
        let mut seen = Vec::new();
        for chain in names {
            let Ok(dir) = files::open_dir(&self.layout.layers, &chain) else { continue };
            let (Ok(record), Ok(stat)) = (Record::read(&dir), rustix::fs::fstat(&dir)) else { continue };
            let own = self.layers.lock().get(&chain).cloned();
            let used = own.as_ref().map_or(0, |layer| layer.used());
            let (trusted, record) = match own {
                Some(own) if own.instance == record.instance => (own.state() != State::Suspect, record),
                _ => layer::trusted(&self.layout, &dir, record),
            };
            seen.push(Seen { record, trusted, used: used.max(u64::try_from(stat.st_mtime).unwrap_or(0)) });
        }
        Ok(seen)
    }

    /// Collects unused layers; with `only`, no others than these.
    pub(crate) fn collect(&self, garbage: Garbage, only: Option<&HashSet<String>>) -> Result<Collected> {
        let images = image::all(&self.layout)?;
        let done = self
            .choose(&images, garbage, only, &mut |record| self.condemn(&record.chain_id, &record.instance));
        let mut done = done?;
        for name in std::mem::take(&mut done.images) {
            match image::remove(&self.layout, &name) {
                Ok(()) => done.images.push(name),
                Err(image::Error::Unknown { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        if !done.images.is_empty() {
            image::sweep(&self.layout);
        }
        if !done.layers.is_empty() {
            tracing::info!(layers = done.layers.len(), bytes = done.freed_bytes, images = ?done.images, "collected");
        }
        Ok(done)
    }

    /// As [`Inner::collect`], and what is kept of pulls that ended early goes, too: whoever asks for it wants the space.
    pub(crate) fn collect_all(&self, garbage: Garbage, only: Option<&HashSet<String>>) -> Result<Collected> {
        let mut done = self.collect(garbage, only)?;
        done.partial_bytes = partial::sweep(&self.layout, Which::All, false);
        Ok(done)
    }

    /// Returns what [`Inner::collect_all`] would collect now.
    pub(crate) fn garbage(&self, garbage: Garbage) -> Result<Collected> {
        let mut found = self.choose(&image::all(&self.layout)?, garbage, None, &mut |_| Ok(()))?;
        found.partial_bytes = partial::sweep(&self.layout, Which::All, true);
        Ok(found)
    }

    /// Chooses the unused layers to collect, calls `take` for each, and lists the named images that lose layers.
    fn choose(
        &self,
        images: &[Named],
        garbage: Garbage,
        only: Option<&HashSet<String>>,
        take: &mut dyn FnMut(&Record) -> Result<()>,
    ) -> Result<Collected> {
        // A name protects its layers even if they are not trusted; the image is fetched again when it is needed.
        let (keeps, target): (fn(&Named) -> bool, u64) = match garbage {
            Garbage::Unnamed => (|_| true, 0),
            Garbage::Until(target) => (|image| image.pinned, target),
        };
        let kept: HashSet<&String> =
            images.iter().filter(|image| keeps(image)).flat_map(|image| &image.layers).collect();
        let used = self.used_layers()?;
        let mut layers = self.seen_layers()?;
        layers.sort_by(|a, b| (a.used, &a.record.chain_id).cmp(&(b.used, &b.record.chain_id)));
        let mut weights = match garbage {
            Garbage::Until(_) => {
                let is_used = |chain: &String| used.iter().any(|used| used.chain == *chain);
                image::Weights::of(&self.layout, &|image| image.pinned || image.layers.iter().any(is_used))?
            }
            Garbage::Unnamed => image::Weights::default(),
        };
        let documents = weights.bytes();
        let mut done =
            Collected { kept_bytes: layers.iter().map(|l| l.record.size()).sum(), ..Collected::default() };
        for Seen { record, trusted, .. } in layers {
            let in_use = used.iter().any(|used| used.instance == record.instance);
            if in_use || kept.contains(&record.chain_id) {
                done.needed_bytes += record.size();
                continue;
            }
            let concerned = only.is_none_or(|only| only.contains(&record.chain_id));
            if concerned && (done.kept_bytes + documents > target || !trusted) {
                take(&record)?;
                done.kept_bytes -= record.size();
                done.freed_bytes += record.size();
                done.layers.push(record.chain_id);
            }
        }
        let gone: BTreeSet<&String> = done.layers.iter().collect();
        let emptied = images.iter().filter(|image| image.layers.iter().any(|layer| gone.contains(layer)));
        done.images = emptied.map(|image| image.name.clone()).collect();
        if only.is_none() {
            done.images.iter().for_each(|name| weights.without(name));
            while done.kept_bytes + weights.bytes() > target
                && let Some(oldest) = weights.oldest().map(|image| image.name.clone())
            {
                weights.without(&oldest);
                done.images.push(oldest);
            }
            done.documents_bytes = documents - weights.bytes();
        }
        Ok(done)
    }

    /// Moves a layer to the trash. A missing layer is no error.
    pub(crate) fn condemn(&self, chain: &str, instance: &str) -> Result<()> {
        self.layers.lock().remove(chain);
        match layer::condemn(&self.layout, chain, instance) {
            Ok(()) => {
                failpoint::reach(Point::Condemned);
                self.trash(Place::Trash, &layer::trash_name(instance));
            }
            Err(layout::Error::Trash { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}
