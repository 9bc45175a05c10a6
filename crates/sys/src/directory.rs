//! Directories that nobody but root can change, opened once.
//!
//! Whoever may write to a directory may put a link, a FIFO or a file of its own where root's program expects a file
//! of root's, and whoever may rename a directory on the way can redirect a path between two system calls. So a path
//! is walked once, one component after another and by descriptors (`openat(2)` with `O_NOFOLLOW`), and each directory
//! on it is judged; files below are reached through the resulting descriptor.
//!
//! A directory is *trusted* when it and all above it belong to root (or to the effective user) and neither group nor
//! others may write to them. A directory with the sticky bit, as /tmp is, may still be a component: nobody else
//! removes or renames root's files in it (`unlink(2)`, EPERM). Links on the way are followed when they are root's and
//! lie in a trusted directory; not in a sticky one, because whoever owns a directory with a link of root's in it can
//! move the link there.

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, RenameFlags, ResolveFlags, Stat, chmodat, fstat, mkdirat, openat,
    openat2, renameat_with,
};
use rustix::io::Errno;
use rustix::path::Arg;
use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Component, Path, PathBuf};

/// Limit of links in one path, the kernel's own (`MAXSYMLINKS`).
const MOST_LINKS: usize = 40;
/// How often a lookup is retried after EAGAIN, that is after a rename or a mount elsewhere.
const MOST_TRIES: u32 = 128;
/// Write permission of group and others.
const OTHERS_WRITE: u32 = 0o022;
const STICKY: u32 = 0o1000;
/// The group's permission to search a directory.
const GROUP_SEARCH: u32 = 0o010;
const OPEN_DIR: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// Prefix of the name of a file that was set aside; a number follows.
pub const ASIDE: &str = ".planted.";
/// Without `O_NONBLOCK` opening a FIFO that has no writer would block for ever.
const OPEN_FILE: OFlags = OFlags::RDONLY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOCTTY)
    .union(OFlags::CLOEXEC);

/// Why a directory, or something in it, is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Another user owns it.
    #[error(
        "{path} belongs to user {uid}, who could lead root to other files through it: `chown root {path}` and look at \
         what is there, or name another place",
        path = .path.display()
    )]
    Owner {
        /// The directory, link or file.
        path: PathBuf,
        /// Its owner.
        uid: u32,
    },
    /// Other users may write to it.
    #[error(
        "{path} may be written to by other users (mode {mode:04o}), who could lead root to other files through it: \
         `chmod go-w {path}` and look at what is there, or name another place",
        path = .path.display()
    )]
    Writable {
        /// The directory or file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It is no regular file, or a file with more than one hard link.
    #[error("{path} is {what}: look at who has put it there, and remove it", path = .path.display())]
    Strange {
        /// The file.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// Something is mounted on a directory that was to be removed.
    #[error(
        "something is mounted on {path}, which is not removed with what is in it: unmount it first (`umount {path}`)",
        path = .path.display()
    )]
    Mounted {
        /// The directory.
        path: PathBuf,
    },
    /// A system call failed.
    #[error("{path}: {source}", path = .path.display())]
    System {
        /// The path that was to be opened or created.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// Shorthand.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Whether the error is that no such file exists.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::System { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = match &error {
            Error::System { source, .. } => source.kind(),
            Error::Strange { .. } => io::ErrorKind::InvalidData,
            Error::Mounted { .. } => io::ErrorKind::ResourceBusy,
            Error::Owner { .. } | Error::Writable { .. } => io::ErrorKind::PermissionDenied,
        };
        Self::new(kind, error)
    }
}

fn system(path: impl Into<PathBuf>) -> impl FnOnce(Errno) -> Error {
    let path = path.into();
    move |errno| Error::System { path, source: errno.into() }
}

/// Whether the id is root's or this process's effective one.
fn is_ours(uid: u32) -> bool {
    uid == 0 || uid == rustix::process::geteuid().as_raw()
}

/// Why other users could change a file.
#[derive(Debug, Clone)]
enum Doubt {
    Owner(PathBuf, u32),
    Writable(PathBuf, u32),
}

