//! Root file systems mounted ahead.

use std::os::unix::process::ExitStatusExt;

use wardian_sys::failpoint::VARIABLE;

use super::together::{child, given, wait_for};
use super::*;
use crate::layer::State;
use crate::ready::Wanted;

const READY: usize = 2;

/// The failpoints that [`child_that_claims`] passes.
pub(super) const POINTS: &[&str] = &["mounted-ahead", "spare-claimed", "spare-refused"];

fn with(dir: &Path, ready_rootfs: usize) -> Store {
    Store::serve(&Config { ready_rootfs, ..config(dir) }, &|_| false).unwrap()
}

/// Returns a server that keeps two spares of each kind.
pub(super) fn ready() -> (tempfile::TempDir, String, Store) {
    let dir = tempfile::tempdir().unwrap();
    let (uri, store) = (tar(dir.path()), with(dir.path(), READY));
    (dir, uri, store)
}

/// Creates a root file system of a kind, and waits until the steward has made spares of it.
fn ask(store: &Store, id: &str, image: &Image, owner: Option<&Owner<'_>>) {
    let before = store.ready_rootfs();
    drop(store.create_rootfs(id, &RootfsSpec::new(image, owner.copied())).unwrap());
    store.release_rootfs(id, None);
    wait_for(|| store.ready_rootfs() == before + READY);
}

/// Returns the names of the spares' directories.
fn names(store: &Store) -> Vec<String> {
    store.0.ready.names()
}

fn is_spare(names: &[String], rootfs: &Rootfs) -> bool {
    names.iter().any(|name| rootfs.dir.ends_with(name))
}

/// The close removes spares, and the reaper discarded ones.
pub(super) fn nothing_stays(dir: &tempfile::TempDir, store: &Store) {
    store.0.door.stop(Instant::now() + SOON);
    assert!(store.drain(SOON));
    store.close();
    assert_eq!((entries(dir.path(), "rootfs"), store.ready_rootfs()), (0, 0));
}

#[test]
fn a_claim_is_what_a_create_would_have_made() {
    needs!(Root);
    let (dir, uri, store) = ready();
    let image = store.image(&uri).unwrap();
    let userns = userns();
    let owner = Owner { userns: userns.as_fd(), uid: MAPPED, gid: MAPPED, shared: true };
    ask(&store, "first", &image, Some(&owner));
    let spares = names(&store);
    // The spares do not fit a privileged container or another root.
    for (id, other) in [("other", None), ("third", Some(Owner { uid: MAPPED + 1, ..owner }))] {
        let rootfs = store.create_rootfs(id, &RootfsSpec::new(&image, other)).unwrap();
        assert!(!is_spare(&spares, &rootfs));
        let root = other.map_or(0, |owner| owner.uid);
        assert_eq!(fs::metadata(below(&rootfs.mount, ".")).unwrap().uid(), root);
    }
    let before: Vec<Rootfs> =
        ["a", "b", "c"].iter().map(|id| store.create_rootfs(id, &owned(&image, &owner)).unwrap()).collect();
    // Two were ready, and all three differ.
    assert!(is_spare(&spares, &before[0]));
    let dirs: std::collections::HashSet<_> = before.iter().map(|rootfs| &rootfs.dir).collect();
    assert_eq!(dirs.len(), 3);
    for (number, rootfs) in before.iter().enumerate() {
        let root = fs::metadata(below(&rootfs.mount, ".")).unwrap();
        assert_eq!((root.uid(), root.gid(), root.mode() & 0o7777), (MAPPED, MAPPED, 0o711));
        assert_eq!(fs::metadata(below(&rootfs.mount, "seven")).unwrap().uid(), MAPPED + 7);
        assert_eq!(fs::read_to_string(below(&rootfs.mount, "seven")).unwrap(), "7");
        fs::write(below(&rootfs.mount, "seven"), number.to_string()).unwrap();
        assert!(!rootfs.honest && rootfs.dir.join("work/work/incompat/volatile").exists());
    }
    for (number, rootfs) in before.iter().enumerate() {
        assert_eq!(fs::read_to_string(rootfs.dir.join("upper/seven")).unwrap(), number.to_string());
    }
    let record = store.rootfs().unwrap().into_iter().find(|record| record.id == "a").unwrap();
    assert!(before[0].dir.ends_with(&record.dir));
    assert_eq!(record.layers, [image.layers[0].as_used()]);
    // Released root file systems are deleted, and spares have no records.
    let written = before[0].dir.clone();
    drop(before);
    ["a", "b", "c", "other", "third"].iter().for_each(|id| store.release_rootfs(id, None));
    wait_for(|| store.ready_rootfs() == 3 * READY);
    assert!(store.drain(SOON));
    assert!(!written.exists() && store.rootfs().unwrap().is_empty() && !store.has_trash().unwrap());
    nothing_stays(&dir, &store);
}

