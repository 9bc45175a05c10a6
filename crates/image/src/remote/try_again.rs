//! A request that is sent again after a failure, or with other credentials, and the decision to do so.

use std::fmt;
use std::time::{Duration, Instant, SystemTime};

use reqwest::header::{HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};

use super::Remote;
use super::answer::Refusal;
use super::client::Whose;
use super::location::Location;
use crate::bounds::stop::Stop;
use crate::error::Error;

/// The longest pause between two tries, unless the server asks for a longer one.
const MAX_BACKOFF: Duration = Duration::from_secs(8);
/// The longest pause that a server may ask for; if it asks for more, its answer is final.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(30);
/// A pause that is logged if it is longer, because somebody may be waiting; a mirror that asks for such a one is not waited
/// for.
const LONG: Duration = Duration::from_secs(2);
/// How many tries in a row may fail at a mirror: another one may have it at once.
const MIRROR_TRIES: u32 = 2;
/// How long a mirror is waited for until it begins to answer.
const MIRROR_PATIENCE: Duration = Duration::from_secs(10);

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

    /// Whether its certificate is not verified. Those of other servers, which it names or redirects to, are.
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
    /// Whether another endpoint may have the same, which is tried before this one is waited for.
    pub(super) is_mirror: bool,
    failures: u32,
    start: Instant,
}

impl<'a> Tries<'a> {
    pub(crate) fn new(remote: &'a Remote, stop: &'a Stop<'a>, by: NamedBy<'a>) -> Self {
        let (most, start) = (remote.settings().tries, Instant::now());
        Self { remote, stop, by, most, is_mirror: false, failures: 0, start }
    }

    /// With the deadline of work that was begun at `start`, and the patience for a mirror if it is one.
    pub(crate) fn within(self, is_mirror: bool, start: Option<Instant>) -> Self {
        let most = if is_mirror { self.most.min(MIRROR_TRIES) } else { self.most };
        Self { most, is_mirror, start: start.unwrap_or(self.start), ..self }
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
        let most = if self.is_mirror { LONG } else { MAX_RETRY_AFTER };
        if self.failures >= self.most || pause.is_some_and(|pause| pause > most) {
            return Err(error);
        }
        let pause = pause_after(self.failures, settings.backoff, pause).min(left);
        if let NamedBy::Registry(registry) = self.by
            && pause > LONG
        {
            let (host, seconds) = (registry.host(), pause.as_secs_f64().round());
            tracing::warn!(host, seconds, why = %error, "registry.waits");
        }
        if self.stop.sleep(pause) { Ok(()) } else { Err(cancelled(location)) }
    }

    /// The timeout of one answer.
    pub(super) fn limit(&self, location: &Location) -> Result<Duration, Error> {
        let settings = self.remote.settings();
        let most = if self.is_mirror { MIRROR_PATIENCE } else { Duration::MAX };
        Ok(settings.connect.saturating_add(settings.patience).min(most).min(self.left(location)?))
    }
}

/// Returns the pause after this many failures in a row.
fn pause_after(failures: u32, backoff: Duration, asked: Option<Duration>) -> Duration {
    let doubled = backoff.saturating_mul(1 << (failures - 1).min(16)).min(MAX_BACKOFF);
    // Jitter, so that many fetches that failed together do not retry together.
    let own = doubled.mul_f64(1.0 + fastrand::f64() / 4.0);
    asked.unwrap_or_default().max(own)
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

/// Describes the pause that a server asks for, for an error.
pub(crate) fn to_wait(headers: &HeaderMap) -> String {
    match retry_after(headers) {
        Some(wait) if wait > Duration::ZERO => format!(", to be tried again in {} s", wait.as_secs()),
        _ => String::new(),
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
        ] {
            let pause = pause_after(failures, seconds(0.25), asked.map(seconds));
            assert!(pause >= seconds(least) && pause <= seconds(most), "{failures} {asked:?}: {pause:?}");
        }
        assert_eq!(pause_after(9, Duration::ZERO, None), Duration::ZERO);
    }

    #[test]
    fn mirrors() {
        let (remote, watch) = (Remote::default(), crate::Watch::default());
        let stop = Stop::new(&watch);
        let tries = |is_mirror| Tries::new(&remote, &stop, NamedBy::Caller).within(is_mirror, None);
        let location = Location::parse("http://h/").unwrap();
        assert_eq!(tries(true).limit(&location).unwrap(), MIRROR_PATIENCE);
        assert_eq!(tries(false).limit(&location).unwrap(), Duration::from_secs(40));
        assert_eq!((tries(true).most, tries(false).most), (2, 5));
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
