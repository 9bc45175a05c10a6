use super::*;
use std::fs;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

fn header(kind: tar::EntryType, size: usize) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_size(size as u64);
    header.set_mode(0o4777);
    header.set_mtime(1_500_000_000);
    header.set_uid(0);
    header.set_gid(0);
    header.set_device_major(1).unwrap();
    header.set_device_minor(3).unwrap();
    header
}

/// A tar of entries with a name, a type and data or a link's target. Names are written as they are.
fn tar_of(entries: &[(&str, tar::EntryType, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, kind, text) in entries {
        let is_file = *kind == tar::EntryType::Regular;
        let mut header = header(*kind, if is_file { text.len() } else { 0 });
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        if !is_file {
            header.as_old_mut().linkname[..text.len()].copy_from_slice(text.as_bytes());
        }
        header.set_cksum();
        builder.append(&header, if is_file { text.as_bytes() } else { b"" }).unwrap();
    }
    builder.into_inner().unwrap()
}

use tar::EntryType::{Char, Directory, Link, Regular, Symlink};

fn into(dir: &Path, tar: &[u8], name: Name<'_>) -> Result<Taken, crate::Error> {
    let dir = fs::File::open(dir).unwrap();
    unpack(tar, dir.as_fd(), name)
}

#[test]
fn what_is_packed_can_be_unpacked_under_another_name() {
    let base = tempfile::tempdir().unwrap();
    let source = base.path().join("source");
    fs::create_dir_all(source.join("sub")).unwrap();
    fs::write(source.join("sub/file"), "text").unwrap();
    fs::set_permissions(source.join("sub/file"), fs::Permissions::from_mode(0o750)).unwrap();
    fs::write(source.join("x".repeat(200)), "").unwrap();
    symlink("sub/file", source.join("link")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(source.join("socket")).unwrap();
    let mut tar = Vec::new();
    let packed = pack(&source, Path::new("a"), &mut tar).unwrap();
    assert_eq!((packed.entries, packed.bytes), (5, 4));
    assert_eq!(packed.left_out, [source.join("socket")]);

    let to = base.path().join("to");
    fs::create_dir(&to).unwrap();
    let taken = into(&to, &tar, Name::One(b"a", b"b")).unwrap();
    assert_eq!(taken, Taken { entries: 5, bytes: 4, left_out: 0 });
    assert_eq!(fs::read_to_string(to.join("b/link")).unwrap(), "text");
    assert_eq!(fs::metadata(to.join("b/sub/file")).unwrap().permissions().mode() & 0o7777, 0o750);
    assert!(to.join("b").join("x".repeat(200)).is_file());

    let mut contents = Vec::new();
    pack(&source.join("."), Path::new(""), &mut contents).unwrap();
    into(&to, &contents, Name::Contents).unwrap();
    assert_eq!(fs::read_to_string(to.join("sub/file")).unwrap(), "text");
}

#[test]
fn what_cannot_be_packed_is_named() {
    let base = tempfile::tempdir().unwrap();
    let mut tar = Vec::new();
    let error = pack(&base.path().join("nope"), Path::new("nope"), &mut tar).unwrap_err().to_string();
    assert!(error.contains("nope") && error.contains("No such file"), "{error}");
    // No end of the archive.
    assert!(tar.is_empty());
}

#[test]
fn names_never_leave_the_directory() {
    let base = tempfile::tempdir().unwrap();
    let (to, outside) = (base.path().join("to"), base.path().join("outside"));
    fs::create_dir(&to).unwrap();
    fs::create_dir(&outside).unwrap();
    symlink(&outside, to.join("mine")).unwrap();
    let out = outside.to_str().unwrap().to_owned();
    let all: [&[(&str, tar::EntryType, &str)]; 9] = [
        &[("a/../../outside/f", Regular, "x")],
        &[("/a/f", Regular, "x")],
        &[("b/f", Regular, "x")],
        &[("a", Directory, ""), ("a/l", Symlink, &out), ("a/l/f", Regular, "x")],
        &[("a", Directory, ""), ("a/l", Symlink, ".."), ("a/l/f", Regular, "x")],
        &[("a", Symlink, &out), ("a/f", Regular, "x")],
        &[("a", Directory, ""), ("a/h", Link, "../outside/secret")],
        &[("a", Directory, ""), ("a/h", Link, "b/elsewhere")],
        &[("a/", Regular, "x"), ("a/f/g", Regular, "x"), ("a", Directory, "")],
    ];
    fs::write(outside.join("secret"), "s").unwrap();
    for entries in all {
        let error = into(&to, &tar_of(entries), Name::One(b"a", b"a")).unwrap_err();
        let left: Vec<_> = fs::read_dir(&outside).unwrap().flatten().map(|e| e.file_name()).collect();
        assert_eq!(left, ["secret"], "{entries:?}: {error}");
        assert!(!matches!(error, crate::Error::Corrupt { .. } | crate::Error::Truncated { .. }), "{error}");
        let _ = fs::remove_dir_all(to.join("a"));
        let _ = fs::remove_file(to.join("a"));
    }
    // Neither through a link that was there before.
    into(&to, &tar_of(&[("mine/f", Regular, "x")]), Name::Contents).unwrap_err();
    into(&to, &tar_of(&[("mine", Directory, "")]), Name::Contents).unwrap_err();
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    // It is replaced, not followed.
    symlink(outside.join("secret"), to.join("s")).unwrap();
    into(&to, &tar_of(&[("s", Regular, "new")]), Name::Contents).unwrap();
    assert_eq!(fs::read_to_string(outside.join("secret")).unwrap(), "s");
    assert_eq!(fs::read_to_string(to.join("s")).unwrap(), "new");
}

#[test]
fn nothing_dangerous_is_made() {
    let base = tempfile::tempdir().unwrap();
    let tar = tar_of(&[
        ("a", Directory, ""),
        ("a/suid", Regular, "x"),
        ("a/null", Char, ""),
        ("a/again", Link, "a/suid"),
    ]);
    let taken = into(base.path(), &tar, Name::One(b"a", b"n")).unwrap();
    assert_eq!(taken, Taken { entries: 3, bytes: 1, left_out: 1 });
    let mode = |path: &str| fs::metadata(base.path().join(path)).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode("n/suid") & 0o7000, 0);
    assert_eq!(mode("n"), 0o755);
    assert_eq!(fs::read_to_string(base.path().join("n/again")).unwrap(), "x");
    assert!(!base.path().join("n/null").exists());
}

#[test]
fn a_tar_without_its_end_is_an_error() {
    let base = tempfile::tempdir().unwrap();
    let tar = tar_of(&[("a", Regular, "0123456789")]);
    for length in [0, 100, 512, 600, 1024] {
        into(base.path(), &tar[..length], Name::Contents).unwrap_err();
    }
    into(base.path(), &tar, Name::Contents).unwrap();
}
