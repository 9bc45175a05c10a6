//! The limits of an image as a whole, and of its metadata.

use std::fs::File;
use std::os::fd::AsFd;

use tar::EntryType;

use super::image::Layout;
use super::{Cage, Tar, gzip};
use crate::{Digest, Error, Extent, Image, Limits, Packed, Unpacked, Watch};

fn unpack(image: &Image, layer: usize, limits: &Limits) -> Result<Unpacked, Error> {
    let cage = Cage::new();
    let into = File::open(cage.root()).unwrap();
    image.layers[layer].unpack(into.as_fd(), &[], limits, &Watch::default())
}

/// Makes an image of the same blob several times.
fn repeated(blob: &[u8], tar: &[u8], times: usize) -> (Layout, Image) {
    let layout = Layout::new();
    layout.index(&[layout.manifest(&vec![blob; times], &vec![Digest::of(tar); times])]);
    let image = layout.open("").unwrap();
    (layout, image)
}

#[test]
fn all_layers_together() {
    let tar = Tar::default().file("a", &[1; 600]).file("b/c", &[2; 400]).end();
    let (_layout, image) = repeated(&tar, &tar, 3);
    let all = Limits::default();
    // Each layer has two entries, and a directory that no entry names.
    for (limits, whole) in [
        (Limits { max_image_bytes: 3000, max_image_entries: 9, ..all }, true),
        (Limits { max_image_bytes: 2999, ..all }, false),
        (Limits { max_image_entries: 8, ..all }, false),
    ] {
        image.layers[0].count([]);
        unpack(&image, 0, &limits).unwrap();
        unpack(&image, 1, &limits).unwrap();
        let last = unpack(&image, 2, &limits);
        assert!(whole == last.is_ok(), "{limits:?}: {last:?}");
        let flag = if limits.max_image_bytes == 2999 { "--max-image-bytes" } else { "--max-image-entries" };
        let advised = |e: &Error| e.to_string().ends_with(&format!("; `{flag}` allows more"));
        assert!(whole || last.as_ref().is_err_and(advised), "{last:?}");
        // Unpacked in parallel they share the limit as well.
        image.layers[0].count([]);
        let results = std::thread::scope(|scope| {
            let unpacks = [0, 1, 2].map(|n| {
                let (image, limits) = (&image, &limits);
                scope.spawn(move || unpack(image, n, limits))
            });
            unpacks.map(|unpack| unpack.join().unwrap().is_ok())
        });
        assert_eq!(results.iter().all(|ok| *ok), whole);
    }
    // Layers in the store count too, for a layer of the image and for an app on it.
    let limits = Limits { max_image_bytes: 2999, ..all };
    let there = Extent { entries: 2, bytes: 1000, packed: None };
    image.layers[0].count([(&image.layers[0], there), (&image.layers[1], there)]);
    assert!(unpack(&image, 2, &limits).is_err());
    image.layers[0].count_below(2, 1999);
    unpack(&image, 2, &limits).unwrap();
    image.layers[0].count_below(2, 2000);
    assert!(unpack(&image, 2, &limits).is_err());
    // A hostile size does not cost more than its header.
    let giant = Tar::default().raw(EntryType::Regular, "a", "", b"", |h| h.set_size(1 << 30)).0;
    let (_layout, image) = repeated(&giant, &giant, 1);
    let result = unpack(&image, 0, &Limits { max_image_bytes: 1 << 20, ..all });
    assert!(matches!(result, Err(Error::Allowance { .. })), "{result:?}");
}

