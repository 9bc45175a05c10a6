use super::*;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use std::fs;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use wardian_needs::needs;

/// An ordinary user of the host.
const USER: u32 = 65534;

/// Makes a directory of another user below one of root's.
fn theirs() -> (tempfile::TempDir, PathBuf) {
    let base = tempfile::tempdir().unwrap();
    let theirs = base.path().join("theirs");
    fs::create_dir(&theirs).unwrap();
    chown(&theirs, Some(USER), Some(USER)).unwrap();
    (base, theirs)
}

#[test]
fn a_link_of_roots_that_a_user_has_moved_leads_nowhere() {
    needs!(Root);
    let (base, theirs) = theirs();
    let at = |path: &str| base.path().join(path);
    fs::create_dir_all(at("real")).unwrap();
    fs::create_dir_all(at("shared/roots")).unwrap();
    for link in ["link", "theirs/link", "theirs/roots", "shared/link", "shared/roots/link"] {
        if link == "theirs/roots" {
            fs::create_dir(at(link)).unwrap();
            symlink(at("real"), at("theirs/roots/link")).unwrap();
        } else {
            symlink(at("real"), at(link)).unwrap();
        }
    }
    symlink("theirs/link", at("round")).unwrap();
    let open = |mode: u32| fs::set_permissions(at("shared"), fs::Permissions::from_mode(mode)).unwrap();
    let refused = |path: &str| match directory(&at(path)) {
        Err(Error::UnsafePath { .. }) => true,
        Ok(Some(_)) => false,
        other => panic!("{path}: {other:?}"),
    };
    // Refused if the user can move the symlink, or a directory above it.
    for path in ["theirs/link", "theirs/link/.", "theirs/roots/link", "round", "theirs/link/../real"] {
        assert!(refused(path), "{path}");
        assert!(super::super::Source::open(&at(path).join("."), true).is_err(), "{path}");
    }
    for path in ["link", "theirs", "theirs/roots", "theirs/../link"] {
        assert!(!refused(path), "{path}");
    }
    for (mode, bad) in [
        (0o755, (false, false)),
        (0o775, (true, true)),
        (0o777, (true, true)),
        // The link itself can have been moved there, a directory of root's cannot.
        (0o1777, (true, false)),
    ] {
        open(mode);
        assert_eq!((refused("shared/link"), refused("shared/roots/link")), bad, "{mode:o}");
    }
    drop(theirs);
}

#[test]
fn what_is_exchanged_for_a_new_directory_is_not_opened() {
    needs!(Root);
    let (_base, theirs) = theirs();
    let (new, private) = (theirs.join("new"), theirs.join("private"));
    fs::create_dir(&private).unwrap();
    fs::set_permissions(&private, fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(private.join("key"), "").unwrap();
    let inode = fs::metadata(&private).unwrap().ino();
    let above = fs::File::open(&theirs).unwrap();
    let over = AtomicBool::new(false);
    let (mut exchanged, mut opened, mut failed) = (0, 0, None);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let _ = renameat_with(CWD, &new, CWD, &private, RenameFlags::EXCHANGE);
                std::thread::sleep(std::time::Duration::from_micros(20));
            }
        });
        for _ in 0..5_000 {
            match fresh(above.as_fd(), "new", Mode::RWXU) {
                Ok(dir) if fstat(&dir).unwrap().st_ino == inode => opened += 1,
                Ok(_) => {}
                Err(NotMade::Replaced) => exchanged += 1,
                // No panic here, because the scope would wait for the attacker's thread forever.
                Err(error) => failed = Some(error),
            }
            // Removed under its current name; one that is not empty stays.
            while fs::remove_dir(&new).or_else(|_| fs::remove_dir(&private)).is_err() {}
            let _ = fs::rename(&new, &private);
        }
        over.store(true, Ordering::Relaxed);
    });
    assert!(opened == 0 && failed.is_none(), "{opened} {failed:?}; {exchanged} were noticed");
}

/// Each condition for a new directory, without a race.
#[test]
fn a_new_directory_is_told_by_all_that_it_is() {
    needs!(Root);
    let (base, theirs) = theirs();
    let open = |path: &Path| OwnedFd::from(fs::File::open(path).unwrap());
    let above = open(&theirs);
    let dir = theirs.join("dir");
    fs::create_dir(&dir).unwrap();
    let since = SystemTime::now();
    let is_new = |since: SystemTime| super::is_new(above.as_fd(), &open(&dir), since).unwrap();
    assert!(is_new(since));
    fs::write(dir.join("f"), "").unwrap();
    assert!(!is_new(since));
    fs::remove_file(dir.join("f")).unwrap();
    chown(&dir, Some(USER), None).unwrap();
    assert!(!is_new(since));
    chown(&dir, Some(0), None).unwrap();
    assert!(is_new(since));
    // Older than the call.
    assert!(!is_new(since + 2 * TICK));
    // Where nobody else can rename, the time is not checked, since the clock may be another host's.
    chown(&theirs, Some(0), None).unwrap();
    assert!(is_new(since + 2 * TICK));
    // Something is mounted there.
    let none = rustix::mount::MountFlags::empty();
    rustix::mount::mount("none", &dir, "tmpfs", none, c"size=64k").unwrap();
    let mounted = super::is_new(above.as_fd(), &open(&dir), since);
    rustix::mount::unmount(&dir, rustix::mount::UnmountFlags::DETACH).unwrap();
    assert!(!mounted.unwrap());
    drop(base);
}
