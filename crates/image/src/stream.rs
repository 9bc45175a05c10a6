//! The framing of a tar stream: headers, GNU and PAX extensions, sparse maps, data, the end.
//!
//! The `tar` crate decodes the header fields; the framing is done here, because extension records must have a size
//! limit before they are held in memory, and the xattrs in PAX records are binary.

use std::io::{self, BufRead};

use tar::{EntryType, GnuExtSparseHeader, Header};

use crate::budget::Meter;
use crate::error::{Error, show};
use crate::sparse::{Lines, Map, OldGnu, Records, Sparse, decimal};
use crate::xattr;

/// Upper limit of the extension records (long names, PAX headers) of one entry together, in bytes; Go's archive/tar has
/// it for each.
const MAX_EXTENSION: u64 = 1 << 20;
/// Upper limit of the extension records of all entries so far: so many bytes, and so many more for each entry. Global
/// records belong to no entry, and a stream could consist of them.
const MAX_EXTENSIONS: u64 = 64 << 20;
const MAX_EXTENSIONS_FOR_EACH: u64 = 4 << 10;
const BLOCK: usize = 512;

/// A byte stream that knows where it is and how far it may go.
pub(crate) struct Stream<R> {
    inner: R,
    offset: u64,
    budget: u64,
    /// Counts the bytes for an image, and where in the stream it wants to be asked.
    meter: Option<Meter>,
    metered: u64,
    /// Bytes that extension records may still have.
    extensions: u64,
}

/// A point in time as tar has it: seconds since 1970 and nanoseconds in 0..1_000_000_000.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Time {
    pub(crate) sec: i64,
    pub(crate) nsec: i64,
}

/// One entry, with its extensions applied. Its data follows in the stream.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) kind: EntryType,
    pub(crate) path: Vec<u8>,
    pub(crate) link: Vec<u8>,
    /// Bytes of data that follow; 0 for everything but files.
    pub(crate) size: u64,
    /// Where in the file the data belongs, unless it is the whole file.
    pub(crate) sparse: Option<Sparse>,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Permission bits including setuid, setgid and sticky.
    pub(crate) mode: u32,
    pub(crate) mtime: Time,
    pub(crate) device: (u32, u32),
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Entry {
    /// Bytes of the file, holes included.
    pub(crate) fn real_size(&self) -> u64 {
        self.sparse.as_ref().map_or(self.size, |sparse| sparse.real)
    }
}

#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<Time>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    sparse: Option<Records>,
}

impl<R: BufRead> Stream<R> {
    /// `budget` is the number of bytes after which the stream is refused.
    pub(crate) fn new(inner: R, budget: u64) -> Self {
        Self { inner, offset: 0, budget, meter: None, metered: u64::MAX, extensions: MAX_EXTENSIONS }
    }

    /// One that is counted for its image.
    pub(crate) fn metered(inner: R, budget: u64, meter: Meter) -> Self {
        Self { metered: meter.next, meter: Some(meter), ..Self::new(inner, budget) }
    }

    /// At most `want` bytes from the stream's own buffer, empty at its end.
    fn peek(&mut self, want: u64) -> Result<&[u8], Error> {
        if self.offset > self.budget {
            return Err(Error::Limit {
                what: "the unpacked size of the tar stream".into(),
                limit: self.budget,
            });
        }
        if self.offset >= self.metered
            && let Some(meter) = &mut self.meter
        {
            meter.count(self.offset)?;
            self.metered = meter.next;
        }
        match self.inner.fill_buf() {
            Ok(buf) => Ok(&buf[..buf.len().min(usize::try_from(want).unwrap_or(usize::MAX))]),
            Err(source) => Err(stream_error("tar stream", source)),
        }
    }

