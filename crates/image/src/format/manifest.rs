//! The JSON documents of an image, parsed from bytes: index, manifest and config (OCI image spec 1.1; Docker's schema 2
//! has the same shape).

use std::collections::{HashMap, HashSet};
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use wardian_sys::text::{clip, tame};

use super::few::{Few, FewKeys};
use super::reference::{but_there_are, several_images};
use crate::digest::Digest;
use crate::error::{Error, show};

/// The maximum size of one document in bytes; registries limit manifests to the same 4 MiB.
pub(crate) const MAX_JSON: u64 = 4 << 20;
/// The maximum number of layers of an image: what the kernel mounts as one overlay (`OVL_MAX_STACK`,
/// fs/overlayfs/params.h).
pub const MAX_LAYERS: usize = 500;
/// The maximum number of variables in an image's environment.
const MAX_ENV: usize = 10_000;
/// The maximum number of arguments in an image's entrypoint, and in its command.
const MAX_ARGS: usize = 1000;
/// The maximum number of an image's volumes.
const MAX_VOLUMES: usize = 1000;
/// The maximum number of URLs of one layer, since each may take all of its tries.
const MAX_URLS: usize = 16;
/// Annotations with the name of an image in an index: its tag, and (docker, containerd) its full name.
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";
pub(crate) const IMAGE_NAME: &str = "io.containerd.image.name";
/// The annotation of an entry that says something of another one, and is no image (buildkit, "Image attestation
/// storage").
const REFERENCE_TYPE: &str = "vnd.docker.reference.type";

const NO_IMAGE: &str = "there is no image in it";

/// A reference to a document or a layer, with its digest and size.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// Empty if there is none.
    #[serde(default)]
    pub media_type: String,
    /// The digest of the bytes as stored.
    pub digest: Digest,
    /// The number of bytes as stored. A document without it is refused, as its blob has another size; it counts
    /// only where sizes are verified.
    #[serde(default)]
    pub size: u64,
    #[serde(default)]
    annotations: Option<HashMap<String, String>>,
    #[serde(default)]
    platform: Option<Platform>,
    #[serde(default)]
    pub(crate) urls: Option<Vec<String>>,
}

#[derive(Debug, Clone, Deserialize)]
struct Platform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    variant: String,
}

impl Platform {
    /// Returns the platform, escaped and cut, if this host cannot run its programs natively. An unspecified part
    /// counts as the host's.
    fn foreign(&self) -> Option<String> {
        let host = host_architecture();
        // amd64 and arm64 hosts also run the programs of their 32-bit predecessors.
        let runs = |architecture: &str| {
            architecture == host || matches!((host, architecture), ("amd64", "386") | ("arm64", "arm"))
        };
        let (is_linux, is_ours) = (self.os == "linux", runs(&self.architecture));
        if (is_linux || self.os.is_empty()) && (is_ours || self.architecture.is_empty()) {
            return None;
        }
        let part = |text: &str| if text.is_empty() { "?".into() } else { tame(&clip(text, 32)).into_owned() };
        Some(format!("{}/{}", part(&self.os), part(&self.architecture)))
    }
}

impl Descriptor {
    /// True if it describes an index, not a manifest.
    pub fn is_index(&self) -> bool {
        self.media_type == "application/vnd.oci.image.index.v1+json"
            || self.media_type == "application/vnd.docker.distribution.manifest.list.v2+json"
    }

    pub(crate) fn annotation(&self, name: &str) -> Option<&str> {
        self.annotations.as_ref()?.get(name).map(String::as_str)
    }

    /// Whether it is no image but says something of one. Builders call its platform `unknown/unknown`.
    fn is_attestation(&self) -> bool {
        let unknown = |p: &Platform| p.os == "unknown" && p.architecture == "unknown";
        self.annotation(REFERENCE_TYPE).is_some() || self.platform.as_ref().is_some_and(unknown)
    }

    fn is_for_host(&self) -> bool {
        self.platform.as_ref().is_some_and(|p| p.os == "linux" && p.architecture == host_architecture())
    }
}

/// Lists the platforms of an index's entries, escaped and cut.
fn platforms(found: &[Descriptor]) -> String {
    let name = |p: &Platform| format!("{}/{}", p.os, p.architecture);
    let mut names: Vec<_> = found.iter().filter_map(|d| d.platform.as_ref()).map(name).collect();
    names.sort();
    names.dedup();
    tame(&clip(&names.join(", "), 200)).into_owned()
}

