//! One request and its response, and the decision to retry.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use reqwest::header::{
    ACCEPT_ENCODING, CONTENT_LENGTH, ETAG, HeaderMap, HeaderName, IF_RANGE, LAST_MODIFIED, RANGE, RETRY_AFTER,
};
use reqwest::{Method, Response, StatusCode};

use super::Remote;
use super::client::{Client, Waited, causes};
use super::location::Location;
use super::settings::NamedBy;
use crate::bounds::stop::Stop;
use crate::error::Error;

/// The longest pause between two tries, unless the server asks for a longer one.
const MAX_BACKOFF: Duration = Duration::from_secs(8);
/// The longest pause that a server may ask for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(30);

/// Why a try failed.
pub(super) enum Failure {
    /// A retry would fail again.
    Final(Error),
    Again {
        error: Error,
        /// The pause that the server asked for.
        pause: Option<Duration>,
    },
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Final(error)
    }
}

/// Counts failures in a row, waits after each, and checks the deadline.
pub(super) struct Tries<'a> {
    pub(super) remote: &'a Remote,
    pub(super) stop: &'a Stop<'a>,
    by: NamedBy,
    failures: u32,
    start: Instant,
}

impl<'a> Tries<'a> {
    pub(super) fn new(remote: &'a Remote, stop: &'a Stop<'a>, by: NamedBy) -> Self {
        Self { remote, stop, by, failures: 0, start: Instant::now() }
    }

    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }

    /// Returns the time left until the deadline.
    ///
    /// # Errors
    /// [`Error::Deadline`] if there is none.
    pub(super) fn left(&self, location: &Location) -> Result<Duration, Error> {
        let deadline = self.remote.settings().deadline;
        match deadline.saturating_sub(self.start.elapsed()) {
            Duration::ZERO => Err(Error::Deadline { url: location.to_string(), deadline }),
            left => Ok(left),
        }
    }

    /// Waits after a failure, and returns when the next try is due; fails if there is none.
    pub(super) fn after(&mut self, failure: Failure, location: &Location) -> Result<(), Error> {
        let (error, pause) = match failure {
            Failure::Final(error) => return Err(error),
            Failure::Again { error, pause } => (error, pause),
        };
        let settings = self.remote.settings();
        let left = self.left(location)?;
        self.failures += 1;
        if self.failures >= settings.tries {
            return Err(error);
        }
        if self.stop.sleep(pause_after(self.failures, settings.backoff, pause).min(left)) {
            Ok(())
        } else {
            Err(cancelled(location))
        }
    }

    /// Sends one request and receives the head of its response: 2xx, or 416 to a range request.
    pub(super) fn ask(
        &self,
        method: Method,
        location: &Location,
        part: Option<(u64, Option<&Validator>)>,
    ) -> Result<(Arc<Client>, Response), Failure> {
        let settings = self.remote.settings();
        let limit = settings.connect.saturating_add(settings.patience).min(self.left(location)?);
        let client = self.remote.client(self.by)?;
        let head = method == Method::HEAD;
        let mut request =
            client.http.request(method, location.url().clone()).header(ACCEPT_ENCODING, "identity");
        if let Some((from, validator)) = part {
            request = request.header(RANGE, format!("bytes={from}-"));
            if let Some(validator) = validator {
                request = request.header(IF_RANGE, validator.as_header());
            }
        }
        let again = |why, pause| Failure::Again { error: failed(location, why), pause };
        let response = match client.wait(self.stop, limit, request.send()) {
            Waited::Stopped => return Err(Failure::Final(cancelled(location))),
            Waited::TooLong => {
                return Err(again(format!("no answer in {limit:?}"), None));
            }
            Waited::Done(Err(e)) => {
                if e.is_connect() {
                    self.remote.forget(&client, self.by);
                }
                let redirect = e.is_redirect();
                let why = causes(e);
                if redirect {
                    return Err(Failure::Final(failed(location, why)));
                }
                return Err(again(why, None));
            }
            Waited::Done(Ok(response)) => response,
        };
        let status = response.status();
        let busy = matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS)
            // A server error at HEAD is final: the server may not support HEAD, and GET is tried next, with all
            // tries.
            || status.is_server_error() && !head;
        if busy {
            let why = format!("the server answered {}", status.as_u16());
            return Err(again(why, retry_after(response.headers())));
        }
        if status.is_success() || part.is_some() && status == StatusCode::RANGE_NOT_SATISFIABLE {
            return Ok((client, response));
        }
        Err(refused(location, status))
    }
}

/// Returns the pause after this many failures in a row.
fn pause_after(failures: u32, backoff: Duration, asked: Option<Duration>) -> Duration {
    let doubled = backoff.saturating_mul(1 << (failures - 1).min(16)).min(MAX_BACKOFF);
    // Jitter, so that many fetches that failed together do not retry together.
    let own = doubled.mul_f64(1.0 + fastrand::f64() / 4.0);
    asked.unwrap_or_default().min(MAX_RETRY_AFTER).max(own)
}

pub(super) fn cancelled(location: &Location) -> Error {
    Error::Cancelled { what: location.to_string() }
}

pub(super) fn failed(location: &Location, why: String) -> Error {
    Error::Fetch { url: location.to_string(), why }
}

pub(super) fn refused(location: &Location, status: StatusCode) -> Failure {
    Failure::Final(Error::Refused { url: location.to_string(), status: status.as_u16() })
}

