use super::*;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt, chown, symlink};
use wardian_needs::needs;

fn mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

/// A directory of root's.
fn ground() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    mode(dir.path(), 0o755);
    dir
}

/// A directory that another user owns.
fn theirs(dir: &Path, name: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::create_dir(&path).unwrap();
    chown(&path, Some(65534), Some(65534)).unwrap();
    path
}

#[test]
fn a_directory_that_others_may_change_is_refused() {
    needs!(Root);
    let base = ground();
    let user = theirs(base.path(), "user");
    let below = user.join("roots");
    std::fs::create_dir(&below).unwrap();
    for path in [&user, &below] {
        let error = Directory::open(path).unwrap_err();
        assert!(matches!(&error, Error::Owner { path, uid: 65534 } if *path == user), "{error}");
        assert!(error.to_string().contains("belongs to user 65534"), "{error}");
    }
    assert!(matches!(Directory::make(&user.join("new"), 0o700), Err(Error::Owner { .. })));
    assert!(!user.join("new").exists());
    assert!(matches!(Directory::open_shared(&below), Err(Error::Owner { .. })));

    let open = base.path().join("open");
    std::fs::create_dir_all(open.join("below")).unwrap();
    for (bits, shared) in [(0o775, false), (0o757, false), (0o1777, true)] {
        mode(&open, bits);
        assert!(matches!(Directory::open(&open), Err(Error::Writable { .. })), "{bits:o}");
        assert_eq!(Directory::open_shared(&open).is_ok(), shared, "{bits:o}");
        assert_eq!(Directory::open(&open.join("below")).is_ok(), shared, "{bits:o}");
    }
    assert!(!Directory::open_shared(&open).unwrap().is_trusted());
    // As the root of a new tmpfs is.
    assert!(!Directory::make(&open, 0o700).unwrap().1);
    assert_eq!(std::fs::metadata(&open).unwrap().mode() & 0o7777, 0o1755);
    Directory::open(&open).unwrap();
    mode(&open, 0o1777);
    // Sticky as /tmp is, but another user's: a directory's owner may rename everything in it.
    chown(&open, Some(65534), None).unwrap();
    assert!(matches!(Directory::open(&open.join("below")), Err(Error::Owner { .. })));
}

#[test]
fn a_way_back_does_not_forget_whose_directory_it_was() {
    needs!(Root);
    let base = ground();
    let user = theirs(base.path(), "user");
    std::fs::create_dir_all(user.join("a/b")).unwrap();
    let error = Directory::open(&user.join("a/b/../../a")).unwrap_err();
    assert!(matches!(error, Error::Owner { .. }), "{error}");
    // `..` leads to the directory's real parent.
    assert_eq!(Directory::open(&user.join("..")).unwrap().path(), base.path().canonicalize().unwrap());
}

#[test]
fn roots_own_links_are_followed_and_no_others() {
    needs!(Root);
    let base = ground();
    let real = base.path().join("real");
    let (dir, made) = Directory::make(&real.join("deep/er"), 0o711).unwrap();
    assert!(made && dir.is_trusted());
    assert!(!Directory::make(&real.join("deep/er"), 0o711).unwrap().1);
    symlink("real/../real/deep", base.path().join("link")).unwrap();
    let dir = Directory::open(&base.path().join("link/er")).unwrap();
    assert_eq!(dir.path(), real.join("deep/er").canonicalize().unwrap());
    symlink("loop", base.path().join("loop")).unwrap();
    assert!(Directory::open(&base.path().join("loop")).is_err());

    let open = base.path().join("tmp");
    std::fs::create_dir(&open).unwrap();
    mode(&open, 0o1777);
    symlink(&real, open.join("planted")).unwrap();
    std::os::unix::fs::lchown(open.join("planted"), Some(65534), None).unwrap();
    assert!(matches!(Directory::open(&open.join("planted")), Err(Error::Owner { .. })));
    // Root's ownership of a link does not count where everybody may rename.
    let user = theirs(base.path(), "user");
    symlink(&real, user.join("moved")).unwrap();
    // He can also move a link into /tmp; in a directory of root's there it would be safe from him.
    let shared = base.path().join("shared");
    std::fs::create_dir_all(shared.join("own")).unwrap();
    mode(&shared, 0o1777);
    symlink(&real, shared.join("moved")).unwrap();
    assert!(matches!(reach(&shared.join("moved")), Err(Error::Writable { .. })));
    symlink(&real, shared.join("own/link")).unwrap();
    reach(&shared.join("own/link")).unwrap();
    assert!(matches!(Directory::open(&user.join("moved")), Err(Error::Owner { .. })));
}

