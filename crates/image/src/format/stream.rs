//! Adapts tar streams to this crate: its own errors, and the counting of bytes for an image.

use std::io::{self, BufRead, Read};

pub(crate) use wardian_archive::{Entry, Stream, Time};

use crate::bounds::budget::Meter;
use crate::error::Error;

impl From<wardian_archive::Error> for Error {
    fn from(error: wardian_archive::Error) -> Self {
        use wardian_archive::Error as E;
        match error {
            E::Read(source) => stream_error("tar stream", source),
            E::Limit { what, limit } => Self::Limit { what, limit },
            E::Truncated { what } => Self::Truncated { what },
            E::NoTar => Self::NoTar { what: "the tar stream".into() },
            E::NoEnd => Self::Truncated { what: "tar stream (no end of archive)".into() },
            E::Corrupt { what, why } => Self::Corrupt { what, why },
            E::Entry { path, why } => Self::Entry { path, why },
        }
    }
}

/// Counts a stream's bytes for its image.
pub(crate) struct Metered<R> {
    inner: R,
    offset: u64,
    meter: Meter,
}

impl<R> Metered<R> {
    pub(crate) fn new(inner: R, meter: Meter) -> Self {
        Self { inner, offset: 0, meter }
    }
}

impl<R: BufRead> BufRead for Metered<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.offset >= self.meter.next {
            self.meter.count(self.offset).map_err(io::Error::other)?;
        }
        if self.inner.fill_buf()?.is_empty() {
            self.meter.count(self.offset).map_err(io::Error::other)?;
        }
        self.inner.fill_buf()
    }

    fn consume(&mut self, bytes: usize) {
        self.inner.consume(bytes);
        self.offset += bytes as u64;
    }
}

impl<R: BufRead> Read for Metered<R> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let from = self.fill_buf()?;
        let bytes = from.len().min(to.len());
        to[..bytes].copy_from_slice(&from[..bytes]);
        self.consume(bytes);
        Ok(bytes)
    }
}

/// Converts an error of a reader or decoder; `what` names the data.
pub(crate) fn stream_error(what: &str, source: io::Error) -> Error {
    let source = match source.downcast::<Error>() {
        Ok(error) => return error,
        Err(source) => source,
    };
    if source.raw_os_error().is_some() {
        return Error::Io { op: "read", path: what.into(), source };
    }
    match source.kind() {
        io::ErrorKind::UnexpectedEof => Error::Truncated { what: what.into() },
        // The text of libzstd's `ZSTD_error_frameParameter_windowTooLarge`: the binding gives no number.
        _ if source.to_string().contains("requires too much memory") => Error::Window { what: what.into() },
        _ => Error::Corrupt { what: what.into(), why: source.to_string() },
    }
}
