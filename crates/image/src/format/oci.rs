//! OCI image layouts: a directory, or a tar of one, with `index.json` and `blobs/sha256/` (OCI image spec 1.1, "Image
//! Layout").

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{OFlags, ResolveFlags};
use wardian_sys::directory;

use super::archive::{Archive, read_json};
use super::manifest::{Descriptor, Index, MAX_JSON, Manifest, too_large};
use super::plain::Opening;
use crate::digest::Digest;
use crate::disk::rootfs::Root;
use crate::disk::section::Section;
use crate::disk::stored;
use crate::error::Error;

/// The maximum nesting of indexes; one level is usual.
const MAX_NESTING: u32 = 4;

/// An opened layout. It keeps the directory or file open, so later reads use the same one even if the path is
/// replaced.
#[derive(Debug)]
pub(crate) struct Layout {
    files: Files,
    path: PathBuf,
}

#[derive(Debug)]
enum Files {
    Dir(OwnedFd),
    Archive(Archive),
}

fn blob_of(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.as_hex())
}

impl Layout {
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        Ok(Self { files: Files::Dir(Root::open(path)?.into()), path: path.to_owned() })
    }

    pub(crate) fn in_archive(path: &Path, opening: &Opening<'_>) -> Result<Self, Error> {
        Ok(Self { files: Files::Archive(Archive::open(path, opening)?), path: path.to_owned() })
    }

    /// The path of its directory or file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Keeps only what is needed after the documents have been read: the other names in an archive may take some
    /// megabytes.
    pub(crate) fn of_layers(self, manifest: &Manifest) -> Self {
        let blobs = || manifest.layers.iter().map(|layer| blob_of(&layer.digest));
        let files = match self.files {
            Files::Archive(archive) => Files::Archive(archive.of(blobs())),
            dir @ Files::Dir(_) => dir,
        };
        Self { files, ..self }
    }

    fn name(&self, name: &str) -> String {
        self.path.join(name).display().to_string()
    }

    /// Opens a regular file of the layout. Symlinks must not lead out of it, and opening a FIFO does not block.
    fn file(&self, name: &str) -> Result<Section, Error> {
        let dir = match &self.files {
            Files::Dir(dir) => dir,
            Files::Archive(archive) => return archive.member(name),
        };
        let error = |op, source: io::Error| Error::Io { op, path: self.name(name), source };
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let file = directory::open(dir, name, flags, resolve).map_err(|e| error("open", e.into()))?;
        let file = File::from(file);
        let meta = file.metadata().map_err(|e| error("stat", e))?;
        if !meta.is_file() {
            return Err(Error::Corrupt { what: self.name(name), why: "it is no regular file".into() });
        }
        let whole = stored::of(&file, &self.path.join(name))?;
        Ok(Section::new(Arc::new(file), 0, meta.len()).stored_as(whole))
    }

    /// Opens the blob `digest`, which must have `size` bytes, if that is given. Its content is not verified here.
    pub(crate) fn blob(&self, digest: &Digest, size: Option<u64>) -> Result<Section, Error> {
        let section = self.file(&blob_of(digest))?;
        match size {
            Some(size) if section.size() != size => {
                let (what, actual) = (format!("blob {digest}"), section.size());
                Err(Error::SizeMismatch { what, expected: size, actual })
            }
            _ => Ok(section),
        }
    }

    /// The path of the blob `digest` in a layout's directory, links followed wherever they lead.
    pub(crate) fn blob_path(&self, digest: &Digest) -> Result<PathBuf, Error> {
        let path = self.path.join(blob_of(digest));
        path.canonicalize().map_err(|source| Error::Io {
            op: "open",
            path: path.display().to_string(),
            source,
        })
    }

    /// Whether the layout has the blob, valid or not.
    pub(crate) fn has(&self, digest: &Digest) -> bool {
        let name = blob_of(digest);
        match &self.files {
            Files::Archive(archive) => archive.has(&name),
            Files::Dir(_) => match self.file(&name) {
                Err(Error::Io { source, .. }) => source.kind() != io::ErrorKind::NotFound,
                _ => true,
            },
        }
    }

    /// Reads a document, whatever its size and digest are.
    pub(crate) fn any_document(&self, descriptor: &Descriptor, what: &str) -> Result<Vec<u8>, Error> {
        read_json(self.blob(&descriptor.digest, None)?, what)
    }

    /// Reads and verifies a document.
    pub(crate) fn document(&self, descriptor: &Descriptor, what: &str) -> Result<Vec<u8>, Error> {
        if descriptor.size > MAX_JSON {
            return Err(too_large(what));
        }
        self.verified(self.blob(&descriptor.digest, Some(descriptor.size))?, descriptor, what)
    }

    /// Reads a document of any size, and verifies its digest.
    pub(crate) fn document_of_any_size(&self, descriptor: &Descriptor, what: &str) -> Result<Vec<u8>, Error> {
        self.verified(self.blob(&descriptor.digest, None)?, descriptor, what)
    }

    fn verified(&self, blob: Section, descriptor: &Descriptor, what: &str) -> Result<Vec<u8>, Error> {
        let bytes = read_json(blob, what)?;
        let actual = Digest::of(&bytes);
        if actual != descriptor.digest {
            let (expected, actual) = (descriptor.digest.to_string(), actual.to_string());
            return Err(Error::DigestMismatch { what: what.into(), expected, actual });
        }
        Ok(bytes)
    }

    /// Selects the manifest; returns it with its names in the layout.
    pub(crate) fn select(&self, tag: Option<&str>) -> Result<(Descriptor, Vec<String>), Error> {
        let what = self.name("index.json");
        let bytes = read_json(self.file("index.json")?, &what)?;
        let index = Index::parse(&bytes, &what)?;
        let scheme = match self.files {
            Files::Dir(_) => "oci",
            Files::Archive(_) => "oci-archive",
        };
        let at = (scheme, self.path.as_path());
        let mut chosen = index.clone().choose(&what, tag, at)?;
        let names = index.names(&chosen.digest, tag);
        for _ in 0..MAX_NESTING {
            if !chosen.is_index() {
                return Ok((chosen, names));
            }
            let what = format!("index {}", chosen.digest);
            chosen = Index::parse(&self.document(&chosen, &what)?, &what)?.choose(&what, None, at)?;
        }
        Err(Error::Limit { what: format!("the nesting of indexes in {what}"), limit: MAX_NESTING.into() })
    }
}
