//! The store's directories, each held open; everything else in the store works relative to them, so that nobody can
//! swap a directory under it.

use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, FlockOperation, IFlags, Mode, OFlags};
use rustix::io::Errno;

use crate::format::{self, Format};

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
    /// Another server holds the lock.
    #[error("another server uses this store ({path:?})")]
    InUse {
        /// The store's root.
        path: PathBuf,
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
    root: OwnedFd,
    pub(crate) layers: OwnedFd,
    pub(crate) staging: OwnedFd,
    pub(crate) rootfs: OwnedFd,
    pub(crate) trash: OwnedFd,
    /// Layers whose data may not have reached the disk and that running containers may still use.
    pub(crate) suspect: OwnedFd,
    /// The id of this boot (`/proc/sys/kernel/random/boot_id`).
    pub(crate) boot_id: String,
}

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

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
    // A record is a few hundred bytes; the bound is for a file that is none.
    let mut text = String::new();
    std::fs::File::from(file).take(1 << 20).read_to_string(&mut text)?;
    Ok(text)
}

/// Replaces a file of the store in one step: a new file under another name, then a rename. Not synced.
pub(crate) fn write_file(dir: impl AsFd, name: &str, text: &str) -> std::io::Result<()> {
    let dir = dir.as_fd();
    let new = format!(".{name}.new");
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = std::fs::File::from(rustix::fs::openat(dir, &new, flags, Mode::RUSR | Mode::WUSR)?);
    file.write_all(text.as_bytes())?;
    rustix::fs::renameat(dir, &new, dir, name)?;
    Ok(())
}

impl Layout {
    /// Makes what is missing, takes the lock, checks the format.
    pub(crate) fn open(path: &Path) -> crate::Result<Self> {
        let made = |path: PathBuf, result: std::io::Result<()>| match result {
            Err(source) => Err(Error::Make { path, source }),
            Ok(()) => Ok(()),
        };
        made(path.to_owned(), std::fs::create_dir_all(path))?;
        let opened = |path: &Path, result: rustix::io::Result<OwnedFd>| {
            result.map_err(|error| Error::Open { path: path.to_owned(), source: error.into() })
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = opened(path, rustix::fs::open(path, flags, Mode::empty()))?;
        match rustix::fs::flock(&root, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(Error::InUse { path: path.to_owned() }.into()),
            Err(error) => {
                return Err(Error::Lock { path: path.to_owned(), source: error.into() }.into());
            }
        }
        // Layers keep the set-id bits and the owners of their images: nobody but root may come here.
        rustix::fs::fchmod(&root, Mode::RWXU)
            .map_err(|error| Error::Open { path: path.to_owned(), source: error.into() })?;
        check_format(root.as_fd())?;
        let part = |name: &str| -> Result<OwnedFd, Error> {
            let result = match rustix::fs::mkdirat(&root, name, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => Ok(()),
                Err(error) => Err(error.into()),
            };
            made(path.join(name), result)?;
            opened(&path.join(name), open_dir(&root, name))
        };
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .map_err(Error::BootId)?
            .trim()
            .to_owned();
        let rootfs = part("rootfs")?;
        spread(&rootfs);
        Ok(Self {
            layers: part("layers")?,
            staging: part("staging")?,
            rootfs,
            trash: part("trash")?,
            suspect: part("suspect")?,
            root,
            boot_id,
        })
    }

    /// Moves a directory of the store to the trash and says under which name; there the reaper finds it.
    pub(crate) fn to_trash(&self, dir: impl AsFd, name: &str) -> Result<String, Error> {
        let new = uuid::Uuid::new_v4().simple().to_string();
        rustix::fs::renameat(dir, name, &self.trash, &new)
            .map_err(|error| Error::Trash { name: name.to_owned(), source: error.into() })?;
        Ok(new)
    }

    /// A new descriptor of the store's root, for a `syncfs` that is to report every write error from now on.
    pub(crate) fn sync_handle(&self) -> rustix::io::Result<OwnedFd> {
        open_dir(&self.root, ".")
    }

    /// Lets another server have the store.
    pub(crate) fn unlock(&self) {
        let _ = rustix::fs::flock(&self.root, FlockOperation::Unlock);
    }
}

/// Asks ext4 to put each of the directory's children into a block group of its own (`chattr +T`, ext4(5)).
///
/// ext4 does not reuse an inode for a minute or more after its deletion, and walks over all such inodes of a group at
/// every create in it (`recently_deleted` in fs/ext4/ialloc.c). Where thousands of root file systems come and go in one
/// group that walk costs milliseconds. Others do not know the flag, and need none.
fn spread(dir: &OwnedFd) {
    if let Ok(flags) = rustix::fs::ioctl_getflags(dir) {
        let _ = rustix::fs::ioctl_setflags(dir, flags | IFlags::TOPDIR);
    }
}

fn check_format(root: BorrowedFd<'_>) -> crate::Result<()> {
    const NAME: &str = "format.json";
    let missing = matches!(rustix::fs::statat(root, NAME, AtFlags::SYMLINK_NOFOLLOW), Err(Errno::NOENT));
    if missing {
        let text = serde_json::to_string(&Format::default()).map_err(format::Error::Parse)?;
        write_file(root, NAME, &text).map_err(|source| Error::Write { name: NAME.into(), source })?;
        return Ok(());
    }
    let text = read_file(root, NAME).map_err(|source| Error::Read { name: NAME.into(), source })?;
    Format::parse(&text)?;
    Ok(())
}
