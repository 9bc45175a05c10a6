//! From files to a tar.

use super::place::{self, REPLACED, special, unsafe_path};
use crate::error::{Error, show};
use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, SeekFrom, Stat, fstat, openat, readlinkat, seek,
    statat,
};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use wardian_archive::Linked;
use wardian_sys::directory;

const DIR: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// NONBLOCK: what was a file may have become a FIFO without a writer, or have a lease on it.
const FILE: OFlags = OFlags::RDONLY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOCTTY)
    .union(OFlags::CLOEXEC);
/// One file system: what is mounted below belongs to somebody else, /proc to the kernel for instance.
const BELOW: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);
/// A path that the kernel takes (PATH_MAX, with its zero byte).
const MAX_PATH: usize = 4095;
/// Bytes that the names of directories take that are still to be walked; those of files are not kept.
const MAX_PENDING: usize = 64 << 20;
/// What was left out is named up to this number, and counted beyond it.
const MAX_NAMED: usize = 100;
/// Pieces of data of one file that are told apart; what comes after them is one more, holes included.
const MAX_SEGMENTS: usize = 16 << 10;
/// Holes are told in units of this size, in bytes: readers want data of all pieces but the last in whole blocks of 512.
const UNIT: u64 = 4096;

/// What went into a tar.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Packed {
    /// Files, directories and links.
    pub entries: u64,
    /// Bytes of the files, holes included.
    pub bytes: u64,
    /// The first hundred of those that were left out.
    pub left_out: Vec<(PathBuf, LeftOut)>,
    /// How many more there are.
    pub left_out_more: u64,
    /// The first hundred of those that could not be read, and why: they are not in the tar, are directories without what is in
    /// them, or files that end with zeros.
    pub unread: Vec<(PathBuf, String)>,
    /// How many more there are.
    pub unread_more: u64,
}

/// Why something did not go into a tar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LeftOut {
    /// A socket or a device, which no container gets this way.
    Special,
    /// Something is mounted there. Of a directory the entry is in the tar, and nothing of what is in it.
    Mount,
}

/// What is to be packed: opened, so that nobody can put something else in its place.
#[derive(Debug)]
pub struct Source {
    kind: Kind,
    path: PathBuf,
}

#[derive(Debug)]
enum Kind {
    Tree(OwnedFd),
    Entry(OwnedFd, OsString),
}

impl Source {
    /// Finds `path`. A symlink at its end is packed as such, unless a slash follows it or the `contents` of a directory are
    /// meant; see [`place::directory`] for those on its way.
    ///
    /// # Errors
    /// There is nothing of this name, or another user's link leads to it.
    pub fn open(path: &Path, contents: bool) -> Result<Self, Error> {
        let missing = |errno: Errno| failed("find", path.as_os_str().as_bytes())(errno.into());
        // What it is that is no directory is only for the message.
        let none =
            |path: &Path| if path.components().as_path().is_file() { Errno::NOTDIR } else { Errno::NOENT };
        let directory = |path: &Path| place::directory(path)?.ok_or_else(|| missing(none(path)));
        let name = path.file_name().filter(|_| !contents && !path.as_os_str().as_bytes().ends_with(b"/"));
        let kind = if let Some(name) = name {
            let above = path.parent().filter(|above| !above.as_os_str().is_empty());
            let above = directory(above.unwrap_or(Path::new(".")))?;
            statat(&above, name, AtFlags::SYMLINK_NOFOLLOW).map_err(missing)?;
            Kind::Entry(above, name.to_owned())
        } else {
            Kind::Tree(directory(path)?)
        };
        Ok(Self { kind, path: path.to_owned() })
    }

    /// What it is for people, if it is none of file, directory and link: see [`special`].
    #[must_use]
    pub fn special(&self) -> Option<&'static str> {
        let Kind::Entry(above, name) = &self.kind else { return None };
        let stat = statat(above, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        special(FileType::from_raw_mode(stat.st_mode))
    }

