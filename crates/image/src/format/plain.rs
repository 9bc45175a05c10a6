//! Archives that are compressed as a whole (`docker save x | gzip`). Since archives are read in place, these are
//! decompressed first, into an unnamed file (O_TMPFILE).

use parking_lot::Mutex;
use std::fmt;
use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use rustix::fs::{CWD, Mode, OFlags, openat};

use super::compression::{Compression, Made, decoder};
use super::stream::stream_error;
use crate::bounds::budget::{Budget, Meter};
use crate::bounds::limits::Limits;
use crate::disk::file::{Identity, open_tar};
use crate::disk::section::Section;
use crate::disk::stored::{self, Whole};
use crate::error::Error;

/// The default directory for unnamed files: not /tmp, which may be a tmpfs in the host's memory.
const DEFAULT: &str = "/var/tmp";
/// The write size in bytes.
const PIECE: usize = 256 << 10;

/// The limits and cancellation of opening an image.
pub struct Opening<'a> {
    /// The limits of an archive that is compressed as a whole: those of an image's layers together, with the same
    /// ratio.
    pub limits: Limits,
    /// The directory on whose file system it is decompressed; /var/tmp if it is `None`.
    pub dir: Option<BorrowedFd<'a>>,
    /// Cancels the decompression if it returns true.
    pub cancelled: &'a (dyn Fn() -> bool + Sync),
    /// Whether the layers of an OCI layout are taken as they are, whatever digests and sizes its documents claim for
    /// them. Their chain ids are those of the files then, so nobody who asks for a digest is given such a layer. What
    /// is fetched is verified against its digest all the same.
    pub unverified: bool,
    /// The directory for parts of layers that are fetched from registries, to continue with at the next try: a file
    /// `sha256-HEX` for each blob, which is locked (flock(2)) while it is in use. `None`: a blob whose fetch was broken
    /// off is fetched as a whole again.
    pub partial: Option<BorrowedFd<'a>>,
}

impl fmt::Debug for Opening<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opening")
            .field("limits", &self.limits)
            .field("dir", &self.dir)
            .finish_non_exhaustive()
    }
}

impl Default for Opening<'_> {
    fn default() -> Self {
        Self { limits: Limits::DEFAULT, dir: None, cancelled: &|| false, unverified: false, partial: None }
    }
}

/// An uncompressed file.
#[derive(Debug, Clone)]
pub(crate) struct Plain {
    pub(crate) file: Arc<File>,
    /// How it is stored: compressed, or with holes.
    pub(crate) whole: Whole,
    /// Its bytes on the disk.
    pub(crate) disk: u64,
}

impl Plain {
    /// Wraps a file that is used as it is.
    pub(crate) fn of(file: File, path: &Path) -> Result<Self, Error> {
        let whole = stored::of(&file, path)?;
        Ok(Self { file: Arc::new(file), whole, disk: whole.stored })
    }

    /// Wraps a decompressed file, which has no holes.
    fn made(file: Arc<File>, whole: Whole) -> Self {
        Self { file, whole, disk: whole.plain }
    }
}

/// Detects how a file is compressed; fails for an unsupported format.
pub(crate) fn compression(file: &File, path: &Path) -> Result<Option<Compression>, Error> {
    let mut head = [0; 16];
    let shown = path.display().to_string();
    let n =
        file.read_at(&mut head, 0).map_err(|source| Error::Io { op: "read", path: shown.clone(), source })?;
    let found = Compression::of(&head[..n]);
    found.and_then(|found| found.refused(&shown)).map_or(Ok(found), Err)
}

static TURN: Mutex<()> = Mutex::new(());
/// The interval at which a thread that waits for [`TURN`] checks whether it was cancelled.
const LOOK: Duration = Duration::from_millis(20);

/// Decompressed files that are still in use, to be shared.
static MADE: Mutex<Vec<(Identity, Weak<File>, Whole)>> = Mutex::new(Vec::new());

