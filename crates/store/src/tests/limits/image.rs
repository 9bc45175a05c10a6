//! Limits by images.

use std::os::unix::process::ExitStatusExt;

use wardian_sys::failpoint::VARIABLE;
use wardian_sys::loop_device::{Backing, Io, LoopDevices};

use super::super::together::{child, given};
use super::*;

/// The failpoints that [`child_with_a_limit`] passes.
pub(super) const POINTS: &[&str] = &["image-attached", "image-copied", "image-mounted", "image-shut-down"];

/// The blanks that a server keeps.
const BLANKS: usize = 4;

fn ground(dir: &tempfile::TempDir) -> Ground<'_> {
    Ground { dir: dir.path(), driver: DiskDriver::Image, uri: tar(dir.path()) }
}

/// The loop devices over files below a directory, deleted and unnamed ones included.
fn devices(dir: &Path) -> Vec<String> {
    let backing = |entry: &fs::DirEntry| fs::read_to_string(entry.path().join("loop/backing_file")).ok();
    let all = fs::read_dir("/sys/block").unwrap().flatten();
    let ours = all.filter(|entry| backing(entry).is_some_and(|file| Path::new(&file).starts_with(dir)));
    ours.map(|entry| entry.file_name().into_string().unwrap()).collect()
}

/// Nothing is left of any image: a device ends a moment after its last user.
fn nothing_stays(dir: &Path) {
    wait_for(|| devices(dir).is_empty());
    assert_eq!((entries(dir, "rootfs"), entries(dir, "staging")), (0, 0));
}

#[test]
fn the_table_on_this_file_system() {
    needs!(Root, Loop);
    let dir = tempfile::tempdir().unwrap();
    table(DiskDriver::Image, dir.path());
    wait_for(|| devices(dir.path()).is_empty());
}

/// Runs a test in a mount namespace of its own, in a directory on a new file system of this size.
pub(super) fn on_new(mkfs: &[&str], size: u64, test: impl FnOnce(&Path) + Send) {
    let dir = tempfile::tempdir().unwrap();
    let file =
        fs::File::options().read(true).write(true).create_new(true).open(dir.path().join("fs")).unwrap();
    file.set_len(size).unwrap();
    let made = std::process::Command::new(mkfs[0]).args(&mkfs[1..]).arg(dir.path().join("fs")).output();
    if made.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound) {
        return skipped(mkfs[0]);
    }
    let made = made.unwrap();
    assert!(made.status.success(), "{made:?}");
    let at = dir.path().join("at");
    fs::create_dir(&at).unwrap();
    let opened =
        |path: &Path| rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap();
    std::thread::scope(|scope| {
        let run = || {
            wardian_sys::namespace::own_mounts().unwrap();
            let device = LoopDevices::open(opened(dir.path())).unwrap().attach(&file, Io::Cached).unwrap();
            let fstype = mkfs[0].strip_prefix("mkfs.").unwrap();
            let attrs = mount::MountAttrFlags::empty();
            let mounted = mount::device_mount(fstype, &device, &[], &[], attrs).unwrap();
            mount::attach(&mounted, opened(&at)).unwrap();
            drop((mounted, device));
            test(&at);
            wait_for(|| mount::unmount(&at).is_ok());
        };
        let name = std::thread::current().name().unwrap_or_default().to_owned();
        let thread = std::thread::Builder::new().name(name).spawn_scoped(scope, run).unwrap();
        thread.join().unwrap();
    });
    wait_for(|| devices(dir.path()).is_empty());
}

#[test]
fn the_table_on_xfs_which_shares_blocks() {
    needs!(Root, Loop);
    on_new(&["mkfs.xfs", "-q", "-s", "size=4096"], 1 << 30, |dir| table(DiskDriver::Image, dir));
}

#[test]
fn the_table_on_btrfs() {
    needs!(Root, Loop);
    on_new(&["mkfs.btrfs", "-q"], 1 << 30, |dir| table(DiskDriver::Image, dir));
}

