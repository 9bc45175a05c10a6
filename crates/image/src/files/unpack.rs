//! Unpacks files from a tar.

use super::place::{NotMade, REPLACED, fresh, special, umask, unsafe_path};
use crate::error::{Error, at, show};
use crate::format::stream::{Entry, Stream, Time};
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, fchmod, fstat, ftruncate,
    futimens, mknodat, openat, statat, symlinkat, unlinkat,
};
use rustix::io::{Errno, pwrite};
use std::collections::{BTreeMap, HashSet};
use std::io::{BufReader, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use tar::EntryType;
use wardian_sys::{directory, hard_link};

const BUFFER: usize = 256 << 10;
/// The maximum number of entries. Some 50 bytes of each are kept, because a hard link may follow.
const MAX_ENTRIES: u64 = 4 << 20;
const MAX_NAME: usize = 4096;
const MAX_DEPTH: usize = 1024;
/// The memory limit for directories that were made, in bytes.
const MAX_KEPT: usize = 256 << 20;
const DIR: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// The mode mask of directories from a container: others may not write to them.
const DIR_MODE: u32 = 0o755;
/// The granularity in which zeros become holes, in bytes: the block size of most file systems.
const BLOCK: usize = 4096;

/// How the names in a tar are mapped.
#[derive(Debug, Clone, Copy)]
pub enum Name<'a> {
    /// The tar is one file or directory with the first name, which gets the second one.
    One(&'a [u8], &'a [u8]),
    /// The tar has the content of a directory.
    Contents,
}

/// The result of unpacking.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Taken {
    /// Files, directories and links.
    pub entries: u64,
    /// Bytes of the files, holes included.
    pub bytes: u64,
    /// Devices and sockets that were not made.
    pub left_out: u64,
}

/// Unpacks a tar below the directory `into`. An existing file is replaced by a new one, an existing directory is
/// filled. Blocks of zeros become holes. Entries unpacked before an error stay.
///
/// Another user may be able to write to the directory: no symlink below it is followed, and nothing is made in a
/// directory that has replaced one made here. Hard links are made only to files made here. Files and directories get
/// the modes of the tar less the umask; directories are never writable by others.
///
/// # Errors
/// A name that is unexpected or leads out of the directory, a damaged tar, or an I/O error.
pub fn unpack(from: impl Read, into: BorrowedFd<'_>, name: Name<'_>) -> Result<Taken, Error> {
    let mut stream = Stream::new(BufReader::with_capacity(BUFFER, from), u64::MAX);
    let into = openat(into, ".", DIR, Mode::empty()).map_err(at("open", b"."))?;
    let (directories, taken) = (BTreeMap::new(), Taken::default());
    let umask = umask()?;
    let mut unpacker =
        Unpacker { into, name, umask, last: None, directories, kept: 0, files: HashSet::new(), taken };
    let mut seen = 0;
    while let Some(entry) = stream.next(true)? {
        seen += 1;
        if seen > MAX_ENTRIES {
            return Err(Error::Limit { what: "the number of entries".into(), limit: MAX_ENTRIES });
        }
        unpacker.entry(&entry, &mut stream)?;
    }
    // Reads the rest, so that the writer does not fail.
    stream.drain()?;
    unpacker.finish()
}

/// A directory that was made here.
struct Made {
    identity: Identity,
    /// The mode and time that it gets at the end; none if the tar has no entry for it.
    end: Option<(u32, Time)>,
}

struct Unpacker<'a> {
    into: OwnedFd,
    name: Name<'a>,
    umask: Mode,
    /// Caches the directory used last.
    last: Option<(Vec<u8>, OwnedFd)>,
    /// The directories made here, by path: a directory comes before its subdirectories.
    directories: BTreeMap<Vec<u8>, Made>,
    /// The memory that `directories` take, in bytes.
    kept: usize,
    /// The other files made here.
    files: HashSet<Identity>,
    taken: Taken,
}

