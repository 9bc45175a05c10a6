//! Reports the space that the store's parts take, and how much of it can be reclaimed.

use std::collections::{BTreeMap, HashSet};
use std::ffi::CString;
use std::os::fd::OwnedFd;

use serde::Serialize;

use crate::disk::blocks::entry_bytes;
use crate::disk::record::Record;
use crate::disk::{files, layout};
use crate::error::Result;
use crate::images::image;
use crate::layers::layer;
use crate::store::Inner;

/// The store's space, in bytes on the disk. `layers_bytes + records_bytes + rootfs_bytes + volumes_bytes + trash_bytes +
/// staging_bytes + partial_bytes` is what the store takes; the rest are parts of it.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Usage {
    /// All layers.
    pub layers_bytes: u64,
    /// The number of layers.
    pub layers: usize,
    /// Layers that root file systems use now.
    pub used_bytes: u64,
    /// Layers that several named images or several root file systems share; sharing saves a multiple of this.
    pub shared_bytes: u64,
    /// Layers that are neither used nor pinned: what `store gc --threshold 0` frees.
    pub reclaimable_bytes: u64,
    /// Of those, layers that no named image has: what `store gc` frees.
    pub unnamed_bytes: u64,
    /// Layers of pinned images that no root file system uses.
    pub pinned_bytes: u64,
    /// Layers that may not be on the disk, and so are not used any more.
    pub suspect_bytes: u64,
    /// The records of named images, with their manifests and configs.
    pub records_bytes: u64,
    /// Writable layers of living root file systems.
    pub rootfs_bytes: u64,
    /// Half-made layers, being unpacked or left by killed processes.
    pub staging_bytes: u64,
    /// Parts of blobs whose fetch ended early, for the next try.
    pub partial_bytes: u64,
    /// Named volumes.
    pub volumes_bytes: u64,
    /// Trash that is not deleted yet.
    pub trash_bytes: u64,
    /// Free on the file system, for root.
    pub free_bytes: u64,
    /// The file system's size.
    pub total_bytes: u64,
    /// Named images.
    pub images: Vec<ImageUsage>,
    /// Living root file systems.
    pub rootfs: Vec<RootfsUsage>,
    /// Named volumes.
    pub volumes: Vec<VolumeUsage>,
}

/// The space of one named volume.
#[derive(Debug, Clone, Serialize)]
pub struct VolumeUsage {
    /// Its name.
    pub name: String,
    /// All that is in it.
    pub bytes: u64,
}

/// The space of one named image.
#[derive(Debug, Clone, Serialize)]
pub struct ImageUsage {
    /// Its name.
    pub name: String,
    /// All its layers.
    pub bytes: u64,
    /// The layers that no other named image has.
    pub own_bytes: u64,
    /// Whether it is pinned.
    pub pinned: bool,
    /// Whether a root file system uses one of its layers.
    pub used: bool,
}

/// The space of one root file system.
#[derive(Debug, Clone, Serialize)]
pub struct RootfsUsage {
    /// Its id.
    pub id: String,
    /// The image, as it was asked for.
    pub image: String,
    /// Its writable layer.
    pub own_bytes: u64,
    /// The image's layers below it.
    pub image_bytes: u64,
    /// Where it is attached, if it is.
    pub attached: Option<std::path::PathBuf>,
    /// A write-back error that happened under it, with the remedy.
    pub writeback_error: Option<String>,
}

/// The layers and the trash, in numbers that are known without a walk over files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Layers.
    pub layers: usize,
    /// Bytes that they take.
    pub layers_bytes: u64,
    /// Those that are trusted, and not known to be on the disk yet.
    pub fragile: usize,
    /// Those that are given to nobody.
    pub suspect: usize,
    /// Entries of the trash, which wait for their deletion.
    pub trash: usize,
}

impl Inner {
    /// Returns the numbers of layers and trash, from the records.
    pub(crate) fn summary(&self) -> Result<Summary> {
        let trash = files::names(&self.layout.trash)
            .map_err(|error| layout::Error::List { name: "trash", source: error.into() })?;
        let mut summary = Summary { trash: trash.len(), ..Summary::default() };
        for seen in self.seen_layers()? {
            summary.layers += 1;
            summary.layers_bytes += seen.record.size();
            summary.suspect += usize::from(!seen.trusted);
            summary.fragile += usize::from(seen.trusted && !seen.record.durable);
        }
        Ok(summary)
    }

