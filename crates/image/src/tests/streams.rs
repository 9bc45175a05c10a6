//! Blobs in all formats, and blobs that do not match their descriptors.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use super::image::{Layout, bare, unpack};
use super::{Cage, Tar, gzip, write};
use crate::bounds::stop::Stop;
use crate::{Digest, Error, Image, ImageConfig, Index, Limits, Manifest, Watch};

/// An image of one layer whose blob is `blob` and whose content should be `tar`.
fn image(blob: &[u8], tar: &[u8]) -> (Layout, Image) {
    let layout = Layout::new();
    layout.index(&[layout.manifest(&[blob], &[Digest::of(tar)])]);
    let image = layout.open("").unwrap();
    (layout, image)
}

/// A zstd frame that decoders skip (RFC 8878, section 3.1.2).
fn skippable(data: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x50, 0x2a, 0x4d, 0x18];
    frame.extend((data.len() as u32).to_le_bytes());
    frame.extend(data);
    frame
}

fn zstd(data: &[u8]) -> Vec<u8> {
    zstd::encode_all(data, 3).unwrap()
}

/// A gzip member with no content and a comment in its extra field, as eStargz has for a footer.
fn footer() -> Vec<u8> {
    let encoder = flate2::GzBuilder::new().extra(&b"SG\x16\x000000000000000400STARGZ"[..]);
    encoder.write(Vec::new(), flate2::Compression::none()).finish().unwrap()
}

#[test]
fn compressions() {
    let tar =
        Tar::default().file("stargz.index.json", b"{}").file("a", &[b'a'; 300_000]).file("b", b"b").end();
    let members = |each: fn(&[u8]) -> Vec<u8>| tar.chunks(70_000).flat_map(each).collect::<Vec<_>>();
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("plain", tar.clone()),
        ("gzip", gzip(&tar)),
        ("eStargz", [members(gzip), footer()].concat()),
        ("zstd", zstd(&tar)),
        ("zstd of several frames", members(zstd)),
        ("zstd:chunked", [members(zstd), skippable(&zstd(b"{}")), skippable(b"footer")].concat()),
        ("a skippable frame first", [skippable(b"x"), zstd(&tar)].concat()),
    ];
    for (what, blob) in cases {
        let (_layout, image) = image(&blob, &tar);
        let cage = Cage::new();
        let watch = Watch::default();
        let into = File::open(cage.root()).unwrap();
        image.layers[0]
            .unpack(into.as_fd(), &[], &Limits::default(), &watch)
            .unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!((cage.text("b"), cage.stat("a").len()), ("b".into(), 300_000), "{what}");
        assert_eq!(watch.bytes_read(), blob.len() as u64, "{what}");
    }
}

/// The digest of the blob fits in each case: only the stream is wrong.
#[test]
fn damaged_streams() {
    let tar = Tar::default().file("a", &[b'a'; 300_000]).end();
    let gz = gzip(&tar);
    let mut wrong_sum = gz.clone();
    *wrong_sum.last_mut().unwrap() ^= 1; // the length in the trailer
    let mut window = zstd::Encoder::new(Vec::new(), 1).unwrap();
    window.window_log(28).unwrap();
    window.write_all(&tar).unwrap();
    let window = window.finish().unwrap();
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("cut gzip", gz[..gz.len() - 5].to_vec()),
        ("gzip and garbage", [&gz[..], b"garbage"].concat()),
        ("gzip and a bad member", [&gz[..], &[0x1f, 0x8b, 8, 0xff]].concat()),
        ("wrong trailer", wrong_sum),
        ("cut zstd", zstd(&tar)[..30].to_vec()),
        ("zstd and garbage", [&zstd(&tar)[..], b"garbage"].concat()),
        ("cut skippable frame", skippable(b"xyz")[..9].to_vec()),
        ("a window of 256 MiB", window),
        ("empty", Vec::new()),
        ("gzip of nothing", gzip(b"")),
        ("gzip of gzip", gzip(&gz)),
    ];
    for (what, blob) in cases {
        let (_layout, image) = image(&blob, &tar);
        let result = unpack(&image, 0);
        let told = match &result {
            Err(Error::NoTar { what: named }) => what == "gzip of gzip" && named.starts_with("layer sha256:"),
            // A layer can be so, but not this one.
            Err(Error::DigestMismatch { .. }) => what == "empty" || what == "gzip of nothing",
            Err(Error::Corrupt { .. } | Error::Truncated { .. } | Error::Window { .. }) => true,
            _ => false,
        };
        assert!(told, "{what}: {result:?}");
    }
}

