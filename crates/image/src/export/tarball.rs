//! Writes a tree as a tar stream: POSIX ustar headers, and a PAX record for whatever does not fit in one.

use std::io::{self, Write};

use rustix::fs::{FileType, major, minor};
use tar::{EntryType, Header};

use super::walk::{Content, Item, Meter, Sink};
use crate::error::{Error, show};
use crate::format::stream::Time;
use crate::overlay::whiteout::{OPAQUE, WHITEOUT};

/// The write size in bytes.
pub(super) const BUFFER: usize = 256 << 10;
const BLOCK: u64 = 512;
/// Limits of the octal fields: 7 digits for ids and device numbers, 11 for sizes and times.
const MAX_SMALL: u64 = 0o7_777_777;
const MAX_LARGE: u64 = 0o77_777_777_777;
/// The maximum length of a name or link target in the header, in bytes.
const MAX_NAME: usize = 100;

/// The fields of a header.
pub(super) struct Head<'a> {
    pub(super) kind: EntryType,
    pub(super) path: &'a [u8],
    pub(super) link: &'a [u8],
    pub(super) size: u64,
    pub(super) mode: u32,
    pub(super) owner: (u32, u32),
    pub(super) mtime: Time,
    pub(super) device: (u32, u32),
    pub(super) xattrs: &'a [(Vec<u8>, Vec<u8>)],
    /// The real size of a sparse file, whose data begins with a map of its holes.
    pub(super) real: Option<u64>,
}

impl<'a> Head<'a> {
    /// Returns a header owned by root and dated 1970, so that the result is reproducible.
    pub(super) fn plain(kind: EntryType, path: &'a [u8], size: u64, mode: u32) -> Self {
        let (owner, device) = ((0, 0), (0, 0));
        Self {
            kind,
            path,
            link: b"",
            size,
            mode,
            owner,
            mtime: Time::default(),
            device,
            xattrs: &[],
            real: None,
        }
    }

    /// Encodes a single header block, for a short name. A size beyond the octal digits is written in GNU's binary
    /// form.
    pub(super) fn one_block(&self) -> [u8; BLOCK as usize] {
        let mut block = [0; BLOCK as usize];
        let mut header = Header::new_ustar();
        header.as_mut_bytes()[..self.path.len()].copy_from_slice(self.path);
        header.set_entry_type(self.kind);
        header.set_size(self.size);
        header.set_mode(self.mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_cksum();
        block.copy_from_slice(header.as_bytes());
        block
    }

    /// Encodes the blocks in front of the data.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut records = Vec::new();
        let mut header = Header::new_ustar();
        let mut number = |key: &str, value: u64, max: u64| {
            if value <= max {
                return value;
            }
            record(&mut records, key.as_bytes(), value.to_string().as_bytes());
            0
        };
        header.set_size(number("size", self.size, MAX_LARGE));
        header.set_uid(number("uid", self.owner.0.into(), MAX_SMALL));
        header.set_gid(number("gid", self.owner.1.into(), MAX_SMALL));
        match u64::try_from(self.mtime.sec) {
            Ok(sec) if sec <= MAX_LARGE && self.mtime.nsec == 0 => header.set_mtime(sec),
            sec => {
                header.set_mtime(sec.unwrap_or(0).min(MAX_LARGE));
                record(&mut records, b"mtime", seconds(self.mtime).as_bytes());
            }
        }
        header.set_entry_type(self.kind);
        header.set_mode(self.mode);
        let bytes = header.as_mut_bytes();
        for (key, value, at) in [(&b"path"[..], self.path, 0), (b"linkpath", self.link, 157)] {
            let kept = value.len().min(MAX_NAME);
            bytes[at..at + kept].copy_from_slice(&value[..kept]);
            if kept < value.len() {
                record(&mut records, key, value);
            }
        }
        if matches!(self.kind, EntryType::Char | EntryType::Block) {
            // Cannot fail: a ustar header has these fields.
            let _ = header.set_device_major(self.device.0);
            let _ = header.set_device_minor(self.device.1);
        }
        header.set_cksum();
        for (name, value) in self.xattrs {
            record(&mut records, &[b"SCHILY.xattr.", &**name].concat(), value);
        }
        if let Some(real) = self.real {
            record(&mut records, b"GNU.sparse.major", b"1");
            record(&mut records, b"GNU.sparse.minor", b"0");
            record(&mut records, b"GNU.sparse.realsize", real.to_string().as_bytes());
        }
        let mut blocks = Vec::new();
        if !records.is_empty() {
            let mut extension = Header::new_ustar();
            let name = b"PaxHeaders.0/entry";
            extension.as_mut_bytes()[..name.len()].copy_from_slice(name);
            extension.set_entry_type(EntryType::XHeader);
            extension.set_size(records.len() as u64);
            extension.set_mode(0o644);
            extension.set_uid(0);
            extension.set_gid(0);
            extension.set_mtime(0);
            extension.set_cksum();
            blocks.extend_from_slice(extension.as_bytes());
            blocks.extend_from_slice(&records);
            blocks.extend_from_slice(padding(records.len() as u64));
        }
        blocks.extend_from_slice(header.as_bytes());
        blocks
    }
}

