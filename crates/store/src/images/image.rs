//! The records of named images: `images/<name>.json`, one file for each name; one whose name is too long for a file's is
//! `images/%<digest of the name>.json`.
//!
//! Names with the same short form ([`short`]) share one record, which is found by each of them.
//!
//! Manifest and config lie beside the records in `images/<digest>.documents`, once for all names of an image: their
//! size is up to the image's author, and a list of names needs neither.

use std::collections::{HashMap, HashSet};
use std::io::ErrorKind;
use std::os::fd::{AsFd as _, OwnedFd};

use rustix::fs::{Access, AtFlags, FlockOperation};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use wardian_image::Digest;
use wardian_image::reference::short;

use crate::disk::files;
use crate::disk::layout::Layout;

const SUFFIX: &str = ".json";
/// The suffix of a file with documents; it differs from that of a record.
const DOCUMENTS: &str = ".documents";
/// How often a record is read if its documents are missing, which happens when another image gets the name meanwhile.
const TRIES: usize = 5;
/// The maximum length of a name in bytes: that of a registry and repository together, a tag and a digest are shorter
/// (distribution's `reference` package).
const MAX_NAME: usize = 512;
/// The maximum length of a record's file name without its suffix. A file name may have 255 bytes, of which some are for
/// the temporary file that replaces it.
const MAX_FILE: usize = 200;

/// Why an operation on a name failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The name is invalid.
    #[error(
        "{name:?} is no name for an image: use up to {MAX_NAME} letters, digits and . _ - : / @, starting with a letter or a \
         digit, or with the IPv6 address of a registry in brackets"
    )]
    Invalid {
        /// The name.
        name: String,
    },
    /// No image has this name.
    #[error(
        "there is no image {:?} in the store; `wardian image ls` lists them, and `wardian image pull` fetches one from a \
         registry",
        wardian_image::shown(.name)
    )]
    Unknown {
        /// The name.
        name: String,
    },
    /// Another image has the name, and only an operator may reassign it.
    #[error(
        "the name {name:?} is that of another image ({id}), and what a source calls its image does not take that away; \
         give it another name with `-t NAME`, or this one with `-t {name}` or `--force`"
    )]
    Taken {
        /// The name.
        name: String,
        /// The beginning of the id of the image that has it.
        id: String,
    },
    /// The image is pinned.
    #[error(
        "the image {name:?} is pinned; `wardian image unpin {name}` lets go of it, or `--force` removes it all the same"
    )]
    Pinned {
        /// The name.
        name: String,
    },
    /// The layers of the named image were collected, and its source has another image by now.
    #[error(
        "the layers of the image {name:?} are gone, and its source is another image by now; import that with `-t {name}`, \
         or remove the name"
    )]
    Moved {
        /// The name.
        name: String,
    },
    /// Its record could not be read or written.
    #[error("cannot read or write the record of the image {name:?}")]
    Record {
        /// The name.
        name: String,
        /// The system's error.
        source: std::io::Error,
    },
}

/// A named image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    /// Its name.
    pub name: String,
    /// Where it came from.
    pub source: String,
    /// The image's id: the digest of its config, or the chain id of a bare tar, in hex.
    pub id: String,
    /// Chain ids, bottom first.
    pub layers: Vec<String>,
    /// Whether garbage collection must leave it alone.
    #[serde(default)]
    pub pinned: bool,
    /// When it was imported: milliseconds since 1970.
    pub imported_ms: u64,
}

/// The manifest and config of a named image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Documents {
    /// The manifest as it was read; none for a bare tar and for what `docker save` wrote.
    #[serde(default)]
    pub manifest: Option<String>,
    /// The config as it was read; none for a bare tar.
    #[serde(default)]
    pub config: Option<String>,
}

/// The content of a record file.
#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    #[serde(flatten)]
    image: Named,
    /// The digest, in hex, of the file with the documents. None for a bare tar, and in records of earlier versions,
    /// which contain the documents themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    documents: Option<String>,
}

