//! The errors of this crate.

mod registry;

pub use registry::RegistryError;

use std::io;
use std::time::Duration;

use rustix::io::Errno;
pub(crate) use wardian_archive::show;

/// Why an image could not be opened or unpacked. Names that come from an image are escaped and cut.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A known scheme that this version cannot fetch from, or a feature of an image it does not implement.
    #[error("{what} is not supported yet")]
    Unsupported {
        /// The scheme or feature.
        what: String,
    },
    /// The text does not name an image.
    #[error("invalid image source {uri:?}: {why}")]
    Source {
        /// The text as given.
        uri: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The text can name several directories, depending on the colon at which its tag begins.
    #[error(
        "invalid image source {uri:?}: {first} and {second} are both directories, and another user can have made one to be \
         taken for the other; rename the one that is not meant, or remove it"
    )]
    Ambiguous {
        /// The text as given.
        uri: String,
        /// The one that ends at an earlier colon.
        first: String,
        /// Another one.
        second: String,
    },
    /// The text is no sha256 digest.
    #[error("invalid digest {text:?}: expected sha256:<64 lower-case hex digits>")]
    Digest {
        /// The text as given (cut).
        text: String,
    },
    /// A base image that is a directory, but neither an OCI layout nor a root file system.
    #[error(
        "invalid base image: directory provided instead of a tar file; {path} is no OCI layout (it has no index.json), and \
         no root file system either (that has a bin, sbin or usr, and an etc, lib, dev or proc)"
    )]
    Directory {
        /// The directory.
        path: String,
    },
    /// A base image that does not exist.
    #[error("stat {path}: no such file or directory")]
    Missing {
        /// The file.
        path: String,
    },
    /// A file of the image could not be read.
    #[error("cannot {op} {path}: {source}")]
    Io {
        /// The operation.
        op: &'static str,
        /// The file.
        path: String,
        /// The kernel's error.
        source: io::Error,
    },
    /// An entry could not be written.
    #[error("cannot {op} {path} while unpacking: {source}")]
    Write {
        /// The operation.
        op: &'static str,
        /// The entry, relative to the root of the layer.
        path: String,
        /// The kernel's error.
        source: Errno,
    },
    /// The name belongs to something that a file must not replace.
    #[error("{path} is {what}, which no file takes the place of: name another path, or remove it first")]
    Special {
        /// The name.
        path: String,
        /// What it is.
        what: &'static str,
    },
    /// A name in the archive leads, or could lead, out of the layer.
    #[error("unsafe path {path}: {why}")]
    UnsafePath {
        /// The name.
        path: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// An entry is well formed but cannot be part of a layer.
    #[error("bad entry {path}: {why}")]
    Entry {
        /// The name.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// Something is larger than the caller allows.
    #[error("{what} exceeds the limit of {limit}")]
    Limit {
        /// What is too large.
        what: String,
        /// The limit, in bytes or in pieces.
        limit: u64,
    },
    /// Something is larger than the operator's settings allow.
    #[error("{what} exceeds the limit of {limit} {unit}; `{flag}` allows more")]
    Allowance {
        /// What is too large.
        what: String,
        /// The limit.
        limit: u64,
        /// What is counted.
        unit: &'static str,
        /// The flag that raises the limit.
        flag: &'static str,
    },
    /// The layers of an image are so much larger than their blobs that they must be a decompression bomb.
    #[error(
        "the layers unpack to more than {unpacked} bytes, which is over 256 MiB plus {ratio} times the {stored} bytes that \
         were read of them, holes left out: nothing but a bomb is so small; if it is none, `--max-image-ratio` allows more"
    )]
    Ratio {
        /// Bytes of the tar streams of all layers so far.
        unpacked: u64,
        /// Bytes of the blobs read so far, without holes.
        stored: u64,
        /// The limit.
        ratio: u64,
    },
    /// Nearly all of the compressed data decompresses to nothing.
    #[error(
        "{what} becomes next to nothing when it is decompressed: {made} bytes, of {stored} that were read. Frames that are \
         skipped and empty members would hold up others; compress its content anew by `gzip` or `zstd`"
    )]
    Idle {
        /// The archive or blob.
        what: String,
        /// Bytes of it that were read.
        stored: u64,
        /// Bytes of decompressed data.
        made: u64,
    },
    /// The data ends too early.
    #[error("{what} is truncated")]
    Truncated {
        /// What ends too early.
        what: String,
    },
    /// A file or blob that should be a tar does not begin as one does.
    #[error("{what} is {}", no_tar(what))]
    NoTar {
        /// The file or blob.
        what: String,
    },
    /// The data is not what it should be.
    #[error("{what} is corrupt: {why}")]
    Corrupt {
        /// What is corrupt.
        what: String,
        /// How this shows.
        why: String,
    },
    /// It is compressed in an unsupported format.
    #[error("{path} is compressed by {by}, which is not read here: `{command}` converts it")]
    Compression {
        /// The file or blob.
        path: String,
        /// The tool.
        by: &'static str,
        /// A command that converts it to a supported format.
        command: String,
    },
    /// A frame of zstd needs more memory than a decoder may hold.
    #[error(
        "{what} needs a zstd window above the limit: compress it with `zstd -19` or lower, without --long"
    )]
    Window {
        /// The blob.
        what: String,
    },
    /// The bytes do not have the promised digest.
    #[error("{what}: expected {expected}, got {actual}")]
    DigestMismatch {
        /// What was verified.
        what: String,
        /// The promised digest.
        expected: String,
        /// The digest of the bytes.
        actual: String,
    },
    /// A blob does not have the promised size.
    #[error("{what}: expected {expected} bytes, got {actual}")]
    SizeMismatch {
        /// What was verified.
        what: String,
        /// Bytes promised.
        expected: u64,
        /// Bytes found.
        actual: u64,
    },
    /// A JSON document does not have the expected shape.
    #[error("cannot parse {what}: {why}")]
    Json {
        /// The document.
        what: String,
        /// What was expected, and where. Nothing of the document is in it, which may be another server's than it should be.
        why: String,
    },
    /// An index or manifest of an artifact that is no image: a chart, a signature, a module.
    #[error("{what} is an artifact of the type {kind}, and no image: a container cannot be made of it")]
    Artifact {
        /// The manifest.
        what: String,
        /// The type that it gives itself, escaped and cut.
        kind: String,
    },
    /// An archive of docker holds several images, and none was asked for.
    #[error("{what}: {why}")]
    Several {
        /// The archive's list.
        what: String,
        /// Their names, and how one is asked for.
        why: String,
        /// A name of each image that has one, as the archive has it.
        names: Vec<String>,
        /// How many have none.
        nameless: usize,
    },
    /// The layout holds no such image, or several.
    #[error("{what}: {why}")]
    Select {
        /// The layout or index.
        what: String,
        /// Why none could be chosen.
        why: String,
    },
    /// A file, local or on a server, was changed between opening and unpacking, so that its id no longer fits, or
    /// while it was fetched. A new try helps.
    #[error("{path} was changed while it was in use")]
    Changed {
        /// The file, or its URL without its secrets.
        path: String,
    },
    /// The layers below lack the base directory of a layer, or have something else of that name.
    #[error("the base directory {path} {why}")]
    BaseDirectory {
        /// The first part of it that is missing, or hidden, or no directory.
        path: String,
        /// Which of these.
        why: &'static str,
    },
    /// The text is no URL that a blob can be fetched from. The text itself may be a secret.
    #[error("invalid URL: {why}")]
    Url {
        /// What is wrong with it.
        why: String,
    },
    /// An address lacks a query parameter.
    #[error("no query parameter '{key}' found in URL {uri}")]
    NoParameter {
        /// The parameter.
        key: &'static str,
        /// The address without its query.
        uri: String,
    },
    /// An address has a query parameter that it must not have.
    #[error("query parameter {key}: {why}")]
    Parameter {
        /// The parameter, escaped and cut.
        key: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// An error of an app, with the query parameter of its address that caused it.
    #[error("{key}: {source}")]
    App {
        /// The query parameter.
        key: &'static str,
        /// What is wrong.
        source: Box<Error>,
    },
    /// A server refuses the request, and would refuse it again. A newly signed URL may help.
    #[error("{url}: the server answered {status}")]
    Refused {
        /// The URL without its secrets.
        url: String,
        /// The HTTP status.
        status: u16,
    },
    /// A server could not be reached, or failed, at every try.
    #[error("cannot fetch {url}: {why}")]
    Fetch {
        /// The URL without its secrets.
        url: String,
        /// The last failure.
        why: String,
    },
    /// A server was not reached, because of the proxy that leads to it.
    #[error(
        "cannot reach {host} by way of the proxy {proxy}: {why}; NO_PROXY names hosts that are reached without one"
    )]
    Proxy {
        /// The server, with its port.
        host: String,
        /// The proxy, with its port and the variable that names it, without its secrets.
        proxy: String,
        /// What has failed there.
        why: String,
    },
    /// A fetch exceeded the time allowed for all its tries ([`Settings::deadline`](crate::Settings::deadline)).
    #[error("fetching {url} took longer than {deadline:?}, which is all the time that it has")]
    Deadline {
        /// The URL without its secrets.
        url: String,
        /// The time.
        deadline: Duration,
    },
    /// None of the URLs of a blob gave it.
    #[error("failed fetching {what} from all urls: {source}")]
    Urls {
        /// The blob.
        what: String,
        /// The error of the last one.
        source: Box<Error>,
    },
    /// A blob that is to be fetched has no URL to fetch it from.
    #[error("{what} is not in the layout, and none of its urls is an http or https one")]
    NoUrl {
        /// The blob.
        what: String,
    },
    /// A blob is available only from servers that are not allowed.
    #[error(
        "{what} is not in the layout but on {host}, where an image may not send this host; `--layer-hosts {host}` allows \
         it"
    )]
    ForeignHost {
        /// The blob.
        what: String,
        /// The first of the servers, with its port if that is not the scheme's.
        host: String,
    },
    /// A blob is available only by URLs with a user or a password.
    #[error(
        "{what} is not in the layout but on {host}, by an address with a user or a password, which an image may not give: \
         have it made with an address that has none, or with the layer in it"
    )]
    Account {
        /// The blob.
        what: String,
        /// The first of the servers, with its port if that is not the scheme's.
        host: String,
    },
    /// A server gives no validator that tells one state of a file from another.
    #[error(
        "{url}: the server gives neither a strong ETag nor Last-Modified with Content-Length, so the digest of the app \
         must be given"
    )]
    NoValidator {
        /// The URL without its secrets.
        url: String,
    },
    /// An image could not be had from a registry.
    #[error("{source}")]
    Registry {
        /// Why.
        source: Box<RegistryError>,
    },
    /// The text is no image's name at a registry.
    #[error(transparent)]
    Name(#[from] crate::registry::name::Error),
    /// The host's settings of registries cannot be used, or do not allow the image.
    #[error(transparent)]
    Registries(Box<crate::registry::conf::Error>),
    /// A login cannot be found or kept.
    #[error(transparent)]
    Login(Box<crate::registry::credentials::Error>),
    /// The HTTP client could not be made.
    #[error("cannot make an HTTP client: {why}")]
    Client {
        /// Why.
        why: String,
    },
    /// A client certificate without its key, or a key without its certificate.
    #[error("missing {missing}, which belongs to {of}")]
    CertificatePair {
        /// The file that is missing or empty.
        missing: String,
        /// The file that is there.
        of: String,
    },
    /// A file of certificates or a key is unusable.
    #[error("bad certificate or key {path}: {why}")]
    Certificate {
        /// The file.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// The caller stopped the unpack or the export.
    #[error("{what} was cancelled")]
    Cancelled {
        /// The blob, or the file to be written.
        what: String,
    },
    /// The target of an export exists, and may not be replaced.
    #[error("{path} exists already")]
    Exists {
        /// The file or directory.
        path: String,
    },
    /// A helper thread could not be started, or it died.
    #[error("cannot run the reader of {what}: {why}")]
    Thread {
        /// The blob it reads.
        what: String,
        /// Why.
        why: String,
    },
}

impl From<crate::registry::conf::Error> for Error {
    fn from(error: crate::registry::conf::Error) -> Self {
        Self::Registries(Box::new(error))
    }
}

impl From<crate::registry::credentials::Error> for Error {
    fn from(error: crate::registry::credentials::Error) -> Self {
        Self::Login(Box::new(error))
    }
}

impl From<RegistryError> for Error {
    fn from(source: RegistryError) -> Self {
        Self::Registry { source: Box::new(source) }
    }
}

/// What something is not that was read as a tar.
fn no_tar(what: &str) -> &'static str {
    // A layer of an image can be nothing else.
    if what.starts_with("layer ") {
        "no tar archive"
    } else {
        "no image: neither a tar (plain, gzip or zstd) nor what `docker save` wrote nor an OCI layout"
    }
}

