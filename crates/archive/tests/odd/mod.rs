//! Odd but legal tars, made from a seed, and what to compare two trees by. Several crates' tests include this file.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// One archive.
pub struct Odd {
    pub tar: Vec<u8>,
    /// Names that have an entry. Directories that no entry names have the time of their making.
    pub named: Vec<Vec<u8>>,
    /// What it consists of, for whoever reads a failure.
    pub story: String,
}

/// The tools' families of headers.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Format {
    V7,
    Ustar,
    Gnu,
    Pax,
    Star,
}

/// splitmix64
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }
}

struct Maker {
    dice: Dice,
    format: Format,
    odd: Odd,
}

/// Fields of one header.
#[derive(Default)]
struct Fields {
    kind: u8,
    name: Vec<u8>,
    link: Vec<u8>,
    mode: u64,
    uid: u64,
    gid: u64,
    mtime: i64,
    device: Option<(u64, u64)>,
    data: Vec<u8>,
    records: Vec<(String, Vec<u8>)>,
    /// The map of a sparse file in GNU's old format.
    sparse: Option<Holes>,
}

/// A file with holes.
#[derive(Debug)]
struct Holes {
    /// Offset and length of what is no hole.
    segments: Vec<(u64, u64)>,
    /// Bytes of the file.
    real: u64,
}

/// Makes an archive. Without `devices` it has none, for a user who may not make them.
pub fn archive(seed: u64, devices: bool) -> Odd {
    let formats = [Format::V7, Format::Ustar, Format::Gnu, Format::Pax, Format::Star];
    let format = formats[(seed % 5) as usize];
    let odd = Odd { tar: Vec::new(), named: Vec::new(), story: format!("seed {seed}, {format:?}\n") };
    let mut maker = Maker { dice: Dice(seed), format, odd };
    maker.label();
    maker.long(95 + (seed / 5 % 166) as usize);
    for n in 0..6 + maker.dice.below(10) {
        maker.some(n, devices);
    }
    maker.again();
    maker.odd.tar.resize(maker.odd.tar.len() + 1024, 0);
    maker.odd
}

impl Maker {
    fn fields(&mut self, kind: u8, name: Vec<u8>) -> Fields {
        let mode = self.dice.one(&[0, 0o400, 0o644, 0o755, 0o600, 0o777, 0o4755, 0o2755]);
        let uid = self.dice.one(&[0, 1, 1000, 65534, 2_097_151, 2_097_152, 4_000_000_000]);
        let gid = self.dice.one(&[0, 5, 1000, 65534, 2_097_151]);
        let mtime = self.dice.one(&[0, 1, 1_000_000_000, 1_700_000_001, 0x1_2345_6789, -1, -100_000]);
        Fields { kind, name, mode, uid, gid, mtime, ..Fields::default() }
    }

    /// GNU's volume label is no file.
    fn label(&mut self) {
        if self.format == Format::Gnu && self.dice.below(3) == 0 {
            let fields = Fields { kind: b'V', name: b"a volume".to_vec(), ..Fields::default() };
            self.put(&fields);
        }
    }

    /// A name of that length, in components that a prefix can be cut off at.
    fn long(&mut self, length: usize) {
        let first = 1 + self.dice.below(90) as usize;
        let mut name = vec![b'p'; first];
        while name.len() < length {
            let part = ((length - name.len()).min(100)) as u64;
            let part = if part < 3 { part } else { 2 + self.dice.below(part - 1) } as usize;
            if part > 1 && length - name.len() > 1 {
                name.push(b'/');
            }
            let left = length - name.len();
            name.resize(name.len() + left.min(part.max(2) - 1), b'a' + (name.len() % 20) as u8);
        }
        let fields = self.fields(b'0', name);
        self.put(&Fields { data: b"long".to_vec(), ..fields });
    }

