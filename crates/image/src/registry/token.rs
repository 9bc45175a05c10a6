//! Tokens of registries, and other credentials that requests carry (distribution's "Token Authentication
//! Specification", and its "OAuth 2 Token Authentication").

use std::fmt;
use std::time::{Duration, Instant};

use base64::Engine as _;
use parking_lot::{Mutex, MutexGuard};
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Method, StatusCode};
use serde::Deserialize;

use super::challenge::Challenge;
use super::{Endpoint, Login};
use crate::error::{Error, RegistryError};
use crate::remote::{Failure, Host, Location, Tries, failed, is_loopback, retry_after, said, to_wait};

/// The maximum size of a token server's answer, in bytes.
const MAX_TOKEN: usize = 64 << 10;
/// How long a token is used at least, as its specification says.
const LEAST: Duration = Duration::from_secs(60);
/// How long one is used at most, if the registry does not refuse it.
const MOST: Duration = Duration::from_secs(24 * 3600);
/// A token is renewed this long before it expires.
const MARGIN: Duration = Duration::from_secs(10);
/// The interval at which a thread that waits for another one's token checks whether it was cancelled.
const LOOK: Duration = Duration::from_millis(20);

/// The credentials of a registry, and what requests carry because of them.
pub(super) struct Access {
    login: Option<Login>,
    /// The host of the registry, and what to log in to.
    host: String,
    login_to: String,
    /// The image, for errors.
    image: String,
    /// What the token is for; with none it is for nothing but to see whether it is given.
    scopes: Vec<String>,
    /// Whether requests write.
    pushes: bool,
    is_insecure: bool,
    grant: Mutex<Option<Grant>>,
}

/// Shows no secrets.
impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access").field("host", &self.host).field("login", &self.login).finish_non_exhaustive()
    }
}

/// What requests carry, because the registry asked for it.
struct Grant {
    header: HeaderValue,
    /// When a token is to be renewed.
    until: Option<Instant>,
    challenge: Challenge,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
    #[serde(default)]
    expires_in: Option<Seconds>,
}

/// A number, which some token servers give as a text.
#[derive(Deserialize)]
#[serde(untagged)]
enum Seconds {
    Number(f64),
    Text(String),
}

impl Seconds {
    /// One that is no number is not there.
    fn get(self) -> Option<f64> {
        match self {
            Self::Number(number) => Some(number),
            Self::Text(text) => text.trim().parse::<u32>().ok().map(f64::from),
        }
    }
}

impl Access {
    pub(super) fn new(endpoint: &Endpoint, login: Option<Login>, login_to: &str, image: String) -> Self {
        Self {
            login,
            host: endpoint.host.clone(),
            login_to: login_to.to_owned(),
            image,
            scopes: vec![format!("repository:{}:pull", endpoint.repository)],
            pushes: false,
            is_insecure: endpoint.insecure,
            grant: Mutex::new(None),
        }
    }

    /// Has tokens asked for that are for no repository.
    pub(super) fn is_for_none(&mut self) {
        self.scopes.clear();
    }

    /// Has tokens asked for that allow to write to a repository, and to read another one, from which blobs are mounted.
    pub(super) fn is_for_push(&mut self, repository: &str, from: Option<&str>) {
        let from = from.filter(|from| *from != repository).map(|from| format!("repository:{from}:pull"));
        self.scopes = [format!("repository:{repository}:pull,push")].into_iter().chain(from).collect();
        self.pushes = true;
    }

    /// Whether requests write.
    pub(super) fn pushes(&self) -> bool {
        self.pushes
    }

    /// Whether the registry has asked for a login or a token.
    pub(super) fn was_asked_for(&self) -> bool {
        self.grant.lock().is_some()
    }

