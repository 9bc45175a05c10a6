use super::*;
use crate::Error;
use std::fs;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use wardian_needs::needs;

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

use tar::EntryType::{Char, Directory, Fifo, Link, Regular, Symlink};

fn open(path: &Path) -> Source {
    Source::open(path, false).unwrap()
}

fn into(dir: &Path, tar: &[u8], name: Name<'_>) -> Result<Taken, crate::Error> {
    let dir = fs::File::open(dir).unwrap();
    unpack(tar, dir.as_fd(), name)
}

/// A tar being written. Once it contains `mark`, `act` is called.
struct Meanwhile<'a, F: FnMut()> {
    tar: Vec<u8>,
    mark: &'a str,
    act: Option<F>,
}

impl<F: FnMut()> std::io::Write for Meanwhile<'_, F> {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        self.tar.extend_from_slice(data);
        if data.windows(self.mark.len()).any(|part| part == self.mark.as_bytes())
            && let Some(mut act) = self.act.take()
        {
            act();
        }
        Ok(data.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn what_becomes_shorter_or_goes_while_it_is_packed_is_named() {
    let base = tempfile::tempdir().unwrap();
    let (source, to) = (base.path().join("source"), base.path().join("to"));
    fs::create_dir_all(source.join("gone")).unwrap();
    fs::create_dir(&to).unwrap();
    let data = vec![b'x'; 3 << 20];
    fs::write(source.join("shorter"), &data).unwrap();
    fs::write(source.join("whole"), "text").unwrap();
    let cut =
        || fs::File::options().write(true).open(source.join("shorter")).unwrap().set_len(1 << 20).unwrap();
    let mut tar = Meanwhile { tar: Vec::new(), mark: "a/shorter", act: Some(cut) };
    let packed = pack(&open(&source), Path::new("a"), &mut tar).unwrap();
    let [(path, why)] = &packed.unread[..] else { panic!("{packed:?}") };
    assert_eq!(*path, source.join("shorter"));
    assert!(why.contains("it became shorter while it was read: zeros"), "{why}");
    into(&to, &tar.tar, Name::One(b"a", b"b")).unwrap();
    assert_eq!(fs::read_to_string(to.join("b/whole")).unwrap(), "text");
    let copied = fs::read(to.join("b/shorter")).unwrap();
    assert_eq!(copied.len(), data.len());
    assert!(copied[..1 << 20] == data[..1 << 20] && copied[2 << 20..].iter().all(|byte| *byte == 0));

    let remove = || fs::remove_dir(source.join("gone")).unwrap();
    let mut tar = Meanwhile { tar: Vec::new(), mark: "a/gone", act: Some(remove) };
    let packed = pack(&open(&source), Path::new("a"), &mut tar).unwrap();
    assert_eq!(packed.unread.len(), 1, "{packed:?}");
    assert!(packed.unread[0].0 == source.join("gone") && packed.unread[0].1.contains("No such file"));
    into(&to, &tar.tar, Name::One(b"a", b"c")).unwrap();
    assert_eq!(fs::read(to.join("c/shorter")).unwrap().len(), 1 << 20);
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
    let packed = pack(&open(&source), Path::new("a"), &mut tar).unwrap();
    assert_eq!((packed.entries, packed.bytes), (5, 4));
    assert_eq!(packed.left_out, [(source.join("socket"), LeftOut::Special)]);

    let to = base.path().join("to");
    fs::create_dir(&to).unwrap();
    let taken = into(&to, &tar, Name::One(b"a", b"b")).unwrap();
    assert_eq!(taken, Taken { entries: 5, bytes: 4, left_out: 0 });
    assert_eq!(fs::read_to_string(to.join("b/link")).unwrap(), "text");
    assert_eq!(fs::metadata(to.join("b/sub/file")).unwrap().permissions().mode() & 0o7777, 0o750);
    assert!(to.join("b").join("x".repeat(200)).is_file());

    let mut contents = Vec::new();
    pack(&Source::open(&source.join("."), true).unwrap(), Path::new(""), &mut contents).unwrap();
    into(&to, &contents, Name::Contents).unwrap();
    assert_eq!(fs::read_to_string(to.join("sub/file")).unwrap(), "text");
}

#[test]
fn what_cannot_be_packed_is_named() {
    let base = tempfile::tempdir().unwrap();
    let error = Source::open(&base.path().join("nope"), false).unwrap_err().to_string();
    assert!(error.contains("nope") && error.contains("No such file"), "{error}");
    fs::write(base.path().join("gone"), "").unwrap();
    let source = open(&base.path().join("gone"));
    fs::remove_file(base.path().join("gone")).unwrap();
    let mut tar = Vec::new();
    let error = pack(&source, Path::new("gone"), &mut tar).unwrap_err().to_string();
    assert!(error.contains("gone") && error.contains("No such file"), "{error}");
    // There is no end marker.
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
    // An existing symlink is not followed either.
    into(&to, &tar_of(&[("mine/f", Regular, "x")]), Name::Contents).unwrap_err();
    into(&to, &tar_of(&[("mine", Directory, "")]), Name::Contents).unwrap_err();
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    // A symlink in the place of a file is replaced, not followed.
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

/// Writes to a vector, and calls `then` as soon as `until` has been written.
struct Watching<F: FnMut()> {
    tar: Vec<u8>,
    until: &'static [u8],
    then: Option<F>,
}

impl<F: FnMut()> std::io::Write for Watching<F> {
    fn write(&mut self, from: &[u8]) -> std::io::Result<usize> {
        self.tar.extend_from_slice(from);
        if self.tar.windows(self.until.len()).any(|bytes| bytes == self.until)
            && let Some(mut then) = self.then.take()
        {
            then();
        }
        Ok(from.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Reads a tar block by block, and calls `then` before a certain block.
struct Feeding<'a, F: FnMut()> {
    tar: &'a [u8],
    blocks: usize,
    then: Option<F>,
}

impl<F: FnMut()> std::io::Read for Feeding<'_, F> {
    fn read(&mut self, to: &mut [u8]) -> std::io::Result<usize> {
        if self.blocks == 0
            && let Some(mut then) = self.then.take()
        {
            then();
        }
        self.blocks = self.blocks.saturating_sub(1);
        let n = to.len().min(512).min(self.tar.len());
        to[..n].copy_from_slice(&self.tar[..n]);
        self.tar = &self.tar[n..];
        Ok(n)
    }
}

fn holds(tar: &[u8], text: &[u8]) -> bool {
    tar.windows(text.len()).any(|bytes| bytes == text)
}

#[test]
fn a_directory_that_becomes_a_link_while_it_is_packed_leads_nowhere() {
    let base = tempfile::tempdir().unwrap();
    let (source, secrets) = (base.path().join("source"), base.path().join("secrets"));
    for target in ["absolute", "relative"] {
        let _ = fs::remove_dir_all(&source);
        fs::create_dir_all(source.join("victim/inner")).unwrap();
        fs::create_dir_all(secrets.join("inner")).unwrap();
        fs::write(secrets.join("inner/key"), "root's alone").unwrap();
        let swap = || {
            fs::rename(source.join("victim"), source.join("away")).unwrap();
            let to = if target == "absolute" { secrets.as_path() } else { Path::new("../secrets") };
            symlink(to, source.join("victim")).unwrap();
        };
        let mut to = Watching { tar: Vec::new(), until: b"a/victim", then: Some(swap) };
        let error = pack(&open(&source), Path::new("a"), &mut to).unwrap_err();
        assert!(matches!(error, Error::UnsafePath { .. }), "{error}");
        assert!(to.then.is_none() && !holds(&to.tar, b"root's alone"));
        // There is no end marker, which would be two blocks of zeros.
        assert!(to.tar.iter().rev().take(1024).any(|byte| *byte != 0));
    }
}

#[test]
fn what_takes_the_place_of_a_directory_is_not_unpacked_into() {
    let tar = tar_of(&[("a", Directory, ""), ("a/b", Directory, ""), ("a/b/f", Regular, "private")]);
    for (blocks, path) in [(1, "a"), (2, "a"), (2, "a/b")] {
        for instead in ["link", "directory", "nothing"] {
            let base = tempfile::tempdir().unwrap();
            let (to, outside) = (base.path().join("to"), base.path().join("outside"));
            fs::create_dir_all(outside.join("b")).unwrap();
            fs::create_dir(&to).unwrap();
            let swap = || {
                fs::rename(to.join(path), base.path().join("away")).unwrap();
                match instead {
                    "link" => symlink(&outside, to.join(path)).unwrap(),
                    "directory" => fs::create_dir(to.join(path)).unwrap(),
                    _ => {}
                }
            };
            let from = Feeding { tar: &tar, blocks, then: Some(swap) };
            let dir = fs::File::open(&to).unwrap();
            let error = unpack(from, dir.as_fd(), Name::Contents).unwrap_err();
            assert!(matches!(error, Error::UnsafePath { .. } | Error::Write { .. }), "{error}");
            let found = |dir: &Path| dir.join("f").exists() || dir.join("b/f").exists();
            assert!(
                !found(&outside) && !found(&to.join("a")) && !found(&to.join("a/b")),
                "{blocks} {path} {instead}"
            );
        }
    }
}

/// The kernel may give the inode of a directory that was removed to the next one.
#[test]
fn another_users_directory_with_the_same_inode_is_not_filled() {
    needs!(Root);
    let tar = tar_of(&[("a", Directory, ""), ("b", Directory, ""), ("a/f", Regular, "private")]);
    let to = tempfile::tempdir().unwrap();
    let a = to.path().join("a");
    let swap = || {
        let inode = fs::metadata(&a).unwrap().ino();
        fs::remove_dir(&a).unwrap();
        for n in 0..100 {
            fs::create_dir(&a).unwrap();
            if fs::metadata(&a).unwrap().ino() == inode {
                break;
            }
            fs::rename(&a, to.path().join(format!("other{n}"))).unwrap();
        }
        let _ = fs::create_dir(&a);
        std::os::unix::fs::chown(&a, Some(65534), None).unwrap();
    };
    let dir = fs::File::open(to.path()).unwrap();
    let from = Feeding { tar: &tar, blocks: 2, then: Some(swap) };
    let error = unpack(from, dir.as_fd(), Name::Contents).unwrap_err();
    assert!(matches!(error, Error::UnsafePath { .. }) && !a.join("f").exists(), "{error}");
}

#[test]
fn a_file_is_replaced_and_not_written_to() {
    let base = tempfile::tempdir().unwrap();
    let (to, other) = (base.path().join("to"), base.path().join("other"));
    fs::create_dir(&to).unwrap();
    fs::write(&other, "other").unwrap();
    fs::hard_link(&other, to.join("hard")).unwrap();
    let fifo = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, to.join("fifo"), fifo, rustix::fs::Mode::RUSR, 0).unwrap();
    into(&to, &tar_of(&[("hard", Regular, "new")]), Name::Contents).unwrap();
    // A process may be waiting at a FIFO, so only another FIFO replaces it.
    let error = into(&to, &tar_of(&[("fifo", Regular, "new")]), Name::Contents).unwrap_err();
    assert!(matches!(error, Error::Special { what: "a FIFO", .. }), "{error}");
    into(&to, &tar_of(&[("fifo", Fifo, "")]), Name::Contents).unwrap();
    assert_eq!(fs::read_to_string(&other).unwrap(), "other");
    assert_eq!(fs::read_to_string(to.join("hard")).unwrap(), "new");
    let left = fs::symlink_metadata(to.join("fifo")).unwrap().mode();
    assert_eq!(rustix::fs::FileType::from_raw_mode(left), fifo);
}

/// A user who may write to a directory can replace a file that was unpacked there.
#[test]
fn a_hard_link_leads_to_nothing_but_what_was_unpacked() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("before"), "others").unwrap();
    let attack = [("a", Regular, ""), ("b", Link, "a"), ("c", Link, "before")];
    let error = into(dir.path(), &tar_of(&attack), Name::Contents).unwrap_err().to_string();
    assert!(error.contains("was not made by this copy"), "{error}");
    assert!(dir.path().join("b").exists() && !dir.path().join("c").exists());
    let links =
        [("s", Symlink, "x"), ("t", Link, "s"), ("f", Fifo, ""), ("g", Link, "f"), ("before", Link, "a")];
    into(dir.path(), &tar_of(&[&attack[..2], &links[..]].concat()), Name::Contents).unwrap();
    assert!(
        dir.path().join("t").is_symlink() && std::fs::read(dir.path().join("before")).unwrap().is_empty()
    );
}

