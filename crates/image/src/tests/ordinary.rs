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

#[test]
fn xattrs() {
    let cage = Cage::new();
    // cap_net_raw+ep, revision 2
    let caps = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let tar = Tar::default()
        .pax(&[
            ("SCHILY.xattr.security.capability", &caps),
            ("SCHILY.xattr.user.note", b"with\nnewline=x"),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("SCHILY.xattr.user.overlay.opaque", b"y"),
            ("SCHILY.xattr.system.x", b"y"),
        ])
        .raw(EntryType::Regular, "f", "", b"", |h| h.set_uid(3))
        .end();
    assert_eq!(cage.unpack(&tar).unwrap().skipped_xattrs, 3);
    assert_eq!(cage.xattr("f", "security.capability").unwrap(), caps);
    assert_eq!(cage.xattr("f", "user.note").unwrap(), b"with\nnewline=x");
    assert_eq!(cage.xattr("f", "trusted.overlay.opaque"), None);
    assert_eq!(cage.xattr("f", "user.overlay.opaque"), None);
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
