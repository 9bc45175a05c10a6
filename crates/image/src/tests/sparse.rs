//! Sparse files, valid ones of GNU tar and invalid ones.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::Command;

use tar::{EntryType, GnuExtSparseHeader, GnuSparseHeader, Header};

use super::{Cage, Tar};
use crate::{Error, Limits};

/// A segment of a file: offset and data.
type Part<'a> = (u64, &'a [u8]);
type Segments<'a> = &'a [(u64, u64)];

/// An entry of the old GNU format.
fn old(name: &str, real: u64, segments: Segments<'_>, data: &[u8]) -> Tar {
    let set = |slot: &mut GnuSparseHeader, (offset, length): (u64, u64)| {
        slot.set_offset(offset);
        slot.set_length(length);
    };
    let mut header = Header::new_gnu();
    header.set_path(name).unwrap();
    header.set_entry_type(EntryType::GNUSparse);
    header.set_size(data.len() as u64);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(5);
    let (first, rest) = segments.split_at(segments.len().min(4));
    let gnu = header.as_gnu_mut().unwrap();
    gnu.set_real_size(real);
    gnu.set_is_extended(!rest.is_empty());
    gnu.sparse.iter_mut().zip(first).for_each(|(slot, segment)| set(slot, *segment));
    header.set_cksum();
    let mut tar = header.as_bytes().to_vec();
    let mut chunks = rest.chunks(21).peekable();
    while let Some(chunk) = chunks.next() {
        let mut extension = GnuExtSparseHeader::new();
        extension.sparse_mut().iter_mut().zip(chunk).for_each(|(slot, segment)| set(slot, *segment));
        extension.set_is_extended(chunks.peek().is_some());
        tar.extend_from_slice(extension.as_bytes());
    }
    tar.extend_from_slice(data);
    tar.resize(tar.len().next_multiple_of(512), 0);
    Tar(tar)
}

/// PAX 1.0: the map is `text`.
fn pax_1(real: &[u8], text: &str, data: &[u8]) -> Tar {
    let mut body = text.as_bytes().to_vec();
    body.resize(body.len().next_multiple_of(512), 0);
    body.extend_from_slice(data);
    let records: [(&str, &[u8]); 4] = [
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"f"),
        ("GNU.sparse.realsize", real),
    ];
    Tar::default().pax(&records).file("GNUSparseFile.0/f", &body)
}

/// PAX 0.1.
fn pax_0(real: &[u8], map: &[u8], data: &[u8]) -> Tar {
    Tar::default()
        .pax(&[("GNU.sparse.size", real), ("GNU.sparse.map", map), ("GNU.sparse.name", b"f")])
        .file("GNUSparseFile.0/f", data)
}

#[test]
fn as_gnu_tar_writes_them() {
    const SIZE: u64 = 8 << 20;
    let dir = tempfile::tempdir().unwrap();
    let file = File::create(dir.path().join("f")).unwrap();
    file.set_len(SIZE).unwrap();
    // More segments than a header has room for, and a hole at the end.
    let places: Vec<u64> = (0..30).map(|i| i * 200_000).collect();
    for place in &places {
        file.write_all_at(b"data", *place).unwrap();
    }
    for format in [
        &["--format=gnu"][..],
        &["--format=pax", "--sparse-version=0.0"],
        &["--format=pax", "--sparse-version=0.1"],
        &["--format=pax", "--sparse-version=1.0"],
    ] {
        let tar =
            Command::new("tar").args(["-S", "-c", "f"]).args(format).current_dir(&dir).output().unwrap();
        assert!(tar.status.success() && (tar.stdout.len() as u64) < SIZE / 4, "{format:?}");
        let cage = Cage::new();
        let unpacked = cage.unpack(&tar.stdout).unwrap();
        assert_eq!((unpacked.entries, unpacked.bytes), (1, SIZE), "{format:?}");
        let stat = cage.stat("f");
        assert_eq!(stat.len(), SIZE, "{format:?}");
        assert!(
            stat.blocks() * 512 <= SIZE / 4,
            "{format:?}: {} blocks, so zeros were written",
            stat.blocks()
        );
        assert!(
            std::fs::read(cage.root().join("f")).unwrap() == std::fs::read(dir.path().join("f")).unwrap()
        );
    }
}

