//! Directories that are made for a user inside a container: a working directory, the destination of a tar.
//!
//! Everything on the way is the container's, and may be renamed or become a link at any moment. So the path is walked by
//! descriptors, and a new directory belongs to its user from its birth on (`setfsuid(2)`): there is no chown that could
//! be led to something else.

use crate::child::{self, Outcome, Stop, failed};
use crate::users::User;
use rustix::fs::{CWD, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use std::cell::Cell;
use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path};

/// As the kernel's own (path_resolution(7)).
const MAX_LINKS: u32 = 40;
/// More than a path can name: somebody keeps removing what is made.
const MAX_MADE: u32 = 4096;

/// Makes a directory and its missing parents, the new ones owned by the user, with mode 0755. Returns the directory if it
/// was missing.
///
/// The user's own rights are tried first. Otherwise root's are used, as in Garden, but then no symlink is followed that
/// root does not own: else a user could choose where in the container root makes directories for him.
pub fn make(path: &Path, owner: &User) -> Outcome<Option<OwnedFd>> {
    match rustix::fs::stat(path) {
        Ok(_) => return Ok(None),
        Err(Errno::NOENT) => {}
        Err(error) => return Err(failed(path.display())(error)),
    }
    let say = || format!("mkdir {}", path.display());
    let trusted = Cell::new(true);
    let link = |stat: &Stat| {
        trusted.set(trusted.get() && stat.st_uid == 0);
        Ok(())
    };
    let missing =
        |parent: &OwnedFd, name: &OsStr| create(parent, name, owner, trusted.get()).map_err(Stop::from);
    walk(CWD, path, &missing, &link).map(Some).map_err(|stop| Stop::from(format!("{}: {}", say(), stop.text)))
}

/// What is done about a directory that is missing below another one.
pub type Missing<'a> = &'a dyn Fn(&OwnedFd, &OsStr) -> Outcome<()>;
/// Whether a symlink is followed.
pub type Link<'a> = &'a dyn Fn(&Stat) -> Outcome<()>;

/// Opens the directory that the path leads to from `start` (an absolute one: from the root), component by component, so
/// that every link on the way is looked at before it is followed, also those that links lead to.
pub fn walk(start: impl AsFd, path: &Path, missing: Missing<'_>, link: Link<'_>) -> Outcome<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = |at: BorrowedFd<'_>, name: &str| {
        rustix::fs::openat(at, name, flags | OFlags::DIRECTORY, Mode::empty()).map_err(failed(name))
    };
    let mut here = directory(start.as_fd(), if path.is_absolute() { "/" } else { "." })?;
    let mut todo: VecDeque<OsString> = parts(path);
    let (mut links, mut made) = (0, 0);
    while let Some(name) = todo.pop_front() {
        if name == ".." {
            here = directory(here.as_fd(), "..")?;
            continue;
        }
        let say = || name.to_string_lossy().into_owned();
        let found = match rustix::fs::openat(&here, &name, flags, Mode::empty()) {
            Err(Errno::NOENT) => {
                made += 1;
                if made > MAX_MADE {
                    return Err(failed(say())(Errno::LOOP));
                }
                missing(&here, &name)?;
                todo.push_front(name);
                continue;
            }
            other => other.map_err(failed(say()))?,
        };
        let stat = rustix::fs::fstat(&found).map_err(failed(say()))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => here = found,
            FileType::Symlink => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(failed(say())(Errno::LOOP));
                }
                link(&stat)?;
                // Text, also of a link of /proc that is more than its text.
                let target = rustix::fs::readlinkat(&found, "", Vec::new()).map_err(failed(say()))?;
                let target = OsString::from_vec(target.into_bytes());
                if Path::new(&target).is_absolute() {
                    here = directory(here.as_fd(), "/")?;
                }
                for part in parts(Path::new(&target)).into_iter().rev() {
                    todo.push_front(part);
                }
            }
            _ => return Err(failed(say())(Errno::NOTDIR)),
        }
    }
    Ok(here)
}

fn parts(path: &Path) -> VecDeque<OsString> {
    let part = |part: Component<'_>| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    };
    path.components().filter_map(part).collect()
}

