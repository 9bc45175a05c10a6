//! Applies the entries of a tar stream to a directory.

use std::io::{BufRead, BufReader, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags, chmodat, chownat, fchmod,
    fchown, fsetxattr, ftruncate, futimens, linkat, makedev, mkdirat, mknodat, openat, statat, symlinkat,
    utimensat,
};
use rustix::io::{Errno, pwrite};
use tar::EntryType;

use super::pipeline::Digests;
use crate::bounds::budget::{Budget, Meter, Packed};
use crate::bounds::limits::Limits;
use crate::bounds::watch::Watch;
use crate::digest::{Digest, Hashing};
use crate::error::{Error, at, show};
use crate::format::stream::{Entry, Metered, Stream, Time, stream_error};
use crate::overlay::base::Base;
use crate::overlay::times::Times;
use crate::overlay::tree::{Parent, Tree};
use crate::overlay::whiteout::{OPAQUE, WHITEOUT, WHITEOUT_META, set_opaque};
use crate::overlay::xattr::{self, Fate};

/// Read size of [`unpack_tar`], in bytes.
const BUFFER: usize = 256 << 10;

/// The result of an unpack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unpacked {
    /// Entries in the archive, skipped ones included.
    pub entries: u64,
    /// Bytes of the files, holes included.
    pub bytes: u64,
    /// Its sizes as stored and as a stream, with everything behind the archive's end.
    pub packed: Packed,
    /// Digest of the uncompressed stream, with everything behind the archive's end.
    pub diff_id: Digest,
    /// Extended attributes that were not set because they belong to the host (`trusted.*`, `system.*`, ...).
    pub skipped_xattrs: u64,
    /// Device nodes that were not made for lack of privilege (EPERM of mknod(2)).
    pub skipped_devices: u64,
}

/// Counts of one unpack.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Counts {
    pub(crate) entries: u64,
    pub(crate) bytes: u64,
    /// Bytes of the stream.
    pub(crate) stream: u64,
    pub(crate) skipped_xattrs: u64,
    pub(crate) skipped_devices: u64,
}

impl Counts {
    pub(crate) fn with(self, digests: Digests) -> Unpacked {
        let Self { entries, bytes, stream, skipped_xattrs, skipped_devices } = self;
        let packed = Packed { stored: digests.stored, stream };
        Unpacked { entries, bytes, packed, diff_id: digests.plain, skipped_xattrs, skipped_devices }
    }
}

/// Unpacks an uncompressed tar stream into the directory `into`: OCI whiteouts become those of overlayfs, owners and
/// modes are those of the archive. After an error the directory is incomplete, and the caller must discard it.
///
/// # Errors
/// Any hostile, damaged or unsupported entry, a limit, or an I/O error.
pub fn unpack_tar(reader: impl Read, into: BorrowedFd<'_>, limits: &Limits) -> Result<Unpacked, Error> {
    let mut reader = BufReader::with_capacity(BUFFER, Hashing::new(reader));
    // No ratio limit: the stored size of a plain reader is unknown.
    let limits = &Limits { max_ratio: 0, ..*limits };
    let rules = Rules { base: None, limits, budget: &Arc::default(), watch: &Watch::default(), strict: true };
    let counts = unpack(&mut reader, into, &rules)?;
    let plain = reader.into_inner().finish();
    Ok(counts.with(Digests { blob: None, plain, stored: counts.stream }))
}