    fn some(&mut self, n: u64, devices: bool) {
        let name = if self.dice.below(4) == 0 { format!("d{n}/né{n}") } else { format!("e{n}") }.into_bytes();
        let size = self.dice.one(&[0, 1, 511, 512, 513, 100_000]);
        let data: Vec<u8> = (0..size).map(|i| (i as u64 * 31 + n) as u8).collect();
        let kinds = b"0075126";
        let mut kind = self.dice.one(kinds);
        if self.dice.below(5) == 0 {
            kind = self.dice.one(b"SD34x");
        }
        let modern = matches!(self.format, Format::Gnu | Format::Pax | Format::Star);
        match kind {
            b'0' | b'7' => {
                let kind = if self.format == Format::V7 || self.dice.below(3) == 0 { 0 } else { kind };
                let fields = self.fields(kind, name);
                self.put(&Fields { data, ..fields });
            }
            b'5' => {
                let old = self.format == Format::V7;
                let slash: &[u8] = if old || self.dice.below(2) == 0 { b"/" } else { b"" };
                let path = [&name, slash].concat();
                let fields = self.fields(if old { 0 } else { b'5' }, path);
                self.put(&fields);
                if self.dice.below(2) == 0 {
                    let fields = self.fields(b'0', [&name[..], b"/in"].concat());
                    self.put(&Fields { data, ..fields });
                }
            }
            b'1' => {
                let target = [&name[..], b"-target"].concat();
                let fields = self.fields(b'0', target.clone());
                self.put(&Fields { data, ..fields });
                let fields = self.fields(b'1', name);
                self.put(&Fields { link: target, ..fields });
            }
            b'2' => {
                let longest = if modern { 260 } else { 100 };
                let length = 1 + self.dice.below(longest) as usize;
                let link = (0..length).map(|i| if i % 50 == 49 { b'/' } else { b'l' }).collect();
                let fields = self.fields(b'2', name);
                self.put(&Fields { link, ..fields });
            }
            b'6' if self.format != Format::V7 => {
                let fields = self.fields(b'6', name);
                self.put(&fields);
            }
            b'3' | b'4' if devices && self.format != Format::V7 => {
                let fields = self.fields(kind, name);
                let device =
                    self.dice.one(&[Some((1, 3)), Some((7, 0)), Some((0, 5)), Some((4095, 1_048_575))]);
                self.put(&Fields { device, ..fields });
            }
            b'S' if self.format == Format::Gnu => {
                let (holes, data) = self.holes();
                let fields = self.fields(b'S', name);
                self.put(&Fields { sparse: Some(holes), data, ..fields });
            }
            b'D' if self.format == Format::Gnu => {
                let fields = self.fields(b'D', name);
                self.put(&Fields { data: b"Yfile\0Nother\0\0".to_vec(), ..fields });
            }
            _ if self.format == Format::Pax => self.sparse(name, &data),
            _ => {
                let fields = self.fields(b'0', name);
                self.put(&Fields { data, ..fields });
            }
        }
    }

    /// A map, and its data. All segments but the last are whole blocks: about others readers disagree. A file that ends with a
    /// hole has an empty segment at its end, as GNU tar writes it: without that GNU tar makes the file too short.
    fn holes(&mut self) -> (Holes, Vec<u8>) {
        let (mut segments, mut end) = (Vec::new(), 0);
        for _ in 0..self.dice.one(&[0, 1, 1, 2, 4, 5, 30]) {
            let at = end + 512 * self.dice.below(40);
            let length = 512 * (1 + self.dice.below(9));
            segments.push((at, length));
            end = at + length;
        }
        if let Some((_, length)) = segments.last_mut() {
            let less = self.dice.one(&[0, 1, 511]);
            (*length, end) = (*length - less, end - less);
        }
        let length: u64 = segments.iter().map(|(_, length)| length).sum();
        let data = (0..length).map(|i| (i * 31 + end) as u8).collect();
        if segments.is_empty() || self.dice.below(2) == 0 {
            end += 1 + self.dice.below(1 << 20);
            segments.push((end, 0));
        }
        (Holes { segments, real: end }, data)
    }

