use std::os::unix::fs::MetadataExt;

use tar::EntryType;

use super::{Cage, Tar};
use crate::{Error, Limits};

#[test]
fn refused_names_and_entries() {
    let dev = |h: &mut tar::Header| {
        h.set_device_major(0).unwrap();
        h.set_device_minor(0).unwrap();
    };
    let device = |major: u32, minor: u32| {
        Tar::default().raw(EntryType::Char, "w", "", b"", |h| {
            h.set_device_major(major).unwrap();
            h.set_device_minor(minor).unwrap();
        })
    };
    let kind = |k: u8| EntryType::new(k);
    let cases: Vec<(&str, Tar, &str)> = vec![
        ("parent", Tar::default().file("../x", b"x"), "UnsafePath"),
        ("parent inside", Tar::default().file("a/../../x", b"x"), "UnsafePath"),
        ("absolute parent", Tar::default().file("/../x", b"x"), "UnsafePath"),
        ("empty", Tar::default().file("", b"x"), "UnsafePath"),
        ("root as file", Tar::default().file("./", b"x"), "UnsafePath"),
        ("link to parent", Tar::default().link("x", "../secret"), "UnsafePath"),
        ("link to nothing", Tar::default().link("x", "nothing"), "Write"),
        ("link to itself", Tar::default().link("x", "x"), "Write"),
        ("link to root", Tar::default().link("x", "/"), "Entry"),
        ("link to absolute", Tar::default().link("x", "/etc/passwd"), "Write"),
        ("link to a directory", Tar::default().dir("d").link("x", "d"), "Write"),
        ("link through symlink", Tar::default().symlink("up", "../..").link("x", "up/secret"), "Write"),
        ("file below a file", Tar::default().file("a", b"").file("a/b", b""), "Write"),
        ("symlink to nowhere", Tar::default().symlink("a", ""), "Entry"),
        ("symlink loop", Tar::default().symlink("a", "a").file("a/b", b""), "Write"),
        ("loop of two", Tar::default().symlink("a", "b").symlink("b", "a").file("a/c", b""), "Write"),
        ("loop that grows", Tar::default().symlink("a", "a/a").file("a/c", b""), "Write"),
        ("loop upwards", Tar::default().symlink("a", "../a/b").file("a/c", b""), "Write"),
        (
            "chain of symlinks",
            (0..41)
                .fold(Tar::default(), |t, i| t.symlink(&format!("s{i}"), &format!("s{}", i + 1)))
                .file("s0/f", b""),
            "Write",
        ),
        (
            "deep target",
            Tar::default()
                .pax(&[("linkpath", "x/".repeat(1000).as_bytes())])
                .symlink("a", "")
                .file("a/f", b""),
            "Limit",
        ),
        ("deep name", Tar::default().pax(&[("path", "x/".repeat(257).as_bytes())]).file("", b""), "Limit"),
        ("long name", Tar::default().pax(&[("path", &[b'/'; 4097])]).file("", b""), "Limit"),
        ("long component", Tar::default().pax(&[("path", &[b'x'; 256])]).file("", b""), "Write"),
        ("long target", Tar::default().pax(&[("linkpath", &[b'x'; 4097])]).symlink("a", ""), "Limit"),
        ("link later", Tar::default().link("x", "y").file("y", b""), "Write"),
        ("link to a whiteout's name", Tar::default().file("y", b"").link("x", ".wh.y"), "Write"),
        (
            "device as parent",
            Tar::default().raw(EntryType::Fifo, "p", "", b"", |_| {}).file("p/f", b""),
            "Write",
        ),
        ("pax records of records", Tar::default().pax(&[("a", b"b")]).pax(&[("a", &[0; 1 << 20])]), "Limit"),
        ("pax negative size", Tar::default().pax(&[("size", b"-1")]).file("a", b""), "Corrupt"),
        (
            "pax huge size",
            Tar::default().pax(&[("size", b"18446744073709551615")]).file("a", b""),
            "Allowance",
        ),
        (
            "pax larger than a number",
            Tar::default().pax(&[("size", b"18446744073709551616")]).file("a", b""),
            "Corrupt",
        ),
        ("bad base64", Tar::default().pax(&[("LIBARCHIVE.xattr.user.a", b"!")]).file("a", b""), "Corrupt"),
        ("bad percent", Tar::default().pax(&[("LIBARCHIVE.xattr.user.%g0", b"")]).file("a", b""), "Corrupt"),
        ("whiteout device", Tar::default().raw(EntryType::Char, "w", "", b"", dev), "Entry"),
        ("device that is cut to a whiteout", device(1 << 12, 0), "Entry"),
        ("device that is cut to another", device(1, 3 | 1 << 20), "Entry"),
        ("whiteout of nothing", Tar::default().file(".wh.", b""), "UnsafePath"),
        ("whiteout of dot", Tar::default().file("a/.wh..", b""), "UnsafePath"),
        ("whiteout of dotdot", Tar::default().file("a/.wh...", b""), "UnsafePath"),
        ("whiteout as directory", Tar::default().file(".wh.a/b", b""), "UnsafePath"),
        ("whiteout with slash", Tar::default().file(".wh./etc", b""), "UnsafePath"),
        ("directory whiteout", Tar::default().dir(".wh.a"), "Entry"),
        ("unknown type", Tar::default().raw(kind(b'Z'), "a", "", b"", |_| {}), "Entry"),
        ("ustar sparse", Tar::default().raw(EntryType::GNUSparse, "a", "", b"", |_| {}), "Entry"),
        ("pax parent", Tar::default().pax(&[("path", b"../x")]).file("a", b""), "UnsafePath"),
        ("pax nul", Tar::default().pax(&[("path", b"a\0b")]).file("a", b""), "UnsafePath"),
        ("pax uid -1", Tar::default().pax(&[("uid", b"4294967295")]).file("a", b""), "Entry"),
        ("pax size lie", Tar::default().pax(&[("size", b"99999")]).file("a", b""), "Truncated"),
        (
            "pax garbage",
            Tar::default().raw(EntryType::XHeader, "p", "", b"99 a=b\n", |_| {}).file("a", b""),
            "Corrupt",
        ),
        ("pax alone", Tar::default().pax(&[("path", b"x")]), "Corrupt"),
        (
            "giant long name",
            Tar::default().raw(EntryType::GNULongName, "l", "", b"", |h| h.set_size(1 << 40)),
            "Limit",
        ),
        (
            "giant file",
            Tar::default().raw(EntryType::Regular, "l", "", b"", |h| h.set_size(u64::from(u32::MAX) << 20)),
            "Allowance",
        ),
    ];
    for (name, tar, expected) in cases {
        let cage = Cage::new();
        match cage.unpack(&tar.end()) {
            Err(e) => {
                assert!(format!("{e:?}").starts_with(expected), "{name}: expected {expected}, got {e:?}");
            }
            Ok(_) => panic!("{name}: accepted"),
        }
    }
}

