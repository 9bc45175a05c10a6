//! The store's directories, each held open; everything else in the store works relative to them, so that nobody can
//! swap a directory under it.

use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Dir, FileType, FlockOperation, IFlags, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use wardian_sys::directory::Directory;

use crate::format::{self, Format};
use crate::record::Records;

/// What could not be done to the store's directories.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A directory could not be made.
    #[error("cannot make the directory {path:?}")]
    Make {
        /// Its path.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// A directory could not be opened.
    #[error("cannot open the directory {path:?}")]
    Open {
        /// Its path.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// Other users could change a directory.
    #[error(transparent)]
    Untrusted(#[from] wardian_sys::directory::Error),
    /// It is no store, and there is something in it.
    #[error(transparent)]
    Foreign(crate::whose::Error),
    /// Another process holds the lock: a server, or whoever has it by flock(1).
    #[error("the lock of the store {path:?} is held by {by}: end it, or use another --root")]
    InUse {
        /// The store's root.
        path: PathBuf,
        /// Who holds it, for people.
        by: String,
    },
    /// The store's root file systems are recorded elsewhere. Taking those for trash would be fatal.
    #[error("the store {path:?} is in use with the run directory {run:?}: give that one (--run)")]
    OtherRun {
        /// The store's root.
        path: PathBuf,
        /// The run directory in use.
        run: PathBuf,
    },
    /// The store could not be locked.
    #[error("cannot lock the store {path:?}")]
    Lock {
        /// The store's root.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// A directory could not be listed.
    #[error("cannot list the store's directory {name}")]
    List {
        /// Its name in the store.
        name: &'static str,
        /// The system's error.
        source: std::io::Error,
    },
    /// A file could not be read.
    #[error("cannot read {name}")]
    Read {
        /// Its name.
        name: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// A file could not be written.
    #[error("cannot write {name}")]
    Write {
        /// Its name.
        name: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// Something could not be moved to the trash.
    #[error("cannot move {name} to the trash")]
    Trash {
        /// Its name in the store.
        name: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// The id of this boot could not be read.
    #[error("cannot read the boot id")]
    BootId(#[source] std::io::Error),
}

/// The store's directories.
#[derive(Debug)]
pub(crate) struct Layout {
    pub(crate) root: OwnedFd,
    pub(crate) layers: OwnedFd,
    /// What names stand for.
    pub(crate) images: OwnedFd,
    pub(crate) staging: OwnedFd,
    pub(crate) rootfs: OwnedFd,
    /// Whether each new directory in `rootfs` is put into a block group of its own.
    pub(crate) spreads: bool,
    pub(crate) trash: OwnedFd,
    /// The path that the store was opened by.
    pub(crate) path: PathBuf,
    pub(crate) records: Records,
    /// The id of this boot (`/proc/sys/kernel/random/boot_id`).
    pub(crate) boot_id: String,
}

/// As whom a store is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// The one process that puts the store in order and deletes its trash.
    Server,
    /// Any process that does one thing beside it.
    Command,
}

/// What the lock file says.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Holder {
    run: PathBuf,
    /// Whether the process that holds the lock is a server; meaningless while nobody holds it.
    server: bool,
}

/// The directories of a store; those that hold layers come after those that use them.
pub(crate) const DIRECTORIES: [&str; 5] = ["rootfs", "staging", "layers", "images", "trash"];
/// Which program may touch the store.
pub(crate) const FORMAT: &str = "format.json";
/// The lock file, held exclusively by the server for its life and by a command for an instant.
pub(crate) const LOCK: &str = "lock";
/// A server that was killed a moment ago may still be on its way out, with all its descriptors.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);

pub(crate) const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Bytes of the largest file that is read whole.
const MAX_RECORD: u64 = 32 << 20;

/// Opens the directory `name` under `dir`; a symlink is refused.
pub(crate) fn open_dir(dir: impl AsFd, name: &str) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(dir, name, DIRECTORY, Mode::empty())
}

/// The names in a directory, without `.` and `..`; those that are not text are left out, the store makes none.
pub(crate) fn names(dir: impl AsFd) -> rustix::io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        match entry.file_name().to_str() {
            Ok("." | "..") | Err(_) => {}
            Ok(name) => names.push(name.to_owned()),
        }
    }
    Ok(names)
}

/// Reads a small regular file of the store.
pub(crate) fn read_file(dir: impl AsFd, name: &str) -> std::io::Result<String> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = rustix::fs::openat(dir, name, flags, Mode::empty())?;
    if FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) != FileType::RegularFile {
        return Err(std::io::Error::from(std::io::ErrorKind::InvalidData));
    }
    // A record is a few hundred bytes, with a manifest and a config in it some megabytes; the bound is for a file that
    // is none.
    let mut text = String::new();
    std::fs::File::from(file).take(MAX_RECORD).read_to_string(&mut text)?;
    Ok(text)
}