    /// Whether it is a directory; what a symlink leads to does not count.
    #[must_use]
    pub fn is_directory(&self) -> bool {
        let Kind::Entry(above, name) = &self.kind else { return true };
        statat(above, name, AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
    }
}

fn failed(op: &'static str, path: &[u8]) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Io { op, path: show(path), source }
}

/// Writes the source and, of a directory, all that is below it on the same file system, as a tar in which it is called
/// `name`; with an empty name the tar holds what is in the directory. Symlinks are packed as such. Files with holes are
/// entries of GNU tar's first sparse format, and a file's second name is a link to its first one.
///
/// Directories are opened by descriptors and never through a symlink, whoever renames what meanwhile. Two of them are open
/// at once, however deep the tree is.
///
/// What cannot be read below the source, or has gone, ends nothing: [`Packed::unread`] names it.
///
/// # Errors
/// The source itself cannot be read, something became something else meanwhile, or a path is too long for the kernel. The tar
/// then has no end.
pub fn pack(source: &Source, name: &Path, to: impl Write) -> Result<Packed, Error> {
    // Dropping a builder writes the end of the archive: half a one must not look whole.
    let builder = ManuallyDrop::new(tar::Builder::new(to));
    let mut packer =
        Packer { builder, name, shown: &source.path, packed: Packed::default(), linked: Linked::default() };
    let shown = source.path.as_os_str().as_bytes();
    let root = match &source.kind {
        Kind::Tree(root) => Some(openat(root, ".", DIR, Mode::empty())),
        Kind::Entry(above, last) => {
            let stat = statat(above, last, AtFlags::SYMLINK_NOFOLLOW);
            let stat = stat.map_err(|errno| failed("find", shown)(errno.into()))?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                Some(openat(above, last, DIR, Mode::empty()))
            } else {
                // It may be a mount itself: it was asked for.
                let open = || openat(above, last, FILE, Mode::empty());
                packer.entry(above.as_fd(), last, &stat, b"", open)?;
                None
            }
        }
    };
    if let Some(root) = root {
        let root = root.map_err(|errno| failed("open", shown)(errno.into()))?;
        let stat = fstat(&root).map_err(|errno| failed("find", shown)(errno.into()))?;
        packer.tree(&root, &stat)?;
    }
    let written = ManuallyDrop::into_inner(packer.builder).into_inner().and_then(|mut to| to.flush());
    written.map_err(failed("pack", shown))?;
    Ok(packer.packed)
}

struct Packer<'a, W: Write> {
    builder: ManuallyDrop<tar::Builder<W>>,
    /// What the source is called in the tar.
    name: &'a Path,
    /// What it is called here.
    shown: &'a Path,
    packed: Packed,
    linked: Linked,
}

/// A directory some of whose directories are still to be walked.
struct Frame {
    /// Length of its path.
    length: usize,
    names: Vec<Box<[u8]>>,
}

