//! Pushing: blobs and manifests that are written to a registry (OCI distribution spec, "Push").

use std::io::Read;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;
use reqwest::header::{HeaderMap, LOCATION, RANGE};
use reqwest::{Method, StatusCode};
use serde::Serialize;

use super::client::{Registry, Work, agrees};
use super::{Endpoint, ImageName, Login};
use crate::bounds::stop::Stop;
use crate::digest::Digest;
use crate::error::{Error, RegistryError};
use crate::format::stream::stream_error;
use crate::remote::{Ask, Failure, Location, Put, Remote, Rest, Streamed, Tries, text};

/// The largest blob that is sent together with its digest, in one request that cannot be resumed, in bytes.
const SMALL: u64 = 64 << 10;
/// How many new bytes reset the failures, as at a fetch.
const ENOUGH: u64 = 64 << 10;
const BLOB: &str = "application/octet-stream";

/// Where an image is pushed to.
#[derive(Debug)]
pub struct Pusher {
    name: ImageName,
    registry: Registry,
    /// The repository of the same registry that blobs are mounted from.
    from: Option<String>,
}

/// How a registry has come to have a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Sent {
    /// The repository had it.
    There,
    /// It was mounted from another repository.
    Mounted,
    /// It was sent.
    Sent,
}

/// The bytes of a blob, which may be read several times.
pub(crate) trait Content: Sync {
    /// Returns a reader of the bytes from this offset on, whose errors may hold an [`Error`].
    ///
    /// # Errors
    /// They cannot be had.
    fn open(&self, from: u64) -> Result<Box<dyn Read + Send + '_>, Error>;
}

/// A blob to be sent.
#[derive(Clone, Copy)]
pub(crate) struct Outgoing<'a> {
    pub(crate) digest: &'a Digest,
    pub(crate) size: u64,
    pub(crate) content: &'a dyn Content,
}

impl Content for Vec<u8> {
    fn open(&self, from: u64) -> Result<Box<dyn Read + Send + '_>, Error> {
        Ok(Box::new(self.get(usize::try_from(from).unwrap_or(usize::MAX)..).unwrap_or_default()))
    }
}

impl Pusher {
    /// Does not connect yet. Blobs are mounted from the repository `from`, if it is given.
    ///
    /// # Errors
    /// [`RegistryError::Name`], also for a name with a digest, which is that of what is pushed and no place to push to.
    pub fn new(
        remote: &Remote,
        name: &ImageName,
        endpoint: Endpoint,
        login: Option<Login>,
        from: Option<&str>,
    ) -> Result<Self, Error> {
        if name.digest().is_some() {
            let why = "an image is pushed to a tag, and its digest follows from its content";
            return Err(RegistryError::Name { name: name.to_string(), why }.into());
        }
        let from = from.filter(|from| *from != endpoint.repository);
        let registry = Registry::new(remote, name, endpoint, login, false)?.pushing(from);
        Ok(Self { name: name.clone(), registry, from: from.map(str::to_owned) })
    }

    /// The name that the image gets.
    pub fn name(&self) -> &ImageName {
        &self.name
    }

    /// Has the registry have a blob without sending it; otherwise returns the upload that it may have begun instead.
    pub(crate) fn have(
        &self,
        digest: &Digest,
        stop: &Stop<'_>,
    ) -> Result<Result<Sent, Option<Upload>>, Error> {
        let work = Work { stop, since: Instant::now() };
        if self.registry.has_blob(digest, work)? {
            return Ok(Ok(Sent::There));
        }
        let Some(from) = &self.from else { return Ok(Err(None)) };
        let mut url = self.registry.location("blobs/uploads/", work)?.url().clone();
        url.query_pairs_mut().append_pair("mount", &digest.to_string()).append_pair("from", from);
        let (location, mut tries) = (Location::of_url(url), self.registry.tries(work));
        loop {
            match self.registry.begin(&location, &tries) {
                Ok(None) => return Ok(Ok(Sent::Mounted)),
                Ok(upload) => return Ok(Err(upload)),
                // It may be that the other repository may not be read, or that mounts are not known.
                Err(Failure::Final(Error::Registry { source }))
                    if matches!(
                        *source,
                        RegistryError::PushDenied { .. }
                            | RegistryError::NoRepository { .. }
                            | RegistryError::Answer { .. }
                    ) =>
                {
                    return Ok(Err(None));
                }
                Err(failure) => tries.after(failure, &location)?,
            }
        }
    }

