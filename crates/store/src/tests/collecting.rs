//! Garbage collection.

use super::*;
use crate::layers::partial::{self, Which};

/// Makes a tar with one file of this many kilobytes.
fn sized(dir: &Path, name: &str, kilobytes: usize) -> String {
    let path = dir.join(format!("{name}.tar"));
    let mut tar = tar::Builder::new(fs::File::create(&path).unwrap());
    let data = vec![7; kilobytes << 10];
    add(&mut tar, "file", &data);
    tar.finish().unwrap();
    path.to_str().unwrap().to_owned()
}

fn used_at(store: &Store, image: &Image, seconds: i64) {
    for layer in image.layers.iter() {
        let time = rustix::fs::Timespec { tv_sec: seconds, tv_nsec: 0 };
        let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
        let flags = rustix::fs::AtFlags::empty();
        rustix::fs::utimensat(&store.0.layout.layers, &layer.chain, &times, flags).unwrap();
    }
}

#[test]
fn the_longest_unused_goes_first_and_no_more_than_needed() {
    needs!(Root);
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&config(dir.path())).unwrap();
    let mut images = Vec::new();
    for (name, when) in [("a", 3000), ("b", 1000), ("c", 2000), ("d", 500), ("e", 400)] {
        let uri = sized(dir.path(), name, 1000);
        let image = store.import(&refer(&uri), Some(name), &Progress::default()).unwrap();
        images.push((image, when));
    }
    store.wait_durable(&Progress::default());
    store.pin("d", true).unwrap();
    store.create_rootfs("container", &privileged(&images[4].0)).unwrap();
    drop(store);
    // A process that has not used the layers itself goes by the times on the disk.
    let store = Store::open(&config(dir.path())).unwrap();
    for (image, when) in &images {
        used_at(&store, image, *when);
    }
    let all = store.usage().unwrap();
    assert!(all.layers == 5 && all.layers_bytes >= 5000 << 10 && all.layers_bytes < 6 << 20, "{all:?}");
    assert_eq!(all.used_bytes + all.pinned_bytes + all.reclaimable_bytes, all.layers_bytes);
    assert!(all.reclaimable_bytes > 2000 << 10 && all.pinned_bytes > 900 << 10 && all.used_bytes > 900 << 10);

    let nothing = store.collect(all.layers_bytes).unwrap();
    assert!(nothing.layers.is_empty() && nothing.freed_bytes == 0);
    let some = store.collect(all.layers_bytes - 1).unwrap();
    assert_eq!((some.layers, some.images), (images[1].0.chain_ids(), vec!["b".to_owned()]));
    let rest = store.collect(0).unwrap();
    assert_eq!(rest.images, ["a", "c"]);
    assert_eq!(rest.kept_bytes, rest.needed_bytes);
    let names: Vec<_> = store.images().unwrap().into_iter().map(|image| image.name).collect();
    // Used and pinned ones stay.
    assert_eq!(names, ["d", "e"]);
    assert_eq!(entries(dir.path(), "layers"), 2);
    // Trash takes space until it is deleted.
    assert!(store.usage().unwrap().trash_bytes > 2000 << 10);
    assert!(store.reap(&Progress::default()).unwrap());
    assert!(store.usage().unwrap().trash_bytes < 100 << 10);

    // Without pin and container the layers can be collected, the name is removed, and a new import fetches again.
    store.pin("d", false).unwrap();
    store.release_rootfs("container", None);
    assert_eq!(store.remove_image("d", false).unwrap().layers, images[3].0.chain_ids());
    assert!(matches!(store.remove_image("d", false), Err(Error::Name(image::Error::Unknown { .. }))));
    assert_eq!(store.collect(0).unwrap().images, ["e"]);
    assert_eq!(entries(dir.path(), "layers"), 0);
    store.import(&refer(images[4].0.uri.as_str()), Some("e"), &Progress::default()).unwrap();
}

#[test]
fn a_name_whose_layers_are_gone_is_fetched_again() {
    needs!(Root);
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    let image = store.import(&refer(&tar(dir.path())), Some("it"), &Progress::default()).unwrap();
    let layer = &image.layers[0];
    store.0.condemn(&layer.chain, &layer.instance).unwrap();
    let again = store.image("it").unwrap();
    assert_eq!(again.chain_ids(), image.chain_ids());
    assert!(matches!(store.image("nobody"), Err(Error::Name(image::Error::Unknown { .. }))));
    assert!(store.import(&refer(&tar(dir.path())), Some("../it"), &Progress::default()).is_err());
    // A pin survives a new import.
    store.pin("it", true).unwrap();
    store.import(&refer(&tar(dir.path())), Some("it"), &Progress::default()).unwrap();
    assert!(store.find_image("it").unwrap().pinned);
}