impl From<Doubt> for Error {
    fn from(doubt: Doubt) -> Self {
        match doubt {
            Doubt::Owner(path, uid) => Self::Owner { path, uid },
            Doubt::Writable(path, mode) => Self::Writable { path, mode },
        }
    }
}

/// Whether other users could change what a descriptor is open on, and why.
fn doubt(path: &Path, stat: &Stat) -> Option<Doubt> {
    if !is_ours(stat.st_uid) {
        return Some(Doubt::Owner(path.to_owned(), stat.st_uid));
    }
    let mode = stat.st_mode & 0o7777;
    (mode & OTHERS_WRITE != 0).then(|| Doubt::Writable(path.to_owned(), mode))
}

fn judge(path: &Path, stat: &Stat) -> Result<()> {
    doubt(path, stat).map_or(Ok(()), |doubt| Err(doubt.into()))
}

/// Whether other users may create files in this directory, but not rename or remove root's.
fn is_sticky(stat: &Stat) -> bool {
    stat.st_mode & STICKY != 0 && is_ours(stat.st_uid)
}

/// The result of a walk.
struct Found {
    /// An `O_PATH` descriptor.
    fd: OwnedFd,
    stat: Stat,
    /// The path without links.
    path: PathBuf,
    /// Why other users could change a directory on the way, if they could.
    above: Option<Doubt>,
    /// Whether [`resolve`] has created it, as a directory.
    made: bool,
}

/// Walks to the end of a path. With `make` missing directories are created, below trusted ones only.
fn resolve(path: &Path, make: Option<Mode>) -> Result<Found> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let absolute =
        std::path::absolute(path).map_err(|source| Error::System { path: path.to_owned(), source })?;
    let start = || -> Result<Found> {
        let top = PathBuf::from("/");
        let fd = rustix::fs::open(&top, flags, Mode::empty()).map_err(system(&top))?;
        let stat = fstat(&fd).map_err(system(&top))?;
        Ok(Found { fd, stat, path: top, above: None, made: false })
    };
    let mut stack = vec![start()?];
    let mut todo: VecDeque<OsString> = names_of(&absolute).collect();
    let mut links = 0;
    while let Some(name) = todo.pop_front() {
        if name == ".." {
            if stack.len() > 1 {
                stack.pop();
            }
            continue;
        }
        let Some(here) = stack.last() else { break };
        let path = here.path.join(&name);
        if FileType::from_raw_mode(here.stat.st_mode) != FileType::Directory {
            return Err(system(&here.path)(Errno::NOTDIR));
        }
        let own = || if is_sticky(&here.stat) { None } else { doubt(&here.path, &here.stat) };
        let above = here.above.clone().or_else(own);
        let mut made = false;
        let fd = match openat(&here.fd, &name, flags, Mode::empty()) {
            Err(Errno::NOENT) if make.is_some() => {
                if let Some(doubt) = above {
                    return Err(doubt.into());
                }
                let mode = make.unwrap_or(Mode::RWXU);
                match mkdirat(&here.fd, &name, mode) {
                    // Set explicitly, because a server's umask lets nobody else in, and the directories above its own
                    // are for everybody.
                    Ok(()) => {
                        made = true;
                        chmodat(&here.fd, &name, mode, AtFlags::empty()).map_err(system(&path))?;
                    }
                    Err(Errno::EXIST) => {}
                    Err(error) => return Err(system(path)(error)),
                }
                openat(&here.fd, &name, flags, Mode::empty())
            }
            other => other,
        };
        let fd = fd.map_err(system(&path))?;
        let stat = fstat(&fd).map_err(system(&path))?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
            if let Some(doubt) = above {
                return Err(doubt.into());
            }
            if !is_ours(stat.st_uid) {
                return Err(Error::Owner { path, uid: stat.st_uid });
            }
            // The sticky bit does not suffice: it keeps root's links from being moved away, not from being moved in.
            judge(&here.path, &here.stat)?;
            links += 1;
            if links > MOST_LINKS {
                return Err(system(path)(Errno::LOOP));
            }
            let target = rustix::fs::readlinkat(&fd, "", Vec::new()).map_err(system(&path))?;
            let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
            if target.is_absolute() {
                stack = vec![start()?];
            }
            for name in names_of(&target).collect::<Vec<_>>().into_iter().rev() {
                todo.push_front(name);
            }
            continue;
        }
        stack.push(Found { fd, stat, path, above, made });
    }
    stack.pop().ok_or_else(|| system(path)(Errno::NOENT))
}

