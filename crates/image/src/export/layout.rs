//! Writes an OCI image layout, as a directory or into a tar file, with docker's `manifest.json` if wanted.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::mem;
use std::num::NonZero;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;

use flate2::write::GzEncoder;
use rustix::fs::{Mode, OFlags, mkdirat, openat, renameat};
use rustix::io::Errno;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use tar::EntryType;

use super::tarball::{BUFFER, END, Head, Named, Tarball, failed, padding};
use super::target::{Compression, ExportedImage};
use super::walk::{self, Meter};
use crate::digest::Digest;
use crate::error::Error;
use crate::format::manifest::{IMAGE_NAME, MAX_JSON, REF_NAME, host_architecture, too_large};
use crate::format::reference::split_tag;

const BLOBS: &str = "blobs/sha256";
/// A blob whose digest is not known yet.
const PART: &str = "blobs/sha256/part";
pub(super) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(super) const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(super) const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// A layout being written.
pub(super) struct Layout<'a> {
    place: Place,
    /// The path of the target, for errors.
    shown: &'a str,
    written: HashSet<Digest>,
}

enum Place {
    Directory(OwnedFd),
    Archive(File),
}

impl<'a> Layout<'a> {
    pub(super) fn in_directory(dir: OwnedFd, shown: &'a str) -> Result<Self, Error> {
        for name in ["blobs", BLOBS] {
            mkdirat(&dir, name, Mode::RWXU).map_err(|e| failed(shown, e.into()))?;
        }
        Ok(Self { place: Place::Directory(dir), shown, written: HashSet::new() })
    }

    /// Writes the layout as an archive; the file must be empty.
    pub(super) fn in_archive(file: File, shown: &'a str) -> Self {
        Self { place: Place::Archive(file), shown, written: HashSet::new() }
    }

    fn failed(&self, e: impl Into<io::Error>) -> Error {
        failed(self.shown, e.into())
    }

    /// Writes a file with a fixed name.
    fn file(&mut self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        match &mut self.place {
            Place::Directory(dir) => {
                make(dir, name).map_err(io::Error::from).and_then(|mut f| f.write_all(bytes))
            }
            Place::Archive(file) => {
                let head = Head::plain(EntryType::Regular, name.as_bytes(), bytes.len() as u64, 0o644);
                file.write_all(&[&head.encode(), bytes, padding(head.size)].concat())
            }
        }
        .map_err(|e| failed(self.shown, e))
    }

    /// Writes a blob with `fill`. Its name and size are known only afterwards, so in an archive its header is written
    /// last.
    fn blob<T>(
        &mut self,
        fill: impl FnOnce(&mut Hashed) -> Result<T, Error>,
    ) -> Result<(Digest, u64, T), Error> {
        let (file, start) = match &mut self.place {
            Place::Directory(dir) => (make(dir, PART).map_err(|e| failed(self.shown, e.into()))?, 0),
            Place::Archive(file) => {
                let start = file.stream_position().and_then(|start| {
                    file.write_all(&[0; 512])?;
                    Ok(start)
                });
                let clone = file.try_clone().map_err(|e| failed(self.shown, e))?;
                (clone, start.map_err(|e| failed(self.shown, e))?)
            }
        };
        let out = BufWriter::with_capacity(BUFFER, file);
        let mut out = Hashed { out, hasher: Sha256::new(), bytes: 0 };
        let value = fill(&mut out)?;
        let Hashed { mut out, hasher, bytes } = out;
        out.flush().map_err(|e| self.failed(e))?;
        let digest = Digest::finish(hasher);
        let name = format!("{BLOBS}/{}", digest.as_hex());
        match &mut self.place {
            // A blob that was written before replaces the first one.
            Place::Directory(dir) => renameat(&*dir, PART, &*dir, &*name).map_err(io::Error::from),
            Place::Archive(file) if self.written.contains(&digest) => {
                file.set_len(start).and_then(|()| file.seek(SeekFrom::Start(start))).map(drop)
            }
            Place::Archive(file) => file.write_all(padding(bytes)).and_then(|()| {
                // A PAX record would need more than the one reserved block, so a large size is written in the binary
                // form, which readers know.
                file.write_all_at(
                    &Head::plain(EntryType::Regular, name.as_bytes(), bytes, 0o644).one_block(),
                    start,
                )
            }),
        }
        .map_err(|e| failed(self.shown, e))?;
        self.written.insert(digest.clone());
        Ok((digest, bytes, value))
    }

