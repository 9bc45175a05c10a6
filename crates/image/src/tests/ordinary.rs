use std::os::unix::fs::MetadataExt;

use tar::EntryType;

use super::{Cage, Tar};
use crate::Digest;

#[test]
fn attributes() {
    let cage = Cage::new();
    let tar = Tar::default()
        .raw(EntryType::Directory, "./", "", b"", |h| {
            h.set_mode(0o711);
            h.set_uid(5);
            h.set_mtime(77);
        })
        .raw(EntryType::Directory, "d/", "", b"", |h| {
            h.set_mode(0o1777);
            h.set_mtime(5);
        })
        .raw(EntryType::Regular, "d/su", "", b"x", |h| {
            h.set_mode(0o6755);
            h.set_uid(1000);
            h.set_gid(2000);
        })
        .pax(&[("mtime", b"1234567890.123456789"), ("uid", b"70000")])
        .file("d/pax", b"")
        .pax(&[("mtime", b"-1.25")])
        .file("d/old", b"")
        .raw(EntryType::Symlink, "d/s", "nowhere", b"", |h| h.set_uid(9))
        .raw(EntryType::Char, "d/null", "", b"", |h| {
            h.set_mode(0o666);
            h.set_device_major(1).unwrap();
            h.set_device_minor(3).unwrap();
        })
        .raw(EntryType::Fifo, "d/fifo", "", b"", |h| h.set_mode(0o620))
        .raw(EntryType::new(b's'), "d/sock", "", b"", |_| {})
        .end();
    let done = cage.unpack(&tar).unwrap();
    assert_eq!((done.entries, done.bytes, &done.diff_id), (9, 1, &Digest::of(&tar)));
    let root = cage.stat("");
    assert_eq!((root.mode() & 0o7777, root.uid(), root.mtime()), (0o711, 5, 77));
    let d = cage.stat("d");
    assert_eq!((d.mode() & 0o7777, d.mtime(), d.mtime_nsec()), (0o1777, 5, 0));
    let su = cage.stat("d/su");
    assert_eq!((su.mode() & 0o7777, su.uid(), su.gid(), su.mtime()), (0o6755, 1000, 2000, 1_000_000_000));
    let pax = cage.stat("d/pax");
    assert_eq!((pax.mtime(), pax.mtime_nsec(), pax.uid()), (1_234_567_890, 123_456_789, 70000));
    assert_eq!((cage.stat("d/old").mtime(), cage.stat("d/old").mtime_nsec()), (-2, 750_000_000));
    assert_eq!((cage.stat("d/s").uid(), cage.stat("d/s").mtime()), (9, 1_000_000_000));
    let null = cage.stat("d/null");
    assert_eq!((null.rdev(), null.mode()), (rustix::fs::makedev(1, 3), 0o020_666));
    assert_eq!(cage.stat("d/fifo").mode(), 0o010_620);
    assert!(!cage.root().join("d/sock").exists());
}

