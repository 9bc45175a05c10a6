//! Walks unpacked layers: one as it is, or several merged as by overlayfs.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, SeekFrom, Stat, fgetxattr, flistxattr, fstat, openat,
    readlinkat, seek, statat,
};
use rustix::io::Errno;
use wardian_sys::directory;

use crate::bounds::limits::Limits;
use crate::bounds::watch::Watch;
use crate::disk::names::{self, Names};
use crate::error::{Error, show};
use crate::format::stream::Time;
use crate::overlay::whiteout::is_whiteout;
use crate::overlay::xattr::{self, Fate};

const DIR: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// How many ancestor directories stay open. Others are opened again by their path.
const MAX_OPEN: usize = 128;
/// The memory limit for names of files whose other hard links have not been visited yet, when a command exports
/// layers.
const MAX_LINKED: usize = 256 << 20;
/// The overhead of such a name in the map, in bytes.
const LINKED: usize = 128;
/// The maximum size of all attributes of one file in bytes, as for an entry of an archive.
const MAX_XATTRS: usize = 1 << 20;
/// The kernel's own limit of a list of attributes and of a value (XATTR_LIST_MAX, XATTR_SIZE_MAX), in bytes.
const MAX_XATTR: usize = 64 << 10;
/// The maximum number of data segments of a sparse file: their map fits into the size allowed for an entry's
/// metadata.
const MOST_PARTS: usize = 128;
/// The read size for files, in bytes.
const PIECE: usize = 256 << 10;

/// Counts entries and bytes, and checks for cancellation.
pub(super) struct Meter<'a> {
    watch: &'a Watch,
    /// The name of the target, for errors.
    what: &'a str,
    pub(super) bytes: u64,
    pub(super) entries: u64,
    pub(super) skipped_xattrs: u64,
    pub(super) skipped_sockets: u64,
    piece: Vec<u8>,
}

impl<'a> Meter<'a> {
    pub(super) fn new(watch: &'a Watch, what: &'a str) -> Self {
        let piece = vec![0; PIECE];
        Self { watch, what, bytes: 0, entries: 0, skipped_xattrs: 0, skipped_sockets: 0, piece }
    }

    /// Fails if it was cancelled.
    pub(super) fn check(&self) -> Result<(), Error> {
        if self.watch.is_cancelled() { Err(Error::Cancelled { what: self.what.into() }) } else { Ok(()) }
    }
}

/// One entry of a tree.
pub(super) struct Item<'a> {
    /// The path relative to the root; that of the root itself is empty.
    pub(super) path: &'a [u8],
    pub(super) stat: Stat,
    /// Sorted by name, without attributes of the host or of overlayfs.
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) content: Content<'a>,
}

pub(super) enum Content<'a> {
    Directory,
    File(File),
    Symlink(Vec<u8>),
    /// A character or block device or a fifo.
    Node,
    /// Another hard link of the file visited under this path.
    Link(&'a [u8]),
}