impl<W: Write> Packer<'_, W> {
    /// The root of a tree, and what is below it. `path` is relative to the root throughout.
    fn tree(&mut self, root: &OwnedFd, stat: &Stat) -> Result<(), Error> {
        self.directory(stat, b"")?;
        let (mut path, mut frames, mut pending) = (Vec::new(), Vec::new(), 0);
        let names = self.list(root, &path, &mut pending)?;
        frames.push(Frame { length: 0, names });
        while let Some(frame) = frames.last_mut() {
            path.truncate(frame.length);
            let Some(name) = frame.names.pop() else {
                frames.pop();
                continue;
            };
            pending -= kept(&name);
            push(&mut path, &name);
            let dir = match below(root.as_fd(), &path, DIR) {
                Err(Errno::XDEV) => {
                    self.leave_out(&path, LeftOut::Mount);
                    continue;
                }
                Err(Errno::LOOP | Errno::NOTDIR) => return Err(self.replaced(&path)),
                Err(errno) => {
                    self.unread("open", &path, errno)?;
                    continue;
                }
                Ok(dir) => dir,
            };
            let names = self.list(&dir, &path, &mut pending)?;
            frames.push(Frame { length: path.len(), names });
        }
        Ok(())
    }

    /// Packs what is in a directory, and gives the names of the directories in it.
    fn list(&mut self, dir: &OwnedFd, path: &[u8], pending: &mut usize) -> Result<Vec<Box<[u8]>>, Error> {
        let mut names = Vec::new();
        let mut child = path.to_vec();
        // An error is also the last thing that such a directory gives.
        let (entries, error) = match Dir::read_from(dir) {
            Ok(entries) => (Some(entries), None),
            Err(errno) => (None, Some(errno)),
        };
        for entry in entries.into_iter().flatten().chain(error.map(Err)) {
            let entry = match entry {
                Ok(entry) => entry,
                Err(errno) => {
                    self.unread("list", path, errno)?;
                    break;
                }
            };
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            child.truncate(path.len());
            push(&mut child, name);
            if child.len() > MAX_PATH {
                let what = format!("the length of the path {}", show(&child));
                return Err(Error::Limit { what, limit: MAX_PATH as u64 });
            }
            let stat = match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(errno) => {
                    self.unread("find", &child, errno)?;
                    continue;
                }
            };
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                self.directory(&stat, &child)?;
                *pending += kept(name);
                if *pending > MAX_PENDING {
                    let what = "the memory for the names of directories".into();
                    return Err(Error::Limit { what, limit: MAX_PENDING as u64 });
                }
                names.push(name.into());
                continue;
            }
            self.entry(dir.as_fd(), OsStr::from_bytes(name), &stat, &child, || {
                below(dir.as_fd(), name, FILE)
            })?;
        }
        Ok(names)
    }

    fn directory(&mut self, stat: &Stat, path: &[u8]) -> Result<(), Error> {
        let name = self.in_tar(path);
        if name.as_os_str().is_empty() {
            return Ok(());
        }
        self.packed.entries += 1;
        let mut header = header(stat, tar::EntryType::Directory);
        self.builder.append_data(&mut header, name, io::empty()).map_err(self.failed("pack", path))
    }

    /// Packs what is no directory. `open` opens the file `name` in `dir`.
    fn entry(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        stat: &Stat,
        path: &[u8],
        open: impl FnOnce() -> Result<OwnedFd, Errno>,
    ) -> Result<(), Error> {
        let in_tar = self.in_tar(path);
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => match open() {
                Ok(file) => self.file(&File::from(file), path)?,
                Err(Errno::XDEV) => {
                    self.leave_out(path, LeftOut::Mount);
                    return Ok(());
                }
                Err(Errno::LOOP) => return Err(self.replaced(path)),
                Err(errno) => return self.unread("open", path, errno),
            },
            FileType::Symlink => {
                let target = match readlinkat(dir, name, Vec::new()) {
                    Ok(target) => target,
                    Err(errno) => return self.unread("read the link", path, errno),
                };
                let mut header = header(stat, tar::EntryType::Symlink);
                let target = OsStr::from_bytes(target.as_bytes());
                let appended = self.builder.append_link(&mut header, in_tar, target);
                appended.map_err(self.failed("pack", path))?;
            }
            FileType::Fifo => {
                let mut header = header(stat, tar::EntryType::Fifo);
                let appended = self.builder.append_data(&mut header, in_tar, io::empty());
                appended.map_err(self.failed("pack", path))?;
            }
            _ => {
                self.leave_out(path, LeftOut::Special);
                return Ok(());
            }
        }
        self.packed.entries += 1;
        Ok(())
    }

    fn file(&mut self, file: &File, path: &[u8]) -> Result<(), Error> {
        let stat = fstat(file).map_err(|errno| self.failed("find", path)(errno.into()))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(self.replaced(path));
        }
        let names = if stat.st_nlink > 1 { file.metadata().ok() } else { None };
        let in_tar = self.in_tar(path);
        if let Some(first) = names.as_ref().and_then(|file| self.linked.first(file)) {
            let mut header = header(&stat, tar::EntryType::Link);
            let appended = self.builder.append_link(&mut header, in_tar, OsStr::from_bytes(&first));
            return appended.map_err(self.failed("pack", path));
        }
        let size = stat.st_size.cast_unsigned();
        let (mut header, map, segments) = match segments(file, &stat) {
            Some(segments) => sparse(&stat, &segments),
            None => {
                let mut header = header(&stat, tar::EntryType::Regular);
                header.set_size(size);
                (header, Vec::new(), vec![(0, size)])
            }
        };
        let mut data = Segments { file, segments: segments.into_iter(), at: 0, left: 0, error: None };
        let all = io::Cursor::new(map).chain(&mut data);
        let appended = self.builder.append_data(&mut header, &in_tar, all);
        appended.map_err(self.failed("pack", path))?;
        if let Some(file) = names {
            self.linked.add(&file, in_tar.as_os_str().as_bytes());
        }
        if let Some(error) = data.error {
            self.note_unread(path, format!("{error}: zeros take the place of what is missing"));
        }
        self.packed.bytes += size;
        Ok(())
    }

    fn in_tar(&self, path: &[u8]) -> PathBuf {
        // Joining nothing would add a slash.
        if path.is_empty() { self.name.to_owned() } else { self.name.join(OsStr::from_bytes(path)) }
    }

    fn here(&self, path: &[u8]) -> PathBuf {
        if path.is_empty() { self.shown.to_owned() } else { self.shown.join(OsStr::from_bytes(path)) }
    }

    fn leave_out(&mut self, path: &[u8], why: LeftOut) {
        if self.packed.left_out.len() < MAX_NAMED {
            self.packed.left_out.push((self.here(path), why));
        } else {
            self.packed.left_out_more += 1;
        }
    }

    /// Something below the source could not be read. The source itself must be.
    fn unread(&mut self, op: &'static str, path: &[u8], errno: Errno) -> Result<(), Error> {
        if path.is_empty() {
            return Err(self.failed(op, path)(errno.into()));
        }
        self.note_unread(path, io::Error::from(errno).to_string());
        Ok(())
    }

    fn note_unread(&mut self, path: &[u8], why: String) {
        if self.packed.unread.len() < MAX_NAMED {
            self.packed.unread.push((self.here(path), why));
        } else {
            self.packed.unread_more += 1;
        }
    }

    fn failed(&self, op: &'static str, path: &[u8]) -> impl FnOnce(io::Error) -> Error + use<W> {
        let path = self.here(path);
        move |source| failed(op, path.as_os_str().as_bytes())(source)
    }

    fn replaced(&self, path: &[u8]) -> Error {
        unsafe_path(self.here(path).as_os_str().as_bytes(), REPLACED)
    }
}

