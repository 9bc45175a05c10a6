//! Layers and root file systems across several servers.

use super::*;
use crate::layer::{Record, State};

/// Returns a layer's record, and its directory for writing it.
fn record_of(store: &Store, chain: &str) -> (Record, fs::File) {
    let layer = store.0.layout.path.join("layers").join(chain);
    let text = fs::read_to_string(layer.join("layer.json")).unwrap();
    (serde_json::from_str(&text).unwrap(), fs::File::open(&layer).unwrap())
}

fn durable(store: &Store) {
    assert!(store.wait_durable(&Progress::default()));
}

#[test]
fn layers_become_durable_and_suspects_are_replaced() {
    needs!(Root);
    let (dir, uri, store) = served();
    let image = store.image(&uri).unwrap();
    durable(&store);
    let known = store.layer(&image.layers[0].chain).unwrap();
    assert!(known.durable && known.disk_bytes.is_some_and(|bytes| bytes > 0), "{known:?}");
    assert_eq!(image.layers[0].state(), State::Durable);

    let rootfs = store.create_rootfs("old", &privileged(&image)).unwrap();
    image.layers[0].set_state(State::Suspect);
    let again = store.image(&uri).unwrap();
    assert!(!Arc::ptr_eq(&image.layers[0], &again.layers[0]));
    // A create with the old image gets the new layer.
    store.create_rootfs("new", &privileged(&image)).unwrap();
    let records = store.rootfs().unwrap();
    assert_eq!(records[0].layers, [again.layers[0].as_used()], "{}", records[0].id);
    assert_eq!(records[1].layers, [image.layers[0].as_used()], "{}", records[1].id);
    // A container on the suspect layer goes on; the layer is deleted after it.
    assert_eq!(fs::read_to_string(below(&rootfs.mount, "seven")).unwrap(), "7");
    assert_eq!(entries(dir.path(), "trash"), 1);
    store.close();
    let store = Store::serve(&config(dir.path()), &|id| id == "old").unwrap();
    assert!(store.drain(SOON));
    assert_eq!(entries(dir.path(), "trash"), 1);
    assert!(rootfs.dir.exists());
    store.release_rootfs("old", None);
    store.close();
    let store = open(dir.path()).unwrap();
    assert!(store.drain(SOON));
    assert_eq!(entries(dir.path(), "trash"), 0);
    assert!(!rootfs.dir.exists());
}

#[test]
fn a_suspect_stays_one_for_the_next_server() {
    needs!(Root);
    let (dir, uri, store) = served();
    let image = store.image(&uri).unwrap();
    durable(&store);
    let chain = image.layers[0].chain.clone();
    let (mut record, handle) = record_of(&store, &chain);
    (record.durable, record.suspect) = (false, true);
    record.write(&handle).unwrap();
    store.close();
    let store = open(dir.path()).unwrap();
    assert!(store.layer(&chain).is_none());
    let again = store.image(&uri).unwrap();
    assert_ne!(again.layers[0].instance, image.layers[0].instance);
}

