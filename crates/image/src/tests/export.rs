use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
};
use tar::EntryType;
use tempfile::TempDir;
use wardian_needs::needs;

use super::{Tar, write};
use crate::export::{Compression, Exported, Format, LeftOut, ROOTFS, Target, export};
use crate::{Digest, Error, Limits, Remote, Source, Watch, unpack_tar};

/// Returns everything visible of a tree, by path. Hard links are shown by a number that their names share.
fn snapshot(root: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut inodes = HashMap::new();
    let mut todo = vec![PathBuf::new()];
    while let Some(path) = todo.pop() {
        let full = root.join(&path);
        // The root may be a descriptor's link in /proc.
        let stat = if path == Path::new("") { full.metadata() } else { full.symlink_metadata() }.unwrap();
        let kind = stat.mode() & 0o170_000;
        let content = match kind {
            0o100_000 => Digest::of(&std::fs::read(&full).unwrap()).to_string(),
            0o120_000 => format!("{:?}", full.read_link().unwrap()),
            0o040_000 => {
                let mut names: Vec<_> =
                    std::fs::read_dir(&full).unwrap().map(|e| e.unwrap().file_name()).collect();
                names.sort();
                todo.extend(names.iter().rev().map(|name| path.join(name)));
                String::new()
            }
            _ => format!("{:x}", stat.rdev()),
        };
        let is_whiteout = kind == 0o020_000 && stat.rdev() == 0;
        let attributes = if is_whiteout {
            "whiteout".into()
        } else {
            let (sec, nsec) = (stat.mtime(), stat.mtime_nsec());
            format!("{:o} {}:{} {sec}.{nsec:09}", stat.mode(), stat.uid(), stat.gid())
        };
        let mut xattrs = String::new();
        if kind == 0o100_000 || kind == 0o040_000 {
            let (mut list, mut value) = (vec![0; 65536], vec![0; 65536]);
            let n = rustix::fs::listxattr(&full, &mut list[..]).unwrap();
            let mut names: Vec<_> = list[..n].split(|b| *b == 0).filter(|n| !n.is_empty()).collect();
            names.sort_unstable();
            for name in names {
                let n = rustix::fs::getxattr(&full, name, &mut value[..]).unwrap();
                xattrs += &format!(" {}={}", name.escape_ascii(), value[..n].escape_ascii());
            }
        }
        let link = if kind != 0o040_000 && stat.nlink() > 1 && !is_whiteout {
            let next = inodes.len();
            format!(" link {}", inodes.entry((stat.dev(), stat.ino())).or_insert(next))
        } else {
            String::new()
        };
        let key = path.as_os_str().as_bytes().escape_ascii().to_string();
        found.insert(key, format!("{attributes} {content}{link}{xattrs}"));
    }
    found
}

/// A directory with unpacked layers `0`, `1`, ... in it, bottom first.
struct Layers {
    dir: TempDir,
    count: usize,
}

impl Layers {
    fn new(tars: &[Vec<u8>]) -> Self {
        let layers = Self { dir: tempfile::tempdir().unwrap(), count: tars.len() };
        for (i, tar) in tars.iter().enumerate() {
            std::fs::create_dir(layers.path(i)).unwrap();
            let into = File::open(layers.path(i)).unwrap();
            unpack_tar(&tar[..], into.as_fd(), &Limits::default()).unwrap();
        }
        layers
    }

    fn path(&self, i: usize) -> PathBuf {
        self.dir.path().join(i.to_string())
    }

    fn export_with(
        &self,
        config: Option<&[u8]>,
        names: &[&str],
        to: &Target,
        watch: &Watch,
    ) -> Result<Exported, Error> {
        let files: Vec<_> = (0..self.count).map(|i| File::open(self.path(i)).unwrap()).collect();
        let fds: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        let names: Vec<_> = names.iter().map(ToString::to_string).collect();
        export(&fds, config, &names, to, watch)
    }

    fn export(&self, format: Format, path: &Path) -> Result<Exported, Error> {
        self.export_with(None, &[], &target(format, path), &Watch::default())
    }

