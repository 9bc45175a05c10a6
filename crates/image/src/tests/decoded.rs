//! Archives and layers compressed by all usual tools: the data that decoders skip in them stays below the limit.

use std::fs::File;
use std::os::fd::AsFd;

use super::{Cage, Tar, gzip, write};
use crate::{Error, Limits, Remote, Source, Watch};

fn zstd(data: &[u8]) -> Vec<u8> {
    zstd::encode_all(data, 1).unwrap()
}

/// Returns incompressible bytes.
fn noise(size: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut noise: Vec<u8> = (0..size / 8).flat_map(|_| next()).collect();
    noise.resize(size, 1);
    noise
}

/// A frame that a decoder skips.
fn to_skip(data: &[u8]) -> Vec<u8> {
    let size = u32::try_from(data.len()).unwrap().to_le_bytes();
    [&[0x50, 0x2a, 0x4d, 0x18][..], &size, data].concat()
}

/// `tar` as a member or a frame for each piece of that size.
fn in_pieces(tar: &[u8], size: usize, compress: impl Fn(&[u8]) -> Vec<u8>) -> Vec<u8> {
    tar.chunks(size).flat_map(compress).collect()
}

#[test]
fn what_tools_make_is_read() {
    let list = || Tar::default().file("manifest.json", b"[]");
    let large = list().file("f", &noise(48 << 20)).end();
    let data = noise(8 << 10);
    let small = (0..2500).fold(list(), |tar, n| tar.file(&format!("d/{n}"), &data)).end();
    let contents = noise(12 << 20);
    let stored = {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::none());
        std::io::Write::write_all(&mut encoder, &large).unwrap();
        encoder.finish().unwrap()
    };
    let dir = tempfile::tempdir().unwrap();
    for (what, data) in [
        ("incompressible, gzip", gzip(&large)),
        ("incompressible, stored", stored),
        ("incompressible, zstd", zstd(&large)),
        ("small files, gzip", gzip(&small)),
        ("small files, zstd", zstd(&small)),
        // eStargz: a member for each file, and its table of contents is a member, too.
        ("a member for each file", [in_pieces(&small, 512 + (8 << 10), gzip), gzip(b"").repeat(2)].concat()),
        // zstd:chunked: the table of contents, and a footer, come in the end and are skipped.
        ("a frame for each file", [in_pieces(&small, 512 + (8 << 10), zstd), to_skip(&contents)].concat()),
        ("a large table", [zstd(&list().end()), to_skip(&contents), to_skip(&[1; 64])].concat()),
        // pzstd writes the size of each frame before it.
        ("sizes before frames", in_pieces(&large, 8 << 20, |p| [to_skip(&[1; 4]), zstd(p)].concat())),
    ] {
        let path = dir.path().join("x");
        write(&path, &data);
        let open = |scheme: &str| {
            let source = Source::parse(&format!("{scheme}://{}", path.display())).unwrap();
            source.open(&Remote::default())
        };
        // The archive was read completely: its list of images is empty.
        let error = open("docker-archive").unwrap_err();
        assert!(matches!(error, Error::Select { .. }), "{what}: {error}");
        let cage = Cage::new();
        let into = File::open(cage.root()).unwrap();
        let layer = &open("tar").unwrap().layers[0];
        let unpacked = layer.unpack(into.as_fd(), &[], &Limits::default(), &Watch::default());
        unpacked.unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(cage.text("manifest.json"), "[]", "{what}");
    }
}