#[test]
fn an_id_that_exists_costs_no_spare() {
    needs!(Root);
    let (dir, uri, store) = ready();
    let image = store.image(&uri).unwrap();
    drop(store.create_rootfs("one", &privileged(&image)).unwrap());
    wait_for(|| store.ready_rootfs() == READY);
    let before = names(&store);
    let again = store.create_rootfs("one", &privileged(&image));
    assert!(matches!(again, Err(Error::Rootfs(rootfs::Error::Exists { .. }))));
    assert_eq!(names(&store), before);
    store.release_rootfs("one", None);
    nothing_stays(&dir, &store);
}

#[test]
fn a_spare_keeps_no_layer_and_goes_with_it() {
    needs!(Root);
    let (dir, uri, store) = ready();
    let image = store.image(&uri).unwrap();
    ask(&store, "first", &image, None);
    let spares = names(&store);
    // Another process, which knows nothing of spares, collects the layer.
    let command = Store::open(&config(dir.path())).unwrap();
    assert_eq!(command.collect(0).unwrap().layers, image.chain_ids());
    let rootfs = store.create_rootfs("one", &privileged(&image)).unwrap();
    assert!(!is_spare(&spares, &rootfs));
    assert_eq!(fs::read_to_string(below(&rootfs.mount, "seven")).unwrap(), "7");
    let record = store.rootfs().unwrap().remove(0);
    assert!(rootfs.dir.ends_with(&record.dir));
    assert_ne!(record.layers, [image.layers[0].as_used()]);
    // The steward discards the other spare, and the layer is deleted after it.
    wait_for(|| !names(&store).iter().any(|name| spares.contains(name)));
    wait_for(|| entries(dir.path(), "trash") == 0);
    assert_eq!(fs::read_to_string(below(&rootfs.mount, "seven")).unwrap(), "7");
    drop(rootfs);
    store.release_rootfs("one", None);
    nothing_stays(&dir, &store);
}

#[test]
fn after_a_lost_write_none_is_left() {
    needs!(Root);
    let (dir, uri, store) = ready();
    let image = store.image(&uri).unwrap();
    ask(&store, "first", &image, None);
    let spares = names(&store);
    // A spare that was claimed or being mounted at that moment is refused.
    let Some(claimed) = store.0.ready.claim(&image.layers, None, Bound::NONE, usize::MAX) else {
        panic!("none is ready")
    };
    store.0.mark_hit("a disk was pulled");
    assert!(store.0.ready.put(claimed).is_err_and(|spare| spare.is_sound()));
    assert!(!names(&store).iter().any(|name| spares.contains(name)));
    let rootfs = store.create_rootfs("later", &privileged(&image)).unwrap();
    assert!(!is_spare(&spares, &rootfs));
    assert_eq!(store.writeback_error("later"), None);
    // Later spares are new.
    wait_for(|| store.ready_rootfs() == READY);
    drop(rootfs);
    store.release_rootfs("later", None);
    nothing_stays(&dir, &store);
}