/// Checks that a name is valid.
///
/// # Errors
/// The name is invalid. Names are used in addresses and on terminals, so blanks, control characters and path
/// traversal are refused.
pub fn check(name: &str) -> Result<(), Error> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-:/@".contains(&byte);
    // The host of a registry that has no name: hex digits and colons, and then a port or a repository.
    let address = name.strip_prefix('[').and_then(|rest| rest.split_once(']'));
    let rest = match address {
        Some((address, rest)) if address.parse::<std::net::Ipv6Addr>().is_ok() => rest,
        Some(_) => "",
        None => name,
    };
    let begins =
        |byte: u8| if address.is_some() { b":/".contains(&byte) } else { byte.is_ascii_alphanumeric() };
    let is_begun = rest.bytes().next().is_some_and(begins);
    if !is_begun || name.len() > MAX_NAME || !rest.bytes().all(plain) || name.contains("://") {
        return Err(Error::Invalid { name: name.chars().take(300).collect() });
    }
    Ok(())
}

/// Checks that a name which a source gives its image is valid.
///
/// # Errors
/// As [`check`]; a name that reads as a digest is refused as well, since users trust that only the image with that
/// digest has it.
pub fn check_brought(name: &str) -> Result<(), Error> {
    check(name)?;
    if name.contains('@') || short(name).starts_with("sha256:") {
        return Err(Error::Invalid { name: name.to_owned() });
    }
    Ok(())
}

/// Returns the file name of a name's record, with `/` written as `%2F`, or with a digest if it is too long.
pub(crate) fn file_name(name: &str) -> String {
    let plain = name.replace('/', "%2F");
    match plain.len() {
        0..=MAX_FILE => format!("{plain}{SUFFIX}"),
        // No name begins like that.
        _ => format!("%{}{SUFFIX}", Digest::of(name.as_bytes()).as_hex()),
    }
}

/// Whether the file is a record.
fn is_of_name(file: &str) -> bool {
    !file.starts_with('.') && file.ends_with(SUFFIX)
}

/// Returns the image name that belongs to a record's file name; `None` if the file is no record, or has a digest.
fn name_of(file: &str) -> Option<String> {
    let name = file.strip_suffix(SUFFIX).filter(|name| !name.starts_with(['.', '%']))?;
    Some(name.replace("%2F", "/"))
}

/// Whether a name in `images/` is a file of named images. All others are the directories of published root file
/// systems.
pub(crate) fn is_record(file: &str) -> bool {
    file.starts_with('.') || file.ends_with(SUFFIX) || file.ends_with(DOCUMENTS)
}

fn documents_file(digest: &str) -> String {
    format!("{digest}{DOCUMENTS}")
}

/// Returns the name under which the image's record is stored; if there is none, the name under which it would be
/// stored.
fn resolve(layout: &Layout, name: &str) -> Result<String, Error> {
    check(name)?;
    let there =
        |name: &str| rustix::fs::accessat(&layout.images, file_name(name), Access::EXISTS, AtFlags::empty());
    for form in [name, short(name)] {
        if there(form).is_ok() {
            return Ok(form.to_owned());
        }
    }
    // An earlier version stored each name as it was given.
    let earlier =
        files(layout)?.iter().filter_map(|file| name_of(file)).find(|other| short(other) == short(name));
    Ok(earlier.unwrap_or_else(|| short(name).to_owned()))
}

/// Reads the record stored under exactly that name; returns it with its text.
fn read(layout: &Layout, name: &str) -> Result<Option<(Entry, String)>, Error> {
    read_file(layout, &file_name(name), name)
}

