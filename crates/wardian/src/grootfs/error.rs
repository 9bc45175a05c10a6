//! Errors, with the texts that users of GrootFS know, and that some match.

use std::io;
use std::path::PathBuf;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The command line is wrong; the text is the usage's.
    #[error("invalid arguments - usage: {0}")]
    Usage(&'static str),
    /// An argument is missing.
    #[error("id was not specified")]
    NoId,
    /// An argument is not UTF-8.
    #[error("invalid argument: {0:?} is not UTF-8")]
    Text(std::ffi::OsString),
    /// The configuration file cannot be read.
    #[error("invalid config path: {0}")]
    ConfigPath(String),
    /// The configuration file cannot be parsed.
    #[error("invalid config file: yaml: {0}")]
    ConfigFile(String),
    /// A number is negative.
    #[error("invalid argument: {0} cannot be negative")]
    Negative(&'static str),
    /// Two flags contradict each other.
    #[error("with-clean and without-clean cannot be used together")]
    BothCleans,
    /// The log cannot be opened.
    #[error("failed to configure logger: {0}")]
    Log(String),
    /// The caller is not root.
    #[error("store {0} can only be initialized by Root user")]
    InitNotRoot(PathBuf),
    /// The caller is not root.
    #[error("store {0} can only be used by Root user")]
    NotRoot(PathBuf),
    /// There is no store, or `init-store` has not been run.
    #[error("Store path is not initialized. Please run init-store.")]
    NotInitialized,
    /// There is no store.
    #[error("no store found at {0}")]
    NoStore(PathBuf),
    /// The directory is a store of GrootFS.
    #[error(
        "{0} is a store of GrootFS, and not of wardian: nothing in it was touched. Name another directory (--store), or have \
         GrootFS delete it (delete-store)"
    )]
    OfGrootfs(PathBuf),
    /// The directory is something else.
    #[error("listing images: open {0}/images: no such file or directory")]
    NoImages(PathBuf),
    /// A mapping cannot be parsed.
    #[error("parsing {kind}-mapping: {why}")]
    Mapping {
        /// `uid` or `gid`.
        kind: &'static str,
        /// What is wrong.
        why: &'static str,
    },
    /// A mapping has no root, or cannot be a mapping of the kernel's.
    #[error("invalid {kind}-mapping: {why}")]
    BadMapping {
        /// `uid` or `gid`.
        kind: &'static str,
        /// What is wrong.
        why: &'static str,
    },
    /// The mappings are not those of the store.
    #[error("provided {0} mappings do not match those already configured in the store")]
    OtherMappings(&'static str),
    /// The file with the mappings cannot be read.
    #[error("reading namespace file: {0}")]
    ReadNamespace(String),
    /// The file with the mappings is damaged.
    #[error("invalid namespace file: {0}")]
    Namespace(String),
    /// A mapping in that file is damaged.
    #[error("invalid {kind} mappings format: {text}")]
    StoredMapping {
        /// `uid` or `gid`.
        kind: &'static str,
        /// The mapping.
        text: String,
    },
    /// The file with the mappings cannot be written.
    #[error("writing namespace file: {0}")]
    WriteNamespace(String),
    /// The namespace of the mappings cannot be made.
    #[error("making a user namespace of the store's mappings: {0}")]
    UserNamespace(#[source] io::Error),
    /// The id has a slash in it.
    #[error("id `{0}` contains invalid characters: `/`")]
    Slash(String),
    /// The id is no name of a directory in the store.
    #[error(
        "id `{0}` contains invalid characters: it must not begin with a dot nor end in .json or .documents, and have at most 255 \
         bytes"
    )]
    BadId(String),
    /// The id is taken.
    #[error("image for id `{0}` already exists")]
    Taken(String),
    /// There is no such root file system.
    #[error("Image `{0}` not found.")]
    NotFound(String),
    /// A path leads elsewhere.
    #[error("path `{0}` is outside store path")]
    Outside(String),
    /// The image is a directory.
    #[error("invalid base image: directory provided instead of a tar file")]
    Directory,
    /// The tar file does not exist.
    #[error("fetching image timestamp: {0}")]
    NoTar(String),
    /// The OCI layout, or a document in it, does not exist.
    #[error("Image source doesn't exist")]
    NoSource,
    /// The manifest or config cannot be used.
    #[error("fetching image reference: creating image: creating image source: {0}")]
    Reference(String),
    /// The image's configuration cannot be had.
    #[error("fetching image configuration: creating image: {0}")]
    Configuration(String),
    /// The certificate of the image's registry is not trusted.
    #[error(
        "This registry is insecure. To pull images from this registry, please use the --insecure-registry option."
    )]
    Insecure,
    /// The registry does not give the image to this user, or does not have it.
    #[error("{0}")]
    Denied(String),
    /// A registry that may be insecure is no host.
    #[error("invalid insecure registry: {0}")]
    InsecureRegistry(String),
    /// The address is none.
    #[error("fetching image reference: creating image: parsing url failed: {0}")]
    Url(String),
    /// A layer cannot be used.
    #[error("pulling the image: {0}")]
    Pull(String),
    /// The layers have more than the limit when they are unpacked.
    #[error("pulling the image: uncompressed layer size exceeds quota")]
    AboveLimit,
    /// The blobs of the image are larger than the limit.
    #[error("pulling the image: layers exceed disk quota {bytes}/{limit} bytes")]
    Sum {
        /// Bytes of the blobs.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// The root file system cannot be made.
    #[error("making image: {0}")]
    Make(String),
    /// The image leaves nothing of the limit.
    #[error("making image: creating image: applying disk limits: disk limit is smaller than volume size")]
    LimitBelowImage,
    /// The options of the overlay do not fit into a page.
    #[error(
        "making image: the image has {layers} layers, whose overlay has {length} bytes of options, and the kernel takes 4095: have \
         it mounted (--with-mount)"
    )]
    Options {
        /// How many layers there are.
        layers: usize,
        /// The length of the options.
        length: usize,
    },
    /// The root file system cannot be removed.
    #[error("deleting image path '{path}' failed: {why}")]
    Delete {
        /// Its directory.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The store is in use.
    #[error("deleting store path failed: {0}")]
    DeleteStore(String),
    /// The clean-up after a create cannot be started.
    #[error("failed-to-schedule-cleanup: {0}")]
    Schedule(#[source] io::Error),
    /// The store's own error.
    #[error("{}", chain(.0))]
    Store(#[from] wardian_store::Error),
    /// The run directory cannot be used.
    #[error("preparing the run directory {path}: {source}")]
    Run {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The answer cannot be written.
    #[error(transparent)]
    Print(anyhow::Error),
}

/// An error and its causes, as Go writes them: outermost first, separated by colons.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        // Some errors contain the text of their cause.
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

/// A system's error as Go writes it.
pub fn go_error(op: &str, path: impl AsRef<std::path::Path>, error: &io::Error) -> String {
    format!("{op} {}: {}", path.as_ref().display(), go_text(error))
}

/// The text of a system's error as Go writes it: without its number, and in lower case.
pub fn go_text(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_lowercase().chain(letters).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_the_system_read_as_gos() {
        let error = std::fs::read("/nonexistent/x").unwrap_err();
        assert_eq!(
            go_error("open", "/nonexistent/x", &error),
            "open /nonexistent/x: no such file or directory"
        );
    }

    #[test]
    fn causes_follow_their_errors() {
        let source = io::Error::from_raw_os_error(28);
        let error = wardian_store::Error::Thread { name: "reaper", source };
        assert_eq!(
            Error::from(error).to_string(),
            "cannot start the store's reaper thread: No space left on device (os error 28)"
        );
    }
}