    /// Sends a blob, by an upload that was begun if there is one; `sent` counts its bytes.
    pub(crate) fn send(
        &self,
        blob: Outgoing<'_>,
        upload: Option<Upload>,
        stop: &Stop<'_>,
        sent: &AtomicU64,
    ) -> Result<(), Error> {
        let work = Work { stop, since: Instant::now() };
        let sending = Sending {
            registry: &self.registry,
            blob,
            work,
            begin: self.registry.location("blobs/uploads/", work)?,
            upload,
            whole: (blob.size <= SMALL).then(|| whole(blob)).transpose()?,
            finishing: false,
            renewed: false,
        };
        sending.run(sent)
    }

    /// Writes the manifest under the tag of the name; all that it names must be there.
    pub(crate) fn tag(&self, manifest: &[u8], media_type: &str, stop: &Stop<'_>) -> Result<Digest, Error> {
        let registry = &self.registry;
        let work = Work { stop, since: Instant::now() };
        let location = registry.location(&format!("manifests/{}", self.name.reference()), work)?;
        let (digest, body) = (Digest::of(manifest), Bytes::copy_from_slice(manifest));
        let put = Put { method: Method::PUT, location: &location, media_type: Some(media_type), body };
        let mut tries = registry.tries(work);
        loop {
            match tries.put(&put) {
                Err(failure) => tries.after(failure, &location)?,
                Ok((_, headers)) => {
                    agrees(&location, &headers, &digest)?;
                    return Ok(digest);
                }
            }
        }
    }

    /// Says what was to be pushed, unless it was cancelled.
    pub(crate) fn wrapped(&self, error: Error) -> Error {
        match error {
            Error::Cancelled { .. } => error,
            error => RegistryError::Push { image: self.name.to_string(), source: Box::new(error) }.into(),
        }
    }
}

/// An upload of a blob that the registry has begun.
#[derive(Debug)]
pub(crate) struct Upload {
    /// Where the registry wants the next request.
    location: Location,
    /// Bytes that the registry has.
    at: u64,
    /// Whether `at` must be asked for, because a request was broken off.
    lost: bool,
}

impl Registry {
    fn has_blob(&self, digest: &Digest, work: Work<'_>) -> Result<bool, Error> {
        let location = self.location(&format!("blobs/{digest}"), work)?;
        let mut tries = self.tries(work);
        loop {
            let ask = Ask { method: Method::HEAD, location: &location, part: None, accept: None };
            match tries.ask(&ask) {
                Ok(_) => return Ok(true),
                // It may also not be known, or not be told in this way.
                Err(Failure::Final(Error::Registry { source }))
                    if matches!(*source, RegistryError::NoBlob { .. } | RegistryError::Answer { .. }) =>
                {
                    return Ok(false);
                }
                Err(failure) => tries.after(failure, &location)?,
            }
        }
    }

    /// Begins an upload by a request to `location`; `None` if the blob was mounted instead.
    fn begin(&self, location: &Location, tries: &Tries<'_>) -> Result<Option<Upload>, Failure> {
        let put = Put { method: Method::POST, location, media_type: None, body: Bytes::new() };
        let (status, headers) = tries.put(&put)?;
        if status == StatusCode::CREATED {
            return Ok(None);
        }
        Ok(Some(Upload { location: self.next(location, &headers)?, at: 0, lost: false }))
    }

    fn bad_address(&self, why: &str) -> Error {
        RegistryError::UploadAddress { host: self.endpoint.host.clone(), why: why.to_owned() }.into()
    }