/// Returns the padding that fills the last block of `size` bytes.
pub(super) fn padding(size: u64) -> &'static [u8] {
    const ZEROS: [u8; BLOCK as usize] = [0; BLOCK as usize];
    // The cast is safe: less than a block.
    &ZEROS[..((BLOCK - size % BLOCK) % BLOCK) as usize]
}

/// The end marker of an archive.
pub(super) const END: [u8; 1024] = [0; 1024];

/// `<length> <key>=<value>\n`, the length counting its own digits, too.
fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(length.to_string().as_bytes());
    for part in [b" ", key, b"=", value, b"\n"] {
        records.extend_from_slice(part);
    }
}

/// Formats a time as decimal seconds. Before 1970 the number is negative as a whole, while the kernel counts
/// nanoseconds upwards from the second below.
fn seconds(Time { sec, nsec }: Time) -> String {
    let (sign, sec, nsec) = match (sec < 0, nsec) {
        (true, 1..) => ("-", (sec + 1).unsigned_abs(), 1_000_000_000 - nsec),
        (negative, nsec) => (if negative { "-" } else { "" }, sec.unsigned_abs(), nsec),
    };
    let text = format!("{sign}{sec}.{nsec:09}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Writes to a file whose path is named in every error.
pub(super) struct Named<'a, W> {
    pub(super) inner: W,
    pub(super) path: &'a str,
}

impl<W: Write> Named<'_, W> {
    pub(super) fn put(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.inner.write_all(bytes).map_err(|e| failed(self.path, e))
    }
}

pub(super) fn failed(path: &str, source: io::Error) -> Error {
    Error::Io { op: "write", path: path.into(), source }
}

/// Writes a tree as entries; the caller writes the end marker.
pub(super) struct Tarball<'a, W> {
    pub(super) to: Named<'a, W>,
    /// Whether holes of files stay holes.
    sparse: bool,
}

/// Returns the map of a sparse file (GNU tar manual, "PAX Format, Version 1.0"), padded to whole blocks.
fn map_of(parts: &[(u64, u64)]) -> Vec<u8> {
    let mut map = format!("{}\n", parts.len()).into_bytes();
    for (offset, length) in parts {
        map.extend_from_slice(format!("{offset}\n{length}\n").as_bytes());
    }
    map.extend_from_slice(padding(map.len() as u64));
    map
}

impl<'a, W: Write> Tarball<'a, W> {
    pub(super) fn new(to: Named<'a, W>) -> Self {
        Self { to, sparse: false }
    }

    /// Keeps holes, for readers of GNU tar's sparse format, which not every tool supports.
    pub(super) fn sparse(to: Named<'a, W>) -> Self {
        Self { to, sparse: true }
    }

    fn mark(&mut self, path: &[u8]) -> Result<(), Error> {
        // A fixed time, because a whiteout on disk has the time of its unpacking, which would change the digest.
        self.to.put(&Head::plain(EntryType::Regular, path, 0, 0o600).encode())
    }
}