impl Unpacker<'_> {
    /// Returns the path of an entry relative to `into`; it is empty for that directory itself.
    fn place(&self, path: &[u8]) -> Result<Vec<u8>, Error> {
        if path.len() > MAX_NAME {
            return Err(Error::Limit { what: "the length of a name".into(), limit: MAX_NAME as u64 });
        }
        if path.starts_with(b"/") {
            return Err(unsafe_path(path, "it is absolute"));
        }
        let mut names: Vec<&[u8]> =
            path.split(|b| *b == b'/').filter(|n| !n.is_empty() && *n != b".").collect();
        if names.contains(&&b".."[..]) {
            return Err(unsafe_path(path, "it contains '..'"));
        }
        if names.len() > MAX_DEPTH {
            return Err(Error::Limit { what: "the depth of a name".into(), limit: MAX_DEPTH as u64 });
        }
        if let Name::One(theirs, ours) = self.name {
            match names.first_mut() {
                Some(first) if *first == theirs => *first = ours,
                _ => return Err(unsafe_path(path, "it is not below what was asked for")),
            }
        }
        Ok(names.join(&b'/'))
    }

    /// Opens an existing directory without following symlinks.
    fn open(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        let path = if path.is_empty() { b"." } else { path };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        directory::open(&self.into, path, DIR, resolve)
    }

    /// Opens the directory `path`, and makes it if it is missing.
    fn parent(&mut self, path: &[u8]) -> Result<OwnedFd, Error> {
        let clone = |fd: &OwnedFd| rustix::io::fcntl_dupfd_cloexec(fd, 3).map_err(at("open", path));
        if let Some((last, fd)) = &self.last
            && last == path
        {
            return clone(fd);
        }
        let fd = match self.open(path) {
            Ok(fd) => self.recognise(fd, path)?,
            Err(Errno::NOENT) => self.make_all(path)?,
            Err(Errno::LOOP) => return Err(unsafe_path(path, "a symlink is on its way")),
            Err(error) => return Err(at("open", path)(error)),
        };
        self.last = Some((path.to_vec(), clone(&fd)?));
        Ok(fd)
    }

    /// Returns the directory, unless one made here was replaced by it.
    fn recognise(&self, fd: OwnedFd, path: &[u8]) -> Result<OwnedFd, Error> {
        match self.directories.get(path) {
            Some(made) if made.identity != identity(&fd, path)? => Err(unsafe_path(path, REPLACED)),
            _ => Ok(fd),
        }
    }

    fn make_all(&mut self, path: &[u8]) -> Result<OwnedFd, Error> {
        let mut current = self.open(b"").map_err(at("open", path))?;
        let mut end = 0;
        for name in path.split(|b| *b == b'/') {
            end += name.len();
            current = match fresh(current.as_fd(), name, self.less_umask(DIR_MODE)) {
                // The directory made here is gone; it may have had a stricter mode than the new one.
                Ok(_) if self.directories.contains_key(&path[..end]) => {
                    return Err(unsafe_path(&path[..end], REPLACED));
                }
                Ok(made) => {
                    self.remember(&path[..end], &made, None)?;
                    made
                }
                Err(NotMade::Kernel(Errno::EXIST)) => {
                    let opened = openat(&current, name, DIR, Mode::empty()).map_err(at("open", path))?;
                    self.recognise(opened, &path[..end])?
                }
                Err(failure) => return Err(failure.at(path)),
            };
            end += 1;
        }
        Ok(current)
    }

    fn entry<R: std::io::BufRead>(&mut self, entry: &Entry, stream: &mut Stream<R>) -> Result<(), Error> {
        let path = self.place(&entry.path)?;
        if path.is_empty() {
            // The target directory itself is left as it is.
            return match entry.kind {
                EntryType::Directory => Ok(()),
                _ => Err(unsafe_path(&entry.path, "it has no name")),
            };
        }
        let split = path.iter().rposition(|b| *b == b'/');
        let (above, name) = split.map_or((&b""[..], &path[..]), |at| (&path[..at], &path[at + 1..]));
        self.taken.entries += 1;
        match entry.kind {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let above = self.parent(above)?;
                self.file(entry, stream, &above, name, &path)?;
            }
            EntryType::Directory => {
                let above = self.parent(above)?;
                self.directory(entry, &above, name, &path)?;
            }
            EntryType::Symlink => {
                let above = self.parent(above)?;
                clear(&above, name, &path, None)?;
                symlinkat(&*entry.link, &above, name).map_err(at("make the link", &path))?;
                self.remember_name(&above, name, &path)?;
            }
            EntryType::Link => {
                let old = self.place(&entry.link)?;
                let split = old.iter().rposition(|b| *b == b'/');
                let (old_above, old_name) =
                    split.map_or((&b""[..], &old[..]), |at| (&old[..at], &old[at + 1..]));
                if old == path || old_name.is_empty() {
                    return Err(Error::Entry { path: show(&path), why: "a link to itself".into() });
                }
                let from = self.open(old_above).map_err(at("find the target of the link", &path))?;
                let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let source = openat(&from, old_name, flags, Mode::empty());
                let source = source.map_err(at("find the target of the link", &path))?;
                self.is_ours(&source, &path)?;
                let above = self.parent(above)?;
                is_as_closed(&source, &above, &path)?;
                clear(&above, name, &path, None)?;
                let old = (from.as_fd(), old_name);
                let failed = |source| Error::Io { op: "link", path: show(&path), source };
                if let Err(error) = hard_link::link(&source, old, (above.as_fd(), name)) {
                    let why = hard_link::impossible(&error).ok_or(error).map_err(failed)?;
                    let create = |mode| Ok(create(&above, name, self.less_umask(mode))?.into());
                    let copy = hard_link::copy(&source, old, why, create).map_err(failed)?;
                    self.remember_file(&copy, &path)?;
                }
            }
            EntryType::Fifo => {
                let above = self.parent(above)?;
                clear(&above, name, &path, Some(FileType::Fifo))?;
                let mode = self.less_umask(entry.mode);
                mknodat(&above, name, FileType::Fifo, mode, 0).map_err(at("make", &path))?;
                self.remember_name(&above, name, &path)?;
            }
            EntryType::Char | EntryType::Block => self.leave_out(entry, stream, &path)?,
            other if other.as_byte() == b's' => self.leave_out(entry, stream, &path)?,
            other => {
                let why = format!("unknown type {:?}", char::from(other.as_byte()));
                return Err(Error::Entry { path: show(&path), why });
            }
        }
        Ok(())
    }

    fn less_umask(&self, mode: u32) -> Mode {
        Mode::from_raw_mode(mode & 0o777) - self.umask
    }

    fn leave_out<R: std::io::BufRead>(
        &mut self,
        entry: &Entry,
        stream: &mut Stream<R>,
        path: &[u8],
    ) -> Result<(), Error> {
        self.taken.entries -= 1;
        self.taken.left_out += 1;
        Ok(stream.skip(entry.size, path)?)
    }

    fn file<R: std::io::BufRead>(
        &mut self,
        entry: &Entry,
        stream: &mut Stream<R>,
        above: &OwnedFd,
        name: &[u8],
        path: &[u8],
    ) -> Result<(), Error> {
        clear(above, name, path, None)?;
        let file = create(above, name, self.less_umask(entry.mode)).map_err(at("make", path))?;
        self.remember_file(&file, path)?;
        match &entry.sparse {
            None => {
                fill(&file, stream, 0, entry.size, path)?;
                // Zeros at the end were not written.
                ftruncate(&file, entry.size).map_err(at("set the size of", path))?;
            }
            Some(sparse) => {
                ftruncate(&file, sparse.real).map_err(at("set the size of", path))?;
                for (offset, length) in &sparse.segments {
                    fill(&file, stream, *offset, *length, path)?;
                }
            }
        }
        stream.pad(entry.size, path)?;
        self.taken.bytes += entry.real_size();
        futimens(&file, &times(entry.mtime)).map_err(at("set the time of", path))
    }

    fn directory(&mut self, entry: &Entry, above: &OwnedFd, name: &[u8], path: &[u8]) -> Result<(), Error> {
        let mode = self.less_umask(entry.mode & DIR_MODE) | Mode::RWXU;
        match fresh(above.as_fd(), name, mode) {
            Ok(made) => {
                let stat = fstat(&made).map_err(at("look at", path))?;
                self.remember(path, &made, Some((stat.st_mode & entry.mode & DIR_MODE, entry.mtime)))
            }
            // An existing directory keeps its mode, and is filled.
            Err(NotMade::Kernel(Errno::EXIST)) => {
                let stat = statat(above, name, AtFlags::SYMLINK_NOFOLLOW).map_err(at("look at", path))?;
                match FileType::from_raw_mode(stat.st_mode) {
                    FileType::Directory => Ok(()),
                    _ => Err(at("make the directory", path)(Errno::NOTDIR)),
                }
            }
            Err(failure) => Err(failure.at(path)),
        }
    }

    fn remember(&mut self, path: &[u8], made: &OwnedFd, end: Option<(u32, Time)>) -> Result<(), Error> {
        self.kept += path.len() + size_of::<(Vec<u8>, Made)>();
        if self.kept > MAX_KEPT {
            let what = "the memory for the names of directories".into();
            return Err(Error::Limit { what, limit: MAX_KEPT as u64 });
        }
        let identity = identity(made, path)?;
        self.directories.insert(path.to_vec(), Made { identity, end });
        Ok(())
    }

    /// Remembers a file for hard links. A file that others may write to by its ACL gets no second name: ACLs are not
    /// copied, so it was inherited from the directory.
    fn remember_file(&mut self, file: impl AsFd, path: &[u8]) -> Result<(), Error> {
        let stat = fstat(&file).map_err(at("look at", path))?;
        if group_writes(&stat) && has_list(file.as_fd()) {
            return Ok(());
        }
        self.files.insert(identity(file, path)?);
        Ok(())
    }

    /// Remembers the file made under this name. If another user has replaced it since, the owner differs.
    fn remember_name(&mut self, above: &OwnedFd, name: &[u8], path: &[u8]) -> Result<(), Error> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        if let Ok(made) = openat(above, name, flags, Mode::empty())
            && fstat(&made).is_ok_and(|stat| stat.st_uid == rustix::process::geteuid().as_raw())
        {
            self.remember_file(&made, path)?;
        }
        Ok(())
    }

    /// Fails if the file was not made here: a user who may write to the directory could have put one there, which
    /// would get a name in a directory where that user may not write.
    fn is_ours(&self, file: &OwnedFd, path: &[u8]) -> Result<(), Error> {
        if self.files.contains(&identity(file, path)?) {
            return Ok(());
        }
        Err(unsafe_path(
            path,
            "the file that it is a hard link to was not made by this copy, or others may write to it",
        ))
    }

    fn finish(self) -> Result<Taken, Error> {
        for (path, made) in self.directories.iter().rev() {
            let Some((mode, mtime)) = made.end else { continue };
            let dir = self.recognise(self.open(path).map_err(at("open", path))?, path)?;
            fchmod(&dir, Mode::from_raw_mode(mode)).map_err(at("set the mode of", path))?;
            futimens(&dir, &times(mtime)).map_err(at("set the time of", path))?;
        }
        Ok(self.taken)
    }
}

