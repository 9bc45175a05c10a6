//! The framing of a tar stream: headers, GNU and PAX extensions, sparse maps, data, the end.
//!
//! The framing is done here and not by the `tar` crate, because extension records must have a size limit before they are held
//! in memory, the xattrs in PAX records are binary, and the crate takes an empty field for a damaged one.

use std::io::BufRead;

use tar::{EntryType, GnuExtSparseHeader, Header};

use crate::error::{Error, show};
use crate::field::{number, text};
use crate::sparse::{Lines, Map, OldGnu, Records, Sparse, decimal};
use crate::xattr;

/// Limit of all extension records (long names, PAX headers) of one entry together, in bytes; Go's archive/tar applies
/// it to each record.
const MAX_EXTENSION: u64 = 1 << 20;
/// Limit of the extension records of all entries so far: a base amount, and a further amount for each entry.
/// Global records belong to no entry, and a stream could consist of them.
const MAX_EXTENSIONS: u64 = 64 << 20;
const MAX_EXTENSIONS_FOR_EACH: u64 = 4 << 10;
const BLOCK: usize = 512;

/// A byte stream that counts its position and has a length limit.
#[derive(Debug)]
pub struct Stream<R> {
    inner: R,
    offset: u64,
    budget: u64,
    /// See [`Stream::lenient`].
    lenient: bool,
    /// Remaining bytes for extension records.
    extensions: u64,
}

/// A point in time as in tar: seconds since 1970 and nanoseconds in 0..1_000_000_000.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Time {
    /// Seconds, negative before 1970.
    pub sec: i64,
    /// Additional nanoseconds.
    pub nsec: i64,
}

