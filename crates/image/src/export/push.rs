//! Pushes an image: layers as they were imported where their blobs can be had, and otherwise as exported.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;
use serde_json::{Value, json};

use super::layout::{self, Packed};
use super::target::Compression;
use super::walk::Meter;
use crate::bounds::stop::Stop;
use crate::bounds::watch::Watch;
use crate::digest::{Digest, Hashing};
use crate::disk::section::Section;
use crate::error::{Error, RegistryError};
use crate::format::compression::Compression as Stored;
use crate::format::manifest::{Descriptor, ImageConfig, Manifest};
use crate::format::stream::stream_error;
use crate::registry::{Content, Outgoing, Puller, Pusher, RemoteBlob, Sent, Upload};
use crate::source::image::Image;
use crate::source::layer::Blob;
use crate::source::oci::ids;
use crate::source::registry::is_foreign;

/// How much of a file is read at once, in bytes.
const PIECE: usize = 256 << 10;
/// What errors call the file for a layer's blob.
const SCRATCH: &str = "the file for a layer";
const DOCKER: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// An image whose layers are unpacked, to be pushed.
pub struct Pushing<'a> {
    /// The layers, bottom first: directories made by [`crate::Layer::unpack`], which must not change meanwhile.
    pub layers: &'a [BorrowedFd<'a>],
    /// Their chain ids.
    pub chain_ids: &'a [String],
    /// The manifest with which it was imported.
    pub manifest: Option<&'a [u8]>,
    /// The config, as it was imported; without one, a minimal one for this host is made.
    pub config: Option<&'a [u8]>,
    /// The registry that it was pulled from.
    pub puller: Option<&'a Puller>,
    /// The layout or archive that it was imported from, if that is still there.
    pub opened: Option<&'a Image>,
    /// How layers are compressed that have to be exported.
    pub compression: Compression,
    /// Makes an empty file for such a layer, which can be read, written and seeked, and has no name.
    pub scratch: &'a dyn Fn() -> io::Result<File>,
    /// Whether the directories of the layers are still whole. It is asked after layers were exported, before the image
    /// gets its tag.
    pub in_place: &'a dyn Fn() -> bool,
}

impl fmt::Debug for Pushing<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pushing")
            .field("chain_ids", &self.chain_ids)
            .field("compression", &self.compression)
            .finish_non_exhaustive()
    }
}

/// How far a push is.
#[derive(Debug, Default)]
pub struct Progress {
    sent: AtomicU64,
    total: AtomicU64,
}

impl Progress {
    /// The bytes of blobs that the registry has, and those of all blobs, as far as they are known: layers that have to be
    /// exported are added one by one.
    pub fn bytes(&self) -> (u64, u64) {
        (self.sent.load(Ordering::Relaxed), self.total.load(Ordering::Relaxed))
    }
}

/// An image that was pushed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pushed {
    /// The digest of the manifest.
    pub digest: Digest,
    /// The digest of the config, which is the image's id.
    pub config: Digest,
    /// Bottom first.
    pub layers: Vec<PushedLayer>,
}

/// A layer that was pushed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PushedLayer {
    /// The digest of the blob.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// How the registry has come to have it.
    pub how: Sent,
    /// Whether it was exported, as its own blob could not be had.
    pub exported: bool,
}

/// Pushes an image. If all of its blobs can be had as they were imported, its manifest is the same, and so is its digest;
/// otherwise a manifest is made, and if the bytes of an uncompressed layer differ, the config too. One blob is sent after
/// the other, then the config, then the manifest. Memory does not grow with the size of the layers.
///
/// # Errors
/// [`RegistryError::Push`], [`RegistryError::Foreign`]; a layer that cannot be read or expressed; [`Error::Cancelled`].
pub fn push(
    pushing: &Pushing<'_>,
    pusher: &Pusher,
    progress: &Progress,
    watch: &Watch,
) -> Result<Pushed, Error> {
    let stop = Stop::new(watch);
    let all = Push { image: pushing, pusher, progress, watch, stop: &stop };
    all.run().map_err(|error| pusher.wrapped(error))
}

struct Push<'a> {
    image: &'a Pushing<'a>,
    pusher: &'a Pusher,
    progress: &'a Progress,
    watch: &'a Watch,
    stop: &'a Stop<'a>,
}