/// Whether the group may write to a file. Symlinks, whose mode has all bits set, do not count.
fn group_writes(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) != FileType::Symlink && stat.st_mode & 0o020 != 0
}

/// Whether a file has an ACL, or this cannot be told. Read by path, because getxattr fails on an O_PATH descriptor.
fn has_list(file: BorrowedFd<'_>) -> bool {
    let path = format!("/proc/thread-self/fd/{}", file.as_raw_fd());
    let list = rustix::fs::getxattr(path, "system.posix_acl_access", &mut [0_u8; 0][..]);
    !matches!(list, Err(Errno::NODATA | Errno::OPNOTSUPP))
}

/// Fails if a hard link would widen access: a file made in a setgid directory belongs to that directory's group
/// (inode(7), `S_ISGID`), which may have no access to the directory of the link.
fn is_as_closed(file: &OwnedFd, above: &OwnedFd, path: &[u8]) -> Result<(), Error> {
    let look = |fd| fstat(fd).map_err(at("look at", path));
    let (file, above) = (look(file)?, look(above)?);
    let own = file.st_gid == rustix::process::getegid().as_raw();
    let same = Mode::from_raw_mode(above.st_mode).contains(Mode::SGID) && file.st_gid == above.st_gid;
    if group_writes(&file) && !own && !same {
        let why = "the group of the file that it is a hard link to may write to it, and is not the one of this directory: use \
                   the umask 022";
        return Err(unsafe_path(path, why));
    }
    Ok(())
}

