//! The store against this host's kernel and file system.

use std::ffi::CString;
use std::fs;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use wardian_needs::needs;
use wardian_sys::mount;
use wardian_sys::namespace::{IdMap, user};

use super::*;

mod collecting;
mod crashes;
mod limits;
mod lives;
mod measuring;
mod names;
mod ranges;
mod ready;
mod together;
mod volumes;

/// The host id of container root in these tests.
const MAPPED: u32 = 100_000;
const SOON: Duration = Duration::from_secs(60);

fn config(dir: &Path) -> Config {
    Config::new(dir.join("store"), dir.join("run"))
}

fn open(dir: &Path) -> Result<Store> {
    Store::serve(&config(dir), &|_| false)
}

/// Returns a directory, the address of a tar in it, and a server's store in it.
fn served() -> (tempfile::TempDir, String, Store) {
    let dir = tempfile::tempdir().unwrap();
    let (uri, store) = (tar(dir.path()), open(dir.path()).unwrap());
    (dir, uri, store)
}

fn userns() -> OwnedFd {
    let map = [IdMap { inside: 0, outside: MAPPED, size: 65_536 }];
    user(&map, &map).unwrap()
}

fn refer(text: &str) -> Reference {
    Reference::parse(text).unwrap()
}

fn privileged(image: &Image) -> RootfsSpec<'_> {
    RootfsSpec::new(image, None)
}

fn owned<'a>(image: &'a Image, owner: &Owner<'a>) -> RootfsSpec<'a> {
    RootfsSpec::new(image, Some(*owner))
}

/// Makes a tar with a root entry of mode 711, a file of root's, one of user 7 and a directory; returns its address.
fn tar(dir: &Path) -> String {
    let path = dir.join("image.tar");
    let mut tar = tar::Builder::new(fs::File::create(&path).unwrap());
    let mut entry = |name: &str, kind: tar::EntryType, mode, id, data: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_size(data.len() as u64);
        header.set_mode(mode);
        header.set_uid(id);
        header.set_gid(id);
        header.set_mtime(1_000_000);
        tar.append_data(&mut header, name, data).unwrap();
    };
    entry("./", tar::EntryType::Directory, 0o711, 0, b"");
    entry("etc/", tar::EntryType::Directory, 0o755, 0, b"");
    entry("etc/passwd", tar::EntryType::Regular, 0o644, 0, b"root:x:0:0::/:/bin/sh\n");
    entry("seven", tar::EntryType::Regular, 0o600, 7, b"7");
    tar.finish().unwrap();
    path.to_str().unwrap().to_owned()
}

/// Adds a file owned by root to a tar.
fn add(tar: &mut tar::Builder<fs::File>, name: &str, data: &[u8]) {
    let mut header = tar::Header::new_ustar();
    header.set_size(data.len() as u64);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    tar.append_data(&mut header, name, data).unwrap();
}

/// Returns a path below a detached mount, valid as long as its descriptor is open.
fn below(mount: impl AsFd, path: &str) -> std::path::PathBuf {
    Path::new(&format!("/proc/self/fd/{}", mount.as_fd().as_raw_fd())).join(path)
}

fn entries(dir: &Path, part: &str) -> usize {
    fs::read_dir(dir.join("store").join(part)).unwrap().count()
}