#[test]
fn symlinks_stay_inside() {
    for target in ["/", "../../..", "/..", "../root/.."] {
        let cage = Cage::new();
        let tar = Tar::default()
            .symlink("out", target)
            .file("out/secret", b"mine")
            .file("out/tmp/deep/x", b"2")
            .end();
        cage.unpack(&tar).unwrap();
        assert_eq!((cage.text("secret"), cage.text("tmp/deep/x")), ("mine".into(), "2".into()), "{target}");
    }
    let cage = Cage::new();
    let tar =
        Tar::default().symlink("lib", "/usr/lib").file("lib/a", b"a").file("/etc/b", b"b").file("./c", b"c");
    cage.unpack(&tar.end()).unwrap();
    assert_eq!(
        (cage.text("usr/lib/a"), cage.text("etc/b"), cage.text("c")),
        ("a".into(), "b".into(), "c".into())
    );
    // The last component is replaced, never followed.
    let cage = Cage::new();
    cage.unpack(&Tar::default().symlink("x", "../secret").file("x", b"new").end()).unwrap();
    assert_eq!(cage.text("x"), "new");
    assert!(cage.stat("x").is_file());
    // A directory that becomes a symlink after its descriptor was cached.
    let cage = Cage::new();
    let tar = Tar::default().file("d/a", b"1").dir("e").symlink("d", "e").file("d/b", b"2");
    cage.unpack(&tar.end()).unwrap();
    assert_eq!(cage.text("e/b"), "2");
    assert!(!cage.root().join("e/a").exists());
    // The same, with the replaced symlink in the path of the cached descriptor.
    let cage = Cage::new();
    cage.unpack(&Tar::default().symlink("a/s", "/a").dir("a/s/s").file("a/s/x", b"3").end()).unwrap();
    assert_eq!(cage.text("a/s/x"), "3");
    assert!(!cage.root().join("a/x").exists());
}