/// The file system below the images is full before they are.
#[test]
fn a_full_disk_hurts_only_those_who_write() {
    needs!(Root, Loop);
    on_new(&["mkfs.ext4", "-q", "-F", "-b", "4096"], 128 * MB, |dir| {
        let ground = Ground { dir, driver: DiskDriver::Image, uri: tar(dir) };
        let store = ground.store();
        let image = store.image(&ground.uri).unwrap();
        assert!(store.wait_durable(&Progress::default()));
        let quiet = store.create_rootfs("quiet", &limited(&image, None, limit(64 * MB))).unwrap();
        let plain = store.create_rootfs("plain", &privileged(&image)).unwrap();
        assert_eq!(fill(&quiet.mount, "data", MB), (MB, None));
        let sync = |rootfs: &Rootfs| {
            let upper = fs::File::open(rootfs.dir.join("image"));
            upper.map(|file| file.sync_all().unwrap()).ok()
        };
        sync(&quiet).unwrap();
        let free = || rustix::fs::statvfs(dir).unwrap();
        let before = free();
        let full = store.create_rootfs("full", &limited(&image, None, limit(1 << 30))).unwrap();
        // More than the disk has: the bound allows it, and the write-back fails.
        let (written, error) = fill(&full.mount, "data", 300 * MB);
        assert!(error.is_none() || is_full(error) || error == Some(Errno::IO), "{error:?}");
        assert!(written > 64 * MB, "{written}");
        let root = store.0.upper.written(full.dir.file_name().unwrap().to_str().unwrap()).unwrap().unwrap();
        assert!(root.bytes >= written, "{root:?}");
        let _ = rustix::fs::syncfs(files_in(&full));
        wait_for(|| store.writeback_error("full").is_some());
        // The others' reads go on, the store has seen no lost write, and new root file systems are volatile.
        assert!(fs::read(below(&quiet.mount, "data")).unwrap().iter().all(|byte| *byte == 7));
        fs::File::open(below(&plain.mount, "seven")).unwrap().sync_all().unwrap();
        assert_eq!((store.writeback_error("plain"), store.writeback_error("quiet")), (None, None));
        let dir_full = full.dir.clone();
        drop(full);
        store.release_rootfs("full", None);
        assert!(store.drain(SOON));
        assert!(!dir_full.exists());
        // Its space is free again, and the neighbour writes.
        wait_for(|| free().f_bavail + 2048 >= before.f_bavail);
        let next = store.create_rootfs("next", &limited(&image, None, limit(8 * MB))).unwrap();
        assert!(!next.honest);
        assert_eq!(fill(&quiet.mount, "more", 8 * MB), (8 * MB, None));
        drop((quiet, plain, next));
        finish(&store, &["quiet", "plain", "next"]);
        nothing_stays(dir);
    });
}

/// The root of the overlay's upper file system cannot be reached through it; a file's can.
fn files_in(rootfs: &Rootfs) -> OwnedFd {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(&rootfs.mount, ".", flags, Mode::empty()).unwrap()
}

#[test]
fn nothing_is_written_at_the_end() {
    needs!(Root, Loop);
    let dir = tempfile::tempdir().unwrap();
    let ground = ground(&dir);
    let store = ground.store();
    let image = store.image(&ground.uri).unwrap();
    // When a third of the free space is dirty, ext4 has it written (`ext4_nonda_switch`, fs/ext4/inode.c).
    let rootfs = store.create_rootfs("a", &limited(&image, None, limit(1 << 30))).unwrap();
    let file = fs::File::open(rootfs.dir.join("image")).unwrap();
    fill(&rootfs.mount, "data", 100 * MB);
    assert_eq!(store.measured("a").exclusive_bytes, 100 * MB);
    drop(rootfs);
    store.release_rootfs("a", None);
    assert!(store.drain(SOON));
    wait_for(|| devices(dir.path()).len() <= BLANKS);
    // The template, and metadata.
    let on_disk = file.metadata().unwrap().blocks() * 512;
    assert!(on_disk < 2 * MB, "{on_disk} bytes");
    finish(&store, &[]);
    nothing_stays(dir.path());
}

/// The bytes that the device of a file system has written since it was made.
fn written_below(dir: &Path) -> u64 {
    let number = fs::metadata(dir).unwrap().dev();
    let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
    let stat = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/stat")).unwrap();
    stat.split_whitespace().nth(6).unwrap().parse::<u64>().unwrap() * 512
}

