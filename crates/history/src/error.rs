//! Errors of the store of runs.

use std::path::PathBuf;
use wardian_sys::directory::Error as Untrusted;

/// Shorthand.
pub type Result<T> = std::result::Result<T, Error>;

/// Why the history cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file, or its directory, cannot be used.
    #[error("the history cannot be used: {0}")]
    Place(#[from] Untrusted),
    /// The path names no file.
    #[error("{path} names no file: give the history a path such as /var/lib/wardian/lab/history.sqlite", path = .path.display())]
    NoFile {
        /// The path.
        path: PathBuf,
    },
    /// The file is not a database, or a damaged one.
    #[error(
        "the history {path} is damaged ({why}): move it away, with its -wal and -shm files if there are any; the next run \
         begins a new one. `sqlite3 FILE .recover` may read what is left of it",
        path = .path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// SQLite's words, or what is missing.
        why: String,
    },
    /// The file is a database of another program.
    #[error("{path} is a database of another program: name another file for the history", path = .path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// A newer program has written it.
    #[error(
        "the history {path} has version {found}, and this program knows versions up to {known}: use the newer wardian that \
         has written it, or name another file",
        path = .path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// The newest version that this program knows.
        known: i64,
    },
    /// The file cannot be written, and cannot be read as it is.
    #[error(
        "the history {path} cannot be written, and must be before it can be read: copy it, with its -wal file if there is one, \
         and name the copy with --history",
        path = .path.display()
    )]
    Unmerged {
        /// The file.
        path: PathBuf,
    },
    /// The disk is full.
    #[error("the history {path} was not written: its disk is full", path = .path.display())]
    Full {
        /// The file.
        path: PathBuf,
    },
    /// Another process has kept the file locked.
    #[error("the history {path} was locked by another process for too long: try again", path = .path.display())]
    Busy {
        /// The file.
        path: PathBuf,
    },
    /// A run cannot be stored.
    #[error("this run cannot be stored: {why}")]
    Run {
        /// What is wrong with it.
        why: String,
    },
    /// A file to be imported has a bad line.
    #[error("line {line}: {why}; nothing was imported")]
    Line {
        /// The line's number, from 1.
        line: u64,
        /// What is wrong with it.
        why: String,
    },
    /// SQLite failed in another way.
    #[error("the history {path}: {source}", path = .path.display())]
    Sqlite {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: rusqlite::Error,
    },
    /// A file could not be read or written.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}
