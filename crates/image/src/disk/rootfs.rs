//! A directory that is a root file system; it becomes one layer, as a tar of it would.
//!
//! The directory may lie in another user's directory, who can rename entries there and plant symlinks. So its path is
//! walked once, by [`wardian_sys::directory::reach_named`]; scan and read use the resulting descriptor, and follow no
//! symlink below it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, fstat, openat, readlinkat, statat};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};
use wardian_sys::directory;

use super::names::{self, MOST_NAMES, Names};
use crate::bounds::limits::Limits;
use crate::bounds::room::{Held, Room};
use crate::digest::Digest;
use crate::error::{Error, show};

const DIR: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// The maximum memory for scanning or reading a tree, besides that of an unpack: the names, and, when reading, the
/// hard links.
const FOR_ONE: usize = 2 * MOST_NAMES;

/// The state of a tree: a digest of its path, and of the name, inode, size, owner, mode and times of change of every
/// entry. No file is read for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) state: Digest,
    /// Bytes of its files.
    pub(crate) bytes: u64,
    /// The time of the latest change, in seconds and nanoseconds.
    pub(crate) changed: (i64, i64),
}

/// An opened root file system directory.
#[derive(Debug)]
pub(crate) struct Root {
    dir: OwnedFd,
    /// Without symlinks.
    path: PathBuf,
}

impl Root {
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let error = |source| Error::Io { op: "open", path: path.display().to_string(), source };
        let (dir, path) = directory::reach_named(path).map_err(|e| error(e.into()))?;
        Ok(Self { dir, path })
    }

    pub(crate) fn shown(&self) -> String {
        self.path.display().to_string()
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        statat(&self.dir, name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    /// Whether the directory looks like a root file system, so that a mistyped path does not fill the store.
    pub(crate) fn is_one(&self) -> bool {
        let has = |names: &[&str]| names.iter().any(|name| self.has(name));
        has(&["bin", "sbin", "usr"]) && has(&["etc", "lib", "dev", "proc"])
    }

    /// Whether it is an OCI layout. A root file system may have an `index.json` as well.
    pub(crate) fn is_layout(&self) -> bool {
        self.has("oci-layout") || self.has("index.json") && !self.is_one()
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

impl From<Root> for OwnedFd {
    fn from(root: Root) -> Self {
        root.dir
    }
}

/// Takes the memory for scanning or reading a tree, and waits for it: the total stays bounded however many do so at
/// once.
pub(crate) fn room(what: &str, cancelled: &dyn Fn() -> bool) -> Result<Held, Error> {
    Held::of(Room::of_trees(), FOR_ONE, cancelled).ok_or_else(|| Error::Cancelled { what: what.into() })
}

fn failed(op: &'static str, path: &[u8]) -> impl FnOnce(Errno) -> Error {
    move |source| Error::Io { op, path: show(path), source: source.into() }
}

/// Scans the tree for its current state. Fails if `into`, the directory to unpack into, lies inside it.
pub(crate) fn look(
    root: &Root,
    limits: &Limits,
    into: Option<BorrowedFd<'_>>,
    cancelled: &dyn Fn() -> bool,
) -> Result<Seen, Error> {
    let name = root.path.as_os_str().as_encoded_bytes();
    let stat = fstat(&root.dir).map_err(failed("stat", name))?;
    let into = into.map(fstat).transpose().map_err(failed("stat", name))?;
    let mut hasher = Sha256::new();
    hasher.update(b"directory\0");
    hasher.update(name);
    let mut looking = Look {
        limits,
        cancelled,
        device: stat.st_dev,
        into: into.map(|stat| (stat.st_dev, stat.st_ino)),
        hasher,
        seen: (0, 0),
        held: 0,
        changed: (0, 0),
        path: name.to_vec(),
    };
    looking.directory(&root.dir, &stat, 0)?;
    Ok(Seen { state: Digest::finish(looking.hasher), bytes: looking.seen.1, changed: looking.changed })
}

struct Look<'a> {
    limits: &'a Limits,
    cancelled: &'a dyn Fn() -> bool,
    device: u64,
    into: Option<(u64, u64)>,
    hasher: Sha256,
    /// The number of entries and of bytes so far.
    seen: (u64, u64),
    /// The bytes of the names of the directories being scanned.
    held: usize,
    changed: (i64, i64),
    path: Vec<u8>,
}

impl Look<'_> {
    fn add(&mut self, name: &[u8], stat: &Stat) -> Result<(), Error> {
        self.seen.0 += 1;
        if self.seen.0 > self.limits.max_entries {
            let (what, limit) =
                (format!("the number of entries of {}", show(&self.path)), self.limits.max_entries);
            return Err(Error::Limit { what, limit });
        }
        // A name ends with a NUL, which none contains; the rest has a fixed width.
        self.hasher.update(name);
        self.hasher.update([0]);
        self.hasher.update(stat.st_dev.to_le_bytes());
        self.hasher.update(stat.st_ino.to_le_bytes());
        self.hasher.update(stat.st_mode.to_le_bytes());
        self.hasher.update(stat.st_uid.to_le_bytes());
        self.hasher.update(stat.st_gid.to_le_bytes());
        self.hasher.update(stat.st_size.to_le_bytes());
        self.hasher.update(stat.st_mtime.to_le_bytes());
        self.hasher.update(stat.st_mtime_nsec.to_le_bytes());
        self.hasher.update(stat.st_ctime.to_le_bytes());
        self.hasher.update(stat.st_ctime_nsec.to_le_bytes());
        self.changed = self.changed.max((stat.st_ctime, stat.st_ctime_nsec.cast_signed()));
        if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile {
            self.seen.1 = self.seen.1.saturating_add(stat.st_size.cast_unsigned());
        }
        Ok(())
    }

    fn directory(&mut self, dir: &OwnedFd, stat: &Stat, depth: usize) -> Result<(), Error> {
        if self.into == Some((stat.st_dev, stat.st_ino)) {
            return Err(Error::UnsafePath {
                path: show(&self.path),
                why: "the store lies in the directory that is to be put into it",
            });
        }
        if depth > self.limits.max_depth {
            let (what, limit) = (format!("the depth of {}", show(&self.path)), self.limits.max_depth as u64);
            return Err(Error::Limit { what, limit });
        }
        let mut names = Names::default();
        names.list(dir.as_fd(), &self.path, 0, names::most().saturating_sub(self.held))?;
        names.sort();
        self.held += names.bytes();
        for index in 0..names.len() {
            let (name, _) = names.get(index);
            if (self.cancelled)() {
                return Err(Error::Cancelled { what: show(&self.path) });
            }
            let above = self.path.len();
            self.path.push(b'/');
            self.path.extend_from_slice(name);
            let stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed("stat", &self.path))?;
            self.add(name, &stat)?;
            match FileType::from_raw_mode(stat.st_mode) {
                // File systems mounted below are not a part of the tree.
                FileType::Directory if stat.st_dev == self.device => {
                    let child = openat(dir, name, DIR, Mode::empty()).map_err(failed("open", &self.path))?;
                    self.directory(&child, &stat, depth + 1)?;
                }
                FileType::Symlink => {
                    let target =
                        readlinkat(dir, name, Vec::new()).map_err(failed("read the link", &self.path))?;
                    self.hasher.update(target.as_bytes_with_nul());
                }
                _ => {}
            }
            self.path.truncate(above);
        }
        self.held -= names.bytes();
        self.hasher.update([0]);
        Ok(())
    }
}
