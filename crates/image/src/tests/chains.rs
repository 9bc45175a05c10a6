//! Few bytes that ask for very many steps.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;

use super::{Cage, Tar};
use crate::unpack::entries::{Rules, unpack};
use crate::{Error, Limits, Watch};

fn is_limit(result: &Result<crate::Unpacked, Error>) -> bool {
    matches!(result, Err(Error::Limit { what, .. }) if what.contains("steps along links"))
}

/// Makes a chain of symlinks, each of which leads back and forth before it leads to the previous one.
fn chain(links: u32) -> Tar {
    let mut tar = Tar::default().dir("x/");
    for n in 0..links {
        let to = if n == 0 { "x".to_owned() } else { format!("l{}", n - 1) };
        // The field of a header has room for 100 bytes.
        let long = format!("{}{to}\0", "x/../".repeat(800));
        tar = tar.raw(tar::EntryType::GNULongLink, "././@LongLink", "", long.as_bytes(), |_| {});
        tar = tar.symlink(&format!("l{n}"), "long");
    }
    tar
}

#[test]
fn chains_of_links() {
    let under = |tar: Tar, entries: u32| {
        // Two parents alternate, so that the cached directory never fits.
        (0..entries).fold(tar, |tar, n| tar.file(&format!("l{}/{n}", 38 - n % 2), b"")).end()
    };
    let cage = Cage::new();
    cage.unpack(&under(chain(39), 3)).unwrap();
    assert_eq!(std::fs::read_dir(cage.root().join("x")).unwrap().count(), 3);
    let result = Cage::new().unpack(&under(chain(39), 200));
    assert!(is_limit(&result));
    // The times of directories are set along the same names.
    let dirs = |tar: Tar| (0..60).fold(tar, |tar, n| tar.dir(&format!("l38/{n}/")));
    assert!(is_limit(&Cage::new().unpack(&dirs(chain(39)).end())));
    // As many as the kernel follows, and one more.
    Cage::new().unpack(&chain(40).file("l39/a", b"").end()).unwrap();
    let result = Cage::new().unpack(&chain(41).file("l40/a", b"").end());
    assert!(matches!(result, Err(Error::Write { source: rustix::io::Errno::LOOP, .. })), "{result:?}");
}

#[test]
fn missing_directories() {
    let deep = "d/".repeat(40);
    let tar = |entries: u32| {
        (0..entries).fold(Tar::default(), |tar, n| tar.file(&format!("{n}/{deep}f"), b"")).end()
    };
    // On a tmpfs: making and removing this many directories takes minutes on some disks.
    let cage = || {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        std::fs::create_dir(dir.path().join("root")).unwrap();
        std::fs::write(dir.path().join("secret"), "secret").unwrap();
        Cage(dir)
    };
    cage().unpack(&tar(100)).unwrap();
    assert!(is_limit(&cage().unpack(&tar(2000))));
    // The depth limit holds also through a symlink to missing directories.
    let limits = Limits { max_depth: 8, ..Limits::default() };
    let linked = |target: &str| Tar::default().symlink("l", target).file("l/f", b"").end();
    Cage::new().unpack_with(&linked("a/b/c/d/e/f/g/h"), &limits).unwrap();
    assert!(Cage::new().unpack_with(&linked("a/b/c/d/e/f/g/h/i"), &limits).is_err());
}

/// A cancellation is checked at each entry, and not only at the next read.
#[test]
fn a_cancel_is_seen_at_each_entry() {
    let (cage, watch) = (Cage::new(), Watch::default());
    let root = File::open(cage.root()).unwrap();
    watch.cancel();
    let limits = Limits::default();
    let rules = Rules { base: None, limits: &limits, budget: &Arc::default(), watch: &watch, strict: true };
    let tar = Tar::default().file("a", b"").end();
    let result = unpack(&tar[..], root.as_fd(), &rules);
    assert!(matches!(result, Err(Error::Cancelled { .. })));
    assert_eq!(std::fs::read_dir(cage.root()).unwrap().count(), 0);
}