/// Opens the file, decompressed if it is compressed.
pub(crate) fn plain(path: &Path, opening: &Opening<'_>) -> Result<Plain, Error> {
    let (file, _) = open_tar(path)?;
    let Some(compression) = compression(&file, path)? else { return Plain::of(file, path) };
    let error = |op| {
        let path = path.display().to_string();
        move |source| Error::Io { op, path, source }
    };
    let identity = || file.metadata().map(|meta| Identity::of(&meta)).map_err(error("stat"));
    let before = identity()?;
    let made = || MADE.lock();
    {
        let mut made = made();
        made.retain(|(_, file, _)| file.strong_count() > 0);
        let known = made.iter().find(|(identity, ..)| *identity == before);
        if let Some((file, whole)) = known.and_then(|(_, file, whole)| Some((file.upgrade()?, *whole))) {
            return Ok(Plain::made(file, whole));
        }
    }
    // One at a time: a zstd decoder holds up to 32 MiB, depending on the file.
    let _turn = loop {
        match TURN.try_lock() {
            Some(turn) => break turn,
            None if (opening.cancelled)() => {
                return Err(Error::Cancelled { what: path.display().to_string() });
            }
            None => std::thread::sleep(LOOK),
        }
    };
    let (file, whole) = decompress(path, &file, before.size, compression, opening)?;
    if identity()? != before {
        return Err(Error::Changed { path: path.display().to_string() });
    }
    let file = Arc::new(file);
    made().push((before, Arc::downgrade(&file), whole));
    Ok(Plain::made(file, whole))
}

/// Counts the bytes read, and checks for cancellation at each read.
struct Counting<'a> {
    section: Section,
    stored: &'a AtomicU64,
    made: &'a Made,
    what: &'a str,
    cancelled: &'a (dyn Fn() -> bool + Sync),
}

impl Read for Counting<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        if (self.cancelled)() {
            return Err(std::io::Error::other(Error::Cancelled { what: self.what.into() }));
        }
        let stored = self.stored.load(Ordering::Relaxed);
        self.made.check(self.what, stored).map_err(std::io::Error::other)?;
        let n = self.section.read(buf)?;
        self.stored.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

fn decompress(
    path: &Path,
    file: &File,
    size: u64,
    compression: Compression,
    opening: &Opening<'_>,
) -> Result<(File, Whole), Error> {
    let what = path.display().to_string();
    // The limit of an image whose layers make up the whole archive. Its compressed form must not be larger.
    let limit = opening.limits.max_image_bytes.saturating_add(opening.limits.headers());
    if size > limit {
        return Err(Error::image_bytes(format!("the size of {what}"), limit));
    }
    let io = |op: &'static str| {
        let path = what.clone();
        move |source| Error::Io { op, path, source }
    };
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR;
    let to = match opening.dir {
        Some(dir) => openat(dir, ".", flags, mode),
        None => openat(CWD, DEFAULT, flags, mode),
    };
    let mut to = File::from(to.map_err(|e| io("make a file for the content of")(e.into()))?);
    let on_disk = stored::of(file, path)?;
    let (stored, made) = (AtomicU64::new(0), Made::default());
    let section = Section::new(Arc::new(file.try_clone().map_err(io("open"))?), 0, size);
    let counting =
        Counting { section, stored: &stored, made: &made, what: &what, cancelled: opening.cancelled };
    let from = BufReader::with_capacity(PIECE, counting);
    let decoder = decoder(compression, from).map_err(|e| stream_error(&what, e))?;
    let Some(mut decoder) = decoder else { return Err(io("read")(std::io::ErrorKind::Unsupported.into())) };
    let budget = Arc::<Budget>::default();
    let mut meter = Meter::new(&budget, &opening.limits);
    let (mut piece, mut total, mut counted) = (vec![0; PIECE], 0_u64, 0);
    loop {
        if (opening.cancelled)() {
            return Err(Error::Cancelled { what: what.clone() });
        }
        let n = match decoder.read(&mut piece) {
            Ok(0) => return Ok((to, Whole { stored: on_disk.stored, plain: total })),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            // A decoder may hide the reader's cancellation behind another error.
            Err(_) if (opening.cancelled)() => continue,
            Err(e) => {
                made.check(&what, stored.load(Ordering::Relaxed))?;
                return Err(stream_error(&what, e));
            }
            Ok(n) => n,
        };
        made.add(n as u64);
        total += n as u64;
        let now = on_disk.part(stored.load(Ordering::Relaxed));
        budget.add_stored(now - counted);
        counted = now;
        meter.count(total)?;
        if total > limit {
            return Err(Error::image_bytes(format!("the uncompressed size of {what}"), limit));
        }
        to.write_all(&piece[..n]).map_err(io("decompress"))?;
    }
}