#[test]
fn only_plain_files_are_read_and_nothing_waits() {
    needs!(Root);
    let base = ground();
    let dir = Directory::open(base.path()).unwrap();
    dir.write("good", b"text").unwrap();
    assert_eq!(dir.read("good", 4).unwrap(), b"text");
    assert!(dir.read("good", 3).is_err());
    assert_eq!(std::fs::metadata(base.path().join("good")).unwrap().mode() & 0o777, 0o600);
    rustix::fs::mkfifoat(rustix::fs::CWD, base.path().join("fifo"), Mode::RWXU).unwrap();
    symlink("good", base.path().join("link")).unwrap();
    for name in ["fifo", "link", "."] {
        assert!(dir.read(name, 9).is_err(), "{name}");
    }
    assert!(read(&base.path().join("fifo"), 9).is_err());
    assert_eq!(read(&base.path().join("link"), 9).unwrap(), b"text");
    dir.write("theirs", b"{}").unwrap();
    chown(base.path().join("theirs"), Some(65534), None).unwrap();
    assert!(matches!(dir.read("theirs", 9), Err(Error::Owner { .. })));
    assert!(dir.read("missing", 9).unwrap_err().is_missing());
    // A link in place of a file is replaced, in place of a directory refused.
    dir.write("link", b"new").unwrap();
    assert_eq!(dir.read("good", 9).unwrap(), b"text");
    symlink("/etc", base.path().join("private")).unwrap();
    assert!(dir.private("private").is_err() && dir.child("private").is_err());
    for name in ["private", "fifo", "missing"] {
        dir.remove(name).unwrap();
    }
    std::fs::create_dir_all(base.path().join("tree/deep")).unwrap();
    symlink(base.path().join("good"), base.path().join("tree/deep/link")).unwrap();
    dir.remove("tree").unwrap();
    let names: Vec<_> = dir.names().unwrap();
    assert_eq!(names, ["good", "link", "theirs"]);
}

#[test]
fn a_result_overwrites_nothing_of_others() {
    needs!(Root);
    let base = ground();
    let secret = base.path().join("secret");
    std::fs::write(&secret, "root's").unwrap();
    let user = theirs(base.path(), "user");
    let tmp = base.path().join("tmp");
    std::fs::create_dir(&tmp).unwrap();
    mode(&tmp, 0o1777);
    for dir in [&user, &tmp] {
        symlink(&secret, dir.join("link")).unwrap();
        std::fs::hard_link(&secret, dir.join("hard")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, dir.join("fifo"), Mode::RWXU).unwrap();
        std::fs::write(dir.join("theirs"), "x").unwrap();
        chown(dir.join("theirs"), Some(65534), None).unwrap();
        for name in ["link", "hard", "fifo", "theirs"] {
            assert!(create(&dir.join(name)).is_err(), "{name}");
        }
        for text in ["first", "2nd"] {
            create(&dir.join("new")).unwrap().write_all(text.as_bytes()).unwrap();
        }
        assert_eq!(std::fs::read_to_string(dir.join("new")).unwrap(), "2nd");
        std::fs::remove_file(dir.join("hard")).unwrap();
    }
    symlink(base.path(), user.join("dir")).unwrap();
    assert!(create(&user.join("dir/secret")).is_err());
    assert_eq!(std::fs::read_to_string(&secret).unwrap(), "root's");
    // Where nobody else may write, the file is truncated as usual.
    create(&secret).unwrap();
    assert_eq!(std::fs::read_to_string(&secret).unwrap(), "");
    create(Path::new("/dev/null")).unwrap();
    assert!(create(Path::new("/")).is_err());
}

#[test]
fn a_removal_does_not_enter_a_mount() {
    needs!(Root);
    let base = ground();
    let (tree, disk) = (base.path().join("tree"), base.path().join("tree/deep/disk"));
    std::fs::create_dir_all(&disk).unwrap();
    rustix::mount::mount("disk", &disk, "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
    std::fs::write(disk.join("precious"), "").unwrap();
    let dir = Directory::open(base.path()).unwrap();
    let removed = [dir.remove("tree"), Directory::open(&tree.join("deep")).unwrap().remove("disk")];
    let kept = disk.join("precious").exists();
    rustix::mount::unmount(&disk, rustix::mount::UnmountFlags::empty()).unwrap();
    assert!(
        kept && removed.iter().all(|r| matches!(r, Err(Error::Mounted { path }) if *path == disk)),
        "{removed:?}"
    );
    dir.remove("tree").unwrap();
    assert!(!tree.exists());
}

/// openat2(2) answers EAGAIN when a rename anywhere comes between a lookup and its `..`.
#[test]
fn renames_elsewhere_do_not_keep_a_path_from_being_opened() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
    std::fs::write(dir.path().join("file"), "").unwrap();
    std::fs::create_dir(dir.path().join("one")).unwrap();
    let root = std::fs::File::open(dir.path()).unwrap();
    let ended = std::sync::atomic::AtomicBool::new(false);
    let moved = |from: &str, to: &str| std::fs::rename(dir.path().join(from), dir.path().join(to)).unwrap();
    let path = "a/b/../../".repeat(2) + "file";
    std::thread::scope(|scope| {
        let renames = || {
            while !ended.load(std::sync::atomic::Ordering::Relaxed) {
                moved("one", "two");
                moved("two", "one");
            }
        };
        scope.spawn(renames);
        let opened = (0..20_000).map(|_| open(&root, path.as_str(), OFlags::RDONLY, ResolveFlags::BENEATH));
        let failed = opened.filter_map(std::result::Result::err).next();
        ended.store(true, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(failed, None);
    });
}
