use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::{Cage, Tar, gzip, write};

use crate::{Digest, Error, Image, Limits, Opening, Remote, Source, Unpacked, Watch};

#[test]
fn sources() {
    for (text, uri) in [
        ("/a/b.tar", "/a/b.tar"),
        ("file:///a/b.tar", "/a/b.tar"),
        ("tar:///a", "tar:///a"),
        ("oci:///a/b:v1", "oci:///a/b:v1"),
        ("oci:///a:1/b", "oci:///a:1/b"),
        ("oci-archive:///a.tar", "oci-archive:///a.tar"),
        ("oci-archive:///a.tar:v1", "oci-archive:///a.tar:v1"),
        ("docker-archive:///a.tar", "docker-archive:///a.tar"),
        ("docker-archive:///a.tar:r.io:5000/a/b:v1", "docker-archive:///a.tar:r.io:5000/a/b:v1"),
    ] {
        let source = Source::parse(text).unwrap();
        assert_eq!(source.to_uri(), uri);
        assert_eq!(Source::parse(uri).unwrap(), source);
    }
    for (uri, file) in [
        ("tar:///a:b.tar", "/a:b.tar"),
        ("oci:///a:1/b:v1", "/a/index.json"),
        ("docker-archive:///a.tar:r.io:5000/a/b:v1", "/a.tar"),
    ] {
        assert_eq!(Source::parse(uri).unwrap().state_file().unwrap(), Path::new(file));
    }
    for (uri, full) in [
        ("docker:///busybox#1.37.0", "docker://docker.io/library/busybox:1.37.0"),
        ("docker://reg.x:5000/a/b", "docker://reg.x:5000/a/b:latest"),
    ] {
        let source = Source::parse(uri).unwrap();
        assert_eq!((source.to_uri().as_str(), source.state_file()), (full, None));
        assert_eq!(Source::parse(full).unwrap(), source);
    }
    for text in [
        "",
        "a.tar",
        "./a",
        "oci://a",
        "tar://a/b",
        "http:///a",
        "oci:///a:",
        "oci-archive:///a:",
        "docker-archive://a.tar",
        "docker-archive:///a:",
        "://a",
        ":///a",
        "/a\0b",
    ] {
        assert!(matches!(Source::parse(text), Err(Error::Source { .. })), "{text:?}");
    }
    for text in ["sha512:00", "sha256:00", &format!("sha256:{}", "A".repeat(64)), &"0".repeat(71)] {
        assert!(text.parse::<Digest>().is_err(), "{text}");
    }
}

#[test]
fn a_layout_s_tag_may_contain_what_its_directory_may() {
    let base = tempfile::tempdir().unwrap();
    let base = base.path().to_str().unwrap();
    for dir in ["l", "c:1", "u:1/d"] {
        std::fs::create_dir_all(format!("{base}/{dir}")).unwrap();
    }
    for (text, dir) in [
        ("l:v1", "l"),
        ("l:a:1", "l"),
        ("l:docker.io/library/foo:1", "l"),
        ("l:r.io:5000/a/b:v1", "l"),
        ("c:1", "c:1"),
        ("c:1:v1", "c:1"),
        ("c:1:a:1", "c:1"),
        ("u:1/d", "u:1/d"),
        ("u:1/d:v1", "u:1/d"),
        ("u:1/d:a/b:1", "u:1/d"),
        ("none:a/b:1", "none"),
    ] {
        let source = Source::parse(&format!("oci://{base}/{text}")).unwrap();
        assert_eq!(source.state_file().unwrap(), Path::new(&format!("{base}/{dir}/index.json")), "{text}");
        // A plain path stays unambiguous, whatever directories are made later.
        let shown = if text == "c:1" { format!("{base}/{text}") } else { format!("oci://{base}/{text}") };
        assert_eq!(source.to_uri(), shown);
    }
    // A detected layout whose `oci://` address would be parsed differently.
    std::fs::create_dir(format!("{base}/l:v1")).unwrap();
    write(&Path::new(base).join("l:v1/oci-layout"), b"{}");
    let found = Source::detect(&Path::new(base).join("l:v1")).unwrap();
    assert_eq!(found.to_uri(), format!("{base}/l:v1"));
}

