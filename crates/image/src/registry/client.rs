//! One registry, or one mirror of it: the documents that it gives, and its answers to what it refuses.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;
use std::io::Read as _;
use std::time::Instant;

use reqwest::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, LINK};
use reqwest::{Method, StatusCode, Url};
use serde::Deserialize;
use serde::de::IgnoredAny;
use wardian_sys::text::{clip, tame};

use super::document::{MANIFESTS, media_type};
use super::name::LONGEST_TAG;
use super::token::Access;
use super::{Endpoint, ImageName, Login, challenge};
use crate::bounds::stop::Stop;
use crate::digest::{Digest, same};
use crate::error::{Error, RegistryError};
use crate::format::manifest::MAX_JSON;
use crate::format::reference::split_tag;
use crate::format::stream::stream_error;
use crate::remote::{
    Ask, Authority, Body, Failure, Fetch, Host, Location, NamedBy, Probe, Refusal, Remote, Terms, Tries,
    text, to_wait,
};

/// The digest of a manifest, as a registry gives it (OCI distribution spec, "Pulling manifests").
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
/// The version of a registry's API, with which most say that they are one.
const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
/// The limit of requests, and what is left of it (docker hub, and others like it).
const LIMITS: [&str; 2] = ["ratelimit-limit", "ratelimit-remaining"];
/// How many pages of tags are read.
const MAX_PAGES: usize = 1000;
/// How many tags are kept.
const MAX_TAGS: usize = 100_000;
/// How many bytes all pages of tags may have together.
const MAX_TAG_BYTES: usize = 16 << 20;
/// How many tags are asked for at once.
const PAGE: &str = "1000";

/// One endpoint of an image.
#[derive(Debug)]
pub(super) struct Registry {
    remote: Remote,
    pub(super) endpoint: Endpoint,
    /// The image, for errors.
    image: String,
    /// Whether other endpoints come after it.
    is_mirror: bool,
    access: Access,
}

/// Who asks, and since when.
#[derive(Debug, Clone, Copy)]
pub(super) struct Work<'a> {
    pub(super) stop: &'a Stop<'a>,
    pub(super) since: Instant,
}

/// A document that a registry gave.
pub(super) struct Document {
    pub(super) bytes: Vec<u8>,
    pub(super) digest: Digest,
    /// Its media type; empty if the registry gives none.
    pub(super) media_type: String,
}

#[derive(Deserialize)]
struct Tags {
    #[serde(default)]
    tags: Option<Vec<String>>,
}

impl Registry {
    /// Does not connect yet.
    ///
    /// # Errors
    /// [`RegistryError::Name`].
    pub(super) fn new(
        remote: &Remote,
        image: &ImageName,
        endpoint: Endpoint,
        login: Option<Login>,
        is_mirror: bool,
    ) -> Result<Self, Error> {
        check_host(&endpoint.host)?;
        let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        let parts = |name: &str| {
            name.split('/').all(|part| !part.is_empty() && !is_dots(part) && part.chars().all(is_part))
        };
        if !parts(&endpoint.repository) || endpoint.repository.len() > 255 {
            return Err(invalid(&endpoint.repository, "it is no path of a repository"));
        }
        // Who knows the registry by its name logs in to that name.
        let login_to =
            if endpoint.host == Endpoint::of(image).host { image.registry() } else { &endpoint.host };
        let access = Access::new(&endpoint, login, login_to, image.to_string());
        Ok(Self { remote: remote.clone(), endpoint, image: image.to_string(), is_mirror, access })
    }

    /// A registry of which no image is wanted, but to know whether it accepts a login.
    ///
    /// # Errors
    /// [`RegistryError::Name`].
    pub(super) fn to_greet(
        remote: &Remote,
        endpoint: Endpoint,
        registry: &str,
        login: Login,
    ) -> Result<Self, Error> {
        check_host(&endpoint.host)?;
        let mut access = Access::new(&endpoint, Some(login), registry, registry.to_owned());
        access.is_for_none();
        Ok(Self { remote: remote.clone(), endpoint, image: registry.to_owned(), is_mirror: false, access })
    }

    pub(super) fn tries<'a>(&'a self, work: Work<'a>) -> Tries<'a> {
        Tries::new(&self.remote, work.stop, NamedBy::Registry(self)).within(self.is_mirror, Some(work.since))
    }