/// A user's directory may have a default ACL, with which the kernel ignores the umask, or a setgid bit. Neither gives
/// the user write access to a second name in a directory of root's.
#[test]
fn what_a_users_directory_hands_down_opens_no_second_name() {
    needs!(Root);
    // Version 2; the owner, the user 65534, the group, the mask and the others, each with rights and an id (posix_acl_xattr.h).
    let mut list = 2_u32.to_le_bytes().to_vec();
    for (tag, id) in [(1_u16, u32::MAX), (2, 65534), (4, u32::MAX), (16, u32::MAX), (32, u32::MAX)] {
        list.extend(tag.to_le_bytes().into_iter().chain(7_u16.to_le_bytes()).chain(id.to_le_bytes()));
    }
    let tar = tar_of(&[
        ("hers/x", Regular, ""),
        ("hers/fifo", Fifo, ""),
        ("hers/implied/x", Regular, ""),
        ("hers/d", Directory, ""),
        ("hers/d/x", Regular, ""),
        ("roots", Directory, ""),
        ("roots/y", Regular, ""),
        ("roots/z", Link, "roots/y"),
        ("roots/conf", Link, "hers/x"),
    ]);
    for (by_list, umask) in [(true, 0o022), (true, 0o077), (true, 0o002), (false, 0o002), (false, 0o022)] {
        let base = tempfile::tempdir().unwrap();
        let (hers, roots) = (base.path().join("hers"), base.path().join("roots"));
        fs::create_dir(&hers).unwrap();
        std::os::unix::fs::chown(&hers, Some(65534), Some(65534)).unwrap();
        fs::set_permissions(&hers, fs::Permissions::from_mode(if by_list { 0o755 } else { 0o2755 })).unwrap();
        let flags = rustix::fs::XattrFlags::empty();
        if by_list {
            match rustix::fs::setxattr(&hers, "system.posix_acl_default", &list, flags) {
                Err(rustix::io::Errno::OPNOTSUPP) => continue,
                other => other.unwrap(),
            }
        }
        let unpacked = std::thread::scope(|scope| {
            let unpack = || {
                // Unshares the umask of this thread.
                wardian_sys::namespace::own_mounts().unwrap();
                rustix::process::umask(rustix::fs::Mode::from_raw_mode(umask));
                into(base.path(), &tar, Name::Contents)
            };
            scope.spawn(unpack).join().unwrap()
        });
        for name in ["x", "fifo", "implied/x", "d/x"] {
            let mode = fs::metadata(hers.join(name)).unwrap().mode() & 0o777;
            assert_eq!(format!("{mode:o}"), format!("{:o}", 0o777 & !umask), "{by_list} {umask:o} {name}");
        }
        assert_eq!(fs::metadata(hers.join("implied")).unwrap().mode() & 0o777 & (0o022 | umask), 0);
        assert_eq!(fs::metadata(roots.join("z")).unwrap().nlink(), 2, "{by_list} {umask:o}");
        if umask == 0o002 {
            let error = unpacked.unwrap_err().to_string();
            assert!(error.contains("may write to it") && !roots.join("conf").exists(), "{error}");
        } else {
            unpacked.unwrap();
            assert_eq!(fs::metadata(roots.join("conf")).unwrap().nlink(), 2, "{by_list} {umask:o}");
        }
    }
}