/// The blob has the expected size when it is opened, but then changes.
#[test]
fn lies_about_sizes_and_digests() {
    let tar = Tar::default().file("a", &[b'a'; 5000]).end();
    for (what, delta, expected) in [("less", -1, "SizeMismatch"), ("more", 1, "SizeMismatch")] {
        let layout = Layout::new();
        let size = (tar.len() as i64 + delta).to_string();
        let layer = layout.blob(&tar).replace(&tar.len().to_string(), &size);
        layout.index(&[layout.manifest_of(&[layer], &[Digest::of(&tar)])]);
        let result = unpack(&layout.open("").unwrap(), 0);
        assert!(format!("{result:?}").contains(expected), "{what}: {result:?}");
    }
    for blob in [tar.clone(), gzip(&tar), zstd(&tar)] {
        // Other content of the same size.
        let (layout, image) = image(&blob, &tar);
        let path = layout.path().join("blobs/sha256").join(Digest::of(&blob).as_hex());
        let mut other = blob.clone();
        let last = other.len() - 1;
        other[last] ^= 1;
        write(&path, &other);
        assert!(unpack(&image, 0).is_err());
        write(&path, &blob);
        unpack(&image, 0).unwrap();
    }
    for (what, diff_id) in [("another", Digest::of(b"x")), ("the blob's", Digest::of(&gzip(&tar)))] {
        let layout = Layout::new();
        layout.index(&[layout.manifest(&[&gzip(&tar)], &[diff_id])]);
        let result = unpack(&layout.open("").unwrap(), 0);
        assert!(matches!(result, Err(Error::DigestMismatch { .. })), "{what}: {result:?}");
    }
}

/// A file that grows while it is read is not read beyond its promised size.
#[test]
fn reading_stops_behind_the_promised_size() {
    let tar = Tar::default().file("a", b"a").end();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("grown");
    write(&path, &tar);
    File::options().write(true).open(&path).unwrap().set_len(1 << 40).unwrap();
    let watch = Watch::default();
    let input = crate::unpack::pipeline::Input {
        seen: false,
        reader: Box::new(File::open(&path).unwrap()),
        what: "grown",
        size: Some(tar.len() as u64),
        digest: true,
        only_gzip: false,
        budget: None,
        keep_in: None,
        stop: &Stop::new(&watch),
        whole: None,
    };
    let result = crate::unpack::pipeline::run(input, |mut pieces| {
        std::io::copy(&mut pieces, &mut std::io::sink()).unwrap();
        Ok(())
    });
    assert!(matches!(result.map(|_| ()), Err(Error::SizeMismatch { .. })));
    assert_eq!(watch.bytes_read(), tar.len() as u64 + 1);
}

/// Zeros that compress a thousandfold stop at the limit, whatever they claim to be.
#[test]
fn bombs() {
    let limits = Limits { max_bytes: 1 << 20, max_entries: 10, ..Limits::default() };
    let zeros = vec![0; 16 << 20];
    let tail = |f: fn(&[u8]) -> Vec<u8>| f(&zeros).repeat(16);
    let head = Tar::default().file("a", b"").0;
    let giant = Tar::default().raw(tar::EntryType::Regular, "a", "", b"", |h| h.set_size((1 << 20) + 1)).0;
    let long = Tar::default().raw(tar::EntryType::GNULongName, "a", "", b"", |h| h.set_size(1 << 30)).0;
    let pax: Vec<u8> = (0..3).flat_map(|_| Tar::default().pax(&[("comment", &[b'x'; 500_000])]).0).collect();
    let empty: Vec<u8> = (0..11).flat_map(|i| Tar::default().file(&i.to_string(), b"").0).collect();
    for (what, head) in
        [("padding", head), ("file", giant), ("long name", long), ("records", pax), ("entries", empty)]
    {
        for f in [gzip, zstd] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("bomb");
            write(&path, &[f(&head), tail(f)].concat());
            let cage = Cage::new();
            let into = File::open(cage.root()).unwrap();
            let watch = Watch::default();
            let result = bare(&path).layers[0].unpack(into.as_fd(), &[], &limits, &watch);
            let limit = matches!(result, Err(Error::Limit { .. } | Error::Allowance { .. }));
            assert!(limit, "{what}: {result:?}");
        }
    }
}

