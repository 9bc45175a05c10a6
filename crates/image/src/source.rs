//! Where an image is: parsing its address and opening it.

use std::fmt;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, openat};
use sha2::{Digest as _, Sha256};

use crate::digest::Digest;
use crate::error::Error;
use crate::layer::{Blob, Identity, Layer};
use crate::oci;

/// The address of an image.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Source(Place);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Place {
    Tar(String),
    Oci { dir: String, tag: Option<String> },
}

/// An opened image: its settings and its layers, whose data is read when they are unpacked.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Image {
    /// What the image says about the processes in it; empty for a tar file.
    pub config: Config,
    /// Bottom first.
    pub layers: Vec<Layer>,
    /// The manifest's bytes, exactly as read; none for a tar file.
    pub manifest: Option<Vec<u8>>,
    /// The config's bytes, exactly as read; none for a tar file.
    pub config_json: Option<Vec<u8>>,
    /// Hex name of the image: the digest of its config, or a tar file's chain id.
    pub id: String,
}

/// The part of the image's config that a container takes over. Untrusted text, not checked further.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    /// `NAME=value` each.
    pub env: Vec<String>,
    /// `user[:group]`, names or numbers; empty means root.
    pub user: String,
    /// The first process's directory; empty means `/`.
    pub working_dir: String,
}

impl Source {
    /// Understands `/abs/file.tar`, `tar:///abs/file.tar`, `file:///abs/file.tar` (plain, gzip or zstd) and
    /// `oci:///abs/layout[:tag]`. Nothing is opened yet, and nothing is percent-decoded.
    ///
    /// # Errors
    /// Another scheme or a path that is not absolute.
    pub fn parse(uri: &str) -> Result<Self, Error> {
        let invalid = |why| Err(Error::Source { uri: uri.chars().take(300).collect(), why });
        if uri.contains('\0') {
            return invalid("it contains a NUL byte");
        }
        let (scheme, path) = match uri.split_once("://") {
            Some((scheme, path)) if !scheme.contains('/') => (scheme, path),
            _ if uri.starts_with('/') => ("", uri),
            _ if uri.is_empty() => return invalid("it is empty"),
            _ => return invalid("a path must be absolute, anything else needs a scheme such as oci://"),
        };
        match scheme {
            "" if path.len() == uri.len() => {}
            "tar" | "file" | "oci" => {}
            "docker" => return Err(Error::Unsupported { what: "the scheme docker://".into() }),
            _ => return invalid("unknown scheme; known are tar, file and oci"),
        }
        if !path.starts_with('/') {
            return invalid("the path must be absolute");
        }
        if scheme != "oci" {
            return Ok(Self(Place::Tar(path.to_owned())));
        }
        let (dir, tag) = match path.rsplit_once(':') {
            Some((_, "")) => return invalid("the tag is empty"),
            Some((dir, tag)) if !tag.contains('/') => (dir, Some(tag.to_owned())),
            _ => (path, None),
        };
        Ok(Self(Place::Oci { dir: dir.to_owned(), tag }))
    }

    /// Reads what is needed to know the layers: for a layout its manifest and config, for a tar file only its state.
    ///
    /// # Errors
    /// A missing, damaged or ambiguous image.
    pub fn open(&self) -> Result<Image, Error> {
        match &self.0 {
            Place::Tar(path) => open_bare(Path::new(path)),
            Place::Oci { dir, tag } => oci::open(Path::new(dir), tag.as_deref()),
        }
    }

    /// The canonical spelling; parsing it gives the same source.
    pub fn to_uri(&self) -> String {
        self.to_string()
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Place::Tar(path) => write!(f, "tar://{path}"),
            Place::Oci { dir, tag: Some(tag) } => write!(f, "oci://{dir}:{tag}"),
            Place::Oci { dir, tag: None } => write!(f, "oci://{dir}"),
        }
    }
}

/// Opens a tar file; a fifo or a device would make us wait or worse.
pub(crate) fn open_tar(path: &Path) -> Result<File, Error> {
    let error = |op, source| Error::Io { op, path: path.display().to_string(), source };
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = File::from(openat(CWD, path, flags, Mode::empty()).map_err(|e| error("open", e.into()))?);
    if !file.metadata().map_err(|e| error("stat", e))?.is_file() {
        return Err(Error::Corrupt { what: path.display().to_string(), why: "it is no regular file".into() });
    }
    Ok(file)
}

/// One layer without a config. Its id changes with the file, and costs no read of it.
fn open_bare(path: &Path) -> Result<Image, Error> {
    let error = |op, source| Error::Io { op, path: path.display().to_string(), source };
    let path: PathBuf = path.canonicalize().map_err(|e| error("resolve", e))?;
    let file = open_tar(&path)?;
    let identity = Identity::of(&file.metadata().map_err(|e| error("stat", e))?);
    let mut hasher = Sha256::new();
    // The path ends with a NUL, which no path contains; the rest has a fixed width.
    hasher.update(path.as_os_str().as_bytes());
    hasher.update([0]);
    hasher.update(identity.size.to_le_bytes());
    hasher.update(identity.mtime.0.to_le_bytes());
    hasher.update(identity.mtime.1.to_le_bytes());
    hasher.update(identity.inode.to_le_bytes());
    let chain_id = Digest::finish(hasher).as_hex().to_owned();
    Ok(Image {
        config: Config::default(),
        layers: vec![Layer { chain_id: chain_id.clone(), blob: Blob::File { path, identity }, base: None }],
        manifest: None,
        config_json: None,
        id: chain_id,
    })
}
