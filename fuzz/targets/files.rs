//! Any bytes as the tar of files that a container gives to `wardian cp`.
#![no_main]

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::Path;

use libfuzzer_sys::fuzz_target;
use wardian_fuzz::{Cage, fix_checksums};
use wardian_image::files::{Name, unpack};

fuzz_target!(|input: (bool, &[u8])| {
    let (one, data) = input;
    let mut tar = data.to_vec();
    fix_checksums(&mut tar);
    let cage = Cage::default();
    // Somebody has prepared the destination with links that lead out of it.
    for name in ["a", "b", "c"] {
        symlink(if name == "a" { "../secret" } else { ".." }, cage.root().join(name)).expect("a link");
    }
    let before = cage.outside();
    let root = File::open(cage.root()).expect("the root");
    let name = if one { Name::One(b"d", b"e") } else { Name::Contents };
    let _ = unpack(&tar[..], root.as_fd(), name);
    assert_eq!(cage.outside(), before, "something outside of the directory changed");
    check(&cage.root());
});

/// What others have made cannot be run with their rights, and is no device.
fn check(path: &Path) {
    let stat = path.symlink_metadata().expect("an entry");
    let kind = stat.file_type();
    assert!(!kind.is_char_device() && !kind.is_block_device() && !kind.is_socket(), "{path:?}");
    assert!(kind.is_symlink() || stat.mode() & 0o6000 == 0, "mode {:o} at {path:?}", stat.mode());
    assert_eq!((stat.uid(), stat.gid()), (0, 0), "{path:?}");
    if kind.is_dir() {
        for entry in fs::read_dir(path).expect("a directory") {
            check(&entry.expect("an entry").path());
        }
    }
}
