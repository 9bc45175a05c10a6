//! One layer: opening its blob, decompressing, verifying and unpacking it at the same time.

use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use crate::archive::stream_error;
use crate::archives::Section;
use crate::digest::{Digest, Hashing};
use crate::error::Error;
use crate::oci::Layout;
use crate::unpack::{Limits, Unpacked, unpack};

/// Bytes of one piece handed from the decompressor to the writer, and how many may wait. 4 MiB in flight hide the
/// writer's pauses and keep a pull far below 50 MB of memory.
const PIECE: usize = 512 << 10;
const PIECES: usize = 8;

/// One layer of an image. Cheap to keep: the data is read when it is unpacked.
#[derive(Debug, Clone)]
pub struct Layer {
    /// Hex name of this layer on top of those below it, safe as a file name. For OCI the chain id (OCI image spec,
    /// "Layer ChainID"); for a tar file a hash of its path, size, modification time and inode.
    pub chain_id: String,
    pub(crate) blob: Blob,
}

/// Where the bytes of a layer are, and what they must be.
#[derive(Debug, Clone)]
pub(crate) enum Blob {
    Oci {
        layout: Arc<Layout>,
        digest: Digest,
        size: u64,
        diff_id: Digest,
    },
    /// A file in an archive, which only its content vouches for.
    Member {
        section: Section,
        diff_id: Digest,
    },
    File {
        path: PathBuf,
        identity: Identity,
    },
}

/// Tells one state of a file from another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) size: u64,
    pub(crate) mtime: (i64, i64),
    pub(crate) inode: u64,
}

impl Identity {
    pub(crate) fn of(meta: &std::fs::Metadata) -> Self {
        Self { size: meta.len(), mtime: (meta.mtime(), meta.mtime_nsec()), inode: meta.ino() }
    }
}

impl Layer {
    /// Unpacks the layer into the empty directory `into`. Digest and size of the blob and the diff id of its content
    /// are verified on the way, over every byte. After an error the caller throws the directory away.
    ///
    /// # Errors
    /// A blob that is missing, damaged or not what was promised; whatever [`crate::unpack_tar`] refuses.
    pub fn unpack(&self, into: BorrowedFd<'_>, limits: &Limits) -> Result<Unpacked, Error> {
        match &self.blob {
            Blob::Oci { layout, digest, size, diff_id } => {
                let what = format!("layer {digest}");
                let file = layout.blob(digest, *size)?;
                let (unpacked, blob, bytes) = pipeline(file, &what, into, limits, false)?;
                if bytes != *size {
                    return Err(Error::SizeMismatch { what, expected: *size, actual: bytes });
                }
                same(&what, digest, &blob)?;
                same(&format!("content of {what}"), diff_id, &unpacked.diff_id)?;
                Ok(unpacked)
            }
            Blob::Member { section, diff_id } => {
                let what = format!("layer with the diff id {diff_id}");
                let (unpacked, ..) = pipeline(section.clone(), &what, into, limits, false)?;
                same(&what, diff_id, &unpacked.diff_id)?;
                Ok(unpacked)
            }
            Blob::File { path, identity } => {
                let what = path.display().to_string();
                let file = crate::source::open_tar(path)?;
                let again =
                    || file.metadata().map_err(|source| Error::Io { op: "stat", path: what.clone(), source });
                let check = |meta| {
                    if Identity::of(&meta) == *identity {
                        Ok(())
                    } else {
                        Err(Error::Changed { path: what.clone() })
                    }
                };
                check(again()?)?;
                let reader = file.try_clone().map_err(|source| Error::Io {
                    op: "open",
                    path: what.clone(),
                    source,
                })?;
                let (unpacked, ..) = pipeline(reader, &what, into, limits, true)?;
                check(again()?)?;
                Ok(unpacked)
            }
        }
    }
}

fn same(what: &str, expected: &Digest, actual: &Digest) -> Result<(), Error> {
    if expected == actual {
        return Ok(());
    }
    Err(Error::DigestMismatch {
        what: what.into(),
        expected: expected.to_string(),
        actual: actual.to_string(),
    })
}