    fn document(&mut self, value: &[u8]) -> Result<(Digest, u64), Error> {
        let shown = self.shown;
        let (digest, size, ()) = self.blob(|out| out.write_all(value).map_err(|e| failed(shown, e)))?;
        Ok((digest, size))
    }
}

fn make(dir: &OwnedFd, name: &str) -> Result<File, Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(dir, name, flags, Mode::RUSR | Mode::WUSR)?.into())
}

/// Hashes and counts what is written through it.
struct Hashed<W = BufWriter<File>> {
    out: W,
    hasher: Sha256,
    bytes: u64,
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.out.write(buf)?;
        self.hasher.update(&buf[..n]);
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// The size of a piece that a thread compresses, and the maximum number of threads. Every piece becomes a gzip member
/// or a zstd frame of its own, which may be concatenated (RFC 1952, 2.2; RFC 8878, 3.1), so the result does not
/// depend on the number of threads. Three pieces for each thread stay below 32 MB.
const PIECE: usize = 1 << 20;
const MAX_THREADS: usize = 8;

/// Distributes written data to the compressing threads, round robin.
struct Pieces {
    piece: Vec<u8>,
    next: usize,
    threads: Vec<SyncSender<Vec<u8>>>,
}

impl Pieces {
    fn send(&mut self) -> io::Result<()> {
        let piece = mem::replace(&mut self.piece, Vec::with_capacity(PIECE));
        let thread = &self.threads[self.next % self.threads.len()];
        self.next += 1;
        // The send fails only if the blob could not be written, and that error is reported.
        thread.send(piece).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl Write for Pieces {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = buf.len().min(PIECE - self.piece.len());
        self.piece.extend_from_slice(&buf[..n]);
        if self.piece.len() == PIECE {
            self.send()?;
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.piece.is_empty() { Ok(()) } else { self.send() }
    }
}

/// Compresses at the levels of docker and containerd, which are also the libraries' defaults.
fn compress(piece: &[u8], compression: Compression) -> io::Result<Vec<u8>> {
    match compression {
        Compression::Gzip => {
            let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::default());
            encoder.write_all(piece)?;
            encoder.finish()
        }
        Compression::Zstd => zstd::bulk::compress(piece, zstd::DEFAULT_COMPRESSION_LEVEL),
    }
}

/// Compresses the data that `fill` writes.
fn compressed<T>(
    out: &mut Hashed,
    shown: &str,
    compression: Compression,
    fill: impl FnOnce(Pieces) -> Result<T, Error>,
) -> Result<T, Error> {
    let thread_error = |why: String| Error::Thread { what: shown.into(), why };
    let count = thread::available_parallelism().map_or(1, NonZero::get).min(MAX_THREADS);
    thread::scope(|scope| {
        let (mut threads, mut packed, mut handles) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..count {
            let (thread, pieces) = sync_channel::<Vec<u8>>(1);
            let (to_writer, from_thread) = sync_channel(1);
            let run = move || {
                for piece in pieces {
                    if to_writer.send(compress(&piece, compression)).is_err() {
                        return;
                    }
                }
            };
            let builder = thread::Builder::new().name("layer-pack".into());
            handles.push(builder.spawn_scoped(scope, run).map_err(|e| thread_error(e.to_string()))?);
            threads.push(thread);
            packed.push(from_thread);
        }
        let run = move || {
            // The pieces are collected in the order of distribution; the first thread without one marks the end.
            for thread in packed.iter().cycle() {
                let Ok(piece) = thread.recv() else { break };
                out.write_all(&piece?)?;
            }
            Ok(())
        };
        let builder = thread::Builder::new().name("layer-write".into());
        let writer = builder.spawn_scoped(scope, run).map_err(|e| thread_error(e.to_string()))?;
        let filled = fill(Pieces { piece: Vec::with_capacity(PIECE), next: 0, threads });
        for handle in handles {
            handle.join().map_err(|_| thread_error("it panicked".into()))?;
        }
        writer.join().map_err(|_| thread_error("it panicked".into()))?.map_err(|e| failed(shown, e))?;
        filled
    })
}

/// What is written of an image.
#[derive(Debug, Clone, Copy)]
pub struct Whole<'a> {
    /// Its layers, bottom first.
    pub layers: &'a [BorrowedFd<'a>],
    /// Its OCI image config, whose diff ids are replaced; without one, a minimal config for this host is made.
    pub config: Option<&'a [u8]>,
    /// Its names, as `name[:tag]`.
    pub names: &'a [String],
}