impl<W: Write> Sink for Tarball<'_, W> {
    fn entry(&mut self, item: &Item<'_>, meter: &mut Meter<'_>) -> Result<(), Error> {
        let bad = |why: &str| Error::Entry { path: show(item.path), why: why.into() };
        let (above, name) = split(item.path);
        if name.starts_with(WHITEOUT) {
            return Err(bad("a name that starts with .wh. means a deletion in an archive"));
        }
        let mut path = item.path.to_vec();
        let mut head = Head::plain(EntryType::Regular, b"", 0, item.mode());
        head.owner = (item.stat.st_uid, item.stat.st_gid);
        head.mtime = item.mtime();
        head.xattrs = &item.xattrs;
        match &item.content {
            Content::Directory => {
                head.kind = EntryType::Directory;
                path.extend_from_slice(if above.is_empty() && name.is_empty() { b"./" } else { b"/" });
            }
            Content::File(_) => head.size = item.stat.st_size.cast_unsigned(),
            Content::Symlink(target) => (head.kind, head.link) = (EntryType::Symlink, target),
            Content::Link(first) => (head.kind, head.link) = (EntryType::Link, first),
            Content::Node => {
                head.kind = match FileType::from_raw_mode(item.stat.st_mode) {
                    FileType::CharacterDevice => EntryType::Char,
                    FileType::BlockDevice => EntryType::Block,
                    _ => EntryType::Fifo,
                };
                head.device = (major(item.stat.st_rdev), minor(item.stat.st_rdev));
                if u64::from(head.device.0.max(head.device.1)) > MAX_SMALL {
                    return Err(bad("its device number is too large for an archive"));
                }
            }
        }
        head.path = &path;
        let Content::File(file) = &item.content else { return self.to.put(&head.encode()) };
        if let Some(parts) = if self.sparse { item.parts(file, meter)? } else { None } {
            let map = map_of(&parts);
            head.real = Some(head.size);
            head.size = map.len() as u64 + parts.iter().map(|(_, length)| length).sum::<u64>();
            self.to.put(&head.encode())?;
            self.to.put(&map)?;
            for part in parts {
                item.copy_part(file, part, meter, |piece| self.to.put(piece))?;
            }
        } else {
            self.to.put(&head.encode())?;
            item.copy(file, meter, |piece| self.to.put(piece))?;
        }
        self.to.put(padding(head.size))
    }

    fn leave(&mut self) -> Result<(), Error> {
        Ok(())
    }

    fn whiteout(&mut self, path: &[u8]) -> Result<(), Error> {
        let (above, name) = split(path);
        self.mark(&[above, WHITEOUT, name].concat())
    }

    fn opaque(&mut self, path: &[u8]) -> Result<(), Error> {
        let slash: &[u8] = if path.is_empty() { b"" } else { b"/" };
        self.mark(&[path, slash, OPAQUE].concat())
    }
}

/// Splits a path into the directory, with its slash, and the last name.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    path.split_at(path.iter().rposition(|b| *b == b'/').map_or(0, |slash| slash + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        for (sec, nsec, text) in [
            (0, 0, "0"),
            (100, 0, "100"),
            (1, 500_000_000, "1.5"),
            (0, 1, "0.000000001"),
            (-1, 0, "-1"),
            (-2, 750_000_000, "-1.25"),
            (-1, 750_000_000, "-0.25"),
            (i64::MIN, 1, "-9223372036854775807.999999999"),
        ] {
            assert_eq!(seconds(Time { sec, nsec }), text);
        }
    }

    /// The length of a record counts its own digits.
    #[test]
    fn records() {
        for (key, value, length) in [(1, 1, "6"), (1, 4, "9"), (1, 5, "11"), (1, 92, "98"), (1, 94, "101")] {
            let mut bytes = Vec::new();
            record(&mut bytes, &vec![b'k'; key], &vec![b'v'; value]);
            assert_eq!(bytes.len().to_string(), length);
            assert!(bytes.starts_with(format!("{length} k=v").as_bytes()), "{length}");
        }
    }

    #[test]
    fn large_sizes() {
        for size in [0, MAX_LARGE, MAX_LARGE + 1, 1 << 60] {
            let head = Head::plain(EntryType::Regular, b"x", size, 0o644);
            assert_eq!(Header::from_byte_slice(&head.one_block()).entry_size().unwrap(), size);
            let blocks = head.encode();
            assert_eq!(blocks.len() > 512, size > MAX_LARGE);
            let entry =
                crate::format::stream::Stream::new(&blocks[..], u64::MAX).next(false).unwrap().unwrap();
            assert_eq!(entry.size, size);
        }
    }
}