    /// The layers as the kernel shows them.
    fn overlay(&self) -> OwnedFd {
        let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
        let lower: Vec<_> = (0..self.count).rev().map(|i| self.path(i).display().to_string()).collect();
        fsconfig_set_string(context.as_fd(), "lowerdir", lower.join(":")).unwrap();
        mount(&context)
    }
}

fn mount(context: &OwnedFd) -> OwnedFd {
    fsconfig_create(context.as_fd()).unwrap();
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).unwrap()
}

fn target(format: Format, path: &Path) -> Target {
    Target {
        format,
        path: path.to_owned(),
        compression: Compression::Gzip,
        overwrite: false,
        keep_privileges: true,
    }
}

fn link_to(fd: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(fd)))
}

/// Three layers with all that a layer can have.
fn everything() -> Layers {
    let caps = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let device = |major, minor| {
        move |h: &mut tar::Header| {
            h.set_device_major(major).unwrap();
            h.set_device_minor(minor).unwrap();
            h.set_mode(0o660);
        }
    };
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(200));
    let bottom = Tar::default()
        .raw(EntryType::Directory, "./", "", b"", |h| h.set_mode(0o1755))
        .file("a", b"bottom a")
        .file("gone", b"gone")
        .dir("opaque/")
        .file("opaque/hidden", b"hidden")
        .dir("shared/")
        .file("shared/low", b"low")
        .file("shared/both", b"old")
        .dir("shared/deep/")
        .file("shared/deep/low", b"low")
        .link("shared/linked", "a")
        .link("zlinked", "a")
        .symlink("sym", "a")
        .link("sym2", "sym")
        .dir("becomes-file/")
        .file("becomes-file/x", b"x")
        .file("becomes-dir", b"file")
        .symlink("becomes-dir-too", "shared")
        .dir("hidden-for-good/")
        .file("hidden-for-good/x", b"x")
        .pax(&[("path", long.as_bytes()), ("mtime", b"1234567890.123456789")])
        .file("x", b"long")
        .pax(&[("linkpath", "t".repeat(300).as_bytes()), ("mtime", b"-1.25")])
        .symlink("far", "x")
        .end();
    let middle = Tar::default()
        .dir("shared/")
        .pax(&[("uid", b"3000000"), ("gid", b"4294967294"), ("mtime", b"-1.25")])
        .file("shared/both", b"new")
        .pax(&[("mtime", b"99999999999.5"), ("SCHILY.xattr.user.dir", b"1")])
        .raw(EntryType::Directory, "shared/deep/", "", b"", |h| h.set_mode(0o2770))
        .file("shared/deep/middle", &[b'm'; 700_000])
        .dir("opaque/")
        .file("opaque/.wh..wh..opq", b"")
        .file("opaque/seen", b"seen")
        .file(".wh.gone", b"")
        .file("becomes-file", b"file")
        .dir("becomes-dir/")
        .file("becomes-dir/x", b"x")
        .dir("becomes-dir-too/")
        .file("becomes-dir-too/y", b"y")
        .file(".wh.hidden-for-good", b"")
        .pax(&[("SCHILY.xattr.security.capability", &caps), ("SCHILY.xattr.user.note", b"with\nnewline=x\0")])
        .raw(EntryType::Regular, "su", "", b"#!", |h| {
            h.set_mode(0o6755);
            h.set_uid(7);
        })
        .raw(EntryType::Char, "null", "", b"", device(1, 3))
        .raw(EntryType::Block, "sd", "", b"", device(8, 17))
        .raw(EntryType::Fifo, "fifo", "", b"", |h| h.set_mode(0o600))
        .link("fifo2", "fifo")
        .end();
    let top = Tar::default()
        .file(".wh.nothing", b"")
        .file("shared/.wh.low", b"")
        .dir("hidden-for-good/")
        .file("hidden-for-good/new", b"new")
        .file("a", b"top a")
        .link("a2", "a")
        .end();
    let layers = Layers::new(&[bottom, middle, top]);
    // Entries that only a disk can have.
    std::os::unix::net::UnixListener::bind(layers.path(1).join("socket")).unwrap();
    symlink("x", layers.path(2).join(OsStr::from_bytes(b"latin-\xe9"))).unwrap();
    layers
}