impl Error {
    /// Names the archive in a [`Error::NoTar`].
    pub(crate) fn of(self, what: &str) -> Self {
        match self {
            Self::NoTar { .. } => Self::NoTar { what: what.to_owned() },
            other => other,
        }
    }

    /// Whether a connection to a registry was lost, or was not waited for: what was received of a blob may be fine, and
    /// the next try continues with it.
    pub(crate) fn can_continue(&self) -> bool {
        match self {
            Self::Cancelled { .. }
            | Self::Deadline { .. }
            | Self::Fetch { .. }
            | Self::Proxy { .. }
            | Self::Refused { .. }
            | Self::Truncated { .. } => true,
            Self::Registry { source } => match &**source {
                RegistryError::Blob { source, .. } => source.can_continue(),
                RegistryError::Everywhere { failures } => {
                    failures.iter().any(|(_, error)| error.can_continue())
                }
                _ => true,
            },
            _ => false,
        }
    }

    /// A layer or its blob exceeds its limit.
    pub(crate) fn layer_bytes(what: impl Into<String>, limit: u64) -> Self {
        Self::Allowance { what: what.into(), limit, unit: "bytes", flag: "--max-layer-bytes" }
    }

    /// The layers of an image together exceed their limit of bytes.
    pub fn image_bytes(what: impl Into<String>, limit: u64) -> Self {
        Self::Allowance { what: what.into(), limit, unit: "bytes", flag: "--max-image-bytes" }
    }

    /// The layers of an image together exceed their limit of entries.
    pub fn image_entries(what: impl Into<String>, limit: u64) -> Self {
        Self::Allowance { what: what.into(), limit, unit: "entries", flag: "--max-image-entries" }
    }
}

/// Adds operation and path to a kernel error.
pub(crate) fn at(op: &'static str, path: &[u8]) -> impl FnOnce(Errno) -> Error {
    // The name is escaped only on an error, because this is called for every system call.
    move |source| Error::Write { op, path: show(path), source }
}