pub(super) fn text(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

/// Parses Retry-After: seconds, or a date (RFC 9110, section 10.2.3).
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = text(headers, &RETRY_AFTER)?;
    match text.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => httpdate::parse_http_date(&text).ok()?.duration_since(SystemTime::now()).ok(),
    }
}

/// The headers of a response that describe the state of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stated {
    pub(super) etag: Option<String>,
    pub(super) modified: Option<String>,
    /// Bytes of the answer's body.
    pub(super) length: Option<u64>,
}

impl Stated {
    pub(super) fn by(headers: &HeaderMap) -> Self {
        Self {
            etag: text(headers, &ETAG),
            modified: text(headers, &LAST_MODIFIED),
            length: text(headers, &CONTENT_LENGTH).and_then(|length| length.parse().ok()),
        }
    }

    /// Whether this may be another state of the file than `then`: a header that both have differs, or `then` has a
    /// validator and this has nothing to compare with it. The lengths are not compared, because that of a part is not
    /// the whole's.
    pub(super) fn may_be_other_than(&self, then: &Self) -> bool {
        let pairs = [(&self.etag, &then.etag), (&self.modified, &then.modified)];
        let mut both = pairs.into_iter().filter(|(now, then)| now.is_some() && then.is_some()).peekable();
        let nothing = self.validator().is_none() || both.peek().is_none();
        both.any(|(now, then)| now != then) || then.validator().is_some() && nothing
    }

    /// Returns the validator, if there is one; a weak tag (RFC 9110, section 8.8.1) does not guarantee the same
    /// bytes.
    pub(super) fn validator(&self) -> Option<Validator> {
        let strong = |etag: &&String| etag.starts_with('"');
        if let Some(etag) = self.etag.as_ref().filter(strong) {
            return Some(Validator::Etag(etag.clone()));
        }
        self.modified.clone().map(|date| Validator::Modified { date, length: self.length })
    }
}

/// A validator, which tells one state of a file on a server from another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Validator {
    /// A strong entity tag, with its quotes.
    Etag(String),
    /// The date of the last change as the server wrote it, and the size in bytes.
    Modified { date: String, length: Option<u64> },
}

impl Validator {
    fn as_header(&self) -> &str {
        match self {
            Self::Etag(etag) => etag,
            Self::Modified { date, .. } => date,
        }
    }

    /// Whether the file is still in the same state.
    pub(super) fn fits(&self, stated: &Stated) -> bool {
        match self {
            Self::Etag(etag) => stated.etag.as_ref() == Some(etag),
            Self::Modified { date, length } => {
                stated.modified.as_ref() == Some(date)
                    && (length.is_none() || stated.length.is_none() || *length == stated.length)
            }
        }
    }
}

impl Remote {
    /// Asks a server for the file's validator, and for its size in bytes.
    ///
    /// # Errors
    /// [`Error::NoValidator`] if it sends none; [`Error::Refused`], [`Error::Fetch`], [`Error::Cancelled`].
    pub(crate) fn validator(
        &self,
        location: &Location,
        stop: &Stop<'_>,
    ) -> Result<(Validator, Option<u64>), Error> {
        // A URL may be signed for GET alone, and some servers send fewer headers to HEAD. The body is not read.
        let mut tries = Tries::new(self, stop, NamedBy::Caller);
        for method in [Method::HEAD, Method::GET] {
            tries.reset();
            let stated = loop {
                match tries.ask(method.clone(), location, None) {
                    Ok((_client, response)) => break Stated::by(response.headers()),
                    Err(Failure::Final(Error::Refused { .. })) if method == Method::HEAD => {
                        break Stated { etag: None, modified: None, length: None };
                    }
                    Err(failure) => tries.after(failure, location)?,
                }
            };
            match stated.validator() {
                Some(Validator::Modified { length: None, .. }) | None => {}
                Some(validator) => return Ok((validator, stated.length)),
            }
        }
        Err(Error::NoValidator { url: location.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses() {
        let seconds = Duration::from_secs_f64;
        for (failures, asked, least, most) in [
            (1, None, 0.25, 0.3125),
            (2, None, 0.5, 0.625),
            (6, None, 8.0, 10.0),
            (u32::MAX, None, 8.0, 10.0),
            (1, Some(0.0), 0.25, 0.3125),
            (1, Some(5.0), 5.0, 5.0),
            (1, Some(31.0), 30.0, 30.0),
        ] {
            let pause = pause_after(failures, seconds(0.25), asked.map(seconds));
            assert!(pause >= seconds(least) && pause <= seconds(most), "{failures} {asked:?}: {pause:?}");
        }
        assert_eq!(pause_after(9, Duration::ZERO, None), Duration::ZERO);
    }

    #[test]
    fn what_servers_ask_for() {
        let field = |text: &str| retry_after(&HeaderMap::from_iter([(RETRY_AFTER, text.parse().unwrap())]));
        assert_eq!(field("17"), Some(Duration::from_secs(17)));
        let later = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(1000));
        assert!(field(&later).is_some_and(|pause| pause > Duration::from_secs(900)));
        for none in ["Tue, 15 Nov 1994 12:45:26 GMT", "-1", "soon", ""] {
            assert_eq!(field(none), None, "{none}");
        }
        assert_eq!(retry_after(&HeaderMap::new()), None);
    }
}
