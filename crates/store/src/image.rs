//! What names stand for: `images/<name>.json`, one file for each named image.

use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, FlockOperation};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::layout::{self, Layout};

const SUFFIX: &str = ".json";
/// Bytes of a name. Its file's name may have three times as many, and 255 are possible.
const MAX_NAME: usize = 80;

/// What could not be done to a name.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// It could not be a name.
    #[error(
        "{name:?} is no name for an image: use up to {MAX_NAME} letters, digits and . _ - : / @, \
         starting with a letter or a digit"
    )]
    Invalid {
        /// The name.
        name: String,
    },
    /// No image has this name.
    #[error("there is no image {name:?} in the store; `wardian image ls` lists them")]
    Unknown {
        /// The name.
        name: String,
    },
    /// Another image has the name, and nobody has said that it may lose it.
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
    /// The image that has the name has gone from the store, and its source is another one by now.
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
    /// Tells one image from another: the digest of its config, or the chain id of a bare tar, in hex.
    pub id: String,
    /// Chain ids, bottom first.
    pub layers: Vec<String>,
    /// Whether garbage collection must leave it alone.
    #[serde(default)]
    pub pinned: bool,
    /// When it was imported: milliseconds since 1970.
    pub imported_ms: u64,
    /// The manifest as it was read; none for a bare tar.
    #[serde(default)]
    pub manifest: Option<String>,
    /// The config as it was read; none for a bare tar.
    #[serde(default)]
    pub config: Option<String>,
}

/// Whether an image can be called that.
///
/// # Errors
/// It cannot. Names are used in addresses and on terminals: no blanks, no control characters, nothing that could be a
/// path out.
pub fn check(name: &str) -> Result<(), Error> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-:/@".contains(&byte);
    let begins = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    if !begins || name.len() > MAX_NAME || !name.bytes().all(plain) || name.contains("://") {
        return Err(Error::Invalid { name: name.chars().take(300).collect() });
    }
    Ok(())
}

/// The name's file: what a file name cannot hold becomes `%` and two hex digits.
fn file_name(name: &str) -> String {
    format!("{}{SUFFIX}", name.replace('/', "%2F"))
}

fn read(layout: &Layout, name: &str) -> Result<Option<Named>, Error> {
    match layout::read_file(&layout.images, &file_name(name)) {
        Ok(text) => serde_json::from_str(&text)
            .map(Some)
            .map_err(|error| Error::Record { name: name.to_owned(), source: error.into() }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Record { name: name.to_owned(), source }),
    }
}

/// The image of this name.
pub(crate) fn find(layout: &Layout, name: &str) -> Result<Named, Error> {
    check(name)?;
    read(layout, name)?.ok_or_else(|| Error::Unknown { name: name.to_owned() })
}

/// Whose wish it is that an image gets a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// Somebody who may say what a name stands for: another image loses it, and a pin, which is the name's, stays.
    Operator,
    /// The source's own, which was written by whoever made the image: it gets no name that another image has.
    Source,
}

impl Named {
    /// Whether both are one image. The id alone does not tell: it is the config's, and a manifest decides where layers go.
    fn is_same(&self, other: &Self) -> bool {
        self.id == other.id && self.layers == other.layers
    }

    fn taken(&self) -> Error {
        Error::Taken { name: self.name.clone(), id: self.id.chars().take(12).collect() }
    }
}

/// Names an image, and gives the image that had the name until now, if that was another one. Waits for the disk.
pub(crate) fn save(layout: &Layout, mut image: Named, wish: Wish) -> Result<Option<Named>, Error> {
    check(&image.name)?;
    let _turn = turn(layout, &image.name)?;
    // One that a power cut has emptied has no pin, and is nobody's.
    let old = read(layout, &image.name).ok().flatten();
    if let Some(old) = &old {
        match (wish, old.is_same(&image)) {
            // Not even where it came from is changed: it may be fetched again from there.
            (Wish::Source, true) => return Ok(None),
            (Wish::Source, false) => return Err(old.taken()),
            (Wish::Operator, _) => image.pinned = old.pinned,
        }
    }
    write(layout, &image)?;
    Ok(old.filter(|old| !old.is_same(&image)))
}

/// Refuses a name that a source brings along if another image has it: a look ahead, before anything is fetched.
pub(crate) fn check_free(layout: &Layout, name: &str, id: &str, layers: &[String]) -> Result<(), Error> {
    check(name)?;
    match read(layout, name)? {
        Some(old) if old.id != id || old.layers != layers => Err(old.taken()),
        _ => Ok(()),
    }
}

/// Changes what is recorded of an image. Waits for the disk.
pub(crate) fn change(layout: &Layout, name: &str, change: impl FnOnce(&mut Named)) -> Result<(), Error> {
    let _turn = turn(layout, name)?;
    let mut image = find(layout, name)?;
    change(&mut image);
    write(layout, &image)
}

fn write(layout: &Layout, image: &Named) -> Result<(), Error> {
    let failed = |source| Error::Record { name: image.name.clone(), source };
    let text = serde_json::to_string(image).map_err(|error| failed(error.into()))?;
    layout::write_file_durable(&layout.images, &file_name(&image.name), &text).map_err(failed)
}

/// A turn among all processes that change records.
fn turn(layout: &Layout, name: &str) -> Result<OwnedFd, Error> {
    let failed = |error: Errno| Error::Record { name: name.to_owned(), source: error.into() };
    let dir = layout::open_dir(&layout.images, ".").map_err(failed)?;
    rustix::fs::flock(&dir, FlockOperation::LockExclusive).map_err(failed)?;
    Ok(dir)
}

/// Takes the name away; the layers stay until they are collected.
pub(crate) fn remove(layout: &Layout, name: &str) -> Result<(), Error> {
    check(name)?;
    match rustix::fs::unlinkat(&layout.images, file_name(name), AtFlags::empty()) {
        Ok(()) => Ok(()),
        Err(Errno::NOENT) => Err(Error::Unknown { name: name.to_owned() }),
        Err(error) => Err(Error::Record { name: name.to_owned(), source: error.into() }),
    }
}

/// All named images, by name. One whose record a power cut has emptied is left out: it can be imported again.
pub(crate) fn all(layout: &Layout) -> Result<Vec<Named>, Error> {
    let failed = |name: &str, source| Error::Record { name: name.to_owned(), source };
    let mut images = Vec::new();
    let names = layout::names(&layout.images).map_err(|error| failed("", error.into()))?;
    for file in names {
        let Some(name) = file.strip_suffix(SUFFIX).filter(|name| !name.starts_with('.')) else { continue };
        match read(layout, &name.replace("%2F", "/")) {
            Ok(image) => images.extend(image),
            Err(error) => tracing::warn!(name, %error, "image.unreadable"),
        }
    }
    images.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(images)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["busybox", "reg.example:5000/a/b:1.2_3", "a@sha256:0f"] {
            check(good).unwrap();
        }
        let long = "a".repeat(MAX_NAME + 1);
        for bad in ["", "/x.tar", "oci://x", "../a", "-a", "a b", "a\n", "ä", "a%2F", long.as_str()] {
            assert!(check(bad).is_err(), "{bad:?}");
        }
        assert_eq!(file_name("a/b:1"), "a%2Fb:1.json");
    }
}