/// File capabilities: revision, flags, four words, in revision 3 a root id.
fn caps(revision: u8, root: Option<u32>) -> Vec<u8> {
    let mut caps = vec![1, 0, 0, revision, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    caps.extend(root.into_iter().flat_map(u32::to_le_bytes));
    caps
}

#[test]
fn xattrs() {
    let cage = Cage::new();
    let tar = Tar::default()
        .pax(&[
            ("SCHILY.xattr.security.capability", &caps(2, None)),
            ("SCHILY.xattr.user.note", b"with\nnewline=x"),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("SCHILY.xattr.user.overlay.opaque", b"y"),
            ("SCHILY.xattr.system.x", b"y"),
            ("SCHILY.xattr.security.selinux", b"y"),
            ("SCHILY.xattr.user.", b"y"),
        ])
        .raw(EntryType::Regular, "f", "", b"", |h| h.set_uid(3))
        .pax(&[
            ("LIBARCHIVE.xattr.user.a%20%3db", b"aGVsbG8"),
            ("LIBARCHIVE.xattr.user.c", b"/+8="),
            ("LIBARCHIVE.xattr.trusted.x", b"aGVsbG8"),
        ])
        .file("g", b"")
        .pax(&[("SCHILY.xattr.user.note", b"dir"), ("SCHILY.xattr.security.capability", &caps(2, None))])
        .dir("d")
        .pax(&[("SCHILY.xattr.user.note", b"link")])
        .symlink("s", "f")
        .end();
    assert_eq!(cage.unpack(&tar).unwrap().skipped_xattrs, 8);
    assert_eq!(cage.xattr("f", "security.capability").unwrap(), caps(2, None));
    assert_eq!(cage.xattr("f", "user.note").unwrap(), b"with\nnewline=x");
    assert_eq!(cage.xattr("f", "trusted.overlay.opaque"), None);
    assert_eq!(cage.xattr("f", "user.overlay.opaque"), None);
    assert_eq!(cage.xattr("g", "user.a =b").unwrap(), b"hello");
    assert_eq!(cage.xattr("g", "user.c").unwrap(), [0xff, 0xef]);
    assert_eq!(cage.xattr("d", "user.note").unwrap(), b"dir");
}

#[test]
fn file_capabilities() {
    for root in [0, 100_000] {
        let cage = Cage::new();
        let tar = Tar::default().pax(&[("SCHILY.xattr.security.capability", &caps(3, Some(root)))]);
        cage.unpack(&tar.file("f", b"").end()).unwrap();
        assert_eq!(cage.xattr("f", "security.capability").unwrap(), caps(2, None), "{root}");
    }
    for wrong in
        [vec![], vec![1, 0, 0], caps(2, Some(0)), caps(3, None), caps(1, None), caps(4, Some(0)), vec![0; 24]]
    {
        let tar = Tar::default().pax(&[("SCHILY.xattr.security.capability", &wrong)]);
        let result = Cage::new().unpack(&tar.file("f", b"").end());
        assert!(matches!(result, Err(crate::Error::Entry { .. })), "{wrong:?}: {result:?}");
    }
}

/// New entries in a directory with another group and a setgid bit inherit neither, whenever the directory got them.
#[test]
fn nothing_is_inherited() {
    let cage = Cage::new();
    let group = |tar: Tar, name: &str| {
        tar.raw(EntryType::Directory, name, "", b"", |h| {
            h.set_mode(0o2775);
            h.set_gid(50);
        })
    };
    let mut tar = group(Tar::default(), "early");
    for name in ["early", "late"] {
        tar =
            tar.file(&format!("{name}/f"), b"").dir(&format!("{name}/d")).symlink(&format!("{name}/s"), "x");
        tar = group(tar, name).file(&format!("{name}/g"), b"").dir(&format!("{name}/e"));
        tar = tar.file(&format!("{name}/missing/f"), b"");
    }
    cage.unpack(&tar.end()).unwrap();
    for name in ["early", "late"] {
        assert_eq!((cage.stat(name).mode() & 0o7777, cage.stat(name).gid()), (0o2775, 50));
        let inside =
            [("f", 0o644), ("g", 0o644), ("d", 0o755), ("e", 0o755), ("s", 0o777), ("missing/f", 0o644)];
        for (inside, mode) in inside {
            let stat = cage.stat(&format!("{name}/{inside}"));
            assert_eq!((stat.mode() & 0o7777, stat.uid(), stat.gid()), (mode, 0, 0), "{name}/{inside}");
        }
        // No entry names it.
        let missing = cage.stat(&format!("{name}/missing"));
        assert_eq!((missing.mode() & 0o7777, missing.gid()), (0o755, 0));
    }
}

#[test]
fn all_modes() {
    let cage = Cage::new();
    let modes = [0, 0o111, 0o444, 0o600, 0o666, 0o777, 0o1777, 0o2755, 0o4711, 0o7777];
    let tar = modes.iter().fold(Tar::default(), |tar, mode| {
        let tar = tar.raw(EntryType::Directory, &format!("d{mode}"), "", b"", |h| h.set_mode(*mode));
        let tar = tar.raw(EntryType::Regular, &format!("d{mode}/f"), "", b"x", |h| h.set_mode(*mode));
        tar.raw(EntryType::Regular, &format!("d{mode}/u"), "", b"x", |h| {
            h.set_mode(*mode);
            h.set_uid(7);
        })
    });
    cage.unpack(&tar.end()).unwrap();
    for mode in modes {
        for name in ["", "/f", "/u"] {
            assert_eq!(cage.stat(&format!("d{mode}{name}")).mode() & 0o7777, mode, "d{mode}{name}");
        }
    }
}

/// Parents without an entry, or with one that comes last; read-only ones; times of directories to the nanosecond.
#[test]
fn nested() {
    let cage = Cage::new();
    let tar = Tar::default()
        .file("a/b/c", b"c")
        .link("a/x/y/link", "a/b/c") // before the directory's own entry
        .pax(&[("mtime", b"12.000000345")])
        .dir("a/x")
        .link("a/x/y/link2", "./a/b/c") // and after it
        .raw(EntryType::Directory, "ro", "", b"", |h| h.set_mode(0o555))
        .raw(EntryType::Regular, "ro/f", "", b"r", |h| h.set_mode(0o444))
        .file("ro/g", b"g")
        .raw(EntryType::Regular, "ro/f", "", b"R", |h| h.set_mode(0o444))
        .end();
    cage.unpack(&tar).unwrap();
    let implicit = cage.stat("a/b");
    assert_eq!((implicit.mode() & 0o7777, implicit.uid()), (0o755, 0));
    assert_eq!((cage.stat("a/x").mtime(), cage.stat("a/x").mtime_nsec()), (12, 345));
    assert_eq!(cage.stat("a/b/c").nlink(), 3);
    assert_eq!((cage.text("ro/f"), cage.text("ro/g")), ("R".into(), "g".into()));
    assert_eq!(cage.stat("ro").mode() & 0o7777, 0o555);
}

#[test]
fn whiteouts() {
    let cage = Cage::new();
    let tar = Tar::default()
        .file("gone/.wh.a", b"") // parent missing
        .file("early/.wh..wh..opq", b"") // before its directory
        .dir("early")
        .file("early/x", b"1")
        .dir("late")
        .file("late/x", b"2")
        .file("late/.wh..wh..opq", b"")
        .file(".wh.back", b"") // then filled again, with and without an entry for the directory
        .dir("back")
        .file(".wh.again", b"")
        .file("again/x", b"3")
        .file("kept", b"4")
        .file(".wh.kept", b"") // concerns lower layers only
        .dir("hidden")
        .file(".wh.hidden", b"")
        .file(".wh.over", b"")
        .file("over", b"5")
        .file(".wh..wh.plnk/1.2", b"")
        .file(".wh..wh.aufs", b"data")
        .link(".wh.linked", ".wh..wh.aufs")
        .end();
    cage.unpack(&tar).unwrap();
    assert!(cage.is_whiteout("gone/a") && cage.is_whiteout("linked"));
    for dir in ["early", "late", "back", "again", "hidden"] {
        assert!(cage.is_opaque(dir), "{dir}");
    }
    assert!(!cage.is_opaque("gone") && !cage.is_opaque(""));
    assert_eq!(["early/x", "late/x", "again/x", "kept", "over"].map(|n| cage.text(n)).concat(), "12345");
    let mut names: Vec<_> = std::fs::read_dir(cage.root())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["again", "back", "early", "gone", "hidden", "kept", "late", "linked", "over"]);
}