/// Writes whole images; without compression, also docker's `manifest.json`.
pub(super) fn write(
    layout: &mut Layout<'_>,
    images: &[Whole<'_>],
    compression: Option<Compression>,
    meter: &mut Meter<'_>,
) -> Result<Vec<ExportedImage>, Error> {
    let shown = layout.shown;
    if let Place::Archive(file) = &mut layout.place {
        for name in ["blobs/", "blobs/sha256/"] {
            file.write_all(&Head::plain(EntryType::Directory, name.as_bytes(), 0, 0o755).encode())
                .map_err(|e| failed(shown, e))?;
        }
    }
    let (mut exported, mut entries, mut list) = (Vec::new(), Vec::new(), Vec::new());
    for image in images {
        exported.push(write_one(layout, image, compression, meter, &mut entries, &mut list)?);
    }
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries});
    layout.file("index.json", index.to_string().as_bytes())?;
    if compression.is_none() {
        layout.file("manifest.json", Value::from(list).to_string().as_bytes())?;
    }
    layout.file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    if let Place::Archive(file) = &mut layout.place {
        file.write_all(&END).map_err(|e| failed(shown, e))?;
    }
    Ok(exported)
}

/// Writes the blobs of an image, and adds it to the index and to docker's list.
fn write_one(
    layout: &mut Layout<'_>,
    Whole { layers, config, names }: &Whole<'_>,
    compression: Option<Compression>,
    meter: &mut Meter<'_>,
    entries: &mut Vec<Value>,
    list: &mut Vec<Value>,
) -> Result<ExportedImage, Error> {
    let names = names.iter().map(|name| full_name(name)).collect::<Result<Vec<_>, _>>()?;
    let config = config.map_or_else(|| Ok(minimal()), parse)?;
    let (media_type, shown) = (layer_type(compression), layout.shown);
    let (mut blobs, mut diff_ids) = (Vec::new(), Vec::new());
    for layer in *layers {
        let (digest, size, diff_id) = layout.blob(|out| tar(*layer, out, shown, compression, meter))?;
        diff_ids.push(diff_id.unwrap_or_else(|| digest.clone()));
        blobs.push((digest, size));
    }
    let config = with_diff_ids(config, &diff_ids);
    let (config, config_size) = layout.document(&config)?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor(CONFIG, &config, config_size),
        "layers": blobs.iter().map(|(digest, size)| descriptor(&media_type, digest, *size)).collect::<Vec<_>>(),
    });
    let (manifest, size) = layout.document(manifest.to_string().as_bytes())?;
    for name in &names {
        let mut entry = descriptor(MANIFEST, &manifest, size);
        entry["annotations"] = json!({IMAGE_NAME: name, REF_NAME: split_tag(name).1});
        entries.push(entry);
    }
    if names.is_empty() {
        entries.push(descriptor(MANIFEST, &manifest, size));
    }
    let path = |digest: &Digest| format!("{BLOBS}/{}", digest.as_hex());
    let layers: Vec<_> = blobs.iter().map(|(digest, _)| path(digest)).collect();
    list.push(json!({"Config": path(&config), "RepoTags": names, "Layers": layers}));
    Ok(ExportedImage { manifest, config, diff_ids })
}

/// Returns the media type of a layer.
pub(super) fn layer_type(compression: Option<Compression>) -> String {
    match compression {
        None => LAYER.to_owned(),
        Some(Compression::Gzip) => format!("{LAYER}+gzip"),
        Some(Compression::Zstd) => format!("{LAYER}+zstd"),
    }
}

pub(super) fn descriptor(kind: &str, digest: &Digest, size: u64) -> Value {
    json!({"mediaType": kind, "digest": digest.to_string(), "size": size})
}

/// A layer's blob in a file.
pub(super) struct Packed {
    pub(super) digest: Digest,
    pub(super) size: u64,
    pub(super) diff_id: Digest,
}

/// Writes a blob into an empty file: what `fill` writes, compressed.
pub(super) fn pack(
    file: File,
    shown: &str,
    compression: Compression,
    fill: impl FnOnce(&mut dyn Write) -> Result<(), Error>,
) -> Result<Packed, Error> {
    let out = BufWriter::with_capacity(BUFFER, file);
    let mut out = Hashed { out, hasher: Sha256::new(), bytes: 0 };
    let diff_id = compressed(&mut out, shown, compression, |pieces| {
        let mut plain = Hashed { out: pieces, hasher: Sha256::new(), bytes: 0 };
        fill(&mut plain)?;
        plain.flush().map_err(|e| failed(shown, e))?;
        Ok(Digest::finish(plain.hasher))
    })?;
    let Hashed { mut out, hasher, bytes } = out;
    out.flush().map_err(|e| failed(shown, e))?;
    Ok(Packed { digest: Digest::finish(hasher), size: bytes, diff_id })
}