/// Opens the directory that a path leads to, whoever owns it.
///
/// A link on the way is followed only if it is root's (or the effective user's) and lies in a trusted directory:
/// whoever may rename in a directory can also move a link of root's into it, and so choose which of root's links is
/// followed.
///
/// # Errors
/// [`Error::Owner`] or [`Error::Writable`] for a link that others have put on the way, or could have; or the system's.
pub fn reach(path: &Path) -> Result<OwnedFd> {
    reach_named(path).map(|(dir, _)| dir)
}

/// Like [`reach`]; also returns the directory's path without links.
///
/// # Errors
/// As [`reach`].
pub fn reach_named(path: &Path) -> Result<(OwnedFd, PathBuf)> {
    let found = resolve(path, None)?;
    let dir = openat(&found.fd, ".", OPEN_DIR, Mode::empty()).map_err(system(&found.path))?;
    Ok((dir, found.path))
}

/// Opens the regular file that a path leads to, whoever owns it, by the rule of [`reach`]; also returns its path
/// without links. The open never blocks, and opens no device: opening one can have an effect.
///
/// # Errors
/// As [`reach`]; [`Error::Strange`] for what is no regular file.
pub fn reach_file(path: &Path) -> Result<(File, PathBuf)> {
    let found = resolve(path, None)?;
    let file = open_found(&found)?;
    Ok((file, found.path))
}

/// Opens the regular file that was found, not another one that has its name by now.
fn open_found(found: &Found) -> Result<File> {
    if FileType::from_raw_mode(found.stat.st_mode) != FileType::RegularFile {
        return Err(Error::Strange { path: found.path.clone(), what: "no regular file" });
    }
    let through = format!("/proc/self/fd/{}", found.fd.as_raw_fd());
    let flags = OPEN_FILE.difference(OFlags::NOFOLLOW);
    rustix::fs::open(through, flags, Mode::empty()).map(File::from).map_err(system(&found.path))
}

/// Whether other users could rename root's (or the effective user's) files in a directory, and put others in their
/// place.
///
/// # Errors
/// The kernel's, from `fstat(2)`.
pub fn others_rename_in(dir: impl AsFd) -> rustix::io::Result<bool> {
    let stat = fstat(dir)?;
    Ok(!is_sticky(&stat) && doubt(Path::new(""), &stat).is_some())
}

/// The components of a path, `..` included, for a walk by descriptors.
pub fn names_of(path: &Path) -> impl DoubleEndedIterator<Item = OsString> + '_ {
    path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    })
}

/// An open directory that was judged.
#[derive(Debug)]
pub struct Directory {
    fd: OwnedFd,
    path: PathBuf,
    trusted: bool,
}

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<Directory> for OwnedFd {
    fn from(dir: Directory) -> Self {
        dir.fd
    }
}

impl Directory {
    /// Opens a trusted directory.
    ///
    /// # Errors
    /// It is not trusted; or the system's.
    pub fn open(path: &Path) -> Result<Self> {
        Self::strict(resolve(path, None)?)
    }

    /// Opens a trusted directory or a sticky one such as /tmp, in which others may create files but not touch root's.
    ///
    /// # Errors
    /// It is neither; or the system's.
    pub fn open_shared(path: &Path) -> Result<Self> {
        let found = resolve(path, None)?;
        let trusted = doubt(&found.path, &found.stat).is_none();
        if trusted || is_sticky(&found.stat) { Self::of(found, trusted) } else { Self::strict(found) }
    }

