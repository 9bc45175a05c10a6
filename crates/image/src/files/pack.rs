//! Packs files into a tar.

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
/// Stays on one file system: file systems mounted below, such as /proc, are not a part of the source.
const BELOW: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);
/// The longest path that the kernel accepts (PATH_MAX less the NUL).
const MAX_PATH: usize = 4095;
/// The memory limit for the names of directories still to be walked, in bytes; names of files are not kept.
const MAX_PENDING: usize = 64 << 20;
/// How many left-out entries are named; further ones are only counted.
const MAX_NAMED: usize = 100;
/// The maximum number of data segments of one file; the rest becomes one segment, holes included.
const MAX_SEGMENTS: usize = 16 << 10;
/// The granularity of holes in bytes: readers require the data of all segments but the last to be whole blocks of
/// 512.
const UNIT: u64 = 4096;

/// The result of packing.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Packed {
    /// Files, directories and links.
    pub entries: u64,
    /// Bytes of the files, holes included.
    pub bytes: u64,
    /// The first hundred entries that were left out.
    pub left_out: Vec<(PathBuf, LeftOut)>,
    /// How many more there are.
    pub left_out_more: u64,
    /// The first hundred entries that could not be read, with the errors: they are missing in the tar, or are
    /// directories without their content, or files filled up with zeros.
    pub unread: Vec<(PathBuf, String)>,
    /// How many more there are.
    pub unread_more: u64,
}

/// Why an entry was left out of a tar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LeftOut {
    /// A socket or a device, which cannot be copied into a container.
    Special,
    /// A mount point. For a directory, the tar has its entry without its content.
    Mount,
}

/// The source of a copy, opened so that nobody can replace it.
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
    /// Opens `path`. A symlink at its end is packed as such, unless a slash follows it or the `contents` of a
    /// directory are requested; see [`place::directory`] for symlinks in its parents.
    ///
    /// # Errors
    /// The path does not exist, or another user's symlink leads to it.
    pub fn open(path: &Path, contents: bool) -> Result<Self, Error> {
        let missing = |errno: Errno| failed("find", path.as_os_str().as_bytes())(errno.into());
        // The path is checked again only for the error message.
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

    /// Returns the kind of the source for messages, if it is no file, directory or symlink: see [`special`].
    #[must_use]
    pub fn special(&self) -> Option<&'static str> {
        let Kind::Entry(above, name) = &self.kind else { return None };
        let stat = statat(above, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        special(FileType::from_raw_mode(stat.st_mode))
    }

    /// Whether it is a directory, without following a symlink.
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

/// Writes the source, a directory with everything below it on the same file system, as a tar in which it has the name
/// `name`; with an empty name the tar holds the directory's content. Symlinks are packed as such. Files with holes
/// are entries of GNU tar's first sparse format, and a file's second name is a link to its first one.
///
/// Directories are opened by descriptors and never through a symlink, even if entries are renamed meanwhile. At most
/// two are open at once, however deep the tree is.
///
/// Entries below the source that cannot be read, or have disappeared, do not end the copy: [`Packed::unread`] lists
/// them.
///
/// # Errors
/// The source itself cannot be read, an entry changed its type meanwhile, or a path is too long for the kernel. The
/// tar then has no end marker.
pub fn pack(source: &Source, name: &Path, to: impl Write) -> Result<Packed, Error> {
    // Dropping a builder writes the end marker, and an incomplete archive must not look complete.
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
                // The source itself may be a mount point, since it was asked for.
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
    /// The name of the source in the tar.
    name: &'a Path,
    /// The path of the source on this host.
    shown: &'a Path,
    packed: Packed,
    linked: Linked,
}

/// A directory with subdirectories still to be walked.
struct Frame {
    /// The length of its path.
    length: usize,
    names: Vec<Box<[u8]>>,
}

impl<W: Write> Packer<'_, W> {
    /// Packs a directory and everything below it. All paths are relative to it.
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

    /// Packs the entries of a directory; returns the names of its subdirectories.
    fn list(&mut self, dir: &OwnedFd, path: &[u8], pending: &mut usize) -> Result<Vec<Box<[u8]>>, Error> {
        let mut names = Vec::new();
        let mut child = path.to_vec();
        // A failure to open the directory is handled like one to read it.
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

    /// Packs an entry that is no directory. `open` opens the file `name` in `dir`.
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

    /// Notes an entry below the source that could not be read; fails if it is the source itself.
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

/// Returns the memory that a pending name takes, in bytes.
fn kept(name: &[u8]) -> usize {
    name.len() + 2 * size_of::<Box<[u8]>>()
}

fn push(path: &mut Vec<u8>, name: &[u8]) {
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
}

/// Opens an entry below a directory without following symlinks (ELOOP) or crossing mount points (EXDEV).
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

/// Returns the data segments of a file, aligned to [`UNIT`]; `None` if it has no holes, or its file system cannot
/// tell.
fn segments(file: &File, stat: &Stat) -> Option<Vec<(u64, u64)>> {
    let size = stat.st_size.cast_unsigned();
    if u64::try_from(stat.st_blocks).unwrap_or(0) * 512 >= size {
        return None;
    }
    let (mut found, mut at): (Vec<(u64, u64)>, u64) = (Vec::new(), 0);
    while at < size {
        let data = match seek(file, SeekFrom::Data(at)) {
            // No more data.
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

/// Returns the header of a sparse file, the blocks that follow it, and its map.
fn sparse(stat: &Stat, segments: &[(u64, u64)]) -> (tar::Header, Vec<u8>, Vec<(u64, u64)>) {
    let size = stat.st_size.cast_unsigned();
    let mut header = header(stat, tar::EntryType::GNUSparse);
    header.set_size(segments.iter().map(|(_, length)| length).sum());
    let mut map = segments.to_vec();
    if map.last().is_none_or(|(start, length)| start + length < size) {
        // A hole at the end is expressed by an empty segment after it.
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

/// Reads the data segments of a file. Unreadable data is replaced by zeros, as by GNU tar, because the header with
/// the size is written already.
struct Segments<'a> {
    file: &'a File,
    segments: std::vec::IntoIter<(u64, u64)>,
    at: u64,
    left: u64,
    /// The first read error.
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