/// The number of files is up to the container.
#[test]
fn after_very_many_files_a_hard_link_leads_to_nothing_else_either() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("before"), "own").unwrap();
    let names: Vec<_> = (0..100_100).map(|n| n.to_string()).collect();
    let mut entries: Vec<_> = names.iter().map(|name| (&**name, Symlink, "x")).collect();
    entries.extend([("a", Regular, ""), ("b", Link, "a"), ("c", Link, "before")]);
    let error = into(dir.path(), &tar_of(&entries), Name::Contents).unwrap_err().to_string();
    assert!(error.contains("was not made by this copy"), "{error}");
    assert!(dir.path().join("b").exists() && !dir.path().join("c").exists());
}

#[test]
fn a_fifo_is_packed_and_not_read() {
    let base = tempfile::tempdir().unwrap();
    let path = base.path().join("fifo");
    let fifo = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, &path, fifo, rustix::fs::Mode::RUSR, 0).unwrap();
    for source in [path.as_path(), base.path()] {
        let mut tar = Vec::new();
        pack(&open(source), Path::new("x"), &mut tar).unwrap();
        let mut archive = tar::Archive::new(&*tar);
        let last = archive.entries().unwrap().map(Result::unwrap).last().unwrap();
        assert_eq!(last.header().entry_type(), tar::EntryType::Fifo);
    }
}