#[test]
fn nothing_reaches_the_disk_at_the_end() {
    needs!(Root, Loop);
    const MANY: usize = 9;
    on_new(&["mkfs.ext4", "-q", "-F", "-b", "4096", "-O", "^has_journal"], 1 << 30, |dir| {
        let ground = Ground { dir, driver: DiskDriver::Image, uri: tar(dir) };
        let store = ground.store();
        let image = store.image(&ground.uri).unwrap();
        assert!(store.wait_durable(&Progress::default()));
        let ids: Vec<String> = (0..MANY).map(|number| format!("many-{number}")).collect();
        let made: Vec<Rootfs> = ids
            .iter()
            .map(|id| {
                let rootfs = store.create_rootfs(id, &limited(&image, None, limit(256 * MB))).unwrap();
                fill(&rootfs.mount, "data", 8 * MB);
                rootfs
            })
            .collect();
        rustix::fs::syncfs(fs::File::open(dir).unwrap()).unwrap();
        let before = written_below(dir);
        drop(made);
        ids.iter().for_each(|id| store.release_rootfs(id, None));
        assert!(store.drain(SOON));
        wait_for(|| devices(dir).len() <= BLANKS);
        let written = written_below(dir) - before;
        assert!(written < MANY as u64 * 8192, "{written} bytes");
        finish(&store, &[]);
        nothing_stays(dir);
    });
}

/// A process of another container may hold a file of it: then its memory, which nobody is charged for, is not held with it.
#[test]
fn a_file_held_by_others_holds_nothing_else() {
    needs!(Root, Loop);
    on_new(&["mkfs.ext4", "-q", "-F", "-b", "4096", "-O", "^has_journal"], 256 * MB, |dir| {
        let ground = Ground { dir, driver: DiskDriver::Image, uri: tar(dir) };
        let store = ground.store();
        let image = store.image(&ground.uri).unwrap();
        assert!(store.wait_durable(&Progress::default()));
        let rootfs = store.create_rootfs("a", &limited(&image, None, limit(128 * MB))).unwrap();
        fill(&rootfs.mount, "data", 24 * MB);
        let held = fs::File::open(below(&rootfs.mount, "data")).unwrap();
        let delayed = || -> u64 {
            let of = |device: &String| {
                let path = format!("/sys/fs/ext4/{device}/delayed_allocation_blocks");
                fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u64>().ok()).unwrap_or(0)
            };
            devices(dir).iter().map(of).sum()
        };
        let part = rootfs.dir.clone();
        assert!(delayed() > 0);
        drop(rootfs);
        store.release_rootfs("a", None);
        assert!(store.drain(SOON));
        assert!(!part.exists());
        wait_for(|| delayed() == 0);
        drop(held);
        wait_for(|| devices(dir).len() <= BLANKS);
        finish(&store, &[]);
        nothing_stays(dir);
    });
}

#[test]
fn an_image_stays_one_under_another_driver() {
    needs!(Root, Loop);
    let dir = tempfile::tempdir().unwrap();
    let ground = ground(&dir);
    let store = ground.store();
    let image = store.image(&ground.uri).unwrap();
    assert!(store.wait_durable(&Progress::default()));
    let rootfs = store.create_rootfs("a", &limited(&image, None, limit(32 * MB))).unwrap();
    fill(&rootfs.mount, "data", 5 * MB);
    store.close();
    drop(store);
    let other = Ground { driver: DiskDriver::None, uri: ground.uri.clone(), ..ground };
    let store = other.serve(0, &|id| id == "a");
    assert_written(&other, &store, 5 * MB, 1);
    store.limit_rootfs("a", limit(8 * MB)).unwrap();
    assert_about(5 * MB + fill(&rootfs.mount, "more", 8 * MB).0, 8 * MB);
    let error = store.create_rootfs("b", &limited(&image, None, limit(MB))).unwrap_err();
    assert!(matches!(&error, Error::Rootfs(rootfs::Error::Limit { .. })), "{error:?}");
    // It is shut down, though its overlay is still held.
    store.release_rootfs("a", None);
    assert!(store.drain(SOON));
    assert!(!rootfs.dir.exists());
    assert_eq!(fill(&rootfs.mount, "late", MB).1, Some(Errno::IO));
    drop(rootfs);
    finish(&store, &[]);
    nothing_stays(dir.path());
}

#[test]
fn blanks_are_kept_for_any_size() {
    needs!(Root, Loop);
    let dir = tempfile::tempdir().unwrap();
    let ground = ground(&dir);
    let store = ground.store();
    let image = store.image(&ground.uri).unwrap();
    assert_eq!(devices(dir.path()).len(), 0);
    for (id, bytes) in [("a", 8 * MB), ("b", 80 * MB)] {
        let rootfs = store.create_rootfs(id, &limited(&image, None, limit(bytes))).unwrap();
        wait_for(|| devices(dir.path()).len() == 1 + BLANKS);
        assert_about(fill(&rootfs.mount, "data", 2 * bytes).0, bytes);
        drop(rootfs);
        store.release_rootfs(id, None);
        assert!(store.drain(SOON));
    }
    finish(&store, &[]);
    nothing_stays(dir.path());
}