/// Once an entry is refused, hardly more of the blob is read.
#[test]
fn a_refused_entry_ends_the_reading() {
    let mut noise = vec![0; 24 << 20];
    let mut state = 1u64;
    for word in noise.as_chunks_mut().0 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        *word = state.to_be_bytes();
    }
    let tar = Tar::default().file("../x", b"").file("noise", &noise).end();
    for blob in [tar.clone(), gzip(&tar), zstd(&tar)] {
        let (_layout, image) = image(&blob, &tar);
        let cage = Cage::new();
        let watch = Watch::default();
        let into = File::open(cage.root()).unwrap();
        let result = image.layers[0].unpack(into.as_fd(), &[], &Limits::default(), &watch);
        assert!(matches!(result, Err(Error::UnsafePath { .. })), "{result:?}");
        assert!(watch.bytes_read() < 12 << 20, "{} of {} read", watch.bytes_read(), blob.len());
    }
}

#[test]
fn documents() {
    let digest = Digest::of(b"");
    let layers = |n: usize| vec![format!(r#"{{"digest":"{digest}","size":0}}"#); n].join(",");
    let manifest = |n| format!(r#"{{"config":{{"digest":"{digest}","size":0}},"layers":[{}]}}"#, layers(n));
    assert_eq!(Manifest::parse(manifest(500).as_bytes(), "m").unwrap().layers.len(), 500);
    assert!(matches!(Manifest::parse(manifest(501).as_bytes(), "m"), Err(Error::Limit { .. })));
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let large = vec![b' '; (4 << 20) + 1];
    for text in [&b""[..], b"{", b"[]", b"null", b"{\"config\":{}}", deep.as_bytes(), b"\xff", &large] {
        let wrong = |e: &Error| matches!(e, Error::Json { .. } | Error::Limit { .. });
        assert!(Manifest::parse(text, "m").is_err_and(|e| wrong(&e)));
        assert!(ImageConfig::parse(text, "c").is_err_and(|e| wrong(&e)));
        if !text.starts_with(b"{\"") && text != b"[]" {
            assert!(Index::parse(text, "i").is_err_and(|e| wrong(&e)));
        }
    }
    // Fewer diff ids than layers, and more.
    for (count, ids) in [(2, 1), (1, 2), (1, 0)] {
        let layout = Layout::new();
        layout.index(&[layout.manifest(&vec![&b"x"[..]; count], &vec![digest.clone(); ids])]);
        assert!(matches!(layout.open(""), Err(Error::Corrupt { .. })), "{count} {ids}");
    }
    // 1 GB of JSON is not read, whether its size is declared or not.
    let layout = Layout::new();
    let size = 1 << 30;
    let blob = layout.path().join("blobs/sha256").join(digest.as_hex());
    std::fs::create_dir_all(blob.parent().unwrap()).unwrap();
    let sparse = File::create(&blob).unwrap();
    sparse.set_len(size).unwrap();
    sparse.write_all_at(b"{", 0).unwrap();
    layout.index(&[format!(r#""digest":"{digest}","size":{size}"#)]);
    assert!(matches!(layout.open(""), Err(Error::Limit { .. })));
    layout.index(&[format!(r#""digest":"{digest}","size":5"#)]);
    assert!(matches!(layout.open(""), Err(Error::SizeMismatch { .. })));
    std::fs::rename(&blob, layout.path().join("index.json")).unwrap();
    assert!(matches!(layout.open(""), Err(Error::Limit { .. })));
}
