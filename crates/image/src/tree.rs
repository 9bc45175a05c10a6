//! A directory that names from an archive cannot leave.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Uid, XattrFlags, fchmod, fchown,
    fsetxattr, fstat, mkdirat, openat, openat2, readlinkat, statat, unlinkat,
};
use rustix::io::Errno;
use rustix::process::getegid;

use crate::error::{Error, show};

/// Flags for a directory that is used as the base of `*at` calls and gets attributes.
const DIR: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
const PERMISSIONS: u32 = 0o777;
const SETGID: u32 = 0o2000;
/// How many dangling symlinks are followed to make the directory they point to.
const MAX_HOPS: u32 = 8;
/// openat2 answers EAGAIN when a rename elsewhere raced with `..`; so often it is asked again.
const MAX_RETRIES: u32 = 128;

/// The root of a layer while it is unpacked.
pub(crate) struct Tree {
    root: OwnedFd,
    /// The directory used last: archives list a directory's files one after the other.
    last: Option<(Vec<u8>, Rc<Parent>)>,
    /// Permission bits that a new file may not get: the umask, or a default ACL.
    masked: u32,
    /// What we make belongs to 0:0, unless the directory gives it another group.
    as_root: bool,
    /// Directories made because an entry had no parent, and how many are allowed.
    made: u64,
    max_made: u64,
    max_depth: usize,
}

/// A directory in which entries are made.
pub(crate) struct Parent {
    pub(crate) fd: OwnedFd,
    /// Neither a group of its own nor a setgid bit that new entries inherit.
    plain: bool,
}

impl AsFd for Parent {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Puts the subject on a kernel error.
pub(crate) fn at(op: &'static str, path: &[u8]) -> impl FnOnce(Errno) -> Error {
    // Only an error is worth the escaped name: this is called for every system call.
    move |source| Error::Write { op, path: show(path), source }
}

/// True for the device node that overlayfs takes for "deleted".
pub(crate) fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// Hides what lower layers have in this directory.
pub(crate) fn set_opaque(dir: BorrowedFd<'_>, path: &[u8]) -> Result<(), Error> {
    fsetxattr(dir, "trusted.overlay.opaque", b"y", XattrFlags::empty()).map_err(at("mark as opaque", path))
}

impl Tree {
    pub(crate) fn new(into: BorrowedFd<'_>, max_made: u64, max_depth: usize) -> Result<Self, Error> {
        let root = openat(into, ".", DIR, Mode::empty()).map_err(at("open", b"."))?;
        // Asking for the umask changes it for all threads, so a file without a name shows it. Where there are none,
        // modes and owners are set one by one.
        let probe =
            openat(&root, ".", OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC, PERMISSIONS.into())
                .and_then(fstat);
        let (masked, as_root) = probe.map_or((PERMISSIONS, false), |stat| {
            (PERMISSIONS & !stat.st_mode, stat.st_uid == 0 && getegid().is_root())
        });
        Ok(Self { root, last: None, masked, as_root, made: 0, max_made, max_depth })
    }

    /// True if a file or directory just made in `parent` with the mode `mode & 0o777` has that mode. Neither setuid and
    /// the like are given at creation, nor what the umask takes.
    pub(crate) fn has_mode(&self, parent: &Parent, mode: u32) -> bool {
        parent.plain && mode & !(PERMISSIONS & !self.masked) == 0
    }

    /// True if what was just made in `parent` has that owner.
    pub(crate) fn has_owner(&self, parent: &Parent, uid: u32, gid: u32) -> bool {
        self.as_root && parent.plain && (uid, gid) == (0, 0)
    }

    /// Must be called when an existing directory gets other attributes.
    pub(crate) fn forget(&mut self) {
        self.last = None;
    }

    /// The root itself.
    pub(crate) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// How many directories were made because an entry had no parent.
    pub(crate) fn made(&self) -> u64 {
        self.made
    }

    /// An existing directory; symlinks on the way, and the last one, are resolved inside the root.
    pub(crate) fn open(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        let path = if path.is_empty() { b"." } else { path };
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let mut tries = 0;
        loop {
            match openat2(&self.root, path, DIR, Mode::empty(), resolve) {
                Err(Errno::AGAIN | Errno::INTR) if tries < MAX_RETRIES => tries += 1,
                other => return other,
            }
        }
    }

    /// The directory `path`, made if it is missing.
    pub(crate) fn parent(&mut self, path: &[u8]) -> Result<Rc<Parent>, Error> {
        if let Some((last, parent)) = &self.last
            && last == path
        {
            return Ok(Rc::clone(parent));
        }
        let fd = self.ensure(path, MAX_HOPS)?;
        let stat = fstat(&fd).map_err(at("look at", path))?;
        let plain = stat.st_gid == 0 && stat.st_mode & SETGID == 0;
        let parent = Rc::new(Parent { fd, plain });
        self.last = Some((path.to_vec(), Rc::clone(&parent)));
        Ok(parent)
    }

