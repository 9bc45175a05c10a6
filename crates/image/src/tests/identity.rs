//! Files identified by their state.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::image::bare;
use super::{Cage, Tar, gzip, write};
use crate::{App, Error, Limits, Remote, Source, Unpacked, Watch};

/// Overwrites a file in place with bytes of the same length, and restores its modification time.
fn rewrite(path: &Path, data: &[u8]) {
    let mut file = File::options().write(true).open(path).unwrap();
    let before = file.metadata().unwrap();
    assert_eq!(before.len(), data.len() as u64);
    file.seek(SeekFrom::Start(0)).unwrap();
    file.write_all(data).unwrap();
    file.set_modified(before.modified().unwrap()).unwrap();
    assert_eq!(file.metadata().unwrap().modified().unwrap(), before.modified().unwrap());
}

fn tar(text: &[u8; 5]) -> Vec<u8> {
    Tar::default().file("a", text).end()
}

fn unpack(layer: &crate::Layer, cage: &Cage) -> Result<Unpacked, Error> {
    let into = File::open(cage.root()).unwrap();
    layer.unpack(into.as_fd(), &[], &Limits::default(), &Watch::default())
}

#[test]
fn a_rewritten_file_is_another_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.tar");
    write(&path, &tar(b"first"));
    let first = bare(&path);
    // Immediately: within one clock tick the second change must still be told from the first.
    rewrite(&path, &tar(b"other"));
    let other = bare(&path);
    assert_ne!((&first.id, &first.layers[0].chain_id), (&other.id, &other.layers[0].chain_id));
    let result = unpack(&first.layers[0], &Cage::new());
    assert!(matches!(result, Err(Error::Changed { .. })), "{result:?}");
    let cage = Cage::new();
    unpack(&other.layers[0], &cage).unwrap();
    assert_eq!(cage.text("a"), "other");
    assert_eq!(bare(&path).id, other.id);
    // Another file in its place, with all that can be set the same.
    let modified = path.metadata().unwrap().modified().unwrap();
    std::fs::rename(&path, dir.path().join("old")).unwrap();
    write(&path, &tar(b"third"));
    File::options().write(true).open(&path).unwrap().set_modified(modified).unwrap();
    assert_ne!(bare(&path).id, other.id);
}

#[test]
fn a_rewritten_app_is_another_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.tgz");
    let (first, other) = (gzip(&tar(b"first")), gzip(&tar(b"other")));
    assert_eq!(first.len(), other.len());
    write(&path, &first);
    let layer = || {
        let address = format!("/base?app={}&app_path=/", path.display());
        let app = App::parse(&address).unwrap().unwrap().1;
        app.layer(&"0".repeat(64), &Remote::default(), &Watch::default()).unwrap()
    };
    let before = layer();
    rewrite(&path, &other);
    assert_ne!(before.chain_id, layer().chain_id);
    let result = unpack(&before, &Cage::new());
    assert!(matches!(&result, Err(Error::App { source, .. }) if matches!(**source, Error::Changed { .. })));
    let cage = Cage::new();
    unpack(&layer(), &cage).unwrap();
    assert_eq!(cage.text("a"), "other");
}

/// A state is returned only when the next change is sure to differ; opening waits for that.
#[test]
fn what_was_changed_this_moment_has_no_state() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.tar");
    let source = Source::parse(path.to_str().unwrap()).unwrap();
    assert_eq!(source.state(), None);
    let mut told = 0;
    for n in 0..20_u8 {
        write(&path, &tar(&[n; 5]));
        let changed = path.metadata().unwrap().modified().unwrap();
        let state = source.state();
        let age = SystemTime::now().duration_since(changed).unwrap_or_default();
        // On a busy host more than a tick may have passed.
        assert!(state.is_none() || age >= Duration::from_millis(20), "{age:?}");
        bare(&path);
        let age = SystemTime::now().duration_since(changed).unwrap();
        assert!(age >= Duration::from_millis(20), "{age:?}");
        told += usize::from(source.state().is_some());
    }
    assert_eq!(told, 20);
    let known = source.state();
    rewrite(&path, &tar(b"other"));
    std::thread::sleep(Duration::from_millis(50));
    assert_ne!(source.state(), known);
}
