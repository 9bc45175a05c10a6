//! What every engine gets: one image, and the app's code as a tar to stream in and as a layer.

use crate::code::{APP, Sample, hex, pack};
use crate::droplet::{Droplet, DropletServer};
use crate::image::{HOME, USER_ID, header};
use anyhow::{Context as _, Result};
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use wardian_sys::memfd;

/// Name of the image without the code, in stores of engines that name images.
pub(super) const BASE: &str = "localhost/wardian-lab-base:latest";
/// Name of the image with the code as its last layer.
pub(super) const FULL: &str = "localhost/wardian-lab-app:latest";

/// The app's code in each form that is needed.
#[derive(Debug)]
pub(super) struct Goods {
    /// A file of the code.
    pub(super) sample: Sample,
    /// The tar to stream into [`HOME`]: the directory of the app with its files.
    pub(super) tar: Bytes,
    /// The same, as a file of which each command reads for itself; without a disk, so that nothing else gets dirty.
    file: OwnedFd,
    /// The server of the layer, for servers that fetch it.
    pub(super) droplet: Option<DropletServer>,
    /// An archive with the image that has the layer, for engines that load it.
    pub(super) archive: Option<PathBuf>,
}

impl Goods {
    /// Makes the code. `layer`: also as a layer, in an archive in `dir`.
    pub(super) async fn make(
        dir: &Path,
        base: &Path,
        megabytes: usize,
        salt: u64,
        layer: bool,
    ) -> Result<Self> {
        let (archive, base) = (dir.join("app.tar"), base.to_owned());
        let made = tokio::task::spawn_blocking(move || {
            let (tar, sample) = tar(megabytes, salt, "app/")?;
            let file = memfd::sealed("code", &tar, 0o600).context("keep the code in memory")?;
            let layers = if layer {
                archive_of(&archive, FULL, &[Layer::plain(&base)?, Layer::gzipped(megabytes, salt)?])?;
                Some((Droplet::pack(megabytes, salt)?, archive))
            } else {
                None
            };
            anyhow::Ok((Bytes::from(tar), sample, file, layers))
        });
        let (tar, sample, file, layers) = made.await??;
        let (droplet, archive) = match layers {
            Some((droplet, archive)) => (Some(DropletServer::start(droplet).await?), Some(archive)),
            None => (None, None),
        };
        Ok(Self { sample, tar, file, droplet, archive })
    }

    /// The tar as the standard input of a command.
    pub(super) fn input(&self) -> Result<Stdio> {
        // Opened anew: each command has a position of its own in it.
        let file = File::open(format!("/proc/self/fd/{}", self.file.as_raw_fd())).context("open the code")?;
        Ok(file.into())
    }
}

/// Writes an archive with the image that is this tar alone.
pub(super) fn base_archive(to: &Path, tar: &Path) -> Result<()> {
    archive_of(to, BASE, &[Layer::plain(tar)?])
}

/// The app's code below a directory of the tar, with the directory itself, which is the app's user's.
fn tar(megabytes: usize, salt: u64, below: &str) -> Result<(Vec<u8>, Sample)> {
    let mut tar = tar::Builder::new(Vec::with_capacity((megabytes + 1) * ((1 << 20) + 1024)));
    let mut directory = header(tar::EntryType::Directory, 0o755, USER_ID, 0);
    tar.append_data(&mut directory, below, std::io::empty())?;
    let packed = pack(tar, below, megabytes, salt)?;
    Ok((packed.to, packed.sample))
}

/// A layer of an image.
struct Layer {
    blob: Vec<u8>,
    media_type: &'static str,
    /// Digest of its tar without compression.
    diff_id: String,
}

impl Layer {
    fn plain(tar: &Path) -> Result<Self> {
        let blob = std::fs::read(tar).context("read the image")?;
        let diff_id = digest(&blob);
        Ok(Self { blob, media_type: "application/vnd.oci.image.layer.v1.tar", diff_id })
    }

    /// The app's code, compressed as [`Droplet::pack`] does.
    fn gzipped(megabytes: usize, salt: u64) -> Result<Self> {
        let below = format!("{}/", APP.trim_start_matches('/'));
        debug_assert!(APP.starts_with(HOME));
        let (tar, _) = tar(megabytes, salt, &below)?;
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(&tar)?;
        let media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
        Ok(Self { blob: gzip.finish()?, media_type, diff_id: digest(&tar) })
    }
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}