/// Makes a chain of directories that is longer than any path, with a file beside each.
fn chain(at: &Path, depth: usize) {
    use rustix::fs::{Mode, OFlags, mkdirat, openat};
    let flags = OFlags::DIRECTORY | OFlags::RDONLY;
    let mut dir = rustix::fs::open(at, flags, Mode::empty()).unwrap();
    for _ in 0..depth {
        mkdirat(&dir, "d", Mode::RWXU).unwrap();
        openat(&dir, "f", OFlags::CREATE | OFlags::WRONLY, Mode::RUSR).unwrap();
        dir = openat(&dir, "d", flags, Mode::empty()).unwrap();
    }
}

#[test]
fn deep_trees_take_few_descriptors() {
    struct Counting<'a>(&'a Path, usize, Vec<u8>);
    impl std::io::Write for Counting<'_> {
        fn write(&mut self, from: &[u8]) -> std::io::Result<usize> {
            // Other tests in this process have open descriptors too.
            let links =
                fs::read_dir("/proc/self/fd").unwrap().flatten().flat_map(|fd| fs::read_link(fd.path()));
            self.1 = self.1.max(links.filter(|link| link.starts_with(self.0)).count());
            self.2.extend_from_slice(from);
            Ok(from.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    // On a tmpfs, because this many directories are slow on a disk.
    let base = tempfile::tempdir_in("/dev/shm").unwrap();
    chain(base.path(), 300);
    let mut to = Counting(base.path(), 0, Vec::new());
    assert_eq!(pack(&open(base.path()), Path::new("a"), &mut to).unwrap().entries, 601);
    assert!(to.1 <= 4, "{}", to.1);
    let out = tempfile::tempdir_in("/dev/shm").unwrap();
    assert_eq!(into(out.path(), &to.2, Name::One(b"a", b"b")).unwrap().entries, 601);
    // No path leads to the end of this one, and no program could name it.
    let deep = base.path().join("deep");
    fs::create_dir(&deep).unwrap();
    chain(&deep, 10_000);
    let error = pack(&open(base.path()), Path::new("a"), std::io::sink()).unwrap_err();
    let removed = std::process::Command::new("rm").arg("-rf").arg(&deep).status().unwrap();
    // The error shows the beginning of the path.
    let is_named = error.to_string().starts_with("the length of the path \"");
    assert!(matches!(error, Error::Limit { .. }) && is_named && removed.success(), "{error}");
}

#[test]
fn mounts_below_are_left_out() {
    needs!(Root);
    struct Mounted(std::path::PathBuf);
    impl Drop for Mounted {
        fn drop(&mut self) {
            rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH).unwrap();
        }
    }
    let base = tempfile::tempdir().unwrap();
    let (dir, file) = (base.path().join("x/dir"), base.path().join("x/file"));
    fs::create_dir_all(&dir).unwrap();
    fs::write(&file, "below").unwrap();
    let other = base.path().join("other");
    fs::write(&other, "another file").unwrap();
    rustix::mount::mount("none", &dir, "tmpfs", rustix::mount::MountFlags::empty(), c"size=64k").unwrap();
    let _dir = Mounted(dir.clone());
    fs::write(dir.join("in"), "inside of it").unwrap();
    rustix::mount::mount_bind(&other, &file).unwrap();
    let _file = Mounted(file.clone());
    let mut tar = Vec::new();
    let mut packed = pack(&open(&base.path().join("x")), Path::new("x"), &mut tar).unwrap();
    packed.left_out.sort();
    assert_eq!(packed.left_out, [(dir.clone(), LeftOut::Mount), (file.clone(), LeftOut::Mount)]);
    assert!(holds(&tar, b"x/dir") && !holds(&tar, b"inside of it") && !holds(&tar, b"another file"));
    // The source itself may be a mount point.
    for (path, text) in [(&dir, &b"inside of it"[..]), (&file, b"another file")] {
        let mut tar = Vec::new();
        assert_eq!(pack(&open(path), Path::new("x"), &mut tar).unwrap().left_out, []);
        assert!(holds(&tar, text));
    }
}