    /// Opens a trusted directory. Where it is missing it is created with this mode, and the directories above it with
    /// mode 0755. The second value is whether it was missing.
    ///
    /// A directory of root's with the sticky bit, as the root of a new tmpfs is, is closed to others. Files that are
    /// in it already must be judged before they are used, as all functions here do.
    ///
    /// # Errors
    /// It is not trusted; or the system's.
    pub fn make(path: &Path, mode: u32) -> Result<(Self, bool)> {
        let found = match resolve(path, None) {
            Err(error) if error.is_missing() => {
                if let Some(above) = path.parent() {
                    resolve(above, Some(Mode::from_raw_mode(0o755)))?;
                }
                resolve(path, Some(Mode::from_raw_mode(mode & !OTHERS_WRITE)))?
            }
            other => other?,
        };
        let made = found.made;
        if !is_sticky(&found.stat) || doubt(&found.path, &found.stat).is_none() {
            return Self::strict(found).map(|dir| (dir, made));
        }
        let closed = Mode::from_raw_mode(found.stat.st_mode & 0o7777 & !OTHERS_WRITE);
        let dir = Self::of(found, true)?;
        rustix::fs::fchmod(&dir.fd, closed).map_err(system(&dir.path))?;
        Ok((dir, made))
    }

    fn strict(found: Found) -> Result<Self> {
        judge(&found.path, &found.stat)?;
        Self::of(found, true)
    }

    fn of(found: Found, trusted: bool) -> Result<Self> {
        found.above.map_or(Ok(()), |doubt| Err(Error::from(doubt)))?;
        let fd = openat(&found.fd, ".", OPEN_DIR, Mode::empty()).map_err(system(&found.path))?;
        Ok(Self { fd, path: found.path, trusted })
    }

    /// The directory's path, without links.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether only root may write to it, in contrast to a directory such as /tmp.
    pub fn is_trusted(&self) -> bool {
        self.trusted
    }