/// Where others may write, a user can make a directory whose name is also a prefix of the address.
#[test]
fn a_layout_is_not_exchanged_for_one_whose_name_goes_on_with_the_tag() {
    let base = tempfile::tempdir().unwrap();
    let base = base.path().to_str().unwrap();
    for (n, (roots, tag, others)) in [
        ("l", "docker.io/library/foo:1", "l:docker.io/library/foo"),
        ("l", "docker.io/library/foo:1", "l:docker.io/library/foo:1"),
        ("l", "v1", "l:v1"),
        ("l", "r.io:5000/a:v1", "l:r.io"),
        ("l:a", "v1", "l"),
    ]
    .into_iter()
    .enumerate()
    {
        let at = |name: &str| format!("{base}/{n}/{name}");
        let address = format!("oci://{}:{tag}", at(roots));
        std::fs::create_dir_all(at(roots)).unwrap();
        let meant = Path::new(&at(roots)).join("index.json");
        assert_eq!(Source::parse(&address).unwrap().state_file().unwrap(), meant, "{address}");
        std::fs::create_dir_all(at(others)).unwrap();
        let error = Source::parse(&address).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, Error::Ambiguous { .. }), "{text}");
        assert!([roots, others].iter().all(|name| text.contains(&at(name))), "{text}");
    }
}

/// A layout with one image in it.
pub(super) struct Layout {
    dir: TempDir,
}

impl Layout {
    pub(super) fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub(super) fn path(&self) -> PathBuf {
        self.dir.path().to_owned()
    }

