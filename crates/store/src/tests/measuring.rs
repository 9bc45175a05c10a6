//! The space of root file systems is measured in the background.

use super::*;

/// Polls the measurement until it is as wanted.
fn until(store: &Store, id: &str, wanted: impl Fn(Measured) -> bool) -> Measured {
    let started = std::time::Instant::now();
    loop {
        let measured = store.measured(id);
        if wanted(measured) {
            return measured;
        }
        assert!(started.elapsed() < SOON, "{measured:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn the_first_question_starts_the_measuring_and_the_image_is_known_at_once() {
    needs!(Root);
    let (dir, uri, store) = served();
    let image = store.image(&uri).unwrap();
    let bytes = store.layer(&image.layers[0].chain).unwrap().bytes;
    let rootfs = store.create_rootfs("a", &privileged(&image)).unwrap();
    let upper = rootfs.dir.join("upper");
    fs::write(upper.join("big"), vec![1; 100_000]).unwrap();
    fs::hard_link(upper.join("big"), upper.join("again")).unwrap();
    fs::create_dir_all(upper.join("deep/er")).unwrap();
    std::os::unix::fs::symlink("/", upper.join("deep/everything")).unwrap();
    std::os::unix::fs::symlink("everything", upper.join("deep/loop")).unwrap();
    assert_eq!(store.measured("a").image_bytes, bytes);
    let measured = until(&store, "a", |m| m.exclusive_bytes > 0);
    assert!((100_000..150_000).contains(&measured.exclusive_bytes), "{measured:?}");
    // The layer must be durable: the next server would discard it otherwise, and not know its size.
    assert!(store.wait_durable(&Progress::default()));
    store.close();
    // The next server has not made the root file system itself.
    let store = Store::serve(&config(dir.path()), &|_| true).unwrap();
    assert_eq!(until(&store, "a", |m| m.exclusive_bytes > 0), measured);
    // A released root file system is forgotten, and unknown ids are not kept.
    store.release_rootfs("a", None);
    assert_eq!(store.measured("a"), Measured::default());
    assert_eq!(store.measured("nobody"), Measured::default());
    until(&store, "nobody", |_| store.0.measurer.known() == 0);
}
