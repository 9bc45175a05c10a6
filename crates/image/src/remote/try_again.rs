//! One request and its response, and the decision to retry.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use reqwest::header::{
    ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_LENGTH, ETAG, HeaderMap, HeaderName, HeaderValue,
    IF_RANGE, LAST_MODIFIED, RANGE, RETRY_AFTER,
};
use reqwest::{Method, RequestBuilder, Response, StatusCode};

use super::Remote;
use super::answer::{self, Refusal, Unread};
use super::client::{Client, Waited, Whose, causes};
use super::location::Location;
use super::trust::{is_plain, is_untrusted};
use crate::bounds::stop::Stop;
use crate::error::{Error, RegistryError};

/// The longest pause between two tries, unless the server asks for a longer one.
const MAX_BACKOFF: Duration = Duration::from_secs(8);
/// The longest pause that a server may ask for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(30);

/// Who named a URL.
#[derive(Debug, Clone, Copy)]
pub(crate) enum NamedBy<'a> {
    /// The caller who asks for the image.
    Caller,
    /// The image itself, which must not make this host send requests to servers of its choice (SSRF): servers that
    /// only this host can reach would trust the request.
    Image,
    /// The caller, as a part of a registry, which has a client of its own and may ask for credentials.
    Registry(&'a dyn Authority),
}

impl From<NamedBy<'_>> for Whose {
    fn from(by: NamedBy<'_>) -> Self {
        match by {
            NamedBy::Caller => Self::Caller,
            NamedBy::Image => Self::Image,
            NamedBy::Registry(registry) => {
                Self::Registry { host: registry.host().to_owned(), is_insecure: registry.is_insecure() }
            }
        }
    }
}

/// A registry as the authority over the requests that are sent to it. Nothing of it is sent to another server, where
/// a redirect may lead.
pub(crate) trait Authority: fmt::Debug + Send + Sync {
    /// Its host, as in URLs: `HOST[:PORT]`.
    fn host(&self) -> &str;

    /// Whether its certificate is not verified. Those of other servers, where it redirects to, are.
    fn is_insecure(&self) -> bool;

    /// Whether a location is the registry's own: it may name another server for an upload, which is shown no credentials
    /// and cannot ask for them.
    fn is_own(&self, location: &Location) -> bool;

    /// Adds the Authorization header to a request for `location`, if the registry has asked for one before.
    ///
    /// # Errors
    /// A token has expired, and no new one is given.
    fn authorize(
        &self,
        tries: &Tries<'_>,
        location: &Location,
        headers: &mut HeaderMap,
    ) -> Result<(), Failure>;

    /// Takes the challenge of an answer with the status 401 from `location`. `sent` is the Authorization of the refused
    /// request. After this the request is sent once more.
    ///
    /// # Errors
    /// There is nothing else to send.
    fn renew(
        &self,
        tries: &Tries<'_>,
        location: &Location,
        answer: &HeaderMap,
        sent: Option<&HeaderValue>,
    ) -> Result<(), Failure>;

    /// Returns the error for a refused request.
    fn refused(&self, refusal: Refusal<'_>) -> Error;

    /// Returns the error for a server whose certificate is not trusted.
    fn untrusted(&self, location: &Location, why: String) -> Error;
}

/// Why a try failed.
pub(crate) enum Failure {
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
pub(crate) struct Tries<'a> {
    pub(crate) remote: &'a Remote,
    pub(crate) stop: &'a Stop<'a>,
    pub(super) by: NamedBy<'a>,
    /// How many failures in a row are the last.
    most: u32,
    failures: u32,
    start: Instant,
}

/// One request.
pub(crate) struct Ask<'r> {
    pub(crate) method: Method,
    pub(crate) location: &'r Location,
    /// The first byte that is wanted, and the state of the file that it must be of.
    pub(crate) part: Option<(u64, Option<&'r Validator>)>,
    /// The media types that are understood.
    pub(crate) accept: Option<&'static str>,
}

/// A request that was refused.
pub(super) struct Refused<'r> {
    pub(super) location: &'r Location,
    /// The Authorization that it carried.
    pub(super) sent: Option<HeaderValue>,
    /// Whether a refusal was answered with other credentials before.
    pub(super) renewed: bool,
    /// Whether its method is HEAD.
    pub(super) head: bool,
}

/// What is at an address, if its scheme is not known.
pub(crate) enum Probe {
    /// A server that answers, whatever it says.
    Server,
    /// One that answers, but not by TLS.
    Plain,
    /// No server, or one of another protocol.
    Nothing(String),
}

impl<'a> Tries<'a> {
    pub(crate) fn new(remote: &'a Remote, stop: &'a Stop<'a>, by: NamedBy<'a>) -> Self {
        Self { remote, stop, by, most: remote.settings().tries, failures: 0, start: Instant::now() }
    }