#[test]
fn no_more_than_were_asked_for() {
    needs!(Root);
    let (dir, uri, store) = ready();
    let image = store.image(&uri).unwrap();
    let userns = userns();
    let owners: Vec<_> = (0..10)
        .map(|n| Owner { userns: userns.as_fd(), uid: MAPPED + n, gid: MAPPED, shared: true })
        .collect();
    for owner in &owners {
        drop(store.create_rootfs("one", &owned(&image, owner)).unwrap());
        store.release_rootfs("one", None);
    }
    // Spares of eight kinds, those asked for most recently.
    wait_for(|| store.ready_rootfs() == 8 * READY);
    assert!(store.0.ready.claim(&image.layers, Some(&owners[2]), Bound::NONE, usize::MAX).is_some());
    assert!(store.0.ready.claim(&image.layers, Some(&owners[1]), Bound::NONE, usize::MAX).is_none());
    // After ten minutes without a create the spares are discarded.
    let later = std::time::Instant::now() + Duration::from_secs(601);
    store.0.discard(store.0.ready.outdated(later, &|_| true));
    assert_eq!(store.ready_rootfs(), 0);
    assert!(store.0.ready.is_idle());
    nothing_stays(&dir, &store);
}

#[test]
fn none_while_memory_or_disk_is_short() {
    needs!(Root);
    let (_dir, uri, store) = ready();
    let image = store.image(&uri).unwrap();
    ask(&store, "first", &image, None);
    let spares = names(&store);
    *store.0.ready.short.lock() = Some(true);
    wait_for(|| store.ready_rootfs() == 0);
    let rootfs = store.create_rootfs("one", &privileged(&image)).unwrap();
    assert!(!is_spare(&spares, &rootfs) && store.ready_rootfs() == 0);
    // The host's state can be read; the result may be either.
    *store.0.ready.short.lock() = None;
    store.0.ready.is_short(&store.0.layout);
    // The kinds are remembered.
    *store.0.ready.short.lock() = Some(false);
    assert!(!names(&store).iter().any(|name| spares.contains(name)));
    wait_for(|| store.ready_rootfs() == READY);
}

#[test]
fn none_are_made_where_none_are_wanted() {
    needs!(Root);
    let dir = tempfile::tempdir().unwrap();
    let uri = tar(dir.path());
    let command = Store::open(&Config { ready_rootfs: READY, ..config(dir.path()) }).unwrap();
    for store in [with(dir.path(), 0), command] {
        let image = store.image(&uri).unwrap();
        drop(store.create_rootfs("one", &privileged(&image)).unwrap());
        store.release_rootfs("one", None);
        assert!(store.0.ready.is_idle() && matches!(store.0.ready.wanted(), Wanted::Nothing));
    }
}

/// Not a test of its own: what [`killed_with_spares`] starts.
#[test]
#[ignore = "another test starts it"]
fn child_that_claims() {
    let (dir, uri) = given();
    let store = with(Path::new(&dir), READY);
    let image = store.image(&uri).unwrap();
    ask(&store, "first", &image, None);
    drop(store.create_rootfs("claimed", &privileged(&image)).unwrap());
    wait_for(|| store.ready_rootfs() == READY);
    // The steward would discard the spares itself.
    store.0.door.stop(Instant::now() + SOON);
    image.layers[0].set_state(State::Suspect);
    drop(store.create_rootfs("refused", &privileged(&image)).unwrap());
}

#[test]
fn killed_with_spares() {
    needs!(Root);
    for point in POINTS {
        let dir = tempfile::tempdir().unwrap();
        let uri = tar(dir.path());
        let mut command = child("tests::ready::child_that_claims", dir.path(), &uri);
        let output = command.env(VARIABLE, point).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.signal(), Some(9), "{point} was not reached: {text}");
        assert!(entries(dir.path(), "rootfs") > 0, "{point}");
        // The next server treats them as trash.
        let store = with(dir.path(), READY);
        assert!(store.drain(SOON), "{point}");
        assert!(store.rootfs().unwrap().is_empty(), "{point}");
        let image = store.image(&uri).unwrap();
        ask(&store, "one", &image, None);
        nothing_stays(&dir, &store);
    }
}