fn create(parent: &OwnedFd, name: &OsStr, owner: &User, trusted: bool) -> Result<(), String> {
    let made = attempt(parent, name, owner, false)?;
    let made = match made {
        Err(Errno::ACCESS | Errno::PERM) if trusted => attempt(parent, name, owner, true)?,
        other => other,
    };
    match made {
        // Somebody was faster.
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

fn attempt(
    parent: &OwnedFd,
    name: &OsStr,
    owner: &User,
    override_modes: bool,
) -> Result<rustix::io::Result<()>, String> {
    child::file_ids(owner.uid, owner.gid, override_modes).map_err(|stop| stop.text)?;
    let made = rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755));
    child::file_ids(0, 0, false).map_err(|stop| stop.text)?;
    Ok(made)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};

    fn alice() -> User {
        User { uid: 1001, gid: 1010, groups: vec![], home: "/".into() }
    }

    /// A place that root alone may write to, with a directory of the user's in it.
    fn place(name: &str) -> Option<tempfile::TempDir> {
        if !rustix::process::geteuid().is_root() {
            return None;
        }
        let dir = tempfile::Builder::new().prefix(name).tempdir().unwrap();
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
        std::fs::create_dir(dir.path().join("hers")).unwrap();
        chown(dir.path().join("hers"), Some(1001), Some(1010)).unwrap();
        Some(dir)
    }

    fn owner(path: &Path) -> (u32, u32) {
        let stat = std::fs::metadata(path).unwrap();
        (stat.uid(), stat.gid())
    }

    #[test]
    fn new_directories_belong_to_the_user_and_old_ones_stay() {
        let Some(dir) = place("dirs-new") else { return };
        for path in ["hers/a/b", "roots/c", "hers/a/../d"] {
            assert!(make(&dir.path().join(path), &alice()).is_ok(), "{path}");
            assert_eq!(owner(&dir.path().join(path)), (1001, 1010), "{path}");
        }
        assert_eq!(owner(dir.path()), (0, 0));
        assert_eq!(owner(&dir.path().join("roots")), (1001, 1010));
        // What the thread makes afterwards is root's again.
        std::fs::write(dir.path().join("after"), "").unwrap();
        assert_eq!(owner(&dir.path().join("after")), (0, 0));
    }

    #[test]
    fn a_users_link_does_not_lead_root() {
        let Some(dir) = place("dirs-link") else { return };
        let (roots, hers) = (dir.path().join("roots"), dir.path().join("hers"));
        std::fs::create_dir(&roots).unwrap();
        symlink(&roots, hers.join("link")).unwrap();
        std::os::unix::fs::lchown(hers.join("link"), Some(1001), Some(1010)).unwrap();
        assert!(make(&hers.join("link/x"), &alice()).is_err());
        assert!(!roots.join("x").exists());
        // A link of root's does, and the user's own leads to where the user may write.
        symlink(&roots, dir.path().join("link")).unwrap();
        assert!(make(&dir.path().join("link/y"), &alice()).is_ok() && roots.join("y").exists());
        symlink("../hers", hers.join("self")).unwrap();
        std::os::unix::fs::lchown(hers.join("self"), Some(1001), Some(1010)).unwrap();
        assert!(make(&hers.join("self/z"), &alice()).is_ok() && hers.join("z").exists());
    }

    #[test]
    fn loops_and_files_are_errors() {
        let Some(dir) = place("dirs-loop") else { return };
        symlink("b", dir.path().join("a")).unwrap();
        symlink("a", dir.path().join("b")).unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        for path in ["a/x", "file/x"] {
            assert!(make(&dir.path().join(path), &alice()).is_err(), "{path}");
        }
        // A dangling link is followed to where it points.
        symlink("new", dir.path().join("dangling")).unwrap();
        assert!(make(&dir.path().join("dangling/x"), &alice()).is_ok());
        assert!(dir.path().join("new/x").is_dir());
    }

    #[test]
    fn a_user_that_renames_gains_no_file() {
        let Some(dir) = place("dirs-race") else { return };
        let hers = dir.path().join("hers");
        let secret = dir.path().join("secret");
        std::fs::write(&secret, "root's").unwrap();
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let _ = std::fs::rename(hers.join("w"), hers.join("old"));
                    let _ = symlink(&secret, hers.join("w"));
                    let _ = std::fs::remove_file(hers.join("w"));
                    let _ = std::fs::remove_dir_all(hers.join("old"));
                }
            });
            for _ in 0..2000 {
                let _ = make(&hers.join("w/x"), &alice());
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        assert_eq!(owner(&secret), (0, 0));
        assert_eq!(owner(dir.path()), (0, 0));
    }
}