/// Bytes that a name takes while it waits.
fn kept(name: &[u8]) -> usize {
    name.len() + 2 * size_of::<Box<[u8]>>()
}

fn push(path: &mut Vec<u8>, name: &[u8]) {
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
}

/// Opens what is below a directory, through no symlink and into no other mount: EXDEV is a mount, ELOOP a symlink.
fn below(dir: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    directory::open(dir, path, flags, BELOW)
}

fn header(stat: &Stat, kind: tar::EntryType) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(stat.st_mode & 0o7777);
    header.set_uid(stat.st_uid.into());
    header.set_gid(stat.st_gid.into());
    header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
    header.set_size(0);
    header
}

/// Where a file has data, in units; none if it has no holes, or does not say.
fn segments(file: &File, stat: &Stat) -> Option<Vec<(u64, u64)>> {
    let size = stat.st_size.cast_unsigned();
    if u64::try_from(stat.st_blocks).unwrap_or(0) * 512 >= size {
        return None;
    }
    let (mut found, mut at): (Vec<(u64, u64)>, u64) = (Vec::new(), 0);
    while at < size {
        let data = match seek(file, SeekFrom::Data(at)) {
            // No data any more.
            Err(Errno::NXIO) => break,
            other => other.ok()?.max(at),
        };
        let start = data / UNIT * UNIT;
        if start >= size {
            break;
        }
        let hole = if found.len() == MAX_SEGMENTS { size } else { seek(file, SeekFrom::Hole(data)).ok()? };
        let end = hole.max(start + 1).div_ceil(UNIT).saturating_mul(UNIT).min(size);
        found.push((start, end - start));
        at = end;
    }
    (found != [(0, size)]).then_some(found)
}

/// The header of a file with holes, the blocks that follow it, and its map.
fn sparse(stat: &Stat, segments: &[(u64, u64)]) -> (tar::Header, Vec<u8>, Vec<(u64, u64)>) {
    let size = stat.st_size.cast_unsigned();
    let mut header = header(stat, tar::EntryType::GNUSparse);
    header.set_size(segments.iter().map(|(_, length)| length).sum());
    let mut map = segments.to_vec();
    if map.last().is_none_or(|(start, length)| start + length < size) {
        // A hole at the end is told by an empty piece behind it.
        map.push((size, 0));
    }
    let fill = |to: &mut [tar::GnuSparseHeader], from: &[(u64, u64)]| {
        for (to, (offset, length)) in to.iter_mut().zip(from) {
            to.set_offset(*offset);
            to.set_length(*length);
        }
    };
    let mut blocks = Vec::new();
    if let Some(gnu) = header.as_gnu_mut() {
        let (own, rest) = map.split_at(map.len().min(gnu.sparse.len()));
        fill(&mut gnu.sparse, own);
        gnu.set_real_size(size);
        gnu.set_is_extended(!rest.is_empty());
        let mut block = tar::GnuExtSparseHeader::new();
        let pieces = rest.chunks(block.sparse.len());
        let count = pieces.len();
        for (index, piece) in pieces.enumerate() {
            block = tar::GnuExtSparseHeader::new();
            fill(&mut block.sparse, piece);
            block.set_is_extended(index + 1 < count);
            blocks.extend_from_slice(block.as_bytes());
        }
    }
    (header, blocks, segments.to_vec())
}

/// Reads the pieces of a file. What cannot be read is made up with zeros, as GNU tar does: its entry has its length already.
struct Segments<'a> {
    file: &'a File,
    segments: std::vec::IntoIter<(u64, u64)>,
    at: u64,
    left: u64,
    /// Why it was not read to its end.
    error: Option<io::Error>,
}

impl Read for Segments<'_> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        while self.left == 0 {
            let Some(next) = self.segments.next() else { return Ok(0) };
            (self.at, self.left) = next;
        }
        let want = to.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let read = if self.error.is_none() { self.file.read_at(&mut to[..want], self.at) } else { Ok(0) };
        let n = match read {
            Ok(n) if n > 0 || want == 0 => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(error),
            other => {
                let shorter = || io::Error::other("it became shorter while it was read");
                self.error.get_or_insert_with(|| other.err().unwrap_or_else(shorter));
                to[..want].fill(0);
                want
            }
        };
        self.at += n as u64;
        self.left -= n as u64;
        Ok(n)
    }
}