/// As [`pack`], for a layer.
pub(super) fn pack_layer(
    layer: BorrowedFd<'_>,
    file: File,
    shown: &str,
    compression: Compression,
    meter: &mut Meter<'_>,
) -> Result<Packed, Error> {
    pack(file, shown, compression, |out| {
        let mut tarball = Tarball::new(Named { inner: out, path: shown });
        walk::layer(layer, &mut tarball, meter)?;
        tarball.to.put(&END)
    })
}

/// Writes one layer as a blob; returns its diff id unless that equals the blob's digest.
fn tar(
    layer: BorrowedFd<'_>,
    out: &mut Hashed,
    shown: &str,
    compression: Option<Compression>,
    meter: &mut Meter<'_>,
) -> Result<Option<Digest>, Error> {
    let Some(compression) = compression else {
        let mut tarball = Tarball::new(Named { inner: out, path: shown });
        walk::layer(layer, &mut tarball, meter)?;
        tarball.to.put(&END)?;
        return Ok(None);
    };
    compressed(out, shown, compression, |pieces| {
        let inner = Hashed { out: pieces, hasher: Sha256::new(), bytes: 0 };
        let mut tarball = Tarball::new(Named { inner, path: shown });
        walk::layer(layer, &mut tarball, meter)?;
        tarball.to.put(&END)?;
        tarball.to.inner.flush().map_err(|e| failed(shown, e))?;
        Ok(Some(Digest::finish(tarball.to.inner.hasher)))
    })
}

/// The parsed config, with its original bytes.
pub(super) struct Config<'a> {
    raw: Option<&'a [u8]>,
    fields: Map<String, Value>,
}

pub(super) fn parse(raw: &[u8]) -> Result<Config<'_>, Error> {
    let what = "the image config";
    if raw.len() as u64 > MAX_JSON {
        return Err(too_large(what));
    }
    let fields = serde_json::from_slice(raw).map_err(|error| Error::json(what, &error))?;
    Ok(Config { raw: Some(raw), fields })
}

pub(super) fn minimal() -> Config<'static> {
    let fields = Map::from_iter([
        ("architecture".to_owned(), host_architecture().into()),
        ("os".to_owned(), "linux".into()),
        ("config".to_owned(), json!({})),
    ]);
    Config { raw: None, fields }
}

/// Returns the config with these diff ids. One that has them already keeps its bytes, and so the image keeps its id.
pub(super) fn with_diff_ids(config: Config<'_>, diff_ids: &[Digest]) -> Vec<u8> {
    let rootfs = json!({
        "type": "layers",
        "diff_ids": diff_ids.iter().map(Digest::to_string).collect::<Vec<_>>(),
    });
    match (config.raw, config.fields.get("rootfs")) {
        (Some(raw), Some(there)) if *there == rootfs => raw.to_vec(),
        _ => {
            let mut fields = config.fields;
            fields.insert("rootfs".into(), rootfs);
            Value::Object(fields).to_string().into_bytes()
        }
    }
}

/// Returns the config of an image with one more layer than `config` has (`None`: a minimal one for this host): with
/// all diff ids, bottom first, and a history entry `created_by` for the topmost layer.
///
/// # Errors
/// [`Error::Json`], [`Error::Limit`].
pub fn config_with_layer(
    config: Option<&[u8]>,
    diff_ids: &[Digest],
    created_by: &str,
) -> Result<Vec<u8>, Error> {
    let mut config = config.map_or_else(|| Ok(minimal()), parse)?;
    // An existing history has an entry for each layer; without a history none is needed.
    if let Some(Value::Array(history)) = config.fields.get_mut("history") {
        history.push(json!({"created_by": created_by}));
    }
    Ok(with_diff_ids(config, diff_ids))
}

/// Returns the name with its tag.
fn full_name(name: &str) -> Result<String, Error> {
    let invalid = |why| Err(Error::Source { uri: name.chars().take(300).collect(), why });
    let (base, tag) = split_tag(name);
    let tag = tag.unwrap_or("latest");
    if name.contains('@') {
        return invalid("a name to export cannot have a digest");
    }
    let good = |b: u8| b.is_ascii_alphanumeric() || b"._-/:".contains(&b);
    if base.is_empty() || tag.is_empty() || name.len() > 255 || !name.bytes().all(good) {
        return invalid(
            "a name to export is made of letters, digits and ._-/: and has at most 255 characters",
        );
    }
    Ok(format!("{base}:{tag}"))
}