#[test]
fn image_formats_bring_back_every_layer() {
    let layers = everything();
    let expected: Vec<_> = (0..3)
        .map(|i| {
            let mut tree = snapshot(&layers.path(i));
            tree.remove("socket");
            tree
        })
        .collect();
    let config =
        br#"{"architecture":"arm64","os":"linux","created":"2020-01-01T00:00:00Z","x-own":{"a":[1,null]},
        "config":{"Env":["A=b"],"User":"u","Cmd":["sh"]},"history":[{"created_by":"x"}],
        "rootfs":{"type":"layers","diff_ids":["sha256:00"]}}"#;
    for (format, compression, head) in [
        (Format::Oci, Compression::Gzip, &[0x1f, 0x8b][..]),
        (Format::Oci, Compression::Zstd, &[0x28, 0xb5]),
        (Format::OciArchive, Compression::Gzip, &[0x1f, 0x8b]),
        (Format::OciArchive, Compression::Zstd, &[0x28, 0xb5]),
        (Format::DockerArchive, Compression::Gzip, b"./"),
    ] {
        let out = tempfile::tempdir().unwrap();
        let what = format!("{format} {compression:?}");
        let path = out.path().join("image");
        let to = Target { compression, ..target(format, &path) };
        let watch = Watch::default();
        let done = layers.export_with(Some(config), &["r.io:5/x/app:v1", "app"], &to, &watch).unwrap();
        assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 1, "{what}");
        assert_eq!((done.skipped_sockets, done.skipped_xattrs), (1, 0), "{what}");
        assert_eq!(watch.bytes_read(), done.bytes, "{what}");
        let ids = done.image.unwrap();
        let source = Source::detect(&path).unwrap();
        assert_eq!(source.to_uri(), format!("{format}://{}", path.display()));
        let image = source.open(&Remote::default()).unwrap();
        assert_eq!(image.id, ids.config.as_hex(), "{what}");
        assert_eq!((image.config.env.join(","), image.config.user.as_str()), ("A=b".into(), "u"));
        let mut json: serde_json::Value = serde_json::from_slice(&image.config_json.unwrap()).unwrap();
        let mut before: serde_json::Value = serde_json::from_slice(config).unwrap();
        assert_eq!(json["rootfs"]["diff_ids"], serde_json::to_value(&ids.diff_ids).unwrap());
        (json["rootfs"], before["rootfs"]) = (().into(), ().into());
        assert_eq!(json, before, "{what}");
        assert_eq!(image.layers.len(), 3);
        for (i, layer) in image.layers.iter().enumerate() {
            assert_eq!(layer.diff_id(), Some(&ids.diff_ids[i]));
            let cage = tempfile::tempdir().unwrap();
            let into = File::open(cage.path()).unwrap();
            layer.unpack(into.as_fd(), &[], &Limits::default(), &Watch::default()).unwrap();
            assert_eq!(snapshot(cage.path()), expected[i], "{what}, layer {i}");
        }
        let tags: &[&str] = match format {
            Format::DockerArchive => &[":r.io:5/x/app:v1", ":app:latest"],
            Format::OciArchive => &[":v1", ":latest", ":r.io:5/x/app:v1"],
            _ => &[":v1", ":latest"],
        };
        for tag in tags {
            assert!(
                Source::parse(&format!("{}{tag}", source.to_uri())).unwrap().open(&Remote::default()).is_ok(),
                "{what} {tag}"
            );
        }
        // Layers are stored as asked for.
        let blob = if format == Format::Oci {
            let manifest = image.manifest.unwrap();
            let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
            let digest = manifest["layers"][0]["digest"].as_str().unwrap().replace(':', "/");
            std::fs::read(path.join("blobs").join(digest)).unwrap()
        } else {
            let bytes = std::fs::read(&path).unwrap();
            bytes[3 * 512..].to_vec() // behind blobs/, blobs/sha256/ and the header
        };
        assert!(blob.starts_with(head), "{what}");
        if format != Format::Oci {
            let again = out.path().join("again");
            let to = Target { path: again.clone(), ..to };
            layers.export_with(Some(config), &["r.io:5/x/app:v1", "app"], &to, &watch).unwrap();
            assert!(std::fs::read(&path).unwrap() == std::fs::read(&again).unwrap(), "{what} differs");
        }
    }
}