/// One entry, with its extensions applied. Its data follows in the stream.
#[derive(Debug)]
pub struct Entry {
    /// Type of the entry.
    pub kind: EntryType,
    /// The name, unchanged.
    pub path: Vec<u8>,
    /// The target of a link.
    pub link: Vec<u8>,
    /// Bytes of data that follow; 0 for everything but regular files.
    pub size: u64,
    /// The map of a sparse file; `None` if the data is the whole file.
    pub sparse: Option<Sparse>,
    /// The owner's uid, in 0..u32::MAX.
    pub uid: u32,
    /// The owner's gid, in 0..u32::MAX.
    pub gid: u32,
    /// Permission bits including setuid, setgid and sticky.
    pub mode: u32,
    /// Modification time.
    pub mtime: Time,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Names and values of extended attributes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Entry {
    /// Size of the file in bytes, holes included.
    #[must_use]
    pub fn real_size(&self) -> u64 {
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
    /// A stream that fails after `budget` bytes.
    pub fn new(inner: R, budget: u64) -> Self {
        Self { inner, offset: 0, budget, lenient: false, extensions: MAX_EXTENSIONS }
    }

    /// A stream that tolerates what GNU tar tolerates when the files get an owner of their own: invalid owners, and
    /// data after a single block of zeros.
    pub fn lenient(inner: R) -> Self {
        Self { lenient: true, ..Self::new(inner, u64::MAX) }
    }

    /// The source of the bytes, for a caller that takes data of an entry from there without a copy, and reports that
    /// with [`Stream::passed`].
    pub fn source(&mut self) -> &mut R {
        &mut self.inner
    }

    /// Records that `bytes` bytes of the stream were taken from its source.
    pub fn passed(&mut self, bytes: u64) {
        self.offset += bytes;
    }

    /// At most `want` bytes from the stream's own buffer; empty at the end of the stream.
    fn peek(&mut self, want: u64) -> Result<&[u8], Error> {
        if self.offset > self.budget {
            return Err(Error::Limit {
                what: "the unpacked size of the tar stream".into(),
                limit: self.budget,
            });
        }
        match self.inner.fill_buf() {
            Ok(buf) => Ok(&buf[..buf.len().min(usize::try_from(want).unwrap_or(usize::MAX))]),
            Err(source) => Err(Error::Read(source)),
        }
    }

    /// Passes exactly `size` bytes to `sink`, in pieces as they are buffered.
    ///
    /// # Errors
    /// The stream's, or the sink's.
    pub fn copy<E: From<Error>>(
        &mut self,
        size: u64,
        what: &[u8],
        mut sink: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut left = size;
        while left > 0 {
            let piece = self.peek(left)?;
            if piece.is_empty() {
                return Err(Error::Truncated { what: format!("tar stream (in {})", show(what)) }.into());
            }
            let n = piece.len();
            sink(piece)?;
            self.inner.consume(n);
            self.offset += n as u64;
            left -= n as u64;
        }
        Ok(())
    }

    /// Skips `size` bytes of data and their padding.
    ///
    /// # Errors
    /// The stream cannot be read, or ends.
    pub fn skip(&mut self, size: u64, what: &[u8]) -> Result<(), Error> {
        self.copy(size, what, |_| Ok::<_, Error>(()))?;
        self.pad(size, what)
    }

    /// Skips the padding after `size` bytes of data.
    ///
    /// # Errors
    /// The stream cannot be read, or ends.
    pub fn pad(&mut self, size: u64, what: &[u8]) -> Result<(), Error> {
        let rest = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
        self.copy(rest, what, |_| Ok(()))
    }

    /// Reads everything after the end of the archive, because the digest covers it. Returns the stream's length in
    /// bytes.
    ///
    /// # Errors
    /// The stream cannot be read, or is too long.
    pub fn drain(&mut self) -> Result<u64, Error> {
        loop {
            let n = self.peek(u64::MAX)?.len();
            if n == 0 {
                return Ok(self.offset);
            }
            self.inner.consume(n);
            self.offset += n as u64;
        }
    }

    /// Reads the next 512 bytes; `None` at a clean end of the stream.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, Error> {
        if self.peek(1)?.is_empty() {
            return Ok(None);
        }
        let mut block = [0; BLOCK];
        let mut at = 0;
        self.copy(BLOCK as u64, b"a header", |piece| {
            block[at..at + piece.len()].copy_from_slice(piece);
            at += piece.len();
            Ok::<_, Error>(())
        })?;
        Ok(Some(block))
    }

    /// Reads an extension record. `left` is the number of bytes that this entry's records may still have.
    fn extension(&mut self, size: u64, left: &mut u64) -> Result<Vec<u8>, Error> {
        *left = left.checked_sub(size).ok_or_else(|| Error::Limit {
            what: "the size of an entry's tar extension records".into(),
            limit: MAX_EXTENSION,
        })?;
        self.spend(size.saturating_add(BLOCK as u64))?;
        let mut data = Vec::new();
        self.copy(size, b"an extension record", |piece| {
            data.extend_from_slice(piece);
            Ok::<_, Error>(())
        })?;
        self.pad(size, b"an extension record")?;
        Ok(data)
    }

    /// Counts bytes of extension data against the limit of the stream.
    fn spend(&mut self, bytes: u64) -> Result<(), Error> {
        self.extensions = self.extensions.checked_sub(bytes).ok_or_else(|| Error::Limit {
            what: "the size of all tar extension records, beside 4096 bytes for each entry,".into(),
            limit: MAX_EXTENSIONS,
        })?;
        Ok(())
    }

    /// Reads the next entry; `None` at the end. `strict`: the end must be marked by a zero block, which only a stream
    /// that is verified by a digest may lack. The entry's data follows in the stream: the caller reads it, and skips
    /// the padding with [`Stream::pad`].
    ///
    /// # Errors
    /// The data is no entry, it exceeds a limit, or the stream cannot be read.
    pub fn next(&mut self, strict: bool) -> Result<Option<Entry>, Error> {
        let mut ext = Extensions::default();
        let mut extended = false;
        self.extensions = self.extensions.saturating_add(MAX_EXTENSIONS_FOR_EACH);
        let mut left = MAX_EXTENSION;
        loop {
            let at = self.offset;
            let block = match self.block() {
                // The stream is shorter than a header.
                Err(Error::Truncated { .. }) if at == 0 => return Err(Error::NoTar),
                block => block?,
            };
            let Some(block) = block else {
                if at == 0 {
                    return Err(corrupt(at, "it is empty"));
                }
                if strict || extended {
                    return Err(Error::NoEnd);
                }
                return Ok(None);
            };
            if block.iter().all(|b| *b == 0) {
                if extended {
                    return Err(corrupt(at, "an extension record without its entry"));
                }
                return match self.block()? {
                    Some(second) if second.iter().any(|b| *b != 0) && !self.lenient => {
                        Err(corrupt(at, "data after the end marker"))
                    }
                    _ => Ok(None),
                };
            }
            let header = Header::from_byte_slice(&block);
            if !checksum_fits(&block, header) {
                return Err(if at == 0 { Error::NoTar } else { corrupt(at, "not a tar header") });
            }
            let size = unsigned(&header.as_old().size, at)?;
            let kind = header.entry_type();
            extended = true;
            match kind {
                EntryType::GNULongName => ext.path = Some(until_nul(self.extension(size, &mut left)?)),
                EntryType::GNULongLink => ext.link = Some(until_nul(self.extension(size, &mut left)?)),
                // Solaris' tar uses X for the type.
                kind if kind == EntryType::XHeader || kind.as_byte() == b'X' => {
                    let data = self.extension(size, &mut left)?;
                    parse_pax(&data, &mut ext).ok_or_else(|| corrupt(at, "malformed PAX record"))?;
                }
                // Defaults for all later entries. Docker and containerd ignore them; ignoring them here gives the
                // same names.
                EntryType::XGlobalHeader => {
                    let mut own = MAX_EXTENSION;
                    self.extension(size, &mut own)?;
                    extended = false;
                }
                // A volume label is no file.
                kind if kind.as_byte() == b'V' => {
                    self.spend(BLOCK as u64)?;
                    self.skip(size, b"a volume's label")?;
                    extended = false;
                    ext = Extensions::default();
                }
                _ => {
                    let records = ext.sparse.take();
                    let mut entry = entry(header, kind, size, ext, at, !self.lenient)?;
                    // GNU tar's incremental backups: the list of names in a directory.
                    if kind.as_byte() == b'D' {
                        self.skip(entry.size, &entry.path)?;
                        (entry.kind, entry.size) = (EntryType::Directory, 0);
                    }
                    if kind == EntryType::GNUSparse {
                        self.old_sparse(&mut entry, header, at)?;
                    } else if let Some(records) = records {
                        self.pax_sparse(&mut entry, records)?;
                    }
                    return Ok(Some(entry));
                }
            }
        }
    }

    fn old_sparse(&mut self, entry: &mut Entry, header: &Header, at: u64) -> Result<(), Error> {
        let path = show(&entry.path);
        let error = |why: &str| Error::Entry { path: path.clone(), why: why.into() };
        // Star uses the same type but another place for the map; star and GNU tar write PAX's formats as well.
        let gnu = header.as_gnu().ok_or_else(|| {
            error("a sparse file in another format than GNU's and PAX's: write the archive with `tar --format=pax`")
        })?;
        let real = unsigned(&gnu.realsize, at)?;
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

    fn pax_sparse(&mut self, entry: &mut Entry, records: Records) -> Result<(), Error> {
        let path = show(records.name.as_deref().unwrap_or(&entry.path));
        let error = |why: &str| Error::Entry { path: path.clone(), why: why.into() };
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

/// Builds an entry from a header and the extension records that override it. Owners are 0 unless they are wanted.
fn entry(
    header: &Header,
    kind: EntryType,
    size: u64,
    ext: Extensions,
    at: u64,
    owners: bool,
) -> Result<Entry, Error> {
    let old = header.as_old();
    let path = ext.path.unwrap_or_else(|| name(header));
    let size = ext.size.unwrap_or(size);
    // Archives older than POSIX have no type for directories, and BSD's do not use it.
    let is_file = matches!(kind, EntryType::Regular | EntryType::Continuous);
    let old_dir = is_file && path.ends_with(b"/") && (header.as_bytes()[156] == 0 || size == 0);
    let kind = if old_dir { EntryType::Directory } else { kind };
    let id = |value: Option<u64>, field: &[u8], name: &str| {
        if !owners {
            return Ok(0);
        }
        let value = value.map_or_else(|| signed(field, at), |value| Ok(value.into()))?;
        // chown(2) takes the last value for "leave unchanged".
        match u32::try_from(value) {
            Ok(id) if id != u32::MAX => Ok(id),
            _ => Err(Error::Entry { path: show(&path), why: format!("{name} {value} is out of range") }),
        }
    };
    let (uid, gid) = (id(ext.uid, &old.uid, "uid")?, id(ext.gid, &old.gid, "gid")?);
    let is_device = kind.is_character_special() || kind.is_block_special();
    let device = match (header.as_bytes()[257..].starts_with(b"ustar"), header.as_bytes()) {
        (true, bytes) if is_device => {
            let part = |field| {
                u32::try_from(unsigned(field, at)?)
                    .map_err(|_| corrupt(at, "a device number is out of range"))
            };
            (part(&bytes[329..337])?, part(&bytes[337..345])?)
        }
        _ => (0, 0),
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
        None => {
            let sec = signed(&old.mtime, at)?.try_into();
            Time { sec: sec.map_err(|_| corrupt(at, "a time is out of range"))?, nsec: 0 }
        }
    };
    Ok(Entry {
        kind,
        link: ext.link.unwrap_or_else(|| text(&old.linkname).to_vec()),
        size: if has_data { size } else { 0 },
        sparse: None,
        uid,
        gid,
        mode: (signed(&old.mode, at)? & 0o7777) as u32,
        mtime,
        device,
        xattrs: ext.xattrs,
        path,
    })
}

/// The name in a header. Only POSIX and star have a prefix; GNU has another magic and other fields in its place.
fn name(header: &Header) -> Vec<u8> {
    let bytes = header.as_bytes();
    let (name, prefix) = (text(&bytes[..100]), text(&bytes[345..500]));
    if bytes[257..].starts_with(b"ustar\0") && !prefix.is_empty() {
        [prefix, b"/", name].concat()
    } else {
        name.to_vec()
    }
}

fn signed(field: &[u8], at: u64) -> Result<i128, Error> {
    number(field).ok_or_else(|| corrupt(at, "a header field is no number"))
}

fn unsigned(field: &[u8], at: u64) -> Result<u64, Error> {
    signed(field, at)?.try_into().map_err(|_| corrupt(at, "a header field is out of range"))
}

/// Old tars summed signed characters; both sums are accepted, as by other readers.
fn checksum_fits(block: &[u8; BLOCK], header: &Header) -> bool {
    let (mut plain, mut signed) = (0i64, 0i64);
    for (i, byte) in block.iter().enumerate() {
        let byte = if (148..156).contains(&i) { b' ' } else { *byte };
        plain += i64::from(byte);
        signed += i64::from(byte.cast_signed());
    }
    number(&header.as_old().cksum).is_some_and(|sum| sum == i128::from(plain) || sum == i128::from(signed))
}

fn until_nul(mut data: Vec<u8>) -> Vec<u8> {
    if let Some(end) = data.iter().position(|b| *b == 0) {
        data.truncate(end);
    }
    data
}

/// Parses records `<length> <key>=<value>\n`, whose length counts all of it (POSIX pax, "Extended Header").
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
            // Normally it repeats an attribute that is also there unencoded.
            ext.xattrs.push(xattr::libarchive(name, value)?);
            continue;
        }
        if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
            ext.sparse.get_or_insert_default().add(key, value)?;
            continue;
        }
        // An empty value cancels the record, so that the header's field counts.
        let value = Some(value).filter(|value| !value.is_empty());
        let number = || value.map_or(Some(None), |value| decimal(value).map(Some));
        match key {
            b"path" => ext.path = value.map(<[u8]>::to_vec),
            b"linkpath" => ext.link = value.map(<[u8]>::to_vec),
            b"size" => ext.size = number()?,
            b"uid" => ext.uid = number()?,
            b"gid" => ext.gid = number()?,
            b"mtime" => ext.mtime = value.map_or(Some(None), |value| time(value).map(Some))?,
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