#[test]
fn what_a_manifest_says_of_itself() {
    let tar = Tar::default().file("a", &[1; 600]).end();
    let (_layout, image) = repeated(&tar, &tar, 3);
    let small = Limits { max_entries: 0, ..Limits::default() };
    image.check(&Limits { max_bytes: 0, ..small }).unwrap();
    let layer = |size: u64| format!(r#""digest":"{}","size":{size}"#, Digest::of(b"far away"));
    let open = |layers: &[u64]| {
        let layout = Layout::new();
        let layers: Vec<_> = layers.iter().map(|size| layer(*size)).collect();
        layout.index(&[layout.manifest_of(&layers, &vec![Digest::of(b"x"); layers.len()])]);
        layout.open("").map(|image| (layout, image))
    };
    // The blobs do not exist, and are not needed for the check.
    let limits = Limits { max_bytes: 1 << 30, max_image_bytes: 2 << 30, ..small };
    open(&[1 << 30, 1 << 30]).unwrap().1.check(&limits).unwrap();
    for layers in [&[2 << 30][..], &[1 << 30; 3], &[u64::MAX, u64::MAX]] {
        let error = open(layers).unwrap().1.check(&limits).unwrap_err();
        assert!(matches!(error, Error::Allowance { .. }), "{error:?}");
    }
    // More layers than the kernel mounts as one overlay.
    open(&[0; 500]).unwrap();
    assert!(matches!(open(&[0; 501]), Err(Error::Limit { .. })));
}

/// A small blob that many layers share counts once.
#[test]
fn bombs_of_several_layers() {
    let zeros = Tar::default().file("zeros", &vec![0; 24 << 20]).end();
    let blob = gzip(&zeros);
    let (_layout, image) = repeated(&blob, &zeros, 20);
    let limits = Limits::default();
    let (mut done, mut refused) = (0_usize, None);
    for n in 0..20 {
        match unpack(&image, n, &limits) {
            Ok(_) => done += 1,
            Err(error) => {
                refused = Some(error);
                break;
            }
        }
    }
    // 256 MiB, and 200 times the blob.
    let allowed = ((256 << 20) + 200 * blob.len()) / zeros.len();
    assert_eq!(done, allowed, "{refused:?}");
    let error = refused.unwrap();
    assert!(matches!(error, Error::Ratio { ratio: 200, .. }), "{error:?}");
    assert!(error.to_string().contains("--max-image-ratio"));
    // Allowed without a limit, or with different blobs of an honest size.
    image.layers[0].count([]);
    for n in 0..20 {
        unpack(&image, n, &Limits { max_ratio: 0, ..limits }).unwrap();
    }
    let (_layout, image) = repeated(&zeros, &zeros, 1);
    unpack(&image, 0, &Limits { max_ratio: 1, ..limits }).unwrap();
}

/// A layer in the store counts with the bytes read when it was unpacked, and not with its descriptor's size or its
/// holes.
#[test]
fn what_is_there_counts_as_it_was_packed() {
    let tar = Tar::default().file("a", b"a").end();
    let (_layout, image) = repeated(&tar, &tar, 3);
    let limits = Limits { max_ratio: 2, ..Limits::default() };
    let (floor, stored) = (256 << 20, 10 << 20);
    let check = |stream, known: bool| {
        let packed = known.then_some(Packed { stored, stream });
        let extent = Extent { entries: 1, bytes: 60 << 30, packed };
        image.layers[0].count([(&image.layers[0], extent)]);
        image.layers[0].check_sum(&limits)
    };
    check(floor + 2 * stored, true).unwrap();
    assert!(matches!(check(floor + 2 * stored + 1, true), Err(Error::Ratio { .. })));
    // A layer unpacked by an earlier version has unknown sizes.
    check(u64::MAX, false).unwrap();
    // The same content counts as one blob.
    let extent =
        Extent { packed: Some(Packed { stored, stream: floor / 2 + 2 * stored }), ..Extent::default() };
    image.layers[0].count(image.layers[..2].iter().map(|layer| (layer, extent)));
    assert!(matches!(image.layers[0].check_sum(&limits), Err(Error::Ratio { .. })));
    // The recorded size is that of the bytes read.
    image.layers[0].count([]);
    let compressed = gzip(&tar);
    let (_layout, image) = repeated(&compressed, &tar, 1);
    let packed = unpack(&image, 0, &limits).unwrap().packed;
    assert_eq!(packed, Packed { stored: compressed.len() as u64, stream: tar.len() as u64 });
}

/// Records that belong to no entry could go on for ever.
#[test]
fn extension_records_together() {
    let record = Tar::default().raw(EntryType::XGlobalHeader, "g", "", &vec![b'x'; 1 << 20], |_| {}).0;
    let with = |count: usize| [record.repeat(count), Tar::default().file("a", b"a").end()].concat();
    Cage::new().unpack(&with(60)).unwrap();
    let result = Cage::new().unpack(&with(64));
    assert!(matches!(&result, Err(Error::Limit { what, .. }) if what.contains("extension")), "{result:?}");
    // The records of entries count together as well, though each entry may have some.
    let mut tar = Tar::default();
    for n in 0..80 {
        tar = tar.pax(&[("comment", &vec![b'x'; 1_000_000])]).file(&n.to_string(), b"");
    }
    let result = Cage::new().unpack(&tar.end());
    assert!(matches!(&result, Err(Error::Limit { what, .. }) if what.contains("extension")), "{result:?}");
    let mut tar = Tar::default();
    for n in 0..20_000 {
        tar = tar.pax(&[("comment", &[b'x'; 3000])]).raw(EntryType::Link, "l", "a", b"", |_| {});
        if n == 0 {
            tar = tar.file("a", b"");
        }
    }
    // Links to a file that is not there yet: only the first is refused, and not the records.
    let result = Cage::new().unpack(&tar.end());
    assert!(matches!(result, Err(Error::Write { .. })), "{result:?}");
}

/// The times of directories are set at the end, also of more than are kept in memory.
#[test]
fn times_of_many_directories() {
    let long = "d".repeat(60);
    let name = |n: usize| format!("{long}-{n}/");
    let time = |n: usize| 1_000_000_000 + n as u64;
    let mut tar = Tar::default();
    for n in 0..14_000 {
        let name = name(n);
        tar = tar.raw(EntryType::Directory, &name, "", b"", |h| {
            h.set_mode(0o755);
            h.set_mtime(time(n));
        });
    }
    // A file in each would change the time of its directory.
    for n in (0..14_000).step_by(5000) {
        tar = tar.file(&format!("{}f", name(n)), b"f");
    }
    // The last entry counts.
    tar = tar.pax(&[("mtime", b"-5.25")]).dir(&name(7));
    let cage = Cage::new();
    cage.unpack(&tar.end()).unwrap();
    use std::os::unix::fs::MetadataExt;
    for n in [0, 1, 5000, 13_999] {
        assert_eq!(cage.stat(&name(n)).mtime(), time(n) as i64, "{n}");
    }
    let seven = cage.stat(&name(7));
    assert_eq!((seven.mtime(), seven.mtime_nsec()), (-6, 750_000_000));
    assert_eq!(std::fs::read_dir(cage.root()).unwrap().count(), 14_000);
}

/// The memory that a decoder needs is up to the layer's author.
#[test]
fn windows() {
    use std::io::Write;
    let tar = Tar::default().file("a", &vec![7; 3 << 20]).end();
    for (log, read) in [(23, true), (25, true), (26, false), (27, false)] {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(log).unwrap();
        encoder.write_all(&tar).unwrap();
        let (_layout, image) = repeated(&encoder.finish().unwrap(), &tar, 1);
        let result = unpack(&image, 0, &Limits::default());
        assert_eq!(result.is_ok(), read, "{log}: {result:?}");
        // The blob is not damaged, so the error advises how to compress it.
        assert!(read || result.unwrap_err().to_string().contains("`zstd -19`"), "{log}");
    }
}