#[test]
fn ordinary() {
    let many: Vec<_> = (0..60).map(|i| (i * 3, 1)).collect();
    let cases: Vec<(&str, Tar, u64, &[Part<'_>])> = vec![
        ("hole before and after", old("f", 9000, &[(4096, 2)], b"ab"), 9000, &[(4096, b"ab")]),
        ("all hole", old("f", 1 << 30, &[(1 << 30, 0)], b""), 1 << 30, &[]),
        ("extension blocks", old("f", 200, &many, &[b'x'; 60]), 200, &[(0, b"x\0\0x"), (177, b"x")]),
        ("1.0", pax_1(b"9000", "2\n0\n1\n8000\n2\n", b"abc"), 9000, &[(0, b"a"), (8000, b"bc")]),
        ("1.0, all hole", pax_1(b"5000", "0\n", b""), 5000, &[]),
        ("0.1", pax_0(b"700", b"1,2,600,1", b"abc"), 700, &[(1, b"ab"), (600, b"c")]),
        ("0.1, all hole", pax_0(b"700", b"", b""), 700, &[]),
        ("touching segments", pax_0(b"4", b"0,2,2,2", b"abcd"), 4, &[(0, b"abcd")]),
    ];
    for (what, tar, size, parts) in cases {
        let cage = Cage::new();
        cage.unpack(&tar.file("next", b"n").end()).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!((cage.stat("f").len(), cage.text("next")), (size, "n".into()), "{what}");
        let file = File::open(cage.root().join("f")).unwrap();
        for (offset, text) in parts {
            let mut there = vec![0; text.len()];
            file.read_exact_at(&mut there, *offset).unwrap();
            assert_eq!(there, *text, "{what}");
        }
    }
}

#[test]
fn lies() {
    let huge: Vec<_> = (0..70_000).map(|i| (i, 0)).collect();
    let lines = |n: u32| format!("{n}\n{}", "0\n0\n".repeat(n as usize));
    let cases: Vec<(&str, Tar)> = vec![
        ("overlap", old("f", 100, &[(0, 10), (5, 10)], &[1; 20])),
        ("not in order", old("f", 100, &[(50, 1), (0, 1)], b"ab")),
        ("beyond the size", old("f", 10, &[(9, 2)], b"ab")),
        ("overflow", pax_0(b"100", b"18446744073709551615,2", b"ab")),
        ("more than the data", old("f", 100, &[(0, 5)], b"ab")),
        ("less than the data", old("f", 100, &[(0, 1)], b"ab")),
        ("too many segments", old("f", 1 << 20, &huge, b"")),
        ("too many lines", pax_1(b"100", &lines(70_000), b"")),
        ("count without lines", pax_1(b"100", "3\n0\n1\n", b"a")),
        ("letters", pax_1(b"100", "one\n", b"")),
        ("long number", pax_1(b"100", "000000000000000000001\n0\n0\n", b"")),
        ("empty number", pax_1(b"100", "1\n\n0\n", b"")),
        ("odd map", pax_0(b"100", b"0,1,2", b"a")),
        ("map of nothing", pax_0(b"100", b"x", b"a")),
        ("no size", Tar::default().pax(&[("GNU.sparse.map", b"0,1")]).file("f", b"a")),
        ("unknown version", Tar::default().pax(&[("GNU.sparse.major", b"2")]).file("f", b"a")),
        (
            "wrong count",
            Tar::default()
                .pax(&[("GNU.sparse.size", b"9"), ("GNU.sparse.numblocks", b"2"), ("GNU.sparse.map", b"0,1")])
                .file("f", b"a"),
        ),
        ("length before offset", Tar::default().pax(&[("GNU.sparse.numbytes", b"1")]).file("f", b"a")),
        ("directory", Tar::default().pax(&[("GNU.sparse.size", b"9"), ("GNU.sparse.map", b"")]).dir("d")),
    ];
    for (what, tar) in cases {
        let result = Cage::new().unpack(&tar.end());
        // The error names the file, except for malformed records, which come before the name.
        let told = match &result {
            Err(Error::Entry { path, .. }) => *path == if what == "directory" { "\"d\"" } else { "\"f\"" },
            Err(Error::Corrupt { why, .. }) => why == "malformed PAX record",
            _ => false,
        };
        assert!(told, "{what}: {result:?}");
    }
    // A map that never ends, and a chain of extension blocks that does not either.
    let open = pax_1(b"100", &"1".repeat(600), b"");
    let mut chain = old("f", 100, &[(0, 1); 30], &[1; 30]).0;
    chain.truncate(1024);
    chain[512 + 504] = 1;
    for (what, tar) in [("map", open.0), ("chain", chain)] {
        let result = Cage::new().unpack(&tar);
        assert!(matches!(result, Err(Error::Entry { .. } | Error::Truncated { .. })), "{what}: {result:?}");
    }
    // The name is checked as any other.
    let mut named = Tar::default();
    named = named.pax(&[("GNU.sparse.size", b"1"), ("GNU.sparse.map", b""), ("GNU.sparse.name", b"../x")]);
    assert!(matches!(Cage::new().unpack(&named.file("f", b"").end()), Err(Error::UnsafePath { .. })));
    // The apparent size counts, not the data.
    let limits = Limits { max_bytes: 1000, ..Limits::default() };
    for (real, fits) in [(1000, true), (1001, false), (u64::MAX >> 2, false)] {
        let tar = old("f", real, &[(0, 1)], b"a").end();
        let result = Cage::new().unpack_with(&tar, &limits);
        assert!(
            fits == result.is_ok() && (fits || matches!(result, Err(Error::Allowance { .. }))),
            "{result:?}"
        );
    }
}
