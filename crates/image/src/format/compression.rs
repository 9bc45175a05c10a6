//! Compressed data: its format, and the memory that a decoder needs.

use std::io::{self, BufRead, Read};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::Error;

/// The usual zstd window, and the largest one that is accepted, as powers of two. A decoder holds the whole window,
/// whose size the layer chooses, in memory. 8 MiB are what every decoder should support (RFC 8878, section 3.1.1.1.2)
/// and what `zstd -19` makes; image builders make larger ones at their highest levels.
pub(crate) const WINDOW_LOG: u32 = 23;
pub(crate) const MAX_WINDOW_LOG: u32 = 25;

/// The format of compressed data, detected from its first bytes: names and media types may be wrong, and a tar file
/// has no media type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    Gzip,
    Zstd,
    Xz,
    Bzip2,
}

impl Compression {
    /// Detects the format from the first ten or more bytes, if there are as many. `None`: not compressed in any known
    /// format.
    pub(crate) fn of(head: &[u8]) -> Option<Self> {
        match head {
            [0x1f, 0x8b, ..] => Some(Self::Gzip),
            // A frame, or a skippable frame before it (RFC 8878, section 3.1).
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Some(Self::Zstd),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some(Self::Xz),
            // The magic of its first block, or of the end of its stream, is checked too: a file name in a tar may
            // begin with `BZh`.
            [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, 0x59, 0x26, 0x53, 0x59, ..]
            | [b'B', b'Z', b'h', b'1'..=b'9', 0x17, 0x72, 0x45, 0x38, 0x50, 0x90, ..] => Some(Self::Bzip2),
            _ => None,
        }
    }

    /// Returns the error for an unsupported format; `None` for a supported one.
    pub(crate) fn refused(self, path: &str) -> Option<Error> {
        let (by, tool) = match self {
            Self::Gzip | Self::Zstd => return None,
            Self::Xz => ("xz", "xz"),
            Self::Bzip2 => ("bzip2", "bzip2"),
        };
        let path = path.to_owned();
        let command = if path.starts_with('/') && !path.contains([' ', '\'', '"', '$', '`']) {
            format!("{tool} -dc {path} | gzip >NEW.tar.gz")
        } else {
            format!("{tool} -dc FILE | gzip >NEW.tar.gz")
        };
        Some(Error::Compression { path, by, command })
    }
}

/// Bytes that a decoder may read without output: skippable frames, such as the table of contents of a seekable layer,
/// which has some MiB.
const IDLE: u64 = 16 << 20;

/// Counts the output of a decoder. Input such as skippable frames and empty members has no output, and may be as long
/// as the file, or endless from a server.
#[derive(Debug, Default)]
pub(crate) struct Made(AtomicU64);

impl Made {
    pub(crate) fn add(&self, bytes: u64) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Fails if much more was read than decompressed. Incompressible data takes less than an eighth more in stored
    /// form.
    pub(crate) fn check(&self, what: &str, stored: u64) -> Result<(), Error> {
        let made = self.0.load(Ordering::Relaxed);
        if stored > made.saturating_add(made / 8).saturating_add(IDLE) {
            return Err(Error::Idle { what: what.into(), stored, made });
        }
        Ok(())
    }
}

/// Returns the window size of a zstd frame, which its decoder must hold in memory, if the data begins with a frame
/// (RFC 8878, section 3.1.1.1).
pub(crate) fn window(head: &[u8]) -> Option<u64> {
    let [0x28, 0xb5, 0x2f, 0xfd, descriptor, rest @ ..] = head else { return None };
    let single_segment = descriptor & 0x20 != 0;
    if !single_segment {
        let byte = u64::from(*rest.first()?);
        let base = 1_u64 << (10 + (byte >> 3));
        return Some(base + base / 8 * (byte & 7));
    }
    // A single segment's window is its content.
    let at = [0, 1, 2, 4][usize::from(descriptor & 3)];
    let (length, more) = [(1, 0), (2, 256), (4, 0), (8, 0)][usize::from(descriptor >> 6)];
    let size = rest.get(at..at + length)?;
    Some(size.iter().rev().fold(0, |sum: u64, byte| sum << 8 | u64::from(*byte)) + more)
}

/// Returns a single-threaded decoder; `None` for an unsupported format.
pub(crate) fn decoder<'a>(
    compression: Compression,
    reader: impl BufRead + 'a,
) -> io::Result<Option<Box<dyn Read + 'a>>> {
    Ok(Some(match compression {
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(reader)),
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(reader)?;
            decoder.window_log_max(MAX_WINDOW_LOG)?;
            Box::new(decoder)
        }
        Compression::Xz | Compression::Bzip2 => return Ok(None),
    }))
}
