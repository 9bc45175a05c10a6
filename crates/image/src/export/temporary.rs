//! A file or directory being written under a temporary name beside its target.

use std::fs::File;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, RenameFlags, fstat, openat, renameat, renameat_with, statat,
    unlinkat,
};
use rustix::io::Errno;

use super::target::Target;
use crate::bounds::watch::Watch;
use crate::disk::remove::remove;
use crate::error::Error;
use crate::files::{self, NotMade};

pub(super) const DIR: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// The depth down to which a partial tree is removed; a layer's tree is not as deep.
const MAX_REMOVED: usize = 300;
/// How many temporary names are tried if they are taken.
const MAX_NAMES: u32 = 1 << 20;

/// A file or directory being written beside the target. It is removed unless it is committed.
///
/// The parent directory may be another user's, who can rename entries in it, so the file or directory is identified
/// by its descriptor and not by its name.
pub(super) struct Temporary<'a> {
    above: OwnedFd,
    name: String,
    /// The file or directory made, until it is committed.
    made: Option<OwnedFd>,
    target: &'a std::ffi::OsStr,
    to: &'a Target,
    shown: &'a str,
}

impl<'a> Temporary<'a> {
    pub(super) fn new(to: &'a Target, shown: &'a str) -> Result<Self, Error> {
        let why = "an export needs the name of a file or directory";
        let target = to.path.file_name().ok_or_else(|| Error::Source { uri: shown.into(), why })?;
        let parent = match to.path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let above = files::directory(parent)?.ok_or_else(|| Error::Io {
            op: "open",
            path: parent.display().to_string(),
            source: Errno::NOENT.into(),
        })?;
        let temporary = Self { above, name: String::new(), made: None, target, to, shown };
        temporary.check_target()?;
        Ok(temporary)
    }

    pub(super) fn error(&self, op: &'static str) -> impl FnOnce(Errno) -> Error + use<> {
        let path = self.shown.to_owned();
        move |source| Error::Io { op, path, source: source.into() }
    }

    /// Checks early, before anything is written, that the target may be written; [`Temporary::commit`] enforces it.
    fn check_target(&self) -> Result<(), Error> {
        let stat = match statat(&self.above, self.target, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(()),
            other => other.map_err(self.error("stat"))?,
        };
        let is_directory = FileType::from_raw_mode(stat.st_mode).is_dir();
        let empty = || {
            let dir = openat(&self.above, self.target, DIR, Mode::empty());
            dir.is_ok_and(|dir| names(&dir).is_ok_and(|names| names.is_empty()))
        };
        match (self.to.format.is_directory(), is_directory) {
            (true, true) if empty() => Ok(()),
            (false, false) if self.to.overwrite => Ok(()),
            _ => Err(Error::Exists { path: self.shown.into() }),
        }
    }

    /// Makes a file that only its owner can access, because images may contain secrets.
    pub(super) fn make_file(&mut self) -> Result<File, Error> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        self.make(|above, name| openat(above, name, flags, mode).map_err(NotMade::Kernel)).map(File::from)
    }

    pub(super) fn make_dir(&mut self) -> Result<OwnedFd, Error> {
        self.make(|above, name| files::fresh(above, name, Mode::RWXU))
    }

    /// Makes a file or directory under an unused name; names left by a killed process with the same PID are skipped.
    fn make(
        &mut self,
        make: impl Fn(BorrowedFd<'_>, &str) -> Result<OwnedFd, NotMade>,
    ) -> Result<OwnedFd, Error> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        loop {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let name = format!(".export-{}-{number}", std::process::id());
            match make(self.above.as_fd(), &name) {
                Err(NotMade::Kernel(Errno::EXIST)) if number < MAX_NAMES => {}
                Err(NotMade::Kernel(e)) => return Err(self.error("make")(e)),
                Err(NotMade::Replaced) => return Err(self.replaced()),
                Ok(made) => {
                    let kept = rustix::io::fcntl_dupfd_cloexec(&made, 3).map_err(self.error("open"))?;
                    (self.name, self.made) = (name, Some(kept));
                    return Ok(made);
                }
            }
        }
    }

    fn replaced(&self) -> Error {
        Error::UnsafePath { path: self.shown.into(), why: files::REPLACED }
    }

    /// Whether this name still refers to the file or directory made here.
    fn has_name(&self, name: impl rustix::path::Arg) -> bool {
        let Some(made) = &self.made else { return false };
        let named = statat(&self.above, name, AtFlags::SYMLINK_NOFOLLOW);
        fstat(made).is_ok_and(|made| {
            named.is_ok_and(|named| (named.st_dev, named.st_ino) == (made.st_dev, made.st_ino))
        })
    }

    pub(super) fn commit(mut self) -> Result<(), Error> {
        if !self.has_name(&*self.name) {
            return Err(self.replaced());
        }
        let plain = || renameat(&self.above, &self.name, &self.above, self.target);
        let result = if self.to.overwrite || self.to.format.is_directory() {
            plain() // over a directory only if that is empty
        } else {
            let flags = RenameFlags::NOREPLACE;
            match renameat_with(&self.above, &self.name, &self.above, self.target, flags) {
                // A file system without RENAME_NOREPLACE (NFS, some FUSE): the early check must suffice.
                Err(Errno::INVAL) => plain(),
                other => other,
            }
        };
        match result {
            // It may have been replaced since the check above.
            Ok(()) if self.has_name(self.target) => {
                self.made = None;
                Ok(())
            }
            Ok(()) => Err(self.replaced()),
            Err(Errno::EXIST | Errno::NOTEMPTY | Errno::ISDIR | Errno::NOTDIR) => {
                Err(Error::Exists { path: self.shown.into() })
            }
            Err(e) => Err(self.error("rename to")(e)),
        }
    }
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        let Some(made) = &self.made else { return };
        // Errors are ignored, since an earlier error is being reported; the temporary name identifies what stays. A
        // directory is emptied through its descriptor: its name may refer to another one by now, which is removed
        // only if it is empty.
        if fstat(made).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_dir()) {
            for name in names(made).unwrap_or_default() {
                let _ = remove(made.as_fd(), &name, b"", MAX_REMOVED, &Watch::default());
            }
            let _ = unlinkat(&self.above, &self.name, AtFlags::REMOVEDIR);
        } else if self.has_name(&*self.name) {
            let _ = unlinkat(&self.above, &self.name, AtFlags::empty());
        }
    }
}

/// The names in a directory, without `.` and `..`.
fn names(dir: &OwnedFd) -> Result<Vec<Vec<u8>>, Errno> {
    let names = Dir::read_from(dir)?.map(|entry| Ok(entry?.file_name().to_bytes().to_vec()));
    let is_own = |name: &Result<Vec<u8>, Errno>| !matches!(name.as_deref(), Ok(b"." | b".."));
    names.filter(is_own).collect()
}
