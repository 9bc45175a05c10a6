//! The lock of a directory: a file for root alone, held with `flock(2)`.
//!
//! Any process that has a lock file open may hold the lock, even with read access only. So the file has mode 0600,
//! and a lock held by a process of another user, which could open the file while its mode was another, is broken by
//! replacing the file. Only the holder of the *guard*, a second lock file that exists for a moment, may do that: two
//! servers that start at the same time do not replace each other's lock.

use crate::directory::{Directory, Error as Untrusted};
use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags, Stat, flock, fstat, openat, statat};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// After this time a waiting server says why it waits.
const QUIET: Duration = Duration::from_millis(200);
/// Pause between two attempts.
const PERIOD: Duration = Duration::from_millis(5);

/// Why the lock cannot be taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Another process holds it.
    #[error("another server uses {dir}: its lock is held by {by}", dir = .dir.display())]
    Held {
        /// The directory.
        dir: PathBuf,
        /// The holders, as text.
        by: String,
    },
    /// A file with the lock's name is not root's.
    #[error(transparent)]
    Untrusted(#[from] Untrusted),
}

/// A process that holds a lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Its id.
    pub pid: u32,
    /// Its name.
    pub comm: String,
    /// Its real user.
    pub uid: u32,
    /// Whether it could be one of our programs: it runs as root, or as this process's user, and holds the lock
    /// exclusively.
    pub is_ours: bool,
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name: String = self.comm.chars().flat_map(char::escape_default).collect();
        write!(f, "process {} ({name}, user {})", self.pid, self.uid)
    }
}

/// Describes holders in an error message.
pub fn told(holders: &[Holder]) -> String {
    if holders.is_empty() {
        return "a process that cannot be seen from here".to_owned();
    }
    holders.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Takes the lock `name` of a directory. Waits for at most `patience`: a server that was killed a moment ago may
/// still be exiting, with all its descriptors open. `tell` is called with what the lock is waiting for, and what was
/// replaced.
///
/// # Errors
/// Another server holds it, another kind of file has its name, or the system's.
pub fn take(dir: &Directory, name: &str, patience: Duration, tell: &dyn Fn(&str)) -> Result<OwnedFd, Error> {
    let started = Instant::now();
    let path = dir.path().join(name);
    let mut quiet = true;
    loop {
        let guard = Guard::take(dir, name, patience)?;
        let Some((file, clean)) = open(dir, name)? else {
            tell(&format!("{} was no file of root's: it was replaced", path.display()));
            return guard.replace(name);
        };
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) if clean => return Ok(file),
            // Another user's process that has the file open could hold the lock next time.
            Ok(()) => return guard.replace(name),
            Err(Errno::WOULDBLOCK) => {}
            Err(error) => return Err(system(dir, name)(error)),
        }
        let waited = started.elapsed();
        if waited >= QUIET && quiet || waited >= patience {
            let holders = holders(file.as_fd());
            // A server of ours is visible in /proc. Not visible is another user's process that passed on the open
            // descriptor.
            let hidden = holders.is_empty() && !clean && waited >= patience;
            if hidden || !holders.is_empty() && holders.iter().all(|holder| !holder.is_ours) {
                let by = told(&holders);
                tell(&format!(
                    "the lock {} was held by {by}, which is no server: it was replaced",
                    path.display()
                ));
                return guard.replace(name);
            }
            if waited >= patience {
                return Err(Error::Held { dir: dir.path().to_owned(), by: told(&holders) });
            }
            let (by, left) = (told(&holders), patience.saturating_sub(waited).as_secs_f64());
            tell(&format!(
                "the lock {} is held by {by}: waiting for it, at most {left:.1} s more",
                path.display()
            ));
            quiet = false;
        }
        drop(guard);
        std::thread::sleep(PERIOD);
    }
}

const FLAGS: OFlags =
    OFlags::RDWR.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::NOCTTY).union(OFlags::CLOEXEC);

fn system(dir: &Directory, name: &str) -> impl Fn(Errno) -> Error {
    let path = dir.path().join(name);
    move |errno| Untrusted::System { path: path.clone(), source: errno.into() }.into()
}