/// Unpacking and exporting an export gives the same bytes: the image keeps its id.
#[test]
fn an_export_of_an_export_has_the_same_id() {
    let layers = everything();
    let out = tempfile::tempdir().unwrap();
    let first = layers.export(Format::Oci, &out.path().join("1")).unwrap();
    let image = Source::detect(&out.path().join("1")).unwrap().open(&Remote::default()).unwrap();
    let again = Layers { dir: tempfile::tempdir().unwrap(), count: 3 };
    for (i, layer) in image.layers.iter().enumerate() {
        std::fs::create_dir(again.path(i)).unwrap();
        let into = File::open(again.path(i)).unwrap();
        layer.unpack(into.as_fd(), &[], &Limits::default(), &Watch::default()).unwrap();
    }
    let to = target(Format::DockerArchive, &out.path().join("2"));
    let second = again.export_with(image.config_json.as_deref(), &[], &to, &Watch::default()).unwrap();
    assert_eq!(first.image.unwrap().config, second.image.unwrap().config);
}

/// The kernel's overlay gives the expected tree.
#[test]
fn merged_formats_are_what_overlayfs_shows() {
    let layers = everything();
    let mut expected = snapshot(&link_to(&layers.overlay()));
    expected.remove("socket");
    assert!(expected.contains_key("shared/deep/low") && !expected.contains_key("opaque/hidden"));
    let out = tempfile::tempdir().unwrap();
    let dir = out.path().join("dir");
    std::fs::create_dir(&dir).unwrap();
    let done = layers.export(Format::Dir, &dir).unwrap();
    assert_eq!((done.entries, done.image), (expected.len() as u64, None));
    // Only the owner can search the directory, whatever modes the image has.
    assert_eq!(dir.metadata().unwrap().permissions().mode() & 0o7777, 0o700);
    assert_eq!(snapshot(&dir.join(ROOTFS)), expected);
    let tar = out.path().join("tar");
    layers.export(Format::Tar, &tar).unwrap();
    let image = Source::detect(&tar).unwrap().open(&Remote::default()).unwrap();
    let cage = tempfile::tempdir().unwrap();
    let into = File::open(cage.path()).unwrap();
    image.layers[0].unpack(into.as_fd(), &[], &Limits::default(), &Watch::default()).unwrap();
    assert_eq!(snapshot(cage.path()), expected);
    let mut archive = tar::Archive::new(File::open(&tar).unwrap());
    let names: Vec<_> = archive.entries().unwrap().map(|e| e.unwrap().path().unwrap().into_owned()).collect();
    assert!(names.is_sorted(), "{names:?}");
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 2);
}

#[test]
fn a_directory_keeps_holes() {
    let layers = Layers::new(&[Tar::default().file("end", b"x").end()]);
    let file = File::options().write(true).create_new(true).open(layers.path(0).join("big")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"end", 64 << 20).unwrap();
    let out = tempfile::tempdir().unwrap();
    layers.export(Format::Dir, &out.path().join("dir")).unwrap();
    assert_eq!(snapshot(&out.path().join("dir").join(ROOTFS)), snapshot(&layers.path(0)));
    assert!(out.path().join("dir/rootfs/big").metadata().unwrap().blocks() * 512 < 1 << 20);
}

