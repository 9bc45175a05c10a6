//! Limits on what is written: what all drivers have in common, and what each has of its own.

use super::together::wait_for;
use super::*;
use rustix::io::Errno;
use std::io::Write as _;

mod image;
mod none;
mod quotas;

/// The failpoints of the drivers.
pub(super) const POINTS: &[&[&str]] = &[image::POINTS];

const MB: u64 = 1 << 20;
/// What a driver may take from a bound for its own directories and block maps, in bytes.
const TOLERANCE: u64 = MB / 4;
/// The same, in inodes.
const INODES: u64 = 8;

/// Where a driver is tested.
struct Ground<'a> {
    dir: &'a Path,
    driver: DiskDriver,
    uri: String,
}

impl Ground<'_> {
    fn serve(&self, ready_rootfs: usize, live: &dyn Fn(&str) -> bool) -> Store {
        let config = Config { disk_driver: Some(self.driver), ready_rootfs, ..config(self.dir) };
        Store::serve(&config, live).unwrap()
    }

    fn store(&self) -> Store {
        self.serve(0, &|_| false)
    }
}

fn limit(bytes: u64) -> DiskLimit {
    DiskLimit { bytes: Some(bytes), inodes: None, scope: Scope::Exclusive }
}

fn limited<'a>(image: &'a Image, owner: Option<Owner<'a>>, limit: DiskLimit) -> RootfsSpec<'a> {
    RootfsSpec { image, owner, limit }
}

/// Says, as `needs!` does, that a test has not run: in a line that is not captured.
fn skipped(lacking: &str) {
    let test = std::thread::current().name().unwrap_or_default().to_owned();
    let _ = writeln!(std::io::stderr(), "skipped: {test}: needs {lacking}");
}

/// Writes to a file until that fails, or until `most` bytes are written; returns how many were, and the error.
fn fill(mount: &OwnedFd, name: &str, most: u64) -> (u64, Option<Errno>) {
    let chunk = vec![7; 64 << 10];
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(mount, name, flags, Mode::RUSR | Mode::WUSR) {
        Ok(file) => file,
        Err(error) => return (0, Some(error)),
    };
    let mut written = 0;
    while written < most {
        match rustix::io::write(&file, &chunk) {
            Ok(bytes) => written += bytes as u64,
            Err(error) => return (written, Some(error)),
        }
    }
    (written, None)
}

/// Makes empty files until that fails; returns how many there are.
fn make_files(mount: &OwnedFd, most: u64) -> (u64, Option<Errno>) {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    for made in 0..most {
        if let Err(error) = rustix::fs::openat(mount, format!("file-{made}"), flags, Mode::RUSR) {
            return (made, Some(error));
        }
    }
    (most, None)
}

fn is_full(error: Option<Errno>) -> bool {
    matches!(error, Some(Errno::NOSPC | Errno::DQUOT))
}

#[track_caller]
fn assert_about(what: u64, bound: u64) {
    assert!(what <= bound && what + TOLERANCE >= bound, "{what} of {bound}");
}

/// What has been written to the root file system `a`.
#[track_caller]
fn assert_written(ground: &Ground<'_>, store: &Store, bytes: u64, inodes: u64) {
    if ground.driver == DiskDriver::Btrfs {
        // It counts what is on the disk, and no inodes.
        rustix::fs::syncfs(fs::File::open(ground.dir).unwrap()).unwrap();
        wait_for(|| store.measured("a").exclusive_bytes.abs_diff(bytes) <= TOLERANCE);
        assert_eq!(store.measured("a").exclusive_inodes, None);
        return;
    }
    let measured = || {
        let measured = store.measured("a");
        (measured.exclusive_bytes, measured.exclusive_inodes)
    };
    if ground.driver == DiskDriver::ProjectQuota {
        // XFS frees what is deleted a moment later.
        wait_for(|| measured() <= (bytes, Some(inodes)));
    }
    assert_eq!(measured(), (bytes, Some(inodes)));
}