    /// The three maps of PAX, and attributes.
    fn sparse(&mut self, name: Vec<u8>, data: &[u8]) {
        let mut fields = self.fields(b'0', b"GNUSparseFile.1/x".to_vec());
        let form = self.dice.below(4);
        if form == 3 {
            (fields.name, fields.data) = (name, data.to_vec());
            fields.records.push(("SCHILY.xattr.user.odd".into(), b"a=b\n\0c".to_vec()));
            return self.put(&fields);
        }
        let (Holes { segments, real }, data) = self.holes();
        let numbers: Vec<String> =
            segments.iter().flat_map(|(at, length)| [at.to_string(), length.to_string()]).collect();
        let mut record = |key: &str, value: String| fields.records.push((key.into(), value.into_bytes()));
        if form == 2 {
            record("GNU.sparse.major", "1".into());
            record("GNU.sparse.minor", "0".into());
            record("GNU.sparse.realsize", real.to_string());
            fields.data = format!("{}\n{}\n", segments.len(), numbers.join("\n")).into_bytes();
            fields.data.resize(fields.data.len().next_multiple_of(512), 0);
        } else {
            record("GNU.sparse.size", real.to_string());
            record("GNU.sparse.numblocks", segments.len().to_string());
            if form == 1 {
                record("GNU.sparse.map", numbers.join(","));
            } else {
                for pair in numbers.chunks(2) {
                    record("GNU.sparse.offset", pair[0].clone());
                    record("GNU.sparse.numbytes", pair[1].clone());
                }
            }
        }
        if form == 0 {
            fields.name = name;
        } else {
            fields.records.push(("GNU.sparse.name".into(), name));
        }
        fields.data.extend(data);
        self.put(&fields);
    }

    /// Entries that are there twice: the later one counts.
    fn again(&mut self) {
        let kinds: &[u8] = if self.format == Format::V7 { b"0512" } else { b"05126" };
        for n in 0..6 {
            let name = format!("twice{n}").into_bytes();
            for _ in 0..2 + self.dice.below(2) {
                let kind = self.dice.one(kinds);
                let old = kind == b'5' && self.format == Format::V7;
                let path = if old { [&name[..], b"/"].concat() } else { name.clone() };
                let link = match kind {
                    b'1' => {
                        let fields = self.fields(b'0', b"twice-target".to_vec());
                        self.put(&Fields { data: vec![b't'; n], ..fields });
                        b"twice-target".to_vec()
                    }
                    b'2' => b"nowhere".to_vec(),
                    _ => Vec::new(),
                };
                let fields = self.fields(if old { 0 } else { kind }, path);
                let data = if kind == b'0' { vec![b'x'; self.dice.below(9) as usize] } else { Vec::new() };
                self.put(&Fields { link, data, ..fields });
            }
        }
    }