/// A layer's blob as it was imported.
struct Original {
    descriptor: Descriptor,
    /// The descriptor as it is in the manifest.
    json: Value,
    diff_id: Digest,
}

/// The layers as they are pushed.
#[derive(Default)]
struct Done {
    layers: Vec<PushedLayer>,
    descriptors: Vec<Value>,
    diff_ids: Vec<Digest>,
}

impl Done {
    fn add(&mut self, layer: PushedLayer, descriptor: Value, diff_id: Digest) {
        self.layers.push(layer);
        self.descriptors.push(descriptor);
        self.diff_ids.push(diff_id);
    }
}

impl Push<'_> {
    fn run(&self) -> Result<Pushed, Error> {
        let originals = self.originals()?;
        let known = originals.iter().flatten().map(|original| original.descriptor.size);
        self.progress.total.store(known.sum(), Ordering::Relaxed);
        let mut done = Done::default();
        for (at, original) in originals.iter().enumerate() {
            match original {
                Some(original) => self.layer(at, original, &mut done)?,
                None => self.exported(at, &mut done)?,
            }
        }
        let is_exported = done.layers.iter().any(|layer| layer.exported);
        if is_exported && !(self.image.in_place)() {
            return Err(Error::Changed { path: "the layers of the image".into() });
        }
        let as_imported = originals.iter().all(Option::is_some) && !is_exported;
        let (manifest, media_type, config) = match (self.image.manifest, self.image.config) {
            (Some(manifest), Some(config)) if as_imported => {
                (manifest.to_vec(), media_type(manifest)?, config.to_vec())
            }
            (_, config) => {
                let config = config.map_or_else(|| Ok(layout::minimal()), layout::parse)?;
                let config = layout::with_diff_ids(config, &done.diff_ids);
                let described = layout::descriptor(layout::CONFIG, &Digest::of(&config), config.len() as u64);
                let manifest = json!({
                    "schemaVersion": 2,
                    "mediaType": layout::MANIFEST,
                    "config": described,
                    "layers": done.descriptors,
                });
                (manifest.to_string().into_bytes(), layout::MANIFEST.to_owned(), config)
            }
        };
        let digest = Digest::of(&config);
        self.progress.total.fetch_add(config.len() as u64, Ordering::Relaxed);
        self.blob(&digest, config.len() as u64, &config)?;
        let manifest = self.pusher.tag(&manifest, &media_type, self.stop)?;
        Ok(Pushed { digest: manifest, config: digest, layers: done.layers })
    }

    /// Returns for each layer its blob as it was imported; `None` if the layer is another one, as that of a tar file or
    /// an app, or one whose blob nothing was verified of.
    fn originals(&self) -> Result<Vec<Option<Original>>, Error> {
        let mut found: Vec<_> = self.image.chain_ids.iter().map(|_| None).collect();
        let (Some(manifest_json), Some(config_json)) = (self.image.manifest, self.image.config) else {
            return Ok(found);
        };
        let what = "the manifest of the image";
        let manifest = Manifest::parse(manifest_json, what)?;
        let config = ImageConfig::parse(config_json, "the config of the image")?;
        if Digest::of(config_json) != manifest.config.digest {
            return Ok(found);
        }
        let Ok(ids) = ids(&manifest, &config, what) else { return Ok(found) };
        let parsed: Value =
            serde_json::from_slice(manifest_json).map_err(|error| Error::json(what, &error))?;
        let layers = manifest.layers.into_iter().zip(config.diff_ids).zip(ids).enumerate();
        for (at, ((descriptor, diff_id), (id, _))) in layers {
            if is_foreign(&descriptor) {
                return Err(RegistryError::Foreign { layer: format!("layer {}", descriptor.digest) }.into());
            }
            let is_same = self.image.chain_ids.get(at).is_some_and(|chain| *chain == id.as_hex());
            if is_same && let Some(original) = found.get_mut(at) {
                let json = parsed["layers"][at].clone();
                *original = Some(Original { descriptor, json, diff_id });
            }
        }
        Ok(found)
    }

    /// Pushes a layer as it was imported, or exports it if its blob cannot be had.
    fn layer(&self, at: usize, original: &Original, done: &mut Done) -> Result<(), Error> {
        let Descriptor { digest, size, .. } = &original.descriptor;
        let how = match self.pusher.have(digest, self.stop)? {
            Ok(how) => Some(how),
            Err(upload) => self.original(at, original, upload)?,
        };
        let Some(how) = how else {
            self.progress.total.fetch_sub(*size, Ordering::Relaxed);
            return self.exported(at, done);
        };
        if how != Sent::Sent {
            self.progress.sent.fetch_add(*size, Ordering::Relaxed);
        }
        let layer = PushedLayer { digest: digest.clone(), size: *size, how, exported: false };
        done.add(layer, of_oci(original.json.clone()), original.diff_id.clone());
        Ok(())
    }

    /// Sends a layer's blob as it was imported; `None` if it cannot be had.
    fn original(
        &self,
        at: usize,
        original: &Original,
        upload: Option<Upload>,
    ) -> Result<Option<Sent>, Error> {
        let Descriptor { digest, size, .. } = &original.descriptor;
        let send = |content: &dyn Content, upload| {
            let blob = Outgoing { digest, size: *size, content };
            self.pusher.send(blob, upload, self.stop, &self.progress.sent)
        };
        if let Some(section) = self.local(at, digest, *size)? {
            send(&section, upload)?;
            return Ok(Some(Sent::Sent));
        }
        let Some(puller) = self.image.puller else { return Ok(None) };
        let blob = RemoteBlob {
            puller: puller.clone(),
            first: 0,
            digest: digest.clone(),
            size: *size,
            partial: None,
        };
        match self.fetched(&blob) {
            Ok(Some(section)) => {
                send(&section, upload)?;
                Ok(Some(Sent::Sent))
            }
            Ok(None) => Ok(None),
            // The registry that it was pulled from does not have it any more, or does not answer.
            Err(Error::Registry { source }) if matches!(*source, RegistryError::Blob { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Receives a blob into an unnamed file; `None` if it is another one. It is verified before a byte of it is sent: the
    /// registry that it comes from may have led to a server that only this host can reach, and the one that it goes to
    /// would get that server's answer.
    fn fetched(&self, blob: &RemoteBlob) -> Result<Option<Section>, Error> {
        let (kept, mut file) = self.scratch()?;
        let mut hashing = Hashing::new(blob.receive(self.stop, blob.size, None));
        io::copy(&mut hashing, &mut file).map_err(|error| stream_error("a layer's blob", error))?;
        let is_it = hashing.finish() == blob.digest;
        Ok(is_it.then(|| Section::new(kept, 0, blob.size)))
    }

    /// Makes an unnamed file for a blob; returns it to be read and to be written.
    fn scratch(&self) -> Result<(Arc<File>, File), Error> {
        let error = |source| Error::Io { op: "make", path: SCRATCH.to_owned(), source };
        let file = (self.image.scratch)().map_err(error)?;
        Ok((Arc::new(file.try_clone().map_err(error)?), file))
    }

    /// Returns the blob of a layer in the layout or archive that it was imported from, if that has the same one still.
    fn local(&self, at: usize, digest: &Digest, size: u64) -> Result<Option<Section>, Error> {
        let Some(Blob::Oci { layout, digest: there, .. }) = self.opened(at) else { return Ok(None) };
        if there != digest || !layout.has(digest) {
            return Ok(None);
        }
        let Ok(section) = layout.blob(digest, Some(size)) else { return Ok(None) };
        let mut hashing = Hashing::new(section.clone());
        match self.copy(&mut hashing, &mut io::sink(), size) {
            Ok(()) => Ok((hashing.finish() == *digest).then_some(section)),
            Err(Error::Io { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Returns where the layer is in the image that was opened once more, if that has the same one still.
    fn opened(&self, at: usize) -> Option<&Blob> {
        let layer = self.image.opened?.layers.get(at)?;
        (layer.chain_id == *self.image.chain_ids.get(at)?).then_some(&layer.blob)
    }

    fn copy(&self, from: &mut dyn Read, to: &mut dyn Write, mut left: u64) -> Result<(), Error> {
        let what = "a layer's blob".to_owned();
        let failed = |source| Error::Io { op: "read", path: what.clone(), source };
        let mut piece = vec![0; PIECE];
        while left > 0 {
            if self.stop.is_set() {
                return Err(Error::Cancelled { what: what.clone() });
            }
            let want = piece.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let n = from.read(&mut piece[..want]).map_err(failed)?;
            if n == 0 {
                return Err(failed(io::ErrorKind::UnexpectedEof.into()));
            }
            to.write_all(&piece[..n]).map_err(failed)?;
            left -= n as u64;
        }
        Ok(())
    }

    /// Makes the blob of a layer in an unnamed file, and sends it.
    fn exported(&self, at: usize, done: &mut Done) -> Result<(), Error> {
        let shown = SCRATCH;
        let (mut kept, file) = self.scratch()?;
        let packed = match self.packed(at, file, shown)? {
            Some(packed) => packed,
            None => {
                let file;
                (kept, file) = self.scratch()?;
                let mut meter = Meter::new(self.watch, shown);
                let layer =
                    self.image.layers.get(at).ok_or_else(|| Error::Missing { path: shown.to_owned() })?;
                layout::pack_layer(*layer, file, shown, self.image.compression, &mut meter)?
            }
        };
        let Packed { digest, size, diff_id } = packed;
        self.progress.total.fetch_add(size, Ordering::Relaxed);
        let how = self.blob(&digest, size, &Section::new(kept, 0, size))?;
        let media_type = layout::layer_type(Some(self.image.compression));
        let descriptor = layout::descriptor(&media_type, &digest, size);
        done.add(PushedLayer { digest, size, how, exported: true }, descriptor, diff_id);
        Ok(())
    }

    /// Compresses the tar of a layer of an archive that `docker save` wrote, whose diff id, and with it the image's id,
    /// stays; `None` if it is not there any more.
    fn packed(&self, at: usize, file: File, shown: &str) -> Result<Option<Packed>, Error> {
        let Some(Blob::Member { section, diff_id, .. }) = self.opened(at) else { return Ok(None) };
        let (mut head, mut from) = ([0; 16], section.clone());
        let n = from.read(&mut head).map_err(|source| Error::Io {
            op: "read",
            path: shown.to_owned(),
            source,
        })?;
        if Stored::of(&head[..n]).is_some() {
            return Ok(None);
        }
        let compression = self.image.compression;
        match layout::pack(file, shown, compression, |out| {
            self.copy(&mut section.clone(), out, section.size())
        }) {
            Ok(packed) => Ok((packed.diff_id == *diff_id).then_some(packed)),
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Has the registry have a blob.
    fn blob(&self, digest: &Digest, size: u64, content: &dyn Content) -> Result<Sent, Error> {
        match self.pusher.have(digest, self.stop)? {
            Ok(how) => {
                self.progress.sent.fetch_add(size, Ordering::Relaxed);
                Ok(how)
            }
            Err(upload) => {
                let blob = Outgoing { digest, size, content };
                self.pusher.send(blob, upload, self.stop, &self.progress.sent)?;
                Ok(Sent::Sent)
            }
        }
    }
}

impl Content for Section {
    fn open(&self, from: u64) -> Result<Box<dyn Read + Send + '_>, Error> {
        let mut section = self.clone();
        let error = |source| Error::Io { op: "read", path: "a layer's blob".into(), source };
        section.seek(SeekFrom::Start(from)).map_err(error)?;
        Ok(Box::new(section))
    }
}

/// Returns the media type of a manifest; one that does not say it has that of its config.
fn media_type(manifest: &[u8]) -> Result<String, Error> {
    let what = "the manifest of the image";
    let parsed: Value = serde_json::from_slice(manifest).map_err(|error| Error::json(what, &error))?;
    Ok(match (parsed["mediaType"].as_str(), parsed["config"]["mediaType"].as_str()) {
        (Some(media_type), _) => media_type.to_owned(),
        (None, Some(DOCKER_CONFIG)) => DOCKER.to_owned(),
        (None, _) => layout::MANIFEST.to_owned(),
    })
}

/// Has a descriptor of docker's be one of OCI, for a manifest of OCI.
fn of_oci(mut descriptor: Value) -> Value {
    if let Some(rest) = descriptor["mediaType"].as_str().and_then(|text| text.strip_prefix(DOCKER_LAYER)) {
        descriptor["mediaType"] = format!("{}{}", layout::LAYER, rest.replace('.', "+")).into();
    }
    descriptor
}