/// Writes an image as an archive that is an OCI layout and, by its manifest.json, one of docker too: `podman load`,
/// `ctr image import` and `docker load` all take it.
fn archive_of(to: &Path, name: &str, layers: &[Layer]) -> Result<()> {
    let file = File::create(to).with_context(|| format!("make {}", to.display()))?;
    let mut tar = tar::Builder::new(file);
    let mut put = |name: &str, bytes: &[u8]| {
        let mut header = header(tar::EntryType::Regular, 0o644, 0, bytes.len() as u64);
        tar.append_data(&mut header, name, bytes)
    };
    let path = |digest: &str| format!("blobs/{}", digest.replace(':', "/"));
    let described = |media_type: &str, bytes: &[u8]| json!({"mediaType": media_type, "digest": digest(bytes), "size": bytes.len()});
    let config = serde_json::to_vec(&json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {"Cmd": ["/bin/sh"]},
        "rootfs": {"type": "layers", "diff_ids": layers.iter().map(|layer| &layer.diff_id).collect::<Vec<_>>()},
    }))?;
    let blobs: Vec<_> = layers.iter().map(|layer| described(layer.media_type, &layer.blob)).collect();
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": media_type,
        "config": described("application/vnd.oci.image.config.v1+json", &config),
        "layers": blobs,
    }))?;
    let mut entry = described(media_type, &manifest);
    // The full name is containerd's; other readers take it too.
    entry["annotations"] =
        json!({"org.opencontainers.image.ref.name": name, "io.containerd.image.name": name});
    let of_docker = json!([{
        "Config": path(&digest(&config)),
        "RepoTags": [name],
        "Layers": layers.iter().map(|layer| path(&digest(&layer.blob))).collect::<Vec<_>>(),
    }]);
    put("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    put("index.json", &serde_json::to_vec(&json!({"schemaVersion": 2, "manifests": [entry]}))?)?;
    put("manifest.json", &serde_json::to_vec(&of_docker)?)?;
    for blob in [&config, &manifest].into_iter().chain(layers.iter().map(|layer| &layer.blob)) {
        put(&path(&digest(blob)), blob)?;
    }
    tar.into_inner()?.sync_all().with_context(|| format!("write {}", to.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::io::Read as _;

    #[tokio::test]
    async fn the_archive_is_whole_for_each_kind_of_reader() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("base.tar");
        std::fs::write(&base, b"a tar").unwrap();
        let goods = Goods::make(dir.path(), &base, 1, 7, true).await.unwrap();
        let mut files = BTreeMap::new();
        let mut archive = tar::Archive::new(File::open(goods.archive.as_ref().unwrap()).unwrap());
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            if let Some(hex_digest) = name.strip_prefix("blobs/sha256/") {
                assert_eq!(format!("sha256:{hex_digest}"), digest(&bytes));
            }
            files.insert(name, bytes);
        }
        let blob = |digest: &serde_json::Value| {
            &files[&format!("blobs/{}", digest.as_str().unwrap().replace(':', "/"))]
        };
        let parse = |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).unwrap();
        let manifest = parse(blob(&parse(&files["index.json"])["manifests"][0]["digest"]));
        let config = parse(blob(&manifest["config"]["digest"]));
        assert_eq!(blob(&manifest["layers"][0]["digest"]), b"a tar");
        let mut code = Vec::new();
        flate2::read::GzDecoder::new(&blob(&manifest["layers"][1]["digest"])[..])
            .read_to_end(&mut code)
            .unwrap();
        assert_eq!(config["rootfs"]["diff_ids"][1], digest(&code));
        let of_docker = parse(&files["manifest.json"]);
        assert!(
            of_docker[0]["Layers"]
                .as_array()
                .unwrap()
                .iter()
                .all(|path| files.contains_key(path.as_str().unwrap()))
        );
        // Its files are where the streamed ones come to be.
        let names = |tar: &[u8], above: &str| {
            let mut archive = tar::Archive::new(tar);
            let entries =
                archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().display().to_string());
            entries.map(|name| format!("{above}{name}")).collect::<Vec<_>>()
        };
        assert_eq!(names(&code, "/"), names(&goods.tar, &format!("{HOME}/")));
        assert_eq!(names(&code, "/")[0], format!("{APP}/"));
    }
}
