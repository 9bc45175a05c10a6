//! Reads, decompresses, hashes and writes one blob concurrently.
//!
//! ```text
//!            ┌─ blob pieces ──┐
//! reader ────┤                ├──> hasher: digest of the blob, diff id
//! (file,     └─ plain pieces ─┤
//!  decoder)                   └──> writer (the caller's thread): the tar stream
//! ```
//!
//! Each stage can keep a core busy: a 392 MB layer in zstd takes 0.4 s to decompress, 0.5 s to hash and 0.5 s to
//! write. A piece goes to both of its readers without a copy, and its buffer is reused after the last of them.

use std::fs::File;
use std::io::{self, BufRead, Read, Seek, Write};
use std::mem;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use rustix::fs::{Mode, OFlags, openat};
use sha2::{Digest as _, Sha256};

use crate::bounds::budget::Budget;
use crate::bounds::room::{PIECE, Share};
use crate::bounds::stop::Stop;
use crate::digest::Digest;
use crate::disk::stored::Whole;
use crate::error::{Error, at};
use crate::format::compression::{Compression, MAX_WINDOW_LOG, Made, WINDOW_LOG, window};
use crate::format::stream::stream_error;

/// The queue length for each reader, in pieces. 3 MiB hide the stages' pauses on a busy host, and keep four
/// concurrent unpacks far below 64 MB of memory.
const WAITING: usize = 12;
/// The size of the first piece, which is read before any room is taken, to see how much is needed.
const HEAD: usize = 4 << 10;
/// The maximum memory of an unpack, without a zstd window: the pieces in the two queues may all be different ones.
const PIECES: usize = (2 * WAITING + 8) * PIECE;
/// The receive size for a blob that is kept in a file, in bytes.
const KEPT_AT_ONCE: usize = 64 << 10;

type Piece = Arc<Vec<u8>>;

/// A blob to be read.
pub(crate) struct Input<'a> {
    /// The reader. Its errors may hold an [`Error`]; if it can block for long, it must end on `stop`.
    pub(crate) reader: Box<dyn Read + Send + 'a>,
    pub(crate) what: &'a str,
    /// The expected size in bytes; without it, the blob is read to its end.
    pub(crate) size: Option<u64>,
    /// Whether the digest of the bytes as stored is wanted.
    pub(crate) digest: bool,
    /// Whether anything not compressed by gzip is refused.
    pub(crate) only_gzip: bool,
    /// Counts the bytes as stored; `None` if they were counted with another layer.
    pub(crate) budget: Option<&'a Budget>,
    /// For readers that may wait for the network: a directory on whose file system the blob can be buffered in a
    /// file.
    pub(crate) keep_in: Option<BorrowedFd<'a>>,
    pub(crate) stop: &'a Stop<'a>,
    /// How the whole file that contains the blob is stored, if it is compressed again or has holes.
    pub(crate) whole: Option<Whole>,
    /// Whether its bytes were counted for the watcher before.
    pub(crate) seen: bool,
}

impl Input<'_> {
    /// Returns how many bytes on the disk or from the network this many bytes of the blob were.
    fn stored(&self, read: u64) -> u64 {
        self.whole.map_or(read, |whole| whole.part(read))
    }
}

/// The digests and size of a blob that was read.
pub(crate) struct Digests {
    /// The digest of the bytes as stored. `None` if they are not compressed, or if it was not wanted.
    pub(crate) blob: Option<Digest>,
    /// The digest of the uncompressed bytes.
    pub(crate) plain: Digest,
    /// The number of bytes as stored.
    pub(crate) stored: u64,
}

enum Work {
    Blob(Piece),
    Plain(Piece),
}