/// More directories than are kept open, in several layers; and one more than is allowed.
#[test]
fn deep_trees() {
    let tars: Vec<_> = (0..3u32)
        .map(|layer| {
            let mut tar = Tar::default();
            let mut path = String::new();
            for depth in 0..250u32 {
                path += "d/";
                tar = tar.pax(&[("path", path.as_bytes())]).dir("x");
                let file = format!("{path}z{}", depth % (layer + 2));
                tar = tar.pax(&[("path", file.as_bytes())]).file("x", &[b'a' + layer as u8]);
            }
            tar.end()
        })
        .collect();
    let layers = Layers::new(&tars);
    let out = tempfile::tempdir().unwrap();
    layers.export(Format::Dir, &out.path().join("dir")).unwrap();
    assert_eq!(snapshot(&out.path().join("dir").join(ROOTFS)), snapshot(&link_to(&layers.overlay())));
    layers.export(Format::Oci, &out.path().join("oci")).unwrap();
    std::fs::create_dir_all(layers.path(0).join("e/".repeat(257))).unwrap();
    let result = layers.export(Format::Dir, &out.path().join("deeper"));
    assert!(matches!(result, Err(Error::Limit { .. })), "{result:?}");
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 2);
}

#[test]
fn images_without_layers_or_config() {
    let none = Layers { dir: tempfile::tempdir().unwrap(), count: 0 };
    let out = tempfile::tempdir().unwrap();
    for format in [Format::Oci, Format::OciArchive, Format::DockerArchive, Format::Tar, Format::Dir] {
        let path = out.path().join(format.to_string());
        none.export(format, &path).unwrap();
        assert_eq!(format.to_string().parse::<Format>().unwrap(), format);
        if format == Format::Dir {
            assert_eq!(std::fs::read_dir(path.join(ROOTFS)).unwrap().count(), 0);
        } else if format != Format::Tar {
            assert!(
                Source::detect(&path).unwrap().open(&Remote::default()).unwrap().layers.is_empty(),
                "{format}"
            );
        }
    }
    // Equal layers are one blob, which an archive may have once.
    let tar = Tar::default().file("a", b"a").end();
    let twice = Layers::new(&[tar.clone(), tar]);
    for format in [Format::Oci, Format::OciArchive, Format::DockerArchive] {
        let path = out.path().join(format!("{format}-2"));
        for i in 0..2 {
            let to = rustix::fs::Timespec { tv_sec: 9, tv_nsec: 0 };
            let times = rustix::fs::Timestamps { last_access: to, last_modification: to };
            rustix::fs::utimensat(rustix::fs::CWD, twice.path(i), &times, rustix::fs::AtFlags::empty())
                .unwrap();
        }
        twice.export(format, &path).unwrap();
        let image = Source::detect(&path).unwrap().open(&Remote::default()).unwrap();
        assert_eq!(image.layers[0].diff_id(), image.layers[1].diff_id(), "{format}");
        let json: serde_json::Value = serde_json::from_slice(&image.config_json.unwrap()).unwrap();
        assert_eq!(json["os"], "linux");
        assert!(json["created"].is_null() && json["architecture"].is_string());
    }
    assert!("zip".parse::<Format>().is_err());
}

#[test]
fn what_no_image_can_express_is_refused() {
    let out = tempfile::tempdir().unwrap();
    type Case<'a> = (&'a str, &'a dyn Fn(&Path), &'a str);
    let cases: [Case<'_>; 4] = [
        ("a name that means a deletion", &|l| write(&l.join(".wh.x"), b""), "Entry"),
        ("redirect_dir", &|l| set(&l.join("d"), "trusted.overlay.redirect", b"/x"), "Unsupported"),
        ("metacopy", &|l| set(&l.join("f"), "trusted.overlay.metacopy", b""), "Unsupported"),
        ("xattr whiteouts", &|l| set(&l.join("d"), "trusted.overlay.opaque", b"x"), "Unsupported"),
    ];
    for (what, spoil, kind) in cases {
        let layers = Layers::new(&[Tar::default().dir("d").file("f", b"f").end()]);
        spoil(&layers.path(0));
        for format in [Format::Oci, Format::OciArchive, Format::DockerArchive, Format::Tar] {
            let error = layers.export(format, &out.path().join("x")).expect_err(what);
            assert!(format!("{error:?}").starts_with(kind), "{what}: {error:?}");
            assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 0, "{what}, {format}");
        }
    }
    let layers = Layers::new(&[Tar::default().file("f", b"f").end()]);
    set(&layers.path(0).join("f"), "user.a=b", b"");
    set(&layers.path(0).join("f"), "trusted.x", b"");
    set(&layers.path(0).join("f"), "trusted.overlay.origin", b"");
    let to = target(Format::Oci, &out.path().join("x"));
    for (config, names) in [("[]", &[][..]), ("{}", &["a@sha256:0"]), ("{}", &["a b"]), ("{}", &[":x"])] {
        let result = layers.export_with(Some(config.as_bytes()), names, &to, &Watch::default());
        assert!(result.is_err(), "{config} {names:?}");
        assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 0);
    }
    assert_eq!(layers.export(Format::Oci, &to.path).unwrap().skipped_xattrs, 2);
}