    /// A path below this directory that leads through the descriptor: it may be of any length, and a rename does not
    /// redirect it.
    pub fn at(&self, name: impl AsRef<Path>) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.fd.as_raw_fd())).join(name)
    }

    fn open_dir(&self, name: &OsStr) -> Result<OwnedFd> {
        let path = self.path.join(name);
        openat(&self.fd, name, OPEN_DIR, Mode::empty()).map_err(|error| match error {
            Errno::LOOP | Errno::NOTDIR => Error::Strange { path, what: "no directory" },
            error => system(path)(error),
        })
    }

    /// Opens a directory in this one, which must be trusted too.
    ///
    /// # Errors
    /// It is a link or not trusted; or the system's.
    pub fn child(&self, name: impl AsRef<OsStr>) -> Result<Self> {
        let path = self.path.join(name.as_ref());
        let fd = self.open_dir(name.as_ref())?;
        judge(&path, &fstat(&fd).map_err(system(&path))?)?;
        Ok(Self { fd, path, trusted: true })
    }

    /// Opens a directory in this one for root alone: created where it is missing, closed to others where it was open
    /// to them.
    ///
    /// # Errors
    /// It is a link or another user's; or the system's.
    pub fn private(&self, name: impl AsRef<OsStr>) -> Result<Self> {
        match mkdirat(&self.fd, name.as_ref(), Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => self.existing(name),
            Err(error) => Err(system(self.path.join(name.as_ref()))(error)),
        }
    }

    /// Like [`Directory::private`], for a directory that exists.
    ///
    /// # Errors
    /// As [`Directory::private`].
    pub fn existing(&self, name: impl AsRef<OsStr>) -> Result<Self> {
        self.closed(name.as_ref(), 0)
    }

    /// Like [`Directory::private`], but its group keeps the permission to search it, if the group has that: see
    /// [`Directory::admit`].
    ///
    /// # Errors
    /// As [`Directory::private`].
    pub fn searchable(&self, name: impl AsRef<OsStr>) -> Result<Self> {
        match mkdirat(&self.fd, name.as_ref(), Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => self.closed(name.as_ref(), GROUP_SEARCH),
            Err(error) => Err(system(self.path.join(name.as_ref()))(error)),
        }
    }

    /// Opens a directory in this one and takes from its mode what neither root has nor `kept` names.
    fn closed(&self, name: &OsStr, kept: u32) -> Result<Self> {
        let path = self.path.join(name);
        let fd = self.open_dir(name)?;
        let stat = fstat(&fd).map_err(system(&path))?;
        if !is_ours(stat.st_uid) {
            return Err(Error::Owner { path, uid: stat.st_uid });
        }
        let dir = Self { fd, path, trusted: true };
        dir.close(kept)?;
        Ok(dir)
    }

    /// Takes from the directory's mode what neither root has nor `kept` names.
    fn close(&self, kept: u32) -> Result<()> {
        let stat = fstat(&self.fd).map_err(system(&self.path))?;
        let mode = stat.st_mode & 0o7777;
        // Nobody has admitted root's own group.
        let kept = if stat.st_gid == 0 { 0 } else { kept };
        let closed = 0o700 | mode & kept;
        if mode != closed {
            rustix::fs::fchmod(&self.fd, Mode::from_raw_mode(closed)).map_err(system(&self.path))?;
        }
        Ok(())
    }

    /// Closes the directory to others, except that its group keeps the permission to search it, if it has that.
    ///
    /// # Errors
    /// The system's.
    pub fn keep_searchable(&self) -> Result<()> {
        self.close(GROUP_SEARCH)
    }

    /// Lets the group search the directory, and so use what is below it if that has a mode for the group too. Nobody
    /// but root can list it or write to it.
    ///
    /// # Errors
    /// The system's.
    pub fn admit(&self, gid: u32) -> Result<()> {
        let stat = fstat(&self.fd).map_err(system(&self.path))?;
        if stat.st_gid != gid {
            // Closed before the group changes: another group's permission is not the new one's.
            self.close(0)?;
            rustix::fs::fchown(&self.fd, None, Some(rustix::fs::Gid::from_raw(gid)))
                .map_err(system(&self.path))?;
        }
        let admitted = 0o700 | GROUP_SEARCH;
        if stat.st_gid != gid || stat.st_mode & 0o7777 != admitted {
            rustix::fs::fchmod(&self.fd, Mode::from_raw_mode(admitted)).map_err(system(&self.path))?;
        }
        Ok(())
    }

    /// Closes root's regular file `name` to others, if it exists: for files of a program that left the mode to the
    /// umask.
    pub fn close_to_others(&self, name: impl AsRef<OsStr>) {
        let Ok(file) = openat(&self.fd, name.as_ref(), OPEN_FILE, Mode::empty()) else { return };
        let closed = |stat: Stat| {
            let ours = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && is_ours(stat.st_uid);
            if ours && stat.st_nlink == 1 && stat.st_mode & 0o077 != 0 {
                // A file that cannot be closed is refused when it is read.
                let _ = rustix::fs::fchmod(&file, Mode::RUSR | Mode::WUSR);
            }
        };
        let _ = fstat(&file).map(closed);
    }

    /// Opens root's regular file `name`, to which nobody else may write. The open never blocks.
    ///
    /// # Errors
    /// It is no such file; or the system's.
    pub fn file(&self, name: impl AsRef<OsStr>) -> Result<File> {
        let path = self.path.join(name.as_ref());
        let fd = openat(&self.fd, name.as_ref(), OPEN_FILE, Mode::empty()).map_err(|error| match error {
            Errno::LOOP => Error::Strange { path: path.clone(), what: "a link" },
            error => system(&path)(error),
        })?;
        plain(&path, fd)
    }

    /// Reads a file as [`Directory::file`] opens it, of at most `most` bytes.
    ///
    /// # Errors
    /// It is no such file, or a larger one; or the system's.
    pub fn read(&self, name: impl AsRef<OsStr>, most: u64) -> Result<Vec<u8>> {
        whole(&self.path.join(name.as_ref()), self.file(name.as_ref())?, most)
    }

    /// Atomically replaces the file `name` by a new one for root alone. There must be one writer of a name at a time.
    ///
    /// # Errors
    /// The system's.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let (path, new) = (self.path.join(name), format!("{name}.new"));
        match rustix::fs::unlinkat(&self.fd, &new, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(system(self.path.join(new))(error)),
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&self.fd, &new, flags, Mode::RUSR | Mode::WUSR).map_err(system(&path))?;
        File::from(file)
            .write_all(bytes)
            .and_then(|()| Ok(rustix::fs::renameat(&self.fd, &new, &self.fd, name)?))
            .map_err(|source| {
                let _ = rustix::fs::unlinkat(&self.fd, &new, AtFlags::empty());
                Error::System { path, source }
            })
    }

    /// The names of the directory's entries, sorted, without `.` and `..`.
    ///
    /// # Errors
    /// The system's.
    pub fn names(&self) -> Result<Vec<OsString>> {
        let failed = || system(&self.path);
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.fd).map_err(failed())? {
            let name = OsString::from_vec(entry.map_err(failed())?.file_name().to_bytes().to_vec());
            if name != "." && name != ".." {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// The stat of the entry `name`, if it belongs to another user, or is a file with more than one hard link.
    ///
    /// # Errors
    /// The system's.
    pub fn foreign(&self, name: impl AsRef<OsStr>) -> Result<Option<Stat>> {
        let stat = match rustix::fs::statat(&self.fd, name.as_ref(), AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(None),
            other => other.map_err(system(self.path.join(name.as_ref())))?,
        };
        let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        Ok((!is_ours(stat.st_uid) || is_file && stat.st_nlink > 1).then_some(stat))
    }

    /// Clears a name that another user has taken where a file of root's is to be; `seen` is what had the name. A
    /// file, a link or an empty directory is removed. A directory that is not empty is renamed to [`ASIDE`] and a
    /// number, and stays for inspection: its owner can go on filling it, and determines how deep it is.
    ///
    /// # Errors
    /// Something is mounted there; or the system's.
    pub fn set_aside(&self, name: impl AsRef<OsStr>, seen: &Stat) -> Result<()> {
        let name = name.as_ref();
        let aside = (0_u64..).map(|n| format!("{ASIDE}{n}"));
        for new in aside {
            match renameat_with(&self.fd, name, &self.fd, &new, RenameFlags::NOREPLACE) {
                Ok(()) => {}
                Err(Errno::EXIST) => continue,
                Err(Errno::NOENT) => return Ok(()),
                Err(error) => return Err(system(self.path.join(name))(error)),
            }
            let moved =
                rustix::fs::statat(&self.fd, &new, AtFlags::SYMLINK_NOFOLLOW).map_err(system(&self.path))?;
            if (moved.st_dev, moved.st_ino) != (seen.st_dev, seen.st_ino) {
                // The name changed hands meanwhile: this is another file, which gets its name back.
                let _ = renameat_with(&self.fd, &new, &self.fd, name, RenameFlags::NOREPLACE);
            } else if rustix::fs::unlinkat(&self.fd, &new, AtFlags::empty()).is_err() {
                // The removal fails for a directory that is not empty.
                let _ = rustix::fs::unlinkat(&self.fd, &new, AtFlags::REMOVEDIR);
            }
            break;
        }
        Ok(())
    }

    /// Removes a file, or a directory with everything in it. A link is removed and not followed, and nothing on
    /// another mount is removed. A name that does not exist is no error.
    ///
    /// # Errors
    /// Something is mounted there; or the system's.
    pub fn remove(&self, name: impl AsRef<OsStr>) -> Result<()> {
        remove(self.fd.as_fd(), name.as_ref(), &self.path)
    }
}

/// Opens a path relative to `dir` with openat2(2), and retries while that returns EAGAIN: a rename or a mount
/// anywhere on the host has interfered with a lookup of `..`. So many EAGAIN in a row can only be provoked, and are
/// an error.
///
/// # Errors
/// The kernel's.
pub fn open(
    dir: impl AsFd,
    path: impl Arg + Copy,
    flags: OFlags,
    resolve: ResolveFlags,
) -> std::result::Result<OwnedFd, Errno> {
    let mut tries = 0;
    loop {
        match openat2(&dir, path, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) if tries < MOST_TRIES => tries += 1,
            other => return other,
        }
    }
}