    /// Takes the lock, which another thread may hold while it waits for a token server.
    fn grant(&self, tries: &Tries<'_>) -> Result<MutexGuard<'_, Option<Grant>>, Failure> {
        loop {
            if let Some(grant) = self.grant.try_lock_for(LOOK) {
                return Ok(grant);
            }
            if tries.stop.is_set() {
                return Err(Error::Cancelled { what: self.image.clone() }.into());
            }
        }
    }

    /// Adds what the registry has asked for before; renews an expired token.
    pub(super) fn authorize(
        &self,
        tries: &Tries<'_>,
        is_plain: bool,
        headers: &mut HeaderMap,
    ) -> Result<(), Failure> {
        let mut grant = self.grant(tries)?;
        if let Some(expired) = &*grant
            && expired.until.is_some_and(|until| Instant::now() >= until)
        {
            let challenge = expired.challenge.clone();
            *grant = Some(self.answer(tries, is_plain, challenge)?);
        }
        if let Some(grant) = &*grant {
            headers.insert(AUTHORIZATION, grant.header.clone());
        }
        Ok(())
    }

    /// Answers a challenge, unless another thread did since the refused request was sent.
    pub(super) fn renew(
        &self,
        tries: &Tries<'_>,
        is_plain: bool,
        challenge: Option<Challenge>,
        sent: Option<&HeaderValue>,
    ) -> Result<(), Failure> {
        let mut grant = self.grant(tries)?;
        if grant.as_ref().is_some_and(|grant| Some(&grant.header) != sent) {
            return Ok(());
        }
        let challenge = challenge.ok_or_else(|| self.bad("neither for a password nor for a token"))?;
        if challenge == Challenge::Basic && sent.is_some() {
            return Err(self.refused_login(&self.host, String::new()));
        }
        *grant = None;
        *grant = Some(self.answer(tries, is_plain, challenge)?);
        Ok(())
    }

    fn bad(&self, why: &str) -> Failure {
        self.challenge(why.to_owned())
    }

    fn challenge(&self, why: String) -> Failure {
        Failure::Final(RegistryError::Challenge { host: self.host.clone(), why }.into())
    }

    fn refused_login(&self, host: &str, said: String) -> Failure {
        let (host, login) = (host.to_owned(), self.login_to.clone());
        Failure::Final(RegistryError::Login { host, said, login }.into())
    }

    /// Returns the error for a refused request, of whatever credentials.
    pub(super) fn denied(&self, host: &str, status: StatusCode, said: String) -> Error {
        let remedy = match self.login {
            Some(_) => {
                "with another account may help, or another user name and password where the request brings them"
            }
            None => "may help, or a user name and password where the request can bring them",
        };
        let (image, login, host) = (self.image.clone(), self.login_to.clone(), host.to_owned());
        let status = status.as_u16();
        if self.pushes {
            return RegistryError::PushDenied { image, host, status, said, login, remedy }.into();
        }
        RegistryError::Denied { image, host, status, said, login, remedy }.into()
    }

    /// Returns the error for a login that was tried: a registry with passwords answers a wrong one as it does none, and no
    /// image was asked for.
    pub(super) fn not_accepted(&self, error: RegistryError) -> RegistryError {
        match error {
            RegistryError::Denied { host, status: 401, said, login, .. } if self.login.is_some() => {
                RegistryError::Login { host, said, login }
            }
            RegistryError::Denied { host, status, said, .. } => {
                RegistryError::LoginDenied { host, status, said }
            }
            error => error,
        }
    }

    /// Returns what helps against a limit of requests.
    pub(super) fn remedy_of_limit(&self) -> String {
        match self.login {
            Some(_) => "wait, or use a mirror".to_owned(),
            None => format!("wait, or log in: `wardian image login {}` often allows more", self.login_to),
        }
    }

    fn answer(&self, tries: &Tries<'_>, is_plain: bool, challenge: Challenge) -> Result<Grant, Failure> {
        let (realm, service) = match &challenge {
            Challenge::Bearer { realm, service } => (realm, service.as_deref()),
            Challenge::Basic => {
                return match &self.login {
                    Some(Login::Basic { user, password }) => {
                        let header = basic(user, password).map_err(|why| self.bad(why))?;
                        Ok(Grant { header, until: None, challenge })
                    }
                    Some(Login::Identity(_)) => {
                        Err(self.bad("for a password, and there is only an identity token for it"))
                    }
                    None => Err(self.denied(&self.host, StatusCode::UNAUTHORIZED, String::new()).into()),
                };
            }
        };
        let realm = self.realm(realm, is_plain)?;
        let (header, lifetime) = self.token(tries, &realm, service)?;
        Ok(Grant { header, until: Instant::now().checked_add(lifetime), challenge })
    }

    /// Parses the address of a token server. One without TLS may be on the host of the registry alone, if that is not
    /// protected itself, or on the loopback interface, where the password does not leave this host.
    fn realm(&self, realm: &str, is_plain: bool) -> Result<Location, Failure> {
        let location = Location::parse(realm)
            .map_err(|e| self.challenge(format!("the address of its token server is bad: {e}")))?;
        let url = location.url();
        let host = url.host_str().unwrap_or_default();
        let own = self.host.parse::<Host>().is_ok_and(|own| own.name() == host);
        match url.scheme() {
            _ if !url.username().is_empty() || url.password().is_some() => {
                Err(self.bad("the address of its token server has a user or a password"))
            }
            "https" => Ok(location),
            "http" if own && (is_plain || self.is_insecure) || is_loopback(host) && is_plain => Ok(location),
            _ => Err(self.challenge(format!("its token server, {location}, does not use TLS"))),
        }
    }

    /// Has a token made by the token server.
    fn token(
        &self,
        tries: &Tries<'_>,
        realm: &Location,
        service: Option<&str>,
    ) -> Result<(HeaderValue, Duration), Failure> {
        let mut url = realm.url().clone();
        let (status, headers, body) = match &self.login {
            Some(Login::Identity(token)) => {
                let form = form(
                    realm,
                    &[
                        ("grant_type", "refresh_token"),
                        ("service", service.unwrap_or(&self.host)),
                        ("scope", &self.scopes.join(" ")),
                        ("client_id", "wardian"),
                        ("refresh_token", token),
                    ],
                );
                tries.send_secret(Method::POST, realm, MAX_TOKEN, |request| {
                    request.header(CONTENT_TYPE, "application/x-www-form-urlencoded").body(form)
                })?
            }
            login => {
                let basic = match login {
                    Some(Login::Basic { user, password }) => Some((user, password)),
                    _ => None,
                };
                {
                    let mut query = url.query_pairs_mut();
                    if let Some(service) = service {
                        query.append_pair("service", service);
                    }
                    for scope in &self.scopes {
                        query.append_pair("scope", scope);
                    }
                    if let Some((user, _)) = basic {
                        query.append_pair("account", user);
                    }
                }
                let location = Location::of_url(url);
                tries.send_secret(Method::GET, &location, MAX_TOKEN, |request| match basic {
                    Some((user, password)) => request.basic_auth(user, Some(password)),
                    None => request,
                })?
            }
        };
        let said = || said(&body);
        let host = realm.url().host_str().unwrap_or_default();
        let bad = |why: String| RegistryError::Token { url: realm.to_string(), why };
        match status {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if self.login.is_none() => {
                return Err(self.denied(host, status, said()).into());
            }
            StatusCode::UNAUTHORIZED => return Err(self.refused_login(host, said())),
            // An identity token that was withdrawn (RFC 6749, section 5.2).
            StatusCode::BAD_REQUEST if matches!(self.login, Some(Login::Identity(_))) => {
                return Err(self.refused_login(host, said()));
            }
            busy if busy == StatusCode::TOO_MANY_REQUESTS || busy.is_server_error() => {
                let error =
                    failed(realm, format!("the server answered {}{}", busy.as_u16(), to_wait(&headers)));
                return Err(Failure::Again { error, pause: retry_after(&headers) });
            }
            other if other.is_redirection() => {
                let why =
                    format!("the server answered {}; it is not followed to another one", other.as_u16());
                return Err(Failure::Final(bad(why).into()));
            }
            other => {
                let why = format!("the server answered {}{}", other.as_u16(), said());
                return Err(Failure::Final(bad(why).into()));
            }
        }
        // The parser's error does not quote the token.
        let answer: Answer = serde_json::from_slice(&body)
            .map_err(|_| Failure::Final(bad("its answer is no token".into()).into()))?;
        let token = [answer.token, answer.access_token].into_iter().flatten().find(|token| !token.is_empty());
        let header = token.and_then(|token| HeaderValue::try_from(format!("Bearer {token}")).ok());
        let Some(mut header) = header else {
            return Err(Failure::Final(bad("its answer has no token".into()).into()));
        };
        header.set_sensitive(true);
        Ok((header, lifetime(answer.expires_in.and_then(Seconds::get))))
    }
}

/// Returns how long a token is used.
fn lifetime(expires_in: Option<f64>) -> Duration {
    let given = Duration::try_from_secs_f64(expires_in.unwrap_or_default()).unwrap_or_default();
    given.clamp(LEAST, MOST) - MARGIN
}

/// Returns the header of a user and a password (RFC 7617).
fn basic(user: &str, password: &str) -> Result<HeaderValue, &'static str> {
    if user.contains(':') {
        return Err("for a password, and a user with a colon in its name cannot be told from one");
    }
    let encoded = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
    let mut header = HeaderValue::try_from(format!("Basic {encoded}"))
        .map_err(|_| "for a password, and this one cannot be sent")?;
    header.set_sensitive(true);
    Ok(header)
}

