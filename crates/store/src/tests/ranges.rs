//! Owners with unshared mappings.

use super::ready::ready;
use super::together::wait_for;
use super::*;

fn own(userns: &OwnedFd, uid: u32) -> Owner<'_> {
    Owner { userns: userns.as_fd(), uid, gid: uid, shared: false }
}

/// Returns a user namespace with this many ids from [`MAPPED`] on.
fn sized(size: u32) -> OwnedFd {
    let map = [IdMap { inside: 0, outside: MAPPED, size }];
    user(&map, &map).unwrap()
}

#[test]
fn what_is_one_owners_alone_is_kept_for_nobody() {
    needs!(Root);
    let (dir, uri, store) = ready();
    let image = store.image(&uri).unwrap();
    // Two owners with the same root; the second has too few ids for user 7.
    let (large, small) = (sized(65_536), sized(5));
    let first = store.create_rootfs("first", &owned(&image, &own(&large, MAPPED))).unwrap();
    assert_eq!(fs::metadata(below(&first.mount, "seven")).unwrap().uid(), MAPPED + 7);
    let second = store.create_rootfs("second", &owned(&image, &own(&small, MAPPED))).unwrap();
    assert_eq!(fs::metadata(below(&second.mount, "seven")).unwrap().uid(), 65_534);
    assert_eq!(fs::metadata(below(&second.mount, "etc/passwd")).unwrap().uid(), MAPPED);
    // The pool has filled meanwhile: ready pairs are changed to the owner.
    let ready = || store.0.pool.shelves.lock().get(&(0, 0)).map_or(0, Vec::len);
    wait_for(|| ready() > 3);
    for n in 0..3 {
        let map = [IdMap { inside: 0, outside: 200_000 + n * 65_536, size: 65_536 }];
        let userns = user(&map, &map).unwrap();
        let root = map[0].outside;
        let id = n.to_string();
        let made = store.create_rootfs(&id, &owned(&image, &own(&userns, root))).unwrap();
        let stat = fs::metadata(below(&made.mount, ".")).unwrap();
        assert_eq!((stat.uid(), stat.gid(), stat.mode() & 0o7777), (root, root, 0o711));
        fs::write(below(&made.mount, "seven"), "8").unwrap();
        assert_eq!(fs::metadata(made.dir.join("upper/seven")).unwrap().uid(), root + 7);
        store.release_rootfs(&id, None);
    }
    // Nothing grows with the number of owners.
    assert!(image.layers[0].mounts.lock().is_empty());
    assert_eq!(store.0.pool.shelves.lock().keys().collect::<Vec<_>>(), [&(0, 0)]);
    assert_eq!((store.0.ready.is_idle(), store.ready_rootfs()), (true, 0));
    drop((first, second));
    ["first", "second"].iter().for_each(|id| store.release_rootfs(id, None));
    super::ready::nothing_stays(&dir, &store);
}