/// What every driver that enforces limits must do; `dir` is on a file system that it works on.
fn table(driver: DiskDriver, dir: &Path) {
    type Check = fn(&Ground<'_>);
    let checks: [(&str, Check); 9] = [
        ("bytes", bytes_are_bounded),
        ("inodes", inodes_are_bounded),
        ("scope", the_image_counts_in_the_total_scope),
        ("neighbour", a_neighbour_is_not_bounded),
        ("live", a_bound_changes_while_it_is_used),
        ("written", what_is_written_is_counted_at_once),
        ("removal", a_removal_returns_the_space),
        ("restart", a_restart_adopts),
        ("spare", a_spare_is_bounded),
    ];
    for (name, check) in checks {
        let dir = dir.join(name);
        fs::create_dir(&dir).unwrap();
        println!("{}: {name}", driver.name());
        check(&Ground { dir: &dir, driver, uri: tar(&dir) });
        assert_eq!(entries(&dir, "rootfs"), 0, "{name}");
        assert_eq!(entries(&dir, "staging"), 0, "{name}");
    }
}

fn finish(store: &Store, ids: &[&str]) {
    ids.iter().for_each(|id| store.release_rootfs(id, None));
    assert!(store.drain(SOON));
    store.close();
}

fn bytes_are_bounded(ground: &Ground<'_>) {
    let store = ground.store();
    let image = store.image(&ground.uri).unwrap();
    let userns = userns();
    let mapped = Owner { userns: userns.as_fd(), uid: MAPPED, gid: MAPPED, shared: true };
    // A privileged container's root has the host's capabilities, and is bounded all the same.
    for (id, owner) in [("privileged", None), ("mapped", Some(mapped))] {
        for bytes in [MB, 10 * MB + 1000, 100 * MB] {
            let rootfs = store.create_rootfs(id, &limited(&image, owner, limit(bytes))).unwrap();
            let root = fs::metadata(below(&rootfs.mount, ".")).unwrap();
            assert_eq!((root.uid(), root.mode() & 0o7777), (owner.map_or(0, |owner| owner.uid), 0o711));
            let (written, error) = fill(&rootfs.mount, "data", 2 * bytes);
            assert!(is_full(error), "{error:?}");
            assert_about(written, bytes);
            // What was accepted is there, and can be replaced.
            assert_eq!(fs::metadata(below(&rootfs.mount, "data")).unwrap().len(), written);
            fs::remove_file(below(&rootfs.mount, "data")).unwrap();
            let (mut again, _) = fill(&rootfs.mount, "again", 2 * bytes);
            // While the kernel writes a removed file back, it still has its space.
            let started = Instant::now();
            while again == 0 && started.elapsed() < SOON {
                std::thread::sleep(Duration::from_millis(50));
                again = fill(&rootfs.mount, "again", 2 * bytes).0;
            }
            assert_about(again, bytes);
            drop(rootfs);
            store.release_rootfs(id, None);
        }
    }
    finish(&store, &[]);
}

fn inodes_are_bounded(ground: &Ground<'_>) {
    let store = ground.store();
    let image = store.image(&ground.uri).unwrap();
    if ground.driver == DiskDriver::Btrfs {
        let limit = DiskLimit { inodes: Some(100), ..limit(MB) };
        let error = store.create_rootfs("a", &limited(&image, None, limit)).unwrap_err();
        assert!(matches!(&error, Error::Rootfs(rootfs::Error::Limit { .. })), "{error:?}");
        return finish(&store, &[]);
    }
    for (bytes, inodes) in [(None, 100), (Some(16 * MB), 100), (Some(MB), 1000)] {
        let limit = DiskLimit { bytes, inodes: Some(inodes), scope: Scope::Exclusive };
        let rootfs = store.create_rootfs("a", &limited(&image, None, limit)).unwrap();
        let (made, error) = make_files(&rootfs.mount, 2 * inodes);
        assert!(is_full(error), "{error:?}");
        assert!(made <= inodes && made + INODES >= inodes, "{made} of {inodes}");
        assert_eq!(store.measured("a").exclusive_inodes, Some(made));
        drop(rootfs);
        store.release_rootfs("a", None);
    }
    finish(&store, &[]);
}

fn the_image_counts_in_the_total_scope(ground: &Ground<'_>) {
    let store = ground.store();
    let image = store.image(&ground.uri).unwrap();
    let total = |above| DiskLimit { scope: Scope::Total, ..limit(image.bytes() + above) };
    let error = store.create_rootfs("a", &limited(&image, None, total(0))).unwrap_err();
    assert!(matches!(&error, Error::Rootfs(rootfs::Error::TooSmall(_))), "{error:?}");
    let rootfs = store.create_rootfs("a", &limited(&image, None, total(4 * MB))).unwrap();
    assert_about(fill(&rootfs.mount, "data", 8 * MB).0, 4 * MB);
    drop(rootfs);
    finish(&store, &["a"]);
}

fn a_neighbour_is_not_bounded(ground: &Ground<'_>) {
    let store = ground.store();
    let image = store.image(&ground.uri).unwrap();
    let full = store.create_rootfs("full", &limited(&image, None, limit(MB))).unwrap();
    let other = store.create_rootfs("other", &limited(&image, None, limit(8 * MB))).unwrap();
    let free = store.create_rootfs("free", &privileged(&image)).unwrap();
    assert!(is_full(fill(&full.mount, "data", 2 * MB).1));
    assert_eq!(fill(&other.mount, "data", 6 * MB), (6 * MB, None));
    assert_eq!(fill(&free.mount, "data", 32 * MB), (32 * MB, None));
    drop((full, other, free));
    finish(&store, &["full", "other", "free"]);
}

fn a_bound_changes_while_it_is_used(ground: &Ground<'_>) {
    let store = ground.store();
    let image = store.image(&ground.uri).unwrap();
    let rootfs = store.create_rootfs("a", &limited(&image, None, limit(32 * MB))).unwrap();
    assert_eq!(fill(&rootfs.mount, "data", 8 * MB).0, 8 * MB);
    // Below what is written: that stays, and nothing more can be.
    store.limit_rootfs("a", limit(4 * MB)).unwrap();
    assert!(is_full(fill(&rootfs.mount, "data", MB).1));
    assert!(fs::read(below(&rootfs.mount, "data")).unwrap().iter().all(|byte| *byte == 7));
    store.limit_rootfs("a", limit(16 * MB)).unwrap();
    let (more, error) = fill(&rootfs.mount, "data", 32 * MB);
    assert!(is_full(error));
    assert_about(8 * MB + more, 16 * MB);
    store.limit_rootfs("a", limit(32 * MB)).unwrap();
    let (rest, _) = fill(&rootfs.mount, "data", 32 * MB);
    assert_about(8 * MB + more + rest, 32 * MB);
    assert_eq!(store.rootfs().unwrap()[0].bound.bytes, Some(32 * MB));
    drop(rootfs);
    finish(&store, &["a"]);
}

fn what_is_written_is_counted_at_once(ground: &Ground<'_>) {
    let store = ground.store();
    let image = store.image(&ground.uri).unwrap();
    let rootfs = store.create_rootfs("a", &limited(&image, None, limit(32 * MB))).unwrap();
    assert_eq!(store.measured("a").image_bytes, image.bytes());
    assert_written(ground, &store, 0, 0);
    fill(&rootfs.mount, "data", 5 * MB);
    assert_written(ground, &store, 5 * MB, 1);
    fs::write(below(&rootfs.mount, "small"), "x").unwrap();
    assert_written(ground, &store, 5 * MB + 4096, 2);
    fs::remove_file(below(&rootfs.mount, "data")).unwrap();
    fs::remove_file(below(&rootfs.mount, "small")).unwrap();
    assert_written(ground, &store, 0, 0);
    drop(rootfs);
    finish(&store, &["a"]);
}

fn a_removal_returns_the_space(ground: &Ground<'_>) {
    let store = ground.store();
    let image = store.image(&ground.uri).unwrap();
    let rootfs = store.create_rootfs("a", &limited(&image, None, limit(64 * MB))).unwrap();
    fill(&rootfs.mount, "data", 32 * MB);
    assert_eq!(store.usage().unwrap().rootfs.len(), 1);
    drop(rootfs);
    store.release_rootfs("a", None);
    assert!(store.drain(SOON));
    let usage = store.usage().unwrap();
    assert_eq!((usage.rootfs_bytes, usage.rootfs.len()), (0, 0));
    assert!(!store.has_trash().unwrap());
    finish(&store, &[]);
}

fn a_restart_adopts(ground: &Ground<'_>) {
    let store = ground.store();
    let image = store.image(&ground.uri).unwrap();
    assert!(store.wait_durable(&Progress::default()));
    let rootfs = store.create_rootfs("a", &limited(&image, None, limit(32 * MB))).unwrap();
    let gone = store.create_rootfs("gone", &limited(&image, None, limit(32 * MB))).unwrap();
    fill(&rootfs.mount, "data", 5 * MB);
    fill(&gone.mount, "data", 5 * MB);
    store.close();
    drop((store, gone));
    let store = ground.serve(0, &|id| id == "a");
    assert!(store.drain(SOON));
    assert_written(ground, &store, 5 * MB, 1);
    assert_eq!(store.measured("a").image_bytes, image.bytes());
    store.limit_rootfs("a", limit(8 * MB)).unwrap();
    assert_about(5 * MB + fill(&rootfs.mount, "data", 8 * MB).0, 8 * MB);
    drop(rootfs);
    finish(&store, &["a"]);
}

fn a_spare_is_bounded(ground: &Ground<'_>) {
    let store = ground.serve(2, &|_| false);
    let image = store.image(&ground.uri).unwrap();
    drop(store.create_rootfs("first", &limited(&image, None, limit(8 * MB))).unwrap());
    wait_for(|| store.ready_rootfs() == 2);
    let spares = store.0.ready.names();
    let rootfs = store.create_rootfs("a", &limited(&image, None, limit(8 * MB))).unwrap();
    assert!(spares.iter().any(|name| rootfs.dir.ends_with(name)), "{spares:?} {rootfs:?}");
    assert_written(ground, &store, 0, 0);
    assert_about(fill(&rootfs.mount, "data", 16 * MB).0, 8 * MB);
    // One without a limit is none of these.
    let free = store.create_rootfs("free", &privileged(&image)).unwrap();
    assert_eq!(fill(&free.mount, "data", 16 * MB).0, 16 * MB);
    drop((rootfs, free));
    ["first", "a", "free"].iter().for_each(|id| store.release_rootfs(id, None));
    store.0.door.stop(Instant::now() + SOON);
    finish(&store, &[]);
}