/// How a stream is unpacked.
pub(crate) struct Rules<'a> {
    /// The directory that all names are relative to, and the layers below (topmost first) that have it.
    pub(crate) base: Option<(&'a Base, &'a [BorrowedFd<'a>])>,
    pub(crate) limits: &'a Limits,
    /// The budget that the image's layers share.
    pub(crate) budget: &'a Arc<Budget>,
    /// Checked for cancellation at each entry, and more often in a large one.
    pub(crate) watch: &'a Watch,
    /// See [`Stream::next`].
    pub(crate) strict: bool,
}

/// Unpacks the stream, and reads it to its very end.
pub(crate) fn unpack<R: BufRead>(
    reader: R,
    into: BorrowedFd<'_>,
    rules: &Rules<'_>,
) -> Result<Counts, Error> {
    let Rules { base, limits, budget, watch, strict } = *rules;
    let mut reader = Metered::new(reader, Meter::new(budget, limits));
    // As docker and containers/storage have it, a layer without a byte is one without an entry; its diff id says whether
    // that is so.
    let is_empty = !strict && reader.fill_buf().map_err(|e| stream_error("tar stream", e))?.is_empty();
    let mut stream = Stream::new(reader, limits.max_bytes.saturating_add(limits.headers()));
    let tree = Tree::new(into, limits.max_entries, limits.max_depth, watch)?;
    let mut unpacker = Unpacker {
        base: base.map(|(base, _)| base.names().collect()).unwrap_or_default(),
        tree,
        limits,
        budget,
        counts: Counts::default(),
        times: Times::default(),
    };
    if let Some((base, below)) = base {
        for (path, time) in base.make(into, below)? {
            unpacker.defer(&path, time)?;
        }
    }
    let mut made = 0;
    while !is_empty && let Some(entry) = stream.next(strict)? {
        unpacker.counts.entries += 1;
        if unpacker.counts.entries > limits.max_entries {
            return Err(limit("the number of entries", limits.max_entries));
        }
        unpacker.tree.next(&entry.path)?;
        unpacker.entry(&entry, &mut stream)?;
        // The entry itself was counted before, but not the missing directories that it made.
        let more = unpacker.tree.made() - made;
        if more > 0 {
            made += more;
            budget.take_entries(more, limits)?;
        }
    }
    unpacker.counts.stream = stream.drain()?;
    unpacker.finish()
}

struct Unpacker<'a> {
    /// The components of the base directory.
    base: Vec<&'a [u8]>,
    tree: Tree<'a>,
    limits: &'a Limits,
    budget: &'a Budget,
    counts: Counts,
    times: Times,
}