#[test]
fn links_of_others_lead_to_no_directory() {
    needs!(Root);
    let base = tempfile::tempdir().unwrap();
    let real = base.path().join("real");
    fs::create_dir(&real).unwrap();
    fs::write(real.join("f"), "").unwrap();
    for (name, to, owner) in
        [("mine", "real", 0), ("theirs", "real", 65534), ("round", "theirs", 0), ("loop", "loop", 0)]
    {
        symlink(to, base.path().join(name)).unwrap();
        std::os::unix::fs::lchown(base.path().join(name), Some(owner), None).unwrap();
    }
    let at = |path: &str| directory(&base.path().join(path));
    for good in ["real", "mine", "mine/../real/.", "real/"] {
        assert!(at(good).unwrap().is_some(), "{good}");
    }
    for none in ["nope", "real/f", "mine/f", "real/f/x"] {
        assert!(at(none).unwrap().is_none(), "{none}");
    }
    for bad in ["theirs", "theirs/", "round", "theirs/../real", "theirs/new"] {
        let error = at(bad).unwrap_err();
        assert!(matches!(error, Error::UnsafePath { .. }), "{bad}: {error}");
    }
    assert!(matches!(at("loop"), Err(Error::Io { .. })));
    assert!(Source::open(&base.path().join("theirs/f"), false).is_err());
    assert!(Source::open(&base.path().join("theirs"), true).is_err());
    // The link itself can be copied.
    let mut tar = Vec::new();
    pack(&open(&base.path().join("theirs")), Path::new("x"), &mut tar).unwrap();
    let kind = tar::Archive::new(&*tar).entries().unwrap().next().unwrap().unwrap().header().entry_type();
    assert_eq!(kind, tar::EntryType::Symlink);
}