    fn put(&mut self, fields: &Fields) {
        let mut fields_name = fields.name.clone();
        let mut records = fields.records.clone();
        let mut header = [0u8; 512];
        let real_name =
            fields.records.iter().find(|(key, _)| key == "GNU.sparse.name").map(|(_, value)| value.clone());
        let shown = real_name.unwrap_or_else(|| fields.name.clone());
        let _ = writeln!(
            self.odd.story,
            "  type {:?} mode {:o} owner {}:{} mtime {} size {} {} -> {} {:?} {:?}",
            char::from(fields.kind),
            fields.mode,
            fields.uid,
            fields.gid,
            fields.mtime,
            fields.data.len(),
            shown.escape_ascii(),
            fields.link.escape_ascii(),
            fields.records.iter().map(|(key, _)| key).collect::<Vec<_>>(),
            fields.sparse
        );
        if fields.kind != b'V' {
            self.odd.named.push(shown.strip_suffix(b"/").unwrap_or(&shown).to_vec());
        }
        if fields_name.len() > 100 {
            let room = match self.format {
                Format::Ustar => 155,
                Format::Star => 130,
                _ => 0,
            };
            let cut = (0..fields_name.len())
                .find(|&i| fields_name[i] == b'/' && i <= room && i > 0 && fields_name.len() - i - 1 <= 100);
            match (cut.filter(|_| room > 0), self.format) {
                (Some(cut), _) => {
                    header[345..345 + cut].copy_from_slice(&fields_name[..cut]);
                    fields_name.drain(..=cut);
                }
                // Neither has a way to say it: GNU's record does for both.
                (None, Format::V7 | Format::Ustar | Format::Gnu) => {
                    self.record(b'L', &[&fields_name[..], b"\0"].concat());
                    fields_name.truncate(100);
                }
                (None, _) => {
                    records.push(("path".into(), std::mem::take(&mut fields_name)));
                    fields_name = b"short".to_vec();
                }
            }
        }
        let mut link = fields.link.clone();
        if link.len() > 100 {
            if self.format == Format::Gnu {
                self.record(b'K', &[&link[..], b"\0"].concat());
                link.truncate(100);
            } else {
                records.push(("linkpath".into(), std::mem::take(&mut link)));
            }
        }
        let mut mtime = fields.mtime;
        if self.format == Format::Pax && self.dice.below(2) == 0 {
            let digits = self.dice.below(10) as usize;
            let fraction = &"123456789"[..digits];
            let dot = if digits > 0 { "." } else { "" };
            records.push(("mtime".into(), format!("{mtime}{dot}{fraction}").into_bytes()));
            records.push(("atime".into(), b"12.5".to_vec()));
            records.push(("comment".into(), "two\nlines".into()));
            mtime = 7;
        }
        let mut uid = fields.uid;
        if self.format == Format::Pax && self.dice.below(3) == 0 {
            records.push(("uid".into(), uid.to_string().into_bytes()));
            uid = 0;
        }
        if !records.is_empty() {
            let data: Vec<u8> = records.iter().flat_map(|(key, value)| pax(key, value)).collect();
            self.record(b'x', &data);
        }
        header[..fields_name.len()].copy_from_slice(&fields_name);
        if fields_name.len() < 90 && self.dice.below(4) == 0 {
            // What is behind the end of a name means nothing.
            header[fields_name.len() + 1..fields_name.len() + 5].copy_from_slice(b"junk");
        }
        header[157..157 + link.len()].copy_from_slice(&link);
        header[156] = fields.kind;
        let device = fields.device;
        self.number(&mut header[100..108], fields.mode as i64);
        self.number(&mut header[108..116], uid as i64);
        self.number(&mut header[116..124], fields.gid as i64);
        self.number(&mut header[124..136], fields.data.len() as i64);
        self.number(&mut header[136..148], mtime);
        match self.format {
            Format::V7 => {}
            Format::Gnu => header[257..265].copy_from_slice(b"ustar  \0"),
            _ => header[257..265].copy_from_slice(self.dice.one(&[
                b"ustar\x0000",
                b"ustar\0\0\0",
                b"ustar\x00  ",
            ])),
        }
        if let Some((major, minor)) = device {
            self.number(&mut header[329..337], major as i64);
            self.number(&mut header[337..345], minor as i64);
        }
        match self.format {
            Format::Gnu => {
                // Times of access and change stand where POSIX has its prefix.
                header[345..357].copy_from_slice(b"14000000000\0");
                header[357..369].copy_from_slice(b"14000000000\0");
            }
            Format::Star => {
                header[476..488].copy_from_slice(b"14000000000 ");
                header[488..500].copy_from_slice(b"14000000000 ");
                header[508..512].copy_from_slice(b"tar\0");
            }
            _ => {}
        }
        // More than four segments are in blocks behind the header.
        let mut data = Vec::new();
        if let Some(Holes { segments, real }) = &fields.sparse {
            let (here, more) = segments.split_at(segments.len().min(4));
            self.map(&mut header[386..482], here);
            self.number_full(&mut header[483..495], *real);
            header[482] = u8::from(!more.is_empty());
            let mut chunks = more.chunks(21).peekable();
            while let Some(chunk) = chunks.next() {
                let mut block = [0; 512];
                self.map(&mut block[..504], chunk);
                block[504] = u8::from(chunks.peek().is_some());
                data.extend(block);
            }
        }
        data.extend(&fields.data);
        self.block(header, &data);
    }

