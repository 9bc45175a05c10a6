//! Images such as those that GrootFS was recorded with: tar files and OCI layouts of the same names, with as many
//! layers and the same mistakes.

use crate::support::{digest, noise};
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use std::fs;
use std::io::Write as _;
use std::path::Path;

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Bytes of the files in `busybox.tar`, as `stats` tells them.
pub const BUSYBOX: usize = 4_083_678;

/// A layer of a layout.
pub struct Layer {
    media: &'static str,
    blob: Vec<u8>,
    diff_id: String,
    digest: String,
    size: Value,
    annotations: Value,
    urls: Value,
    /// Whether the layout has the blob.
    here: bool,
}

/// A tar with these files, which end with a slash if they are directories.
pub fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, data) in files {
        let mut header = tar::Header::new_ustar();
        let dir = name.ends_with('/');
        header.set_entry_type(if dir { tar::EntryType::Directory } else { tar::EntryType::Regular });
        header.set_size(data.len() as u64);
        header.set_mode(0o755);
        header.set_mtime(1_000_000);
        header.set_uid(0);
        header.set_gid(0);
        // The name as it is: it may lead out of the archive.
        header.as_ustar_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        tar.append(&header, *data).unwrap();
    }
    tar.into_inner().unwrap()
}

/// A file of an archive, of the host's root, with the mode 0755 (a directory's) or 0644, and an old time.
#[derive(Clone)]
pub struct Entry {
    header: tar::Header,
    link: String,
    data: Vec<u8>,
}

impl Entry {
    fn new(kind: tar::EntryType, name: &str, mode: u32) -> Self {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_mtime(1_000_000);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(0);
        header.set_path(name).unwrap();
        Self { header, link: String::new(), data: Vec::new() }
    }

    pub fn file(name: &str, data: &[u8]) -> Self {
        let mut entry = Self::new(tar::EntryType::Regular, name, 0o644);
        entry.header.set_size(data.len() as u64);
        Self { data: data.to_vec(), ..entry }
    }

    pub fn dir(name: &str) -> Self {
        Self::new(tar::EntryType::Directory, name, 0o755)
    }

    pub fn symlink(name: &str, to: &str) -> Self {
        Self { link: to.into(), ..Self::new(tar::EntryType::Symlink, name, 0o777) }
    }

    pub fn hard_link(name: &str, to: &str) -> Self {
        Self { link: to.into(), ..Self::new(tar::EntryType::Link, name, 0o644) }
    }

    pub fn mode(mut self, mode: u32) -> Self {
        self.header.set_mode(mode);
        self
    }

    pub fn owner(mut self, id: u32) -> Self {
        self.header.set_uid(id.into());
        self.header.set_gid(id.into());
        self
    }

    pub fn mtime(mut self, seconds: u64) -> Self {
        self.header.set_mtime(seconds);
        self
    }
}

/// A tar with these entries.
pub fn archive(entries: &[Entry]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for Entry { header, link, data } in entries {
        let mut header = header.clone();
        if !link.is_empty() {
            header.set_link_name(link).unwrap();
        }
        header.set_cksum();
        tar.append(&header, data.as_slice()).unwrap();
    }
    tar.into_inner().unwrap()
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(bytes).unwrap();
    gzip.finish().unwrap()
}

impl Layer {
    pub fn plain(tar: Vec<u8>) -> Self {
        let digest = format!("sha256:{}", digest(&tar));
        Self {
            media: "application/vnd.oci.image.layer.v1.tar",
            size: tar.len().into(),
            diff_id: digest.clone(),
            digest,
            blob: tar,
            annotations: Value::Null,
            urls: Value::Null,
            here: true,
        }
    }

    pub fn gzip(tar: &[u8]) -> Self {
        let blob = gzip(tar);
        let media = "application/vnd.oci.image.layer.v1.tar+gzip";
        let (of_blob, size) = (format!("sha256:{}", digest(&blob)), blob.len().into());
        let diff_id = format!("sha256:{}", digest(tar));
        Self { media, diff_id, digest: of_blob, size, blob, ..Self::plain(Vec::new()) }
    }

    /// The layer in which the content of a file is another one.
    pub fn damaged(tar: &[u8]) -> Self {
        let mut layer = Self::gzip(tar);
        let mut other = tar.to_vec();
        // A byte of the first file's content.
        other[512] ^= 1;
        layer.blob = gzip(&other);
        layer.size = layer.blob.len().into();
        layer
    }

