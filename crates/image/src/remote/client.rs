//! The HTTP client: its runtime, its trusted roots, and its client certificates.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use reqwest::redirect::Policy;
use reqwest::{Method, Proxy, StatusCode, Url};
use rustls::client::ResolvesClientCert;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, SignatureScheme};
use tokio::runtime::Runtime;
use wardian_sys::text::chain;

use super::hosts;
use super::location::Location;
use super::names::Names;
use super::settings::Settings;
use super::trust::Trust;
use crate::bounds::stop::Stop;
use crate::error::Error;

/// The maximum size of one certificate file in bytes. The largest bundles of roots have some hundred kilobytes.
const MAX_PEM: u64 = 4 << 20;

/// A client and the runtime of its connections and its resolver. One thread suffices for all fetches: it only moves
/// bytes between sockets and the threads that wait in [`Client::wait`].
#[derive(Debug)]
pub(crate) struct Client {
    /// Follows no redirects, which may lead to servers that have another client.
    pub(super) http: reqwest::Client,
    /// Asks the proxy of tunnels in plain words, because `http` does not tell why one was refused.
    tunnels: Option<reqwest::Client>,
    /// Whose it is.
    pub(super) whose: Whose,
    /// The scheme of a registry that may be spoken to without TLS, once it is known.
    pub(crate) scheme: OnceLock<&'static str>,
    /// None once it is dropped.
    runtime: Option<Runtime>,
}

/// Whose requests a client sends.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Whose {
    Caller,
    Image,
    /// To a registry itself, `HOST[:PORT]`.
    Registry {
        host: String,
        is_insecure: bool,
    },
    /// To other servers that registries name or redirect to: to one that the operator has certificates for, or to any.
    /// None is shown a client's certificate, because a registry could lead to servers that only this host may ask.
    Named {
        host: Option<String>,
    },
}

impl Whose {
    /// That of a server which a registry names.
    pub(super) fn named(settings: &Settings, location: &Location) -> Self {
        let host = location.authority();
        Self::Named { host: certificates(settings, &host).is_some().then_some(host) }
    }

    fn tls(&self, settings: &Settings) -> Result<ClientConfig, Error> {
        let of = |host: &str| {
            certificates(settings, host)
                .map_or_else(|| Ok(Certificates::default()), |dir| Certificates::load(&dir))
        };
        match self {
            Self::Caller | Self::Image => tls(settings.certificates.as_deref()),
            Self::Registry { host, is_insecure } => {
                let name = host.parse::<hosts::Host>()?;
                tls_with(of(host)?, is_insecure.then(|| name.name()))
            }
            Self::Named { host } => {
                let roots = host.as_deref().map_or_else(|| Ok(Certificates::default()), of)?.roots;
                tls_with(Certificates { roots, pairs: Vec::new() }, None)
            }
        }
    }
}

/// Returns the operator's directory with the certificates of a registry, `HOST[:PORT]`.
fn certificates(settings: &Settings, host: &str) -> Option<PathBuf> {
    // A server that a registry names may be called by the name of another directory.
    let is_name = !host.chars().all(|c| c == '.');
    settings.registry_certificates.iter().map(|all| all.join(host)).find(|dir| is_name && dir.is_dir())
}

/// The outcome of a wait.
pub(crate) enum Waited<T> {
    Done(T),
    TooLong,
    Stopped,
}

/// Returns a client for requests that have nothing to do with images: it resolves names, verifies certificates and uses
/// proxies as those for images do. It follows no redirects and does not try again.
///
/// # Errors
/// [`Error::Client`].
pub fn plain(settings: &Settings) -> Result<reqwest::Client, Error> {
    build(settings, tls(None)?, proxy_of(settings))
}

fn build(settings: &Settings, tls: ClientConfig, proxy: Option<Proxy>) -> Result<reqwest::Client, Error> {
    let builder = reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .dns_resolver(Names::of_host())
        .connect_timeout(settings.connect)
        .redirect(Policy::none())
        .referer(false)
        .retry(reqwest::retry::never())
        .user_agent(concat!("wardian/", env!("CARGO_PKG_VERSION")))
        // The environment is read in one place, by the settings.
        .no_proxy();
    let builder = match proxy {
        Some(proxy) => builder.proxy(proxy),
        None => builder,
    };
    builder.build().map_err(|e| Error::Client { why: causes(e) })
}