impl<'a> Unpacker<'a> {
    /// Returns the components of a name, those of the base directory first.
    fn components<'b>(&self, path: &'b [u8]) -> Result<Vec<&'b [u8]>, Error>
    where
        'a: 'b,
    {
        components(path, &self.base, self.limits)
    }

    fn entry<R: BufRead>(&mut self, entry: &Entry, stream: &mut Stream<R>) -> Result<(), Error> {
        // Checked before anything is made: a hostile size must not cost more than its header.
        if entry.real_size() > self.limits.max_bytes - self.counts.bytes {
            return Err(Error::layer_bytes("the size of the files", self.limits.max_bytes));
        }
        self.budget.take_entries(1, self.limits)?;
        self.budget.take_bytes(entry.real_size(), self.limits)?;
        let names = self.components(&entry.path)?;
        if names.len() == self.base.len() && entry.kind != EntryType::Directory {
            return Err(Error::UnsafePath {
                path: show(&entry.path),
                why: "the root can only be a directory",
            });
        }
        let Some((name, above)) = names.split_last() else { return self.root(entry) };
        let (name, path, above) = (*name, names.join(&b'/'), above.join(&b'/'));
        if names.iter().any(|n| n.starts_with(WHITEOUT)) {
            self.whiteout(entry, &names, &above, &path)?;
            return skip(entry, stream);
        }
        match entry.kind {
            EntryType::Regular | EntryType::Continuous => {
                let above = self.tree.parent(&above)?;
                self.file(entry, stream, &above, name, &path)?;
            }
            EntryType::Directory => {
                let above = self.tree.parent(&above)?;
                self.directory(entry, &above, name, &path)?;
            }
            EntryType::Symlink => {
                self.check_target(entry)?;
                let above = self.tree.parent(&above)?;
                self.fresh(&above, name, &path, || symlinkat(&*entry.link, &above.fd, name))?;
                self.finish_special(entry, &above, name, &path)?;
            }
            EntryType::Link => self.link(entry, &above, name, &path)?,
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                let above = self.tree.parent(&above)?;
                self.node(entry, &above, name, &path)?;
            }
            // A socket is useless without its server and skipped; pax writes sockets as 's'.
            other if other.as_byte() == b's' => skip(entry, stream)?,
            other => return Err(bad(entry, &format!("unknown type {:?}", char::from(other.as_byte())))),
        }
        Ok(())
    }

    fn root(&mut self, entry: &Entry) -> Result<(), Error> {
        let fd = self.tree.find(b"")?;
        self.attributes(&fd, entry, b".", false, false)?;
        self.tree.forget();
        self.defer(b"", entry.mtime)
    }

    fn directory(&mut self, entry: &Entry, above: &Parent, name: &[u8], path: &[u8]) -> Result<(), Error> {
        let make = || mkdirat(above, name, Mode::from_raw_mode(entry.mode & 0o777));
        let (mut new, mut opaque) = (true, false);
        match make() {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let stat = statat(above, name, AtFlags::SYMLINK_NOFOLLOW).map_err(at("look at", path))?;
                new = FileType::from_raw_mode(stat.st_mode) != FileType::Directory;
                if new {
                    // A whiteout or a file of this layer is replaced: the lower directory that it hid must stay
                    // hidden.
                    opaque = true;
                    self.tree.remove(above, name, path)?;
                    make().map_err(at("make the directory", path))?;
                }
            }
            Err(e) => return Err(at("make the directory", path)(e)),
        }
        let owned = new && self.tree.has_owner(above, entry.uid, entry.gid);
        let moded = new && self.tree.has_mode(above, entry.mode);
        if !owned || !moded || opaque || !entry.xattrs.is_empty() {
            let fd = Tree::child(above, name, path)?;
            if opaque {
                set_opaque(fd.as_fd(), path)?;
            }
            self.attributes(&fd, entry, path, owned, moded)?;
        }
        if !new {
            self.tree.forget();
        }
        self.defer(path, entry.mtime)
    }

    fn file<R: BufRead>(
        &mut self,
        entry: &Entry,
        stream: &mut Stream<R>,
        above: &Parent,
        name: &[u8],
        path: &[u8],
    ) -> Result<(), Error> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = || openat(above, name, flags, Mode::from_raw_mode(entry.mode & 0o777));
        let fd = match open() {
            Err(Errno::EXIST) => {
                self.tree.remove(above, name, path)?;
                open()
            }
            other => other,
        }
        .map_err(at("make", path))?;
        match &entry.sparse {
            None => write(&fd, stream, 0, entry.size, path)?,
            Some(sparse) => {
                // Ranges that are not written are holes.
                ftruncate(&fd, sparse.real).map_err(at("set the size of", path))?;
                for (offset, length) in &sparse.segments {
                    write(&fd, stream, *offset, *length, path)?;
                }
            }
        }
        stream.pad(entry.size, path)?;
        self.counts.bytes += entry.real_size();
        let owned = self.tree.has_owner(above, entry.uid, entry.gid);
        let moded = self.tree.has_mode(above, entry.mode);
        self.attributes(&fd, entry, path, owned, moded)?;
        futimens(&fd, &stamps(entry.mtime)).map_err(at("set the time of", path))
    }

    /// Makes a device or a FIFO.
    fn node(&mut self, entry: &Entry, above: &Parent, name: &[u8], path: &[u8]) -> Result<(), Error> {
        let kind = match entry.kind {
            EntryType::Char => FileType::CharacterDevice,
            EntryType::Block => FileType::BlockDevice,
            _ => FileType::Fifo,
        };
        if kind == FileType::CharacterDevice && entry.device == (0, 0) {
            return Err(bad(entry, "device 0:0 is overlayfs' own whiteout"));
        }
        // mknod(2) takes 12 and 20 bits (linux/kdev_t.h) and cuts the rest: 4096:0 would become 0:0.
        if entry.device.0 >> 12 != 0 || entry.device.1 >> 20 != 0 {
            return Err(bad(entry, "the device number is out of range"));
        }
        let (mode, device) = (Mode::from_raw_mode(0o600), makedev(entry.device.0, entry.device.1));
        let mut forbidden = false;
        self.fresh(above, name, path, || match mknodat(above, name, kind, mode, device) {
            // Needs CAP_MKNOD in the initial user namespace; containers get their devices from the runtime.
            Err(Errno::PERM) if kind != FileType::Fifo => {
                forbidden = true;
                Ok(())
            }
            other => other,
        })?;
        if forbidden {
            self.counts.skipped_devices += 1;
            return Ok(());
        }
        self.finish_special(entry, above, name, path)
    }

    fn link(&mut self, entry: &Entry, above: &[u8], name: &[u8], path: &[u8]) -> Result<(), Error> {
        self.check_target(entry)?;
        let names = self.components(&entry.link)?;
        let Some((old, old_above)) = names.split_last() else {
            return Err(bad(entry, "a hard link to the root"));
        };
        let from = self.tree.find(&old_above.join(&b'/'))?;
        let to = self.tree.parent(above)?;
        // Never follows a symlink in the last component: it becomes another name of the symlink.
        let link = || linkat(&from, *old, &to.fd, name, AtFlags::empty());
        match link() {
            Err(Errno::EXIST) => {
                let nofollow = AtFlags::SYMLINK_NOFOLLOW;
                let source =
                    statat(&from, *old, nofollow).map_err(at("find the target of the link", path))?;
                let there = statat(&to.fd, name, nofollow).map_err(at("look at", path))?;
                if (source.st_dev, source.st_ino) == (there.st_dev, there.st_ino) {
                    return Ok(()); // the same file already; removing it could remove the only name
                }
                self.tree.remove(&to, name, path)?;
                link().map_err(at("link", path))
            }
            other => other.map_err(at("link", path)),
        }
    }

    fn whiteout(&mut self, entry: &Entry, names: &[&[u8]], above: &[u8], path: &[u8]) -> Result<(), Error> {
        let (last, parents) = names.split_last().ok_or_else(|| bad(entry, "a whiteout without a name"))?;
        if parents.iter().any(|n| n.starts_with(WHITEOUT_META)) {
            return Ok(()); // inside aufs' bookkeeping
        }
        if parents.iter().any(|n| n.starts_with(WHITEOUT)) {
            return Err(Error::UnsafePath { path: show(path), why: "a whiteout cannot be a directory" });
        }
        if *last == OPAQUE {
            return set_opaque(self.tree.parent(above)?.as_fd(), above);
        }
        if last.starts_with(WHITEOUT_META) {
            return Ok(());
        }
        // aufs made its whiteouts as hard links to one file.
        if !matches!(entry.kind, EntryType::Regular | EntryType::Link) {
            return Err(bad(entry, "a whiteout must be a file"));
        }
        let name = &last[WHITEOUT.len()..];
        if matches!(name, b"" | b"." | b"..") {
            return Err(Error::UnsafePath { path: show(path), why: "a whiteout of no name" });
        }
        let above = self.tree.parent(above)?;
        match mknodat(&above.fd, name, FileType::CharacterDevice, Mode::empty(), makedev(0, 0)) {
            Ok(()) => Ok(()),
            // A whiteout concerns lower layers only (OCI image spec, "Whiteouts"): what this layer has stays.
            Err(Errno::EXIST) => {
                let stat = statat(&above.fd, name, AtFlags::SYMLINK_NOFOLLOW).map_err(at("look at", path))?;
                if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                    set_opaque(Tree::child(&above.fd, name, path)?.as_fd(), path)?;
                }
                Ok(())
            }
            Err(e) => Err(at("make the whiteout", path)(e)),
        }
    }

    /// Makes a new entry `name`, after removing an existing one.
    fn fresh(
        &mut self,
        above: &Parent,
        name: &[u8],
        path: &[u8],
        mut make: impl FnMut() -> Result<(), Errno>,
    ) -> Result<(), Error> {
        match make() {
            Err(Errno::EXIST) => {
                self.tree.remove(above, name, path)?;
                make().map_err(at("make", path))
            }
            other => other.map_err(at("make", path)),
        }
    }

    /// Sets owner, mode and times of a new entry that cannot be opened: a symlink, device or FIFO.
    fn finish_special(
        &mut self,
        entry: &Entry,
        above: &Parent,
        name: &[u8],
        path: &[u8],
    ) -> Result<(), Error> {
        self.counts.skipped_xattrs += entry.xattrs.len() as u64;
        let nofollow = AtFlags::SYMLINK_NOFOLLOW;
        if !self.tree.has_owner(above, entry.uid, entry.gid) {
            let (uid, gid) = owner(entry);
            chownat(above, name, uid, gid, nofollow).map_err(at("set the owner of", path))?;
        }
        if entry.kind != EntryType::Symlink {
            // Safe by name: it was just made, is no symlink, and nobody else can reach the directory.
            chmodat(above, name, Mode::from_raw_mode(entry.mode), AtFlags::empty())
                .map_err(at("set the mode of", path))?;
        }
        utimensat(above, name, &stamps(entry.mtime), nofollow).map_err(at("set the time of", path))
    }

    /// Sets owner and mode, unless it has them already, and xattrs. The order matters: chown(2) clears setuid bits
    /// and file capabilities.
    fn attributes(
        &mut self,
        fd: &OwnedFd,
        entry: &Entry,
        path: &[u8],
        owned: bool,
        moded: bool,
    ) -> Result<(), Error> {
        if !owned {
            let (uid, gid) = owner(entry);
            fchown(fd, uid, gid).map_err(at("set the owner of", path))?;
        }
        if !moded {
            fchmod(fd, Mode::from_raw_mode(entry.mode)).map_err(at("set the mode of", path))?;
        }
        let regular = entry.kind != EntryType::Directory;
        for (name, value) in &entry.xattrs {
            match xattr::judge(name, value, regular, &mut xattr::Scratch::default()) {
                Fate::Set(value) => {
                    fsetxattr(fd, &**name, value, XattrFlags::empty())
                        .map_err(at("set an xattr of", path))?;
                }
                Fate::Skip => self.counts.skipped_xattrs += 1,
                Fate::Refuse(why) => return Err(bad(entry, why)),
            }
        }
        Ok(())
    }

    fn defer(&mut self, path: &[u8], time: Time) -> Result<(), Error> {
        self.times.keep(path, time, self.tree.root())
    }

    /// Sets the times of the directories.
    fn finish(self) -> Result<Counts, Error> {
        let Self { mut tree, times, counts, .. } = self;
        times.set(|path, time| {
            tree.next(path)?;
            match tree.find(path) {
                Ok(fd) => futimens(&fd, &stamps(time)).map_err(at("set the time of", path)),
                // The directory was replaced by a later entry.
                Err(Error::Write { source: Errno::NOENT | Errno::NOTDIR | Errno::LOOP, .. }) => Ok(()),
                Err(error) => Err(error),
            }
        })?;
        Ok(counts)
    }

    fn check_target(&self, entry: &Entry) -> Result<(), Error> {
        if entry.link.is_empty() || entry.link.contains(&0) {
            return Err(bad(entry, "an unusable link target"));
        }
        if entry.link.len() > self.limits.max_name {
            return Err(limit("the length of a link target", self.limits.max_name as u64));
        }
        Ok(())
    }
}

