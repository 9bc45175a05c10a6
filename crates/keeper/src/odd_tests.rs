//! Odd but legal tars, unpacked by the helper's code and by GNU tar, without a container. Needs root.

#[path = "../../archive/tests/odd/mod.rs"]
mod archives;

use self::archives::{archive, compare, scratch, tree, unpack_by_tar};
use std::io::Write;
use std::path::{Path, PathBuf};

/// In a thread of its own: the working directory and the umask become its own with its mount namespace.
fn unpack_in(dir: PathBuf, tar: Vec<u8>) -> Result<(), String> {
    let (read, mut write) = std::io::pipe().unwrap();
    let feeder = std::thread::spawn(move || drop(write.write_all(&tar)));
    let unpacker = std::thread::spawn(move || {
        wardian_sys::namespace::own_mounts().unwrap();
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
        std::env::set_current_dir(dir).unwrap();
        super::unpack(read.into()).map_err(|stop| stop.text)
    });
    let done = unpacker.join().unwrap();
    feeder.join().unwrap();
    done
}

/// What differs on purpose is not compared: everything belongs to the user; nothing sets a user or group id, as with
/// `--no-same-permissions`; devices are refused.
fn check(seed: u64, into: &Path) {
    let odd = archive(seed, false);
    let (ours, theirs) = (into.join("ours"), into.join("theirs"));
    std::fs::create_dir(&ours).unwrap();
    std::fs::create_dir(&theirs).unwrap();
    unpack_in(ours.clone(), odd.tar.clone()).unwrap_or_else(|e| panic!("{e}\n{}", odd.story));
    unpack_by_tar(&odd.tar, &theirs, &["--no-same-owner", "--no-same-permissions"]);
    compare(&tree(&ours, &odd, false, 0o777), &tree(&theirs, &odd, false, 0o777), &odd.story);
}

fn tar_of(entries: &[(tar::EntryType, &str, &str)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (kind, name, link) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(0o755);
        header.set_size(0);
        if !link.is_empty() {
            header.set_link_name_literal(link).unwrap();
        }
        tar.append_data(&mut header, name, &b""[..]).unwrap();
    }
    tar.into_inner().unwrap()
}

/// GNU tar fails in the same places.
#[test]
fn nothing_is_unpacked_through_a_link_of_the_archive_that_leads_out() {
    use tar::EntryType::{Directory, Link, Regular, Symlink};
    let dir = scratch();
    let (out, root) = (dir.path().join("out"), dir.path().join("root"));
    std::fs::create_dir(&out).unwrap();
    std::fs::create_dir(&root).unwrap();
    std::fs::write(out.join("secret"), "").unwrap();
    let absolute = out.to_str().unwrap();
    let into = |entries: &[_]| unpack_in(root.clone(), tar_of(entries));
    for target in [absolute, "../out", "d/../../out", "x/../.."] {
        let names =
            [(Directory, "d", ""), (Symlink, "l", target), (Symlink, "again", "l"), (Link, "hard", "l")];
        for through in ["l/f", "l/d/f", "again/f", "hard/f", "again/secret"] {
            for kind in [Regular, Directory, Symlink] {
                let link = if kind == Symlink { "x" } else { "" };
                let error = into(&[&names[..], &[(kind, through, link)]].concat()).unwrap_err();
                assert!(error.contains("leads out of the destination"), "{target} {through}: {error}");
            }
        }
        let error = into(&[&names[..], &[(Link, "h", "l/secret")]].concat()).unwrap_err();
        assert!(error.contains("leads out of the destination"), "{target}: {error}");
        // A directory takes a link's place, and what comes later lies in it.
        into(&[&names[..], &[(Directory, "l", ""), (Regular, "l/f", "")]].concat()).unwrap();
        assert!(root.join("l/f").is_file());
        std::fs::remove_dir_all(root.join("l")).unwrap();
    }
    // One that leads to a neighbour is followed, and so is one that was there before.
    into(&[(Directory, "d", ""), (Symlink, "n", "d"), (Regular, "n/f", "")]).unwrap();
    assert!(root.join("d/f").is_file());
    std::os::unix::fs::symlink(&out, root.join("before")).unwrap();
    into(&[(Regular, "before/f", "")]).unwrap();
    assert!(out.join("f").is_file());
    let names: Vec<_> = std::fs::read_dir(&out).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "{names:?}");
    assert_eq!(std::os::unix::fs::MetadataExt::nlink(&out.join("secret").metadata().unwrap()), 1);
}