#[test]
fn collecting_and_creating_at_the_same_time() {
    needs!(Root);
    let dir = tempfile::tempdir().unwrap();
    let uris: Vec<_> = (0..3).map(|n| sized(dir.path(), &n.to_string(), 20 + n)).collect();
    let server = open(dir.path()).unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let collector = scope.spawn(|| {
            // Another process would do the same.
            let other = Store::open(&config(dir.path())).unwrap();
            let mut collected = 0;
            while !done.load(Ordering::Relaxed) {
                collected += other.collect(0).unwrap().layers.len();
                collected += server.collect(0).unwrap().layers.len();
                std::thread::sleep(Duration::from_millis(5));
            }
            collected
        });
        let creators: Vec<_> = (0..4)
            .map(|creator| {
                let (server, uris) = (&server, &uris);
                scope.spawn(move || {
                    for round in 0..40 {
                        let uri = &uris[(creator + round) % uris.len()];
                        let id = format!("{creator}-{round}");
                        let made = server
                            .image(uri)
                            .and_then(|image| server.create_rootfs(&id, &privileged(&image)));
                        // Collected as fast as fetched: a valid outcome here.
                        let made = match made {
                            Err(Error::Collected { .. } | Error::Rootfs(rootfs::Error::Gone { .. })) => {
                                continue;
                            }
                            made => made.unwrap(),
                        };
                        let size = fs::metadata(below(&made.mount, "file")).unwrap().len();
                        std::thread::sleep(Duration::from_millis(2));
                        let data = fs::read(below(&made.mount, "file")).unwrap();
                        assert!(data.len() as u64 == size && data.iter().all(|byte| *byte == 7));
                        drop(made);
                        server.release_rootfs(&id, None);
                    }
                })
            })
            .collect();
        let results: Vec<_> = creators.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        done.store(true, Ordering::Relaxed);
        results.into_iter().for_each(|result| result.unwrap());
        assert!(collector.join().unwrap() > 0);
    });
    server.collect(0).unwrap();
    assert!(server.drain(SOON));
    drop(server);
    let store = Store::open(&config(dir.path())).unwrap();
    assert!(store.reap(&Progress::default()).unwrap());
    for part in ["layers", "rootfs", "trash", "staging"] {
        assert_eq!(entries(dir.path(), part), 0, "{part}");
    }
}

#[test]
fn an_app_is_not_unpacked_on_what_was_thrown_away() {
    needs!(Root);
    let (dir, uri, store) = served();
    let app = sized(dir.path(), "app", 1);
    let with_app = format!("{uri}?app={app}&app_path=/etc/made");
    let (_, parsed) = wardian_image::App::parse(&with_app).unwrap().unwrap();
    let below = store.image(&uri).unwrap();
    let source = store.0.app_layer(&below, &parsed, &wardian_image::Watch::default()).unwrap();
    store.collect(0).unwrap();
    let progress = Progress::default();
    let watch = progress.add(&source);
    let layers: Vec<_> = below.layers.iter().cloned().collect();
    let error = store.0.layer(&source, None, &layers, &watch, &progress).unwrap_err();
    assert!(error.is_baseless(), "{error}");
    assert!(store.layer(&source.chain_id).is_none());
    // A request for the image fetches both layers again.
    let image = store.image(&with_app).unwrap();
    assert_eq!(image.chain_ids().last(), Some(&source.chain_id));
    assert_eq!(store.at_hand(&refer(&with_app)).unwrap().unwrap().chain_ids(), image.chain_ids());
    store.collect(0).unwrap();
    assert!(store.at_hand(&refer(&with_app)).unwrap().is_none());
}

/// What is kept of pulls is for the next try: it goes when somebody asks for space, or is old.
#[test]
fn parts_of_blobs_go_when_they_are_asked_for_or_old() {
    needs!(Root);
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&config(dir.path())).unwrap();
    let partials = dir.path().join("store/partial");
    let make = |name: &str| {
        let file = fs::File::create(partials.join(name)).unwrap();
        std::io::Write::write_all(&mut &file, &vec![7; 2 << 20]).unwrap();
        file
    };
    let count = || entries(dir.path(), "partial");
    let (old, _new) = (make("sha256-old"), make("sha256-new"));
    store.import(&refer(&sized(dir.path(), "a", 10)), Some("a"), &Progress::default()).unwrap();
    assert_eq!(store.remove_image("a", false).unwrap().partial_bytes, 0);
    assert_eq!((store.collect(0).unwrap().partial_bytes, count()), (0, 2));
    partial::sweep(&store.0.layout, Which::Old, false);
    assert_eq!(count(), 2);
    let day = std::time::Duration::from_secs(25 * 3600);
    old.set_modified(std::time::SystemTime::now() - day).unwrap();
    partial::sweep(&store.0.layout, Which::Old, false);
    assert_eq!(count(), 1);
    assert!(store.usage().unwrap().partial_bytes >= 2 << 20);
    assert!(store.find_garbage(Garbage::Unnamed).unwrap().partial_bytes >= 2 << 20);
    assert_eq!(count(), 1);
    // One that is being received stays.
    let received = make("sha256-received");
    rustix::fs::flock(&received, rustix::fs::FlockOperation::LockExclusive).unwrap();
    assert!(store.collect_garbage(Garbage::Unnamed, None).unwrap().partial_bytes >= 2 << 20);
    assert_eq!(count(), 1);
}
