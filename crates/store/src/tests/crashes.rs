//! `kill -9` at every failpoint: the next process recovers the store, and never finds anything incomplete.

use std::os::unix::process::ExitStatusExt;

use wardian_sys::failpoint::VARIABLE;

use super::together::{child, given};
use super::*;

/// The failpoints that [`child_that_does_everything`] passes.
const POINTS: &[&str] = &[
    "staged",
    "unpacked",
    "recorded",
    "committed",
    "named",
    "written-back",
    "synced",
    "marked",
    "rootfs-recorded",
    "rootfs-paired",
    "rootfs-mounted",
    "rootfs-released",
    "published",
    "withdrawing",
    "condemned",
    "deleted-some",
];

#[test]
fn every_failpoint_is_tested() {
    let mut tested = [&[POINTS, ready::POINTS], limits::POINTS].concat().concat();
    let mut all = FAILPOINTS.to_vec();
    tested.sort_unstable();
    all.sort_unstable();
    assert_eq!(tested, all);
}

/// Not a test of its own: it goes through all operations of a store.
#[test]
#[ignore = "another test starts it"]
fn child_that_does_everything() {
    let (dir, uri) = given();
    let store = open(Path::new(&dir)).unwrap();
    let image = store.import(&refer(&uri), Some("it"), &Progress::default()).unwrap();
    store.wait_durable(&Progress::default());
    let rootfs = store.create_rootfs("one", &privileged(&image)).unwrap();
    fs::write(below(&rootfs.mount, "etc/file"), "x").unwrap();
    drop(rootfs);
    store.release_rootfs("one", None);
    assert!(store.drain(SOON));
    let published = store.publish_rootfs("two", &privileged(&image), false).unwrap();
    assert_eq!(fs::read_to_string(published.path.join("seven")).unwrap(), "7");
    assert!(store.withdraw_rootfs("two").unwrap());
    assert!(store.drain(SOON));
    store.remove_image("it", false).unwrap();
    assert!(store.drain(SOON));
    store.close();
}

fn mounts_below(dir: &Path) -> Vec<String> {
    let all = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let points = all.lines().map(|line| line.split(' ').nth(4).unwrap().to_owned());
    points.filter(|point| Path::new(point).starts_with(dir)).collect()
}

#[test]
fn killed_at_every_failpoint() {
    needs!(Root);
    for point in POINTS {
        let dir = tempfile::tempdir().unwrap();
        let uri = tar(dir.path());
        let mut command = child("tests::crashes::child_that_does_everything", dir.path(), &uri);
        let output = command.env(VARIABLE, point).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.signal(), Some(9), "{point} was not reached: {text}");

        let store = open(dir.path()).unwrap();
        // What was published lives until it is withdrawn.
        let published = store.published().unwrap();
        assert_eq!(published.len(), usize::from(matches!(*point, "published" | "withdrawing")), "{point}");
        assert_eq!(store.withdraw_rootfs("two").unwrap(), !published.is_empty(), "{point}");
        assert_eq!(mounts_below(dir.path()), Vec::<String>::new(), "{point}");
        assert!(store.drain(SOON), "{point}");
        for part in ["staging", "trash"] {
            assert_eq!(entries(dir.path(), part), 0, "{point}: {part}");
        }
        assert!(store.rootfs().unwrap().is_empty(), "{point}");
        assert!(store.usage().unwrap().rootfs.is_empty(), "{point}");
        // Each layer in place is complete, and each named image can be used.
        for layer in fs::read_dir(dir.path().join("store/layers")).unwrap() {
            let fs = layer.unwrap().path().join("fs");
            assert_eq!(fs::read_to_string(fs.join("seven")).unwrap(), "7", "{point}");
            assert_eq!(fs::metadata(fs.join("seven")).unwrap().uid(), 7, "{point}");
            assert!(fs.join("etc/passwd").exists(), "{point}");
        }
        for named in store.images().unwrap() {
            store.image(&named.name).unwrap();
        }
        let image = store.image(&uri).unwrap();
        let rootfs = store.create_rootfs("one", &privileged(&image)).unwrap();
        assert_eq!(fs::read_to_string(below(&rootfs.mount, "seven")).unwrap(), "7", "{point}");
        drop(rootfs);
        store.release_rootfs("one", None);
        assert!(store.drain(SOON), "{point}");
        store.close();
        assert_eq!(entries(dir.path(), "rootfs"), 0, "{point}");
    }
}

/// Not a test of its own: it closes a store whose reaper is in the middle of an entry.
#[test]
#[ignore = "another test starts it"]
fn child_that_closes_while_it_deletes() {
    let (dir, uri) = given();
    let store = open(Path::new(&dir)).unwrap();
    let image = store.import(&refer(&uri), None, &Progress::default()).unwrap();
    store.wait_durable(&Progress::default());
    let rootfs = store.create_rootfs("one", &privileged(&image)).unwrap();
    fs::write(below(&rootfs.mount, "file"), "x").unwrap();
    drop(rootfs);
    store.release_rootfs("one", None);
    // The deletion has begun, and is delayed.
    assert!(!store.drain(Duration::from_secs(3)));
    let started = Instant::now();
    store.close();
    println!("closed in {} s", started.elapsed().as_secs());
}

/// On a disk that discards what it deletes, one file can take a minute.
#[test]
fn a_close_does_not_wait_for_a_slow_disk() {
    needs!(Root);
    let dir = tempfile::tempdir().unwrap();
    let uri = tar(dir.path());
    let mut command = child("tests::crashes::child_that_closes_while_it_deletes", dir.path(), &uri);
    let output = command.env(VARIABLE, "deleted-some=wait").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let seconds =
        text.split("closed in ").nth(1).and_then(|text| text.split(' ').next()?.parse::<u64>().ok());
    assert!(output.status.success() && seconds.is_some_and(|seconds| seconds < 30), "{output:?}");
    // The next server deletes what is left.
    assert_ne!(entries(dir.path(), "rootfs"), 0);
    let store = open(dir.path()).unwrap();
    assert!(store.drain(SOON));
    store.close();
    assert_eq!(entries(dir.path(), "rootfs"), 0);
}
