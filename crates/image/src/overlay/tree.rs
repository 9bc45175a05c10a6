//! A directory tree that confines the names from an archive.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{
    AtFlags, Gid, Mode, OFlags, ResolveFlags, Uid, fchmod, fchown, fstat, mkdirat, openat, readlinkat,
    statat, unlinkat,
};
use rustix::io::Errno;
use rustix::process::getegid;
use wardian_sys::directory;

use super::whiteout::{is_whiteout, set_opaque};
use crate::bounds::watch::Watch;
use crate::disk::remove::remove;
use crate::error::{Error, at, show};

/// Flags for a directory that is used as the base of `*at` calls and gets attributes.
const DIR: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
const PERMISSIONS: u32 = 0o777;
const SETGID: u32 = 0o2000;
/// How many symlinks are followed on the way to one directory, as by the kernel (path_resolution(7)).
const MAX_LINKS: u32 = 40;
/// The limit of steps along symlinks and missing directories for all entries of a layer: a base of about a second's
/// work, plus a number for each entry. Without it, a few kilobytes of an image can cause millions of steps.
const MAX_STEPS: u64 = 256 << 10;
const STEPS_FOR_EACH: u64 = 32;
/// The cost of following a symlink and of making a directory, in steps.
const LINK_STEPS: u64 = 2;
const MAKE_STEPS: u64 = 8;

/// The root of a layer while it is unpacked.
pub(crate) struct Tree<'a> {
    root: OwnedFd,
    /// Caches the last directory, because archives list a directory's files one after the other.
    last: Option<(Vec<u8>, Rc<Parent>)>,
    /// Permission bits that a new file does not get, because of the umask or a default ACL.
    masked: u32,
    /// Whether new files belong to 0:0, unless a setgid directory gives them another group.
    as_root: bool,
    /// Directories made because an entry had no parent, and how many are allowed.
    made: u64,
    max_made: u64,
    max_depth: usize,
    /// The number of steps left.
    steps: u64,
    watch: &'a Watch,
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

impl<'a> Tree<'a> {
    pub(crate) fn new(
        into: BorrowedFd<'_>,
        max_made: u64,
        max_depth: usize,
        watch: &'a Watch,
    ) -> Result<Self, Error> {
        let root = openat(into, ".", DIR, Mode::empty()).map_err(at("open", b"."))?;
        // Reading the umask means setting it for all threads, so an unnamed file is created instead to show it. Where
        // O_TMPFILE is not supported, modes and owners are always set explicitly.
        let probe =
            openat(&root, ".", OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC, PERMISSIONS.into())
                .and_then(fstat);
        let (masked, as_root) = probe.map_or((PERMISSIONS, false), |stat| {
            (PERMISSIONS & !stat.st_mode, stat.st_uid == 0 && getegid().is_root())
        });
        let steps = MAX_STEPS;
        Ok(Self { root, last: None, masked, as_root, made: 0, max_made, max_depth, steps, watch })
    }

    /// True if a file or directory just made in `parent` with the mode `mode & 0o777` has the mode `mode`. Bits such
    /// as setuid are not set at creation, nor are those of the umask.
    pub(crate) fn has_mode(&self, parent: &Parent, mode: u32) -> bool {
        parent.plain && mode & !(PERMISSIONS & !self.masked) == 0
    }

    /// True if a file just made in `parent` has that owner.
    pub(crate) fn has_owner(&self, parent: &Parent, uid: u32, gid: u32) -> bool {
        self.as_root && parent.plain && (uid, gid) == (0, 0)
    }

    /// Drops the cached directory; must be called when an existing directory gets other attributes.
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

    /// Adds the steps allowed for one entry; must be called for each entry, and for each directory that is looked up
    /// again at the end.
    pub(crate) fn next(&mut self, path: &[u8]) -> Result<(), Error> {
        self.steps = self.steps.saturating_add(STEPS_FOR_EACH);
        self.take(0, path)
    }

    fn take(&mut self, steps: u64, path: &[u8]) -> Result<(), Error> {
        if self.watch.is_cancelled() {
            return Err(Error::Cancelled { what: show(path) });
        }
        self.steps = self.steps.checked_sub(steps).ok_or_else(|| Error::Limit {
            what: format!(
                "the steps along links and missing directories (at {}), beside some for each entry,",
                show(path)
            ),
            limit: MAX_STEPS,
        })?;
        Ok(())
    }

    /// Opens an existing directory without following symlinks.
    fn open(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        let path = if path.is_empty() { b"." } else { path };
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
        directory::open(&self.root, path, DIR, resolve)
    }

