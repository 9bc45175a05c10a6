//! Odd but legal tars, unpacked by the helper's code and by GNU tar, without a container. Needs root.

#[path = "../../archive/tests/odd/mod.rs"]
mod archives;

use self::archives::{archive, compare, scratch, tree, unpack_by_tar};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Unpacks in a thread of its own: the thread's working directory and umask become private with its mount namespace.
fn unpack_in(dir: PathBuf, tar: Vec<u8>) -> Result<(), String> {
    let (read, mut write) = std::io::pipe().unwrap();
    let feeder = std::thread::spawn(move || drop(write.write_all(&tar)));
    let unpacker = std::thread::spawn(move || unpack_from(read, dir));
    let done = unpacker.join().unwrap();
    feeder.join().unwrap();
    done
}

/// The same, but runs an act in the middle, once the entries before it are seen to be unpacked.
fn unpack_while(
    dir: PathBuf,
    tar: &[u8],
    at: usize,
    seen: impl Fn() -> bool,
    act: impl FnOnce(),
) -> Result<(), String> {
    let (read, mut write) = std::io::pipe().unwrap();
    let unpacker = std::thread::spawn(move || unpack_from(read, dir));
    write.write_all(&tar[..at]).unwrap();
    while !seen() {
        assert!(!unpacker.is_finished());
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    act();
    let _ = write.write_all(&tar[at..]);
    drop(write);
    unpacker.join().unwrap()
}

fn unpack_from(tar: std::io::PipeReader, dir: PathBuf) -> Result<(), String> {
    wardian_sys::namespace::own_mounts().unwrap();
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    std::env::set_current_dir(dir).unwrap();
    super::unpack(tar.into()).map_err(|stop| stop.text)
}

/// Intended differences are not compared: everything belongs to the user; no set-user-id or set-group-id bit is set,
/// as with `--no-same-permissions`; devices are refused.
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

/// GNU tar fails for the same archives.
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
        // A directory entry replaces a link, and later entries go into the directory.
        into(&[&names[..], &[(Directory, "l", ""), (Regular, "l/f", "")]].concat()).unwrap();
        assert!(root.join("l/f").is_file());
        std::fs::remove_dir_all(root.join("l")).unwrap();
    }
    // A link to a neighbour is followed, and so is one that was there before.
    into(&[(Directory, "d", ""), (Symlink, "n", "d"), (Regular, "n/f", "")]).unwrap();
    assert!(root.join("d/f").is_file());
    std::os::unix::fs::symlink(&out, root.join("before")).unwrap();
    into(&[(Regular, "before/f", "")]).unwrap();
    assert!(out.join("f").is_file());
    let names: Vec<_> = std::fs::read_dir(&out).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "{names:?}");
    assert_eq!(std::os::unix::fs::MetadataExt::nlink(&out.join("secret").metadata().unwrap()), 1);
}

/// A link that was there before leads to what its maker meant; moved to another directory it leads elsewhere.
#[test]
fn an_old_link_leads_nowhere_out_of_where_the_archive_has_brought_it() {
    use tar::EntryType::{Link, Regular};
    let dir = scratch();
    let root = dir.path().join("root");
    std::fs::create_dir_all(root.join("lib/deep")).unwrap();
    std::fs::create_dir(root.join("lib/shared")).unwrap();
    std::fs::create_dir(dir.path().join("shared")).unwrap();
    std::os::unix::fs::symlink("../shared", root.join("lib/deep/link")).unwrap();
    for n in 0..2 {
        // The second time the name is already a hard link to it.
        let entries = [(Link, "esc", "lib/deep/link"), (Regular, "esc/evil", "")];
        let error = unpack_in(root.clone(), tar_of(&entries)).unwrap_err();
        assert!(error.contains("leads out of the destination"), "{n}: {error}");
        assert!(!dir.path().join("shared/evil").exists() && root.join("esc").is_symlink(), "{n}");
    }
    // A link that no archive has linked again is followed, as by GNU tar.
    unpack_in(root.clone(), tar_of(&[(Regular, "lib/deep/link/f", "")])).unwrap();
    assert!(root.join("lib/shared/f").is_file());
}

/// Makes the destination another user's directory, in which he can rename root's links.
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
        // A directory entry replaces the link.
        let entries = [(Directory, name, ""), (Regular, &format!("{name}/f"), "")];
        unpack_in(root.to_owned(), tar_of(&entries)).unwrap();
        assert!(root.join(name).join("f").symlink_metadata().unwrap().is_file(), "{name}");
        assert!(root.join(name).symlink_metadata().unwrap().is_dir(), "{name}");
    }
    assert_eq!((std::fs::read_dir(out).unwrap().count(), mode()), (0, before));
}

