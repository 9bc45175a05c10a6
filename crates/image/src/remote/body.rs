//! A blob being received from a server.

use std::borrow::Cow;
use std::io::{self, Read};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use reqwest::header::{CONTENT_RANGE, HeaderMap};
use reqwest::{Method, Response, StatusCode};

use super::Remote;
use super::client::{Client, Waited, causes};
use super::location::Location;
use super::request::{Ask, place};
use super::state::{Stated, Validator};
use super::try_again::{Failure, NamedBy, Tries, cancelled, failed, text};
use crate::bounds::stop::Stop;
use crate::error::Error;

/// How many bytes a server must send within [`Settings::patience`](super::Settings::patience), and how many new ones
/// reset its failures.
const ENOUGH: u64 = 64 << 10;

/// A blob to be fetched.
#[derive(Debug)]
pub(crate) struct Fetch<'a> {
    pub(crate) remote: &'a Remote,
    /// Its http or https URLs, at least one, tried in this order.
    pub(crate) locations: Cow<'a, [Location]>,
    /// Who named the locations.
    pub(crate) by: NamedBy<'a>,
    /// The name of the blob, if the locations are mirrors of it: an error then covers all of them.
    pub(crate) mirrors_of: Option<&'a str>,
    /// Whether the caller verifies a digest. Otherwise only the server's validator ensures that the parts are of the
    /// same state.
    pub(crate) digest: bool,
    /// The expected size in bytes.
    pub(crate) size: Option<u64>,
    /// The maximum size in bytes.
    pub(crate) limit: u64,
    /// The required state of the file.
    pub(crate) validator: Option<&'a Validator>,
    pub(crate) stop: &'a Stop<'a>,
    pub(crate) terms: Terms,
}

/// The terms of a fetch from a registry; the default is that of other servers.
#[derive(Debug, Default)]
pub(crate) struct Terms {
    /// The first byte to be fetched, because those before it are there.
    pub(crate) from: u64,
    /// When the work began that the fetch is a part of, for its deadline.
    pub(crate) since: Option<Instant>,
    /// Whether another endpoint may have the same.
    pub(crate) is_mirror: bool,
    /// The media types that are understood, if it is a document and no layer.
    pub(crate) document: Option<&'static str>,
}

impl<'a> Fetch<'a> {
    /// Returns a body, which connects at the first read.
    pub(crate) fn start(self) -> Body<'a> {
        let tries =
            Tries::new(self.remote, self.stop, self.by).within(self.terms.is_mirror, self.terms.since);
        let at = self.terms.from;
        let asked = self;
        Body {
            asked,
            tries,
            location: 0,
            answer: None,
            known: None,
            headers: None,
            total: None,
            at,
            fresh: 0,
            chunk: Bytes::new(),
            done: false,
        }
    }
}

/// The bytes of a blob, resumed after lost connections. Its I/O errors hold an [`Error`].
pub(crate) struct Body<'a> {
    asked: Fetch<'a>,
    tries: Tries<'a>,
    /// The index of the current location.
    location: usize,
    answer: Option<Answer>,
    /// The state of the file in this location's first response.
    known: Option<Stated>,
    /// The headers of the first response.
    headers: Option<HeaderMap>,
    /// The total size, if this location has sent it.
    total: Option<u64>,
    /// Bytes received.
    at: u64,
    /// Bytes received since the last failure.
    fresh: u64,
    chunk: Bytes,
    done: bool,
}

/// A response whose body is being read.
struct Answer {
    client: Arc<Client>,
    response: Response,
    /// Bytes to skip, because they were received before.
    skip: u64,
    /// Bytes received since the last check of the rate, and the time waited for them.
    got: u64,
    waited: Duration,
}

impl Read for Body<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() && !self.done {
            self.advance().map_err(io::Error::other)?;
        }
        let n = buf.len().min(self.chunk.len());
        self.chunk.copy_to_slice(&mut buf[..n]);
        Ok(n)
    }
}