/// Unpacks `file` while a second thread reads, decompresses and hashes it. Gives also the digest and the size of the
/// compressed bytes.
fn pipeline(
    file: impl Read + Send,
    what: &str,
    into: BorrowedFd<'_>,
    limits: &Limits,
    strict: bool,
) -> Result<(Unpacked, Digest, u64), Error> {
    let thread_error = |why: String| Error::Thread { what: what.into(), why };
    thread::scope(|scope| {
        let (full, pieces) = sync_channel(PIECES);
        let (spare, empty) = sync_channel(PIECES);
        let producer = thread::Builder::new()
            .name("layer-read".into())
            .spawn_scoped(scope, move || produce(file, what, &full, &empty))
            .map_err(|e| thread_error(e.to_string()))?;
        let counts = unpack(Pieces { pieces, spare, piece: Vec::new(), at: 0 }, into, limits, strict);
        // The channels are gone now, so a producer with more to say stops.
        let produced = producer.join().map_err(|_| thread_error("it panicked".into()))?;
        let ((diff_id, blob, bytes), counts) = match (produced, counts) {
            (Ok(read), Ok(counts)) => (read, counts),
            (Ok(_) | Err(Error::Thread { .. }), Err(e)) => return Err(e),
            // The reader's error is the cause: the writer only saw an early end.
            (Err(e), _) => return Err(e),
        };
        let unpacked = Unpacked {
            entries: counts.entries,
            bytes: counts.bytes,
            diff_id,
            skipped_xattrs: counts.skipped_xattrs,
        };
        Ok((unpacked, blob, bytes))
    })
}

/// Reads, decompresses and hashes a blob: (diff id, digest, compressed bytes). Ends early if nobody takes the pieces.
fn produce(
    file: impl Read + Send,
    what: &str,
    full: &SyncSender<Vec<u8>>,
    empty: &Receiver<Vec<u8>>,
) -> Result<(Digest, Digest, u64), Error> {
    let mut raw = BufReader::with_capacity(PIECE, Hashing::new(file));
    let mut plain = Hashing::new(decoder(&mut raw, what)?);
    loop {
        let mut piece = empty.try_recv().unwrap_or_default();
        piece.resize(PIECE, 0);
        let mut at = 0;
        while at < PIECE {
            match plain.read(&mut piece[at..]) {
                Ok(0) => break,
                Ok(n) => at += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(stream_error(what, e)),
            }
        }
        piece.truncate(at);
        if at == 0 {
            break;
        }
        if full.send(piece).is_err() {
            // The writer failed, and only its error counts.
            return Err(Error::Thread { what: what.into(), why: "nobody reads on".into() });
        }
    }
    let (diff_id, _) = plain.finish();
    // Only what the decoder left over, normally nothing.
    io::copy(&mut raw, &mut io::sink()).map_err(|e| stream_error(what, e))?;
    let (blob, bytes) = raw.into_inner().finish();
    Ok((diff_id, blob, bytes))
}

/// Chosen by content: media types lie, and a tar file has none.
fn decoder<'a, R: BufRead + 'a>(mut raw: R, what: &str) -> Result<Box<dyn Read + 'a>, Error> {
    let head = raw.fill_buf().map_err(|e| stream_error(what, e))?;
    Ok(match head {
        [] => return Err(Error::Corrupt { what: what.into(), why: "it is empty".into() }),
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(raw)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            Box::new(zstd::stream::read::Decoder::with_buffer(raw).map_err(|e| stream_error(what, e))?)
        }
        _ => Box::new(raw),
    })
}

/// The writer's end of the pipeline.
struct Pieces {
    pieces: Receiver<Vec<u8>>,
    spare: SyncSender<Vec<u8>>,
    piece: Vec<u8>,
    at: usize,
}

impl Read for Pieces {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.fill_buf()?.read(buf)?;
        self.consume(n);
        Ok(n)
    }
}

impl BufRead for Pieces {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.piece.len()
            && let Ok(next) = self.pieces.recv()
        {
            let used = std::mem::replace(&mut self.piece, next);
            self.at = 0;
            // With no room for it the buffer is simply freed.
            let _ = self.spare.try_send(used);
        }
        Ok(&self.piece[self.at..])
    }

    fn consume(&mut self, n: usize) {
        self.at = (self.at + n).min(self.piece.len());
    }
}
