//! Images inside a tar file: an OCI layout (image-layout spec, "Content": "archive formats (e.g. tar, zip)") and what
//! `docker save` writes (moby, image/tarexport: `manifest.json` names config and layers of each image).
//!
//! Nothing is extracted. One pass over the headers records the offset of each file; the files are then read in place.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tar::EntryType;

use super::compression::{Compression, decoder};
use super::docker::Item;
use super::manifest::{MAX_JSON, too_large};
use super::plain::{Opening, Plain, compression, plain};
use super::stream::{Entry, Stream};
use crate::disk::file::open_tar;
use crate::disk::section::Section;
use crate::disk::stored;
use crate::error::{Error, show};

/// The maximum number of entries of one archive. The largest images have some hundred layers with three entries each.
const MAX_MEMBERS: u64 = 1 << 16;
/// The maximum size of all names and link targets of one archive together, in bytes.
const MAX_NAMES: usize = 8 << 20;
/// The maximum number of links followed to reach a file. Docker makes one.
const MAX_LINKS: u32 = 8;
/// The first name of an archive is looked for in this many bytes, both stored and uncompressed.
const MAX_BEGIN: u64 = 4 << 20;
/// The maximum size of all headers of one archive with their extensions, in bytes: an entry may have a MiB of these,
/// which can be a hole of the file, and a volume label may have any size.
const MAX_HEADERS: u64 = 512 << 20;
/// Read size while scanning headers, in bytes; small, because the data between them is skipped.
const HEADERS: usize = 8 << 10;
/// Read size while two entries of one name are compared, in bytes.
const COMPARED: usize = 256 << 10;

/// What a name in an archive refers to.
#[derive(Debug)]
enum Member {
    File {
        start: u64,
        size: u64,
    },
    /// A link to another name; `None` if it leads out of the archive.
    Link(Option<Vec<u8>>),
}

/// An opened archive. It keeps the file open, so later reads use the same file even if the path is replaced.
#[derive(Debug)]
pub(crate) struct Archive {
    file: Plain,
    path: PathBuf,
    members: HashMap<Vec<u8>, Member>,
}