    /// Takes a failure of it; `leads_on` says whether another endpoint is tried.
    pub(super) fn has_failed(&self, error: &Error, leads_on: bool) {
        let host = &self.endpoint.host;
        let is_silent = match error {
            Error::Fetch { .. } | Error::Proxy { .. } => true,
            Error::Registry { source } => matches!(**source, RegistryError::Unreachable { .. }),
            _ => false,
        };
        if is_silent {
            self.remote.failing().add(host);
        }
        if leads_on {
            tracing::warn!(host, why = %error, "registry.endpoint-failed");
        }
    }

    pub(super) fn has_answered(&self) {
        self.remote.failing().remove(&self.endpoint.host);
    }

    /// Whether it was silent just now.
    pub(super) fn is_failing(&self) -> bool {
        self.remote.failing().has(&self.endpoint.host)
    }

    /// Whether it may be spoken to without TLS.
    fn may_be_plain(&self) -> bool {
        self.endpoint.insecure || self.endpoint.host.parse().is_ok_and(|host: Host| host.is_loopback())
    }

    fn at(&self, scheme: &str, path: &str) -> Result<Location, Error> {
        Location::parse(&format!("{scheme}://{}/v2/{path}", self.endpoint.host))
    }

    /// Returns the scheme of its URLs: https, unless the operator allows it to be without TLS and it is.
    fn scheme(&self, work: Work<'_>) -> Result<&'static str, Error> {
        if !self.may_be_plain() {
            return Ok("https");
        }
        let mut tries = self.tries(work);
        let (tls, plain) = (self.at("https", "")?, self.at("http", "")?);
        loop {
            let client = self.remote.client(NamedBy::Registry(self))?;
            if let Some(scheme) = client.scheme.get() {
                return Ok(scheme);
            }
            let failure = match tries.probe(&tls) {
                Ok(Probe::Server) => return Ok(client.scheme.get_or_init(|| "https")),
                // The request that is to come tells whether it speaks HTTP.
                Ok(Probe::Plain) => return Ok(client.scheme.get_or_init(|| "http")),
                Ok(Probe::Nothing(without)) => match tries.probe(&plain) {
                    Ok(Probe::Server | Probe::Plain) => return Ok(client.scheme.get_or_init(|| "http")),
                    Ok(Probe::Nothing(why)) => {
                        self.remote.forget(&client);
                        let (host, tls, plain) = (self.endpoint.host.clone(), without, why);
                        let error = RegistryError::Unreachable { host, tls, plain }.into();
                        Failure::Again { error, pause: None }
                    }
                    Err(failure) => failure,
                },
                Err(failure) => failure,
            };
            tries.after(failure, &tls)?;
        }
    }

    pub(super) fn location(&self, path: &str, work: Work<'_>) -> Result<Location, Error> {
        let scheme = self.scheme(work)?;
        self.at(scheme, &format!("{}/{path}", self.endpoint.repository))
    }

    /// Begins to receive a layer.
    pub(super) fn fetch<'a>(&'a self, what: Wanted<'_>, work: Work<'a>) -> Result<Body<'a>, Error> {
        let location = self.location(what.path, work)?;
        Ok(self.body(location, what, work, None))
    }

    fn body<'a>(
        &'a self,
        location: Location,
        what: Wanted<'_>,
        work: Work<'a>,
        document: Option<&'static str>,
    ) -> Body<'a> {
        let fetch = Fetch {
            remote: &self.remote,
            locations: Cow::Owned(vec![location]),
            by: NamedBy::Registry(self),
            mirrors_of: None,
            digest: what.has_digest,
            size: what.size,
            limit: what.limit,
            validator: None,
            stop: work.stop,
            terms: Terms { from: what.from, since: Some(work.since), is_mirror: self.is_mirror, document },
        };
        fetch.start()
    }

    fn document(
        &self,
        path: &str,
        accept: &'static str,
        expected: Option<(&Digest, Option<u64>)>,
        work: Work<'_>,
    ) -> Result<(Document, HeaderMap, Location), Error> {
        let location = self.location(path, work)?;
        self.document_at(location, accept, expected, work)
    }

    fn document_at(
        &self,
        location: Location,
        accept: &'static str,
        expected: Option<(&Digest, Option<u64>)>,
        work: Work<'_>,
    ) -> Result<(Document, HeaderMap, Location), Error> {
        let size = expected.and_then(|(_, size)| size);
        let wanted = Wanted { path: "", size, limit: MAX_JSON, from: 0, has_digest: expected.is_some() };
        let mut body = self.body(location.clone(), wanted, work, Some(accept));
        let headers = body.headers()?;
        let what = location.to_string();
        // Its digest is of other bytes, and it may become any size.
        if let Some(encoding) = text(&headers, &CONTENT_ENCODING).filter(|encoding| encoding != "identity") {
            let why =
                format!("it is sent with the encoding {:?}, which was not asked for", clip(&encoding, 32));
            return Err(Error::Corrupt { what, why });
        }
        let mut bytes = Vec::new();
        body.read_to_end(&mut bytes).map_err(|error| stream_error(&what, error))?;
        let digest = Digest::of(&bytes);
        if let Some((expected, _)) = expected {
            same(&what, expected, &digest)?;
        }
        let media_type = text(&headers, &CONTENT_TYPE).map(|text| media_type(&text)).unwrap_or_default();
        Ok((Document { bytes, digest, media_type }, headers, location))
    }

    /// Fetches a manifest or an index by its tag or digest.
    pub(super) fn manifest(
        &self,
        reference: &str,
        digest: Option<&Digest>,
        work: Work<'_>,
    ) -> Result<Document, Error> {
        let path = format!("manifests/{reference}");
        let expected = digest.map(|digest| (digest, None));
        let (document, headers, location) = self.document(&path, MANIFESTS, expected, work)?;
        agrees(&location, &headers, &document.digest)?;
        Ok(document)
    }

    /// Fetches the config of an image.
    pub(super) fn config(&self, digest: &Digest, size: u64, work: Work<'_>) -> Result<Vec<u8>, Error> {
        let (document, ..) =
            self.document(&format!("blobs/{digest}"), "*/*", Some((digest, Some(size))), work)?;
        Ok(document.bytes)
    }

    /// Has the registry accept the login, by a request for its base (OCI distribution spec, "Determining Support").
    /// Returns whether it has asked for one. A server that asks for none must show by its answer that it is a registry: a
    /// password is not kept for a web site.
    pub(super) fn greet(&self, work: Work<'_>) -> Result<bool, Error> {
        let location = self.at(self.scheme(work)?, "")?;
        let no_registry = |why: String| {
            let host = self.endpoint.host.clone();
            Error::from(RegistryError::NoRegistry { host, why })
        };
        match self.document_at(location, "application/json", None, work) {
            Ok((document, headers, location)) => {
                let (asked, bytes) = (self.access.was_asked_for(), &document.bytes);
                let is_one = asked || headers.contains_key(API_VERSION) || bytes.is_empty();
                match is_one || serde_json::from_slice::<IgnoredAny>(bytes).is_ok() {
                    true => Ok(asked),
                    false => Err(no_registry(format!("what it gives at {location} is no JSON"))),
                }
            }
            Err(Error::Registry { source }) => Err(match *source {
                RegistryError::NoManifest { .. } => {
                    no_registry("it answers 404 to a request for /v2/".into())
                }
                source => self.access.not_accepted(source).into(),
            }),
            Err(error) => Err(error),
        }
    }

    /// Has tokens asked for that allow to push, and to mount blobs of another repository.
    pub(super) fn pushing(mut self, from: Option<&str>) -> Self {
        self.access.is_for_push(&self.endpoint.repository, from);
        self
    }

    /// Asks for the digest of a manifest or an index; `None` if the registry does not give one in this way.
    pub(super) fn head(&self, reference: &str, work: Work<'_>) -> Result<Option<Digest>, Error> {
        let location = self.location(&format!("manifests/{reference}"), work)?;
        let mut tries = self.tries(work);
        loop {
            let ask = Ask { method: Method::HEAD, location: &location, part: None, accept: Some(MANIFESTS) };
            match tries.ask(&ask) {
                Ok((_client, response)) => return Ok(given(response.headers())),
                // Not every registry and proxy knows HEAD, and those that do not answer anything to it; GET is tried next, with
                // all tries.
                Err(Failure::Final(Error::Registry { source })) if may_be_of_head(&source) => {
                    return Ok(None);
                }
                Err(failure) => tries.after(failure, &location)?,
            }
        }
    }

    /// Lists the tags of the repository.
    pub(super) fn tags(&self, work: Work<'_>) -> Result<Vec<String>, Error> {
        let mut location = self.location("tags/list", work)?;
        let mut url = location.url().clone();
        url.query_pairs_mut().append_pair("n", PAGE);
        location = Location::of_url(url);
        let repository = || format!("{}/{}", self.endpoint.host, self.endpoint.repository);
        let limit = |what: &str, limit: usize| Error::Limit {
            what: format!("{what} of tags of {}", repository()),
            limit: limit as u64,
        };
        let (mut all, mut bytes, mut seen) = (Vec::new(), 0, HashSet::new());
        for _ in 0..MAX_PAGES {
            seen.insert(location.url().clone());
            let (page, headers, at) = self.document_at(location, "application/json", None, work)?;
            let what = at.to_string();
            let corrupt = |why: &str| Error::Corrupt { what: what.clone(), why: why.to_owned() };
            bytes += page.bytes.len();
            if bytes > MAX_TAG_BYTES {
                return Err(limit("the size of all pages", MAX_TAG_BYTES));
            }
            let tags: Tags =
                serde_json::from_slice(&page.bytes).map_err(|error| Error::json(&what, &error))?;
            let tags = tags.tags.unwrap_or_default();
            if tags.iter().any(|tag| tag.len() > LONGEST_TAG) {
                return Err(corrupt("a tag is longer than 128 bytes"));
            }
            all.extend(tags);
            if all.len() > MAX_TAGS {
                return Err(limit("the number", MAX_TAGS));
            }
            let Some(next) = text(&headers, &LINK).and_then(|link| next(&link)) else { return Ok(all) };
            let next = at.url().join(&next).map_err(|_| corrupt("its next page has no valid address"))?;
            // A registry behind a proxy may know itself by another address, as which it cannot be reached.
            let mut url = at.url().clone();
            url.set_path(next.path());
            url.set_query(next.query());
            if seen.contains(&url) || last(&url).is_some_and(|next| last(at.url()) == Some(next)) {
                return Err(corrupt("its next page is one that was there before"));
            }
            location = Location::of_url(url);
        }
        Err(limit("the number of pages", MAX_PAGES))
    }
}