    /// Returns where the registry wants the next request of an upload, which may be at another server.
    fn next(&self, at: &Location, headers: &HeaderMap) -> Result<Location, Error> {
        let text = text(headers, &LOCATION).ok_or_else(|| self.bad_address("its answer names none"))?;
        let url = at.url().join(&text).map_err(|_| self.bad_address("it is no URL"))?;
        match url.scheme() {
            "https" => {}
            "http" if at.is_plain() => {}
            "http" => {
                return Err(self.bad_address(
                    "it does not use TLS, which the registry does; a proxy in front of a registry has to tell it that by \
                     X-Forwarded-Proto",
                ));
            }
            _ => return Err(self.bad_address("it is neither http nor https")),
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(self.bad_address("it has a user or a password"));
        }
        Ok(Location::of_url(url))
    }
}

/// A blob being sent.
struct Sending<'a> {
    registry: &'a Registry,
    blob: Outgoing<'a>,
    work: Work<'a>,
    /// Where uploads are begun.
    begin: Location,
    upload: Option<Upload>,
    /// The blob, if it is small.
    whole: Option<Bytes>,
    /// Whether the registry was told that it has all, so that it may have the blob.
    finishing: bool,
    /// Whether the registry has just got other credentials.
    renewed: bool,
}

impl Sending<'_> {
    /// `sent` counts the bytes that the registry has.
    fn run(mut self, sent: &AtomicU64) -> Result<(), Error> {
        let mut tries = self.registry.tries(self.work);
        let (before, mut best) = (sent.load(Ordering::Relaxed), 0);
        loop {
            let step = self.step(&tries, sent);
            if let Ok(true) = step {
                sent.store(before + self.blob.size, Ordering::Relaxed);
                return Ok(());
            }
            let at = self.upload.as_ref().map_or(0, |upload| upload.at);
            sent.store(before + at, Ordering::Relaxed);
            if at >= best + ENOUGH {
                best = at;
                tries.reset();
            }
            if let Err(failure) = step {
                let failure = self.after(failure);
                tries.after(failure, &self.begin)?;
            }
        }
    }

    /// Decides what is sent after a failure.
    fn after(&mut self, failure: Failure) -> Failure {
        self.renewed = false;
        match (&mut self.upload, failure) {
            // The registry has forgotten the upload, or has something else of it.
            (Some(_), Failure::Final(error)) if is_lost(&error) => {
                self.upload = None;
                Failure::Again { error, pause: None }
            }
            (Some(upload), failure @ Failure::Again { .. }) => {
                upload.lost = true;
                if self.whole.is_some() {
                    self.upload = None;
                }
                failure
            }
            (_, failure) => failure,
        }
    }

    /// Sends one request; returns whether the registry has the blob.
    fn step(&mut self, tries: &Tries<'_>, sent: &AtomicU64) -> Result<bool, Failure> {
        let Some(upload) = &mut self.upload else {
            if self.finishing && self.registry.has_blob(self.blob.digest, self.work)? {
                return Ok(true);
            }
            self.upload = self.registry.begin(&self.begin, tries)?;
            return match self.upload {
                Some(_) => Ok(false),
                None => Err(self.registry.bad_address("it answers as if it had got everything").into()),
            };
        };
        if upload.lost {
            return resume(self.registry, upload, self.blob.size, tries).map(|()| false);
        }
        if self.whole.is_none() && upload.at < self.blob.size {
            let renewed = std::mem::take(&mut self.renewed);
            self.renewed = stream(self.registry, upload, self.blob, (tries, self.work), (sent, renewed))?;
            return Ok(false);
        }
        self.finishing = true;
        let mut url = upload.location.url().clone();
        url.query_pairs_mut().append_pair("digest", &self.blob.digest.to_string());
        let location = Location::of_url(url);
        let body = self.whole.clone().unwrap_or_default();
        let put = Put { method: Method::PUT, location: &location, media_type: Some(BLOB), body };
        let (_, headers) = tries.put(&put)?;
        agrees(&location, &headers, self.blob.digest)?;
        Ok(true)
    }
}