fn proxy_of(settings: &Settings) -> Option<Proxy> {
    let proxies = settings.proxies.clone();
    (!proxies.is_empty())
        .then(|| Proxy::custom(move |url: &Url| proxies.by_way_of(url).and_then(super::proxies::Proxy::url)))
}

impl Client {
    pub(super) fn new(settings: &Settings, whose: Whose) -> Result<Self, Error> {
        let error = |why| Error::Client { why };
        let tls = whose.tls(settings)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("image-fetch")
            .enable_all()
            .build()
            .map_err(|e| error(e.to_string()))?;
        let build = |tls, proxy| build(settings, tls, proxy);
        let tunnels = settings.proxies.of_tunnels().map(|url| Proxy::custom(move |_| Some(url.clone())));
        let tunnels = tunnels.map(|proxy| build(tls.clone(), Some(proxy))).transpose()?;
        let http = build(tls, proxy_of(settings))?;
        Ok(Self { http, tunnels, whose, scheme: OnceLock::new(), runtime: Some(runtime) })
    }

    /// Asks the proxy of tunnels for one to the server of a URL once more, and returns the status of its answer.
    pub(super) fn refusal_of_tunnel(
        &self,
        url: &Url,
        stop: &Stop<'_>,
        limit: Duration,
    ) -> Option<StatusCode> {
        let mut to = Url::parse("http://host/").ok()?;
        to.set_host(url.host_str()).ok()?;
        to.set_port(url.port_or_known_default()).ok()?;
        match self.wait(stop, limit, self.tunnels.as_ref()?.request(Method::CONNECT, to).send()) {
            Waited::Done(Ok(answer)) if !answer.status().is_success() => Some(answer.status()),
            _ => None,
        }
    }

    /// Waits for `work`, at most for `limit`.
    pub(super) fn wait<T>(
        &self,
        stop: &Stop<'_>,
        limit: Duration,
        work: impl Future<Output = T>,
    ) -> Waited<T> {
        let Some(runtime) = &self.runtime else { return Waited::Stopped };
        runtime.block_on(async {
            tokio::select! {
                biased;
                done = work => Waited::Done(done),
                () = stop.asked_for() => Waited::Stopped,
                () = tokio::time::sleep(limit) => Waited::TooLong,
            }
        })
    }