#[test]
fn a_root_file_system_from_image_to_trash() {
    needs!(Root);
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    let image = store.image(&tar(dir.path())).unwrap();
    let userns = userns();
    let owner = Owner { userns: userns.as_fd(), uid: MAPPED, gid: MAPPED, shared: true };
    let Rootfs { mount: rootfs, dir: writable, honest } =
        store.create_rootfs("one", &owned(&image, &owner)).unwrap();
    assert!(!honest);

    // The ids of the image are mapped to the container's.
    let root = fs::metadata(below(&rootfs, ".")).unwrap();
    assert_eq!((root.uid(), root.gid(), root.mode() & 0o7777), (MAPPED, MAPPED, 0o711));
    let passwd = fs::metadata(below(&rootfs, "etc/passwd")).unwrap();
    assert_eq!((passwd.uid(), passwd.gid()), (MAPPED, MAPPED));
    assert_eq!(fs::metadata(below(&rootfs, "seven")).unwrap().uid(), MAPPED + 7);

    // A copy-up is written to `upper` with the container's ids; the layer is unchanged.
    let text = fs::read_to_string(below(&rootfs, "etc/passwd")).unwrap();
    fs::write(below(&rootfs, "etc/passwd"), format!("{text}more\n")).unwrap();
    fs::write(below(&rootfs, "seven"), "8").unwrap();
    let upper = writable.join("upper");
    let copied = fs::metadata(upper.join("etc/passwd")).unwrap();
    assert_eq!((copied.uid(), copied.gid()), (MAPPED, MAPPED));
    assert_eq!(fs::metadata(upper.join("seven")).unwrap().uid(), MAPPED + 7);
    let layer = fs::read_dir(dir.path().join("store/layers")).unwrap().next().unwrap().unwrap().path();
    assert_eq!(fs::read_to_string(layer.join("fs/etc/passwd")).unwrap(), text);
    assert_eq!(fs::metadata(layer.join("fs/etc/passwd")).unwrap().uid(), 0);
    assert_eq!(fs::metadata(layer.join("fs/seven")).unwrap().uid(), 7);

    // The overlay is volatile, which shows in its work directory. A second root file system is independent.
    assert!(writable.join("work/work/incompat/volatile").exists());
    let ours = store.create_rootfs("two", &privileged(&image)).unwrap().mount;
    assert_eq!(fs::metadata(below(&ours, "seven")).unwrap().uid(), 7);
    assert_eq!(fs::read_to_string(below(&ours, "seven")).unwrap(), "7");
    assert!(matches!(
        store.create_rootfs("two", &privileged(&image)),
        Err(Error::Rootfs(rootfs::Error::Exists { .. }))
    ));

    drop((rootfs, ours));
    store.release_rootfs("one", Some("handle"));
    store.release_rootfs("two", None);
    store.release_rootfs("never made", None);
    assert!(store.drain(SOON));
    assert_eq!(store.trash_count(), 0);
    assert!(!writable.exists());
    // The close removes what was made ahead.
    store.close();
    assert_eq!(entries(dir.path(), "rootfs"), 0);
}

#[test]
fn mountinfo_shows_a_volatile_overlay_and_no_host_paths() {
    needs!(Root);
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    let image = store.image(&tar(dir.path())).unwrap();
    let rootfs = store.create_rootfs("seen", &privileged(&image)).unwrap().mount;
    let target = dir.path().join("target");
    fs::create_dir(&target).unwrap();
    // Attached in a thread's own mount namespace, which ends with the thread.
    let text = std::thread::scope(|scope| {
        let seen = scope.spawn(|| {
            use rustix::mount::{MountPropagationFlags, mount_change};
            // `unshare` is deprecated as unsafe only for its flag that unshares descriptors.
            #[allow(deprecated)]
            rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNS).unwrap();
            mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE).unwrap();
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            mount::attach(&rootfs, rustix::fs::open(&target, flags, Mode::empty()).unwrap()).unwrap();
            fs::read_to_string("/proc/thread-self/mountinfo").unwrap()
        });
        seen.join().unwrap()
    });
    let mounts = wardian_sys::procfs::mountinfo(&text).unwrap();
    let own = mounts.iter().find(|mount| mount.mount_point == target).unwrap();
    assert_eq!(own.fs_type, "overlay");
    assert!(own.is_volatile(), "{own:?}");
    assert!(own.mount_options.iter().any(|option| option == "nodev"), "{own:?}");
    let host = dir.path().to_str().unwrap();
    assert!(!own.super_options.iter().any(|option| option.contains(host)), "{own:?}");
    assert!(!fs::read_to_string("/proc/self/mountinfo").unwrap().contains(host));
}

#[test]
fn two_threads_one_unpack() {
    needs!(Root);
    let (dir, uri, store) = served();
    let images: Vec<_> = std::thread::scope(|scope| {
        let asks: Vec<_> = (0..8).map(|_| scope.spawn(|| store.image(&uri).unwrap())).collect();
        asks.into_iter().map(|ask| ask.join().unwrap()).collect()
    });
    assert!(images.iter().all(|image| Arc::ptr_eq(&image.layers[0], &images[0].layers[0])));
    assert_eq!(entries(dir.path(), "layers"), 1);
    assert_eq!(entries(dir.path(), "staging"), 0);
    // The next server finds the layer, if it is durable. A changed file is another image.
    assert!(store.wait_durable(&Progress::default()));
    store.close();
    assert!(matches!(store.image(&uri), Err(Error::Closed)));
    let store = open(dir.path()).unwrap();
    store.image(&uri).unwrap();
    assert_eq!(entries(dir.path(), "layers"), 1);
    let mut text = fs::read(&uri).unwrap();
    text.extend([0; 512]);
    fs::write(&uri, text).unwrap();
    store.image(&uri).unwrap();
    assert_eq!(entries(dir.path(), "layers"), 2);
}