fn blocks(path: &Path) -> u64 {
    fs::metadata(path).unwrap().blocks() * 512
}

/// The data segments of a file.
type Data<'a> = &'a [(u64, &'a [u8])];

#[test]
fn holes_stay_holes() {
    const MIB: u64 = 1 << 20;
    let base = tempfile::tempdir().unwrap();
    let file = |name: &str, size: u64, data: &[(u64, &[u8])]| {
        let file = fs::File::create(base.path().join(name)).unwrap();
        file.set_len(size).unwrap();
        data.iter().for_each(|(at, bytes)| file.write_all_at(bytes, *at).unwrap());
    };
    let many: Vec<(u64, &[u8])> = (0..60).map(|n| (n * MIB + 12_345, &b"piece"[..])).collect();
    // Files of holes only, with data in the middle, at both ends, in pieces, and without holes.
    let files: [(&str, u64, Data<'_>); 6] = [
        ("empty", 2048 * MIB, &[]),
        ("middle", 512 * MIB + 1, &[(100 * MIB + 3, b"middle")]),
        ("ends", 512 * MIB + 7, &[(0, b"begin"), (512 * MIB + 4, b"end")]),
        ("pieces", 64 * MIB, &many),
        ("dense", 5, &[(0, b"dense")]),
        ("none", 0, &[]),
    ];
    files.iter().for_each(|(name, size, data)| file(name, *size, data));
    let mut tar = Vec::new();
    let packed = pack(&open(base.path()), Path::new("a"), &mut tar).unwrap();
    assert_eq!(packed.bytes, files.iter().map(|(_, size, _)| size).sum::<u64>());
    assert!((tar.len() as u64) < MIB, "{}", tar.len());
    let check = |dir: &Path| {
        for (name, size, data) in files {
            let file = fs::File::open(dir.join(name)).unwrap();
            assert_eq!(file.metadata().unwrap().len(), size, "{name}");
            assert!(blocks(&dir.join(name)) < MIB, "{name}");
            for (at, bytes) in data {
                let mut read = vec![0; bytes.len()];
                file.read_exact_at(&mut read, *at).unwrap();
                assert_eq!(read, *bytes, "{name} {at}");
            }
        }
    };
    let out = tempfile::tempdir().unwrap();
    into(out.path(), &tar, Name::One(b"a", b"b")).unwrap();
    check(&out.path().join("b"));
    // Another reader: that of the helper in a container.
    let mut archive = tar::Archive::new(&*tar);
    for entry in archive.entries().unwrap().map(Result::unwrap) {
        let name = entry.path().unwrap().file_name().unwrap().to_owned();
        let Some((_, size, _)) = files.iter().find(|(other, size, _)| name == *other && *size <= 64 * MIB)
        else {
            continue;
        };
        let (mut entry, mut theirs) = (entry, Vec::new());
        std::io::Read::read_to_end(&mut entry, &mut theirs).unwrap();
        assert_eq!(theirs.len() as u64, *size);
        assert!(theirs == fs::read(base.path().join(&name)).unwrap(), "{name:?}");
    }
}

#[test]
fn zeros_in_a_plain_tar_become_holes() {
    let base = tempfile::tempdir().unwrap();
    let mut text = vec![0; 3 << 20];
    text[0] = 1;
    text[10_000..10_100].fill(2);
    text[1 << 20] = 3;
    let plain = |name: &str, bytes: &[u8]| {
        let mut builder = tar::Builder::new(Vec::new());
        builder.append_data(&mut header(Regular, bytes.len()), name, bytes).unwrap();
        builder.into_inner().unwrap()
    };
    for (name, bytes) in [
        ("some", &text[..]),
        ("tail", &text[..2 << 20]),
        ("odd", &text[..(2 << 20) + 1]),
        ("all", &text[2 << 20..]),
    ] {
        // In pieces of a block, and in large ones.
        let tar = plain(name, bytes);
        let dir = fs::File::open(base.path()).unwrap();
        for small in [true, false] {
            if small {
                let from = Feeding { tar: &tar, blocks: 0, then: None::<fn()> };
                unpack(from, dir.as_fd(), Name::Contents).unwrap();
            } else {
                into(base.path(), &tar, Name::Contents).unwrap();
            }
            assert!(fs::read(base.path().join(name)).unwrap() == bytes, "{name}");
            assert!(
                blocks(&base.path().join(name)) <= 64 << 10,
                "{name} {}",
                blocks(&base.path().join(name))
            );
        }
    }
}

/// A user plants symlinks and renames entries while root copies the user's directory into a container: only the
/// user's own files get there.
#[test]
fn a_user_who_swaps_while_it_is_packed_gains_no_file() {
    let base = tempfile::tempdir().unwrap();
    let (source, secrets) = (base.path().join("source"), base.path().join("secrets"));
    fs::create_dir_all(source.join("w")).unwrap();
    fs::create_dir(&secrets).unwrap();
    for (dir, text) in [(source.join("w"), "harmless"), (secrets.clone(), "root's alone")] {
        fs::write(dir.join("f"), text).unwrap();
    }
    fs::write(source.join("g"), "harmless").unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                for (name, to) in [("w", secrets.clone()), ("g", secrets.join("f"))] {
                    let path = source.join(name);
                    let _ = fs::rename(&path, source.join("old"));
                    let _ = symlink(to, &path);
                    let _ = fs::remove_file(&path);
                    let _ = fs::rename(source.join("old"), &path);
                }
            }
        });
        for _ in 0..3000 {
            let mut tar = Vec::new();
            let _ = pack(&open(&source), Path::new("a"), &mut tar);
            assert!(!holds(&tar, b"root's alone"));
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}