impl Item<'_> {
    pub(super) fn mode(&self) -> u32 {
        self.stat.st_mode & 0o7777
    }

    pub(super) fn mtime(&self) -> Time {
        // Nanoseconds are below 10^9.
        Time { sec: self.stat.st_mtime, nsec: self.stat.st_mtime_nsec.cast_signed() }
    }

    /// Passes the data of a file to `sink`: exactly as many bytes as the size in `stat`.
    pub(super) fn copy(
        &self,
        file: &File,
        meter: &mut Meter<'_>,
        sink: impl FnMut(&[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.copy_part(file, (0, self.stat.st_size.cast_unsigned()), meter, sink)
    }

    /// As [`Item::copy`], for a part given by offset and length.
    pub(super) fn copy_part(
        &self,
        file: &File,
        (offset, length): (u64, u64),
        meter: &mut Meter<'_>,
        mut sink: impl FnMut(&[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let (mut at, end) = (offset, offset + length);
        while at < end {
            let want = meter.piece.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
            let n = match file.read_at(&mut meter.piece[..want], at) {
                Ok(0) => return Err(Error::Changed { path: show(self.path) }),
                Ok(n) => n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(source) => return Err(Error::Io { op: "read", path: show(self.path), source }),
            };
            sink(&meter.piece[..n])?;
            at += n as u64;
            meter.bytes += n as u64;
            meter.watch.add(n as u64);
            meter.check()?;
        }
        Ok(())
    }

    /// Returns the data segments of a file (`SEEK_DATA`, lseek(2)), in order: offset and length. `None` if it has no
    /// holes. If there are more than [`MOST_PARTS`], close ones are joined.
    pub(super) fn parts(&self, file: &File, meter: &Meter<'_>) -> Result<Option<Vec<(u64, u64)>>, Error> {
        let size = self.stat.st_size.cast_unsigned();
        // A block of stat(2) has 512 bytes. A file compressed by its file system may look sparse too.
        if self.stat.st_blocks.cast_unsigned().saturating_mul(512) >= size {
            return Ok(None);
        }
        let (mut parts, mut at, mut close) = (Vec::new(), 0, 0);
        while at < size {
            meter.check()?;
            let start = match seek(file, SeekFrom::Data(at)) {
                Ok(start) if start < size => start,
                // A hole up to the end of the file.
                Ok(_) | Err(Errno::NXIO) => break,
                // The file system does not support SEEK_DATA.
                Err(_) => return Ok(None),
            };
            let end = seek(file, SeekFrom::Hole(start)).map_err(self::at("seek in", self.path))?.min(size);
            if end <= start {
                return Err(Error::Changed { path: show(self.path) });
            }
            add_part(&mut parts, (start, end - start), &mut close);
            at = end;
        }
        Ok(Some(parts))
    }
}

/// Adds the next segment. If there are too many, those less than `close` apart are joined, and `close` grows until
/// half of them are gone.
fn add_part(parts: &mut Vec<(u64, u64)>, part: (u64, u64), close: &mut u64) {
    let join = |parts: &mut Vec<(u64, u64)>, (start, length): (u64, u64), close| match parts.last_mut() {
        Some((offset, so_far)) if start - (*offset + *so_far) < close => *so_far = start + length - *offset,
        _ => parts.push((start, length)),
    };
    join(parts, part, *close);
    while parts.len() > MOST_PARTS {
        *close = (*close * 2).max(64 << 10);
        let all = std::mem::take(parts);
        all.into_iter().for_each(|part| join(parts, part, *close));
        if parts.len() <= MOST_PARTS / 2 {
            break;
        }
    }
}

/// Receives a tree: a directory comes before its content, names are sorted by their bytes.
pub(super) trait Sink {
    fn entry(&mut self, item: &Item<'_>, meter: &mut Meter<'_>) -> Result<(), Error>;
    /// Called after the content of the directory entered last.
    fn leave(&mut self) -> Result<(), Error>;
    /// A whiteout hides `path` of lower layers.
    fn whiteout(&mut self, path: &[u8]) -> Result<(), Error>;
    /// The directory entered last hides its content in lower layers.
    fn opaque(&mut self, path: &[u8]) -> Result<(), Error>;
}

fn at(op: &'static str, path: &[u8]) -> impl FnOnce(Errno) -> Error {
    let path = show(path);
    move |source| Error::Io { op, path, source: source.into() }
}

/// A directory being visited.
struct Frame {
    /// The layers that have the directory, topmost first, and its descriptors in these; empty while it is closed.
    layers: Vec<usize>,
    dirs: Vec<OwnedFd>,
    /// The names, each with the index in `layers` of the topmost layer that has it.
    names: Names,
    /// The number of names visited.
    visited: usize,
    /// The length of the parent directory's path.
    above: usize,
}

struct Walk<'a> {
    layers: &'a [BorrowedFd<'a>],
    merged: bool,
    path: Vec<u8>,
    stack: Vec<Frame>,
    /// For files with several hard links, by layer, device and inode: the first name, and how many links are left.
    links: HashMap<(usize, u64, u64), (Vec<u8>, u64)>,
    linked: usize,
    /// The memory of the names in `stack`, in bytes.
    held: usize,
    limits: Limits,
    /// The file system to stay on, if set: of file systems mounted below, only the mount points are visited.
    device: Option<u64>,
}

/// Walks one layer, with its whiteouts.
pub(super) fn layer(layer: BorrowedFd<'_>, sink: &mut impl Sink, meter: &mut Meter<'_>) -> Result<(), Error> {
    walk(&[layer], false, false, sink, meter)
}

/// Walks an ordinary directory, not a layer of a store, without crossing mount points.
pub(super) fn directory(
    dir: BorrowedFd<'_>,
    sink: &mut impl Sink,
    meter: &mut Meter<'_>,
) -> Result<(), Error> {
    walk(&[dir], true, true, sink, meter)
}

/// Walks all layers (bottom first), merged to one tree.
pub(super) fn merged(
    layers: &[BorrowedFd<'_>],
    sink: &mut impl Sink,
    meter: &mut Meter<'_>,
) -> Result<(), Error> {
    if layers.is_empty() { Ok(()) } else { walk(layers, true, false, sink, meter) }
}

fn walk(
    layers: &[BorrowedFd<'_>],
    merged: bool,
    alone: bool,
    sink: &mut impl Sink,
    meter: &mut Meter<'_>,
) -> Result<(), Error> {
    let mut walk = Walk {
        layers,
        merged,
        path: Vec::new(),
        stack: Vec::new(),
        links: HashMap::new(),
        linked: 0,
        held: 0,
        limits: Limits::default(),
        device: None,
    };
    if alone {
        walk.device = Some(fstat(layers[0]).map_err(at("stat", b"."))?.st_dev);
    }
    let open = |layer: usize| openat(layers[layer], ".", DIR, Mode::empty()).map(|dir| (layer, dir));
    let roots = (0..layers.len()).rev().map(open).collect::<Result<_, _>>().map_err(at("open", b"."))?;
    walk.enter(roots, 0, sink, meter)?;
    while let Some(frame) = walk.stack.last_mut() {
        if frame.visited < frame.names.len() {
            frame.visited += 1;
            walk.visit(sink, meter)?;
        } else {
            sink.leave()?;
            walk.path.truncate(frame.above);
            walk.held -= frame.names.bytes();
            walk.stack.pop();
        }
    }
    Ok(())
}

impl Walk<'_> {
    /// Enters a directory, given with the layers that have it, topmost first.
    fn enter(
        &mut self,
        found: Vec<(usize, OwnedFd)>,
        above: usize,
        sink: &mut impl Sink,
        meter: &mut Meter<'_>,
    ) -> Result<(), Error> {
        if self.stack.len() > self.limits.max_depth {
            let (what, limit) = ("the depth of a directory".into(), self.limits.max_depth as u64);
            return Err(Error::Limit { what, limit });
        }
        let (mut layers, mut dirs, mut names) = (Vec::new(), Vec::new(), Names::default());
        let most = if self.device.is_some() { names::most() } else { usize::MAX };
        for (layer, dir) in found {
            let found = attributes(dir.as_fd(), &self.path, false, meter)?;
            if dirs.is_empty() {
                let stat = fstat(&dir).map_err(at("stat", &self.path))?;
                meter.skipped_xattrs += found.skipped;
                let content = Content::Directory;
                give(&Item { path: &self.path, stat, xattrs: found.xattrs, content }, sink, meter)?;
                if found.opaque && !self.merged {
                    sink.opaque(&self.path)?;
                }
            }
            let number = u32::try_from(dirs.len()).unwrap_or(u32::MAX);
            names.list(dir.as_fd(), &self.path, number, most.saturating_sub(self.held))?;
            layers.push(layer);
            dirs.push(dir);
            if found.opaque {
                break;
            }
        }
        names.sort();
        self.held += names.bytes();
        if self.stack.iter().map(|frame| frame.dirs.len()).sum::<usize>() > MAX_OPEN {
            self.stack.iter_mut().for_each(|frame| frame.dirs.clear());
        }
        self.stack.push(Frame { layers, dirs, names, visited: 0, above });
        Ok(())
    }

    /// Visits the next name of the innermost directory.
    fn visit(&mut self, sink: &mut impl Sink, meter: &mut Meter<'_>) -> Result<(), Error> {
        let above = self.path.len();
        let Some(frame) = self.stack.last_mut() else { return Ok(()) };
        let (name, topmost) = frame.names.get(frame.visited - 1);
        let topmost = topmost as usize;
        if frame.dirs.is_empty() {
            let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
            let path = if self.path.is_empty() { b"." } else { &*self.path };
            let open = |layer: &usize| directory::open(self.layers[*layer], path, DIR, resolve);
            frame.dirs = frame.layers.iter().map(open).collect::<Result<_, _>>().map_err(at("open", path))?;
        }
        if above > 0 {
            self.path.push(b'/');
        }
        self.path.extend_from_slice(name);
        if self.path.len() > self.limits.max_name {
            let limit = self.limits.max_name as u64;
            let what = format!("the length of the path {}", show(&self.path));
            return Err(Error::Limit { what, limit });
        }
        let (dir, layer) = (&frame.dirs[topmost], frame.layers[topmost]);
        let stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map_err(at("stat", &self.path))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Directory && self.device.is_some_and(|device| device != stat.st_dev) {
            let item = Item { path: &self.path, stat, xattrs: Vec::new(), content: Content::Directory };
            give(&item, sink, meter)?;
            sink.leave()?;
        } else if kind == FileType::Directory {
            let mut found = Vec::new();
            for (dir, layer) in frame.dirs.iter().zip(&frame.layers).skip(topmost) {
                match openat(dir, name, DIR, Mode::empty()) {
                    Ok(dir) => found.push((*layer, dir)),
                    Err(Errno::NOENT) => {}
                    // The name is no directory in this layer, but perhaps a whiteout: it hides the lower layers.
                    Err(Errno::NOTDIR | Errno::LOOP) if !found.is_empty() => break,
                    Err(e) => return Err(at("open", &self.path)(e)),
                }
            }
            return self.enter(found, above, sink, meter);
        } else if is_whiteout(&stat) {
            if !self.merged {
                sink.whiteout(&self.path)?;
            }
        } else if kind == FileType::Socket {
            meter.skipped_sockets += 1; // nothing without its server
        } else {
            let key = (layer, stat.st_dev, stat.st_ino);
            let first = if stat.st_nlink > 1 { self.links.get_mut(&key) } else { None };
            if let Some((first, left)) = first {
                let content = Content::Link(first);
                give(&Item { path: &self.path, stat, xattrs: Vec::new(), content }, sink, meter)?;
                *left -= 1;
                if *left == 0 {
                    self.linked -= first.len() + LINKED;
                    self.links.remove(&key);
                }
            } else {
                give(&item(&self.path, dir, name, stat, meter)?, sink, meter)?;
                let (needs, alone) = (self.path.len() + LINKED, self.device.is_some());
                // In an untrusted tree further links may lie outside, so the first name would be kept in vain. A link
                // whose first name was not kept is written as another file.
                let kept = !alone || self.linked + needs <= names::most();
                if stat.st_nlink > 1 && kept {
                    self.linked += needs;
                    if self.linked > MAX_LINKED {
                        let what = "the length of all names of hard links".into();
                        return Err(Error::Limit { what, limit: MAX_LINKED as u64 });
                    }
                    self.links.insert(key, (self.path.clone(), stat.st_nlink - 1));
                }
            }
        }
        self.path.truncate(above);
        Ok(())
    }
}

/// Returns the entry `name` in `dir`, which is no directory.
fn item<'a>(
    path: &'a [u8],
    dir: &OwnedFd,
    name: &[u8],
    stat: Stat,
    meter: &mut Meter<'_>,
) -> Result<Item<'a>, Error> {
    Ok(match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let file = openat(dir, name, flags, Mode::empty()).map_err(at("open", path))?;
            let stat = fstat(&file).map_err(at("stat", path))?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                return Err(Error::Changed { path: show(path) });
            }
            let found = attributes(file.as_fd(), path, true, meter)?;
            meter.skipped_xattrs += found.skipped;
            Item { path, stat, xattrs: found.xattrs, content: Content::File(file.into()) }
        }
        FileType::Symlink => {
            let target = readlinkat(dir, name, Vec::new()).map_err(at("read the link", path))?;
            let content = Content::Symlink(target.into_bytes());
            Item { path, stat, xattrs: Vec::new(), content }
        }
        FileType::CharacterDevice | FileType::BlockDevice | FileType::Fifo => {
            Item { path, stat, xattrs: Vec::new(), content: Content::Node }
        }
        _ => return Err(Error::Entry { path: show(path), why: "unknown type".into() }),
    })
}