/// The destination is another user's, who can rename root's links in it.
fn users_directory(dir: &Path) {
    std::fs::set_permissions(dir, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    std::os::unix::fs::chown(dir, Some(1001), Some(1001)).unwrap();
}

#[test]
fn roots_links_that_a_user_can_move_lead_nowhere() {
    use std::os::unix::fs::PermissionsExt;
    use tar::EntryType::{Directory, Regular};
    let (dir, outside) = (scratch(), scratch());
    let (root, out) = (dir.path(), outside.path());
    users_directory(root);
    let mode = || out.metadata().unwrap().permissions().mode() & 0o7777;
    let before = mode();
    std::fs::create_dir(root.join("closed")).unwrap();
    for name in ["l", "closed/l"] {
        std::os::unix::fs::symlink(out, root.join(name)).unwrap();
        let error = unpack_in(root.to_owned(), tar_of(&[(Regular, &format!("{name}/f"), "")])).unwrap_err();
        assert!(error.contains("another user could have put there"), "{error}");
        // A directory takes its place.
        let entries = [(Directory, name, ""), (Regular, &format!("{name}/f"), "")];
        unpack_in(root.to_owned(), tar_of(&entries)).unwrap();
        assert!(root.join(name).join("f").symlink_metadata().unwrap().is_file(), "{name}");
        assert!(root.join(name).symlink_metadata().unwrap().is_dir(), "{name}");
    }
    assert_eq!((std::fs::read_dir(out).unwrap().count(), mode()), (0, before));
}

/// What the archive has made leads further down, as with GNU tar, also in a user's directory; what he has put in its place
/// leads nowhere.
#[test]
fn a_link_of_the_archive_is_known_by_more_than_its_name() {
    use std::os::unix::fs::symlink;
    use tar::EntryType::{Directory, Regular, Symlink};
    let (dir, outside) = (scratch(), scratch());
    users_directory(dir.path());
    let entries = [(Directory, "d", ""), (Symlink, "n", "d"), (Regular, "n/f", "")];
    unpack_in(dir.path().to_owned(), tar_of(&entries)).unwrap();
    assert!(dir.path().join("d/f").is_file());
    let root = dir.path().to_owned();
    let done = std::thread::spawn(move || {
        wardian_sys::namespace::own_mounts().unwrap();
        std::env::set_current_dir(&root).unwrap();
        std::fs::create_dir("e").unwrap();
        let places = super::Places::new();
        let top = places.open(Path::new("")).unwrap();
        let made = |name: &str, text: &str| places.made(&top.dir, name.as_ref(), text.as_bytes()).unwrap();
        // The user is fast: each is another one by the time that it is looked at.
        symlink(outside.path(), "swapped").unwrap();
        made("swapped", "d");
        symlink("e", "other").unwrap();
        made("other", "d");
        symlink("d", "hers").unwrap();
        std::os::unix::fs::lchown("hers", Some(1001), None).unwrap();
        made("hers", "d");
        // And slower: this one takes the place of the archive's later, and has its inode.
        symlink("d", "late").unwrap();
        made("late", "d");
        std::os::unix::fs::lchown("late", Some(1001), None).unwrap();
        for name in ["swapped", "other", "hers", "late"] {
            let blocked = places.find(Path::new(name)).map(drop).unwrap_err();
            assert!(blocked.text.contains("of another user"), "{name}: {}", blocked.text);
            let stat = rustix::fs::statat(&top.dir, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
            assert!(!places.keeps(&top, &stat), "{name}");
        }
        symlink("d", "own").unwrap();
        made("own", "d");
        assert!(places.find(Path::new("own")).is_ok());
        // By its text one leads out, in whosever directory it is.
        symlink("/", "absolute").unwrap();
        made("absolute", "/");
        let blocked = places.find(Path::new("absolute")).map(drop).unwrap_err();
        assert!(blocked.text.contains("of the archive"), "{}", blocked.text);
    });
    done.join().unwrap();
}

#[test]
fn attributes_that_are_too_large_are_left_out() {
    let dir = scratch();
    let (long, value) = (format!("SCHILY.xattr.user.{}", "x".repeat(251)), vec![b'x'; (64 << 10) + 1]);
    let mut tar = tar::Builder::new(Vec::new());
    // Longer than a name may be, than a value may be, and than ext4 has place for.
    let pairs = [
        (&*long, &b"long"[..]),
        ("SCHILY.xattr.user.large", &value),
        ("SCHILY.xattr.user.block", &value[..60_000]),
        ("SCHILY.xattr.user.note", b"note"),
    ];
    tar.append_pax_extensions(pairs).unwrap();
    let mut header = tar::Header::new_ustar();
    header.set_mode(0o644);
    header.set_size(1);
    tar.append_data(&mut header, "f", &b"x"[..]).unwrap();
    unpack_in(dir.path().to_owned(), tar.into_inner().unwrap()).unwrap();
    assert_eq!(std::fs::read(dir.path().join("f")).unwrap(), b"x");
    let mut note = [0; 16];
    let size = rustix::fs::getxattr(dir.path().join("f"), "user.note", &mut note[..]).unwrap();
    assert_eq!(&note[..size], b"note");
}

/// GNU tar ends a file where its map ends, and always writes a last segment there; other writers do not, and say how long it is.
#[test]
fn a_sparse_file_is_as_long_as_its_header_says() {
    let dir = scratch();
    let mut tar = tar::Builder::new(Vec::new());
    tar.append_pax_extensions([("GNU.sparse.size", &b"1000000"[..]), ("GNU.sparse.map", b"512,3")]).unwrap();
    let mut header = tar::Header::new_ustar();
    header.set_mode(0o644);
    header.set_size(3);
    tar.append_data(&mut header, "f", &b"abc"[..]).unwrap();
    unpack_in(dir.path().to_owned(), tar.into_inner().unwrap()).unwrap();
    let data = std::fs::read(dir.path().join("f")).unwrap();
    assert_eq!((data.len(), &data[512..515]), (1_000_000, &b"abc"[..]));
    assert!(data[..512].iter().chain(&data[515..]).all(|byte| *byte == 0));
}

#[test]
fn odd_archives_are_what_tar_makes_of_them() {
    for seed in 0..830 {
        check(seed, scratch().path());
    }
}

/// What an archive closes to others is closed from its birth on, and also where the archive ends early or another entry fails.
#[test]
fn a_private_directory_is_never_open() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let dir = scratch();
    let mode = |name: &str| dir.path().join(name).metadata().unwrap().permissions().mode() & 0o7777;
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |kind, name: &str, mode, size: usize| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(size as u64);
        header.set_mtime(1_500_000_000);
        tar.append_data(&mut header, name, &vec![b'x'; size][..]).unwrap();
    };
    use tar::EntryType::{Directory, Regular};
    add(Directory, "d", 0o700, 0);
    add(Directory, "d/in", 0o510, 0);
    add(Directory, "open", 0o1777, 0);
    add(Regular, "d/f", 0o644, 1 << 20);
    let tar = tar.into_inner().unwrap();
    let (root, (read, mut write)) = (dir.path().to_owned(), std::io::pipe().unwrap());
    let unpacker = std::thread::spawn(move || {
        wardian_sys::namespace::own_mounts().unwrap();
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
        std::env::set_current_dir(root).unwrap();
        super::unpack(read.into()).map_err(|stop| stop.text)
    });
    write.write_all(&tar[..1 << 19]).unwrap();
    while !dir.path().join("d/f").metadata().is_ok_and(|file| file.len() > 0) {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    assert_eq!([mode("d"), mode("d/in"), mode("open")].map(|m| format!("{m:o}")), ["700", "710", "755"]);
    drop(write);
    let error = unpacker.join().unwrap().unwrap_err();
    assert!(error.contains("Unexpected EOF"), "{error}");
    assert_eq!([mode("d"), mode("d/in"), mode("open")].map(|m| format!("{m:o}")), ["700", "510", "1755"]);
    assert_eq!(dir.path().join("d").metadata().unwrap().mtime(), 1_500_000_000);
}

/// However long its path is, the first failure leaves place for others, and says why.
#[test]
fn a_long_failure_is_cut_and_says_why() {
    let long = "\u{e4}\n".repeat(450_000);
    let mut failures = super::Failures::default();
    failures.add(&super::failed(&long)(rustix::io::Errno::ACCESS));
    failures.add(&super::failed("second")(rustix::io::Errno::PERM));
    let said = failures.result(Err(super::failed(&long)(rustix::io::Errno::NOSPC))).unwrap_err().text;
    let lines: Vec<&str> = said.lines().collect();
    assert!(said.len() < 1200 && lines.len() == 3, "{} {said}", said.len());
    assert!(lines[0].ends_with(": No space left on device (os error 28)"), "{said}");
    assert!(lines[1].ends_with(": Permission denied (os error 13)"), "{said}");
    assert!(lines[2].starts_with("second: "), "{said}");
    let alone = super::Failures::default().result(Err(super::failed(&long)(rustix::io::Errno::NOSPC)));
    assert!(alone.unwrap_err().text.len() < 500);
}