/// Returns the components of a name, without leading `/`, `.` and repeated slashes.
fn components<'a>(path: &'a [u8], base: &[&'a [u8]], limits: &Limits) -> Result<Vec<&'a [u8]>, Error> {
    let unsafe_path = |why| Err(Error::UnsafePath { path: show(path), why });
    if path.is_empty() {
        return unsafe_path("it is empty");
    }
    if path.len() > limits.max_name {
        return Err(limit("the length of a name", limits.max_name as u64));
    }
    if path.contains(&0) {
        return unsafe_path("it contains a NUL byte");
    }
    let own = path.split(|b| *b == b'/').filter(|n| !n.is_empty() && *n != b".");
    let names: Vec<_> = base.iter().copied().chain(own).collect();
    if names.contains(&&b".."[..]) {
        return unsafe_path("it contains a .. component");
    }
    if names.len() > limits.max_depth {
        return Err(limit("the depth of a name", limits.max_depth as u64));
    }
    Ok(names)
}

/// Writes the next `length` bytes of the stream to the file at `offset`.
fn write<R: BufRead>(
    fd: &OwnedFd,
    stream: &mut Stream<R>,
    mut offset: u64,
    length: u64,
    path: &[u8],
) -> Result<(), Error> {
    stream.copy(length, path, |mut piece| {
        while !piece.is_empty() {
            match pwrite(fd, piece, offset) {
                Ok(0) => return Err(at("write", path)(Errno::IO)),
                Ok(n) => {
                    piece = &piece[n..];
                    offset += n as u64;
                }
                Err(Errno::INTR) => {}
                Err(e) => return Err(at("write", path)(e)),
            }
        }
        Ok(())
    })
}

fn skip<R: BufRead>(entry: &Entry, stream: &mut Stream<R>) -> Result<(), Error> {
    Ok(stream.skip(entry.size, &entry.path)?)
}

fn owner(entry: &Entry) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))
}

/// Access time = modification time, so that the same archive gives the same tree.
fn stamps(time: Time) -> Timestamps {
    let spec = Timespec { tv_sec: time.sec, tv_nsec: time.nsec };
    Timestamps { last_access: spec, last_modification: spec }
}

fn bad(entry: &Entry, why: &str) -> Error {
    Error::Entry { path: show(&entry.path), why: why.into() }
}

fn limit(what: &str, limit: u64) -> Error {
    Error::Limit { what: what.into(), limit }
}