    /// As [`Client::wait`], for a request with a long body: ends as well once it is `stalled`.
    pub(super) fn wait_for_flow<T>(
        &self,
        stop: &Stop<'_>,
        limit: Duration,
        stalled: impl Future<Output = ()>,
        work: impl Future<Output = T>,
    ) -> Waited<T> {
        let either = async {
            tokio::select! {
                biased;
                done = work => Some(done),
                () = stalled => None,
            }
        };
        match self.wait(stop, limit, either) {
            Waited::Done(Some(done)) => Waited::Done(done),
            Waited::Done(None) | Waited::TooLong => Waited::TooLong,
            Waited::Stopped => Waited::Stopped,
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // Does not wait for the remaining connections to close.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Returns the TLS config: the system's roots (with SSL_CERT_FILE and SSL_CERT_DIR) and the directory's certificates.
pub(super) fn tls(dir: Option<&Path>) -> Result<ClientConfig, Error> {
    tls_with(dir.map_or_else(|| Ok(Certificates::default()), Certificates::load)?, None)
}

/// Returns the TLS config with these certificates besides the system's; any certificate of `any_of` is accepted.
fn tls_with(own: Certificates, any_of: Option<&str>) -> Result<ClientConfig, Error> {
    let error = |e: rustls::Error| Error::Client { why: e.to_string() };
    let provider = Arc::new(ring::default_provider());
    let mut roots = RootCertStore::empty();
    for (path, root) in own.roots {
        roots.add(root).map_err(|e| Error::Certificate { path: shown(&path), why: e.to_string() })?;
    }
    let trust = Trust::new(roots, any_of, &provider).map_err(|why| Error::Client { why })?;
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(error)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(trust));
    if own.pairs.is_empty() {
        return Ok(builder.with_no_client_auth());
    }
    let pairs = own.pairs.into_iter().map(|pair| pair.certified(&provider)).collect::<Result<_, _>>()?;
    Ok(builder.with_client_cert_resolver(Arc::new(Identities(pairs))))
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// The content of a directory of certificates: `*.crt` are roots; a `*.cert` and the `*.key` of the same stem are a
/// client certificate (GrootFS' `remote_layer_client_certificates_path`, docker's `certs.d`).
#[derive(Default)]
struct Certificates {
    roots: Vec<(PathBuf, CertificateDer<'static>)>,
    pairs: Vec<Pair>,
}

struct Pair {
    path: PathBuf,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Certificates {
    /// Loads a directory, which may be missing. Empty and blank files count as missing, because BOSH writes
    /// properties that are not set like that.
    fn load(dir: &Path) -> Result<Self, Error> {
        let mut found = Self::default();
        let entries = match fs::read_dir(dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(found),
            entries => entries
                .and_then(Iterator::collect::<io::Result<Vec<_>>>)
                .map_err(|source| Error::Io { op: "read", path: shown(dir), source })?,
        };
        let mut paths: Vec<_> = entries.iter().map(fs::DirEntry::path).collect();
        paths.sort();
        for path in &paths {
            match path.extension().and_then(|name| name.to_str()) {
                Some("crt") => {
                    if let Some(pem) = read(path)? {
                        found.roots.extend(parsed(path, &pem)?.into_iter().map(|c| (path.clone(), c)));
                    }
                }
                Some("cert") => found.pairs.extend(Pair::load(path, &path.with_extension("key"))?),
                Some("key") if !path.with_extension("cert").exists() => {
                    found.pairs.extend(Pair::load(&path.with_extension("cert"), path)?);
                }
                _ => {}
            }
        }
        Ok(found)
    }
}

impl Pair {
    fn load(cert: &Path, key: &Path) -> Result<Option<Self>, Error> {
        let missing =
            |missing: &Path, of: &Path| Error::CertificatePair { missing: shown(missing), of: shown(of) };
        match (read(cert)?, read(key)?) {
            (None, None) => Ok(None),
            (Some(_), None) => Err(missing(key, cert)),
            (None, Some(_)) => Err(missing(cert, key)),
            (Some(chain), Some(pem)) => Ok(Some(Self {
                path: cert.to_owned(),
                chain: parsed(cert, &chain)?,
                // The parser's error does not quote the key.
                key: PrivateKeyDer::from_pem_slice(&pem)
                    .map_err(|e| Error::Certificate { path: shown(key), why: e.to_string() })?,
            })),
        }
    }

    fn certified(self, provider: &CryptoProvider) -> Result<Arc<CertifiedKey>, Error> {
        CertifiedKey::from_der(self.chain, self.key, provider)
            .map(Arc::new)
            .map_err(|e| Error::Certificate { path: shown(&self.path), why: e.to_string() })
    }
}

/// Reads a file, unless it is blank or missing.
fn read(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    let error = |op, source| Error::Io { op, path: shown(path), source };
    let meta = match fs::metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        meta => meta.map_err(|e| error("stat", e))?,
    };
    if meta.len() > MAX_PEM {
        return Err(Error::Limit { what: format!("the size of {}", shown(path)), limit: MAX_PEM });
    }
    let bytes = fs::read(path).map_err(|e| error("read", e))?;
    Ok((!bytes.trim_ascii().is_empty()).then_some(bytes))
}

fn parsed(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Error> {
    let error = |why| Error::Certificate { path: shown(path), why };
    let found: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|e: rustls::pki_types::pem::Error| error(e.to_string()))?;
    if found.is_empty() {
        return Err(error("it holds no certificate in PEM form".into()));
    }
    Ok(found)
}

/// The client certificates. The first one that is signed by one of the server's authorities is used.
#[derive(Debug)]
struct Identities(Vec<Arc<CertifiedKey>>);

impl ResolvesClientCert for Identities {
    fn resolve(&self, authorities: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let usable = || self.0.iter().filter(|pair| pair.key.choose_scheme(schemes).is_some());
        // A certificate contains its issuer's name in the same encoding as the server's list.
        let signed = |pair: &&Arc<CertifiedKey>| {
            let names = |name: &&[u8]| {
                !name.is_empty()
                    && pair.cert.iter().any(|cert| cert.windows(name.len()).any(|part| part == *name))
            };
            authorities.iter().any(names)
        };
        usable().find(signed).or_else(|| usable().next()).cloned()
    }

    fn has_certs(&self) -> bool {
        !self.0.is_empty()
    }
}

/// Returns the causes of a client error, whose own text only names the operation. None of them contains the URL.
pub(super) fn causes(error: reqwest::Error) -> String {
    let error = error.without_url();
    chain(std::error::Error::source(&error).unwrap_or(&error))
}
