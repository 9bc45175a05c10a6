//! Images in directories of other users, who try to make root read files that they may not; and images that try to
//! keep their reader busy.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::{Cage, Tar, gzip, write};
use crate::{Error, Image, Limits, Opening, Remote, Source, Watch, Way};

const NOBODY: u32 = 65534;
/// No bounded check takes this long.
const LONG: Duration = Duration::from_secs(8);

fn open(path: &Path) -> Result<Image, Error> {
    Source::parse(path.to_str().unwrap())?.open(&Remote::default())
}

fn unpacked(image: &Image) -> Result<Cage, Error> {
    let cage = Cage::new();
    let root = File::open(cage.root()).unwrap();
    image.layers[0].unpack(root.as_fd(), &[], &Limits::default(), &Watch::default())?;
    Ok(cage)
}

/// A root file system with this in `etc/text`.
fn tree(dir: &Path, text: &str) {
    fs::create_dir_all(dir.join("bin")).unwrap();
    write(&dir.join("etc/text"), text.as_bytes());
}

/// Makes `theirs`, another user's directory, with the user's own `p` and with `q`, a symlink to root's `secret`; both
/// contain a `root`.
fn two() -> (tempfile::TempDir, PathBuf) {
    let base = tempfile::tempdir().unwrap();
    fs::set_permissions(base.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let (theirs, secret) = (base.path().join("theirs"), base.path().join("secret"));
    tree(&theirs.join("p/root"), "his own");
    tree(&secret.join("root"), "SECRET");
    fs::set_permissions(&secret, PermissionsExt::from_mode(0o700)).unwrap();
    symlink(&secret, theirs.join("q")).unwrap();
    for path in [theirs.clone(), theirs.join("p")] {
        chown(&path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    std::os::unix::fs::lchown(theirs.join("q"), Some(NOBODY), Some(NOBODY)).unwrap();
    (base, theirs)
}

#[test]
fn a_link_of_another_user_leads_to_no_image() {
    let (base, theirs) = two();
    let secret = base.path().join("secret");
    let tar = Tar::default().dir("bin/").file("etc", b"SECRET").end();
    write(&secret.join("a.tar"), &tar);
    write(&secret.join("a.tgz"), &gzip(&tar));
    let at = |name: &str| theirs.join(name).display().to_string();
    for uri in [
        at("q/root"),
        at("q/a.tar"),
        at("q/a.tgz"),
        format!("tar://{}", at("q/a.tar")),
        format!("docker-archive://{}", at("q/a.tar")),
        format!("oci-archive://{}", at("q/a.tgz")),
        format!("oci://{}", at("q/root")),
    ] {
        let error = Source::parse(&uri).unwrap().open(&Remote::default()).map(|_| ()).unwrap_err();
        let text = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        let text = format!("{error} {text}");
        assert!(text.contains("belongs to user 65534"), "{uri}: {text}");
    }
    // A symlink of root's that nobody else can move is followed.
    symlink(&secret, base.path().join("own")).unwrap();
    let image = open(&base.path().join("own/root")).unwrap();
    assert_eq!(unpacked(&image).unwrap().text("etc/text"), "SECRET");
    assert_eq!(open(&secret.join("root")).unwrap().id, image.id);
}

/// The user exchanges the directory and the symlink continuously.
#[test]
fn a_user_who_renames_gives_root_no_other_tree() {
    let (_base, theirs) = two();
    let path = theirs.join("p/root");
    std::thread::sleep(Duration::from_millis(100));
    let done = AtomicBool::new(false);
    let (mut taken, begin) = (0, Instant::now());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let (p, q) = (theirs.join("p"), theirs.join("q"));
                renameat_with(CWD, &p, CWD, &q, RenameFlags::EXCHANGE).unwrap();
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        while begin.elapsed() < LONG / 2 {
            if let Ok(cage) = open(&path).and_then(|image| unpacked(&image)) {
                taken += 1;
                if cage.text("etc/text") != "his own" {
                    done.store(true, Ordering::Relaxed);
                    panic!("root was led to another tree");
                }
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(taken > 0);
}

/// Writes `first` and this many skippable zstd frames, each of 4 GiB, which take next to nothing on the disk.
fn skipped(path: &Path, first: &[u8], frames: u64) {
    let mut file = File::create(path).unwrap();
    file.write_all(first).unwrap();
    for _ in 0..frames {
        file.write_all(&[0x50, 0x2a, 0x4d, 0x18, 0xff, 0xff, 0xff, 0xff]).unwrap();
        file.seek(SeekFrom::Current(0xffff_ffff)).unwrap();
    }
    let end = file.stream_position().unwrap();
    file.set_len(end).unwrap();
}

fn settle() {
    std::thread::sleep(Duration::from_millis(50));
}

/// Reading data that decompresses to nothing can be cancelled, and is bounded by the amount of output.
#[test]
fn what_is_skipped_is_not_read_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let (frames, members) = (dir.path().join("frames"), dir.path().join("members"));
    let [real, empty] = ["real", "empty"].map(|name| dir.path().join(name));
    skipped(&frames, b"", 30);
    write(&members, &gzip(b"").repeat(1 << 20));
    // These begin with an archive.
    let tar = Tar::default().file("manifest.json", b"[]").end();
    skipped(&real, &zstd::encode_all(&tar[..], 1).unwrap(), 24);
    write(&empty, &[gzip(&tar), gzip(b"").repeat(1 << 20)].concat());
    settle();
    for (path, is_image) in [(&frames, false), (&members, false), (&real, true), (&empty, true)] {
        let uri = format!("docker-archive://{}", path.display());
        let source = Source::parse(&uri).unwrap();
        let begin = Instant::now();
        let asked = AtomicUsize::new(0);
        let cancelled = || asked.fetch_add(1, Ordering::Relaxed) > 3;
        let opening = Opening { cancelled: &cancelled, ..Opening::default() };
        let error = source.open_in(&Remote::default(), &opening).unwrap_err();
        assert!(matches!(error, Error::Cancelled { .. }), "{error}");
        let error = source.open(&Remote::default()).unwrap_err();
        assert!(matches!(error, Error::Idle { stored: ..=0x120_0000, made: ..=0x1_0000, .. }), "{error}");
        assert!(begin.elapsed() < LONG);
        // Only the beginning is read to see that a file is no archive.
        let begin = Instant::now();
        let source = Source::parse(path.to_str().unwrap()).unwrap();
        assert!(source.way() == Way::Compressed && source.is_packed() == is_image);
        assert!(source.open(&Remote::default()).is_ok() != is_image && begin.elapsed() < LONG);
        // The same limit holds for a layer.
        let layer = Source::parse(&format!("tar://{}", path.display())).unwrap().open(&Remote::default());
        let error = unpacked(&layer.unwrap()).map(|_| ()).unwrap_err();
        let told = matches!(error, Error::Idle { .. });
        assert!(told && begin.elapsed() < LONG, "{error}");
    }
    skipped(&frames, b"", 40);
    settle();
    let uri = format!("docker-archive://{}", frames.display());
    let error = Source::parse(&uri).unwrap().open(&Remote::default()).unwrap_err();
    assert!(matches!(error, Error::Allowance { flag: "--max-image-bytes", .. }), "{error}");
}

/// Of a repeated list of images only the first is read.
#[test]
fn one_list_of_images_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.tar");
    let mut file = File::create(&path).unwrap();
    for _ in 0..3000 {
        let head =
            Tar::default().raw(tar::EntryType::Regular, "manifest.json", "", b"", |h| h.set_size(4 << 20)).0;
        file.write_all(&head).unwrap();
        file.seek(SeekFrom::Current(4 << 20)).unwrap();
    }
    file.write_all(&[0; 1024]).unwrap();
    let begin = Instant::now();
    assert!(Source::detect(&path).unwrap().to_uri().starts_with("tar://"));
    assert!(begin.elapsed() < LONG / 2);
}

/// A sparse file of many GiB stays sparse in the store.
#[test]
fn holes_of_a_directory_stay_holes() {
    let dir = tempfile::tempdir().unwrap();
    tree(dir.path(), "text");
    let file = |name: &str| File::create(dir.path().join("etc").join(name)).unwrap();
    let (big, empty, parts) = (file("big"), file("empty"), file("parts"));
    big.set_len(3 << 30).unwrap();
    big.write_all_at(b"here", 2 << 30).unwrap();
    empty.set_len(3 << 30).unwrap();
    for n in 0..1000 {
        parts.write_all_at(&[1; 4096], n * (64 << 10)).unwrap();
    }
    settle();
    let cage = unpacked(&open(dir.path()).unwrap()).unwrap();
    let at = |name: &str| cage.root().join("etc").join(name);
    let stat = |name: &str| at(name).metadata().unwrap();
    assert_eq!((stat("big").len(), stat("empty").len()), (3 << 30, 3 << 30));
    let blocks = [stat("big").blocks(), stat("empty").blocks()];
    assert!(blocks.iter().all(|blocks| *blocks < 2048), "{blocks:?}");
    let mut here = [0; 4];
    File::open(at("big")).unwrap().read_exact_at(&mut here, 2 << 30).unwrap();
    assert_eq!(&here, b"here");
    assert!(fs::read(at("parts")).unwrap() == fs::read(dir.path().join("etc/parts")).unwrap());
}

/// Hard links whose other names lie outside the tree take a bounded amount of memory; a file that is not remembered
/// is written again.
#[test]
fn links_that_never_come_again_are_forgotten() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let (root, out) = (dir.path().join("root"), dir.path().join("out"));
    tree(&root, "text");
    fs::create_dir(&out).unwrap();
    let most = crate::disk::names::most();
    let long = "n".repeat(247);
    // Made step by step, because the whole path would exceed PATH_MAX.
    let mut deep = rustix::fs::open(&root, rustix::fs::OFlags::DIRECTORY, rustix::fs::Mode::empty()).unwrap();
    for _ in 0..14 {
        rustix::fs::mkdirat(&deep, &long, rustix::fs::Mode::RWXU).unwrap();
        let flags = rustix::fs::OFlags::DIRECTORY;
        deep = rustix::fs::openat(&deep, &long, flags, rustix::fs::Mode::empty()).unwrap();
    }
    for n in 0..most / 3500 {
        let name = out.join(n.to_string());
        fs::write(&name, b"x").unwrap();
        rustix::fs::linkat(CWD, &name, &deep, n.to_string(), rustix::fs::AtFlags::empty()).unwrap();
    }
    // The remaining memory is too small for one of those names, but enough for some shorter ones.
    fs::create_dir(root.join("o")).unwrap();
    for n in 0..60 {
        let name = format!("A{n}");
        fs::write(out.join(&name), b"x").unwrap();
        fs::hard_link(out.join(&name), root.join("o").join(&name)).unwrap();
    }
    write(&root.join("o/a"), b"one");
    fs::hard_link(root.join("o/a"), root.join("o/b")).unwrap();
    write(&root.join("etc/a"), b"two");
    fs::hard_link(root.join("etc/a"), root.join("etc/b")).unwrap();
    settle();
    let cage = unpacked(&open(&root).unwrap()).unwrap();
    assert_eq!(
        (cage.text("o/a"), cage.text("o/b"), cage.text("etc/b")),
        ("one".into(), "one".into(), "two".into())
    );
    let links = |name: &str| cage.root().join(name).metadata().unwrap().nlink();
    assert_eq!((links("etc/a"), links("o/a")), (2, 1));
}

/// The number of names in one directory is limited, since they would fill the memory of a small server.
#[test]
fn the_names_of_a_directory_are_bounded() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    tree(dir.path(), "text");
    let many = dir.path().join("many");
    fs::create_dir(&many).unwrap();
    for n in 0..crate::disk::names::most() / 247 {
        File::create(many.join(format!("{n:0247}"))).unwrap();
    }
    settle();
    assert!(matches!(open(dir.path()), Err(Error::Limit { .. })));
}
