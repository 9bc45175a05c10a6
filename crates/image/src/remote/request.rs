//! One request and the head of its response: by which client it is sent, where redirects lead, and what has failed.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use reqwest::header::{
    ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, HeaderMap, HeaderValue, IF_RANGE, LOCATION, RANGE,
};
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};

use super::answer::{self, Refusal, Unread};
use super::client::{Client, Waited, causes};
use super::location::Location;
use super::proxies::Proxy;
use super::state::{Stated, Validator};
use super::trust::{self, is_plain, is_untrusted};
use super::try_again::{Failure, NamedBy, Tries, cancelled, failed, retry_after, text, to_wait};
use super::{Remote, hosts, names};
use crate::bounds::stop::Stop;
use crate::error::{Error, RegistryError};

const MAX_REDIRECTS: usize = 10;

/// What is at an address, if its scheme is not known.
pub(crate) enum Probe {
    /// A server that answers, whatever it says.
    Server,
    /// One that answers, but not by TLS.
    Plain,
    /// No server, or one of another protocol.
    Nothing(String),
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
    /// Whether it was redirected by way of another server, though it may have come back.
    pub(super) strayed: bool,
}

/// A request on its way.
pub(super) struct Sent<'r> {
    pub(super) client: Arc<Client>,
    /// What was asked for.
    pub(super) location: &'r Location,
    /// Where it is, if that has redirected.
    pub(super) at: &'r Location,
    /// Whether a client that cannot connect is dropped.
    pub(super) forgets: bool,
}