/// Reads a record by the name of its file; `name` is for errors.
fn read_file(layout: &Layout, file: &str, name: &str) -> Result<Option<(Entry, String)>, Error> {
    let failed = |source| Error::Record { name: name.to_owned(), source };
    match files::read_file(&layout.images, file) {
        Ok(text) => {
            let entry = serde_json::from_str(&text).map_err(|error| failed(error.into()))?;
            Ok(Some((entry, text)))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(failed(source)),
    }
}

fn existing(layout: &Layout, name: &str) -> Result<(Entry, String), Error> {
    read(layout, &resolve(layout, name)?)?.ok_or_else(|| Error::Unknown { name: name.to_owned() })
}

/// Finds the image with this name.
pub(crate) fn find(layout: &Layout, name: &str) -> Result<Named, Error> {
    Ok(existing(layout, name)?.0.image)
}

/// Reads the image with this name, its manifest and its config.
pub(crate) fn read_whole(layout: &Layout, name: &str) -> Result<(Named, Documents), Error> {
    let failed = |source| Error::Record { name: name.to_owned(), source };
    for _ in 0..TRIES {
        let (entry, text) = existing(layout, name)?;
        let text = match &entry.documents {
            None => Ok(text),
            Some(digest) => files::read_file(&layout.images, &documents_file(digest)),
        };
        match text {
            Ok(text) => {
                let documents = serde_json::from_str(&text).map_err(|error| failed(error.into()))?;
                return Ok((entry.image, documents));
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Err(failed(ErrorKind::NotFound.into()))
}

/// Who gives a name to an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// An operator, who may reassign a name: another image loses it. The pin belongs to the name and stays.
    Operator,
    /// The source, whose content the image's author controls: it cannot take a name that another image has.
    Source,
    /// Whoever had it pulled from the registry that the name is of: the tag may stand for another image now. The record
    /// is not worth a wait for the disk.
    Pulled,
}

impl Named {
    /// Whether both are the same image. Equal ids do not suffice: the id is the config's digest, and a manifest may
    /// combine one config with other layers.
    fn is_same(&self, other: &Self) -> bool {
        self.id == other.id && self.layers == other.layers
    }

    fn taken(&self) -> Error {
        Error::Taken { name: self.name.clone(), id: self.id.chars().take(12).collect() }
    }
}

/// Names an image; returns the image that had the name before, if it was another one. Waits for the disk, unless it
/// was pulled.
pub(crate) fn save(
    layout: &Layout,
    mut image: Named,
    documents: &Documents,
    wish: Wish,
) -> Result<Option<Named>, Error> {
    match wish {
        Wish::Operator | Wish::Pulled => check(&image.name)?,
        Wish::Source => check_brought(&image.name)?,
    }
    let _turn = turn(layout, &image.name)?;
    image.name = resolve(layout, &image.name)?;
    // A record that a power cut has emptied counts as missing.
    let old = read(layout, &image.name).ok().flatten().map(|(old, _)| old.image);
    if let Some(old) = &old {
        match (wish, old.is_same(&image)) {
            // The record keeps even its old source, because the layers may be fetched again from it.
            (Wish::Source, true) => return Ok(None),
            (Wish::Source, false) => return Err(old.taken()),
            (Wish::Operator | Wish::Pulled, _) => image.pinned = old.pinned,
        }
    }
    let wait = wish != Wish::Pulled;
    let entry = Entry { documents: keep(layout, &image.name, documents, wait)?, image };
    write(layout, &entry, wait)?;
    if old.is_some() {
        sweep_in_turn(layout);
    }
    Ok(old.filter(|old| !old.is_same(&entry.image)))
}

/// Refuses a name given by a source if another image has it: an early check, before anything is fetched.
pub(crate) fn check_free(layout: &Layout, name: &str, id: &str, layers: &[String]) -> Result<(), Error> {
    match read(layout, &resolve(layout, name)?)? {
        Some((Entry { image: old, .. }, _)) if old.id != id || old.layers != layers => Err(old.taken()),
        _ => Ok(()),
    }
}

/// Changes an image's record. Waits for the disk.
pub(crate) fn change(layout: &Layout, name: &str, change: impl FnOnce(&mut Named)) -> Result<(), Error> {
    let _turn = turn(layout, name)?;
    let (mut entry, text) = existing(layout, name)?;
    if entry.documents.is_none() {
        let own = serde_json::from_str(&text)
            .map_err(|error| Error::Record { name: name.to_owned(), source: error.into() })?;
        entry.documents = keep(layout, name, &own, true)?;
    }
    change(&mut entry.image);
    write(layout, &entry, true)
}

/// Writes the documents beside the records, unless they are there already; returns their digest, or `None` for empty
/// ones.
fn keep(layout: &Layout, name: &str, documents: &Documents, wait: bool) -> Result<Option<String>, Error> {
    if *documents == Documents::default() {
        return Ok(None);
    }
    let failed = |source| Error::Record { name: name.to_owned(), source };
    let text = serde_json::to_string(documents).map_err(|error| failed(error.into()))?;
    let digest = Digest::of(text.as_bytes()).as_hex().to_owned();
    let file = documents_file(&digest);
    // A file that the disk has damaged is written again.
    if !files::read_file(&layout.images, &file).is_ok_and(|there| there == text) {
        files::replace(layout.images.as_fd(), &file, &text, wait).map_err(failed)?;
    }
    Ok(Some(digest))
}

fn write(layout: &Layout, entry: &Entry, wait: bool) -> Result<(), Error> {
    let name = &entry.image.name;
    let failed = |source| Error::Record { name: name.clone(), source };
    let text = serde_json::to_string(entry).map_err(|error| failed(error.into()))?;
    files::replace(layout.images.as_fd(), &file_name(name), &text, wait).map_err(failed)
}

/// Deletes documents that no record refers to.
pub(crate) fn sweep(layout: &Layout) {
    match turn(layout, "") {
        Ok(_turn) => sweep_in_turn(layout),
        Err(error) => tracing::warn!(%error, "image.documents-stay"),
    }
}

/// As [`sweep`], for a caller that holds the lock of [`turn`]. No other process can be writing a file then, so
/// half-written files of killed processes are deleted too.
fn sweep_in_turn(layout: &Layout) {
    let swept = || -> Result<(), Error> {
        let files = files(layout)?;
        let mut kept = HashSet::new();
        for file in files.iter().filter(|file| is_of_name(file)) {
            match read_file(layout, file, file) {
                Ok(entry) => kept.extend(entry.and_then(|(entry, _)| entry.documents)),
                // A record that a power cut has emptied refers to no documents.
                Err(Error::Record { source, .. })
                    if matches!(source.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof) => {}
                Err(error) => return Err(error),
            }
        }
        let unused = |file: &String| {
            file.starts_with('.') || file.strip_suffix(DOCUMENTS).is_some_and(|digest| !kept.contains(digest))
        };
        for file in files.iter().filter(|file| unused(file)) {
            match rustix::fs::unlinkat(&layout.images, file, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(Error::Record { name: file.clone(), source: error.into() }),
            }
        }
        Ok(())
    };
    // Documents that stay cost only space.
    if let Err(error) = swept() {
        tracing::warn!(%error, "image.documents-stay");
    }
}

/// Takes the lock among all processes that change records.
fn turn(layout: &Layout, name: &str) -> Result<OwnedFd, Error> {
    let failed = |error: Errno| Error::Record { name: name.to_owned(), source: error.into() };
    let dir = files::open_dir(&layout.images, ".").map_err(failed)?;
    rustix::fs::flock(&dir, FlockOperation::LockExclusive).map_err(failed)?;
    Ok(dir)
}

/// Removes a name as [`remove`] does, and returns the image that had it. A pinned image is refused unless `pinned` is
/// set.
pub(crate) fn take(layout: &Layout, name: &str, pinned: bool) -> Result<Named, Error> {
    let _turn = turn(layout, name)?;
    let image = existing(layout, name)?.0.image;
    if image.pinned && !pinned {
        return Err(Error::Pinned { name: image.name });
    }
    remove(layout, &image.name)?;
    Ok(image)
}

/// Removes the name; the layers stay until they are collected, the documents until [`sweep`].
pub(crate) fn remove(layout: &Layout, name: &str) -> Result<(), Error> {
    match rustix::fs::unlinkat(&layout.images, file_name(&resolve(layout, name)?), AtFlags::empty()) {
        Ok(()) => Ok(()),
        Err(Errno::NOENT) => Err(Error::Unknown { name: name.to_owned() }),
        Err(error) => Err(Error::Record { name: name.to_owned(), source: error.into() }),
    }
}

fn files(layout: &Layout) -> Result<Vec<String>, Error> {
    files::names(&layout.images).map_err(|error| Error::Record { name: String::new(), source: error.into() })
}

/// Returns all named images, sorted by name, without their documents. An image whose record a power cut has emptied
/// is left out; it can be imported again.
pub(crate) fn all(layout: &Layout) -> Result<Vec<Named>, Error> {
    let mut images: Vec<_> = entries(layout)?.into_iter().map(|entry| entry.image).collect();
    images.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(images)
}

fn entries(layout: &Layout) -> Result<Vec<Entry>, Error> {
    let mut all = Vec::new();
    for file in files(layout)?.iter().filter(|file| is_of_name(file)) {
        match read_file(layout, file, file) {
            Ok(entry) => all.extend(entry.map(|(entry, _)| entry)),
            Err(error) => tracing::warn!(file, %error, "image.unreadable"),
        }
    }
    Ok(all)
}

/// What the documents of all named images take, to see what names would have to be removed for less.
#[derive(Debug, Default)]
pub(crate) struct Weights {
    /// The names that may be removed, with their documents, in the order of their imports.
    names: Vec<(Named, String)>,
    /// For each file of documents, its bytes, and how many names have it.
    files: HashMap<String, (u64, usize)>,
}

impl Weights {
    /// `stays` says which names must not be removed.
    pub(crate) fn of(layout: &Layout, stays: &dyn Fn(&Named) -> bool) -> Result<Self, Error> {
        let mut found = Self::default();
        for Entry { image, documents } in entries(layout)? {
            let Some(digest) = documents else { continue };
            let stat = rustix::fs::statat(&layout.images, documents_file(&digest), AtFlags::SYMLINK_NOFOLLOW);
            let bytes = stat.map_or(0, |stat| u64::try_from(stat.st_size).unwrap_or(0));
            found.files.entry(digest.clone()).or_insert((bytes, 0)).1 += 1;
            if !stays(&image) {
                found.names.push((image, digest));
            }
        }
        found.names.sort_by_key(|(image, _)| image.imported_ms);
        Ok(found)
    }

    /// Bytes of all documents.
    pub(crate) fn bytes(&self) -> u64 {
        self.files.values().map(|(bytes, _)| bytes).sum()
    }

    /// Removes a name from the sum.
    pub(crate) fn without(&mut self, name: &str) {
        let Some(at) = self.names.iter().position(|(image, _)| image.name == name) else { return };
        let (_, digest) = self.names.remove(at);
        if let Some((_, names)) = self.files.get_mut(&digest) {
            *names -= 1;
            if *names == 0 {
                self.files.remove(&digest);
            }
        }
    }

    /// Returns the name that was imported first, of those that are left.
    pub(crate) fn oldest(&self) -> Option<&Named> {
        self.names.first().map(|(image, _)| image)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["busybox", "reg.example:5000/a/b:1.2_3", "a@sha256:0f"] {
            check(good).unwrap();
        }
        let deep = format!("a{}", "/a".repeat(MAX_NAME / 2 - 1));
        for good in ["[::1]:5000/a:1", "[fd00::2]/a", &deep] {
            check(good).unwrap();
        }
        let long = "a".repeat(MAX_NAME + 1);
        for bad in [
            "", "/x.tar", "oci://x", "../a", "-a", "a b", "a\n", "ä", "a%2F", &long, "[x]/a", "[::1]",
            "[::1]a", "[::1",
        ] {
            assert!(check(bad).is_err(), "{bad:?}");
        }
        for digest in
            ["sha256:0f", "docker.io/library/sha256:0f", "docker.io/sha256:0f", "a@sha256:0f", "a@b"]
        {
            assert!(check(digest).is_ok() && check_brought(digest).is_err(), "{digest}");
        }
        check_brought("reg.example:5000/sha256:1").unwrap();
        assert_eq!(file_name("a/b:1"), "a%2Fb:1.json");
        let file = file_name(&deep);
        assert!(
            file.len() < MAX_FILE && file.starts_with('%') && is_of_name(&file) && name_of(&file).is_none(),
            "{file}"
        );
    }

    #[test]
    fn no_password_is_shown() {
        for (name, shown) in
            [("user:s3cr3t@h/app", "***@h/app"), ("h/app:v1@sha256:0f", "h/app:v1@sha256:0f")]
        {
            let text = Error::Unknown { name: name.into() }.to_string();
            assert!(text.contains(shown) && !text.contains("s3cr3t"), "{text}");
        }
    }
}