impl Body<'_> {
    /// Connects, and returns the headers of the first response.
    pub(crate) fn headers(&mut self) -> Result<HeaderMap, Error> {
        loop {
            if let Some(headers) = &self.headers {
                return Ok(headers.clone());
            }
            self.advance()?;
        }
    }

    /// Makes a step, or waits for the next try.
    fn advance(&mut self) -> Result<(), Error> {
        let Err(failure) = self.step() else { return Ok(()) };
        self.answer = None;
        self.fresh = 0;
        let location = &self.asked.locations[self.location];
        match self.tries.after(failure, location) {
            Err(error) => self.next_location(error),
            Ok(()) => Ok(()),
        }
    }

    /// Continues at the next location, which has the same bytes, because their digest is verified.
    fn next_location(&mut self, error: Error) -> Result<(), Error> {
        if matches!(error, Error::Cancelled { .. } | Error::Deadline { .. }) {
            return Err(error);
        }
        let Some(what) = self.asked.mirrors_of else { return Err(error) };
        if self.location + 1 == self.asked.locations.len() {
            return Err(Error::Urls { what: what.to_owned(), source: Box::new(error) });
        }
        self.location += 1;
        (self.known, self.total) = (None, None);
        self.tries.reset();
        Ok(())
    }

    /// Sends a request, or receives data.
    fn step(&mut self) -> Result<(), Failure> {
        let Some(answer) = &mut self.answer else { return self.ask() };
        let location = &self.asked.locations[self.location];
        let patience = self.asked.remote.settings().patience;
        let again = |error| Failure::Again { error, pause: None };
        let start = Instant::now();
        let left = patience.saturating_sub(answer.waited).min(self.tries.left(location)?);
        let chunk = match answer.client.wait(self.asked.stop, left, answer.response.chunk()) {
            Waited::Stopped => return Err(cancelled(location).into()),
            Waited::TooLong => {
                let place = place(location, answer.response.url());
                let why = format!("{place}the server hangs: {} bytes in {patience:?}", answer.got);
                return Err(again(failed(location, why)));
            }
            Waited::Done(Err(e)) => {
                let why = format!("{}{}", place(location, answer.response.url()), causes(e));
                return Err(again(Error::Truncated { what: format!("{location} ({why})") }));
            }
            Waited::Done(Ok(chunk)) => chunk,
        };
        let Some(mut chunk) = chunk else {
            if answer.skip > 0 || self.total.is_some_and(|total| self.at < total) {
                return Err(again(Error::Truncated { what: location.to_string() }));
            }
            self.done = true;
            return Ok(());
        };
        answer.got += chunk.len() as u64;
        answer.waited += start.elapsed();
        if answer.got >= ENOUGH {
            (answer.got, answer.waited) = (0, Duration::ZERO);
        }
        let skipped = chunk.len().min(usize::try_from(answer.skip).unwrap_or(usize::MAX));
        chunk.advance(skipped);
        answer.skip -= skipped as u64;
        if chunk.is_empty() {
            return Ok(());
        }
        self.at += chunk.len() as u64;
        self.fresh += chunk.len() as u64;
        self.done = self.total == Some(self.at);
        // Fewer bytes do not reset the failures: a server that sends a byte with each connection could hold the fetch
        // for ever.
        if self.fresh >= ENOUGH {
            self.tries.reset();
        }
        self.check_limit(self.at)?;
        if let Some(expected) = self.total.filter(|total| self.at > *total) {
            let what = location.to_string();
            return Err(Error::SizeMismatch { what, expected, actual: self.at }.into());
        }
        self.chunk = chunk;
        Ok(())
    }

    fn check_limit(&self, size: u64) -> Result<(), Error> {
        if size > self.asked.limit {
            let (what, limit) =
                (format!("the size of {}", self.asked.locations[self.location]), self.asked.limit);
            return Err(match self.asked.terms.document {
                Some(_) => Error::Limit { what, limit },
                None => Error::layer_bytes(what, limit),
            });
        }
        Ok(())
    }

    fn check_size(&self, size: u64) -> Result<(), Error> {
        match self.asked.size {
            Some(expected) if expected != size => {
                let what = self.asked.locations[self.location].to_string();
                Err(Error::SizeMismatch { what, expected, actual: size })
            }
            _ => self.check_limit(size),
        }
    }

    /// Requests the rest, of the same state of the file as the first part.
    fn ask(&mut self) -> Result<(), Failure> {
        let location = &self.asked.locations[self.location];
        let changed = || Failure::Final(Error::Changed { path: location.to_string() });
        // With a digest, validators are not compared: mirrors may give the same file different ones, and the digest
        // verifies the whole.
        let known = self.known.as_ref().filter(|_| !self.asked.digest);
        let moved = |stated: &Stated| known.is_some_and(|known| stated.may_be_other_than(known));
        let other_size = |now: Option<u64>| self.total.zip(now).is_some_and(|(then, now)| then != now);
        let known = known.and_then(Stated::validator);
        let part = (self.at > 0).then_some((self.at, known.as_ref()));
        let accept = self.asked.terms.document;
        let (client, response) = self.tries.ask(&Ask { method: Method::GET, location, part, accept })?;
        self.headers.get_or_insert_with(|| response.headers().clone());
        let stated = Stated::by(response.headers());
        let skip = match response.status() {
            StatusCode::OK => {
                if self.asked.validator.is_some_and(|validator| !validator.fits(&stated))
                    || self.at > 0 && (moved(&stated) || other_size(stated.length))
                {
                    return Err(changed());
                }
                if let Some(length) = stated.length {
                    self.check_size(length)?;
                }
                if self.at == 0 {
                    (self.known, self.total) = (None, None);
                }
                self.total = self.total.or(stated.length);
                self.known.get_or_insert(stated);
                self.at
            }
            StatusCode::PARTIAL_CONTENT if self.at > 0 => {
                let corrupt = |why: &str| {
                    Failure::Final(Error::Corrupt { what: location.to_string(), why: why.to_owned() })
                };
                let Some((from, total)) = content_range(response.headers()) else {
                    return Err(corrupt("the server sends a part, but does not say which"));
                };
                if from != self.at {
                    return Err(corrupt("the server sends another part than it was asked for"));
                }
                if moved(&stated) || other_size(total) {
                    return Err(changed());
                }
                if let Some(total) = total {
                    self.check_size(total)?;
                    self.total = Some(total);
                }
                0
            }
            StatusCode::RANGE_NOT_SATISFIABLE
                if content_size(response.headers()) == Some(self.at) && !other_size(Some(self.at)) =>
            {
                // All bytes were received; only the end of the response was lost.
                self.check_size(self.at)?;
                self.done = true;
                return Ok(());
            }
            // More bytes were received than the file has now.
            StatusCode::RANGE_NOT_SATISFIABLE => return Err(changed()),
            status => {
                let (url, status) = (location.to_string(), status.as_u16());
                return Err(Error::Refused { url, status }.into());
            }
        };
        self.answer = Some(Answer { client, response, skip, got: 0, waited: Duration::ZERO });
        Ok(())
    }
}

/// Parses `bytes FROM-TO/TOTAL`, where the total may be `*` (RFC 9110, section 14.4); returns the first byte and the
/// total.
fn content_range(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let text = text(headers, &CONTENT_RANGE)?;
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (from, to) = range.split_once('-')?;
    let (from, to): (u64, u64) = (from.parse().ok()?, to.parse().ok()?);
    let total: Option<u64> = if total == "*" { None } else { Some(total.parse().ok()?) };
    (from <= to && total.is_none_or(|total| to < total)).then_some((from, total))
}

/// Parses the total of `bytes */TOTAL`, with which a server refuses a range.
fn content_size(headers: &HeaderMap) -> Option<u64> {
    text(headers, &CONTENT_RANGE)?.strip_prefix("bytes */")?.parse().ok()
}
