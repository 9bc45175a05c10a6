//! The Garden API: its wire types, its errors, and a client.
//!
//! The wire types are plain data. [`decode`] reads them the way Go's `encoding/json` does (field names in any
//! case, `null` is the zero value, what follows the first value is ignored) and [`encode`] writes them the way
//! Go does, because both ends of this API have always been written in Go.

pub mod certificate;
mod client;
mod error;
mod json;
pub mod wire;

pub use client::address::Address;
pub use client::events::Events;
pub use client::kept::{KeptOutput, Piece};
pub use client::process::{Io, OutputReader, Process};
pub use client::requests::Client;
pub use client::tar::{TAR_FAILURE, TarFailure, TarReader};
pub use client::tls::TlsFiles;
pub use error::{Error, ErrorBody, ErrorKind, Result};
pub use json::{DecodeError, Decoder, decode, decode_exactly, decode_list, encode, write};