    /// Gives exactly `size` bytes to `sink`, in pieces as large as the stream has them.
    pub(crate) fn copy(
        &mut self,
        size: u64,
        what: &[u8],
        mut sink: impl FnMut(&[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut left = size;
        while left > 0 {
            let piece = self.peek(left)?;
            if piece.is_empty() {
                return Err(Error::Truncated { what: format!("tar stream (in {})", show(what)) });
            }
            let n = piece.len();
            sink(piece)?;
            self.inner.consume(n);
            self.offset += n as u64;
            left -= n as u64;
        }
        Ok(())
    }

    /// Skips to the next block after `size` bytes of data.
    pub(crate) fn pad(&mut self, size: u64, what: &[u8]) -> Result<(), Error> {
        let rest = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
        self.copy(rest, what, |_| Ok(()))
    }

    /// Reads all that follows the end of the archive: the digest covers it. Gives the stream's length in bytes.
    pub(crate) fn drain(&mut self) -> Result<u64, Error> {
        loop {
            let n = self.peek(u64::MAX)?.len();
            if n == 0 {
                self.meter.as_mut().map_or(Ok(()), |meter| meter.count(self.offset))?;
                return Ok(self.offset);
            }
            self.inner.consume(n);
            self.offset += n as u64;
        }
    }

    /// The next 512 bytes; none at a clean end of the stream.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, Error> {
        if self.peek(1)?.is_empty() {
            return Ok(None);
        }
        let mut block = [0; BLOCK];
        let mut at = 0;
        self.copy(BLOCK as u64, b"a header", |piece| {
            block[at..at + piece.len()].copy_from_slice(piece);
            at += piece.len();
            Ok(())
        })?;
        Ok(Some(block))
    }

    /// `left` is how many bytes this entry's records may still have.
    fn extension(&mut self, size: u64, left: &mut u64) -> Result<Vec<u8>, Error> {
        *left = left.checked_sub(size).ok_or_else(|| Error::Limit {
            what: "the size of an entry's tar extension records".into(),
            limit: MAX_EXTENSION,
        })?;
        self.spend(size.saturating_add(BLOCK as u64))?;
        let mut data = Vec::new();
        self.copy(size, b"an extension record", |piece| {
            data.extend_from_slice(piece);
            Ok(())
        })?;
        self.pad(size, b"an extension record")?;
        Ok(data)
    }

    /// Takes bytes for what describes entries beyond their headers.
    fn spend(&mut self, bytes: u64) -> Result<(), Error> {
        self.extensions = self.extensions.checked_sub(bytes).ok_or_else(|| Error::Limit {
            what: "the size of all tar extension records, beside 4096 bytes for each entry,".into(),
            limit: MAX_EXTENSIONS,
        })?;
        Ok(())
    }

    /// The next entry, or none at the end. `strict`: the end must be marked by a zero block, which only a stream that
    /// is verified by a digest may lack.
    pub(crate) fn next(&mut self, strict: bool) -> Result<Option<Entry>, Error> {
        let mut ext = Extensions::default();
        let mut extended = false;
        self.extensions = self.extensions.saturating_add(MAX_EXTENSIONS_FOR_EACH);
        let mut left = MAX_EXTENSION;
        loop {
            let at = self.offset;
            let Some(block) = self.block()? else {
                if at == 0 {
                    return Err(corrupt(at, "it is empty"));
                }
                if strict || extended {
                    return Err(Error::Truncated { what: "tar stream (no end of archive)".into() });
                }
                return Ok(None);
            };
            if block.iter().all(|b| *b == 0) {
                if extended {
                    return Err(corrupt(at, "an extension record without its entry"));
                }
                return match self.block()? {
                    Some(second) if second.iter().any(|b| *b != 0) => {
                        Err(corrupt(at, "data after the end marker"))
                    }
                    _ => Ok(None),
                };
            }
            let header = Header::from_byte_slice(&block);
            if !checksum_fits(&block, header) {
                return Err(corrupt(at, "not a tar header"));
            }
            let number =
                |field: io::Result<u64>| field.map_err(|_| corrupt(at, "a header field is no number"));
            let size = number(header.entry_size())?;
            let kind = header.entry_type();
            extended = true;
            match kind {
                EntryType::GNULongName => ext.path = Some(until_nul(self.extension(size, &mut left)?)),
                EntryType::GNULongLink => ext.link = Some(until_nul(self.extension(size, &mut left)?)),
                EntryType::XHeader => {
                    let data = self.extension(size, &mut left)?;
                    parse_pax(&data, &mut ext).ok_or_else(|| corrupt(at, "malformed PAX record"))?;
                }
                // Defaults for all later entries. Docker and containerd ignore them, so we see the same names.
                EntryType::XGlobalHeader => {
                    let mut own = MAX_EXTENSION;
                    self.extension(size, &mut own)?;
                    extended = false;
                }
                _ => {
                    let records = ext.sparse.take();
                    let mut entry = entry(header, kind, size, ext, at)?;
                    if kind == EntryType::GNUSparse {
                        self.old_sparse(&mut entry, header, at)?;
                    } else if let Some(records) = records {
                        self.pax_sparse(&mut entry, records, at)?;
                    }
                    return Ok(Some(entry));
                }
            }
        }
    }

    fn old_sparse(&mut self, entry: &mut Entry, header: &Header, at: u64) -> Result<(), Error> {
        let error = |why| corrupt(at, why);
        let gnu = header.as_gnu().ok_or_else(|| error("a sparse file in another format than GNU's"))?;
        let real = gnu.real_size().map_err(|_| error("a header field is no number"))?;
        let mut map = OldGnu::default();
        map.add(&gnu.sparse).map_err(error)?;
        let mut more = gnu.is_extended();
        while more {
            self.spend(BLOCK as u64)?;
            let mut extension = GnuExtSparseHeader::new();
            *extension.as_mut_bytes() = self
                .block()?
                .ok_or_else(|| Error::Truncated { what: "tar stream (in a sparse map)".into() })?;
            map.add(extension.sparse()).map_err(error)?;
            more = extension.is_extended();
        }
        entry.kind = EntryType::Regular;
        entry.sparse = Some(Sparse::new(real, map.0, entry.size).map_err(error)?);
        Ok(())
    }

    fn pax_sparse(&mut self, entry: &mut Entry, records: Records, at: u64) -> Result<(), Error> {
        let error = |why| corrupt(at, why);
        if !matches!(entry.kind, EntryType::Regular | EntryType::Continuous) {
            return Err(error("a sparse map of no file"));
        }
        let real = records.real.ok_or_else(|| error("a sparse file without its size"))?;
        let map = match records.map().map_err(error)? {
            Map::Here(map) => map,
            Map::BeforeData => {
                let mut lines = Lines::default();
                loop {
                    entry.size = entry
                        .size
                        .checked_sub(BLOCK as u64)
                        .ok_or_else(|| error("a sparse map that does not end"))?;
                    self.spend(BLOCK as u64)?;
                    let block = self
                        .block()?
                        .ok_or_else(|| Error::Truncated { what: "tar stream (in a sparse map)".into() })?;
                    if let Some(map) = lines.add(&block).map_err(error)? {
                        break map;
                    }
                }
            }
        };
        entry.sparse = Some(Sparse::new(real, map, entry.size).map_err(error)?);
        if let Some(name) = records.name {
            entry.path = name;
        }
        Ok(())
    }
}

fn entry(header: &Header, kind: EntryType, size: u64, ext: Extensions, at: u64) -> Result<Entry, Error> {
    let number = |field: io::Result<u64>| field.map_err(|_| corrupt(at, "a header field is no number"));
    let path = ext.path.unwrap_or_else(|| header.path_bytes().into_owned());
    // Pre-POSIX archives have no type for a directory.
    let old_dir = header.as_bytes()[156] == 0 && path.ends_with(b"/");
    let kind = if old_dir { EntryType::Directory } else { kind };
    let id = |value: Option<u64>, field: io::Result<u64>, name: &str| {
        let value = value.map_or_else(|| number(field), Ok)?;
        // The last value means "leave it" to chown(2).
        match u32::try_from(value) {
            Ok(id) if id != u32::MAX => Ok(id),
            _ => Err(Error::Entry { path: show(&path), why: format!("{name} {value} is out of range") }),
        }
    };
    let device = if kind.is_character_special() || kind.is_block_special() {
        let part = |field: io::Result<Option<u32>>| {
            field.map(Option::unwrap_or_default).map_err(|_| corrupt(at, "a device number is no number"))
        };
        (part(header.device_major())?, part(header.device_minor())?)
    } else {
        (0, 0)
    };
    let has_data = !matches!(
        kind,
        EntryType::Link
            | EntryType::Symlink
            | EntryType::Char
            | EntryType::Block
            | EntryType::Directory
            | EntryType::Fifo
    );
    let mtime = match ext.mtime {
        Some(time) => time,
        // Base-256 fields may be negative: the crate keeps the bit pattern.
        None => Time { sec: number(header.mtime())?.cast_signed(), nsec: 0 },
    };
    Ok(Entry {
        kind,
        link: ext.link.unwrap_or_else(|| header.link_name_bytes().unwrap_or_default().into_owned()),
        size: if has_data { ext.size.unwrap_or(size) } else { 0 },
        sparse: None,
        uid: id(ext.uid, header.uid(), "uid")?,
        gid: id(ext.gid, header.gid(), "gid")?,
        mode: header.mode().map_err(|_| corrupt(at, "the mode is no number"))? & 0o7777,
        mtime,
        device,
        xattrs: ext.xattrs,
        path,
    })
}

/// Old tars summed signed characters; both sums are accepted, as everywhere.
fn checksum_fits(block: &[u8; BLOCK], header: &Header) -> bool {
    let (mut plain, mut signed) = (0i64, 0i64);
    for (i, byte) in block.iter().enumerate() {
        let byte = if (148..156).contains(&i) { b' ' } else { *byte };
        plain += i64::from(byte);
        signed += i64::from(byte.cast_signed());
    }
    header.cksum().is_ok_and(|sum| i64::from(sum) == plain || i64::from(sum) == signed)
}

fn until_nul(mut data: Vec<u8>) -> Vec<u8> {
    if let Some(end) = data.iter().position(|b| *b == 0) {
        data.truncate(end);
    }
    data
}

/// Records are `<length> <key>=<value>\n`, the length counting all of it (POSIX pax, "Extended Header").
fn parse_pax(mut data: &[u8], ext: &mut Extensions) -> Option<()> {
    while !data.is_empty() {
        let space = data.iter().take(20).position(|b| *b == b' ')?;
        let length: usize = decimal(&data[..space])?.try_into().ok()?;
        let record = data.get(space + 1..length)?.strip_suffix(b"\n")?;
        data = &data[length..];
        let equals = record.iter().position(|b| *b == b'=')?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            ext.xattrs.push((name.to_vec(), value.to_vec()));
            continue;
        }
        if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
            // Normally a repetition of what is there in plain.
            ext.xattrs.push(xattr::libarchive(name, value)?);
            continue;
        }
        if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
            ext.sparse.get_or_insert_default().add(key, value)?;
            continue;
        }
        if value.is_empty() {
            continue; // an empty value takes the record back; the header's field counts
        }
        match key {
            b"path" => ext.path = Some(value.to_vec()),
            b"linkpath" => ext.link = Some(value.to_vec()),
            b"size" => ext.size = Some(decimal(value)?),
            b"uid" => ext.uid = Some(decimal(value)?),
            b"gid" => ext.gid = Some(decimal(value)?),
            b"mtime" => ext.mtime = Some(time(value)?),
            _ => {}
        }
    }
    Some(())
}