fn set(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::setxattr(path, name, value, rustix::fs::XattrFlags::empty()).unwrap();
}

#[test]
fn targets() {
    let layers = Layers::new(&[Tar::default().file("f", b"f").end()]);
    let out = tempfile::tempdir().unwrap();
    let exists = |result: Result<Exported, Error>| matches!(result, Err(Error::Exists { .. }));
    let path = out.path().join("x");
    for format in [Format::OciArchive, Format::DockerArchive, Format::Tar] {
        write(&path, b"old");
        assert!(exists(layers.export(format, &path)), "{format}");
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        let to = Target { overwrite: true, ..target(format, &path) };
        layers.export_with(None, &[], &to, &Watch::default()).unwrap();
        assert_ne!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }
    for format in [Format::Oci, Format::Dir] {
        assert!(exists(layers.export(format, &path)), "{format} over a file");
        let dir = out.path().join(format.to_string());
        layers.export(format, &dir).unwrap();
        let to = Target { overwrite: true, ..target(format, &dir) };
        assert!(exists(layers.export_with(None, &[], &to, &Watch::default())), "{format} over a directory");
    }
    let to = Target { overwrite: true, ..target(Format::Tar, &out.path().join("dir")) };
    assert!(exists(layers.export_with(None, &[], &to, &Watch::default())), "file over a directory");
    let missing = layers.export(Format::Tar, &out.path().join("none/x"));
    assert!(matches!(missing, Err(Error::Io { path, .. }) if path.ends_with("/none")));
    assert!(layers.export(Format::Tar, Path::new("/")).is_err());
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 3);
    // Files left by killed processes with the same PID do no harm.
    let out = tempfile::tempdir().unwrap();
    for i in 0..1000 {
        write(&out.path().join(format!(".export-{}-{i}", std::process::id())), b"");
    }
    layers.export(Format::Tar, &out.path().join("x")).unwrap();
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 1001);
}

#[test]
fn nothing_stays_of_what_was_cancelled() {
    let layers = Layers::new(&[Tar::default().dir("d").end()]);
    File::create(layers.path(0).join("d/big")).unwrap().set_len(4 << 30).unwrap();
    for format in [Format::Oci, Format::OciArchive, Format::Dir, Format::Tar] {
        let out = tempfile::tempdir().unwrap();
        let watch = Watch::default();
        let to = target(format, &out.path().join("x"));
        let result = std::thread::scope(|scope| {
            scope.spawn(|| {
                while watch.bytes_read() == 0 {
                    std::thread::yield_now();
                }
                watch.cancel();
            });
            layers.export_with(None, &[], &to, &watch)
        });
        assert!(matches!(result, Err(Error::Cancelled { .. })), "{format}: {result:?}");
        assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 0, "{format}");
    }
}

