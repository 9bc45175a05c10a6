//! Why a tar stream cannot be read, and how a name in it is shown.

use std::io;

/// Bytes of a name that an error shows.
const SHOWN: usize = 256;

/// Why a stream could not be read. Names are escaped and cut.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The reader failed.
    #[error("cannot read the tar stream: {0}")]
    Read(#[source] io::Error),
    /// A value exceeds the caller's limit.
    #[error("{what} exceeds the limit of {limit}")]
    Limit {
        /// What is too large.
        what: String,
        /// The limit, in bytes.
        limit: u64,
    },
    /// The data ends early.
    #[error("{what} is truncated")]
    Truncated {
        /// What ends too early.
        what: String,
    },
    /// The stream ends after an entry, without a block of zeros: further entries may be missing.
    #[error("tar stream (no end of archive) is truncated")]
    NoEnd,
    /// The data does not begin with a tar header.
    #[error("not a tar header at the beginning")]
    NoTar,
    /// The data is no valid tar from here on.
    #[error("{what} is corrupt: {why}")]
    Corrupt {
        /// The corrupt part.
        what: String,
        /// The reason.
        why: String,
    },
    /// An entry is well-formed, but has an impossible value.
    #[error("bad entry {path}: {why}")]
    Entry {
        /// The entry's name.
        path: String,
        /// The reason.
        why: String,
    },
}

/// An untrusted name, escaped for a log line.
#[must_use]
pub fn show(name: &[u8]) -> String {
    let cut = name.len().min(SHOWN);
    let dots = if cut < name.len() { "…" } else { "" };
    format!("\"{}\"{dots}", name[..cut].escape_ascii())
}