/// Passes the uncompressed bytes of `input` to `write`, which must read them to the end.
pub(crate) fn run<T>(
    input: Input<'_>,
    write: impl FnOnce(Pieces<'_>) -> Result<T, Error>,
) -> Result<(T, Digests), Error> {
    let (what, stop) = (input.what, input.stop);
    let thread_error = |why: String| Error::Thread { what: what.into(), why };
    thread::scope(|scope| {
        let pool = &stop.share;
        let (to_hasher, work) = sync_channel(WAITING);
        let (to_writer, pieces) = sync_channel(WAITING);
        let spawn_error = |e: io::Error| thread_error(e.to_string());
        let hasher = thread::Builder::new()
            .name("layer-hash".into())
            .spawn_scoped(scope, move || hash(&work, pool))
            .map_err(spawn_error)?;
        let reader = thread::Builder::new()
            .name("layer-read".into())
            .spawn_scoped(scope, move || read(input, pool, &to_hasher, &to_writer))
            .map_err(spawn_error)?;
        let written = write(Pieces { pieces, pool, stop, piece: Piece::default(), at: 0 });
        let written = written.map_err(|error| error.of(what));
        if written.is_err() {
            stop.give_up();
        }
        // The writer's channel is gone now, so a reader with more to say stops, and the hasher after it.
        let read = reader.join().map_err(|_| thread_error("its reader panicked".into()))?;
        let (blob, plain) = hasher.join().map_err(|_| thread_error("its hasher panicked".into()))?;
        if stop.watch.is_cancelled() {
            return Err(Error::Cancelled { what: what.into() });
        }
        let ((end, stored), written) = match (read, written) {
            // The reader was stopped because the writer had failed.
            (Err(Error::Cancelled { .. }), Err(error)) => return Err(error),
            // The reader's error is the cause: the writer only saw an early end.
            (Err(error), _) | (Ok(_), Err(error)) => return Err(error),
            (Ok(end), Ok(written)) => (end, written),
        };
        match end {
            End::Eof => Ok((written, Digests { blob, plain, stored })),
            End::Stopped => Err(thread_error("nobody reads on".into())),
        }
    })
}

fn hash(work: &Receiver<Work>, pool: &Share<'_>) -> (Option<Digest>, Digest) {
    let (mut blob, mut plain) = (None, Sha256::new());
    for work in work {
        let piece = match work {
            Work::Blob(piece) => {
                blob.get_or_insert_with(Sha256::new).update(piece.as_slice());
                piece
            }
            Work::Plain(piece) => {
                plain.update(piece.as_slice());
                piece
            }
        };
        pool.give(piece);
    }
    (blob.map(Digest::finish), Digest::finish(plain))
}

/// The outcome of reading.
enum End {
    Eof,
    /// The writer or the hasher has stopped; only their error counts.
    Stopped,
}

/// The reader's thread; returns how many bytes it has read. The compression is detected from the first bytes: media
/// types may be wrong, and a tar file has none.
fn read(
    input: Input<'_>,
    pool: &Share<'_>,
    hasher: &SyncSender<Work>,
    writer: &SyncSender<Piece>,
) -> Result<(End, u64), Error> {
    let what = input.what;
    let (digest, only_gzip) = (input.digest, input.only_gzip);
    let (keep_in, seen) = (input.keep_in, input.seen);
    let (piece, made) = (Piece::default(), Made::default());
    let mut raw = Raw {
        input,
        pool,
        hasher: None,
        made: None,
        piece,
        at: 0,
        total: 0,
        needs: 0,
        kept: seen,
        cause: None,
    };
    let result = (|| {
        let head = raw.fill_buf()?;
        let compression = Compression::of(head);
        let (gzip, zstd) = (compression == Some(Compression::Gzip), compression == Some(Compression::Zstd));
        let large = window(head).is_some_and(|window| window > 1 << WINDOW_LOG);
        let log = if large { MAX_WINDOW_LOG } else { WINDOW_LOG };
        // An archive cannot be empty, but a layer can; the writer knows.
        if head.is_empty() && only_gzip {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it is empty"));
        }
        if let Some(error) = compression.and_then(|other| other.refused(what)) {
            return Err(io::Error::other(error));
        }
        if only_gzip && !gzip {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it is not compressed by gzip"));
        }
        raw.needs = if zstd { PIECES + (1 << log) } else { PIECES };
        // A server may be slow, and a decoder holds its window until the end.
        if let Some(dir) = keep_in.filter(|_| zstd)
            && !pool.take_firm(raw.needs)
        {
            raw.keep(dir)?;
        }
        raw.take_room()?;
        if !gzip && !zstd {
            return copy(&mut raw, hasher, writer);
        }
        raw.made = Some(&made);
        if digest {
            raw.hash_with(hasher);
        }
        let decoded = if gzip {
            decode(flate2::bufread::MultiGzDecoder::new(&mut raw), &made, pool, hasher, writer)?
        } else {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(&mut raw)?;
            decoder.window_log_max(log)?;
            decode(decoder, &made, pool, hasher, writer)?
        };
        if matches!(decoded, End::Eof) {
            // Reads what the decoder has left over, normally nothing.
            while let n @ 1.. = raw.fill_buf()?.len() {
                raw.consume(n);
            }
        }
        Ok(decoded)
    })();
    match (raw.cause.take(), result) {
        (Some(cause), _) => Err(cause),
        (None, result) => {
            let end = result.map_err(|e| stream_error(what, e))?;
            match raw.input.size {
                Some(size) if raw.total != size && !matches!(end, End::Stopped) => {
                    Err(size_mismatch(what, size, raw.total))
                }
                _ => Ok((end, raw.input.stored(raw.total))),
            }
        }
    }
}

fn size_mismatch(what: &str, expected: u64, actual: u64) -> Error {
    Error::SizeMismatch { what: what.into(), expected, actual }
}

fn copy(raw: &mut Raw<'_>, hasher: &SyncSender<Work>, writer: &SyncSender<Piece>) -> io::Result<End> {
    while !raw.fill_buf()?.is_empty() {
        let piece = mem::take(&mut raw.piece);
        if hasher.send(Work::Plain(Arc::clone(&piece))).is_err() || writer.send(piece).is_err() {
            return Ok(End::Stopped);
        }
    }
    Ok(End::Eof)
}

fn decode(
    mut decoder: impl Read,
    made: &Made,
    pool: &Share<'_>,
    hasher: &SyncSender<Work>,
    writer: &SyncSender<Piece>,
) -> io::Result<End> {
    loop {
        let mut buffer = pool.buffer();
        fill(&mut decoder, &mut buffer)?;
        made.add(buffer.len() as u64);
        if buffer.is_empty() {
            return Ok(End::Eof);
        }
        let piece = Arc::new(buffer);
        if hasher.send(Work::Plain(Arc::clone(&piece))).is_err() || writer.send(piece).is_err() {
            return Ok(End::Stopped);
        }
    }
}

/// Reads until the buffer is full or the source ends, and truncates the buffer to the bytes read.
fn fill(source: &mut impl Read, buffer: &mut Vec<u8>) -> io::Result<()> {
    let mut at = 0;
    while at < buffer.len() {
        match source.read(&mut buffer[at..]) {
            Ok(0) => break,
            Ok(n) => at += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    buffer.truncate(at);
    Ok(())
}

/// The blob's bytes as stored.
struct Raw<'a> {
    input: Input<'a>,
    pool: &'a Share<'a>,
    /// Also receives each piece, if the digest of the blob is wanted.
    hasher: Option<&'a SyncSender<Work>>,
    /// Counts the decoder's output.
    made: Option<&'a Made>,
    piece: Piece,
    at: usize,
    total: u64,
    /// The memory needed to go on, in bytes; 0 until it is known.
    needs: usize,
    /// Whether the reader replays a blob that was received into a file, and counted, before.
    kept: bool,
    /// The error that ended the reading, which a decoder may hide behind another one.
    cause: Option<Error>,
}

impl<'a> Raw<'a> {
    /// Starts hashing with the current piece, which must be the first.
    fn hash_with(&mut self, hasher: &'a SyncSender<Work>) {
        // A dead hasher is detected when the first plain piece is sent.
        let _ = hasher.send(Work::Blob(Arc::clone(&self.piece)));
        self.hasher = Some(hasher);
    }

    /// Stores the error that ended the reading, and returns a generic one for the decoder.
    fn end(&mut self, cause: Error) -> io::Error {
        self.cause = Some(cause);
        io::Error::other("the reader failed")
    }

    fn check_stop(&mut self) -> io::Result<()> {
        if self.input.stop.is_set() {
            let what = self.input.what.into();
            return Err(self.end(Error::Cancelled { what }));
        }
        Ok(())
    }

    /// Takes the needed room and waits for it, unless it is held already.
    fn take_room(&mut self) -> io::Result<()> {
        let stop = self.input.stop;
        if self.needs > 0 && !self.pool.take(self.needs, &|| stop.is_set()) {
            self.check_stop()?;
        }
        Ok(())
    }

    /// Returns how many bytes to read: one more than expected suffices to detect a wrong size.
    fn wanted(&self, received: u64) -> usize {
        let left = |size: u64| size.saturating_sub(received).saturating_add(1);
        self.input.size.map_or(usize::MAX, |size| usize::try_from(left(size)).unwrap_or(usize::MAX))
    }

    /// Receives the rest into an unnamed file (O_TMPFILE), and continues reading from that.
    fn keep(&mut self, dir: BorrowedFd<'_>) -> io::Result<()> {
        let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
        let op = "make a temporary file for a layer in";
        let file = openat(dir, ".", flags, Mode::RUSR).map_err(|error| self.end(at(op, b".")(error)))?;
        let (mut file, mut received) = (File::from(file), self.total);
        let mut buffer = vec![0; KEPT_AT_ONCE];
        loop {
            self.check_stop()?;
            buffer.resize(KEPT_AT_ONCE.min(self.wanted(received)), 0);
            let read = fill(&mut self.input.reader, &mut buffer);
            read.map_err(|error| self.end(stream_error(self.input.what, error)))?;
            if buffer.is_empty() {
                break;
            }
            received += buffer.len() as u64;
            self.input.stop.watch.add(buffer.len() as u64);
            let path = self.input.what.to_owned();
            let written = file.write_all(&buffer);
            written.map_err(|source| self.end(Error::Io { op: "keep", path, source }))?;
        }
        file.rewind()?;
        self.input.reader = Box::new(file);
        self.kept = true;
        Ok(())
    }
}

impl Read for Raw<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.fill_buf()?.read(buf)?;
        self.consume(n);
        Ok(n)
    }
}