/// A file of a registry.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted<'a> {
    /// Its path below the repository.
    pub(super) path: &'a str,
    pub(super) size: Option<u64>,
    /// The maximum size in bytes.
    pub(super) limit: u64,
    /// The first byte that is wanted.
    pub(super) from: u64,
    /// Whether a digest is verified.
    pub(super) has_digest: bool,
}

impl Authority for Registry {
    fn host(&self) -> &str {
        &self.endpoint.host
    }

    fn is_insecure(&self) -> bool {
        self.endpoint.insecure
    }

    fn is_own(&self, location: &Location) -> bool {
        let own = self.at(location.url().scheme(), "");
        own.is_ok_and(|own| own.has_origin_of(location.url()))
            && (!location.is_plain() || self.may_be_plain())
    }

    fn authorize(
        &self,
        tries: &Tries<'_>,
        location: &Location,
        headers: &mut HeaderMap,
    ) -> Result<(), Failure> {
        self.access.authorize(tries, location.is_plain(), headers)
    }

    fn renew(
        &self,
        tries: &Tries<'_>,
        location: &Location,
        answer: &HeaderMap,
        sent: Option<&HeaderValue>,
    ) -> Result<(), Failure> {
        self.access.renew(tries, location.is_plain(), challenge::of(answer), sent)
    }