/// Keeps the entries for this host, or else those that do not say what they are for (containers/image,
/// `chooseInstance`).
fn keep_platform(found: &mut Vec<Descriptor>) {
    if !found.iter().any(Descriptor::is_for_host) {
        return found.retain(|descriptor| descriptor.platform.is_none());
    }
    found.retain(Descriptor::is_for_host);
    keep_variant(found);
}

/// Keeps only the variant of the architecture that any such host can run, if the entries differ in their variants.
fn keep_variant(found: &mut Vec<Descriptor>) {
    let variant = |d: &Descriptor| d.platform.as_ref().map_or(String::new(), |p| p.variant.clone());
    let all: HashSet<_> = found.iter().map(variant).collect();
    if all.len() < found.len() {
        return;
    }
    // The first of each architecture (OCI image spec, "Platform Variants"); an arm64 host has no other one.
    let first = ["", "v1", "v8"].into_iter().find(|first| all.contains(*first));
    if let Some(first) = first {
        found.retain(|d| variant(d) == first);
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

/// A list of manifests.
#[derive(Debug, Clone, Deserialize)]
pub struct Index {
    #[serde(default)]
    manifests: Option<Vec<Descriptor>>,
}

impl Index {
    /// Parses the document; `what` names it in errors.
    ///
    /// # Errors
    /// [`Error::Json`], [`Error::Limit`].
    pub fn parse(bytes: &[u8], what: &str) -> Result<Self, Error> {
        parse(bytes, what)
    }

    /// Returns the full names of the manifest (or index) with that digest; with `tag`, only from entries of that
    /// name. A bare tag is no full name.
    pub(crate) fn names(&self, digest: &Digest, tag: Option<&str>) -> Vec<String> {
        let annotations =
            |d: &Descriptor| [IMAGE_NAME, REF_NAME].map(|name| d.annotation(name).map(str::to_owned));
        let entries = self.manifests.iter().flatten().filter(|d| d.digest == *digest).map(annotations);
        let asked =
            |names: &[Option<String>; 2]| tag.is_none_or(|tag| names.iter().flatten().any(|n| n == tag));
        let full = |name: &String| name.contains(['/', ':']);
        let mut names: Vec<_> =
            entries.filter(asked).filter_map(|names| names.into_iter().flatten().find(full)).collect();
        names.dedup();
        names
    }

    /// Returns the manifest (or index) for this host of an index that is one image. The first one is taken of several,
    /// as other tools do.
    ///
    /// # Errors
    /// [`Error::Select`]; [`Error::Limit`] for more than `most` entries.
    pub(crate) fn of_host(self, what: &str, most: usize) -> Result<Descriptor, Error> {
        let mut found = self.manifests.unwrap_or_default();
        if found.len() > most {
            return Err(Error::Limit {
                what: format!("the number of manifests in {what}"),
                limit: most as u64,
            });
        }
        let several = found.len() > 1;
        found.retain(|descriptor| !descriptor.is_attestation());
        let error = |why| Error::Select { what: what.into(), why };
        if several && !found.is_empty() {
            let there = platforms(&found);
            keep_platform(&mut found);
            if found.is_empty() {
                return Err(error(format!(
                    "no manifest for linux/{}; there are {there}",
                    host_architecture()
                )));
            }
        }
        found.into_iter().next().ok_or_else(|| error(NO_IMAGE.into()))
    }

    /// Returns the only manifest (or index) of that name, or the only one for this host. `at` is the scheme and the
    /// path of the layout, for errors.
    ///
    /// # Errors
    /// [`Error::Select`].
    pub(crate) fn choose(
        self,
        what: &str,
        tag: Option<&str>,
        at: (&str, &Path),
    ) -> Result<Descriptor, Error> {
        let error = |why| Err(Error::Select { what: what.into(), why });
        let mut found = self.manifests.unwrap_or_default();
        if let Some(tag) = tag {
            let names =
                |d: &Descriptor| [REF_NAME, IMAGE_NAME].map(|name| d.annotation(name).map(str::to_owned));
            let is_it = |d: &Descriptor| names(d).iter().flatten().any(|name| name == tag);
            // `@N` is the manifest at that place in the index, as in containers/image's `oci:` transport.
            let place = tag.strip_prefix('@').and_then(|place| place.parse::<usize>().ok());
            if let Some(place) = place.filter(|_| !found.iter().any(is_it)) {
                let entries = found.len();
                return found.into_iter().nth(place).map_or_else(
                    || error(format!("index {place} is too large, only {entries} entries available")),
                    Ok,
                );
            }
            if !found.iter().any(is_it) {
                let mut there: Vec<String> =
                    found.iter().flat_map(|d| names(d).into_iter().flatten()).collect();
                there.dedup();
                let there = but_there_are(there.iter().map(String::as_str));
                return error(format!("no manifest is tagged {tag:?}; {there}"));
            }
            found.retain(is_it);
        }
        found.retain(|descriptor| !descriptor.is_attestation());
        // An image with several names has an entry for each.
        let mut seen = HashSet::new();
        found.retain(|d| seen.insert(d.digest.clone()));
        let several = found.len() > 1;
        // Tools leave the platform out if an index lists different images rather than one image for several
        // platforms.
        if several && found.iter().any(|descriptor| descriptor.platform.is_some()) {
            keep_platform(&mut found);
        }
        match (found.len(), tag) {
            (1, _) => Ok(found.remove(0)),
            (0, _) if several => error(format!("no manifest for linux/{}", host_architecture())),
            (0, _) => error(NO_IMAGE.into()),
            (_, None) => {
                let tags = found.iter().filter_map(|descriptor| descriptor.annotation(REF_NAME));
                error(several_images(tags, at.0, at.1))
            }
            (n, Some(tag)) => error(format!("{n} manifests are tagged {tag:?}")),
        }
    }
}

/// The manifest of an image: its config and layers.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Manifest {
    /// The config document.
    pub config: Descriptor,
    /// Bottom first.
    pub layers: Vec<Descriptor>,
    artifact_type: Option<String>,
}

/// Media types of an image's config: OCI's and docker's. A manifest with another one is no image (OCI image spec,
/// "Guidelines for Artifact Usage"). Early tools gave none, or the generic one.
const CONFIGS: [&str; 4] = [
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
    "application/octet-stream",
    "",
];

#[derive(Deserialize)]
struct RawManifest {
    #[serde(default, rename = "artifactType")]
    artifact_type: Option<String>,
    config: Descriptor,
    #[serde(default)]
    layers: Option<Vec<Descriptor>>,
}

impl Manifest {
    /// Parses the document; `what` names it in errors.
    ///
    /// # Errors
    /// [`Error::Json`]; [`Error::Limit`] for a document of more than 4 MiB, more than 500 layers, or more than 16 URLs of
    /// one layer.
    pub fn parse(bytes: &[u8], what: &str) -> Result<Self, Error> {
        let RawManifest { config, layers, artifact_type } = parse(bytes, what)?;
        let layers = layers.unwrap_or_default();
        if layers.len() > MAX_LAYERS {
            return Err(Error::Limit {
                what: format!("the number of layers in {what}"),
                limit: MAX_LAYERS as u64,
            });
        }
        let urls = |layer: &Descriptor| layer.urls.as_ref().map_or(0, Vec::len);
        if let Some(layer) = layers.iter().find(|layer| urls(layer) > MAX_URLS) {
            let what = format!("the number of urls of layer {}", layer.digest);
            return Err(Error::Limit { what, limit: MAX_URLS as u64 });
        }
        Ok(Self { config, layers, artifact_type })
    }

    /// Whether it is the manifest of an image.
    ///
    /// # Errors
    /// [`Error::Artifact`].
    pub(crate) fn check_image(&self, what: &str) -> Result<(), Error> {
        let config = self.config.media_type.as_str();
        if CONFIGS.contains(&config) {
            return Ok(());
        }
        let kind = self.artifact_type.as_deref().filter(|kind| !kind.is_empty()).unwrap_or(config);
        Err(Error::Artifact { what: what.to_owned(), kind: show(kind.as_bytes()) })
    }
}

/// ChainID(n) = Digest(ChainID(n-1) + " " + DiffID(n)); the first is the diff id itself.
pub(crate) fn chain_id(below: Option<&Digest>, diff_id: &Digest) -> Digest {
    match below {
        None => diff_id.clone(),
        Some(below) => Digest::of(format!("{below} {diff_id}").as_bytes()),
    }
}

/// The part of the image's config that applies to a container. Untrusted text, not checked further.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    /// `NAME=value` each.
    pub env: Vec<String>,
    /// `user[:group]`, names or numbers; empty means root.
    pub user: String,
    /// The first process's directory; empty means `/`.
    pub working_dir: String,
    /// The program of the first process with its first arguments; may be empty.
    pub entrypoint: Vec<String>,
    /// The arguments that follow unless there are others; without an entrypoint the program is the first of them.
    pub command: Vec<String>,
    /// Directories that are meant for data.
    pub volumes: Vec<String>,
    /// The signal that a stop begins with, as the image names it; may be empty.
    pub stop_signal: String,
    /// The platform of the image, as `linux/arm64`, if it differs from the host's. Escaped and cut.
    pub foreign: Option<String>,
}

