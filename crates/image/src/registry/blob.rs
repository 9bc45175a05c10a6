//! The blob of a layer, received from the endpoints of its image.

use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use sha2::{Digest as _, Sha256};

use super::client::{Registry, Wanted, Work};
use super::partial::{LEAST, Partial};
use super::pull::{Puller, all, is_end};
use crate::bounds::stop::Stop;
use crate::digest::Digest;
use crate::error::{Error, RegistryError};
use crate::format::stream::stream_error;
use crate::remote::Body;

/// How much is received at once while nothing is unpacked, in bytes.
const AT_ONCE: usize = 256 << 10;
/// How many times the size of a blob must be free for a copy of it: once for the copy, and the rest for its files.
const ROOM: u64 = 5;

/// A blob at a registry.
#[derive(Debug, Clone)]
pub(crate) struct RemoteBlob {
    pub(crate) puller: Puller,
    /// The index of the endpoint that is asked first: the one that gave the manifest.
    pub(crate) first: usize,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    /// Where a part of it is kept for the next try; nowhere if it is `None`.
    pub(crate) partial: Option<Arc<OwnedFd>>,
}

impl RemoteBlob {
    /// Opens the file with what was received of it before, if such files are kept. Where the file system has little room
    /// left, the layer itself needs that, and the file is removed.
    pub(crate) fn partial(&self) -> Option<Partial> {
        let dir = self.partial.as_ref().filter(|_| self.size >= LEAST)?;
        let partial = Partial::open(dir, &self.digest)?;
        let available =
            rustix::fs::fstatvfs(&**dir).map_or(0, |stat| stat.f_bavail.saturating_mul(stat.f_frsize));
        if available.saturating_add(partial.length) < self.size.saturating_mul(ROOM) {
            partial.remove();
            return None;
        }
        Some(partial)
    }

    /// Returns the blob as a reader, whose errors hold an [`Error`]. What it receives is added to `keep`.
    pub(crate) fn receive<'a>(
        &'a self,
        stop: &'a Stop<'a>,
        limit: u64,
        keep: Option<&'a mut Partial>,
    ) -> Received<'a> {
        let work = Work { stop, since: Instant::now() };
        let registries =
            self.puller.registries(self.first).into_iter().map(|(_, registry)| registry).collect();
        Received {
            blob: self,
            work,
            limit,
            registries,
            next: 0,
            at: 0,
            body: None,
            failures: Vec::new(),
            keep,
        }
    }

    /// Receives the rest of a blob of which a part is there, and returns whether the whole is what it should be. It
    /// is not unpacked meanwhile: after a crash, or because of a server, the part may be of anything.
    pub(crate) fn complete(&self, partial: &mut Partial, stop: &Stop<'_>, limit: u64) -> Result<bool, Error> {
        let what = format!("layer {}", self.digest);
        let error = |source| Error::Io { op: "use what was received of", path: what.clone(), source };
        if partial.length > self.size {
            return Ok(false);
        }
        let (mut hasher, mut buffer) = (Sha256::new(), vec![0; AT_ONCE]);
        let mut file = partial.reader().map_err(error)?;
        let mut left = partial.length;
        while left > 0 {
            if stop.is_set() {
                return Err(Error::Cancelled { what: what.clone() });
            }
            let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let n = file.read(&mut buffer[..most]).map_err(error)?;
            if n == 0 {
                return Ok(false);
            }
            hasher.update(&buffer[..n]);
            stop.watch.add(n as u64);
            left -= n as u64;
        }
        let mut rest = self.receive(stop, limit, None);
        rest.at = partial.length;
        loop {
            let n = rest.read(&mut buffer).map_err(|error| stream_error(&what, error))?;
            if n == 0 {
                return Ok(Digest::finish(hasher) == self.digest);
            }
            if partial.length + n as u64 > self.size {
                return Ok(false);
            }
            hasher.update(&buffer[..n]);
            stop.watch.add(n as u64);
            partial.append(&buffer[..n]).map_err(error)?;
        }
    }
}

/// A blob being received, from the next endpoint on where one has failed.
pub(crate) struct Received<'a> {
    blob: &'a RemoteBlob,
    work: Work<'a>,
    /// The maximum size in bytes.
    limit: u64,
    registries: Vec<&'a Registry>,
    /// The index of the endpoint to be tried next.
    next: usize,
    /// Bytes that are there.
    at: u64,
    body: Option<Body<'a>>,
    failures: Vec<(String, Error)>,
    keep: Option<&'a mut Partial>,
}

impl<'a> Received<'a> {
    /// Continues at the next endpoint; fails if there is none.
    fn connect(&mut self) -> Result<(), Error> {
        let Some(registry) = self.registries.get(self.next).copied() else {
            return Err(all(std::mem::take(&mut self.failures)));
        };
        self.next += 1;
        let path = format!("blobs/{}", self.blob.digest);
        let (size, limit, from) = (Some(self.blob.size), self.limit, self.at);
        let wanted = Wanted { path: &path, size, limit, from, has_digest: true };
        match registry.fetch(wanted, self.work) {
            Ok(body) => self.body = Some(body),
            Err(error) => self.failed(error)?,
        }
        Ok(())
    }

    fn failed(&mut self, error: Error) -> Result<(), Error> {
        self.body = None;
        if is_end(&error) {
            return Err(error);
        }
        let registry = self.registries[self.next - 1];
        registry.has_failed(&error, self.next < self.registries.len());
        self.failures.push((registry.to_string(), error));
        Ok(())
    }

    fn receive(&mut self, buf: &mut [u8]) -> Result<usize, Error> {
        loop {
            let Some(body) = &mut self.body else {
                if self.at == self.blob.size && self.next == 0 {
                    return Ok(0);
                }
                self.connect()?;
                continue;
            };
            match body.read(buf) {
                Ok(0) if self.at < self.blob.size && !buf.is_empty() => {
                    let (what, expected) = (format!("layer {}", self.blob.digest), self.blob.size);
                    self.failed(Error::SizeMismatch { what, expected, actual: self.at })?;
                }
                Ok(n) => {
                    self.at += n as u64;
                    return Ok(n);
                }
                Err(error) => self.failed(stream_error("the layer", error))?,
            }
        }
    }
}

impl Read for Received<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.receive(buf).map_err(|error| {
            let puller = &self.blob.puller;
            io::Error::other(puller.wrapped(error, |image, source| RegistryError::Blob { image, source }))
        })?;
        // A full disk ends the unpack sooner than the keeping of what is for later.
        if let Some(keep) = &mut self.keep
            && keep.append(&buf[..n]).is_err()
        {
            keep.remove();
            let _ = keep.clear();
            self.keep = None;
        }
        Ok(n)
    }
}