/// Removes `name` in the directory `dir`; `above` is the directory's path, used for errors alone.
fn remove(dir: BorrowedFd<'_>, name: &OsStr, above: &Path) -> Result<()> {
    let path = || above.join(name);
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Err(Errno::ISDIR) => {}
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(system(path())(error)),
    }
    // Another mount may be a user's disk, and is not what this name stood for when it was created.
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let opened = match open(dir, name, OPEN_DIR, resolve) {
        Ok(opened) => opened,
        Err(Errno::NOENT) => return Ok(()),
        Err(Errno::XDEV) => return Err(Error::Mounted { path: path() }),
        Err(error) => return Err(system(path())(error)),
    };
    // All names are read before the first is removed: some file systems skip entries otherwise.
    let mut names = Vec::new();
    for entry in Dir::read_from(&opened).map_err(system(path()))? {
        names.push(OsString::from_vec(entry.map_err(system(path()))?.file_name().to_bytes().to_vec()));
    }
    for inner in names.iter().filter(|name| *name != "." && *name != "..") {
        remove(opened.as_fd(), inner, &path())?;
    }
    match rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(system(path())(error)),
    }
}

/// Checks that a regular file is root's and that nobody else may write to it.
fn plain(path: &Path, fd: OwnedFd) -> Result<File> {
    let stat = fstat(&fd).map_err(system(path))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Error::Strange { path: path.to_owned(), what: "no regular file" });
    }
    judge(path, &stat)?;
    Ok(File::from(fd))
}