/// Replaces a file of the store in one step: a new file under another name, then a rename. Not synced: after a power
/// cut it may be the old one, the new one or empty.
pub(crate) fn write_file(dir: impl AsFd, name: &str, text: &str) -> std::io::Result<()> {
    replace(dir.as_fd(), name, text, false)
}

/// The same, and waits for the disk, before the rename and after it: a power cut meanwhile leaves the old one or the new
/// one, and later the new one. For threads that nobody waits for, and commands.
pub(crate) fn write_file_durable(dir: impl AsFd, name: &str, text: &str) -> std::io::Result<()> {
    replace(dir.as_fd(), name, text, true)
}

fn replace(dir: BorrowedFd<'_>, name: &str, text: &str, sync: bool) -> std::io::Result<()> {
    let new = format!(".{name}.{}", uuid::Uuid::new_v4().simple());
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = std::fs::File::from(rustix::fs::openat(dir, &new, flags, Mode::RUSR | Mode::WUSR)?);
    let written = file
        .write_all(text.as_bytes())
        .and_then(|()| if sync { file.sync_data() } else { Ok(()) })
        .and_then(|()| Ok(rustix::fs::renameat(dir, &new, dir, name)?))
        .and_then(|()| if sync { Ok(rustix::fs::fsync(dir)?) } else { Ok(()) });
    if written.is_err() {
        let _ = rustix::fs::unlinkat(dir, &new, AtFlags::empty());
    }
    written
}

impl Layout {
    /// Makes what is missing, checks the format, and takes the lock if it is to be had: a server must have it, and
    /// whoever has it may put the store in order.
    pub(crate) fn open(path: &Path, run: &Path, role: Role) -> crate::Result<(Self, Option<Lock>)> {
        let made = |error| match error {
            wardian_sys::directory::Error::System { path, source } => Error::Make { path, source },
            error => Error::Untrusted(error),
        };
        // Before anything is done to it.
        crate::whose::store(path).map_err(|error| match error {
            crate::whose::Error::Directory(error) => crate::Error::from(made(error)),
            crate::whose::Error::Format(error) => error.into(),
            error => Error::Foreign(error).into(),
        })?;
        let (root, _) = Directory::make(path, 0o700).map_err(made)?;
        // Layers keep the set-id bits and the owners of their images: nobody but root may come here.
        rustix::fs::fchmod(&root, Mode::RWXU)
            .map_err(|error| Error::Open { path: path.to_owned(), source: error.into() })?;
        check_format(root.as_fd())?;
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .map_err(Error::BootId)?
            .trim()
            .to_owned();
        let lock = Lock::take(root.as_fd(), path, run, role, &boot_id)?;
        let part = |name: &str| root.private(name).map(OwnedFd::from).map_err(made);
        let rootfs = part("rootfs")?;
        let spreads = spread(&rootfs);
        let records = Records::open(run, &boot_id, role == Role::Server)
            .map_err(|source| Error::Make { path: run.to_owned(), source })?;
        let layout = Self {
            layers: part("layers")?,
            images: part("images")?,
            staging: part("staging")?,
            rootfs,
            spreads,
            trash: part("trash")?,
            root: root.into(),
            path: path.to_owned(),
            records,
            boot_id,
        };
        Ok((layout, lock))
    }

    /// Moves a directory of the store to the trash, under this name.
    pub(crate) fn to_trash(&self, dir: impl AsFd, name: &str, new: &str) -> Result<(), Error> {
        rustix::fs::renameat(dir, name, &self.trash, new)
            .map_err(|error| Error::Trash { name: name.to_owned(), source: error.into() })
    }

    /// A new descriptor of the store's root, for a `syncfs` that is to report every write error from now on.
    pub(crate) fn sync_handle(&self) -> rustix::io::Result<OwnedFd> {
        open_dir(&self.root, ".")
    }

    /// Whether a server has the store.
    pub(crate) fn has_server(&self) -> bool {
        let Ok(file) = open_lock(self.root.as_fd()) else { return false };
        let held = match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => false,
            Err(error) => error == Errno::WOULDBLOCK,
        };
        held && Holder::read(&file).server
    }
}

/// The lock file. It is written to: what somebody has put in its place while the directory was open to others is refused.
fn open_lock(root: BorrowedFd<'_>) -> std::io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::openat(root, LOCK, flags, Mode::RUSR | Mode::WUSR)?;
    let stat = rustix::fs::fstat(&file)?;
    let own = stat.st_uid == 0 || stat.st_uid == rustix::process::geteuid().as_raw();
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || !own || stat.st_nlink > 1 {
        return Err(std::io::Error::other("its file `lock` is not root's, or no regular file: remove it"));
    }
    Ok(file)
}

