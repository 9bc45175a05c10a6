//! What was received of blobs whose fetch ended early, kept for the next try.
//!
//! A blob's file is `sha256-HEX` in a directory that the caller gives. It is locked (flock(2)) while it is in use, and
//! is removed once the blob is unpacked, or turns out to be another one. It is not synced: what is in it is verified
//! before it is used.

use std::fs::File;
use std::io::{self, Seek as _, Write as _};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, flock, openat, unlinkat};

use crate::digest::Digest;
use crate::disk::section::Section;

/// Blobs, and parts of blobs, of fewer bytes are fetched again.
pub(crate) const LEAST: u64 = 1 << 20;
/// The write size in bytes: a connection gives less at once.
const AT_ONCE: usize = 256 << 10;

/// The part of a blob that is there.
#[derive(Debug)]
pub(crate) struct Partial {
    file: File,
    dir: Arc<OwnedFd>,
    name: String,
    /// Its bytes, with those that are not written yet.
    pub(crate) length: u64,
    pending: Vec<u8>,
}

impl Partial {
    /// Opens the file of a blob, or makes it. `None` if it cannot be had: if it is in use for another image, or if the
    /// directory cannot be written to. The blob is fetched without it then.
    pub(crate) fn open(dir: &Arc<OwnedFd>, digest: &Digest) -> Option<Self> {
        let name = format!("sha256-{}", digest.as_hex());
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        // A second try, because the file may be removed between the open and the lock.
        for _ in 0..2 {
            let file = File::from(openat(&**dir, &name, flags, Mode::RUSR | Mode::WUSR).ok()?);
            flock(&file, FlockOperation::NonBlockingLockExclusive).ok()?;
            let meta = file.metadata().ok()?;
            if !meta.is_file() {
                return None;
            }
            if rustix::fs::fstat(&file).ok()?.st_nlink > 0 {
                let length = meta.len();
                let pending = Vec::new();
                let mut partial = Self { file, dir: Arc::clone(dir), name, length, pending };
                partial.file.seek(io::SeekFrom::End(0)).ok()?;
                return Some(partial);
            }
        }
        None
    }

    /// Adds what was received.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.pending.extend_from_slice(bytes);
        self.length += bytes.len() as u64;
        if self.pending.len() >= AT_ONCE { self.write() } else { Ok(()) }
    }

    /// Writes what is not written yet.
    pub(crate) fn write(&mut self) -> io::Result<()> {
        self.file.write_all(&self.pending)?;
        self.pending.clear();
        Ok(())
    }

    /// Throws away what is there.
    pub(crate) fn clear(&mut self) -> io::Result<()> {
        self.pending.clear();
        self.length = 0;
        self.file.set_len(0)?;
        self.file.rewind()
    }

    /// Returns the file as a reader from its beginning to its present end, in place of what is added later.
    pub(crate) fn reader(&mut self) -> io::Result<Section> {
        self.write()?;
        Ok(Section::new(Arc::new(self.file.try_clone()?), 0, self.length))
    }

    /// Removes the file; its space is given back when it is dropped.
    pub(crate) fn remove(&self) {
        let _ = unlinkat(&*self.dir, &self.name, AtFlags::empty());
    }
}
