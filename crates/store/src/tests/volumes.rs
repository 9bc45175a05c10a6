//! Named volumes.

use super::*;
use crate::erase;
use crate::volume::Error as VolumeError;

fn names(store: &Store) -> Vec<String> {
    store.volumes().unwrap().into_iter().map(|volume| volume.name).collect()
}

#[test]
fn volumes_are_made_once_and_outlive_what_else_there_is() {
    needs!(Root);
    let (dir, _, store) = served();
    let root = dir.path().join("store");
    let (data, made) = store.volume("b").unwrap();
    assert!(made && !store.volume("b").unwrap().1 && store.volume("a").unwrap().1);
    assert_eq!(names(&store), ["a", "b"]);
    assert!(store.volumes().unwrap().iter().all(|volume| volume.created_ms > 0));
    fs::write(format!("/proc/self/fd/{}/kept", data.as_raw_fd()), vec![7; 1 << 20]).unwrap();
    // Nobody but root gets to the files, whatever mode they have.
    let mode = |path: &str| fs::metadata(root.join(path)).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode("volumes"), mode("volumes/b"), mode("volumes/b/data")), (0o700, 0o700, 0o755));
    for bad in ["..", "../layers", ".new-x", "", "a/b"] {
        assert!(matches!(store.volume(bad), Err(Error::Volume(VolumeError::Invalid { .. }))), "{bad}");
        assert!(matches!(store.remove_volume(bad), Err(Error::Volume(VolumeError::Invalid { .. }))), "{bad}");
    }
    let gone = store.remove_volume("c");
    assert!(matches!(gone, Err(Error::Volume(VolumeError::Unknown { .. }))), "{gone:?}");
    store.collect_garbage(Garbage::Until(0), None).unwrap();
    let usage = store.usage().unwrap();
    assert!(usage.volumes_bytes >= 1 << 20 && usage.volumes.len() == 2, "{usage:?}");
    // What is not a volume is none; what a killed server has left half-made is discarded by the next.
    store.close();
    drop(store);
    fs::create_dir_all(root.join("volumes/.new-0/data")).unwrap();
    symlink("/etc", root.join("volumes/link")).unwrap();
    fs::write(root.join("volumes/b/volume.json"), "").unwrap();
    let store = open(dir.path()).unwrap();
    assert_eq!(names(&store), ["a", "b"]);
    assert!(store.volume("link").is_err());
    assert!(!root.join("volumes/.new-0").exists() && root.join("volumes/b/data/kept").exists());
    store.remove_volume("b").unwrap();
    assert_eq!(names(&store), ["a"]);
    assert!(store.drain(SOON));
    assert_eq!(fs::read_dir(root.join("trash")).unwrap().count(), 0);
    assert!(Path::new("/etc/passwd").exists());
    store.close();
    drop(store);
    fs::remove_file(root.join("volumes/link")).unwrap();
    let erase = |images, volumes| erase::parts(&root, erase::Parts { images, volumes }).unwrap();
    assert_eq!(erase(false, false), (0, 1));
    assert_eq!(erase(true, false), (0, 1));
    assert!(root.join("volumes/a/data").exists() && !root.join("layers").exists());
    assert!(crate::whose::store(&root).unwrap());
    // A store that has volumes alone can be opened again.
    let store = open(dir.path()).unwrap();
    assert_eq!(names(&store), ["a"]);
    store.close();
    drop(store);
    assert_eq!(erase(true, true), (1, 0));
    assert!(!root.exists());
}