    fn map(&mut self, fields: &mut [u8], segments: &[(u64, u64)]) {
        for (field, (at, length)) in fields.chunks_mut(24).zip(segments) {
            self.number_full(&mut field[..12], *at);
            self.number_full(&mut field[12..], *length);
        }
    }

    fn record(&mut self, kind: u8, data: &[u8]) {
        let mut header = [0u8; 512];
        header[..6].copy_from_slice(b"record");
        header[156] = kind;
        self.number_full(&mut header[124..136], data.len() as u64);
        header[257..265].copy_from_slice(if kind == b'x' { b"ustar\x0000" } else { b"ustar  \0" });
        self.block(header, data);
    }

    fn block(&mut self, mut header: [u8; 512], data: &[u8]) {
        header[148..156].fill(b' ');
        let plain: i64 = header.iter().map(|b| i64::from(*b)).sum();
        // Some old tars summed signed characters.
        let signed: i64 = header.iter().map(|b| i64::from(b.cast_signed())).sum();
        let sum = if self.dice.below(2) == 0 && signed >= 0 { signed } else { plain };
        let form = self.dice.below(3);
        let text = match form {
            0 => format!("{sum:06o}\0 "),
            1 => format!("{sum:07o}\0"),
            _ => format!("{sum:7o} "),
        };
        header[148..156].copy_from_slice(text.as_bytes());
        self.odd.tar.extend(header);
        self.odd.tar.extend(data);
        self.odd.tar.resize(self.odd.tar.len().next_multiple_of(512), 0);
    }

    fn number_full(&mut self, field: &mut [u8], value: u64) {
        let text = format!("{value:0width$o}\0", width = field.len() - 1);
        field.copy_from_slice(text.as_bytes());
    }

    /// A number in one of the ways to write it.
    fn number(&mut self, field: &mut [u8], value: i64) {
        let width = field.len();
        let digits = format!("{value:o}");
        let fits = value >= 0 && digits.len() < width;
        if value == 0 && self.dice.below(3) == 0 {
            return; // NULs
        }
        match self.dice.below(6) {
            0 if fits => field.copy_from_slice(format!("{value:0w$o}\0", w = width - 1).as_bytes()),
            1 if fits => field.copy_from_slice(format!("{value:0w$o} ", w = width - 1).as_bytes()),
            2 if fits => field.copy_from_slice(format!("{value:w$o}\0", w = width - 1).as_bytes()),
            3 if value >= 0 && digits.len() <= width => {
                field.copy_from_slice(format!("{value:0width$o}").as_bytes());
            }
            4 if fits => field[..digits.len()].copy_from_slice(digits.as_bytes()),
            _ if fits && self.dice.below(2) == 0 => {
                field.copy_from_slice(format!("{value:0w$o}\0", w = width - 1).as_bytes());
            }
            _ => {
                let bytes = i128::from(value).to_be_bytes();
                field.copy_from_slice(&bytes[16 - width..]);
                field[0] |= 0x80;
            }
        }
    }
}

fn pax(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
}