    fn ensure(&mut self, path: &[u8], hops: u32) -> Result<OwnedFd, Error> {
        match self.open(path) {
            // ENOTDIR: perhaps a whiteout that this layer fills again.
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            other => return other.map_err(at("open", path)),
        }
        if path.split(|b| *b == b'/').filter(|name| !name.is_empty()).count() > self.max_depth {
            // Only a symlink's target can be so deep: names were checked.
            return Err(Error::Limit {
                what: format!("the depth of {}", show(path)),
                limit: self.max_depth as u64,
            });
        }
        let mut current = self.open(b"").map_err(at("open", b"."))?;
        let mut prefix: Vec<u8> = Vec::new();
        for name in path.split(|b| *b == b'/').filter(|name| !name.is_empty()) {
            let above = prefix.len();
            if above > 0 {
                prefix.push(b'/');
            }
            prefix.extend_from_slice(name);
            current = match self.open(&prefix) {
                Ok(fd) => fd,
                Err(Errno::NOENT | Errno::NOTDIR) => match self.make(&current, name, &prefix)? {
                    Some(fd) => fd,
                    None if hops == 0 => return Err(at("follow", &prefix)(Errno::LOOP)),
                    // A symlink to nowhere: what it points to is made, inside the root.
                    None => {
                        let target = readlinkat(&current, name, Vec::new()).map_err(at("follow", &prefix))?;
                        let target = target.as_bytes();
                        let mut there =
                            if target.starts_with(b"/") { Vec::new() } else { prefix[..above].to_vec() };
                        there.push(b'/');
                        there.extend_from_slice(target);
                        self.ensure(&there, hops - 1)?
                    }
                },
                Err(e) => return Err(at("open", &prefix)(e)),
            };
        }
        Ok(current)
    }

    /// Makes one missing directory; none if a symlink has its name.
    fn make(&mut self, above: &OwnedFd, name: &[u8], path: &[u8]) -> Result<Option<OwnedFd>, Error> {
        self.made += 1;
        if self.made > self.max_made {
            return Err(Error::Limit {
                what: "the number of missing directories".into(),
                limit: self.max_made,
            });
        }
        let mut opaque = false;
        match mkdirat(above, name, Mode::from_raw_mode(0o755)) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let stat = statat(above, name, AtFlags::SYMLINK_NOFOLLOW).map_err(at("look at", path))?;
                if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
                    return Ok(None);
                }
                if !is_whiteout(&stat) {
                    return Err(at("make the directory", path)(Errno::NOTDIR));
                }
                unlinkat(above, name, AtFlags::empty()).map_err(at("replace", path))?;
                mkdirat(above, name, Mode::from_raw_mode(0o755)).map_err(at("make the directory", path))?;
                opaque = true;
            }
            Err(e) => return Err(at("make the directory", path)(e)),
        }
        let fd = openat(above, name, DIR | OFlags::NOFOLLOW, Mode::empty()).map_err(at("open", path))?;
        // It belongs to nobody's group, not to the directory's above, and mkdir's mode went through the umask.
        if self.as_root {
            fchown(&fd, Some(Uid::ROOT), Some(Gid::ROOT)).map_err(at("set the owner of", path))?;
        }
        fchmod(&fd, Mode::from_raw_mode(0o755)).map_err(at("set the mode of", path))?;
        if opaque {
            set_opaque(fd.as_fd(), path)?;
        }
        Ok(Some(fd))
    }

    /// Opens the directory `name` itself, never through a symlink.
    pub(crate) fn child(above: impl AsFd, name: &[u8], path: &[u8]) -> Result<OwnedFd, Error> {
        openat(above, name, DIR | OFlags::NOFOLLOW, Mode::empty()).map_err(at("open", path))
    }

    /// Removes whatever is called `name`, so that an entry of another type can take its place.
    pub(crate) fn remove(&mut self, above: &Parent, name: &[u8], path: &[u8]) -> Result<(), Error> {
        self.last = None;
        remove(above.as_fd(), name, path, self.max_depth)
    }
}

/// Removes what is called `name`; a directory with all in it, at most so many levels of them. No symlink is followed.
pub(crate) fn remove(above: BorrowedFd<'_>, name: &[u8], path: &[u8], depth: usize) -> Result<(), Error> {
    match unlinkat(above, name, AtFlags::empty()) {
        Err(Errno::ISDIR) => {}
        other => return other.map_err(at("replace", path)),
    }
    if depth == 0 {
        return Err(Error::UnsafePath {
            path: show(path),
            why: "the directory to replace is nested too deeply",
        });
    }
    let mut dir = openat(above, name, DIR | OFlags::NOFOLLOW, Mode::empty())
        .and_then(Dir::new)
        .map_err(at("list", path))?;
    while let Some(entry) = dir.read() {
        let entry = entry.map_err(at("list", path))?;
        let child = entry.file_name().to_bytes();
        if child != b"." && child != b".." {
            remove(dir.fd().map_err(at("list", path))?, child, path, depth - 1)?;
        }
    }
    unlinkat(above, name, AtFlags::REMOVEDIR).map_err(at("replace", path))
}
