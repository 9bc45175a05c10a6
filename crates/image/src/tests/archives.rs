use std::fs::File;
use std::os::fd::AsFd;
use std::path::PathBuf;

use tar::EntryType;
use tempfile::TempDir;

use super::{Cage, Tar, gzip, write};
use crate::{Digest, Error, Image, Limits, Remote, Source, Watch};

/// A file `x.tar` in a directory of its own.
struct Saved {
    dir: TempDir,
}

impl Saved {
    fn new(tar: &[u8]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        write(&dir.path().join("x.tar"), tar);
        Self { dir }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("x.tar")
    }

    fn open(&self, scheme: &str, name: &str) -> Result<Image, Error> {
        Source::parse(&format!("{scheme}://{}{name}", self.path().display()))?.open(&Remote::default())
    }

    fn docker(&self) -> Result<Image, Error> {
        self.open("docker-archive", "")
    }
}

fn layer(text: &str) -> Vec<u8> {
    Tar::default().file("f", text.as_bytes()).end()
}

fn config(layers: &[&[u8]]) -> Vec<u8> {
    let ids: Vec<_> = layers.iter().map(|l| Digest::of(l)).collect();
    let ids = serde_json::to_string(&ids).unwrap();
    format!(r#"{{"config":{{"Env":["A=b"],"User":"u"}},"rootfs":{{"diff_ids":{ids}}}}}"#).into_bytes()
}

fn manifest(config: &str, tags: &str, layers: &[&str]) -> String {
    let layers = serde_json::to_string(layers).unwrap();
    format!(r#"[{{"Config":"{config}","RepoTags":{tags},"Layers":{layers}}}]"#)
}

/// The content of the file `f` of each layer.
fn texts(image: &Image) -> Vec<String> {
    image
        .layers
        .iter()
        .map(|layer| {
            let cage = Cage::new();
            layer
                .unpack(File::open(cage.root()).unwrap().as_fd(), &[], &Limits::default(), &Watch::default())
                .unwrap();
            cage.text("f")
        })
        .collect()
}

fn hex(data: &[u8]) -> String {
    Digest::of(data).as_hex().to_owned()
}

/// Docker before 25: a directory for each layer, equal layers as links in all the ways that were in use.
#[test]
fn docker_old_form() {
    let (one, two) = (layer("one"), layer("two"));
    let json = config(&[&one, &two, &one, &two]);
    let name = format!("{}.json", hex(&json));
    let tar = Tar::default()
        .dir("a/")
        .file("a/VERSION", b"1.0")
        .file("a/layer.tar", &one)
        .link("b/layer.tar", "d/layer.tar")
        .symlink("c/layer.tar", "../a/layer.tar")
        .file("./d/layer.tar", &two)
        .file(&name, &json)
        .file("repositories", b"{}")
        .file(
            "manifest.json",
            manifest(
                &name,
                r#"["app:latest","r.io:5/x/app:v1"]"#,
                &["a/layer.tar", "b/layer.tar", "c/layer.tar", "d/layer.tar"],
            )
            .as_bytes(),
        )
        .end();
    let saved = Saved::new(&tar);
    let image = saved.docker().unwrap();
    assert_eq!((image.config.env.join(","), image.config.user.as_str()), ("A=b".into(), "u"));
    assert_eq!(texts(&image), ["one", "two", "one", "two"]);
    assert_eq!(image.layers[0].chain_id, hex(&one));
    let second = format!("{} {}", Digest::of(&one), Digest::of(&two));
    assert_eq!(image.layers[1].chain_id, hex(second.as_bytes()));
    for name in [":app", ":app:latest", ":docker.io/library/app", ":r.io:5/x/app:v1"] {
        assert!(saved.open("docker-archive", name).is_ok(), "{name}");
    }
    for name in [":app:v1", ":r.io:5/x/app", ":other"] {
        assert!(matches!(saved.open("docker-archive", name), Err(Error::Select { .. })), "{name}");
    }
    let source = Source::detect(&saved.path()).unwrap();
    assert_eq!(source.to_uri(), format!("docker-archive://{}", saved.path().display()));
}

/// Docker since 25 writes an OCI layout with a `manifest.json`; other tools compress the layers.
#[test]
fn docker_new_form_and_oci() {
    let (one, two) = (layer("one"), layer("two"));
    let packed = gzip(&two);
    let json = config(&[&one, &two]);
    let blob = |data: &[u8]| format!("blobs/sha256/{}", hex(data));
    let desc = |data: &[u8]| format!(r#"{{"digest":"{}","size":{}}}"#, Digest::of(data), data.len());
    let oci = format!(r#"{{"config":{},"layers":[{},{}]}}"#, desc(&json), desc(&one), desc(&packed));
    let entry = |tag: &str, name: &str| {
        format!(
            r#"{{"digest":"{}","size":{},"annotations":{{"org.opencontainers.image.ref.name":"{tag}","io.containerd.image.name":"{name}"}}}}"#,
            Digest::of(oci.as_bytes()),
            oci.len()
        )
    };
    let index = format!(r#"{{"manifests":[{},{}]}}"#, entry("v1", "r.io/app:v1"), entry("v2", "r.io/app:v2"));
    let layout = || {
        Tar::default()
            .dir("blobs/")
            .dir("blobs/sha256/")
            .file(&blob(&one), &one)
            .file(&blob(&packed), &packed)
            .file(&blob(&json), &json)
            .file(&blob(oci.as_bytes()), oci.as_bytes())
            .file("index.json", index.as_bytes())
            .file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)
    };
    let saved = Saved::new(&layout().end());
    for tag in ["", ":v1", ":v2", ":r.io/app:v1"] {
        assert_eq!(texts(&saved.open("oci-archive", tag).unwrap()), ["one", "two"], "{tag}");
    }
    assert!(matches!(saved.open("oci-archive", ":v3"), Err(Error::Select { .. })));
    assert!(matches!(saved.docker(), Err(Error::Corrupt { .. })));
    let source = Source::detect(&saved.path()).unwrap();
    assert_eq!(source.to_uri(), format!("oci-archive://{}", saved.path().display()));

    let items = manifest(&blob(&json), "null", &[&blob(&one), &blob(&packed)]);
    let saved = Saved::new(&layout().file("manifest.json", items.as_bytes()).0); // without an end marker
    assert_eq!(texts(&saved.docker().unwrap()), ["one", "two"]);
    assert!(Source::detect(&saved.path()).unwrap().to_uri().starts_with("docker-archive://"));
    assert_eq!(texts(&saved.open("oci-archive", "").unwrap()), ["one", "two"]);
}

/// One of several images can be selected only in the address, so the error shows the address and the names.
#[test]
fn several_images_are_named() {
    let layer = layer("x");
    let json = config(&[&layer]);
    let item = |tag: &str| {
        let list = manifest("c.json", tag, &["l.tar"]);
        list[1..list.len() - 1].to_owned()
    };
    let saved = |items: &[String]| {
        let list = format!("[{}]", items.join(","));
        Saved::new(
            &Tar::default()
                .file("c.json", &json)
                .file("l.tar", &layer)
                .file("manifest.json", list.as_bytes())
                .end(),
        )
    };
    let told = |saved: &Saved| saved.docker().unwrap_err().to_string();
    let two = saved(&[item(r#"["one:1"]"#), item(r#"["t\u001bwo:2"]"#)]);
    let expected = format!(
        r#"there are several images: "one:1", "t\x1bwo:2"; say which one with the address docker-archive://{}:NAME"#,
        two.path().display()
    );
    assert!(told(&two).ends_with(&expected), "{}", told(&two));
    assert!(two.open("docker-archive", ":one:1").is_ok());
    // So does the error for an unknown name.
    let other = two.open("docker-archive", ":three").unwrap_err().to_string();
    assert!(other.ends_with(r#"no image is called "three"; it has "one:1", "t\x1bwo:2""#), "{other}");
    let many: Vec<String> = (0..1000).map(|n| item(&format!(r#"["i{n}:{}"]"#, "t".repeat(300)))).collect();
    let many = saved(&many);
    let other = many.open("docker-archive", ":three").unwrap_err().to_string();
    assert!(other.ends_with("\"…, …") && other.len() < 4096, "{other}");
    let many = told(&many);
    assert!(many.contains("\"…, …; say") && many.len() < 4096, "{many}");
    let unnamed = saved(&[item("null"), item("null")]);
    let other = unnamed.open("docker-archive", ":three").unwrap_err().to_string();
    assert!(other.ends_with(r#"no image is called "three"; nothing in it has a name"#), "{other}");
    let unnamed = told(&unnamed);
    assert!(unnamed.ends_with("without names to tell them apart"), "{unnamed}");
}

#[test]
fn detects() {
    let dir = tempfile::tempdir().unwrap();
    let detect = |name: &str| Source::detect(&dir.path().join(name)).map(|s| s.to_uri());
    let error = |name: &str| detect(name).unwrap_err().to_string();
    let uri = |scheme: &str, name: &str| format!("{scheme}://{}/{name}", dir.path().display());
    assert_eq!(error("none"), format!("stat {}/none: no such file or directory", dir.path().display()));
    std::fs::create_dir(dir.path().join("plain")).unwrap();
    assert!(error("plain").starts_with("invalid base image: directory provided instead of a tar file"));
    write(&dir.path().join("layout/oci-layout"), b"{}");
    assert_eq!(detect("layout").unwrap(), uri("oci", "layout"));
    // A root file system may have such files, too.
    let root = Tar::default().file("etc/passwd", b"").file("manifest.json", b"{}").file("index.json", b"");
    write(&dir.path().join("root"), &root.end());
    assert_eq!(detect("root").unwrap(), uri("tar", "root"));
    write(&dir.path().join("zip"), &gzip(&layer("x")));
    assert_eq!(detect("zip").unwrap(), uri("tar", "zip"));
    for name in ["blobs/", "manifest.json", &format!("{}/layer.tar", "0a".repeat(32))] {
        let tar = Tar::default().file(name, b"").end();
        for data in [gzip(&tar), zstd::encode_all(&tar[..], 1).unwrap()] {
            write(&dir.path().join("zip"), &data);
            // The file was decompressed, and contains no image.
            assert_eq!(detect("zip").unwrap(), uri("tar", "zip"), "{name}");
        }
    }
    write(&dir.path().join("junk"), b"junk");
    assert_eq!(detect("junk").unwrap(), uri("tar", "junk"));
    rustix::fs::mkfifoat(rustix::fs::CWD, dir.path().join("fifo"), rustix::fs::Mode::RUSR).unwrap();
    assert!(matches!(detect("fifo"), Err(Error::Corrupt { .. })));
    write(&dir.path().join("a:b/oci-layout"), b"{}");
    // No address of a layout ends like this.
    assert_eq!(detect("a:b").unwrap(), format!("{}/a:b", dir.path().display()));
}

#[test]
fn hostile_archives() {
    let one = layer("one");
    let json = config(&[&one]);
    let name = format!("{}.json", hex(&json));
    let items = manifest(&name, "null", &["l"]);
    let whole = || Tar::default().file("l", &one).file(&name, &json).file("manifest.json", items.as_bytes());
    assert!(Saved::new(&whole().end()).docker().is_ok());
    let other = |items: &str| {
        Tar::default().file("l", &one).file(&name, &json).file("manifest.json", items.as_bytes())
    };
    let without = || Tar::default().file(&name, &json).file("manifest.json", items.as_bytes());
    let lying = |h: &mut tar::Header| h.set_size(1 << 40);
    let sparse: [(&str, &[u8]); 3] =
        [("GNU.sparse.size", b"10"), ("GNU.sparse.numblocks", b"1"), ("GNU.sparse.map", b"0,1")];
    let far = |h: &mut tar::Header| h.set_size(u64::MAX - 100);
    let cases: Vec<(&str, Tar, &str)> = vec![
        ("two of a name", whole().file("./l", b"x"), "Entry"),
        ("file and link of a name", whole().link("l", "manifest.json"), "Entry"),
        ("name out of it", whole().file("a/../../l2", b"x"), "UnsafePath"),
        ("longer than the file", whole().raw(EntryType::Regular, "big", "", b"", lying), "Truncated"),
        ("longer than a number", whole().raw(EntryType::Regular, "big", "", b"", far), "Truncated"),
        ("size of an extension", whole().pax(&[("size", b"9999999999")]).file("x", b""), "Truncated"),
        ("sparse", whole().pax(&sparse).file("s", b"x"), "Entry"),
        ("links in a circle", without().symlink("l", "m").symlink("m", "l"), "Corrupt"),
        ("link to itself", without().link("l", "l"), "Corrupt"),
        ("link out of it", without().symlink("l", "../l"), "Corrupt"),
        ("absolute link", without().symlink("l", "/etc/passwd"), "Corrupt"),
        ("device", without().raw(EntryType::Char, "l", "", b"", |_| {}), "Corrupt"),
        ("no layer", without(), "Corrupt"),
        ("layer out of it", other(&manifest(&name, "null", &["../l"])), "UnsafePath"),
        ("no config", other(&manifest("c", "null", &["l"])), "Corrupt"),
        ("config is a layer", other(&manifest("l", "null", &["l"])), "Json"),
        ("too few layers", other(&manifest(&name, "null", &[])), "Corrupt"),
        ("too many layers", other(&manifest(&name, "null", &["l"; 1025])), "Limit"),
        ("no image", other("[]"), "Select"),
        ("no list", other("{}"), "Json"),
        ("long list", other(&" ".repeat((4 << 20) + 1)), "Limit"),
        ("no manifest", Tar::default().file("l", &one), "Corrupt"),
    ];
    for (what, tar, kind) in cases {
        let error = Saved::new(&tar.end()).docker().expect_err(what);
        assert!(format!("{error:?}").starts_with(kind), "{what}: {error:?}");
    }
    let hex = "0".repeat(64);
    for config in [format!("{hex}.json"), format!("blobs/sha256/{hex}"), format!("sha256:{hex}")] {
        let items = manifest(&config, "null", &["l"]);
        let tar = Tar::default().file("l", &one).file(&config, &json).file("manifest.json", items.as_bytes());
        assert!(matches!(Saved::new(&tar.end()).docker(), Err(Error::DigestMismatch { .. })), "{config}");
    }
    // A layer is verified only by its diff id.
    let tar =
        Tar::default().file("l", &layer("two")).file(&name, &json).file("manifest.json", items.as_bytes());
    let image = Saved::new(&tar.end()).docker().unwrap();
    let cage = Cage::new();
    let result = image.layers[0].unpack(
        File::open(cage.root()).unwrap().as_fd(),
        &[],
        &Limits::default(),
        &Watch::default(),
    );
    assert!(matches!(result, Err(Error::DigestMismatch { .. })), "{result:?}");

    assert!(Saved::new(&gzip(&whole().end())).docker().is_ok());
    assert!(Saved::new(b"").docker().is_err());
}

/// A million entries cost no more than the limit allows.
#[test]
fn many_entries() {
    let mut tar = Tar::default();
    for i in 0..70_000 {
        tar = tar.raw(EntryType::Regular, &format!("f{i}"), "", b"", |_| {});
    }
    let saved = Saved::new(&tar.end());
    assert!(matches!(saved.docker(), Err(Error::Limit { .. })));
    assert!(Source::detect(&saved.path()).unwrap().to_uri().starts_with("tar://"));
    let long = "n".repeat(1 << 20);
    let mut tar = Tar::default();
    for i in 0..20 {
        tar = tar.pax(&[("path", format!("{i}{}", &long[100..]).as_bytes())]).file("x", b"");
    }
    assert!(matches!(Saved::new(&tar.end()).docker(), Err(Error::Limit { .. })));
}

/// Layers are read from one file in parallel.
#[test]
fn side_by_side() {
    let layers: Vec<Vec<u8>> =
        (0..4u8).map(|i| Tar::default().file("f", &vec![b'a' + i; 3 << 20]).end()).collect();
    let json = config(&layers.iter().map(Vec::as_slice).collect::<Vec<_>>());
    let mut tar = Tar::default().file("c", &json);
    for (i, layer) in layers.iter().enumerate() {
        tar = tar.file(&format!("{i}.tar"), layer);
    }
    let items = manifest("c", "null", &["0.tar", "1.tar", "2.tar", "3.tar"]);
    let image = Saved::new(&tar.file("manifest.json", items.as_bytes()).end());
    let image = image.docker().unwrap();
    std::thread::scope(|scope| {
        for layer in &image.layers {
            scope.spawn(|| {
                let cage = Cage::new();
                layer
                    .unpack(
                        File::open(cage.root()).unwrap().as_fd(),
                        &[],
                        &Limits::default(),
                        &Watch::default(),
                    )
                    .unwrap();
            });
        }
    });
}

/// Some tools write a blob again for each layer that uses it. Entries that differ are refused: readers disagree about
/// which one counts.
#[test]
fn the_same_blob_twice_is_one() {
    let (one, json) = (layer("one"), config(&[&layer("one")]));
    let name = format!("blobs/sha256/{}", hex(&one));
    let save = |second: &[u8]| {
        let tar = Tar::default().file(&name, &one).file(&name, second).file("c.json", &json);
        let items = manifest("c.json", "null", &[&name]);
        Saved::new(&tar.file("manifest.json", items.as_bytes()).end())
    };
    assert_eq!(texts(&save(&one).docker().unwrap()), ["one"]);
    let (mut other, mut longer) = (one.clone(), one.clone());
    *other.last_mut().unwrap() = 1;
    longer.push(0);
    for wrong in [other, longer] {
        let error = save(&wrong).docker().unwrap_err();
        assert!(matches!(error, Error::Entry { .. }), "{error:?}");
    }
}