#[test]
fn type_changes() {
    let cage = Cage::new();
    let tar = Tar::default()
        .file("a", b"long text")
        .file("a", b"x")
        .file("dir/sub/f", b"")
        .file("dir", b"now a file")
        .symlink("s", "dir")
        .dir("s")
        .file("s/in", b"i")
        .link("a", "a")
        .link("b", "a")
        .link("b", "a")
        .dir("b2")
        .link("b2", "a")
        .end();
    cage.unpack(&tar).unwrap();
    assert_eq!(
        (cage.text("a"), cage.text("dir"), cage.text("s/in")),
        ("x".into(), "now a file".into(), "i".into())
    );
    assert!(cage.stat("s").is_dir());
    // The symlink had hidden what lower layers have there.
    assert!(cage.is_opaque("s") && !cage.is_opaque("b2"));
    assert_eq!(cage.stat("a").nlink(), 3);
    // A file written over one name of a hard link leaves the other alone.
    let cage = Cage::new();
    cage.unpack(&Tar::default().file("a", b"old").link("b", "a").file("b", b"new").end()).unwrap();
    assert_eq!((cage.text("a"), cage.text("b")), ("old".into(), "new".into()));
}

#[test]
fn long_names() {
    let long = format!("{}/{}", "d".repeat(200), "f".repeat(200));
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(2);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    builder.append_data(&mut header.clone(), &long, &b"hi"[..]).unwrap();
    header.set_size(0);
    header.set_entry_type(EntryType::Symlink);
    builder.append_link(&mut header, "gnu", &long).unwrap();
    let mut tar = Tar(builder.into_inner().unwrap());
    tar.0.truncate(tar.0.len() - 1024);
    let pax = "p".repeat(210);
    let tar = tar.pax(&[("path", pax.as_bytes())]).file("short", b"pax").end();
    let cage = Cage::new();
    cage.unpack(&tar).unwrap();
    assert_eq!(
        (cage.text(&long), cage.text("gnu"), cage.text(&pax)),
        ("hi".into(), "hi".into(), "pax".into())
    );
    assert!(!cage.root().join("short").exists());
}