fn whole(path: &Path, file: File, most: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = file.take(most + 1).read_to_end(&mut bytes);
    read.map_err(|source| Error::System { path: path.to_owned(), source })?;
    if bytes.len() as u64 > most {
        return Err(Error::Strange { path: path.to_owned(), what: "larger than any such file" });
    }
    Ok(bytes)
}

/// Reads a regular file of at most `most` bytes, anywhere, that nobody but root could have written.
///
/// # Errors
/// It, or a directory on the way to it, is not root's alone; it is no regular file, or a larger one; or the system's.
pub fn read(path: &Path, most: u64) -> Result<Vec<u8>> {
    let (path, file) = open_file(path)?;
    whole(&path, file, most)
}

/// Checks that nobody but root could have written a regular file, anywhere: for example a program that is to be run.
///
/// # Errors
/// As [`read`].
pub fn check_file(path: &Path) -> Result<()> {
    open_file(path).map(drop)
}

/// Opens the file; also returns its path without links.
fn open_file(path: &Path) -> Result<(PathBuf, File)> {
    let found = resolve(path, None)?;
    if let Some(doubt) = found.above {
        return Err(doubt.into());
    }
    let file = plain(&found.path, open_found(&found)?.into())?;
    Ok((found.path, file))
}

/// Opens a file for a command's output, and truncates it. In a directory that others may write to it must be new, or
/// a file of the caller's own with one hard link: not a file that another user has placed to have it overwritten.
///
/// # Errors
/// Another kind of file has the name; or the system's.
pub fn create(path: &Path) -> Result<File> {
    let missing = || system(path)(Errno::INVAL);
    let name = path.file_name().ok_or_else(missing)?;
    let above = path.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let dir = resolve(above, None)?;
    let full = dir.path.join(name);
    if dir.above.is_none() && doubt(&dir.path, &dir.stat).is_none() {
        // Whatever exists in a trusted directory was put there by root, for example /dev/stdout.
        let through = PathBuf::from(format!("/proc/self/fd/{}", dir.fd.as_raw_fd())).join(name);
        return File::create(through).map_err(|source| Error::System { path: full, source });
    }
    let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let mode = Mode::from_raw_mode(0o666);
    match openat(&dir.fd, name, flags | OFlags::CREATE | OFlags::EXCL, mode) {
        Err(Errno::EXIST) => {}
        other => return other.map(File::from).map_err(system(full)),
    }
    let fd = openat(&dir.fd, name, flags, Mode::empty()).map_err(|error| match error {
        Errno::LOOP => Error::Strange { path: full.clone(), what: "a link in a directory of other users" },
        Errno::NXIO => Error::Strange { path: full.clone(), what: "no regular file" },
        error => system(&full)(error),
    })?;
    let stat = fstat(&fd).map_err(system(&full))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Error::Strange { path: full, what: "no regular file" });
    }
    if stat.st_uid != rustix::process::geteuid().as_raw() {
        return Err(Error::Owner { path: full, uid: stat.st_uid });
    }
    if stat.st_nlink != 1 {
        return Err(Error::Strange { path: full, what: "a file with another name besides" });
    }
    rustix::fs::ftruncate(&fd, 0).map_err(system(&full))?;
    Ok(File::from(fd))
}

#[cfg(test)]
mod tests;