    /// With another number of tries, and the deadline of work that was begun at `start`.
    pub(crate) fn within(self, most: Option<u32>, start: Option<Instant>) -> Self {
        Self { most: most.unwrap_or(self.most), start: start.unwrap_or(self.start), ..self }
    }

    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }

    /// Returns the time left until the deadline.
    ///
    /// # Errors
    /// [`Error::Deadline`] if there is none.
    pub(crate) fn left(&self, location: &Location) -> Result<Duration, Error> {
        let deadline = self.remote.settings().deadline;
        match deadline.saturating_sub(self.start.elapsed()) {
            Duration::ZERO => Err(Error::Deadline { url: location.to_string(), deadline }),
            left => Ok(left),
        }
    }

    /// Waits after a failure, and returns when the next try is due; fails if there is none.
    pub(crate) fn after(&mut self, failure: Failure, location: &Location) -> Result<(), Error> {
        let (error, pause) = match failure {
            Failure::Final(error) => return Err(error),
            Failure::Again { error, pause } => (error, pause),
        };
        let settings = self.remote.settings();
        let left = self.left(location)?;
        self.failures += 1;
        if self.failures >= self.most {
            return Err(error);
        }
        if self.stop.sleep(pause_after(self.failures, settings.backoff, pause).min(left)) {
            Ok(())
        } else {
            Err(cancelled(location))
        }
    }

    /// Sends one request and receives the head of its response: 2xx, or 416 to a range request.
    pub(crate) fn ask(&self, ask: &Ask<'_>) -> Result<(Arc<Client>, Response), Failure> {
        let mut renewed = false;
        loop {
            let headers = self.credentials(ask.location)?;
            let sent = headers.get(AUTHORIZATION).cloned();
            let (client, response) = self.send(ask, headers, true)?;
            let status = response.status();
            if status.is_success() || ask.part.is_some() && status == StatusCode::RANGE_NOT_SATISFIABLE {
                return Ok((client, response));
            }
            let request = Refused { location: ask.location, sent, renewed, head: ask.method == Method::HEAD };
            self.refused(&request, &client, response)?;
            renewed = true;
        }
    }

    /// Returns the headers with which a registry is shown that it may answer.
    pub(super) fn credentials(&self, location: &Location) -> Result<HeaderMap, Failure> {
        let mut headers = HeaderMap::new();
        if let NamedBy::Registry(registry) = self.by
            && registry.is_own(location)
        {
            registry.authorize(self, location, &mut headers)?;
        }
        Ok(headers)
    }

    /// Takes an answer that is no success. If this succeeds, the registry has asked for other credentials, and the
    /// request is to be sent once more.
    pub(super) fn refused(
        &self,
        request: &Refused<'_>,
        client: &Arc<Client>,
        response: Response,
    ) -> Result<(), Failure> {
        let (location, status) = (request.location, response.status());
        let busy = matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS)
            // A server error at HEAD is final: the server may not support HEAD, and GET is tried next, with all
            // tries.
            || status.is_server_error() && !request.head;
        let pause = retry_after(response.headers());
        let error = match self.by {
            NamedBy::Registry(registry) => {
                let own = registry.is_own(location) && location.has_origin_of(response.url());
                // A server that the registry redirects to may not ask for the registry's credentials.
                if own && status == StatusCode::UNAUTHORIZED && !request.renewed {
                    return registry.renew(self, location, response.headers(), request.sent.as_ref());
                }
                // What a server of TLS answers to a request without it.
                if own && status == StatusCode::BAD_REQUEST && location.is_plain() {
                    self.remote.forget(client, self.by);
                }
                let limit = self.limit(location)?;
                registry.refused(Refusal::of((location, own), client, response, self.stop, limit))
            }
            NamedBy::Caller | NamedBy::Image if busy => {
                failed(location, format!("the server answered {}", status.as_u16()))
            }
            NamedBy::Caller | NamedBy::Image => {
                Error::Refused { url: location.to_string(), status: status.as_u16() }
            }
        };
        Err(if busy { Failure::Again { error, pause } } else { Failure::Final(error) })
    }

    /// The timeout of one answer.
    pub(super) fn limit(&self, location: &Location) -> Result<Duration, Error> {
        let settings = self.remote.settings();
        Ok(settings.connect.saturating_add(settings.patience).min(self.left(location)?))
    }

    /// Sends one request and receives the head of its response, whatever its status.
    fn send(
        &self,
        ask: &Ask<'_>,
        headers: HeaderMap,
        forgets: bool,
    ) -> Result<(Arc<Client>, Response), Failure> {
        let location = ask.location;
        let client = self.remote.client(self.by)?;
        let mut request = client
            .http
            .request(ask.method.clone(), location.url().clone())
            .headers(headers)
            .header(ACCEPT_ENCODING, "identity");
        if let Some(accept) = ask.accept {
            request = request.header(ACCEPT, accept);
        }
        if let Some((from, validator)) = ask.part {
            request = request.header(RANGE, format!("bytes={from}-"));
            if let Some(validator) = validator {
                request = request.header(IF_RANGE, validator.as_header());
            }
        }
        self.receive(client, location, request, forgets)
    }

    /// Sends a request with secrets, which is not redirected, and reads the answer's body, which must not be larger
    /// than `most` bytes. `make` adds to the request.
    pub(crate) fn send_secret(
        &self,
        method: Method,
        location: &Location,
        most: usize,
        make: impl FnOnce(RequestBuilder) -> RequestBuilder,
    ) -> Result<(StatusCode, HeaderMap, Vec<u8>), Failure> {
        let client = self.remote.client(self.by)?;
        let direct = client.direct.as_ref().unwrap_or(&client.http);
        let request =
            make(direct.request(method, location.url().clone()).header(ACCEPT_ENCODING, "identity"));
        let (client, mut response) = self.receive(Arc::clone(&client), location, request, true)?;
        let (status, headers) = (response.status(), response.headers().clone());
        let again = |why: String| Failure::Again { error: failed(location, why), pause: None };
        match answer::read(&client, &mut response, most, self.stop, self.limit(location)?) {
            Ok(body) => Ok((status, headers, body)),
            Err(Unread::Stopped) => Err(cancelled(location).into()),
            Err(Unread::TooLong) => Err(again("the server hangs".into())),
            Err(Unread::Broken(why)) => Err(again(why)),
            Err(Unread::TooLarge) => {
                let what = format!("the size of the answer of {location}");
                Err(Error::Limit { what, limit: most as u64 }.into())
            }
        }
    }

    /// Asks whether there is a server at all. If there is none, the client is kept: it may be asked for another scheme.
    pub(crate) fn probe(&self, location: &Location) -> Result<Probe, Failure> {
        let ask = Ask { method: Method::GET, location, part: None, accept: None };
        match self.send(&ask, HeaderMap::new(), false) {
            Ok(_) => Ok(Probe::Server),
            Err(Failure::Final(Error::Registry { source }))
                if matches!(*source, RegistryError::NotTls { .. }) =>
            {
                Ok(Probe::Plain)
            }
            Err(Failure::Again { error: Error::Fetch { why, .. }, .. }) => Ok(Probe::Nothing(why)),
            Err(other) => Err(other),
        }
    }

    /// Receives the head of a response; `forgets` says whether a client that cannot connect is dropped.
    fn receive(
        &self,
        client: Arc<Client>,
        location: &Location,
        request: RequestBuilder,
        forgets: bool,
    ) -> Result<(Arc<Client>, Response), Failure> {
        let limit = self.limit(location)?;
        let waited = client.wait(self.stop, limit, request.send());
        self.received(client, location, waited, limit, forgets)
    }

    /// Takes the outcome of a request whose answer was waited for at most for `limit`.
    pub(super) fn received(
        &self,
        client: Arc<Client>,
        location: &Location,
        waited: Waited<reqwest::Result<Response>>,
        limit: Duration,
        forgets: bool,
    ) -> Result<(Arc<Client>, Response), Failure> {
        let again = |why| Failure::Again { error: failed(location, why), pause: None };
        match waited {
            Waited::Stopped => Err(Failure::Final(cancelled(location))),
            Waited::TooLong => Err(again(format!("no answer in {limit:?}"))),
            Waited::Done(Err(e)) => {
                // A registry without TLS may have got it: the next client finds out.
                let is_plain_registry = match self.by {
                    NamedBy::Registry(registry) => {
                        location.is_plain() && location.url().authority() == registry.host()
                    }
                    NamedBy::Caller | NamedBy::Image => false,
                };
                if forgets && (e.is_connect() || is_plain_registry) {
                    self.remote.forget(&client, self.by);
                }
                let (redirect, untrusted) = (e.is_redirect(), is_untrusted(&e));
                let plain = is_plain(&e) && e.url().is_some_and(|url| location.has_origin_of(url));
                let why = causes(e);
                match self.by {
                    _ if redirect => Err(Failure::Final(failed(location, why))),
                    NamedBy::Registry(registry) if plain => {
                        let host = registry.host().to_owned();
                        Err(Failure::Final(RegistryError::NotTls { host, why }.into()))
                    }
                    NamedBy::Registry(registry) if untrusted => {
                        Err(Failure::Final(registry.untrusted(location, why)))
                    }
                    _ => Err(again(why)),
                }
            }
            Waited::Done(Ok(response)) => Ok((client, response)),
        }
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

pub(crate) fn failed(location: &Location, why: String) -> Error {
    Error::Fetch { url: location.to_string(), why }
}

pub(crate) fn text(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

/// Parses Retry-After: seconds, or a date (RFC 9110, section 10.2.3).
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
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
                let ask = Ask { method: method.clone(), location, part: None, accept: None };
                match tries.ask(&ask) {
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