#[test]
fn a_layer_whose_process_is_gone_is_trusted_only_if_it_is_durable() {
    needs!(Root);
    let dir = tempfile::tempdir().unwrap();
    let uri = tar(dir.path());
    let store = Store::open(&config(dir.path())).unwrap();
    let image = store.image(&uri).unwrap();
    durable(&store);
    let instance = image.layers[0].instance.clone();
    let (mut record, handle) = record_of(&store, &image.layers[0].chain);
    record.durable = false;
    record.write(&handle).unwrap();
    // As long as its process holds the lock, others use the layer.
    rustix::fs::flock(&handle, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let other = Store::open(&config(dir.path())).unwrap();
    let lent = other.image(&uri).unwrap();
    assert_eq!(lent.layers[0].instance, instance);
    other.create_rootfs("uses", &privileged(&lent)).unwrap();
    // Without that process it is distrusted: its writes may have been lost, and the error reported to another
    // process.
    drop(handle);
    let again = other.image(&uri).unwrap();
    assert_ne!(again.layers[0].instance, instance);
    assert_eq!(entries(dir.path(), "trash"), 1);
    assert_eq!(other.usage().unwrap().layers, 1);
}

#[test]
fn open_puts_the_store_in_order() {
    needs!(Root);
    let (dir, uri, store) = served();
    let image = store.image(&uri).unwrap();
    let live = store.create_rootfs("live", &privileged(&image)).unwrap().dir;
    let dead = store.create_rootfs("dead", &privileged(&image)).unwrap().dir;
    // Otherwise the next server distrusts the layer, and it stays in the trash as long as "live" uses it.
    durable(&store);
    store.close();
    drop(store);
    let root = dir.path().join("store");
    fs::create_dir_all(root.join("staging/half/fs/etc")).unwrap();
    fs::write(root.join("staging/0.lock"), "").unwrap();
    fs::create_dir_all(root.join("trash/old/fs")).unwrap();
    fs::create_dir_all(root.join("rootfs/lost/upper")).unwrap();
    // Layers of another boot that are not durable, without a record, and with half a record as after a power cut.
    let text = fs::read_dir(root.join("layers")).unwrap().next().unwrap().unwrap().path().join("layer.json");
    let mut record: Record = serde_json::from_str(&fs::read_to_string(text).unwrap()).unwrap();
    (record.boot_id, record.durable, record.instance) = ("another".into(), false, "another".into());
    for (name, text) in [("lost", serde_json::to_string(&record).unwrap()), ("cut", "{\"cha".into())] {
        fs::create_dir_all(root.join("layers").join(name).join("fs")).unwrap();
        fs::write(root.join("layers").join(name).join("layer.json"), text).unwrap();
    }
    fs::create_dir(root.join("layers/bare")).unwrap();

    let store = Store::serve(&config(dir.path()), &|id| id == "live").unwrap();
    assert!(store.drain(SOON));
    assert_eq!((entries(dir.path(), "staging"), entries(dir.path(), "trash")), (0, 0));
    assert_eq!(entries(dir.path(), "layers"), 1);
    assert!(live.join("upper").exists());
    assert!(!dead.exists() && !root.join("rootfs/lost").exists());

    // Only one server at a time; and a store of a later version is refused.
    assert!(matches!(open(dir.path()), Err(Error::Layout(layout::Error::InUse { .. }))));
    drop(store);
    fs::write(root.join("format.json"), r#"{"version":1,"incompat":["erofs"]}"#).unwrap();
    assert!(matches!(open(dir.path()), Err(Error::Format(format::Error::Features { .. }))));
    // A store from before the records of root file systems is upgraded.
    fs::write(root.join("format.json"), r#"{"version":1}"#).unwrap();
    open(dir.path()).unwrap();
    assert!(fs::read_to_string(root.join("format.json")).unwrap().contains("records"));
}

#[test]
fn lost_writes_mark_the_living() {
    needs!(Root);
    let (dir, uri, store) = served();
    let image = store.image(&uri).unwrap();
    store.create_rootfs("hit", &privileged(&image)).unwrap();
    store.0.mark_hit("a disk was pulled");
    store.create_rootfs("later", &privileged(&image)).unwrap();
    let error = store.writeback_error("hit").unwrap();
    assert!(error.contains("a disk was pulled") && error.contains("destroy"), "{error}");
    assert_eq!(store.writeback_error("later"), None);
    // The next server reads the error from the record.
    store.close();
    let store = Store::serve(&config(dir.path()), &|_| true).unwrap();
    assert_eq!(store.writeback_error("hit").unwrap(), error);
    store.release_rootfs("hit", None);
    assert_eq!(store.writeback_error("hit"), None);
}

#[test]
fn attached_root_file_systems_outlive_commands_and_servers() {
    needs!(Root);
    let dir = tempfile::tempdir().unwrap();
    let uri = tar(dir.path());
    let store = Store::open(&config(dir.path())).unwrap();
    let image = store.image(&uri).unwrap();
    let path = store.attach_rootfs("seen", &privileged(&image), false).unwrap();
    assert_eq!(fs::read_to_string(path.join("seven")).unwrap(), "7");
    assert!(matches!(
        store.attach_rootfs("seen", &privileged(&image), false),
        Err(Error::Rootfs(rootfs::Error::Exists { .. }))
    ));
    assert_eq!(fs::read_to_string(path.join("seven")).unwrap(), "7");
    fs::write(path.join("new"), [1; 10_000]).unwrap();
    assert!(store.rootfs_bytes("seen").unwrap().unwrap() > 10_000);
    drop(store);

    let server = open(dir.path()).unwrap();
    assert_eq!(server.rootfs().unwrap()[0].attached.as_deref(), Some(&*path));
    let store = Store::open(&config(dir.path())).unwrap();
    let busy = fs::File::open(path.join("new")).unwrap();
    assert!(matches!(store.detach_rootfs("seen"), Err(Error::Rootfs(rootfs::Error::Busy { .. }))));
    assert_eq!(fs::read_to_string(path.join("seven")).unwrap(), "7");
    drop(busy);
    let record = store.rootfs().unwrap().remove(0);
    assert!(store.detach_rootfs("seen").unwrap());
    assert!(!store.detach_rootfs("seen").unwrap());
    assert!(!path.exists());
    // The server notices and deletes a command's trash.
    let writable = dir.path().join("store/rootfs").join(record.dir);
    let start = std::time::Instant::now();
    while writable.exists() && start.elapsed() < SOON {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(!writable.exists());

    // A container's root file system cannot be detached.
    server.create_rootfs("kept", &privileged(&image)).unwrap();
    assert!(matches!(store.detach_rootfs("kept"), Err(Error::Rootfs(rootfs::Error::Kept { .. }))));
    // Without a server the trash stays until [`Store::reap`].
    server.release_rootfs("kept", None);
    server.close();
    drop(server);
    store.create_rootfs("gone", &privileged(&image)).unwrap();
    store.release_rootfs("gone", None);
    assert!(Store::open(&config(dir.path())).unwrap().reap(&Progress::default()).unwrap());
    assert_eq!(entries(dir.path(), "rootfs"), 0);
    // Another run directory is refused, because it would hide the living root file systems.
    store.create_rootfs("living", &privileged(&image)).unwrap();
    let elsewhere = Config { run: dir.path().join("elsewhere"), ..config(dir.path()) };
    for opened in [Store::open(&elsewhere), Store::serve(&elsewhere, &|_| false)] {
        assert!(matches!(opened, Err(Error::Layout(layout::Error::OtherRun { .. }))));
    }
    // With no living root file system it is accepted, after waiting for a command that holds the lock.
    store.release_rootfs("living", None);
    assert!(Store::open(&config(dir.path())).unwrap().reap(&Progress::default()).unwrap());
    let lock = std::fs::File::open(dir.path().join("store/lock")).unwrap();
    lock.lock().unwrap();
    let opening = std::thread::spawn(move || Store::open(&elsewhere).map(drop));
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert!(!opening.is_finished());
    drop(lock);
    opening.join().unwrap().unwrap();
}