    /// Opens an existing directory; symlinks in the path, and a final one, are resolved inside the root.
    pub(crate) fn find(&mut self, path: &[u8]) -> Result<OwnedFd, Error> {
        self.walk(path, false)
    }

    /// Opens the directory `path`, and makes it if it is missing.
    pub(crate) fn parent(&mut self, path: &[u8]) -> Result<Rc<Parent>, Error> {
        if let Some((last, parent)) = &self.last
            && last == path
        {
            return Ok(Rc::clone(parent));
        }
        let fd = self.walk(path, true)?;
        let stat = fstat(&fd).map_err(at("look at", path))?;
        let plain = stat.st_gid == 0 && stat.st_mode & SETGID == 0;
        let parent = Rc::new(Parent { fd, plain });
        self.last = Some((path.to_vec(), Rc::clone(&parent)));
        Ok(parent)
    }

    /// The steps of the kernel's own walk along symlinks cannot be counted, and a chain of them costs it 80,000. So
    /// the kernel resolves only paths without symlinks, and the others are resolved here.
    fn walk(&mut self, path: &[u8], make: bool) -> Result<OwnedFd, Error> {
        match self.open(path) {
            Err(Errno::LOOP) => {}
            // ENOTDIR: perhaps a whiteout, which this layer replaces by a directory.
            Err(Errno::NOENT | Errno::NOTDIR) if make => {}
            other => return other.map_err(at("open", path)),
        }
        let mut current = self.open(b"").map_err(at("open", b"."))?;
        let (mut rest, mut begin, mut depth, mut links) = (path.to_vec(), 0, 0, 0);
        while begin < rest.len() {
            let end = rest[begin..].iter().position(|b| *b == b'/').map_or(rest.len(), |n| begin + n);
            let name = &rest[begin..end];
            begin = end + 1;
            if matches!(name, b"" | b".") || name == b".." && depth == 0 {
                continue;
            }
            self.take(1, path)?;
            let flags = DIR | OFlags::NOFOLLOW;
            let target = match openat(&current, name, flags, Mode::empty()) {
                Ok(fd) => {
                    current = fd;
                    depth = if name == b".." { depth - 1 } else { depth + 1 };
                    None
                }
                Err(error @ (Errno::NOENT | Errno::NOTDIR)) => match readlinkat(&current, name, Vec::new()) {
                    Ok(target) => Some(target),
                    Err(_) if make => {
                        current = self.make(&current, name, path)?;
                        depth += 1;
                        None
                    }
                    Err(_) => return Err(at("open", path)(error)),
                },
                Err(error) => return Err(at("open", path)(error)),
            };
            // Only a symlink's target can be so deep: names were checked.
            if depth > self.max_depth {
                let what = format!("the depth of {}", show(path));
                return Err(Error::Limit { what, limit: self.max_depth as u64 });
            }
            if let Some(target) = target {
                self.take(LINK_STEPS, path)?;
                links += 1;
                if links > MAX_LINKS {
                    return Err(at("follow", path)(Errno::LOOP));
                }
                let target = target.as_bytes();
                if target.starts_with(b"/") {
                    (current, depth) = (self.open(b"").map_err(at("open", b"."))?, 0);
                }
                // A dangling symlink: its target is made, inside the root.
                rest = [target, b"/", rest.get(begin..).unwrap_or_default()].concat();
                begin = 0;
            }
        }
        Ok(current)
    }

    /// Makes one missing directory.
    fn make(&mut self, above: &OwnedFd, name: &[u8], path: &[u8]) -> Result<OwnedFd, Error> {
        self.take(MAKE_STEPS, path)?;
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
        // Owner and mode are set explicitly: a setgid parent gives the directory its group, and mkdir's mode is
        // subject to the umask.
        if self.as_root {
            fchown(&fd, Some(Uid::ROOT), Some(Gid::ROOT)).map_err(at("set the owner of", path))?;
        }
        fchmod(&fd, Mode::from_raw_mode(0o755)).map_err(at("set the mode of", path))?;
        if opaque {
            set_opaque(fd.as_fd(), path)?;
        }
        Ok(fd)
    }

    /// Opens the directory `name` itself, never through a symlink.
    pub(crate) fn child(above: impl AsFd, name: &[u8], path: &[u8]) -> Result<OwnedFd, Error> {
        openat(above, name, DIR | OFlags::NOFOLLOW, Mode::empty()).map_err(at("open", path))
    }

    /// Removes the entry `name`, so that an entry of another type can take its place.
    pub(crate) fn remove(&mut self, above: &Parent, name: &[u8], path: &[u8]) -> Result<(), Error> {
        self.last = None;
        remove(above.as_fd(), name, path, self.max_depth, self.watch)
    }
}