impl Tries<'_> {
    /// Sends one request and receives the head of its response: 2xx, or 416 to a range request.
    pub(crate) fn ask(&self, ask: &Ask<'_>) -> Result<(Arc<Client>, Response), Failure> {
        let mut renewed = false;
        loop {
            let headers = self.credentials(ask.location)?;
            let sent = headers.get(AUTHORIZATION).cloned();
            let (client, response, strayed) = self.send(ask, headers)?;
            let status = response.status();
            if status.is_success() || ask.part.is_some() && status == StatusCode::RANGE_NOT_SATISFIABLE {
                return Ok((client, response));
            }
            let head = ask.method == Method::HEAD;
            let request = Refused { location: ask.location, sent, renewed, head, strayed };
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
        // It answers in the place of the server, which has not got the request.
        if let Some(proxy) = self.remote.settings().proxies.between(response.url())
            && status == StatusCode::PROXY_AUTHENTICATION_REQUIRED
        {
            return Err(proxy.refused(response.url(), status).into());
        }
        let error = match self.by {
            NamedBy::Registry(registry) => {
                let own =
                    registry.is_own(location) && !request.strayed && location.has_origin_of(response.url());
                // A server that the registry redirects to may not ask for the registry's credentials.
                if own && status == StatusCode::UNAUTHORIZED && !request.renewed {
                    return registry.renew(self, location, response.headers(), request.sent.as_ref());
                }
                // What a server of TLS answers to a request without it.
                if own && status == StatusCode::BAD_REQUEST && location.is_plain() {
                    self.remote.forget(client);
                }
                let limit = self.limit(location)?;
                let who = self.who(location, response.url(), own);
                registry.refused(Refusal::of((location, own, who), client, response, self.stop, limit))
            }
            NamedBy::Caller | NamedBy::Image if busy => failed(
                location,
                format!("the server answered {}{}", status.as_u16(), to_wait(response.headers())),
            ),
            NamedBy::Caller | NamedBy::Image => {
                Error::Refused { url: location.to_string(), status: status.as_u16() }
            }
        };
        Err(if busy { Failure::Again { error, pause } } else { Failure::Final(error) })
    }

    /// Returns the client of the server that a location is on.
    pub(super) fn client(&self, location: &Location) -> Result<Arc<Client>, Error> {
        self.remote.settings().proxies.check(location.url())?;
        match self.by {
            NamedBy::Registry(registry) if !registry.is_own(location) => {
                self.remote.client_of_named(location)
            }
            by => self.remote.client(by),
        }
    }

    /// Sends one request and receives the head of its response, whatever its status. At most ten redirects are followed,
    /// none from https to http. Also returns whether one of them led to another server.
    pub(super) fn send(
        &self,
        ask: &Ask<'_>,
        mut headers: HeaderMap,
    ) -> Result<(Arc<Client>, Response, bool), Failure> {
        let (limit, start) = (self.limit(ask.location)?, Instant::now());
        let (mut at, mut strayed) = (Cow::Borrowed(ask.location), false);
        for _ in 0..=MAX_REDIRECTS {
            let sent = Sent { client: self.client(&at)?, location: ask.location, at: &at, forgets: true };
            let request = asked(&sent.client, ask, &at).headers(headers.clone());
            let waited = sent.client.wait(self.stop, limit.saturating_sub(start.elapsed()), request.send());
            let (client, response) = self.received(sent, waited, limit)?;
            let Some(to) = redirect(&response) else { return Ok((client, response, strayed)) };
            let to = self.redirected(ask.location, &at, &to)?;
            // They do not come back either: another server does not choose what the registry is asked for with them.
            if !at.has_origin_of(to.url()) {
                headers.remove(AUTHORIZATION);
                strayed = true;
            }
            at = Cow::Owned(to);
        }
        Err(Failure::Final(failed(ask.location, "too many redirects".into())))
    }

    /// Returns where a redirect leads, if it may.
    fn redirected(&self, location: &Location, at: &Location, to: &str) -> Result<Location, Failure> {
        let refused =
            |why: String| Failure::Final(failed(location, format!("{}{why}", place(location, at.url()))));
        let Ok(mut to) = at.url().join(to) else {
            return Err(refused("a redirect to an address that cannot be parsed".into()));
        };
        match to.scheme() {
            "http" if at.url().scheme() == "https" => {
                return Err(refused("a redirect from https to http".into()));
            }
            "http" | "https" => {}
            other => {
                return Err(refused(format!(
                    "a redirect to an address of {other}, which is neither http nor https"
                )));
            }
        }
        if matches!(self.by, NamedBy::Image) && !hosts::allow(&self.remote.settings().layer_hosts, &to) {
            let host = Location::of_url(to.clone()).authority();
            let why = match hosts::has_account(&to) {
                true => "with a user or a password",
                false => "which --layer-hosts does not name",
            };
            return Err(refused(format!("a redirect to {host}, {why}")));
        }
        // An account that the caller gave is for the whole server.
        if at.has_origin_of(&to) && !hosts::has_account(&to) {
            let _ = to.set_username(at.url().username());
            let _ = to.set_password(at.url().password());
        }
        Ok(Location::of_url(to))
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
        let client = self.client(location)?;
        let request = client.http.request(method, location.url().clone());
        let request = make(request.header(ACCEPT_ENCODING, "identity"));
        let (client, mut response) = self.receive(client, location, request, true)?;
        let (status, headers) = (response.status(), response.headers().clone());
        match answer::read(&client, &mut response, most, self.stop, self.limit(location)?) {
            Ok(body) => Ok((status, headers, body)),
            Err(Unread::Stopped) => Err(cancelled(location).into()),
            Err(Unread::TooLong) => Err(self.silent(failed(location, "the server hangs".into()))),
            Err(Unread::Broken(why)) => Err(again(failed(location, why))),
            Err(Unread::TooLarge) => {
                let what = format!("the size of the answer of {location}");
                Err(Error::Limit { what, limit: most as u64 }.into())
            }
        }
    }

    /// Asks whether there is a server at all. If there is none, the client is kept: it may be asked for another scheme.
    pub(crate) fn probe(&self, location: &Location) -> Result<Probe, Failure> {
        let ask = Ask { method: Method::GET, location, part: None, accept: None };
        let client = self.client(location)?;
        let request = asked(&client, &ask, location);
        match self.receive(client, location, request, false) {
            Ok(_) => Ok(Probe::Server),
            Err(Failure::Final(Error::Registry { source }))
                if matches!(*source, RegistryError::NotTls { .. }) =>
            {
                Ok(Probe::Plain)
            }
            Err(Failure::Again { error: Error::Fetch { why, .. }, .. }) => Ok(Probe::Nothing(why)),
            // A proxy for plain requests alone may know a name that this host does not.
            Err(Failure::Final(Error::Fetch { why, .. })) if self.is_proxied_without_tls(location) => {
                Ok(Probe::Nothing(why))
            }
            Err(other) => Err(other),
        }
    }

    /// Whether a server is asked by way of a proxy, but only without TLS.
    fn is_proxied_without_tls(&self, location: &Location) -> bool {
        let (proxies, mut plain) = (&self.remote.settings().proxies, location.url().clone());
        plain.set_scheme("http").is_ok()
            && proxies.by_way_of(&plain).is_some()
            && proxies.by_way_of(location.url()).is_none()
    }

    /// Receives the head of a response to a request that is not redirected.
    fn receive(
        &self,
        client: Arc<Client>,
        location: &Location,
        request: RequestBuilder,
        forgets: bool,
    ) -> Result<(Arc<Client>, Response), Failure> {
        let limit = self.limit(location)?;
        let waited = client.wait(self.stop, limit, request.send());
        self.received(Sent { client, location, at: location, forgets }, waited, limit)
    }

    /// Takes the outcome of a request whose answer was waited for at most for `limit`.
    pub(super) fn received(
        &self,
        sent: Sent<'_>,
        waited: Waited<reqwest::Result<Response>>,
        limit: Duration,
    ) -> Result<(Arc<Client>, Response), Failure> {
        let Sent { client, location, at, forgets } = sent;
        let proxy = self.remote.settings().proxies.by_way_of(at.url());
        let way = proxy.map_or_else(String::new, |proxy| format!(" (by way of the proxy {proxy})"));
        let error = |why: String| failed(location, format!("{}{why}{way}", place(location, at.url())));
        match waited {
            Waited::Stopped => Err(Failure::Final(cancelled(location))),
            Waited::TooLong => Err(self.silent(error(format!("no answer in {limit:?}")))),
            Waited::Done(Ok(response)) => Ok((client, response)),
            Waited::Done(Err(e)) => {
                // A registry without TLS may have got it: the next client finds out.
                let own = match self.by {
                    NamedBy::Registry(registry) if registry.is_own(at) => Some(registry),
                    _ => None,
                };
                if forgets && (e.is_connect() || own.is_some() && at.is_plain()) {
                    self.remote.forget(&client);
                }
                if let Some(proxy) = proxy.filter(|proxy| proxy.caused(&e, at)) {
                    return Err(self.at_proxy(&client, proxy, at, e));
                }
                let late = e.is_timeout();
                let (unknown, untrusted) = (names::unknown(&e).is_some(), is_untrusted(&e));
                let not_tls = is_plain(&e);
                let why = causes(e);
                match (self.by, own) {
                    _ if unknown => Err(Failure::Final(error(why))),
                    (_, Some(registry)) if not_tls => {
                        let host = registry.host().to_owned();
                        Err(Failure::Final(RegistryError::NotTls { host, why }.into()))
                    }
                    (NamedBy::Registry(registry), _) if untrusted => {
                        Err(Failure::Final(registry.untrusted(at, why)))
                    }
                    _ if late => Err(self.silent(error(why))),
                    _ => Err(again(error(why))),
                }
            }
        }
    }

    /// Returns the failure of a request that did not come further than a proxy.
    fn at_proxy(&self, client: &Client, proxy: &Proxy, at: &Location, error: reqwest::Error) -> Failure {
        let unknown = names::unknown(&error).is_some();
        let refuses = !unknown && is_refusal(&error);
        let why = causes(error);
        let limit = self.limit(at).unwrap_or_default();
        let status = if refuses { client.refusal_of_tunnel(at.url(), self.stop, limit) } else { None };
        match status {
            // It cannot reach the server, which may be there again later.
            Some(status) if status.is_server_error() => again(proxy.refused(at.url(), status)),
            Some(status) => Failure::Final(proxy.refused(at.url(), status)),
            None if unknown => Failure::Final(proxy.failed(at.url(), why)),
            None => again(proxy.failed(at.url(), why)),
        }
    }

    /// Returns the failure of a server that did not answer in time; a mirror is not waited for once more.
    fn silent(&self, error: Error) -> Failure {
        if self.is_mirror { Failure::Final(error) } else { again(error) }
    }

    /// Returns who has answered a request to a registry, for errors; `own` tells whether it is the registry itself.
    fn who(&self, location: &Location, at: &Url, own: bool) -> String {
        let proxy = self.remote.settings().proxies.between(at);
        let way = proxy.map_or_else(String::new, |proxy| format!(", asked by way of the proxy {proxy},"));
        match location.has_origin_of(at) {
            true if own => format!("the registry{way}"),
            true => {
                format!("this server, which the registry names{}", if way.is_empty() { "," } else { &way })
            }
            false => {
                format!("{}, where it redirects to{}", origin(at), if way.is_empty() { "," } else { &way })
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

/// Makes a request for what is asked for, which is at this location.
fn asked(client: &Client, ask: &Ask<'_>, at: &Location) -> RequestBuilder {
    let mut request =
        client.http.request(ask.method.clone(), at.url().clone()).header(ACCEPT_ENCODING, "identity");
    if let Some(accept) = ask.accept {
        request = request.header(ACCEPT, accept);
    }
    if let Some((from, validator)) = ask.part {
        request = request.header(RANGE, format!("bytes={from}-"));
        if let Some(validator) = validator {
            request = request.header(IF_RANGE, validator.as_header());
        }
    }
    request
}

/// Returns where a response redirects to (RFC 9110, section 15.4).
fn redirect(response: &Response) -> Option<String> {
    let status = response.status().as_u16();
    text(response.headers(), &LOCATION).filter(|_| matches!(status, 301 | 302 | 303 | 307 | 308))
}

/// Returns the address of a server without secrets.
fn origin(url: &Url) -> String {
    format!("{}://{}", url.scheme(), Location::of_url(url.clone()).authority())
}

/// Says where something is that was asked for elsewhere, at the begin of a sentence.
pub(super) fn place(location: &Location, at: &Url) -> String {
    match location.has_origin_of(at) {
        true => String::new(),
        false => format!("{}, where it redirects to: ", origin(at)),
    }
}

fn again(error: Error) -> Failure {
    Failure::Again { error, pause: None }
}

/// Whether a proxy was reached, but has refused a tunnel: no connection has failed, and no certificate.
fn is_refusal(error: &reqwest::Error) -> bool {
    !error.is_timeout()
        && trust::cause(error).is_none()
        && !trust::causes(error).any(|cause| cause.is::<std::io::Error>() || cause.is::<names::Error>())
}

impl Proxy {
    /// Whether a request has failed at the proxy, and not at the server behind it.
    fn caused(&self, error: &reqwest::Error, at: &Location) -> bool {
        // Within a tunnel, an error of TLS is of the server; that of a proxy with TLS is below that of the tunnel.
        let of_tunnel = || trust::causes(error).any(|cause| cause.to_string().starts_with("tunnel error"));
        error.is_connect() && (at.is_plain() || trust::cause(error).is_none() || of_tunnel())
    }
}