/// Creates a new file for writing.
fn create(above: impl AsFd, name: &[u8], mode: Mode) -> Result<OwnedFd, Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(above, name, flags, mode)
}

/// Removes an existing entry, to be replaced by one that is no directory. A special file is not replaced, unless by
/// one of the same kind (`same`): /dev/null must stay.
fn clear(above: &OwnedFd, name: &[u8], path: &[u8], same: Option<FileType>) -> Result<(), Error> {
    let kind = match statat(above, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => FileType::from_raw_mode(stat.st_mode),
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(at("look at", path)(error)),
    };
    if let Some(what) = special(kind)
        && Some(kind) != same
    {
        return Err(Error::Special { path: show(path), what });
    }
    match unlinkat(above, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(at("replace", path)(error)),
    }
}

/// Identifies a file or directory: device, inode and owner. The owner counts, because a user who removes an empty
/// directory may get its inode number for a new one.
type Identity = (u64, u64, u32);

fn identity(file: impl AsFd, path: &[u8]) -> Result<Identity, Error> {
    fstat(file).map(|stat| (stat.st_dev, stat.st_ino, stat.st_uid)).map_err(at("look at", path))
}

/// Writes to a new file; zeros are skipped and become holes.
fn fill<R: std::io::BufRead>(
    file: &OwnedFd,
    stream: &mut Stream<R>,
    mut offset: u64,
    size: u64,
    path: &[u8],
) -> Result<(), Error> {
    stream.copy(size, path, |mut piece| {
        while !piece.is_empty() {
            let (zeros, data) = zeros_and_data(piece, offset);
            offset += zeros as u64;
            let mut writing = &piece[zeros..zeros + data];
            while !writing.is_empty() {
                let n = rustix::io::retry_on_intr(|| pwrite(file.as_fd(), writing, offset))
                    .map_err(at("write", path))?;
                offset += n as u64;
                writing = &writing[n..];
            }
            piece = &piece[zeros + data..];
        }
        Ok(())
    })
}

/// Returns how many bytes of zeros a piece begins with, and how many bytes of data follow, in units of the file's
/// blocks; the piece begins at `offset` of the file.
fn zeros_and_data(piece: &[u8], offset: u64) -> (usize, usize) {
    const ZEROS: [u8; BLOCK] = [0; BLOCK];
    // The cast is safe: the rest of a block.
    let mut size = BLOCK - (offset % BLOCK as u64) as usize;
    let (mut zeros, mut end) = (0, 0);
    while end < piece.len() {
        let block = &piece[end..piece.len().min(end + size)];
        let empty = *block == ZEROS[..block.len()];
        if empty && zeros < end {
            break;
        }
        end += block.len();
        if empty {
            zeros = end;
        }
        size = BLOCK;
    }
    (zeros, end - zeros)
}

fn times(time: Time) -> Timestamps {
    let time = Timespec { tv_sec: time.sec, tv_nsec: time.nsec };
    Timestamps { last_access: time, last_modification: time }
}