/// Encodes a form (`application/x-www-form-urlencoded`); the location only lends its encoder.
fn form(location: &Location, pairs: &[(&str, &str)]) -> String {
    let mut url = location.url().clone();
    url.set_query(None);
    url.query_pairs_mut().extend_pairs(pairs);
    url.query().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifetimes() {
        for (given, used) in [
            (None, 50),
            (Some(0.0), 50),
            (Some(-1.0), 50),
            (Some(f64::NAN), 50),
            (Some(1e300), 50),
            (Some(1e9), 24 * 3600 - 10),
            (Some(300.5), 290),
        ] {
            assert_eq!(lifetime(given).as_secs(), used, "{given:?}");
        }
    }

    #[test]
    fn realms() {
        let get = |registry: &str, insecure, is_plain, realm: &str| {
            let endpoint = Endpoint { host: registry.to_owned(), repository: "r".to_owned(), insecure };
            let access = Access::new(&endpoint, None, registry, String::new());
            access.realm(realm, is_plain).is_ok()
        };
        for (registry, insecure, is_plain, realm, fits) in [
            ("a:5000", false, false, "https://b/", true),
            ("a:5000", false, false, "http://a:5000/", false),
            ("a:5000", true, false, "http://a:5001/", true),
            ("a:5000", true, false, "http://b/", false),
            ("a:5000", true, true, "http://b/", false),
            ("a:5000", true, false, "http://127.0.0.1/", false),
            ("a:5000", true, true, "http://127.0.0.1/", true),
            ("localhost:5000", false, true, "http://127.0.0.1:5001/", true),
            ("localhost:5000", false, true, "http://b/", false),
            ("127.0.0.1:5000", true, false, "http://127.0.0.2/", false),
        ] {
            assert_eq!(
                get(registry, insecure, is_plain, realm),
                fits,
                "{registry} {insecure} {is_plain} {realm}"
            );
        }
    }

    #[test]
    fn lifetimes_as_text() {
        for (text, used) in [
            ("300", 290),
            ("\"300\"", 290),
            ("\" 300 \"", 290),
            ("300.5", 290),
            ("\"soon\"", 50),
            ("\"\"", 50),
            ("null", 50),
        ] {
            let answer: Answer =
                serde_json::from_str(&format!(r#"{{"token":"t","expires_in":{text}}}"#)).unwrap();
            assert_eq!(lifetime(answer.expires_in.and_then(Seconds::get)).as_secs(), used, "{text}");
        }
    }

    #[test]
    fn encoded() {
        let any = Location::parse("https://h/?x=y").unwrap();
        assert_eq!(form(&any, &[("a b", "c&d=é+"), ("e", "")]), "a+b=c%26d%3D%C3%A9%2B&e=");
        assert_eq!(basic("Aladdin", "open sesame").unwrap(), "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
        assert!(basic("a:b", "c").is_err());
        let login =
            [Login::Basic { user: "u".into(), password: "SECRET".into() }, Login::Identity("SECRET".into())];
        assert!(!format!("{login:?} {:?}", basic("u", "p")).contains("SECRET"));
        assert!(format!("{:?}", basic("u", "p")).contains("Sensitive"));
    }
}
