//! OCI image layouts: a directory, or a tar of one, with `index.json` and `blobs/sha256/` (OCI image spec 1.1, "Image
//! Layout").

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::archives::{Archive, Section, read_json};
use crate::digest::Digest;
use crate::error::Error;
use crate::layer::{Blob, Layer};
use crate::source::{Config, Image};

/// Bytes of one JSON document; registries cap manifests at the same 4 MiB.
pub(crate) const MAX_JSON: u64 = 4 << 20;
pub(crate) const MAX_LAYERS: usize = 1024;
/// Indexes inside indexes; one level is usual.
const MAX_NESTING: u32 = 4;
/// Names of an image in an index: its tag, and (docker, containerd) its full name.
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";
pub(crate) const IMAGE_NAME: &str = "io.containerd.image.name";

/// An opened layout: what is read later comes from the same directory or file, whatever happens to its name.
#[derive(Debug)]
pub(crate) struct Layout {
    files: Files,
    path: PathBuf,
}

#[derive(Debug)]
enum Files {
    Dir(OwnedFd),
    Archive(Archive),
}

#[derive(Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Option<Vec<Descriptor>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: Digest,
    size: u64,
    #[serde(default)]
    annotations: Option<HashMap<String, String>>,
    #[serde(default)]
    platform: Option<Platform>,
}

#[derive(Debug, Clone, Deserialize)]
struct Platform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
}

#[derive(Deserialize)]
struct Manifest {
    config: Descriptor,
    #[serde(default)]
    layers: Option<Vec<Descriptor>>,
}

#[derive(Deserialize)]
pub(crate) struct ImageConfig {
    #[serde(default)]
    config: Option<RunConfig>,
    rootfs: RootFs,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RunConfig {
    env: Option<Vec<String>>,
    user: Option<String>,
    working_dir: Option<String>,
}

#[derive(Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Option<Vec<Digest>>,
}

impl ImageConfig {
    /// What a container takes over, and the diff ids of the layers.
    pub(crate) fn into_parts(self) -> (Config, Vec<Digest>) {
        let run = self.config.unwrap_or_default();
        let config = Config {
            env: run.env.unwrap_or_default(),
            user: run.user.unwrap_or_default(),
            working_dir: run.working_dir.unwrap_or_default(),
        };
        (config, self.rootfs.diff_ids.unwrap_or_default())
    }
}

impl Descriptor {
    fn is_index(&self) -> bool {
        self.media_type == "application/vnd.oci.image.index.v1+json"
            || self.media_type == "application/vnd.docker.distribution.manifest.list.v2+json"
    }

    fn is_for_host(&self) -> bool {
        self.platform.as_ref().is_some_and(|p| p.os == "linux" && p.architecture == host_architecture())
    }
}

/// The host's architecture as Go, and so the OCI spec, spells it.
pub(crate) fn host_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "x86" => "386",
        "aarch64" => "arm64",
        "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
        "powerpc64" => "ppc64",
        "loongarch64" => "loong64",
        other => other,
    }
}