impl Config {
    /// Returns a warning if the image is for another platform. It is not refused, because a host may have an
    /// emulator.
    pub fn warning(&self) -> Option<String> {
        let (foreign, host) = (self.foreign.as_ref()?, host_architecture());
        Some(format!(
            "the image is for {foreign} and this host is linux/{host}, where its programs run only if an emulator for them is \
             registered (binfmt_misc); otherwise import the image for linux/{host}"
        ))
    }
}

/// The config of an image: settings for its processes, and the digests of its layers.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ImageConfig {
    /// The part that applies to a container.
    pub config: Config,
    /// Digests of the uncompressed layers, bottom first.
    pub diff_ids: Vec<Digest>,
}

#[derive(Deserialize)]
struct RawImageConfig {
    #[serde(default)]
    os: Option<String>,
    #[serde(default)]
    architecture: Option<String>,
    #[serde(default)]
    config: Option<RunConfig>,
    rootfs: RootFs,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RunConfig {
    env: Option<Few<String, MAX_ENV>>,
    user: Option<String>,
    working_dir: Option<String>,
    entrypoint: Option<Few<String, MAX_ARGS>>,
    cmd: Option<Few<String, MAX_ARGS>>,
    volumes: Option<FewKeys<MAX_VOLUMES>>,
    stop_signal: Option<String>,
}

#[derive(Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Option<Few<Digest, MAX_LAYERS>>,
}

