//! Limits on what is written, where no driver can enforce them.

use super::*;

#[test]
fn a_limit_that_cannot_be_enforced_is_refused_and_leaves_nothing() {
    needs!(Root);
    let dir = tempfile::tempdir().unwrap();
    let uri = tar(dir.path());
    let config = Config { disk_driver: Some(DiskDriver::None), ..config(dir.path()) };
    let store = Store::serve(&config, &|_| false).unwrap();
    let image = store.image(&uri).unwrap();
    let limit = DiskLimit { bytes: Some(1 << 30), ..DiskLimit::default() };
    let error = store.create_rootfs("a", &RootfsSpec { limit, ..privileged(&image) }).unwrap_err();
    assert!(matches!(&error, Error::Rootfs(rootfs::Error::Limit { .. })), "{error:?}");
    let small = DiskLimit { bytes: Some(image.bytes()), ..limit };
    let error = store.create_rootfs("a", &RootfsSpec { limit: small, ..privileged(&image) }).unwrap_err();
    assert!(matches!(&error, Error::Rootfs(rootfs::Error::TooSmall(_))), "{error:?}");
    assert!(store.rootfs().unwrap().is_empty());
    // A limit of nothing is none.
    let none = RootfsSpec { limit: DiskLimit::default(), ..privileged(&image) };
    drop(store.create_rootfs("a", &none).unwrap());
    let error = store.limit_rootfs("a", limit).unwrap_err();
    assert!(matches!(&error, Error::Rootfs(rootfs::Error::Limit { .. })), "{error:?}");
    assert!(matches!(store.limit_rootfs("b", limit), Err(Error::Unknown { .. })));
    store.release_rootfs("a", None);
    assert!(store.drain(SOON));
    assert_eq!(store.trash_count(), 0);
}