/// A directory of the user's with a default access control list, under which the kernel ignores the umask, gives him
/// no write permission for root's files, and so none through a hard link in a directory of root's either.
#[test]
fn a_users_access_list_gives_him_nothing_to_write_to() {
    use std::os::unix::fs::MetadataExt;
    use tar::EntryType::{Directory, Fifo, Link, Regular};
    let dir = scratch();
    let (root, hers) = (dir.path(), dir.path().join("hers"));
    std::fs::create_dir(&hers).unwrap();
    users_directory(&hers);
    // Version 2; the owner, the user 4000, the group, the mask and the others, each with rights and an id (posix_acl_xattr.h).
    let mut list = 2_u32.to_le_bytes().to_vec();
    for (tag, id) in [(1_u16, u32::MAX), (2, 4000), (4, u32::MAX), (16, u32::MAX), (32, u32::MAX)] {
        list.extend(tag.to_le_bytes().into_iter().chain(7_u16.to_le_bytes()).chain(id.to_le_bytes()));
    }
    let flags = rustix::fs::XattrFlags::empty();
    match rustix::fs::setxattr(&hers, "system.posix_acl_default", &list, flags) {
        Err(rustix::io::Errno::OPNOTSUPP) => return,
        other => other.unwrap(),
    }
    let mut tar = tar::Builder::new(Vec::new());
    for (kind, name, link) in [
        (Regular, "hers/x", ""),
        (Link, "conf", "hers/x"),
        (Fifo, "hers/fifo", ""),
        (Regular, "hers/implied/x", ""),
        (Directory, "hers/d", ""),
        (Regular, "hers/d/x", ""),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o777);
        header.set_size(0);
        if !link.is_empty() {
            header.set_link_name_literal(link).unwrap();
        }
        tar.append_data(&mut header, name, &b""[..]).unwrap();
    }
    unpack_in(root.to_owned(), tar.into_inner().unwrap()).unwrap();
    for name in ["hers/x", "conf", "hers/fifo", "hers/implied", "hers/implied/x", "hers/d", "hers/d/x"] {
        let stat = root.join(name).metadata().unwrap();
        assert_eq!(format!("{:o}", stat.mode() & 0o777), "755", "{name}");
    }
    assert_eq!(root.join("conf").metadata().unwrap().nlink(), 2);
}

/// A file that others may write to gets no hard link, not even one that the archive made and whose mode was changed
/// since.
#[test]
fn what_others_may_write_to_gets_no_second_name() {
    use std::os::unix::fs::PermissionsExt;
    use tar::EntryType::{Link, Regular};
    let dir = scratch();
    let root = dir.path().to_owned();
    let tar = tar_of(&[(Regular, "f", ""), (Link, "g", "f")]);
    let file = root.join("f");
    let open = || std::fs::set_permissions(&file, PermissionsExt::from_mode(0o666)).unwrap();
    let error = unpack_while(root.clone(), &tar, 512, || file.exists(), open).unwrap_err();
    assert!(error.contains("g: ") && error.contains("others may write to it"), "{error}");
    assert!(!root.join("g").exists());
}

/// A link that the archive has made is followed within the destination, as by GNU tar, also in a user's directory;
/// one that he has put in its place is not.
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
        // A fast user: each link is exchanged before it is looked at.
        symlink(outside.path(), "swapped").unwrap();
        made("swapped", "d");
        symlink("e", "other").unwrap();
        made("other", "d");
        symlink("d", "hers").unwrap();
        std::os::unix::fs::lchown("hers", Some(1001), None).unwrap();
        made("hers", "d");
        // A slow user: this link takes the place of the archive's later, and gets its inode number.
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
        // A link whose target leads out of the destination is refused, whoever owns its directory.
        symlink("/", "absolute").unwrap();
        made("absolute", "/");
        let blocked = places.find(Path::new("absolute")).map(drop).unwrap_err();
        assert!(blocked.text.contains("of the archive"), "{}", blocked.text);
    });
    done.join().unwrap();
}

/// Also beyond the limit of remembered files no file that a user has put there gets a hard link.
#[test]
fn after_very_many_files_a_user_exchanges_none() {
    use std::os::unix::fs::MetadataExt;
    use tar::EntryType::{Link, Regular, Symlink};
    let dir = scratch();
    let (root, hers) = (dir.path().to_owned(), dir.path().join("hers"));
    std::fs::create_dir(&hers).unwrap();
    std::fs::create_dir(root.join("w")).unwrap();
    users_directory(&hers);
    std::fs::write(hers.join("other"), "roots own").unwrap();
    let links: Vec<_> = (0..1100).map(|n| format!("l{n}")).collect();
    let mut entries: Vec<_> = links.iter().map(|name| (Symlink, &**name, "x")).collect();
    entries.push((Regular, "hers/tool", ""));
    // Where nobody else may write, a file need not be remembered.
    entries.extend([(Regular, "w/own", ""), (Link, "w/second", "w/own")]);
    unpack_in(root.clone(), tar_of(&entries)).unwrap();
    assert_eq!(root.join("w/second").metadata().unwrap().nlink(), 2);
    entries.push((Link, "w/tool", "hers/tool"));
    let at = tar_of(&entries[..1101]).len() - 1024;
    let swap = || std::fs::rename(hers.join("other"), hers.join("tool")).unwrap();
    let seen = || hers.join("tool").exists();
    std::fs::remove_file(hers.join("tool")).unwrap();
    let error = unpack_while(root.clone(), &tar_of(&entries), at, seen, swap).unwrap_err();
    assert!(error.contains("w/tool: ") && error.contains("another user could have put it there"), "{error}");
    assert!(!root.join("w/tool").exists());
}