#[test]
fn a_full_disk() {
    struct Mounted(TempDir);
    impl Drop for Mounted {
        fn drop(&mut self) {
            let _ = rustix::mount::unmount(self.0.path(), rustix::mount::UnmountFlags::DETACH);
        }
    }
    let disk = Mounted(tempfile::tempdir().unwrap());
    let none = rustix::mount::MountFlags::empty();
    rustix::mount::mount("none", disk.0.path(), "tmpfs", none, c"size=1m").unwrap();
    // Data that does not compress.
    let mut state = 1u64;
    let noise: Vec<u8> = (0..3_000_000)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        })
        .collect();
    let layers = Layers::new(&[Tar::default().file("f", &noise).end()]);
    for format in [Format::Oci, Format::OciArchive, Format::DockerArchive, Format::Tar, Format::Dir] {
        let result = layers.export(format, &disk.0.path().join("x"));
        let full = |e: &std::io::Error| e.kind() == std::io::ErrorKind::StorageFull;
        assert!(
            matches!(&result, Err(Error::Io { op: "write", path, source }) if path.contains("/x") && full(source)),
            "{format}: {result:?}"
        );
        assert_eq!(std::fs::read_dir(disk.0.path()).unwrap().count(), 0, "{format}");
    }
}

/// A user of the host, who owns the directory for the exports.
const USER: u32 = 65534;

fn users_directory() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    chown(dir.path(), Some(USER), Some(USER)).unwrap();
    dir
}

/// Returns the temporary file or directory in a directory, if there is one.
fn half_made(dir: &Path) -> Option<PathBuf> {
    let mut paths = std::fs::read_dir(dir).unwrap().flatten().map(|entry| entry.path());
    paths.find(|path| path.to_string_lossy().contains("/.export-"))
}

fn exchange(one: &Path, other: &Path) -> bool {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE).is_ok()
}

#[test]
fn a_users_link_leads_no_export() {
    needs!(Root);
    let hers = users_directory();
    let layers = Layers::new(&[Tar::default().end()]);
    let roots = tempfile::tempdir().unwrap();
    let link = hers.path().join("link");
    symlink(roots.path(), &link).unwrap();
    // The same for a symlink of root's, which the user may have moved there.
    for owner in [USER, 0] {
        std::os::unix::fs::lchown(&link, Some(owner), None).unwrap();
        for format in [Format::Tar, Format::Dir] {
            let error = layers.export(format, &link.join("x")).unwrap_err();
            assert!(matches!(error, Error::UnsafePath { .. }), "{error}");
        }
    }
    assert_eq!(std::fs::read_dir(roots.path()).unwrap().count(), 0);
}

#[test]
fn what_is_exchanged_for_an_export_is_neither_taken_for_it_nor_removed() {
    needs!(Root);
    let layers = Layers::new(&[Tar::default().dir("d").end()]);
    File::create(layers.path(0).join("d/big")).unwrap().set_len(256 << 20).unwrap();
    for (format, cancel) in
        [Format::Oci, Format::Dir, Format::Tar].into_iter().flat_map(|f| [(f, true), (f, false)])
    {
        let hers = users_directory();
        let at = |name: &str| hers.path().join(name);
        // Owned by root, so that the user could not remove it.
        std::fs::create_dir_all(at("roots/precious")).unwrap();
        let watch = Watch::default();
        let to = target(format, &at("x"));
        let result = std::thread::scope(|scope| {
            scope.spawn(|| {
                while watch.bytes_read() == 0 {
                    std::thread::yield_now();
                }
                assert!(exchange(&half_made(hers.path()).unwrap(), &at("roots")));
                if cancel {
                    watch.cancel();
                }
            });
            layers.export_with(None, &[], &to, &watch)
        });
        match result {
            Err(Error::Cancelled { .. }) if cancel => {}
            Err(Error::UnsafePath { .. }) if !cancel => {}
            other => panic!("{format}: {other:?}"),
        }
        assert!(!at("x").exists() && half_made(hers.path()).unwrap().join("precious").is_dir(), "{format}");
        // A file stays for the user to remove; a directory is left empty.
        assert!(format == Format::Tar || std::fs::read_dir(at("roots")).unwrap().next().is_none());
    }
}

