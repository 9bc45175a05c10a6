//! Addresses of images: parsing and opening.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::image::Image;
use super::query::without_secrets;
use super::{bare, docker, oci};
use crate::disk::file::{Identity, open_tar};
use crate::disk::rootfs::Root;
use crate::error::Error;
use crate::format::archive;
use crate::format::oci::Layout;
use crate::format::plain::{Opening, Plain, compression};
use crate::format::reference::split_tag;
use crate::registry::{Endpoint, Found, ImageName, Login, Puller};
use crate::remote::Remote;

/// The address of an image.
#[derive(Debug, Clone)]
pub struct Source {
    place: Place,
    /// The decompressed file, if it was needed to detect the format; held so that [`Source::open`] can reuse it.
    _held: Option<Plain>,
}

impl PartialEq for Source {
    fn eq(&self, other: &Self) -> bool {
        self.place == other.place
    }
}

impl Eq for Source {}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    /// A path whose content decides what it is.
    Path(String),
    Tree(String),
    Tar(String),
    Oci {
        dir: String,
        tag: Option<String>,
    },
    OciArchive {
        file: String,
        tag: Option<String>,
    },
    DockerArchive {
        file: String,
        name: Option<String>,
    },
    Registry(Box<AtRegistry>),
}

/// An image at a registry.
#[derive(Debug, Clone)]
struct AtRegistry {
    name: ImageName,
    /// Where it is pulled from, if that was said: another way to the same image.
    endpoints: Option<Vec<(Endpoint, Option<Login>)>>,
    /// Kept, because it knows the registry's scheme and has its token.
    puller: OnceLock<Puller>,
}

impl AtRegistry {
    fn puller(&self, remote: &Remote) -> Result<&Puller, Error> {
        if let Some(puller) = self.puller.get() {
            return Ok(puller);
        }
        let own = || vec![(Endpoint::of(&self.name), None)];
        let endpoints = self.endpoints.clone().unwrap_or_else(own);
        let puller = Puller::new(remote, self.name.clone(), endpoints)?;
        Ok(self.puller.get_or_init(|| puller))
    }
}

impl PartialEq for AtRegistry {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for AtRegistry {}

/// What opening an image takes. A caller with many requests should limit each kind separately, so that slow ones do
/// not block fast ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Some documents are read, or the headers of a tar.
    Short,
    /// All of a directory tree is scanned.
    Tree,
    /// A registry is asked, which may take long to answer.
    Registry,
    /// A compressed file, which may have to be decompressed as a whole: [`Source::is_packed`].
    Compressed,
}