/// A directory to unpack into. It is in memory where a tmpfs knows the attributes of users (Linux 6.6), because a disk takes
/// ten times as long.
pub fn scratch() -> tempfile::TempDir {
    let memory = tempfile::tempdir_in("/dev/shm").ok().filter(|dir| {
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(dir.path(), "user.odd", b"", flags).is_ok()
    });
    memory.unwrap_or_else(|| tempfile::tempdir().unwrap())
}

/// Unpacks by GNU tar.
pub fn unpack_by_tar(tar: &[u8], into: &Path, options: &[&str]) {
    let child = Command::new("tar")
        .args(["--numeric-owner", "--delay-directory-restore", "--xattrs", "--xattrs-include=user.*"])
        .args(options)
        .args(["-x", "-f", "-", "-C"])
        .arg(into)
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = child.expect("this test compares with GNU tar: the program `tar` is needed");
    let mut stdin = child.stdin.take().unwrap();
    let tar = tar.to_vec();
    let feeder = std::thread::spawn(move || drop(stdin.write_all(&tar)));
    let done = child.wait_with_output().unwrap();
    feeder.join().unwrap();
    assert!(done.status.success(), "GNU tar: {}", String::from_utf8_lossy(&done.stderr));
}

/// What is below a directory, one line for each name. `owners`: with them.
pub fn tree(root: &Path, odd: &Odd, owners: bool, modes: u32) -> BTreeMap<String, String> {
    let (mut lines, mut first) = (BTreeMap::new(), BTreeMap::new());
    let mut pending = vec![PathBuf::new()];
    while let Some(dir) = pending.pop() {
        let mut names: Vec<_> =
            fs::read_dir(root.join(&dir)).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        for name in names {
            let path = dir.join(name);
            let full = root.join(&path);
            let stat = full.symlink_metadata().unwrap();
            let kind = stat.file_type();
            let bytes = path.clone().into_os_string().into_vec();
            let mut line = format!("{:o} rdev {:x}", stat.mode() & (0o170_000 | modes), stat.rdev());
            if owners {
                let _ = write!(line, " {}:{}", stat.uid(), stat.gid());
            }
            if !kind.is_dir() || odd.named.contains(&bytes) {
                let _ = write!(line, " time {}.{:09}", stat.mtime(), stat.mtime_nsec());
            }
            if kind.is_file() {
                let data = fs::read(&full).unwrap();
                let sum = data.iter().fold(0u64, |sum, b| sum.wrapping_mul(0x100_0000_01b3) ^ u64::from(*b));
                let mut value = [0; 64];
                let xattr = rustix::fs::lgetxattr(&full, "user.odd", &mut value[..]);
                let xattr = xattr.map(|n| value[..n].to_vec());
                let _ = write!(line, " {} bytes {sum:x} {xattr:?}", data.len());
            } else if kind.is_symlink() {
                let target = fs::read_link(&full).unwrap();
                let _ = write!(line, " -> {}", target.as_os_str().as_bytes().escape_ascii());
            } else if kind.is_dir() {
                pending.push(path.clone());
            }
            if !kind.is_dir() && !kind.is_socket() {
                let same = first.entry((stat.dev(), stat.ino())).or_insert_with(|| bytes.clone());
                let _ = write!(line, " is {}", same.escape_ascii());
            }
            lines.insert(bytes.escape_ascii().to_string(), line);
        }
    }
    lines
}

/// Fails with the names that differ.
pub fn compare(ours: &BTreeMap<String, String>, theirs: &BTreeMap<String, String>, story: &str) {
    let names = ours.keys().chain(theirs.keys());
    let differ: BTreeMap<_, _> = names
        .filter(|name| ours.get(*name) != theirs.get(*name))
        .map(|name| (name, (ours.get(name), theirs.get(name))))
        .collect();
    let text: String = differ.iter().fold(String::new(), |mut text, (name, (ours, theirs))| {
        let _ = writeln!(text, "{name}:\n  wardian {ours:?}\n  tar     {theirs:?}");
        text
    });
    assert!(differ.is_empty(), "{text}{story}");
}
