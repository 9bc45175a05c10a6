//! The base directory of a layer: a place in the layers below that all of its names are relative to.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, Gid, Mode, OFlags, Uid, chownat, fchmod, fgetxattr, fstat, mkdirat, openat, statat,
};
use rustix::io::Errno;

use super::whiteout::is_whiteout;
use crate::error::{Error, at, show};
use crate::format::stream::Time;

/// The annotation of a layer in a manifest that gives its base directory (Cloud Foundry, "OCI mode").
pub(crate) const ANNOTATION: &str = "org.cloudfoundry.experimental.image.base-directory";
/// Its maximum number of bytes and of components: those of [`crate::Limits::default`].
const MAX_NAME: usize = 4096;
const MAX_DEPTH: usize = 256;
const DIR: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Base {
    /// One or more components joined by `/`, none of them empty, `.`, `..` or a whiteout.
    path: String,
    /// Whether directories that the layers below lack are made (owner root, mode 0755, time 0) instead of refused.
    pub(crate) make_missing: bool,
    /// The query parameter that gave it, for errors.
    pub(crate) key: Option<&'static str>,
}

impl fmt::Display for Base {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path)
    }
}

impl Base {
    /// Parses the annotation's value; `None` if it means the root.
    pub(crate) fn parse(text: &str) -> Result<Option<Self>, Error> {
        let unsafe_path = |why| Err(Error::UnsafePath { path: show(text.as_bytes()), why });
        if text.len() > MAX_NAME {
            return Err(Error::Limit {
                what: "the length of a base directory".into(),
                limit: MAX_NAME as u64,
            });
        }
        if text.contains('\0') {
            return unsafe_path("it contains a NUL byte");
        }
        let names: Vec<_> = text.split('/').filter(|name| !matches!(*name, "" | ".")).collect();
        if names.iter().any(|name| *name == ".." || name.starts_with(".wh.")) {
            return unsafe_path("a base directory cannot contain a .. or a whiteout");
        }
        if names.len() > MAX_DEPTH {
            return Err(Error::Limit {
                what: "the depth of a base directory".into(),
                limit: MAX_DEPTH as u64,
            });
        }
        Ok((!names.is_empty()).then(|| Self { path: names.join("/"), make_missing: false, key: None }))
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.path.split('/').map(str::as_bytes)
    }

    /// Makes each component of it that `into` lacks, with the mode and owner that it has in the layers below (topmost
    /// first). Returns the directories made, with their times there.
    ///
    /// The layers below count as overlayfs merges them: a whiteout, a file, a symlink or an opaque directory hides
    /// the directories below it, and ends the search.
    pub(crate) fn make(
        &self,
        into: BorrowedFd<'_>,
        below: &[BorrowedFd<'_>],
    ) -> Result<Vec<(Vec<u8>, Time)>, Error> {
        let named = |source| match self.key {
            Some(key) => Error::App { key, source: Box::new(source) },
            None => source,
        };
        self.make_in(into, below).map_err(named)
    }

    fn make_in(&self, into: BorrowedFd<'_>, below: &[BorrowedFd<'_>]) -> Result<Vec<(Vec<u8>, Time)>, Error> {
        let open = |above: BorrowedFd<'_>, name: &[u8]| openat(above, name, DIR, Mode::empty());
        let root = |fd: &BorrowedFd<'_>| openat(fd, ".", DIR, Mode::empty()).map_err(at("open", b"."));
        let mut merged: Vec<OwnedFd> = below.iter().map(root).collect::<Result<_, _>>()?;
        let mut here = root(&into)?;
        let mut path: Vec<u8> = Vec::new();
        let mut made = Vec::new();
        for name in self.names() {
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name);
            let mut found = Vec::new();
            let mut obstacle = false;
            for dir in &merged {
                match open(dir.as_fd(), name) {
                    Ok(dir) => {
                        let opaque = is_opaque(&dir).map_err(at("look at (in a layer below)", &path))?;
                        found.push(dir);
                        if opaque {
                            break;
                        }
                    }
                    Err(Errno::NOENT) => {}
                    // The name is not a directory in this layer.
                    Err(Errno::NOTDIR | Errno::LOOP) => {
                        let stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
                            .map_err(at("look at (in a layer below)", &path))?;
                        obstacle = !is_whiteout(&stat);
                        break;
                    }
                    Err(e) => return Err(at("open (in a layer below)", &path)(e)),
                }
            }
            merged = found;
            match mkdirat(&here, name, Mode::RWXU) {
                Ok(()) => {
                    let refuse = |why| Err(Error::BaseDirectory { path: show(&path), why });
                    let (uid, gid, mode, time) = match merged.first() {
                        Some(top) => {
                            let stat = fstat(top).map_err(at("look at (in a layer below)", &path))?;
                            let time = Time { sec: stat.st_mtime, nsec: stat.st_mtime_nsec.cast_signed() };
                            (stat.st_uid, stat.st_gid, stat.st_mode & 0o7777, time)
                        }
                        None if obstacle => return refuse("is no directory in the layers below"),
                        None if self.make_missing => (0, 0, 0o755, Time { sec: 0, nsec: 0 }),
                        None => return refuse("is in no layer below"),
                    };
                    let owner = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
                    chownat(&here, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)
                        .map_err(at("set the owner of", &path))?;
                    here = open(here.as_fd(), name).map_err(at("open", &path))?;
                    fchmod(&here, Mode::from_raw_mode(mode)).map_err(at("set the mode of", &path))?;
                    made.push((path.clone(), time));
                }
                Err(Errno::EXIST) => here = open(here.as_fd(), name).map_err(at("open", &path))?,
                Err(e) => return Err(at("make the directory", &path)(e)),
            }
        }
        Ok(made)
    }
}

fn is_opaque(dir: &OwnedFd) -> Result<bool, Errno> {
    let mut value = [0; 1];
    match fgetxattr(dir, "trusted.overlay.opaque", &mut value) {
        Ok(n) => Ok(value[..n] == *b"y"),
        Err(Errno::NODATA | Errno::NOTSUP) => Ok(false),
        // A value longer than "y" does not mean opaque.
        Err(Errno::RANGE) => Ok(false),
        Err(e) => Err(e),
    }
}