impl Layout {
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = openat(CWD, path, flags, Mode::empty()).map_err(|e| Error::Io {
            op: "open",
            path: path.display().to_string(),
            source: e.into(),
        })?;
        Ok(Self { files: Files::Dir(dir), path: path.to_owned() })
    }

    pub(crate) fn in_archive(path: &Path) -> Result<Self, Error> {
        Ok(Self { files: Files::Archive(Archive::open(path)?), path: path.to_owned() })
    }

    fn name(&self, name: &str) -> String {
        self.path.join(name).display().to_string()
    }

    /// A regular file of the layout. Symlinks may not lead out of it, and a fifo does not make us wait.
    fn file(&self, name: &str) -> Result<Section, Error> {
        let dir = match &self.files {
            Files::Dir(dir) => dir,
            Files::Archive(archive) => return archive.member(name),
        };
        let error = |op, source: io::Error| Error::Io { op, path: self.name(name), source };
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let file = openat2(dir, name, flags, Mode::empty(), resolve).map_err(|e| error("open", e.into()))?;
        let file = File::from(file);
        let meta = file.metadata().map_err(|e| error("stat", e))?;
        if !meta.is_file() {
            return Err(Error::Corrupt { what: self.name(name), why: "it is no regular file".into() });
        }
        Ok(Section::new(Arc::new(file), 0, meta.len()))
    }

    /// The blob `digest`, which must have `size` bytes. Its content is not verified here.
    pub(crate) fn blob(&self, digest: &Digest, size: u64) -> Result<Section, Error> {
        let section = self.file(&format!("blobs/sha256/{}", digest.as_hex()))?;
        if section.size() != size {
            let (what, actual) = (format!("blob {digest}"), section.size());
            return Err(Error::SizeMismatch { what, expected: size, actual });
        }
        Ok(section)
    }

    fn document<T: DeserializeOwned>(&self, descriptor: &Descriptor, kind: &str) -> Result<T, Error> {
        let what = format!("{kind} {}", descriptor.digest);
        if descriptor.size > MAX_JSON {
            return Err(Error::Limit { what: format!("the size of {what}"), limit: MAX_JSON });
        }
        let bytes = read_json(self.blob(&descriptor.digest, descriptor.size)?, &what)?;
        let actual = Digest::of(&bytes);
        if actual != descriptor.digest {
            let (expected, actual) = (descriptor.digest.to_string(), actual.to_string());
            return Err(Error::DigestMismatch { what, expected, actual });
        }
        serde_json::from_slice(&bytes).map_err(|source| Error::Json { what, source })
    }

    fn select(&self, tag: Option<&str>) -> Result<Descriptor, Error> {
        let what = self.name("index.json");
        let bytes = read_json(self.file("index.json")?, &what)?;
        let index: Index =
            serde_json::from_slice(&bytes).map_err(|source| Error::Json { what: what.clone(), source })?;
        let mut found = index.manifests.unwrap_or_default();
        if let Some(tag) = tag {
            found.retain(|d| {
                let named =
                    |key| d.annotations.as_ref().and_then(|a| a.get(key)).is_some_and(|name| name == tag);
                named(REF_NAME) || named(IMAGE_NAME)
            });
        }
        let mut chosen = choose(found, &what, tag)?;
        for _ in 0..MAX_NESTING {
            if !chosen.is_index() {
                return Ok(chosen);
            }
            let inner: Index = self.document(&chosen, "index")?;
            chosen = choose(inner.manifests.unwrap_or_default(), &format!("index {}", chosen.digest), None)?;
        }
        Err(Error::Limit { what: format!("the nesting of indexes in {what}"), limit: MAX_NESTING.into() })
    }
}

/// The only one, or the only one for this host.
fn choose(mut found: Vec<Descriptor>, what: &str, tag: Option<&str>) -> Result<Descriptor, Error> {
    let error = |why| Err(Error::Select { what: what.into(), why });
    // One image with several names has an entry for each.
    let mut seen = HashSet::new();
    found.retain(|d| seen.insert(d.digest.clone()));
    let several = found.len() > 1;
    if several {
        found.retain(Descriptor::is_for_host);
    }
    match (found.len(), tag) {
        (1, _) => Ok(found.remove(0)),
        (0, _) if several => error(format!("no manifest for linux/{}", host_architecture())),
        (0, Some(tag)) => error(format!("no manifest is tagged {tag:?}")),
        (0, None) => error("there is no manifest".into()),
        (n, None) => error(format!("{n} manifests fit; name one with :tag")),
        (n, Some(tag)) => error(format!("{n} manifests are tagged {tag:?}")),
    }
}

/// ChainID(n) = Digest(ChainID(n-1) + " " + DiffID(n)); the first is the diff id itself.
pub(crate) fn chain_id(below: Option<&Digest>, diff_id: &Digest) -> Digest {
    match below {
        None => diff_id.clone(),
        Some(below) => Digest::of(format!("{below} {diff_id}").as_bytes()),
    }
}

/// Reads manifest and config of an image in a layout.
pub(crate) fn open(layout: Layout, tag: Option<&str>) -> Result<Image, Error> {
    let layout = Arc::new(layout);
    let chosen = layout.select(tag)?;
    let manifest: Manifest = layout.document(&chosen, "manifest")?;
    let config: ImageConfig = layout.document(&manifest.config, "config")?;
    let blobs = manifest.layers.unwrap_or_default();
    let (config, diff_ids) = config.into_parts();
    let what = format!("manifest {}", chosen.digest);
    if blobs.len() > MAX_LAYERS {
        return Err(Error::Limit {
            what: format!("the number of layers in {what}"),
            limit: MAX_LAYERS as u64,
        });
    }
    if blobs.len() != diff_ids.len() {
        let why = format!("{} layers, but the config has {} diff ids", blobs.len(), diff_ids.len());
        return Err(Error::Corrupt { what, why });
    }
    let mut layers = Vec::with_capacity(blobs.len());
    let mut chain: Option<Digest> = None;
    for (blob, diff_id) in blobs.into_iter().zip(diff_ids) {
        if blob.media_type.ends_with("+encrypted") {
            return Err(Error::Unsupported { what: format!("layer media type {:?}", blob.media_type) });
        }
        let id = chain_id(chain.as_ref(), &diff_id);
        layers.push(Layer {
            chain_id: id.as_hex().to_owned(),
            blob: Blob::Oci { layout: Arc::clone(&layout), digest: blob.digest, size: blob.size, diff_id },
        });
        chain = Some(id);
    }
    Ok(Image { config, layers })
}