    pub(super) fn blob(&self, data: &[u8]) -> String {
        let digest = Digest::of(data);
        write(&self.path().join("blobs/sha256").join(digest.as_hex()), data);
        format!(r#""digest":"{digest}","size":{}"#, data.len())
    }

    pub(super) fn manifest(&self, layers: &[&[u8]], diff_ids: &[Digest]) -> String {
        let layers: Vec<_> = layers.iter().map(|l| self.blob(l)).collect();
        self.manifest_of(&layers, diff_ids)
    }

    /// Makes a manifest from descriptors without their braces.
    pub(super) fn manifest_of(&self, layers: &[String], diff_ids: &[Digest]) -> String {
        let ids = serde_json::to_string(diff_ids).unwrap();
        let config = self.blob(
            format!(
                r#"{{"config":{{"Env":["A=b"],"User":"u","WorkingDir":"/w"}},"rootfs":{{"diff_ids":{ids}}}}}"#
            )
            .as_bytes(),
        );
        let layers: Vec<_> = layers.iter().map(|l| format!("{{{l}}}")).collect();
        self.blob(format!(r#"{{"config":{{{config}}},"layers":[{}]}}"#, layers.join(",")).as_bytes())
    }

    pub(super) fn index(&self, entries: &[String]) {
        let entries: Vec<_> = entries.iter().map(|e| format!("{{{e}}}")).collect();
        write(
            &self.path().join("index.json"),
            format!(r#"{{"manifests":[{}]}}"#, entries.join(",")).as_bytes(),
        );
    }

    pub(super) fn open(&self, tag: &str) -> Result<Image, Error> {
        Source::parse(&format!("oci://{}{tag}", self.path().display()))?.open(&Remote::default())
    }
}

pub(super) fn unpack(image: &Image, layer: usize) -> Result<Unpacked, Error> {
    let cage = Cage::new();
    image.layers[layer].unpack(
        File::open(cage.root()).unwrap().as_fd(),
        &[],
        &Limits::default(),
        &Watch::default(),
    )
}

#[test]
fn layout_with_all_compressions() {
    let mut one = Tar::default().file("a", &[b'a'; 3 << 20]).end();
    one.resize(one.len() + 20_000, 0); // padding is part of the diff id
    let two = Tar::default().file("b", b"b").end();
    let three = Tar::default().file("c", b"c").0; // no end marker: the digest vouches for it
    let mut members = gzip(&one[..5000]);
    members.extend(gzip(&one[5000..]));
    let ids = [&one, &two, &three].map(|t| Digest::of(t));
    let layout = Layout::new();
    let zstd = zstd::encode_all(&two[..], 1).unwrap();
    let manifest = layout.manifest(&[&members, &zstd, &three], &ids);
    layout.index(std::slice::from_ref(&manifest));
    let image = layout.open("").unwrap();
    assert_eq!(
        (image.config.env.concat().as_str(), &*image.config.user, &*image.config.working_dir),
        ("A=b", "u", "/w")
    );
    assert_eq!(Digest::of(image.config_json.as_ref().unwrap()).as_hex(), image.id);
    assert!(manifest.contains(Digest::of(image.manifest.as_ref().unwrap()).as_hex()));
    assert_eq!((image.layers[2].size(), image.layers[2].diff_id()), (three.len() as u64, Some(&ids[2])));
    let second = Digest::of(format!("{} {}", ids[0], ids[1]).as_bytes());
    let third = Digest::of(format!("{second} {}", ids[2]).as_bytes());
    let chains: Vec<_> = image.layers.iter().map(|l| l.chain_id.as_str()).collect();
    assert_eq!(chains, [ids[0].as_hex(), second.as_hex(), third.as_hex()]);
    for (i, id) in ids.iter().enumerate() {
        assert_eq!(unpack(&image, i).unwrap().diff_id, *id);
    }
}

#[test]
fn selection() {
    let layout = Layout::new();
    let tar = Tar::default().file("a", b"").end();
    let good = layout.manifest(&[&tar], &[Digest::of(&tar)]);
    let tag = |t: &str| format!(r#""annotations":{{"org.opencontainers.image.ref.name":"{t}"}}"#);
    let arch = |a: &str| format!(r#""platform":{{"os":"linux","architecture":"{a}"}}"#);
    let host = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    let inner = layout.blob(
        format!(
            r#"{{"manifests":[{{"digest":"sha256:{}","size":9,{}}},{{{good},{}}}]}}"#,
            "0".repeat(64),
            arch("vax"),
            arch(host)
        )
        .as_bytes(),
    );
    let index = format!(r#"{inner},"mediaType":"application/vnd.oci.image.index.v1+json""#);
    layout.index(&[format!("{good},{}", tag("a:1")), format!("{good},{}", tag("docker.io/library/foo:1"))]);
    for name in [":a:1", ":docker.io/library/foo:1"] {
        assert_eq!(layout.open(name).unwrap().layers.len(), 1, "{name}");
    }
    layout.index(&[format!("{good},{}", tag("v1")), format!("{index},{}", tag("multi"))]);
    assert_eq!(layout.open(":v1").unwrap().layers.len(), 1);
    assert_eq!(layout.open(":multi").unwrap().layers.len(), 1);
    assert_eq!(layout.open(":@1").unwrap().layers.len(), 1);
    for wrong in ["", ":v2", ":@2", ":@"] {
        assert!(matches!(layout.open(wrong), Err(Error::Select { .. })), "{wrong}");
    }
    let told = || layout.open("").unwrap_err().to_string();
    let names = r#""v1", "multi"; say which one with the address oci:///"#;
    assert!(told().contains(names), "{}", told());
    let foreign = |entry: &str, name: &str| format!("{entry},{},{}", tag(name), arch("vax"));
    layout.index(&[foreign(&good, "v1"), foreign(&index, "multi")]);
    assert!(told().contains("no manifest for linux/"), "{}", told());
    // Of the variants of one architecture, the one that every such host runs.
    let two = Tar::default().file("b", b"").end();
    let other = layout.manifest(&[&tar, &two], &[Digest::of(&tar), Digest::of(&two)]);
    let variant = |v: &str| arch(&format!(r#"{host}","variant":"{v}"#));
    for (first, second, layers) in [("v9", "", 2), ("v9", "v1", 2), ("v8", "v9", 1)] {
        layout.index(&[format!("{good},{}", variant(first)), format!("{other},{}", variant(second))]);
        assert_eq!(layout.open("").unwrap().layers.len(), layers, "{first} {second}");
    }
    for (first, second) in [("v1", "v1"), ("v2", "v3")] {
        layout.index(&[format!("{good},{}", variant(first)), format!("{other},{}", variant(second))]);
        assert!(matches!(layout.open(""), Err(Error::Select { .. })), "{first} {second}");
    }
}

#[test]
fn damaged_layouts() {
    let tar = Tar::default().file("a", &[b'a'; 5000]).end();
    let good = Digest::of(&tar);
    let layout = Layout::new();
    layout.index(&[layout.manifest(&[&tar], &[good.clone(), good.clone()])]);
    assert!(matches!(layout.open(""), Err(Error::Corrupt { .. })), "layer count");
    layout.index(&[layout.manifest(&vec![&tar[..]; 1025], &vec![good.clone(); 1025])]);
    assert!(matches!(layout.open(""), Err(Error::Limit { .. })), "too many layers");
    layout.index(&[layout.manifest(&[&tar], &[Digest::of(b"other")])]);
    assert!(
        matches!(unpack(&layout.open("").unwrap(), 0), Err(Error::DigestMismatch { what, .. }) if what.contains("content"))
    );
    layout.index(&[layout.manifest(&[&tar], std::slice::from_ref(&good))]);
    let blob = layout.path().join("blobs/sha256").join(good.as_hex());
    let mut wrong = tar.clone();
    *wrong.last_mut().unwrap() = 1; // in the padding behind the archive's end
    write(&blob, &wrong);
    assert!(unpack(&layout.open("").unwrap(), 0).is_err(), "changed byte");
    wrong.clone_from(&tar);
    wrong[600] = b'b';
    write(&blob, &wrong);
    assert!(matches!(unpack(&layout.open("").unwrap(), 0), Err(Error::DigestMismatch { .. })));
    write(&blob, &tar[..tar.len() - 1]);
    assert!(matches!(unpack(&layout.open("").unwrap(), 0), Err(Error::SizeMismatch { .. })));
    std::fs::remove_file(&blob).unwrap();
    std::os::unix::fs::symlink("/etc/hostname", &blob).unwrap();
    assert!(
        matches!(unpack(&layout.open("").unwrap(), 0), Err(Error::Io { .. })),
        "symlink out of the layout"
    );
    write(&layout.path().join("index.json"), &vec![b' '; (4 << 20) + 1]);
    assert!(matches!(layout.open(""), Err(Error::Limit { .. })), "large index");
    write(&layout.path().join("index.json"), b"{");
    assert!(matches!(layout.open(""), Err(Error::Json { .. })));
}

pub(super) fn bare(path: &Path) -> Image {
    Source::parse(path.to_str().unwrap()).unwrap().open(&Remote::default()).unwrap()
}

#[test]
fn bare_tars() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.tar");
    // Data that does not compress, so that every cut is inside it.
    let noise: Vec<u8> = (0..200_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let tar = Tar::default().file("a", &noise).end();
    let gz = gzip(&tar);
    let zst = zstd::encode_all(&tar[..], 1).unwrap();
    for data in [&tar, &gz, &zst] {
        write(&path, data);
        assert_eq!(unpack(&bare(&path), 0).unwrap().diff_id, Digest::of(&tar));
        for cut in [data.len() / 2, 100] {
            write(&path, &data[..cut]);
            let result = unpack(&bare(&path), 0);
            // Data shorter than a header cannot be recognized as a tar.
            let is_short = *data == tar && cut < 512;
            let told = match &result {
                Err(Error::Truncated { .. }) => !is_short,
                Err(Error::NoTar { what }) => is_short && *what == path.display().to_string(),
                _ => false,
            };
            assert!(told, "{cut}: {result:?}");
        }
    }
    for cut in [gz.len() - 8, gz.len() - 1] {
        write(&path, &gz[..cut]);
        assert!(matches!(unpack(&bare(&path), 0), Err(Error::Truncated { .. })), "gzip trailer {cut}");
    }
    let mut wrong = gz.clone();
    let crc = wrong.len() - 8;
    wrong[crc] ^= 1;
    for data in [&b""[..], b"hello", &[b'x'; 600], &wrong] {
        write(&path, data);
        let result = unpack(&bare(&path), 0);
        let told = match &result {
            Err(Error::NoTar { what }) => data[0] != 0x1f && *what == path.display().to_string(),
            Err(Error::Corrupt { .. } | Error::Truncated { .. }) => data.is_empty() || data[0] == 0x1f,
            _ => false,
        };
        assert!(told, "{result:?}");
    }
    write(&path, &tar);
    let image = bare(&path);
    assert_eq!(bare(&path).layers[0].chain_id, image.layers[0].chain_id);
    assert!(image.manifest.is_none() && image.config_json.is_none() && image.id == image.layers[0].chain_id);
    assert!((image.layers[0].size(), image.layers[0].diff_id()) == (tar.len() as u64, None));
    assert!(image.layers[0].chain_id.len() == 64 && image.config == crate::Config::default());
    File::options().write(true).open(&path).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    assert_ne!(bare(&path).layers[0].chain_id, image.layers[0].chain_id);
    assert!(matches!(unpack(&image, 0), Err(Error::Changed { .. })));
}

#[test]
fn usable_from_threads() {
    fn check<T: Send + Sync>() {}
    check::<Image>();
    check::<Source>();
    check::<Error>();
}

/// A watch counts the bytes as stored, and cancels an unpack that does not block.
#[test]
fn watched() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.tar.gz");
    let data = gzip(&Tar::default().file("a", &[b'a'; 10 << 20]).end());
    write(&path, &data);
    let layer = &bare(&path).layers[0];
    let watch = Watch::default();
    let unpack = |watch: &Watch| {
        let cage = Cage::new();
        layer.unpack(File::open(cage.root()).unwrap().as_fd(), &[], &Limits::default(), watch)
    };
    unpack(&watch).unwrap();
    assert_eq!((watch.bytes_read(), watch.is_cancelled()), (data.len() as u64, false));
    watch.cancel();
    assert!(matches!(unpack(&watch), Err(Error::Cancelled { .. })));
    assert_eq!(watch.bytes_read(), data.len() as u64, "nothing was read for the second one");
}

/// What a layout claims of its layers counts for nothing, and neither can such a layer be taken for another one.
#[test]
fn layouts_that_are_taken_as_they_are() {
    let elsewhere = tempfile::tempdir().unwrap();
    let (tar, other) = (Tar::default().file("a", b"a").end(), Tar::default().file("b", b"b").end());
    let file = elsewhere.path().join("rootfs.tar");
    write(&file, &tar);
    let layout = Layout::new();
    let claimed = Digest::of(&other);
    let place = layout.path().join("blobs/sha256").join(claimed.as_hex());
    std::fs::create_dir_all(place.parent().unwrap()).unwrap();
    std::os::unix::fs::symlink(&file, &place).unwrap();
    let descriptor = format!(r#""digest":"{claimed}""#);
    layout.index(&[layout.manifest_of(&[descriptor], std::slice::from_ref(&claimed))]);
    assert!(layout.open("").is_err() || unpack(&layout.open("").unwrap(), 0).is_err());
    let open = || {
        let opening = Opening { unverified: true, ..Opening::default() };
        let source = Source::parse(&format!("oci://{}", layout.path().display())).unwrap();
        source.open_in(&Remote::default(), &opening).unwrap()
    };
    let image = open();
    assert_eq!(image.config.env, ["A=b"]);
    // It is the layer of the tar file.
    assert_eq!(image.layers[0].chain_id, bare(&file).layers[0].chain_id);
    assert_ne!(image.layers[0].chain_id, claimed.as_hex());
    assert_eq!(unpack(&image, 0).unwrap().diff_id, Digest::of(&tar));
    // Another file is another layer, and a layer on top of it has another id than alone.
    write(&file, &Tar::default().file("c", b"c").end());
    assert_ne!(open().layers[0].chain_id, image.layers[0].chain_id);
    let third = Tar::default().file("d", b"d").end();
    let (descriptor, third) = (format!(r#""digest":"{claimed}""#), layout.blob(&third));
    layout.index(&[layout.manifest_of(&[descriptor, third], &[claimed.clone(), claimed])]);
    let two = open();
    assert_eq!(two.layers.len(), 2);
    assert_ne!(two.layers[0].chain_id, two.layers[1].chain_id);
}
