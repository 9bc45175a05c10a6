//! Odd but legal archives, unpacked by this crate and by GNU tar.

#[path = "../../../archive/tests/odd/mod.rs"]
mod archives;

use tar::EntryType;
use wardian_needs::{Need, lacks};

use self::archives::{archive, compare, scratch, tree, unpack_by_tar};
use super::{Cage, Tar};

/// What differs on purpose is not generated, and has tests of its own: names with `..`, which are refused; device 0:0, which
/// is overlayfs' whiteout; links are resolved inside the root; a directory with something in it gives way to a later
/// file, where GNU tar fails, because a layer is no one's directory yet.
fn rounds(seeds: std::ops::Range<u64>) {
    let devices = !lacks(&[Need::Mknod], Some("devices"));
    for seed in seeds {
        let odd = archive(seed, devices);
        let (ours, theirs) = (Cage::in_dir(scratch()), scratch());
        let done = ours.unpack(&odd.tar).unwrap_or_else(|e| panic!("{e:?}\n{}", odd.story));
        assert_eq!(done.skipped_devices, 0, "{}", odd.story);
        unpack_by_tar(&odd.tar, theirs.path(), &["-p"]);
        let (ours, theirs) =
            (tree(&ours.root(), &odd, true, 0o7777), tree(theirs.path(), &odd, true, 0o7777));
        compare(&ours, &theirs, &odd.story);
    }
}

#[test]
fn odd_archives_are_what_tar_makes_of_them() {
    rounds(0..830);
}

/// Takes minutes; for `./dev test --long`.
#[test]
#[ignore = "long"]
fn many_odd_archives_are_what_tar_makes_of_them() {
    rounds(1000..51_000);
}

/// GNU tar refuses a field of blanks, and some tools write it: docker and Python's tarfile take it for 0.
#[test]
fn empty_numbers_are_zero() {
    for fill in [0, b' '] {
        let cage = Cage::new();
        let empty = |header: &mut tar::Header| {
            let bytes = header.as_mut_bytes();
            bytes[100..148].fill(fill);
            bytes[329..345].fill(fill);
        };
        let tar = Tar::default()
            .raw(EntryType::Regular, "f", "", b"", empty)
            .raw(EntryType::Directory, "d", "", b"", empty)
            .raw(EntryType::Symlink, "s", "f", b"", empty)
            .raw(EntryType::Block, "b", "", b"", empty)
            .end();
        cage.unpack(&tar).unwrap();
        for name in ["f", "d", "s", "b"] {
            let stat = cage.stat(name);
            use std::os::unix::fs::MetadataExt;
            assert_eq!((stat.uid(), stat.gid(), stat.mtime(), stat.rdev()), (0, 0, 0, 0), "{name}");
        }
        // An empty name is refused all the same.
        let tar = Tar::default().raw(EntryType::Regular, "", "", b"", empty).end();
        assert!(cage.unpack(&tar).is_err());
    }
}