    fn refused(&self, refusal: Refusal<'_>) -> Error {
        let Refusal { location, status, headers, said, own, who, host: from } = refusal;
        let path = location.url().path();
        let host = self.endpoint.host.clone();
        match status {
            StatusCode::TOO_MANY_REQUESTS => {
                let remedy = self.access.remedy_of_limit();
                let done = if self.access.pushes() { "pushed to" } else { "pulled from" };
                RegistryError::RateLimit { host: from, done, limit: limit(&headers), said, remedy }.into()
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if own => {
                self.access.denied(&self.endpoint.host, status, said)
            }
            StatusCode::NOT_FOUND if own && path.contains("/blobs/uploads/") => {
                let repository = self.endpoint.repository.clone();
                RegistryError::NoRepository { host, repository, said }.into()
            }
            StatusCode::NOT_FOUND if own && path.contains("/blobs/") => {
                let blob = path.rsplit('/').next().unwrap_or_default().to_owned();
                RegistryError::NoBlob { host, blob, said }.into()
            }
            StatusCode::NOT_FOUND if own && path.ends_with("/tags/list") => {
                RegistryError::NoTags { host, repository: self.endpoint.repository.clone(), said }.into()
            }
            StatusCode::NOT_FOUND if own && !self.access.pushes() => {
                let path = path
                    .trim_start_matches("/v2/")
                    .replacen("/manifests/", ":", 1)
                    .replacen(":sha256", "@sha256", 1);
                // What the error says already.
                let said = if said == ": MANIFEST_UNKNOWN: manifest unknown" { String::new() } else { said };
                let name = self.image.split('@').next().unwrap_or_default();
                let (image, repository) = (self.image.clone(), split_tag(name).0.to_owned());
                RegistryError::NoManifest { host, path, image, repository, said }.into()
            }
            status => {
                let remedy = match status {
                    _ if !self.access.pushes() => "",
                    StatusCode::NOT_FOUND if path.contains("/manifests/") => {
                        "; it does not have the repository any more, or a layer of the image: push it once more"
                    }
                    StatusCode::METHOD_NOT_ALLOWED => {
                        "; it only reads, as one that is a mirror does: push to the registry that it is a mirror of"
                    }
                    StatusCode::PAYLOAD_TOO_LARGE => {
                        "; a proxy in front of the registry limits the size of requests, and has to allow larger ones"
                    }
                    _ => "",
                };
                let (url, status) = (location.to_string(), status.as_u16());
                let said = format!("{}{said}{remedy}", to_wait(&headers));
                RegistryError::Answer { url, who, status, said }.into()
            }
        }
    }

    fn untrusted(&self, location: &Location, why: String) -> Error {
        let host = location.authority();
        if self.is_own(location) {
            return RegistryError::Untrusted { host, why }.into();
        }
        RegistryError::UntrustedElsewhere { host, registry: self.endpoint.host.clone(), why }.into()
    }
}

impl fmt::Display for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.endpoint.host)
    }
}