impl Archive {
    pub(crate) fn open(path: &Path, opening: &Opening<'_>) -> Result<Self, Error> {
        let file = plain(path, opening)?;
        let mut members = HashMap::new();
        let (mut count, mut names) = (0, 0);
        let mut twice = Twice { file: &file, path, opening, compared: 0 };
        // The limit of a member, which is a document or a layer: the files of a layer and their headers.
        let largest = opening.limits.max_image_bytes.saturating_add(opening.limits.headers());
        scan(&file, path, opening, |entry, start| {
            count += 1;
            names += entry.path.len() + entry.link.len();
            let limit =
                |what: &str, limit| Error::Limit { what: format!("{what} in {}", path.display()), limit };
            if count > MAX_MEMBERS {
                return Err(limit("the number of entries", MAX_MEMBERS));
            }
            if names > MAX_NAMES {
                return Err(limit("the length of all names", MAX_NAMES as u64));
            }
            if entry.size > largest {
                let what = format!("the size of {} in {}", show(&entry.path), path.display());
                return Err(Error::image_bytes(what, largest));
            }
            let unsafe_path = |why| Error::UnsafePath { path: show(&entry.path), why };
            let name = clean(b"", &entry.path).ok_or_else(|| unsafe_path("it contains a .. component"))?;
            let above = name.iter().rposition(|b| *b == b'/').map_or(&b""[..], |slash| &name[..slash]);
            let member = match entry.kind {
                EntryType::Regular | EntryType::Continuous => Member::File { start, size: entry.size },
                EntryType::Symlink if entry.link.starts_with(b"/") => Member::Link(None),
                EntryType::Symlink => Member::Link(clean(above, &entry.link)),
                EntryType::Link => Member::Link(clean(b"", &entry.link)),
                _ => return Ok(ControlFlow::Continue(())),
            };
            match members.entry(name) {
                Slot::Vacant(slot) => {
                    slot.insert(member);
                }
                // Some tools write a blob again for each layer that uses it.
                Slot::Occupied(slot) if twice.is_same(slot.get(), &member)? => {}
                // Readers disagree about which of two entries counts, so a scanner could check another one than is
                // used here.
                Slot::Occupied(_) => {
                    let why = "there are two entries of this name, and they differ".into();
                    return Err(Error::Entry { path: show(&entry.path), why });
                }
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(Self { file, path: path.to_owned(), members })
    }

    /// Keeps only these names, as far as the archive has them.
    pub(crate) fn of(self, names: impl Iterator<Item = String>) -> Self {
        let has = names.filter_map(|name| Some((clean(b"", name.as_bytes())?, name)));
        let has = has.filter(|(clean, _)| self.members.contains_key(clean));
        let member = |name: &str| match self.member(name) {
            Ok(section) => Member::File { start: section.start(), size: section.size() },
            // A broken link is reported only when it is needed.
            Err(_) => Member::Link(None),
        };
        let members = has.map(|(clean, name)| (clean, member(&name))).collect();
        Self { members, ..self }
    }

    /// Whether the archive has an entry of that name.
    pub(crate) fn has(&self, name: &str) -> bool {
        clean(b"", name.as_bytes()).is_some_and(|name| self.members.contains_key(&name))
    }

    /// Returns the file `name`, following links.
    pub(crate) fn member(&self, name: &str) -> Result<Section, Error> {
        let corrupt =
            |why: &str| Error::Corrupt { what: self.path.display().to_string(), why: why.to_owned() };
        let shown = show(name.as_bytes());
        let mut wanted = clean(b"", name.as_bytes())
            .ok_or(Error::UnsafePath { path: shown.clone(), why: "it contains a .. component" })?;
        for _ in 0..=MAX_LINKS {
            match self.members.get(&wanted) {
                Some(Member::File { start, size }) => {
                    let section = Section::new(Arc::clone(&self.file.file), *start, *size);
                    return Ok(section.stored_as(self.file.whole));
                }
                Some(Member::Link(Some(target))) => wanted.clone_from(target),
                Some(Member::Link(None)) => {
                    return Err(corrupt(&format!("{shown} is a link out of the archive")));
                }
                None => return Err(corrupt(&format!("it has no file {shown}"))),
            }
        }
        Err(corrupt(&format!("{shown} is a link that leads through too many others")))
    }

    /// Reads a JSON document.
    pub(crate) fn json(&self, name: &str) -> Result<Vec<u8>, Error> {
        let what = format!("{} in {}", show(name.as_bytes()), self.path.display());
        read_json(self.member(name)?, &what)
    }
}

/// Compares entries with the same name.
struct Twice<'a> {
    file: &'a Plain,
    path: &'a Path,
    opening: &'a Opening<'a>,
    /// Bytes of the later entries compared so far.
    compared: u64,
}

impl Twice<'_> {
    /// Counts the bytes to be compared. All entries together are no longer than the archive itself; if they exceed
    /// its bytes on the disk, it has holes.
    fn count(&mut self, size: u64) -> Result<(), Error> {
        self.compared = self.compared.saturating_add(size);
        let limit = self.file.disk.saturating_add(stored::HOLES);
        if self.compared <= limit {
            return Ok(());
        }
        let path = self.path.display();
        let what = format!(
            "the size of the entries that {path} has twice, which are compared and are holes of the file \
             (`cp --sparse=never` makes one without),"
        );
        Err(Error::Limit { what, limit })
    }

    /// Whether two entries are the same for every reader.
    fn is_same(&mut self, one: &Member, other: &Member) -> Result<bool, Error> {
        let (one, other) = match (one, other) {
            (Member::Link(one), Member::Link(other)) => return Ok(one.is_some() && one == other),
            (Member::File { start: one, size }, Member::File { start: other, size: too }) if size == too => {
                self.count(*size)?;
                let section = |start: &u64| Section::new(Arc::clone(&self.file.file), *start, *size);
                (section(one), section(other))
            }
            _ => return Ok(false),
        };
        let buffered = |section| BufReader::with_capacity(COMPARED, section);
        let (mut one, mut other) = (buffered(one), buffered(other));
        let failed = |source| io_error(self.path, source);
        loop {
            if (self.opening.cancelled)() {
                return Err(Error::Cancelled { what: self.path.display().to_string() });
            }
            let (a, b) = (one.fill_buf().map_err(failed)?, other.fill_buf().map_err(failed)?);
            let length = a.len().min(b.len());
            if a[..length] != b[..length] {
                return Ok(false);
            }
            if length == 0 {
                return Ok(a.len() == b.len());
            }
            one.consume(length);
            other.consume(length);
        }
    }
}

/// Reads a JSON document, up to [`MAX_JSON`].
pub(crate) fn read_json(section: Section, what: &str) -> Result<Vec<u8>, Error> {
    if section.size() > MAX_JSON {
        return Err(too_large(what));
    }
    let mut bytes = Vec::new();
    let mut section = section;
    section.read_to_end(&mut bytes).map_err(|source| Error::Io { op: "read", path: what.into(), source })?;
    Ok(bytes)
}

/// Calls `visit` with each entry and the offset of its data, skipping the data itself.
fn scan(
    Plain { file, disk, .. }: &Plain,
    path: &Path,
    opening: &Opening<'_>,
    mut visit: impl FnMut(Entry, u64) -> Result<ControlFlow<()>, Error>,
) -> Result<(), Error> {
    let what = || path.display().to_string();
    let error = |op, source| Error::Io { op, path: what(), source };
    let size = file.metadata().map_err(|e| error("stat", e))?.len();
    let mut reader = BufReader::with_capacity(HEADERS, Section::new(Arc::clone(file), 0, size));
    let (mut at, mut headers) = (0, 0);
    let most = MAX_HEADERS.min(disk.saturating_add(stored::HOLES));
    let too_many = || {
        let what = format!("the size of all headers in {}", what());
        Err(Error::Limit { what, limit: most })
    };
    // An archive without its end marker is accepted, because digests cover the used parts.
    while at < size {
        if (opening.cancelled)() {
            return Err(Error::Cancelled { what: what() });
        }
        // A new stream for each entry, so that its data is skipped by a seek and not by reading.
        let found = Stream::new(&mut reader, most - headers).next(false);
        let start = reader.stream_position().map_err(|e| error("read", e))?;
        headers += start - at;
        if headers > most {
            return too_many();
        }
        let found = found.map_err(|e| match Error::from(e) {
            // The stream cannot tell the name of the file or the offset in it.
            Error::NoTar { .. } if at == 0 => Error::NoTar { what: what() },
            Error::NoTar { .. } => {
                let why = "not a tar header".into();
                Error::Corrupt { what: format!("{} (entry at byte {at})", what()), why }
            }
            Error::Corrupt { why, .. } => {
                Error::Corrupt { what: format!("{} (entry at byte {at})", what()), why }
            }
            other => other,
        })?;
        let Some(entry) = found else { return Ok(()) };
        if entry.sparse.is_some() {
            return Err(Error::Entry {
                path: show(&entry.path),
                why: "sparse files are not supported".into(),
            });
        }
        let data = entry.size;
        let past = start.checked_add(data).filter(|past| *past <= size);
        let Some(past) = past else {
            return Err(Error::Truncated { what: format!("{} (in {})", what(), show(&entry.path)) });
        };
        if visit(entry, start)?.is_break() {
            return Ok(());
        }
        at = past.next_multiple_of(512);
        reader
            .seek_relative(
                (at - start).try_into().map_err(|_| error("read", io::ErrorKind::InvalidInput.into()))?,
            )
            .map_err(|e| error("read", e))?;
    }
    if size == 0 {
        return Err(Error::Corrupt { what: what(), why: "it is empty".into() });
    }
    Ok(())
}

/// Resolves `name` below `above` without `.` and `..`; `None` if it leaves the root.
fn clean(above: &[u8], name: &[u8]) -> Option<Vec<u8>> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in above.split(|b| *b == b'/').chain(name.split(|b| *b == b'/')) {
        match part {
            b"" | b"." => {}
            // `..` is refused in an entry's own name; in a link it may lead to a sibling.
            b".." if above.is_empty() => return None,
            b".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join(&b'/'))
}

/// What a tar file contains, judged by the names in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Docker,
    Oci,
    RootFs,
}

/// Finds out what a tar file contains, which may be compressed as a whole. The decompressed file is returned, to be
/// reused while it is held. A damaged file counts as a root file system, so that unpacking reports the damage.
pub(crate) fn kind(path: &Path, opening: &Opening<'_>) -> Result<(Kind, Plain), Error> {
    let (found, _) = open_tar(path)?;
    let compressed = compression(&found, path)?;
    if compressed.is_some() && !begins_like_image(found.try_clone().map_err(|e| io_error(path, e))?)? {
        return Ok((Kind::RootFs, Plain::of(found, path)?));
    }
    let whole = plain(path, opening)?;
    let file = Arc::clone(&whole.file);
    let (mut docker, mut index, mut blobs, mut count, mut list) = (false, false, false, 0, false);
    let looked = scan(&whole, path, opening, |entry, start| {
        count += 1;
        let Some(name) = clean(b"", &entry.path) else { return Ok(ControlFlow::Break(())) };
        match &*name {
            // Other programs have files of this name too; docker's is a list of images. Only the first is read:
            // [`Archive::open`] refuses a second one that differs, and a thousand would be costly to read.
            b"manifest.json" if list => return Ok(ControlFlow::Break(())),
            b"manifest.json" => {
                list = true;
                let section = Section::new(Arc::clone(&file), start, entry.size);
                let items = read_json(section, "manifest.json").ok();
                docker = items.is_some_and(|bytes| serde_json::from_slice::<Vec<Item>>(&bytes).is_ok());
            }
            b"index.json" => index = true,
            name => blobs |= name == b"blobs" || name.starts_with(b"blobs/"),
        }
        Ok(if docker || count >= MAX_MEMBERS { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    });
    let kind = match looked {
        Err(e @ (Error::Io { .. } | Error::Cancelled { .. })) => return Err(e),
        _ if docker => Kind::Docker,
        Ok(()) if index && blobs => Kind::Oci,
        _ => Kind::RootFs,
    };
    Ok((kind, whole))
}

fn io_error(path: &Path, source: io::Error) -> Error {
    Error::Io { op: "read", path: path.display().to_string(), source }
}

/// Whether a compressed file can be an archive of an image: its first name is `blobs`, a document, a digest or a
/// layer. Root file systems rarely begin so, and thus are rarely decompressed only to find that out.
pub(crate) fn begins_like_image(file: File) -> Result<bool, Error> {
    // The stored bytes are limited too, because a decoder may skip all of them.
    let mut raw = BufReader::new(Section::new(Arc::new(file), 0, MAX_BEGIN));
    let compression = raw.fill_buf().ok().and_then(Compression::of);
    // Damage is reported when the file is unpacked.
    let Some(Ok(Some(reader))) = compression.map(|compression| decoder(compression, raw)) else {
        return Ok(false);
    };
    let mut stream = Stream::new(BufReader::new(reader.take(MAX_BEGIN)), u64::MAX);
    let name = loop {
        let Ok(Some(entry)) = stream.next(false) else { return Ok(false) };
        // The entry of the root directory itself is skipped.
        match clean(b"", &entry.path).unwrap_or_default() {
            name if name.is_empty() && entry.size == 0 => {}
            name => break name,
        }
    };
    let first = name.split(|b| *b == b'/').next().unwrap_or_default();
    let alone = first.len() == name.len();
    let digest = first.strip_prefix(b"sha256:").unwrap_or(first);
    let document = [&b".json"[..], b".tar", b".tar.gz", b".tgz"].iter().any(|end| first.ends_with(end));
    Ok(matches!(first, b"blobs" | b"oci-layout" | b"repositories")
        || alone && document
        || digest.len() >= 64 && digest[..64].iter().all(u8::is_ascii_hexdigit))
}