    pub(crate) fn usage(&self) -> Result<Usage> {
        let records = self.records()?;
        let images = image::all(&self.layout)?;
        let layers = self.seen_layers()?;
        let used: HashSet<&String> =
            records.iter().flat_map(|record| record.layers.iter().map(|used| &used.instance)).collect();
        let pinned: HashSet<&String> =
            images.iter().filter(|image| image.pinned).flat_map(|image| &image.layers).collect();
        let mut named: BTreeMap<&String, usize> = BTreeMap::new();
        images.iter().flat_map(|image| &image.layers).for_each(|chain| *named.entry(chain).or_default() += 1);
        let mut below: BTreeMap<&String, usize> = BTreeMap::new();
        let lowers = records.iter().flat_map(|record| &record.layers);
        lowers.for_each(|used| *below.entry(&used.chain).or_default() += 1);
        let several = |holders: &BTreeMap<&String, usize>, chain| holders.get(chain).is_some_and(|n| *n > 1);
        let shared = |chain| several(&named, chain) || several(&below, chain);

        let mut usage = Usage { layers: layers.len(), ..Usage::default() };
        let mut sizes = BTreeMap::new();
        for seen in &layers {
            let record = &seen.record;
            let bytes = record.size();
            sizes.insert(&record.chain_id, (bytes, used.contains(&record.instance)));
            usage.layers_bytes += bytes;
            usage.shared_bytes += if shared(&record.chain_id) { bytes } else { 0 };
            let part = if used.contains(&record.instance) {
                &mut usage.used_bytes
            } else if !seen.trusted {
                &mut usage.suspect_bytes
            } else if pinned.contains(&record.chain_id) {
                &mut usage.pinned_bytes
            } else {
                if !named.contains_key(&record.chain_id) {
                    usage.unnamed_bytes += bytes;
                }
                &mut usage.reclaimable_bytes
            };
            *part += bytes;
        }
        let size = |chain: &String| sizes.get(chain).map_or(0, |(bytes, _)| *bytes);
        for image in &images {
            let own = image.layers.iter().filter(|chain| named.get(chain) == Some(&1)).map(size).sum();
            usage.images.push(ImageUsage {
                name: image.name.clone(),
                bytes: image.layers.iter().map(size).sum(),
                own_bytes: own,
                pinned: image.pinned,
                used: image.layers.iter().any(|chain| sizes.get(chain).is_some_and(|(_, used)| *used)),
            });
        }
        let mut living = HashSet::new();
        for record in &records {
            living.insert(record.dir.as_str());
            let own_bytes = self.rootfs_bytes(record);
            usage.rootfs_bytes += own_bytes;
            usage.rootfs.push(RootfsUsage {
                id: record.id.clone(),
                image: record.image.clone(),
                own_bytes,
                image_bytes: record.layers.iter().map(|used| size(&used.chain)).sum(),
                attached: record.attached.clone(),
                writeback_error: record.writeback_error.clone(),
            });
        }
        usage.rootfs.sort_by(|a, b| a.id.cmp(&b.id));
        usage.records_bytes = tree_bytes(&self.layout.images, &image::is_record);
        usage.trash_bytes = tree_bytes(&self.layout.trash, &|_| true);
        // Includes the server's pairs and spares, some kilobytes each.
        usage.trash_bytes += tree_bytes(&self.layout.rootfs, &|name| !living.contains(name));
        for volume in self.volumes()? {
            let of = |dir| tree_bytes(dir, &|name| name == volume.name);
            let bytes = self.layout.volumes.as_ref().map_or(0, of);
            usage.volumes_bytes += bytes;
            usage.volumes.push(VolumeUsage { name: volume.name, bytes });
        }
        usage.staging_bytes = tree_bytes(&self.layout.staging, &|_| true);
        usage.partial_bytes = tree_bytes(&self.layout.partial, &|_| true);
        if let Ok(fs) = rustix::fs::fstatvfs(&self.layout.root) {
            usage.free_bytes = fs.f_bavail * fs.f_frsize;
            usage.total_bytes = fs.f_blocks * fs.f_frsize;
        }
        Ok(usage)
    }

    /// Bytes of a root file system's writable layer.
    pub(crate) fn rootfs_bytes(&self, record: &Record) -> u64 {
        tree_bytes(&self.layout.rootfs, &|name| name == record.dir)
    }

    /// Returns the records of the living root file systems.
    pub(crate) fn records(&self) -> Result<Vec<Record>> {
        self.layout.records.all().map_err(|source| self.records_error(source))
    }
}

/// Returns the bytes on the disk of those entries of a directory whose names are wanted, with everything below them.
/// Entries that disappear meanwhile or cannot be read do not count.
fn tree_bytes(dir: &OwnedFd, wanted: &dyn Fn(&str) -> bool) -> u64 {
    let mut linked = HashSet::new();
    let Ok(names) = files::names(dir) else { return 0 };
    let wanted = names.into_iter().filter(|name| wanted(name)).filter_map(|name| CString::new(name).ok());
    wanted.filter_map(|name| entry_bytes(dir, &name, &mut linked, &|| false)).sum()
}

/// What is recorded of one layer.
#[derive(Debug, Clone, Serialize)]
pub struct LayerInfo {
    /// Its chain id.
    pub chain_id: String,
    /// Its diff id.
    pub diff_id: String,
    /// Entries of its tar.
    pub entries: u64,
    /// Bytes of its files.
    pub bytes: u64,
    /// Bytes on the disk; known once it is durable.
    pub disk_bytes: Option<u64>,
    /// Whether a power cut leaves it whole.
    pub durable: bool,
    /// Whether a write error was reported while it was not durable.
    pub suspect: bool,
}

impl From<layer::Record> for LayerInfo {
    fn from(record: layer::Record) -> Self {
        Self {
            chain_id: record.chain_id,
            diff_id: record.diff_id,
            entries: record.entries,
            bytes: record.bytes,
            disk_bytes: record.disk_bytes,
            durable: record.durable,
            suspect: record.suspect,
        }
    }
}