fn invalid(name: &str, why: &'static str) -> Error {
    RegistryError::Name { name: tame(&clip(name, 300)).into_owned(), why }.into()
}

fn is_dots(name: &str) -> bool {
    name == "." || name == ".."
}

fn check_host(host: &str) -> Result<(), Error> {
    if host.parse::<Host>().is_err() || is_dots(host) {
        return Err(invalid(host, "its registry is no HOST or HOST:PORT"));
    }
    Ok(())
}

/// Returns the digest that a registry gives for a document; one of another algorithm is not compared.
pub(super) fn given(headers: &HeaderMap) -> Option<Digest> {
    text(headers, &CONTENT_DIGEST)?.parse().ok()
}

/// Whether a document has the digest that a registry gives for it.
///
/// # Errors
/// [`RegistryError::Header`].
pub(super) fn agrees(location: &Location, headers: &HeaderMap, actual: &Digest) -> Result<(), Error> {
    match given(headers).filter(|header| header != actual) {
        None => Ok(()),
        Some(header) => {
            let (url, actual) = (location.to_string(), actual.clone());
            Err(RegistryError::Header { url, header, actual }.into())
        }
    }
}

/// Whether an error may be the answer to HEAD alone: any but that of a login that is refused, or missing.
fn may_be_of_head(error: &RegistryError) -> bool {
    match error {
        RegistryError::Denied { status, .. } => *status != 401,
        RegistryError::Answer { .. } | RegistryError::NoManifest { .. } | RegistryError::Challenge { .. } => {
            true
        }
        _ => false,
    }
}

/// Returns after which tag a page of tags begins.
fn last(url: &Url) -> Option<Cow<'_, str>> {
    url.query_pairs().find(|(name, _)| name == "last").map(|(_, last)| last)
}

/// Describes a limit of requests, for an error.
fn limit(headers: &HeaderMap) -> String {
    let values = LIMITS.iter().filter_map(|name| {
        let value = headers.get(*name)?.to_str().ok()?;
        Some(format!(", {name} {}", clip(value, 64)))
    });
    values.chain([to_wait(headers)]).collect()
}

/// Returns the URL with the relation `next` in a Link header (RFC 8288).
pub(super) fn next(link: &str) -> Option<String> {
    link.split(',').find_map(|part| {
        let (url, parameters) = part.trim().strip_prefix('<')?.split_once('>')?;
        let is_next = |parameter: &str| {
            parameter.trim().split_once('=').is_some_and(|(name, value)| {
                name.trim().eq_ignore_ascii_case("rel") && value.trim().trim_matches('"') == "next"
            })
        };
        parameters.split(';').any(is_next).then(|| url.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links() {
        for (link, expected) in [
            ("</v2/a/tags/list?last=x&n=1>; rel=\"next\"", Some("/v2/a/tags/list?last=x&n=1")),
            ("<a>; rel=prev, <b>; REL = next", Some("b")),
            ("<a>", None),
            ("a; rel=next", None),
            ("<a; rel=next", None),
            ("", None),
        ] {
            assert_eq!(next(link).as_deref(), expected, "{link}");
        }
    }
}