/// Opens the file, and creates it where it is missing. Also returns whether no other user can ever have opened it;
/// `None` for another kind of file of that name, which no server has locked.
fn open(dir: &Directory, name: &str) -> Result<Option<(OwnedFd, bool)>, Error> {
    let file = match openat(dir, name, FLAGS | OFlags::CREATE, Mode::RUSR | Mode::WUSR) {
        Ok(file) => file,
        Err(Errno::LOOP | Errno::NXIO | Errno::ISDIR) => return Ok(None),
        Err(error) => return Err(system(dir, name)(error)),
    };
    let stat = fstat(&file).map_err(system(dir, name))?;
    Ok(is_clean(&stat).map(|clean| (file, clean)))
}

/// Whether no other user can ever have opened a file; `None` for anything but a regular file of ours.
fn is_clean(stat: &Stat) -> Option<bool> {
    let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    let own = stat.st_uid == 0 || stat.st_uid == rustix::process::geteuid().as_raw();
    (is_file && own && stat.st_nlink <= 1).then_some(stat.st_mode & 0o777 == 0o600)
}

/// The guard: its holder may replace a lock file.
struct Guard<'a> {
    dir: &'a Directory,
    name: String,
    _file: OwnedFd,
}

impl<'a> Guard<'a> {
    fn take(dir: &'a Directory, name: &str, patience: Duration) -> Result<Self, Error> {
        let name = format!(".{name}.guard");
        let started = Instant::now();
        loop {
            let Some((file, true)) = open(dir, &name)? else {
                if started.elapsed() >= patience {
                    let path = dir.path().join(name);
                    return Err(Untrusted::Strange { path, what: "no lock file of root's" }.into());
                }
                // Read again: another server may have created a guard of its own meanwhile.
                if let Ok(stat) = statat(dir, &name, AtFlags::SYMLINK_NOFOLLOW)
                    && is_clean(&stat) != Some(true)
                {
                    dir.set_aside(&name, &stat)?;
                }
                continue;
            };
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                // Otherwise the guard's previous holder has removed the name.
                Ok(()) if is_named(dir, &name, &fstat(&file).map_err(system(dir, &name))?) => {
                    return Ok(Self { dir, name, _file: file });
                }
                Ok(()) => continue,
                Err(_) if started.elapsed() >= patience => {
                    let by = told(&holders(file.as_fd()));
                    return Err(Error::Held { dir: dir.path().to_owned(), by });
                }
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    /// Replaces the lock file by a new one, which is locked before it gets the name.
    fn replace(&self, name: &str) -> Result<OwnedFd, Error> {
        let (new, failed) = (format!(".{name}.new"), system(self.dir, name));
        // A directory is set aside and not removed recursively: whoever has planted it determines how deep it is.
        let free = |name: &str| match statat(self.dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => self.dir.set_aside(name, &stat),
            Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(Untrusted::System { path: self.dir.path().join(name), source: error.into() }),
        };
        free(&new)?;
        let flags = FLAGS | OFlags::CREATE | OFlags::EXCL;
        let file = openat(self.dir, &new, flags, Mode::RUSR | Mode::WUSR).map_err(&failed)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(&failed)?;
        match rustix::fs::renameat(self.dir, &new, self.dir, name) {
            Err(Errno::ISDIR) => {
                free(name)?;
                rustix::fs::renameat(self.dir, &new, self.dir, name).map_err(&failed)?;
            }
            done => done.map_err(&failed)?,
        }
        Ok(file)
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        // Unlinked while it is still locked: a process that waits for it finds that the file has no name any more.
        let _ = rustix::fs::unlinkat(self.dir, &self.name, AtFlags::empty());
    }
}

fn is_named(dir: &Directory, name: &str, stat: &Stat) -> bool {
    let named = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW);
    named.is_ok_and(|named| (named.st_dev, named.st_ino) == (stat.st_dev, stat.st_ino))
}

/// Runs a function while no other process runs one in this directory.
///
/// # Errors
/// Another process holds the guard for longer than `patience`; or the system's.
pub fn guarded<T>(
    dir: &Directory,
    name: &str,
    patience: Duration,
    work: impl FnOnce() -> io::Result<T>,
) -> io::Result<T> {
    let _guard = Guard::take(dir, name, patience).map_err(io::Error::other)?;
    work()
}

/// The processes that hold the lock of a file, as far as they are visible: `/proc/PID/fdinfo` lists the locks of a
/// descriptor (proc_pid_fdinfo(5)).
pub fn holders(file: BorrowedFd<'_>) -> Vec<Holder> {
    let Ok(stat) = fstat(file) else { return Vec::new() };
    let mut found = Vec::new();
    for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        for fd in std::fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten() {
            let same = std::fs::metadata(fd.path())
                .is_ok_and(|open| (open.dev(), open.ino()) == (stat.st_dev, stat.st_ino));
            if !same {
                continue;
            }
            let info = read(process.path().join("fdinfo").join(fd.file_name()));
            let Some(shared) = lock_of(&info) else { continue };
            let status = read(process.path().join("status"));
            let (real, effective) = users_of(&status);
            let own = |uid| uid == 0 || uid == rustix::process::geteuid().as_raw();
            found.push(Holder {
                pid,
                comm: read(process.path().join("comm")).trim().to_owned(),
                uid: real,
                is_ours: !shared && own(real) && own(effective),
            });
            break;
        }
    }
    found
}

