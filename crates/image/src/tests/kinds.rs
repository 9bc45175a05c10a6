//! The detection of an image's kind by its content.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use tempfile::TempDir;

use super::{Cage, Tar, gzip, write};
use crate::{Digest, Error, Image, Limits, Opening, Remote, Source, Watch};

fn hex(data: &[u8]) -> String {
    Digest::of(data).as_hex().to_owned()
}

fn zstd(data: &[u8]) -> Vec<u8> {
    zstd::encode_all(data, 1).unwrap()
}

fn layer() -> Vec<u8> {
    Tar::default().file("f", b"text").end()
}

fn config() -> Vec<u8> {
    let id = Digest::of(&layer());
    format!(r#"{{"config":{{"User":"u"}},"rootfs":{{"diff_ids":["{id}"]}}}}"#).into_bytes()
}

fn docker(dir: &str) -> Tar {
    let (name, json) = (format!("{dir}{}.json", hex(&config())), config());
    let items = format!(r#"[{{"Config":"{name}","RepoTags":["app:v1"],"Layers":["{dir}l.tar"]}}]"#);
    Tar::default()
        .file(&format!("{dir}l.tar"), &layer())
        .file(&name, &json)
        .file(&format!("{dir}manifest.json"), items.as_bytes())
}

/// The files of a layout.
fn layout() -> Vec<(String, Vec<u8>)> {
    let descriptor = |data: &[u8]| format!(r#"{{"digest":"{}","size":{}}}"#, Digest::of(data), data.len());
    let manifest =
        format!(r#"{{"config":{},"layers":[{}]}}"#, descriptor(&config()), descriptor(&layer())).into_bytes();
    let index = format!(r#"{{"manifests":[{}]}}"#, descriptor(&manifest)).into_bytes();
    let mut files = vec![("oci-layout".into(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec())];
    for data in [layer(), config(), manifest] {
        files.push((format!("blobs/sha256/{}", hex(&data)), data));
    }
    files.push(("index.json".into(), index));
    files
}

fn oci() -> Tar {
    layout().iter().fold(Tar::default().dir("./").dir("./blobs/"), |tar, (name, data)| {
        tar.file(&format!("./{name}"), data)
    })
}

fn open(text: &str) -> Result<Image, Error> {
    Source::parse(text)?.open(&Remote::default())
}

fn unpacked(image: &Image, index: usize) -> Result<Cage, Error> {
    let cage = Cage::new();
    let root = File::open(cage.root()).unwrap();
    image.layers[index].unpack(root.as_fd(), &[], &Limits::default(), &Watch::default())?;
    Ok(cage)
}

#[test]
fn each_kind_by_its_path_its_address_and_its_look() {
    let dir = tempfile::tempdir().unwrap();
    for (name, data) in layout() {
        write(&dir.path().join("layout").join(name), &data);
    }
    let tar = |tar: Tar| tar.end();
    let root = tar(Tar::default().dir("./").dir("./bin/").file("./f", b"text"));
    let whole: [(&str, &str, Vec<u8>); 3] = [
        ("tar", "tar", root),
        ("docker", "docker-archive", tar(docker(""))),
        ("oci", "oci-archive", tar(oci())),
    ];
    let mut wanted = vec![("layout".to_owned(), "oci")];
    for (name, scheme, data) in whole {
        for (kind, data) in [("", data.clone()), ("-gz", gzip(&data)), ("-zst", zstd(&data))] {
            write(&dir.path().join(format!("{name}{kind}")), &data);
            wanted.push((format!("{name}{kind}"), scheme));
        }
    }
    for (name, scheme) in wanted {
        let path = dir.path().join(&name);
        let address = format!("{scheme}://{}", path.display());
        let found = Source::detect(&path).unwrap();
        assert_eq!(found.to_uri(), address);
        let seen = found.open(&Remote::default()).unwrap();
        for text in [path.to_str().unwrap(), &format!("file://{}", path.display()), &address] {
            let image = open(text).unwrap();
            assert_eq!(image.layers[0].chain_id, seen.layers[0].chain_id, "{text}");
            assert_eq!(image.config.user, if scheme == "tar" { "" } else { "u" }, "{text}");
            assert_eq!(unpacked(&image, 0).unwrap().text("f"), "text", "{text}");
        }
        let packed = name.contains('-') && scheme != "tar";
        assert_eq!(Source::parse(path.to_str().unwrap()).unwrap().is_packed(), packed, "{name}");
    }
    // Its name is found in a compressed one, too.
    let names = open(&format!("docker-archive://{}/docker-gz:app:v1", dir.path().display())).unwrap().names;
    assert_eq!(names, ["app:v1"]);
}

#[test]
fn other_compressions_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let bzip2 = [&b"BZh9\x31\x41\x59\x26\x53\x59"[..], &[7; 600]].concat();
    let empty = [&b"BZh9\x17\x72\x45\x38\x50\x90"[..], &[0; 4]].concat();
    let xz = [&b"\xfd7zXZ\0\0\x04"[..], &[7; 600]].concat();
    for (tool, data) in [("xz", xz), ("bzip2", bzip2), ("bzip2", empty)] {
        let path = dir.path().join("packed");
        write(&path, &data);
        let shown = path.display().to_string();
        let command = format!("is compressed by {tool}, which is not read here: `{tool} -dc {shown} | gzip");
        for error in [
            Source::detect(&path).map(|_| ()),
            open(&shown).map(|_| ()),
            open(&format!("docker-archive://{shown}")).map(|_| ()),
            open(&format!("oci-archive://{shown}")).map(|_| ()),
            open(&format!("tar://{shown}")).and_then(|image| unpacked(&image, 0)).map(|_| ()),
        ] {
            let error = error.unwrap_err().to_string();
            assert!(error.contains(&command), "{error}");
        }
    }
    // A tar may begin with the letters.
    let path = dir.path().join("plain");
    write(&path, &Tar::default().file("BZh9", b"").end());
    assert!(open(path.to_str().unwrap()).is_ok_and(|image| unpacked(&image, 0).is_ok()));
}

#[test]
fn what_is_compressed_as_a_whole_is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    let address = format!("docker-archive://{}", path.display());
    // A root file system is recognized by its beginning, without decompressing the rest.
    let zeros = vec![0; 300 << 20];
    write(&path, &zstd(&Tar::default().dir("bin/").file("f", &zeros).end()));
    assert!(Source::detect(&path).unwrap().to_uri().starts_with("tar://"));
    // An archive of an image is.
    write(&path, &zstd(&docker("").file("zeros", &zeros).end()));
    drop(zeros);
    for error in [Source::detect(&path).map(|_| ()), open(&address).map(|_| ())] {
        assert!(matches!(error, Err(Error::Ratio { .. })), "{error:?}");
    }
    write(&path, &gzip(&docker("").end()));
    let open = |limits, cancelled: &(dyn Fn() -> bool + Sync)| {
        let opening = Opening { limits, cancelled, ..Opening::default() };
        Source::parse(&address).unwrap().open_in(&Remote::default(), &opening).map(|_| ())
    };
    let small = Limits { max_image_bytes: 1, max_entries: 0, ..Limits::default() };
    assert!(open(small, &|| false).is_ok());
    write(&path, &gzip(&docker("").file("x", &[7; 70_000]).end()));
    assert!(matches!(open(small, &|| false), Err(Error::Allowance { flag: "--max-image-bytes", .. })));
    assert!(matches!(open(Limits::default(), &|| true), Err(Error::Cancelled { .. })));
    // A truncated file is reported.
    let cut = gzip(&docker("").end());
    write(&path, &cut[..cut.len() / 2]);
    assert!(matches!(
        open(Limits::default(), &|| false),
        Err(Error::Truncated { .. } | Error::Corrupt { .. })
    ));
}

/// A layer of zeros in an archive of layers of zeros: both are counted for the ratio.
#[test]
fn a_bomb_in_a_bomb() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.zst");
    let layer = Tar::default().file("f", &vec![0; 280 << 20]).end();
    let packed = gzip(&layer);
    let json = format!(r#"{{"rootfs":{{"diff_ids":["{}"]}}}}"#, Digest::of(&layer));
    let items = r#"[{"Config":"c.json","RepoTags":null,"Layers":["l.tar"]}]"#;
    let archive = |zeros: usize| {
        let tar = Tar::default().file("l.tar", &packed).file("c.json", json.as_bytes());
        zstd(&tar.file("manifest.json", items.as_bytes()).file("zeros", &vec![0; zeros]).end())
    };
    drop(layer);
    write(&path, &archive(0));
    let image = open(path.to_str().unwrap()).unwrap();
    let again = unpacked(&image, 0);
    // The layer's 1.2 MB took a few kB on the disk.
    assert!(packed.len() > 1 << 20 && path.metadata().unwrap().len() < 100 << 10);
    assert!(matches!(again.map(|_| ()), Err(Error::Ratio { .. })));
}

/// A directory that could be a root file system.
fn tree() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in ["bin", "etc", "tmp"] {
        std::fs::create_dir(dir.path().join(name)).unwrap();
    }
    std::fs::set_permissions(dir.path().join("tmp"), PermissionsExt::from_mode(0o1777)).unwrap();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    write(&dir.path().join("bin/sh"), b"text");
    std::fs::set_permissions(dir.path().join("bin/sh"), PermissionsExt::from_mode(0o4755)).unwrap();
    std::fs::hard_link(dir.path().join("bin/sh"), dir.path().join("bin/ash")).unwrap();
    symlink("/etc/nothing", dir.path().join("etc/link")).unwrap();
    dir
}

fn of_tree(dir: &Path) -> Image {
    let text = dir.to_str().unwrap();
    assert_eq!(Source::detect(dir).unwrap().to_uri(), text);
    assert!(Source::parse(text).unwrap().state().is_none());
    open(text).unwrap()
}

#[test]
fn a_directory_is_taken_as_it_is() {
    let dir = tree();
    // A root file system with an `index.json` is no layout.
    write(&dir.path().join("index.json"), b"{}");
    let image = of_tree(dir.path());
    assert_eq!((image.layers.len(), image.layers[0].size()), (1, 10));
    let cage = unpacked(&image, 0).unwrap();
    let stat = |name: &str| cage.root().join(name).symlink_metadata().unwrap();
    assert_eq!(cage.text("bin/ash"), "text");
    assert_eq!((stat("tmp").mode() & 0o7777, stat("bin/sh").mode() & 0o7777), (0o1777, 0o4755));
    assert_eq!((stat("bin/sh").ino(), stat("bin/sh").nlink()), (stat("bin/ash").ino(), 2));
    assert_eq!(std::fs::read_link(cage.root().join("etc/link")).unwrap(), Path::new("/etc/nothing"));
    // The same state is the same image, and every change is another one.
    assert_eq!(of_tree(dir.path()).id, image.id);
    for change in [
        &|| write(&dir.path().join("etc/deep/er"), b"x"),
        &|| std::fs::set_permissions(dir.path().join("etc/deep"), PermissionsExt::from_mode(0o700)).unwrap(),
        &|| write(&dir.path().join("bin/sh"), b"TEXT"),
        &|| std::fs::remove_file(dir.path().join("etc/link")).unwrap(),
    ] as [&dyn Fn(); 4]
    {
        let before = of_tree(dir.path());
        change();
        assert!(matches!(unpacked(&before, 0).map(|_| ()), Err(Error::Changed { .. })));
        assert_ne!(of_tree(dir.path()).id, before.id);
    }
}

#[test]
fn a_directory_is_bounded() {
    let dir = tree();
    let image = of_tree(dir.path());
    // A tree cannot be unpacked into itself.
    std::fs::create_dir(dir.path().join("store")).unwrap();
    let image_within = of_tree(dir.path());
    let into = File::open(dir.path().join("store")).unwrap();
    let unpack = |image: &Image, limits: &Limits| {
        image.layers[0].unpack(into.as_fd(), &[], limits, &Watch::default()).map(|_| ())
    };
    assert!(matches!(unpack(&image_within, &Limits::default()), Err(Error::UnsafePath { .. })));
    drop(image);
    let few = Limits { max_entries: 3, ..Limits::default() };
    let opening = Opening { limits: few, ..Opening::default() };
    let source = Source::parse(dir.path().to_str().unwrap()).unwrap();
    assert!(matches!(source.open_in(&Remote::default(), &opening), Err(Error::Limit { .. })));
    // A directory that does not look like a root file system is refused.
    let other = tempfile::tempdir().unwrap();
    std::fs::create_dir(other.path().join("bin")).unwrap();
    assert!(matches!(open(other.path().to_str().unwrap()), Err(Error::Directory { .. })));
    assert!(matches!(open("/etc/none"), Err(Error::Missing { .. })));
    write(&dir.path().join("etc/.wh.x"), b"");
    let cage = unpacked(&of_tree(dir.path()), 0);
    assert!(matches!(cage.map(|_| ()), Err(Error::Entry { .. })));
}
