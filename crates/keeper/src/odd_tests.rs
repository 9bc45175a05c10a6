//! Odd but legal tars, unpacked by the helper's code and by GNU tar, without a container. Needs root.

#[path = "../../archive/tests/odd/mod.rs"]
mod archives;

use self::archives::{archive, compare, tree, unpack_by_tar};
use std::io::Write;
use std::path::{Path, PathBuf};

/// In a thread of its own: the working directory and the umask become its own with its mount namespace.
fn unpack_in(dir: PathBuf, tar: Vec<u8>) -> Result<(), String> {
    let (read, mut write) = std::io::pipe().unwrap();
    let feeder = std::thread::spawn(move || drop(write.write_all(&tar)));
    let unpacker = std::thread::spawn(move || {
        wardian_sys::namespace::own_mounts().unwrap();
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
        std::env::set_current_dir(dir).unwrap();
        super::unpack(read.into()).map_err(|stop| stop.text)
    });
    let done = unpacker.join().unwrap();
    feeder.join().unwrap();
    done
}

/// What differs on purpose is not compared: everything belongs to the user; nothing sets a user or group id, as with
/// `--no-same-permissions`; devices are refused.
fn check(seed: u64, into: &Path) {
    let odd = archive(seed, false);
    let (ours, theirs) = (into.join("ours"), into.join("theirs"));
    std::fs::create_dir(&ours).unwrap();
    std::fs::create_dir(&theirs).unwrap();
    unpack_in(ours.clone(), odd.tar.clone()).unwrap_or_else(|e| panic!("{e}\n{}", odd.story));
    unpack_by_tar(&odd.tar, &theirs, &["--no-same-owner", "--no-same-permissions"]);
    compare(&tree(&ours, &odd, false, 0o777), &tree(&theirs, &odd, false, 0o777), &odd.story);
}

#[test]
fn odd_archives_are_what_tar_makes_of_them() {
    for seed in 0..400 {
        check(seed, tempfile::tempdir().unwrap().path());
    }
}
