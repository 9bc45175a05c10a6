//! Writes a merged tree as a directory.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags, chmodat, chownat,
    fchmod, fchown, fsetxattr, futimens, linkat, mkdirat, mknodat, openat, symlinkat, utimensat,
};
use rustix::io::Errno;

use super::tarball::split;
use super::target::LeftOut;
use super::temporary::DIR;
use super::walk::{Content, Item, Meter, Sink};
use crate::error::Error;

/// Set-uid and set-gid.
const SET_ID: u32 = 0o6000;

/// The target directory, and the directories entered in it. A directory gets its attributes when its content is
/// complete: until then only its owner has access, and its time would change again.
pub(super) struct Directory<'a> {
    root: OwnedFd,
    /// The path of the target, for errors.
    shown: &'a str,
    keep_privileges: bool,
    left_out: LeftOut,
    open: Vec<Entered>,
}

struct Entered {
    path: Vec<u8>,
    fd: OwnedFd,
    stat: Stat,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl<'a> Directory<'a> {
    /// `root` is the empty target directory; see [`Target::keep_privileges`](super::Target::keep_privileges).
    pub(super) fn new(root: OwnedFd, shown: &'a str, keep_privileges: bool) -> Self {
        Self { root, shown, keep_privileges, left_out: LeftOut::default(), open: Vec::new() }
    }

    pub(super) fn left_out(&self) -> LeftOut {
        self.left_out
    }

    fn at(&self, op: &'static str, path: &[u8]) -> impl FnOnce(Errno) -> Error + use<> {
        let path = self.name(path);
        move |source| Error::Io { op, path, source: source.into() }
    }

    fn name(&self, path: &[u8]) -> String {
        format!("{}/{}", self.shown, path.escape_ascii())
    }

    /// Sets owner, mode, xattrs and time, in this order: chown(2) clears setuid bits and file capabilities.
    fn attributes(
        &mut self,
        fd: BorrowedFd<'_>,
        path: &[u8],
        stat: &Stat,
        xattrs: &[(Vec<u8>, Vec<u8>)],
    ) -> Result<(), Error> {
        let (uid, gid) = owner(stat);
        fchown(fd, uid, gid).map_err(self.at("set the owner of", path))?;
        let mut mode = stat.st_mode & 0o7777;
        if !self.keep_privileges && mode & SET_ID != 0 {
            mode &= !SET_ID;
            self.left_out.set_id += 1;
        }
        fchmod(fd, Mode::from_raw_mode(mode)).map_err(self.at("set the mode of", path))?;
        for (name, value) in xattrs {
            if !self.keep_privileges && name == b"security.capability" {
                self.left_out.capabilities += 1;
                continue;
            }
            fsetxattr(fd, &**name, value, XattrFlags::empty()).map_err(self.at("set an xattr of", path))?;
        }
        futimens(fd, &stamps(stat)).map_err(self.at("set the time of", path))
    }
}

impl Sink for Directory<'_> {
    fn entry(&mut self, item: &Item<'_>, meter: &mut Meter<'_>) -> Result<(), Error> {
        let (path, stat) = (item.path, item.stat);
        let kind = FileType::from_raw_mode(stat.st_mode);
        // Includes further hard links of a device.
        if !self.keep_privileges && matches!(kind, FileType::CharacterDevice | FileType::BlockDevice) {
            self.left_out.devices += 1;
            return Ok(());
        }
        let (_, name) = split(path);
        let above = self.open.last().map_or(&self.root, |entered| &entered.fd).as_fd();
        let at = |op| self.at(op, path);
        let failed = |source| Error::Io { op: "write", path: self.name(path), source };
        match &item.content {
            Content::Directory => {
                let fd = if path.is_empty() {
                    openat(above, ".", DIR, Mode::empty())
                } else {
                    mkdirat(above, name, Mode::RWXU).map_err(at("make the directory"))?;
                    openat(above, name, DIR, Mode::empty())
                }
                .map_err(at("open"))?;
                self.open.push(Entered { path: path.to_vec(), fd, stat, xattrs: item.xattrs.clone() });
                return Ok(());
            }
            Content::File(from) => {
                let flags =
                    OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let fd = openat(above, name, flags, Mode::RUSR | Mode::WUSR).map_err(at("make"))?;
                let file = File::from(fd);
                // Zeros are not written and become holes.
                file.set_len(stat.st_size.cast_unsigned()).map_err(failed)?;
                let mut offset = 0;
                item.copy(from, meter, |piece| {
                    if piece.iter().any(|b| *b != 0) {
                        file.write_all_at(piece, offset).map_err(failed)?;
                    }
                    offset += piece.len() as u64;
                    Ok(())
                })?;
                return self.attributes(file.as_fd(), path, &stat, &item.xattrs);
            }
            // The path is safe: its parents are directories that were made here.
            Content::Link(first) => {
                return linkat(&self.root, *first, above, name, AtFlags::empty()).map_err(at("link"));
            }
            Content::Symlink(target) => symlinkat(&**target, above, name).map_err(at("make"))?,
            Content::Node => {
                mknodat(above, name, kind, Mode::RUSR, stat.st_rdev).map_err(at("make"))?;
            }
        }
        let (uid, gid) = owner(&stat);
        let nofollow = AtFlags::SYMLINK_NOFOLLOW;
        chownat(above, name, uid, gid, nofollow).map_err(at("set the owner of"))?;
        if matches!(item.content, Content::Node) {
            let mode =
                Mode::from_raw_mode(if self.keep_privileges { item.mode() } else { item.mode() & !SET_ID });
            chmodat(above, name, mode, AtFlags::empty()).map_err(at("set the mode of"))?;
        }
        utimensat(above, name, &stamps(&stat), nofollow).map_err(at("set the time of"))
    }

    fn leave(&mut self) -> Result<(), Error> {
        let Some(done) = self.open.pop() else { return Ok(()) };
        self.attributes(done.fd.as_fd(), &done.path, &done.stat, &done.xattrs)
    }

    // A merged tree has neither whiteouts nor opaque directories.
    fn whiteout(&mut self, _: &[u8]) -> Result<(), Error> {
        Ok(())
    }

    fn opaque(&mut self, _: &[u8]) -> Result<(), Error> {
        Ok(())
    }
}

fn owner(stat: &Stat) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))
}

/// Access time = modification time, as after unpacking.
fn stamps(stat: &Stat) -> Timestamps {
    // Nanoseconds are below 10^9.
    let spec = Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec.cast_signed() };
    Timestamps { last_access: spec, last_modification: spec }
}
