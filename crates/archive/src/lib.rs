//! Tar streams as tools write them: headers of every kind, extension records, maps of sparse files.
//!
//! Image layers, `cp` and stream-in read their tars here, so that one archive means the same everywhere. This crate makes no
//! files: what an entry may do is for its readers to say. Writers learn here which names are second ones.

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