#[test]
fn a_corrupt_tar_leaves_nothing() {
    needs!(Root);
    let dir = tempfile::tempdir().unwrap();
    let uri = tar(dir.path());
    let text = fs::read(&uri).unwrap();
    fs::write(&uri, &text[..1300]).unwrap();
    let store = open(dir.path()).unwrap();
    let error = store.image(&uri).unwrap_err();
    assert!(matches!(error.root(), Error::Layer(layer::Error::Unpack { .. })), "{error:?}");
    assert!(store.drain(SOON));
    assert_eq!((entries(dir.path(), "layers"), entries(dir.path(), "staging")), (0, 0));
    assert!(store.image("/nonexistent.tar").is_err());
}

#[test]
fn hostile_trash_goes_and_nothing_else_does() {
    needs!(Root);
    let dir = tempfile::tempdir().unwrap();
    let keep = dir.path().join("keep");
    fs::create_dir(&keep).unwrap();
    fs::write(keep.join("file"), "kept").unwrap();
    let top = dir.path().join("top");
    fs::create_dir_all(top.join("a/b")).unwrap();
    symlink(&keep, top.join("link")).unwrap();
    symlink("/", top.join("a/root")).unwrap();
    symlink("..", top.join("a/b/up")).unwrap();
    for name in [
        " ",
        "\n",
        "-rf",
        "*",
        "...",
        ".deep-0",
        ".deep-1",
        "\\",
        "%s",
        "\u{202e}",
        &"x".repeat(255),
        "\u{1b}[2J",
    ] {
        fs::create_dir(top.join(name)).unwrap();
        fs::write(top.join(name).join(name), "").unwrap();
    }
    fs::DirBuilder::new().mode(0o0).create(top.join("closed")).unwrap();
    fs::create_dir(top.join("closed/in")).unwrap();
    fs::set_permissions(top.join("closed"), fs::Permissions::from_mode(0o0)).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, top.join("fifo"), Mode::RUSR).unwrap();
    assert!(fs::metadata(top.join("fifo")).unwrap().file_type().is_fifo());
    // A path far longer than PATH_MAX, and more entries in one directory than one getdents call returns.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut deep = rustix::fs::open(&top, flags, Mode::empty()).unwrap();
    for level in 0..700 {
        rustix::fs::mkdirat(&deep, "deeper", Mode::RWXU).unwrap();
        if level % 100 == 0 {
            rustix::fs::mkdirat(&deep, ".deep-7", Mode::RWXU).unwrap();
        }
        deep = rustix::fs::openat(&deep, "deeper", flags, Mode::empty()).unwrap();
    }
    drop(deep);
    for number in 0..600 {
        fs::write(top.join("a/b").join(number.to_string()), "").unwrap();
    }
    let parent = rustix::fs::open(dir.path(), flags, Mode::empty()).unwrap();
    let name = CString::new("top").unwrap();
    assert!(matches!(remove::tree(&parent, &name, &|| true), Err(remove::Error::Stopped)));
    remove::tree(&parent, &name, &|| false).unwrap();
    remove::tree(&parent, &name, &|| false).unwrap();
    assert!(!top.exists());
    assert_eq!(fs::read_to_string(keep.join("file")).unwrap(), "kept");

    // A symlink in place of the tree itself.
    symlink(&keep, &top).unwrap();
    remove::tree(&parent, &name, &|| false).unwrap();
    assert!(fs::symlink_metadata(&top).is_err());
    let mut text = String::new();
    fs::File::open(keep.join("file")).unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "kept");
}

#[test]
fn a_layer_that_is_no_directory_is_refused_with_the_kernels_words() {
    needs!(Root);
    let dir = tempfile::tempdir().unwrap();
    for name in ["upper", "work"] {
        fs::create_dir(dir.path().join(name)).unwrap();
    }
    fs::write(dir.path().join("file"), "").unwrap();
    let open = |path: &Path| rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
    let pair = mount::UpperPair::open(open(dir.path())).unwrap();
    let file = open(&dir.path().join("file"));
    let error = mount::Overlay::new(vec![file.as_fd()], &pair).mount().unwrap_err();
    assert!(matches!(&error, mount::Error::Option { key, .. } if key == "lowerdir+"), "{error}");
    assert!(error.to_string().contains("kernel: e "), "{error}");
}