impl BufRead for Raw<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at < self.piece.len() {
            return Ok(&self.piece[self.at..]);
        }
        self.check_stop()?;
        if let Some(Err(error)) = self.made.map(|made| made.check(self.input.what, self.total)) {
            return Err(self.end(error));
        }
        self.pool.give(mem::take(&mut self.piece));
        self.at = 0;
        let mut buffer = if self.needs == 0 { vec![0; HEAD] } else { self.pool.buffer() };
        buffer.truncate(self.wanted(self.total));
        if let Err(e) = fill(&mut self.input.reader, &mut buffer) {
            return Err(self.end(stream_error(self.input.what, e)));
        }
        self.total += buffer.len() as u64;
        if !self.kept {
            self.input.stop.watch.add(buffer.len() as u64);
        }
        if let Some(budget) = self.input.budget {
            let before = self.total - buffer.len() as u64;
            budget.add_stored(self.input.stored(self.total) - self.input.stored(before));
        }
        if let Some(size) = self.input.size.filter(|size| self.total > *size) {
            return Err(self.end(size_mismatch(self.input.what, size, self.total)));
        }
        // The room may have been returned during the wait for data.
        self.take_room()?;
        self.piece = Arc::new(buffer);
        if let Some(hasher) = self.hasher.filter(|_| !self.piece.is_empty()) {
            let _ = hasher.send(Work::Blob(Arc::clone(&self.piece)));
        }
        Ok(&self.piece)
    }

    fn consume(&mut self, n: usize) {
        self.at = (self.at + n).min(self.piece.len());
    }
}

/// The writer's end of the pipeline.
pub(crate) struct Pieces<'a> {
    pieces: Receiver<Piece>,
    pool: &'a Share<'a>,
    stop: &'a Stop<'a>,
    piece: Piece,
    at: usize,
}

impl Read for Pieces<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.fill_buf()?.read(buf)?;
        self.consume(n);
        Ok(n)
    }
}

impl BufRead for Pieces<'_> {
    /// A cancelled unpack looks like an early end of file here; [`run`] returns the right error.
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.stop.watch.is_cancelled() {
            return Ok(&[]);
        }
        if self.at == self.piece.len() {
            self.at = 0;
            self.pool.give(mem::take(&mut self.piece));
            if let Ok(next) = self.pieces.recv() {
                self.piece = next;
            }
        }
        Ok(&self.piece[self.at..])
    }

    fn consume(&mut self, n: usize) {
        self.at = (self.at + n).min(self.piece.len());
    }
}