    /// The layer on a server alone.
    pub fn at(mut self, url: &str) -> Self {
        self.here = false;
        self.urls = json!([url]);
        self
    }

    /// The layer for which the image's configuration promises the content of another one.
    pub fn promising(mut self, other: &Self) -> Self {
        self.diff_id.clone_from(&other.diff_id);
        self
    }

    pub fn blob(&self) -> &[u8] {
        &self.blob
    }

    fn with_size(mut self, size: u64) -> Self {
        self.size = size.into();
        self
    }

    fn file(name: &str, text: &str) -> Self {
        Self::gzip(&tar(&[(name, text.as_bytes())]))
    }
}

/// Writes a layout with one manifest.
pub fn layout(dir: &Path, layers: &[Layer], env: &[&str], name: Option<&str>) {
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let write = |bytes: &[u8]| {
        let hex = digest(bytes);
        fs::write(blobs.join(&hex), bytes).unwrap();
        (format!("sha256:{hex}"), bytes.len())
    };
    for layer in layers.iter().filter(|layer| layer.here) {
        fs::write(blobs.join(layer.digest.strip_prefix("sha256:").unwrap()), &layer.blob).unwrap();
    }
    let ids: Vec<_> = layers.iter().map(|layer| &layer.diff_id).collect();
    let config = json!({
        "os": "linux", "architecture": "amd64", "config": {"Env": env}, "rootfs": {"type": "layers", "diff_ids": ids},
    });
    let (config, size) = write(config.to_string().as_bytes());
    let descriptors: Vec<_> = layers
        .iter()
        .map(|layer| {
            let mut of = json!({"mediaType": layer.media, "digest": layer.digest, "size": layer.size});
            for (key, value) in [("annotations", &layer.annotations), ("urls", &layer.urls)] {
                if !value.is_null() {
                    of[key] = value.clone();
                }
            }
            of
        })
        .collect();
    let manifest = json!({
        "schemaVersion": 2,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": size},
        "layers": descriptors,
    });
    let (manifest, size) = write(manifest.to_string().as_bytes());
    let mut entry = json!({
        "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": manifest, "size": size,
    });
    if let Some(name) = name {
        entry["annotations"] = json!({"org.opencontainers.image.ref.name": name});
    }
    let index = json!({"schemaVersion": 2, "manifests": [entry]});
    fs::write(dir.join("index.json"), index.to_string()).unwrap();
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

/// Makes the files below `base` that the recorded commands name.
pub fn make(base: &Path) {
    for dir in ["rootfs/adir", "assets", "run", "data/one", "data/two", "s2/notstore", "plain", "bin"] {
        fs::create_dir_all(base.join(dir)).unwrap();
    }
    let write = |name: &str, bytes: &[u8]| fs::write(base.join(name), bytes).unwrap();
    write("s2/notstore/keep", b"x");
    let busybox = vec![b'b'; BUSYBOX];
    write("rootfs/busybox.tar", &tar(&[("bin/", b""), ("bin/busybox", &busybox)]));
    let tiny = tar(&[("tiny", b"abc")]);
    write("rootfs/tiny.tar", &tiny);
    write("rootfs/with space.tar", &tiny);
    write("rootfs/tiny.tar.gz", &gzip(&tiny));
    let a = tar(&[("a", b"12345")]);
    write("rootfs/a.tar", &a);
    // Without padding and end.
    write("rootfs/trunc.tar", &tiny[..512 + 3]);
    write("rootfs/a-cut.tar", &a[..512 + 2]);
    let filler = tar(&[("opt/", b""), ("opt/filler", &noise(100_000))]);
    write("rootfs/cut.tar", &filler[..50_000]);
    write("assets/hacked.tar", &tar(&[("../file_outside_root", b"x")]));
    write("run/cap.yml", b"init:\n  store_size_bytes: 12345\n");
    write("run/bad.yml", b"store: [\n");
    write("run/neg.yml", b"create:\n  disk_limit_size_bytes: -1\n");
    write("run/negclean.yml", b"clean:\n  threshold_bytes: -1\n");
    let store = base.join("s2/st");
    write(
        "run/nomount.yml",
        format!("store: {}\ncreate:\n  without_mount: true\n", store.display()).as_bytes(),
    );

    let layouts = base.join("assets/oci-test-image");
    let image = |name: &str, layers: &[Layer], env: &[&str], tag: Option<&str>| {
        layout(&layouts.join(name), layers, env, tag);
    };
    let usual: &[&str] = &[PATH];
    let big = |n: usize| Layer::plain(tar(&[(["one", "two", "three"][n], &noise(600_000 + n))]));
    let prohibited = Layer::gzip(&tar(&[("prohibited/", b""), ("prohibited/x", b"x")]));
    image("4mb-image", &[big(0), big(1), big(2), prohibited], usual, Some("latest"));
    let base_layer = || tar(&[("base", b"the base layer")]);
    image("alpine", &[Layer::file("alpine", "a")], usual, None);
    image("busybox-1.25", &[Layer::file("busybox", "b")], usual, None);
    image("also-corrupted", &[Layer::damaged(&base_layer())], usual, Some("latest"));
    let second = Layer::file("second", "a second layer");
    let size = second.blob.len() as u64;
    image("corrupted", &[Layer::damaged(&base_layer()), second.with_size(size - 1)], usual, Some("latest"));
    let mut droplet = Layer::file("app", "a droplet");
    droplet.annotations = json!({"org.cloudfoundry.experimental.image.base-directory": "/home/vcap"});
    let users = Layer::gzip(&tar(&[("home/", b""), ("home/vcap/", b"")]));
    let name = "cloudfoundry.experimental.image.base-directory";
    image(name, &[Layer::file("root", "r"), users, droplet], usual, None);
    image("empty", &[Layer::file("hello", ""), Layer::file("allo", "")], usual, Some("v0.1.1"));
    image("garden-busybox", &[Layer::file("garden", "g")], &[], None);
    let mut remote = Layer::file("garden", "g");
    remote.here = false;
    remote.urls = json!([format!("https://localhost:12000/{}", remote.digest)]);
    image("garden-busybox-remote", &[remote], &[], None);
    let many: Vec<Layer> = (0..32).map(|n| Layer::file(&format!("file{}", n % 31), "x")).collect();
    let env = [
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/from-dockerfile",
        "TEST=second-test-from-dockerfile:test-from-dockerfile",
    ];
    image("garden-rootfs", &many, &env, None);
    let several: Vec<Layer> = (0..4).map(|n| Layer::file(&format!("g{n}"), "x")).collect();
    image("grootfs-busybox", &several, usual, None);
    let mut linked = Layer::file("linked", "x");
    linked.annotations = json!({"org.cloudfoundry.experimental.image.base-directory": "/home"});
    image("hardlink", &[Layer::gzip(&tar(&[("home/", b"")])), linked], usual, None);
    image("invalid-config", &[Layer::file("c", "x")], usual, Some("latest"));
    for blob in fs::read_dir(layouts.join("invalid-config/blobs/sha256")).unwrap() {
        fs::remove_file(blob.unwrap().path()).unwrap();
    }
    for (name, size) in [("less", 10), ("more", 9_999_999_999_999)] {
        let layer = Layer::file("garden", "g").with_size(size);
        image(&format!("invalid-manifest-size-{name}-than-physical-size"), &[layer], &[], None);
    }
    let mut missing = Layer::file("missing", "x");
    missing.here = false;
    image("noparents", &[missing], usual, None);
    image("non-writable-file", &[Layer::file("ro", "1"), Layer::file("ro", "2")], usual, None);
    image("non-writable-folder", &[Layer::gzip(&tar(&[("dir/", b""), ("dir/x", b"x")]))], usual, None);
    let opaque = Layer::gzip(&tar(&[("var/", b""), ("var/istio", b""), ("var/.wh..wh..opq", b"")]));
    let below = Layer::gzip(&tar(&[("var/", b""), ("var/old", b"x")]));
    image("opq-whiteouts-busybox", &[below, opaque], usual, Some("latest"));
    image("tar-layer", &[Layer::plain(tar(&[("plain", b"x")]))], &[], None);
    fs::remove_file(layouts.join("tar-layer/oci-layout")).unwrap();
    image("zip-bomb", &[Layer::gzip(&tar(&[("zeros", &[0; 16_000])]))], &[], Some("latest"));
}