fn give(item: &Item<'_>, sink: &mut impl Sink, meter: &mut Meter<'_>) -> Result<(), Error> {
    meter.entries += 1;
    meter.check()?;
    sink.entry(item, meter)
}

struct Attributes {
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    opaque: bool,
    skipped: u64,
}

/// Reads the attributes, with the same rules as for an archive.
fn attributes(
    fd: BorrowedFd<'_>,
    path: &[u8],
    regular: bool,
    meter: &mut Meter<'_>,
) -> Result<Attributes, Error> {
    let mut found = Attributes { xattrs: Vec::new(), opaque: false, skipped: 0 };
    let buf = &mut meter.piece[..MAX_XATTR];
    let n = match flistxattr(fd, &mut *buf) {
        Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(found),
        other => other.map_err(at("list the xattrs of", path))?,
    };
    let list = buf[..n].to_vec();
    let mut sum = 0;
    for name in list.split(|b| *b == 0).filter(|name| !name.is_empty()) {
        let n = fgetxattr(fd, name, &mut *buf).map_err(at("read an xattr of", path))?;
        let value = &buf[..n];
        sum += name.len() + n;
        if sum > MAX_XATTRS {
            let what = format!("the size of the extended attributes of {}", show(path));
            return Err(Error::Limit { what, limit: MAX_XATTRS as u64 });
        }
        // PAX records are text, and their key ends at the first equals sign.
        let writable = !name.contains(&b'=') && std::str::from_utf8(name).is_ok();
        match (name, value) {
            (b"trusted.overlay.opaque", b"y") => found.opaque = true,
            // Another value occurs only with an overlay inside an overlay.
            (b"trusted.overlay.opaque", _) => {
                return Err(unsupported("whiteouts as extended attributes", path));
            }
            // The content of the directory, or of the file, lies elsewhere.
            (b"trusted.overlay.redirect", _) => return Err(unsupported("overlayfs' redirect_dir", path)),
            (b"trusted.overlay.metacopy", _) => return Err(unsupported("overlayfs' metacopy", path)),
            _ if name.starts_with(b"trusted.overlay.") => {}
            _ => match xattr::judge(name, value, regular, &mut xattr::Scratch::default()) {
                Fate::Set(value) if writable => found.xattrs.push((name.to_vec(), value.to_vec())),
                Fate::Set(_) | Fate::Skip => found.skipped += 1,
                Fate::Refuse(why) => return Err(Error::Entry { path: show(path), why: why.into() }),
            },
        }
    }
    found.xattrs.sort_unstable();
    Ok(found)
}

fn unsupported(what: &str, path: &[u8]) -> Error {
    Error::Unsupported { what: format!("{what} ({})", show(path)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However fragmented a file is, its map is short and covers every segment.
    #[test]
    fn many_parts_are_joined() {
        let (mut parts, mut close) = (Vec::new(), 0);
        let all: Vec<(u64, u64)> = (0..100_000_u64).map(|n| (n * (64 << 10), 4 << 10)).collect();
        all.iter().for_each(|part| add_part(&mut parts, *part, &mut close));
        assert!(parts.len() <= MOST_PARTS);
        assert!(parts.windows(2).all(|two| two[0].0 + two[0].1 < two[1].0));
        for (start, length) in all {
            assert!(parts.iter().any(|(from, long)| *from <= start && start + length <= from + long));
        }
        let (mut few, mut close) = (Vec::new(), 0);
        [(0, 1), (9, 1), (1 << 40, 1)].iter().for_each(|part| add_part(&mut few, *part, &mut close));
        assert_eq!(few, [(0, 1), (9, 1), (1 << 40, 1)]);
    }
}