fn read(path: impl AsRef<OsStr>) -> String {
    String::from_utf8_lossy(&std::fs::read(path.as_ref()).unwrap_or_default()).into_owned()
}

/// Whether the text of an fdinfo contains a flock lock, and whether that is shared.
fn lock_of(info: &str) -> Option<bool> {
    let lock = info.lines().find(|line| line.starts_with("lock:") && line.contains("FLOCK"))?;
    Some(lock.split_whitespace().any(|word| word == "READ"))
}

/// Real and effective uid, from the text of a status file; nobody's where they are missing.
fn users_of(status: &str) -> (u32, u32) {
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap_or_default();
    let mut users = line.split_whitespace().map(|uid| uid.parse().unwrap_or(u32::MAX));
    (users.next().unwrap_or(u32::MAX), users.next().unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::process::{Command, Stdio};
    use std::sync::Mutex;
    use wardian_needs::needs;

    const SOON: Duration = Duration::from_millis(400);

    fn ground() -> (tempfile::TempDir, Directory) {
        let base = tempfile::tempdir().unwrap();
        std::fs::set_permissions(base.path(), PermissionsExt::from_mode(0o711)).unwrap();
        let dir = Directory::open(base.path()).unwrap();
        (base, dir)
    }

    /// Starts a process of another user that has the file open and holds its lock.
    fn stranger(path: &std::path::Path) -> std::process::Child {
        let file = std::fs::File::open(path).unwrap();
        flock(&file, FlockOperation::LockShared).unwrap();
        let mut sleep = Command::new("setpriv");
        sleep.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "sleep", "100"]);
        let child = sleep.stdin(Stdio::from(file)).spawn().unwrap();
        while read(format!("/proc/{}/comm", child.id())).trim() != "sleep" {
            std::thread::sleep(PERIOD);
        }
        child
    }

    #[test]
    fn one_at_a_time_has_it_and_is_named() {
        needs!(Root);
        let (base, dir) = ground();
        let said = Mutex::new(Vec::new());
        let tell = |text: &str| said.lock().unwrap().push(text.to_owned());
        let lock = take(&dir, "lock", SOON, &tell).unwrap();
        assert!(said.lock().unwrap().is_empty());
        assert_eq!(std::fs::metadata(base.path().join("lock")).unwrap().mode() & 0o777, 0o600);
        let error = take(&dir, "lock", SOON, &tell).unwrap_err();
        let us = format!("process {} (", std::process::id());
        assert!(error.to_string().contains(&us), "{error}");
        let said = said.into_inner().unwrap();
        assert!(said.len() == 1 && said[0].contains(&us) && said[0].contains("at most"), "{said:?}");
        drop(lock);
        take(&dir, "lock", SOON, &|_| ()).unwrap();
        assert_eq!(dir.names().unwrap(), ["lock"]);
    }

    #[test]
    fn a_stranger_does_not_keep_it() {
        needs!(Root);
        let (base, dir) = ground();
        let path = base.path().join("lock");
        for mode in [0o644, 0o600] {
            std::fs::write(&path, "").unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            let mut child = stranger(&path);
            let said = Mutex::new(String::new());
            let lock = take(&dir, "lock", SOON, &|text| said.lock().unwrap().push_str(text)).unwrap();
            let said = said.into_inner().unwrap();
            assert!(said.contains(&format!("process {} (sleep, user 65534)", child.id())), "{said}");
            // The new lock is held against the next server.
            assert!(matches!(take(&dir, "lock", SOON, &|_| ()), Err(Error::Held { .. })));
            drop(lock);
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    #[test]
    fn a_live_server_keeps_one_that_was_open_to_all() {
        needs!(Root);
        let (base, dir) = ground();
        let path = base.path().join("lock");
        let old = std::fs::File::create(&path).unwrap();
        old.set_permissions(PermissionsExt::from_mode(0o644)).unwrap();
        flock(&old, FlockOperation::LockExclusive).unwrap();
        assert!(matches!(take(&dir, "lock", SOON, &|_| ()), Err(Error::Held { .. })));
        drop(old);
        let before = std::fs::metadata(&path).unwrap().ino();
        let _lock = take(&dir, "lock", SOON, &|_| ()).unwrap();
        let after = std::fs::metadata(&path).unwrap();
        assert_ne!(before, after.ino(), "somebody else may have it open");
        assert_eq!(after.mode() & 0o777, 0o600);
    }

    #[test]
    fn what_was_planted_is_replaced() {
        needs!(Root);
        let (base, dir) = ground();
        let secret = base.path().join("secret");
        std::fs::write(&secret, "root's").unwrap();
        let path = base.path().join("lock");
        let deep = |path: &std::path::Path| {
            std::fs::create_dir_all(path.join("below")).unwrap();
            std::os::unix::fs::chown(path, Some(65534), None).unwrap();
        };
        let plant: [&dyn Fn(); 5] = [
            &|| deep(&path),
            &|| std::os::unix::fs::symlink(&secret, &path).unwrap(),
            &|| std::fs::hard_link(&secret, &path).unwrap(),
            &|| rustix::fs::mkfifoat(rustix::fs::CWD, &path, Mode::RWXU).unwrap(),
            &|| {
                std::fs::write(&path, "").unwrap();
                std::os::unix::fs::chown(&path, Some(65534), None).unwrap();
            },
        ];
        for plant in plant {
            let _ = std::fs::remove_file(&path);
            plant();
            deep(&base.path().join(".lock.guard"));
            deep(&base.path().join(".lock.new"));
            drop(take(&dir, "lock", SOON, &|_| ()).unwrap());
            let now = std::fs::symlink_metadata(&path).unwrap();
            assert!(now.is_file() && now.uid() == 0 && now.nlink() == 1);
        }
        assert_eq!(std::fs::read_to_string(secret).unwrap(), "root's");
        // A directory that is not empty is kept for inspection.
        assert!(base.path().join(".planted.0/below").is_dir());
    }

    #[test]
    fn many_who_find_a_planted_guard_hold_one_lock() {
        needs!(Root);
        let (base, dir) = ground();
        std::fs::create_dir_all(base.path().join(".lock.guard/below")).unwrap();
        std::os::unix::fs::chown(base.path().join(".lock.guard"), Some(65534), None).unwrap();
        let had: Vec<_> = std::thread::scope(|scope| {
            let tries: Vec<_> =
                (0..8).map(|_| scope.spawn(|| take(&dir, "lock", SOON, &|_| ()).ok())).collect();
            tries.into_iter().filter_map(|t| t.join().unwrap()).collect()
        });
        assert_eq!(had.len(), 1);
    }

    #[test]
    fn many_who_start_at_a_time_do_not_replace_each_others() {
        needs!(Root);
        let (base, dir) = ground();
        let path = base.path().join("lock");
        std::fs::write(&path, "").unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
        let mut child = stranger(&path);
        // No thread releases the lock before all have tried.
        let had: Vec<_> = std::thread::scope(|scope| {
            let tries: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| take(&dir, "lock", Duration::from_secs(1), &|_| ()).ok()))
                .collect();
            tries.into_iter().filter_map(|t| t.join().unwrap()).collect()
        });
        assert_eq!(had.len(), 1);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn locks_and_users_are_read() {
        assert_eq!(lock_of("pos:\t0\nlock:\t1: FLOCK  ADVISORY  WRITE 359 00:13:11691 0 EOF\n"), Some(false));
        assert_eq!(lock_of("lock:\t1: FLOCK  ADVISORY  READ 359 00:13:11691 0 EOF\n"), Some(true));
        assert_eq!(lock_of("lock:\t1: POSIX  ADVISORY  READ 359 00:13:11691 0 EOF\npos:\t0\n"), None);
        assert_eq!(users_of("Name:\tx\nUid:\t5\t0\t0\t0\n"), (5, 0));
        assert_eq!(users_of(""), (u32::MAX, u32::MAX));
    }
}
