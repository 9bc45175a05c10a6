//! Archives of many GiB that take next to nothing on the disk: the reading is bounded by the latter.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tar::EntryType;

use super::image::Layout;
use super::{Cage, Tar, gzip};
use crate::{Digest, Error, Image, Limits, Remote, Source, Watch};

/// A time between that of a bounded check, which takes less, and that of a successful attack, which takes more.
const LONG: Duration = Duration::from_secs(8);
const GIB: u64 = 1 << 30;

/// Writes a tar of entries whose data are holes, with the other files of an image archive.
fn holes(path: &Path, entries: &[(u8, &str, u64)]) {
    let mut file = File::create(path).unwrap();
    for (kind, name, size) in entries {
        let head = Tar::default().raw(EntryType::new(*kind), name, "", b"", |header| {
            header.set_size(*size);
        });
        file.write_all(&head.0).unwrap();
        file.seek(SeekFrom::Current(size.next_multiple_of(512).cast_signed())).unwrap();
    }
    file.write_all(&Tar::default().file("manifest.json", b"[]").file("index.json", b"{}").end()).unwrap();
    assert!(file.metadata().unwrap().blocks() < 4096);
}

fn open(scheme: &str, path: &Path) -> Result<Image, Error> {
    let begin = Instant::now();
    let opened = Source::parse(&format!("{scheme}{}", path.display())).unwrap().open(&Remote::default());
    assert!(begin.elapsed() < LONG, "{scheme}: {:?}", begin.elapsed());
    opened
}

fn temp() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.tar");
    (dir, path)
}

#[test]
fn entries_that_are_holes_are_not_compared_for_ever() {
    let (_dir, path) = temp();
    let twice = |size| [(b'0', "a", size), (b'0', "a", size)];
    let many: Vec<_> = (0..200).map(|_| (b'0', "a", GIB / 32)).collect();
    for entries in [&twice(100 * GIB)[..], &many] {
        holes(&path, entries);
        for scheme in ["docker-archive://", "oci-archive://"] {
            let error = open(scheme, &path).unwrap_err();
            assert!(matches!(error, Error::Limit { .. }), "{error:?}");
            assert!(error.to_string().contains("cp --sparse=never"), "{error}");
        }
    }
    // No part of an image is as large as this.
    holes(&path, &[(b'0', "a", 2048 * GIB)]);
    let error = open("docker-archive://", &path).unwrap_err();
    assert!(matches!(error, Error::Allowance { flag: "--max-image-bytes", .. }), "{error:?}");
    // A small entry may be a hole.
    holes(&path, &twice(GIB / 32));
    let error = open("docker-archive://", &path).unwrap_err();
    assert!(matches!(error, Error::Select { .. }), "{error:?}");
}

/// Entries with real data are compared whatever their size, whether the archive is compressed or not.
#[test]
fn entries_that_are_there_are_compared() {
    let (_dir, path) = temp();
    let blob = vec![1; 40 << 20];
    let tar = (0..4).fold(Tar::default(), |tar, _| tar.file("a", &blob)).file("manifest.json", b"[]").end();
    for data in [gzip(&tar), tar] {
        std::fs::write(&path, &data).unwrap();
        let error = open("docker-archive://", &path).unwrap_err();
        assert!(matches!(error, Error::Select { .. }), "{error:?}");
    }
}

/// The data of a volume label, and of GNU tar's list of names, is skipped while scanning for a header.
#[test]
fn headers_that_are_holes_are_not_read_for_ever() {
    let (_dir, path) = temp();
    for kind in *b"VD" {
        holes(&path, &[(kind, "a", 100 * GIB)]);
        for scheme in ["docker-archive://", "oci-archive://"] {
            let error = open(scheme, &path).unwrap_err();
            let told = matches!(&error, Error::Limit { what, .. } if what.contains("headers"));
            assert!(told, "{}: {error:?}", kind as char);
        }
        let begin = Instant::now();
        assert!(Source::detect(&path).unwrap().to_uri().starts_with("tar://"));
        assert!(begin.elapsed() < LONG);
        // A small amount is accepted.
        holes(&path, &[(kind, "a", GIB / 32)]);
        let error = open("docker-archive://", &path).unwrap_err();
        assert!(matches!(error, Error::Select { .. }), "{error:?}");
    }
}

/// Holes are bounded by the ratio, as compressed data is.
#[test]
fn holes_are_not_unpacked_for_ever() {
    let (_dir, path) = temp();
    let refused = |image: &Image| {
        let begin = Instant::now();
        let cage = Cage::new();
        let into = File::open(cage.root()).unwrap();
        let error = image.layers[0].unpack(into.as_fd(), &[], &Limits::default(), &Watch::default());
        let error = error.unwrap_err();
        assert!(matches!(error, Error::Ratio { stored: ..0x10_0000, .. }), "{error:?}");
        assert!(begin.elapsed() < LONG, "{:?}", begin.elapsed());
    };
    // Behind the end of a tar, and in a file of it.
    let end = |path: &Path| {
        std::fs::write(path, Tar::default().dir("d/").end()).unwrap();
        File::options().write(true).open(path).unwrap().set_len(50 * GIB).unwrap();
    };
    end(&path);
    refused(&open("tar://", &path).unwrap());
    holes(&path, &[(b'0', "a", 50 * GIB)]);
    refused(&open("tar://", &path).unwrap());
    // In a layout, and in an archive.
    let layout = Layout::new();
    let digest = Digest::of(b"not looked at before all is read");
    let layer = format!(r#""digest":"{digest}","size":{}"#, 50 * GIB);
    layout.index(&[layout.manifest_of(&[layer], std::slice::from_ref(&digest))]);
    end(&layout.path().join("blobs/sha256").join(digest.as_hex()));
    refused(&layout.open("").unwrap());
    let json = format!(r#"{{"config":{{}},"rootfs":{{"diff_ids":["{digest}"]}}}}"#);
    let list = br#"[{"Config":"c","Layers":["l"]}]"#;
    let documents = Tar::default().file("c", json.as_bytes()).file("manifest.json", list);
    let layer = documents.raw(EntryType::Regular, "l", "", b"", |h| h.set_size(50 * GIB)).dir("d/").0;
    std::fs::write(&path, layer).unwrap();
    File::options().write(true).open(&path).unwrap().set_len(50 * GIB + (1 << 20)).unwrap();
    refused(&open("docker-archive://", &path).unwrap());
}

/// Skipped frames that are holes do not raise the limit for the rest.
#[test]
fn holes_do_not_raise_the_ratio() {
    let (_dir, path) = temp();
    let zeros = zstd::encode_all(&vec![0; 16 << 20][..], 1).unwrap();
    let mut file = File::create(&path).unwrap();
    file.write_all(&zeros.repeat(10)).unwrap();
    file.write_all(&[0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 8]).unwrap();
    file.seek(SeekFrom::Current(128 << 20)).unwrap();
    file.write_all(&zeros.repeat(100)).unwrap();
    assert!(file.metadata().unwrap().blocks() < 4096);
    let error = open("docker-archive://", &path).unwrap_err();
    assert!(matches!(error, Error::Ratio { .. }), "{error:?}");
}