/// `[-]seconds[.fraction]`
fn time(text: &[u8]) -> Option<Time> {
    let (negative, text) = text.strip_prefix(b"-").map_or((false, text), |rest| (true, rest));
    let dot = text.iter().position(|b| *b == b'.').unwrap_or(text.len());
    let sec = i64::try_from(decimal(&text[..dot])?).ok()?;
    let fraction = text.get(dot + 1..).unwrap_or_default();
    let mut nsec = 0;
    for i in 0..9 {
        let digit = fraction.get(i).copied().unwrap_or(b'0');
        if !digit.is_ascii_digit() {
            return None;
        }
        nsec = nsec * 10 + i64::from(digit - b'0');
    }
    Some(match (negative, nsec) {
        (false, _) => Time { sec, nsec },
        (true, 0) => Time { sec: -sec, nsec },
        (true, _) => Time { sec: -sec - 1, nsec: 1_000_000_000 - nsec },
    })
}

fn corrupt(at: u64, why: &str) -> Error {
    Error::Corrupt { what: format!("tar stream at byte {at}"), why: why.into() }
}

/// What an error of a reader or decoder means for `what`.
pub(crate) fn stream_error(what: &str, source: io::Error) -> Error {
    let source = match source.downcast::<Error>() {
        Ok(error) => return error,
        Err(source) => source,
    };
    if source.raw_os_error().is_some() {
        return Error::Io { op: "read", path: what.into(), source };
    }
    match source.kind() {
        io::ErrorKind::UnexpectedEof => Error::Truncated { what: what.into() },
        // The text of libzstd's `ZSTD_error_frameParameter_windowTooLarge`: the binding gives no number.
        _ if source.to_string().contains("requires too much memory") => Error::Window { what: what.into() },
        _ => Error::Corrupt { what: what.into(), why: source.to_string() },
    }
}