impl Source {
    /// Parses `/abs/path` and `file:///abs/path`, which may be anything that [`Source::detect`] knows,
    /// `tar:///abs/file.tar`, `oci:///abs/layout[:tag]`, `oci-archive:///abs/file.tar[:tag]` and
    /// `docker-archive:///abs/file.tar[:name[:tag]]`, all files plain or compressed by gzip or zstd. Names may
    /// contain slashes and colons, so the path ends at the first colon; that of a layout ends at a later colon, or at
    /// the end, if only that prefix is an existing directory. Nothing is opened yet, and nothing is percent-decoded.
    ///
    /// # Errors
    /// Another scheme, a path that is not absolute, or [`Error::Ambiguous`].
    pub fn parse(uri: &str) -> Result<Self, Error> {
        let invalid = |why| Err(Error::Source { uri: without_secrets(uri), why });
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
            "tar" | "file" | "oci" | "oci-archive" | "docker-archive" => {}
            "docker" => return Ok(Self::of_registry(ImageName::of_uri(uri)?)),
            _ => {
                return invalid(
                    "unknown scheme; known are docker, tar, file, oci, oci-archive and docker-archive",
                );
            }
        }
        if !path.starts_with('/') {
            return invalid("the path must be absolute");
        }
        if scheme.ends_with("-archive") {
            let (file, name) = match path.split_once(':') {
                Some((_, "")) => return invalid("the name is empty"),
                Some((file, name)) => (file.to_owned(), Some(name.to_owned())),
                None => (path.to_owned(), None),
            };
            return Ok(Self::at(match scheme {
                "oci-archive" => Place::OciArchive { file, tag: name },
                _ => Place::DockerArchive { file, name },
            }));
        }
        match scheme {
            "" | "file" => return Ok(Self::at(Place::Path(path.to_owned()))),
            "tar" => return Ok(Self::at(Place::Tar(path.to_owned()))),
            _ => {}
        }
        if path.ends_with(':') {
            return invalid("the tag is empty");
        }
        let (dir, tag) = directory_and_tag(path).map_err(|[first, second]| Error::Ambiguous {
            uri: without_secrets(uri),
            first: first.into(),
            second: second.into(),
        })?;
        Ok(Self::at(Place::Oci { dir: dir.to_owned(), tag: tag.map(str::to_owned) }))
    }

    /// An image at a registry. It is pulled from the registry itself, without credentials, unless
    /// [`Source::pulled_from`] says otherwise.
    pub fn of_registry(name: ImageName) -> Self {
        Self::at(Place::Registry(Box::new(AtRegistry { name, endpoints: None, puller: OnceLock::new() })))
    }

    /// Returns the name of an image at a registry; `None` for other images.
    pub fn image_name(&self) -> Option<&ImageName> {
        match &self.place {
            Place::Registry(at) => Some(&at.name),
            _ => None,
        }
    }

    /// Has an image at a registry pulled from these endpoints, in this order. Other images are not changed.
    #[must_use]
    pub fn pulled_from(mut self, endpoints: Vec<(Endpoint, Option<Login>)>) -> Self {
        if let Place::Registry(at) = &mut self.place {
            (at.endpoints, at.puller) = (Some(endpoints), OnceLock::new());
        }
        self
    }

    /// Asks a registry which digest the image's name stands for; `None` for other images.
    ///
    /// # Errors
    /// As [`Puller::find`].
    pub fn find(
        &self,
        remote: &Remote,
        cancelled: &(dyn Fn() -> bool + Sync),
    ) -> Result<Option<Found>, Error> {
        match &self.place {
            Place::Registry(at) => at.puller(remote)?.find(cancelled).map(Some),
            _ => Ok(None),
        }
    }

    fn at(place: Place) -> Self {
        Self { place, _held: None }
    }

    /// Detects what is at `path`, by its content: a directory is an OCI layout if it has an `oci-layout` or
    /// `index.json`, and otherwise a root file system; a tar file is an image if it has a top-level `manifest.json`
    /// of docker or `index.json` and `blobs/`, and otherwise a root file system. The file may be compressed by gzip
    /// or zstd.
    ///
    /// # Errors
    /// Nothing there, a directory that is neither, a special file, another compression, or a path that is not UTF-8.
    pub fn detect(path: &Path) -> Result<Self, Error> {
        Self::detect_in(path, &Opening::default())
    }

    fn detect_in(path: &Path, opening: &Opening<'_>) -> Result<Self, Error> {
        let shown = path.display().to_string();
        let error = |op, source: io::Error| Error::Io { op, path: shown.clone(), source };
        let meta = match path.metadata() {
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Err(Error::Missing { path: shown });
            }
            other => other.map_err(|e| error("stat", e))?,
        };
        let invalid = |why| Error::Source { uri: shown.clone(), why };
        let absolute = std::path::absolute(path).map_err(|e| error("resolve", e))?;
        let file = absolute.to_str().ok_or_else(|| invalid("the path is not UTF-8"))?.to_owned();
        if meta.is_dir() {
            let root = Root::open(&absolute)?;
            return Ok(Self::at(if root.is_layout() {
                Place::Oci { dir: file, tag: None }
            } else if root.is_one() {
                Place::Tree(file)
            } else {
                return Err(Error::Directory { path: shown });
            }));
        }
        let (kind, held) = archive::kind(&absolute, opening)?;
        let place = match kind {
            archive::Kind::Docker => Place::DockerArchive { file, name: None },
            archive::Kind::Oci => Place::OciArchive { file, tag: None },
            archive::Kind::RootFs => Place::Tar(file),
        };
        Ok(Self { place, _held: Some(held) })
    }

    /// Reads what is needed to know the layers: for a layout or an archive its manifest and config, for a tar file
    /// only its state. Layers that a layout only names the URLs of are fetched by `remote` when they are unpacked.
    ///
    /// # Errors
    /// A missing, damaged or ambiguous image.
    pub fn open(&self, remote: &Remote) -> Result<Image, Error> {
        self.open_in(remote, &Opening::default())
    }

    /// As [`Source::open`], with limits and cancellation.
    ///
    /// # Errors
    /// As [`Source::open`]; an archive that is compressed as a whole is too large, or it was cancelled.
    pub fn open_in(&self, remote: &Remote, opening: &Opening<'_>) -> Result<Image, Error> {
        match &self.place {
            Place::Path(path) => Self::detect_in(Path::new(path), opening)?.open_in(remote, opening),
            Place::Tree(path) => bare::open_directory(Path::new(path), opening),
            Place::Tar(path) => bare::open_tar(Path::new(path)),
            Place::Oci { dir, tag } if opening.unverified => {
                oci::open_unverified(Layout::open(Path::new(dir))?, tag.as_deref(), remote)
            }
            Place::Oci { dir, tag } => oci::open(Layout::open(Path::new(dir))?, tag.as_deref(), remote),
            Place::OciArchive { file, tag } => {
                oci::open(Layout::in_archive(Path::new(file), opening)?, tag.as_deref(), remote)
            }
            Place::DockerArchive { file, name } => docker::open(Path::new(file), name.as_deref(), opening),
            Place::Registry(at) => at.puller(remote)?.open(opening),
        }
    }

    /// Checks that the image exists and can be opened, as far as that can be told without reading it. A registry is
    /// not asked.
    ///
    /// # Errors
    /// The image does not exist or may not be read, or is a directory that is no image.
    pub fn reach(&self) -> Result<(), Error> {
        match &self.place {
            Place::Path(path) | Place::Tree(path) if Path::new(path).is_dir() => {
                let root = Root::open(Path::new(path))?;
                let is_image = root.is_layout() || root.is_one();
                if is_image { Ok(()) } else { Err(Error::Directory { path: path.clone() }) }
            }
            _ => self.state_file().map_or(Ok(()), |file| open_tar(&file).map(drop)),
        }
    }

    /// Returns what opening the image will take. The check is cheap.
    pub fn way(&self) -> Way {
        let path = match &self.place {
            Place::Path(path)
            | Place::OciArchive { file: path, .. }
            | Place::DockerArchive { file: path, .. } => Path::new(path),
            Place::Tree(_) => return Way::Tree,
            Place::Tar(_) | Place::Oci { .. } => return Way::Short,
            Place::Registry(_) => return Way::Registry,
        };
        if path.is_dir() {
            return if is_layout(path) { Way::Short } else { Way::Tree };
        }
        // Errors are reported when it is opened.
        let compressed = open_tar(path).and_then(|(file, _)| compression(&file, path)).unwrap_or(None);
        if compressed.is_some() { Way::Compressed } else { Way::Short }
    }

    /// Whether it may be an archive that must be decompressed to be opened, which takes time and disk space. Reads
    /// the beginning of a compressed file.
    pub fn is_packed(&self) -> bool {
        match &self.place {
            Place::OciArchive { .. } | Place::DockerArchive { .. } => self.way() == Way::Compressed,
            Place::Path(path) if self.way() == Way::Compressed => open_tar(Path::new(path))
                .and_then(|(file, _)| archive::begins_like_image(file))
                .unwrap_or(false),
            _ => false,
        }
    }

    /// The state of the file that changes when the image does: a layout's index, otherwise the file itself. `None` if
    /// it is not available, or if the file was changed just now: a second change within the same clock tick would not
    /// show.
    pub fn state(&self) -> Option<Identity> {
        // The state of a root file system depends on its whole content.
        let is_tree = |path: &Path| path.is_dir() && !is_layout(path);
        if matches!(&self.place, Place::Path(path) | Place::Tree(path) if is_tree(Path::new(path))) {
            return None;
        }
        let meta = self.state_file()?.metadata().ok()?;
        Identity::settles_in(&meta).is_none().then(|| Identity::of(&meta))
    }

    /// Returns the file whose state is that of the image; `None` for one that is not on this host.
    pub(crate) fn state_file(&self) -> Option<PathBuf> {
        Some(match &self.place {
            Place::Path(path) | Place::Tree(path) if Path::new(path).is_dir() => {
                Path::new(path).join("index.json")
            }
            Place::Path(path) | Place::Tree(path) => path.into(),
            Place::Oci { dir, .. } => Path::new(dir).join("index.json"),
            Place::Tar(file) | Place::OciArchive { file, .. } | Place::DockerArchive { file, .. } => {
                file.into()
            }
            Place::Registry(_) => return None,
        })
    }

    /// Returns the path, if the address is to be written as a plain path: for a root file system directory, for a
    /// path not detected yet, and for a path with a colon, at which a path after a scheme would end.
    fn path(&self) -> Option<&str> {
        match &self.place {
            Place::Path(path) | Place::Tree(path) => Some(path),
            Place::Oci { dir, tag: None } if split_tag(dir).1.is_some() => Some(dir),
            Place::OciArchive { file, tag: None } | Place::DockerArchive { file, name: None } => {
                file.contains(':').then_some(file)
            }
            _ => None,
        }
    }

    /// The canonical spelling; parsing it gives the same source.
    pub fn to_uri(&self) -> String {
        self.to_string()
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(path) = self.path() {
            return f.write_str(path);
        }
        let (scheme, path, name) = match &self.place {
            Place::Path(path) | Place::Tree(path) => ("file", path, &None),
            Place::Tar(path) => ("tar", path, &None),
            Place::Oci { dir, tag } => ("oci", dir, tag),
            Place::OciArchive { file, tag } => ("oci-archive", file, tag),
            Place::DockerArchive { file, name } => ("docker-archive", file, name),
            Place::Registry(at) => return write!(f, "docker://{}", at.name),
        };
        write!(f, "{scheme}://{path}")?;
        match name {
            Some(name) => write!(f, ":{name}"),
            None => Ok(()),
        }
    }
}

/// Splits `DIR[:TAG]` where both may contain colons. The prefix that is an existing directory decides; if there is
/// none, the path ends at the first colon, as that of an archive does. If there are several, they are returned as the
/// error: a user who can write to the parent directory of a layout can make another one whose name includes a part of
/// the tag, or ends at an earlier colon.
fn directory_and_tag(path: &str) -> Result<(&str, Option<&str>), [&str; 2]> {
    let colons = || path.match_indices(':').map(|(at, _)| at);
    let mut found = colons().chain([path.len()]).filter(|end| Path::new(&path[..*end]).is_dir());
    let end = match (found.next(), found.next()) {
        (Some(first), Some(second)) => return Err([&path[..first], &path[..second]]),
        (found, _) => found.or_else(|| colons().next()).unwrap_or(path.len()),
    };
    Ok((&path[..end], path.get(end + 1..)))
}

fn is_layout(path: &Path) -> bool {
    Root::open(path).is_ok_and(|root| root.is_layout())
}
