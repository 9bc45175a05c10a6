//! Tar streams as tools write them: headers of all formats, extension records, maps of sparse files.
//!
//! Image layers, `cp` and stream-in parse their tars with this crate, so that an archive means the same everywhere.
//! It creates no files: its readers decide what an entry may do. [`Linked`] tells writers of archives which files
//! need a hard link entry.

mod error;
mod field;
mod linked;
mod sparse;
mod stream;
mod xattr;

pub use error::{Error, show};
pub use linked::Linked;
pub use sparse::Sparse;
pub use stream::{Entry, Stream, Time};