/// The longest names that the limits allow, as files, links and whiteouts.
#[test]
fn names_at_the_limit() {
    let component = "n".repeat(255);
    let long = vec![component.as_str(); 16].join("/"); // 4095 bytes
    let hidden = format!("{}/.wh.{}", vec![component.as_str(); 15].join("/"), "w".repeat(251));
    let deep = vec!["d"; 256].join("/");
    let padded = format!("{}a", "./".repeat(2047)); // 4095 bytes, one component
    let named = |tar: Tar, name: &str| tar.pax(&[("path", name.as_bytes())]).file("", b"x");
    let tar = [&long, &deep, &padded, &hidden].into_iter().fold(Tar::default(), |tar, name| named(tar, name));
    let tar = tar.pax(&[("linkpath", long.as_bytes())]).link("link", "");
    let cage = Cage::new();
    assert_eq!(cage.unpack(&tar.end()).unwrap().entries, 5);
    assert_eq!((cage.text("link"), cage.text("a"), cage.text(&deep)), ("x".into(), "x".into(), "x".into()));
    assert_eq!(cage.stat("link").nlink(), 2);
}

#[test]
fn link_to_symlink_does_not_follow() {
    let cage = Cage::new();
    cage.unpack(&Tar::default().symlink("s", "../secret").link("l", "/s").end()).unwrap();
    assert!(cage.stat("l").is_symlink());
    assert_eq!(cage.stat("l").ino(), cage.stat("s").ino());
}

#[test]
fn limits() {
    let tar = || Tar::default().file("a", &[1; 600]).file("b/c/d", &[2; 600]).end();
    let all = Limits::default();
    let exact = Limits { max_bytes: 1200, max_entries: 2, max_name: 5, max_depth: 3, ..all };
    Cage::new().unpack_with(&tar(), &exact).unwrap();
    for limits in [
        Limits { max_bytes: 1199, ..all },
        Limits { max_entries: 1, ..all },
        Limits { max_name: 4, ..all },
        Limits { max_depth: 2, ..all },
    ] {
        let result = Cage::new().unpack_with(&tar(), &limits);
        let expected = if limits.max_bytes == 1199 {
            matches!(result, Err(Error::Allowance { flag: "--max-layer-bytes", .. }))
        } else {
            matches!(result, Err(Error::Limit { .. }))
        };
        assert!(expected, "{limits:?}: {result:?}");
    }
    // Directories that no entry names count too, and so does what follows the end.
    let deep = Tar::default().file("a/b/c/d", b"").end();
    let result = Cage::new().unpack_with(&deep, &Limits { max_entries: 2, ..all });
    assert!(matches!(result, Err(Error::Limit { .. })), "{result:?}");
    let mut padded = Tar::default().file("a", b"").end();
    padded.resize(1 << 20, 0);
    let result = Cage::new().unpack_with(&padded, &Limits { max_bytes: 1, max_entries: 1, ..all });
    assert!(matches!(result, Err(Error::Limit { .. })), "{result:?}");
}

#[test]
fn truncated_or_no_tar() {
    let tar = Tar::default().file("a", &[7; 2000]).file("b", b"b").end();
    // In the data, in the padding, between entries, in the second header.
    for cut in [512 + 700, 512 + 2000, 512 + 2048, 512 + 2048 + 512, 3072 + 500] {
        let result = Cage::new().unpack(&tar[..cut]);
        assert!(matches!(result, Err(Error::Truncated { .. })), "{cut}: {result:?}");
    }
    let mut after = Tar::default().file("a", b"").0;
    after.resize(after.len() + 512, 0);
    after.resize(after.len() + 512, 1);
    for data in [&b""[..], &after] {
        let result = Cage::new().unpack(data);
        assert!(matches!(result, Err(Error::Corrupt { .. })), "{result:?}");
    }
    for data in [&tar[..100], &[b'x'; 5000]] {
        let result = Cage::new().unpack(data);
        assert!(matches!(result, Err(Error::NoTar { .. })), "{result:?}");
    }
    assert_eq!(Cage::new().unpack(&[0; 1024]).unwrap().entries, 0);
}