#[test]
fn a_privileged_container_reaches_no_device() {
    needs!(Root, Loop, Mknod);
    let dir = tempfile::tempdir().unwrap();
    let ground = ground(&dir);
    let store = ground.store();
    let image = store.image(&ground.uri).unwrap();
    let rootfs = store.create_rootfs("a", &limited(&image, None, limit(8 * MB))).unwrap();
    let backing = Backing::of(fs::File::open(rootfs.dir.join("image")).unwrap()).unwrap();
    let nodes = fs::File::open(dir.path()).unwrap().into();
    let all = LoopDevices::open(nodes).unwrap().in_use().unwrap();
    let (number, _) = all.into_iter().find(|(_, other)| *other == backing).unwrap();
    let device = format!("loop{number}");
    let number = fs::read_to_string(format!("/sys/block/{device}/dev")).unwrap();
    let (major, minor) = number.trim().split_once(':').unwrap();
    let number = rustix::fs::makedev(major.parse().unwrap(), minor.parse().unwrap());
    let kind = rustix::fs::FileType::BlockDevice;
    rustix::fs::mknodat(&rootfs.mount, "device", kind, Mode::RUSR | Mode::WUSR, number).unwrap();
    let opened = rustix::fs::openat(&rootfs.mount, "device", OFlags::RDONLY, Mode::empty());
    assert_eq!(opened.unwrap_err(), Errno::ACCESS);
    // Nor does it see the image's own root directory.
    let names: Vec<_> =
        fs::read_dir(below(&rootfs.mount, ".")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(
        !names.iter().any(|name| ["made", "spent", "upper", "lost+found"].iter().any(|other| name == other))
    );
    drop(rootfs);
    finish(&store, &["a"]);
    nothing_stays(dir.path());
}

#[test]
fn what_an_image_cannot_do_is_said() {
    needs!(Root, Loop);
    let dir = tempfile::tempdir().unwrap();
    let ground = ground(&dir);
    let store = ground.store();
    let image = store.image(&ground.uri).unwrap();
    let rootfs = store.create_rootfs("a", &limited(&image, None, limit(8 * MB))).unwrap();
    let plain = store.create_rootfs("plain", &privileged(&image)).unwrap();
    let refused = |id: &str, limit: DiskLimit| {
        let error = store.limit_rootfs(id, limit).unwrap_err();
        let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        format!("{error}: {source}")
    };
    let none = DiskLimit { bytes: None, ..limit(0) };
    for (id, limit, said) in [
        ("a", DiskLimit { inodes: Some(5), ..limit(8 * MB) }, "inodes is fixed"),
        ("a", none, "taken away"),
        ("plain", limit(MB), "made without one"),
    ] {
        let error = refused(id, limit);
        assert!(error.contains(said), "{error}");
    }
    // The bytes of one with a bound of inodes can be changed.
    let both = |bytes| DiskLimit { inodes: Some(100), ..limit(bytes) };
    let bounded = store.create_rootfs("bounded", &limited(&image, None, both(8 * MB))).unwrap();
    store.limit_rootfs("bounded", both(4 * MB)).unwrap();
    assert_about(fill(&bounded.mount, "data", 8 * MB).0, 4 * MB);
    assert!(refused("bounded", limit(4 * MB)).contains("inodes is fixed"));
    drop(bounded);
    store.release_rootfs("bounded", None);
    // An image keeps its size, also after numbers that a calculation with them could overflow.
    for bytes in [200 * MB, 1 << 60, 17_359_192_523_555_590_144, u64::MAX] {
        let error = refused("a", limit(bytes));
        assert!(error.contains("the size that it was made with"), "{bytes}: {error}");
    }
    assert_about(fill(&rootfs.mount, "data", 16 * MB).0, 8 * MB);
    // What the disk does not have bounds nothing, and costs no larger image.
    for bytes in [1 << 60, u64::MAX] {
        drop(store.create_rootfs("large", &limited(&image, None, limit(bytes))).unwrap());
        store.limit_rootfs("large", limit(u64::MAX)).unwrap();
        store.release_rootfs("large", None);
    }
    let inodes = DiskLimit { inodes: Some(u64::MAX), ..DiskLimit::default() };
    let error = store.create_rootfs("many", &limited(&image, None, inodes)).unwrap_err();
    assert!(format!("{error:?}").contains("one for each block of the disk"), "{error:?}");
    drop((rootfs, plain));
    finish(&store, &["a", "plain"]);
    nothing_stays(dir.path());
}

#[test]
fn many_at_once() {
    needs!(Root, Loop);
    const MANY: usize = 100;
    let dir = tempfile::tempdir().unwrap();
    let ground = ground(&dir);
    let store = ground.store();
    let image = store.image(&ground.uri).unwrap();
    let ids: Vec<String> = (0..MANY).map(|number| format!("many-{number}")).collect();
    let made: Vec<Rootfs> = std::thread::scope(|scope| {
        let make = |ids: &'_ [String]| {
            let spec = limited(&image, None, limit(4 * MB));
            ids.iter().map(|id| store.create_rootfs(id, &spec).unwrap()).collect::<Vec<_>>()
        };
        let threads: Vec<_> = ids.chunks(MANY / 4).map(|ids| scope.spawn(move || make(ids))).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let living = devices(dir.path()).len();
    assert!((MANY..=MANY + BLANKS).contains(&living), "{living}");
    for rootfs in &made {
        assert_eq!(fill(&rootfs.mount, "data", MB), (MB, None));
    }
    drop(made);
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    finish(&store, &ids);
    nothing_stays(dir.path());
}

/// A container's process may outlive all that belongs to it, for an instant or in an uninterruptible call.
#[test]
fn an_overlay_that_is_still_held_is_cut_off() {
    needs!(Root, Loop);
    let dir = tempfile::tempdir().unwrap();
    let ground = ground(&dir);
    let store = ground.store();
    let image = store.image(&ground.uri).unwrap();
    assert!(store.wait_durable(&Progress::default()));
    let held = store.create_rootfs("held", &limited(&image, None, limit(32 * MB))).unwrap();
    fill(&held.mount, "data", 20 * MB);
    store.close();
    drop(store);
    // The next server knows the image by its file alone.
    assert_eq!(devices(dir.path()).len(), 1);
    let store = ground.store();
    assert!(store.drain(SOON));
    assert!(!held.dir.exists());
    assert_eq!(fill(&held.mount, "more", MB).1, Some(Errno::IO));
    drop(held);
    finish(&store, &[]);
    nothing_stays(dir.path());
}

#[test]
fn an_attached_one_leaves_nothing() {
    needs!(Root, Loop);
    let dir = tempfile::tempdir().unwrap();
    let uri = tar(dir.path());
    std::thread::scope(|scope| {
        let run = || {
            wardian_sys::namespace::own_mounts().unwrap();
            let config = Config { disk_driver: Some(DiskDriver::Image), ..config(dir.path()) };
            let make = Store::open(&config).unwrap();
            let image = make.image(&uri).unwrap();
            assert!(make.wait_durable(&Progress::default()));
            let path = make.attach_rootfs("a", &limited(&image, None, limit(32 * MB)), false).unwrap();
            fs::write(path.join("data"), vec![1; 8 << 20]).unwrap();
            drop(make);
            let unmake = Store::open(&config).unwrap();
            assert!(unmake.detach_rootfs("a").unwrap());
            assert!(unmake.reap(&Progress::default()).unwrap());
        };
        scope.spawn(run).join().unwrap();
    });
    nothing_stays(dir.path());
}

/// Not a test of its own: it makes and removes a root file system with a limit.
#[test]
#[ignore = "another test starts it"]
fn child_with_a_limit() {
    let (dir, uri) = given();
    let config = Config { disk_driver: Some(DiskDriver::Image), ..config(Path::new(&dir)) };
    let store = Store::serve(&config, &|_| false).unwrap();
    let image = store.image(&uri).unwrap();
    let rootfs = store.create_rootfs("one", &limited(&image, None, limit(16 * MB))).unwrap();
    fill(&rootfs.mount, "data", 8 * MB);
    drop(rootfs);
    store.release_rootfs("one", None);
    assert!(store.drain(SOON));
    store.close();
}

#[test]
fn killed_at_every_failpoint() {
    needs!(Root, Loop);
    for point in POINTS {
        let dir = tempfile::tempdir().unwrap();
        let ground = ground(&dir);
        let mut command = child("tests::limits::image::child_with_a_limit", dir.path(), &ground.uri);
        let output = command.env(VARIABLE, point).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.signal(), Some(9), "{point} was not reached: {text}");
        // The devices clear themselves, before anybody recovers.
        wait_for(|| devices(dir.path()).is_empty());
        let store = ground.store();
        assert!(store.drain(SOON), "{point}");
        assert!(store.rootfs().unwrap().is_empty(), "{point}");
        finish(&store, &[]);
        nothing_stays(dir.path());
    }
}