impl ImageConfig {
    /// Parses the document; `what` names it in errors.
    ///
    /// # Errors
    /// [`Error::Json`], [`Error::Limit`].
    pub fn parse(bytes: &[u8], what: &str) -> Result<Self, Error> {
        let raw: RawImageConfig = parse(bytes, what)?;
        let run = raw.config.unwrap_or_default();
        let (os, architecture) = (raw.os.unwrap_or_default(), raw.architecture.unwrap_or_default());
        let platform = Platform { os, architecture, variant: String::new() };
        Ok(Self {
            config: Config {
                env: run.env.map_or_else(Vec::new, |env| env.0),
                user: run.user.unwrap_or_default(),
                working_dir: run.working_dir.unwrap_or_default(),
                entrypoint: run.entrypoint.map_or_else(Vec::new, |args| args.0),
                command: run.cmd.map_or_else(Vec::new, |args| args.0),
                volumes: run.volumes.map_or_else(Vec::new, |keys| keys.0),
                stop_signal: run.stop_signal.unwrap_or_default(),
                foreign: platform.foreign(),
            },
            diff_ids: raw.rootfs.diff_ids.map_or_else(Vec::new, |ids| ids.0),
        })
    }
}

pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T, Error> {
    if bytes.len() as u64 > MAX_JSON {
        return Err(too_large(what));
    }
    serde_json::from_slice(bytes).map_err(|error| Error::json(what, &error))
}

pub(crate) fn too_large(what: &str) -> Error {
    Error::Limit { what: format!("the size of {what}"), limit: MAX_JSON }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a layout with one image, the entries that say something of it are not other images.
    #[test]
    fn what_is_chosen_of_a_layout() {
        let entry = |at: u8, more: &str| format!(r#"{{"digest":"{}","size":1{more}}}"#, Digest::of(&[at]));
        let attests = r#","annotations":{"vnd.docker.reference.type":"attestation-manifest"}"#;
        let unknown = r#","platform":{"os":"unknown","architecture":"unknown"}"#;
        let other = r#","platform":{"os":"linux","architecture":"pdp11"}"#;
        for (entries, chosen) in [
            (vec![entry(0, ""), entry(1, attests)], Ok(0)),
            (vec![entry(1, unknown), entry(0, "")], Ok(0)),
            (vec![entry(1, other), entry(0, "")], Ok(0)),
            (vec![entry(1, attests)], Err("there is no image in it")),
            (vec![], Err("there is no image in it")),
            (vec![entry(0, ""), entry(1, "")], Err("there are several images")),
        ] {
            let json = format!(r#"{{"manifests":[{}]}}"#, entries.join(","));
            let index = Index::parse(json.as_bytes(), "x").unwrap();
            match (index.choose("x", None, ("oci", Path::new("/x"))), chosen) {
                (Ok(found), Ok(at)) => assert_eq!(found.digest, Digest::of(&[at]), "{json}"),
                (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{json}: {error}"),
                (found, _) => panic!("{json}: {found:?}"),
            }
        }
    }
}