/// Asks how much of a blob the registry has after a request that was broken off.
fn resume(registry: &Registry, upload: &mut Upload, size: u64, tries: &Tries<'_>) -> Result<(), Failure> {
    let ask = Ask { method: Method::GET, location: &upload.location, part: None, accept: None };
    let (_client, response) = tries.ask(&ask)?;
    let headers = response.headers();
    let at = received(headers).unwrap_or_default();
    if at > size {
        return Err(registry.bad_address("it has more than was sent").into());
    }
    if headers.contains_key(LOCATION) {
        upload.location = registry.next(&upload.location, headers)?;
    }
    (upload.at, upload.lost) = (at, false);
    Ok(())
}

/// Sends the rest of a blob; returns whether the registry wanted other credentials instead, which it has now.
fn stream(
    registry: &Registry,
    upload: &mut Upload,
    blob: Outgoing<'_>,
    (tries, work): (&Tries<'_>, Work<'_>),
    (sent, renewed): (&AtomicU64, bool),
) -> Result<bool, Failure> {
    let what = format!("blob {}", blob.digest);
    let reading = work.stop.apart();
    let rest = Rest {
        location: &upload.location,
        what: &what,
        from: upload.at,
        length: blob.size - upload.at,
        reader: blob.content.open(upload.at)?,
        reading: &reading,
        sent,
    };
    let headers = match tries.stream(rest, renewed)? {
        Streamed::Renewed => {
            upload.lost = true;
            return Ok(true);
        }
        Streamed::Done(headers) => headers,
    };
    let at = received(&headers).unwrap_or(blob.size);
    if at > blob.size {
        return Err(registry.bad_address("it has more than was sent").into());
    }
    upload.location = registry.next(&upload.location, &headers)?;
    upload.at = at;
    if at < blob.size {
        let error = Error::Truncated { what: format!("{what} at {registry}") };
        return Err(Failure::Again { error, pause: None });
    }
    Ok(false)
}

/// Returns how many bytes the registry has. That of an upload with one byte looks as that of an empty one, which is
/// what it is taken for.
fn received(headers: &HeaderMap) -> Option<u64> {
    let range = text(headers, &RANGE)?;
    let (first, last) = range.trim_start_matches("bytes=").split_once('-')?;
    match last.trim().parse::<u64>().ok()? {
        _ if first.trim() != "0" => None,
        0 => Some(0),
        last => last.checked_add(1),
    }
}

/// Whether the registry does not know an upload any more, or knows another part of it.
fn is_lost(error: &Error) -> bool {
    let Error::Registry { source } = error else { return false };
    match **source {
        RegistryError::NoRepository { .. }
        | RegistryError::NoBlob { .. }
        | RegistryError::NoManifest { .. } => true,
        RegistryError::Answer { status, .. } => matches!(status, 404 | 416),
        _ => false,
    }
}

/// Reads a small blob.
fn whole(blob: Outgoing<'_>) -> Result<Bytes, Error> {
    let what = format!("blob {}", blob.digest);
    let mut bytes = Vec::new();
    blob.content.open(0)?.take(SMALL).read_to_end(&mut bytes).map_err(|error| stream_error(&what, error))?;
    let (expected, actual) = (blob.size, bytes.len() as u64);
    if expected != actual {
        return Err(Error::SizeMismatch { what, expected, actual });
    }
    Ok(bytes.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_registries_have() {
        for (text, expected) in [
            ("0-99", Some(100)),
            ("bytes=0-99", Some(100)),
            ("0-0", Some(0)),
            ("5-99", None),
            ("0-18446744073709551615", None),
            ("0--1", None),
            ("99", None),
            ("", None),
        ] {
            let headers = HeaderMap::from_iter([(RANGE, text.parse().unwrap())]);
            assert_eq!(received(&headers), expected, "{text}");
        }
    }
}