#[test]
fn attributes_that_are_too_large_are_left_out() {
    let dir = scratch();
    let (long, value) = (format!("SCHILY.xattr.user.{}", "x".repeat(251)), vec![b'x'; (64 << 10) + 1]);
    let mut tar = tar::Builder::new(Vec::new());
    // A name that is too long, a value that is too long, and one that does not fit into ext4's space for attributes.
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

/// GNU tar ends a file where its map ends, and always writes a last empty segment there; other writers omit it and
/// rely on the header's size.
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

/// A user renames root's directories in his own while root's tar is unpacked: a directory that the archive, or root
/// before it, has closed to him stays closed.
#[test]
fn a_closed_directory_that_a_user_renames_stays_closed() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use tar::EntryType::{Directory, Regular};
    let mode = |path: &Path| format!("{:o}", path.metadata().unwrap().mode() & 0o7777);
    for (old, attack) in
        [(false, "rename"), (true, "rename"), (false, "away"), (false, "instead"), (false, "above")]
    {
        let dir = scratch();
        let (root, hers) = (dir.path().to_owned(), dir.path().join("hers"));
        let at = |name: &str| hers.join(name);
        std::fs::create_dir(&hers).unwrap();
        users_directory(&hers);
        std::fs::create_dir(at("old")).unwrap();
        std::fs::set_permissions(at("old"), PermissionsExt::from_mode(0o700)).unwrap();
        let mut tar = tar::Builder::new(Vec::new());
        let mut add = |kind, name: &str, mode| {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_mode(mode);
            header.set_size(0);
            tar.append_data(&mut header, name, &b""[..]).unwrap();
            tar.get_ref().len()
        };
        add(Directory, "hers/private", 0o700);
        let middle = add(Regular, "hers/private/first", 0o644);
        if attack != "above" {
            add(Regular, "hers/private/key", 0o644);
        }
        add(Regular, "hers/private/in/key", 0o644);
        add(Directory, "hers/app", 0o755);
        add(Regular, "hers/app/f", 0o644);
        let tar = tar.into_inner().unwrap();
        let act = || match (old, attack) {
            (false, "rename") => std::fs::rename(at("private"), at("app")).unwrap(),
            (true, "rename") => std::fs::rename(at("old"), at("app")).unwrap(),
            (_, how) => {
                std::fs::rename(at("private"), at("elsewhere")).unwrap();
                if how != "away" {
                    std::fs::create_dir_all(at("private/in")).unwrap();
                    users_directory(&at("private"));
                }
            }
        };
        let done = unpack_while(root, &tar, middle, || at("private/first").exists(), act);
        match (old, attack) {
            (true, _) => {
                done.unwrap();
                assert_eq!(mode(&at("app")), "700");
                assert!(at("private/key").exists() && at("private/in/key").exists());
            }
            (false, _) => {
                let error = done.unwrap_err();
                assert!(error.contains("hers/private: somebody has put something else"), "{attack}: {error}");
                assert!(!at("private/key").exists() && !at("private/in/key").exists(), "{attack}");
                let closed = if attack == "rename" { "app" } else { "elsewhere" };
                assert_eq!(mode(&at(closed)), "700", "{attack}");
            }
        }
        assert!(at("app/f").exists(), "{attack}");
    }
}

/// The results are the same except for the mode of a directory that occurs twice: in another user's directory a later
/// entry does not open it.
#[test]
fn odd_archives_are_the_same_in_a_users_directory() {
    for seed in 0..400 {
        let dir = scratch();
        let odd = archive(seed, false);
        let (ours, theirs) = (dir.path().join("ours"), dir.path().join("theirs"));
        std::fs::create_dir(&ours).unwrap();
        std::fs::create_dir(&theirs).unwrap();
        users_directory(&ours);
        unpack_in(ours.clone(), odd.tar.clone()).unwrap_or_else(|e| panic!("{seed} {e}\n{}", odd.story));
        unpack_by_tar(&odd.tar, &theirs, &["--no-same-owner", "--no-same-permissions"]);
        compare(&tree(&ours, &odd, false, 0o700), &tree(&theirs, &odd, false, 0o700), &odd.story);
    }
}

#[test]
fn odd_archives_are_what_tar_makes_of_them() {
    for seed in 0..830 {
        check(seed, scratch().path());
    }
}

/// A directory that the archive closes to others is closed from its creation on, also where the archive ends early or
/// another entry fails.
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
    let unpacker = std::thread::spawn(move || unpack_from(read, root));
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

/// However long its path is, the first failure leaves room for others and keeps its reason.
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