impl Holder {
    /// Nothing if the file is new or was cut off in the writing.
    fn read(file: &OwnedFd) -> Self {
        let mut text = [0; 8192];
        let length = rustix::io::pread(file, &mut text, 0).unwrap_or(0);
        serde_json::from_slice(&text[..length]).unwrap_or_default()
    }

    /// Whether it is known to have a run directory that is not `run`.
    fn is_elsewhere(&self, run: &Path) -> bool {
        !self.run.as_os_str().is_empty() && self.run != run
    }

    fn write(&self, file: &OwnedFd) -> std::io::Result<()> {
        rustix::fs::ftruncate(file, 0)?;
        rustix::io::pwrite(file, &serde_json::to_vec(self)?, 0)?;
        Ok(())
    }
}

/// The store's lock, held.
#[derive(Debug)]
pub(crate) struct Lock(OwnedFd);

impl Lock {
    fn take(
        root: BorrowedFd<'_>,
        path: &Path,
        run: &Path,
        role: Role,
        boot_id: &str,
    ) -> Result<Option<Self>, Error> {
        let failed = |source: std::io::Error| Error::Lock { path: path.to_owned(), source };
        let file = open_lock(root).map_err(failed)?;
        let run = std::path::absolute(run).map_err(failed)?;
        let (started, mut told) = (Instant::now(), false);
        let (held, holder) = loop {
            let held = match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => true,
                Err(Errno::WOULDBLOCK) => false,
                Err(error) => return Err(failed(error.into())),
            };
            let holder = Holder::read(&file);
            // A command goes on beside whoever holds the lock, but with another run directory only if that is a command
            // as well, which lets go of it in an instant.
            let content = role == Role::Command && !holder.is_elsewhere(&run);
            if held || content || started.elapsed() >= LOCK_PATIENCE {
                break (held, holder);
            }
            if !told && started.elapsed() >= LOCK_PATIENCE / 5 {
                let by = wardian_sys::lock::told(&wardian_sys::lock::holders(file.as_fd()));
                tracing::warn!(store = %path.display(), by, "store.lock-held");
                told = true;
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        if !held && role == Role::Server {
            let by = wardian_sys::lock::told(&wardian_sys::lock::holders(file.as_fd()));
            return Err(Error::InUse { path: path.to_owned(), by });
        }
        if holder.is_elsewhere(&run) {
            let others = Records::open(&holder.run, boot_id, false).and_then(|records| records.all());
            // Unreadable records name nobody knows what.
            if !held || !others.is_ok_and(|records| records.is_empty()) {
                return Err(Error::OtherRun { path: path.to_owned(), run: holder.run });
            }
        }
        if !held {
            return Ok(None);
        }
        let ours = Holder { run, server: role == Role::Server };
        ours.write(&file).map_err(failed)?;
        Ok(Some(Self(file)))
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Explicit: a child forked at this moment has a copy of the descriptor.
        let _ = rustix::fs::flock(&self.0, FlockOperation::Unlock);
    }
}

/// Asks ext4 to put each of the directory's children into a block group of its own (`chattr +T`, ext4(5)).
///
/// ext4 does not reuse an inode for a minute or more after its deletion, and walks over all such inodes of a group at
/// every create in it (`recently_deleted` in fs/ext4/ialloc.c). Where thousands of root file systems come and go in one
/// group that walk costs milliseconds. Others do not know the flag, and need none. Whether it is so now.
fn spread(dir: &OwnedFd) -> bool {
    let set = |flags| rustix::fs::ioctl_setflags(dir, flags | IFlags::TOPDIR);
    rustix::fs::ioctl_getflags(dir).and_then(set).is_ok()
}

fn check_format(root: BorrowedFd<'_>) -> crate::Result<()> {
    let missing = matches!(rustix::fs::statat(root, FORMAT, AtFlags::SYMLINK_NOFOLLOW), Err(Errno::NOENT));
    if missing {
        let text = serde_json::to_string(&Format::default()).map_err(format::Error::Parse)?;
        write_file_durable(root, FORMAT, &text)
            .map_err(|source| Error::Write { name: FORMAT.into(), source })?;
        return Ok(());
    }
    let text = read_file(root, FORMAT).map_err(|source| Error::Read { name: FORMAT.into(), source })?;
    let found = Format::parse(&text)?;
    let format = found.clone().upgrade();
    if format != found {
        let text = serde_json::to_string(&format).map_err(format::Error::Parse)?;
        write_file_durable(root, FORMAT, &text)
            .map_err(|source| Error::Write { name: FORMAT.into(), source })?;
    }
    Ok(())
}