/// Ends the attacker, also when the test fails: a scope waits for its threads.
struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_users_directory_gets_no_export() {
    needs!(Root);
    let hers = users_directory();
    let layers = Layers::new(&[Tar::default().file("f", b"for root alone").end()]);
    let (bait, dest) = (hers.path().join("bait"), hers.path().join("dest"));
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                if let Some(half) = half_made(hers.path()) {
                    exchange(&half, &bait);
                }
            }
        });
        let _ended = Ended(&over);
        for _ in 0..1_000 {
            std::fs::create_dir(&bait).unwrap();
            chown(&bait, Some(USER), Some(USER)).unwrap();
            let made = layers.export(Format::Dir, &dest);
            let owner = dest.metadata().map(|dest| dest.uid());
            for path in std::fs::read_dir(hers.path()).unwrap().flatten().map(|entry| entry.path()) {
                let hers = path.metadata().unwrap().uid() == USER;
                assert!(!hers || std::fs::read_dir(&path).unwrap().next().is_none(), "{made:?}");
                std::fs::remove_dir_all(path).unwrap();
            }
            assert!(made.is_err() || owner.unwrap() == 0);
        }
    });
}

/// Privileges on the host are kept in a directory only on request; archives keep them always.
#[test]
fn privileges_are_left_out_of_directories() {
    let caps = [&0x0200_0001_u32.to_le_bytes()[..], &[0, 4, 0, 0], &[0; 12]].concat();
    let tar = Tar::default().file("suid", b"x").file("capable", b"x").file("plain", b"x").dir("group").end();
    let layers = Layers::new(&[tar]);
    let base = layers.path(0);
    for (name, mode) in [("suid", 0o6755), ("plain", 0o1755), ("group", 0o3775)] {
        std::fs::set_permissions(base.join(name), PermissionsExt::from_mode(mode)).unwrap();
    }
    let capable = File::open(base.join("capable")).unwrap();
    rustix::fs::fsetxattr(&capable, "security.capability", &caps, rustix::fs::XattrFlags::empty()).unwrap();
    let zero = rustix::fs::makedev(1, 5);
    let kind = rustix::fs::FileType::CharacterDevice;
    rustix::fs::mknodat(
        rustix::fs::CWD,
        base.join("zero"),
        kind,
        rustix::fs::Mode::from_raw_mode(0o666),
        zero,
    )
    .unwrap();
    std::fs::hard_link(base.join("zero"), base.join("zero-too")).unwrap();
    let out = tempfile::tempdir().unwrap();
    let has_caps = |path: &Path| {
        let file = File::open(path).unwrap();
        rustix::fs::fgetxattr(&file, "security.capability", &mut [0; 64][..]).is_ok()
    };
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o7777;

    let to = Target { keep_privileges: false, ..target(Format::Dir, &out.path().join("dir")) };
    let done = layers.export_with(None, &[], &to, &Watch::default()).unwrap();
    assert_eq!(done.left_out, LeftOut { set_id: 2, capabilities: 1, devices: 2 });
    let root = out.path().join("dir").join(ROOTFS);
    assert_eq!(
        (mode(&root.join("suid")), mode(&root.join("plain")), mode(&root.join("group"))),
        (0o755, 0o1755, 0o1775)
    );
    assert!(
        !has_caps(&root.join("capable")) && !root.join("zero").exists() && !root.join("zero-too").exists()
    );

    let kept = out.path().join("kept");
    let done = layers.export(Format::Dir, &kept).unwrap();
    assert_eq!((done.left_out, mode(&kept)), (LeftOut::default(), 0o700));
    assert_eq!(snapshot(&kept.join(ROOTFS)), snapshot(&base));
    assert!(has_caps(&kept.join("rootfs/capable")));

    let to = Target { keep_privileges: false, ..target(Format::Tar, &out.path().join("tar")) };
    let done = layers.export_with(None, &[], &to, &Watch::default()).unwrap();
    assert_eq!(done.left_out, LeftOut::default());
    let image = Source::detect(&to.path).unwrap().open(&Remote::default()).unwrap();
    let cage = tempfile::tempdir().unwrap();
    let into = File::open(cage.path()).unwrap();
    image.layers[0].unpack(into.as_fd(), &[], &Limits::default(), &Watch::default()).unwrap();
    assert_eq!(snapshot(cage.path()), snapshot(&base));
}
