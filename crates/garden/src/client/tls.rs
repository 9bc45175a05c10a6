//! TLS to a server that listens on TCP, with certificates on both sides.

use crate::certificate;
use crate::error::{Error, Result};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// The client's TLS files, in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificates of the authorities whose servers are trusted; no others are.
    pub authorities: PathBuf,
    /// The client's certificate, with the intermediate ones.
    pub certificate: PathBuf,
    /// The key of the client's certificate.
    pub key: PathBuf,
}

/// The client's TLS configuration.
#[derive(Clone)]
pub(crate) struct Tls(TlsConnector);

impl std::fmt::Debug for Tls {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        to.write_str("Tls")
    }
}

impl Tls {
    pub(crate) fn load(files: &TlsFiles) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        for authority in certificates(&files.authorities)? {
            roots.add(authority).map_err(|error| bad(&files.authorities, certificate::refusal(&error)))?;
        }
        let chain = certificates(&files.certificate)?;
        let key = certificate::private_key(&read(&files.key)?).map_err(|error| bad(&files.key, error))?;
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| bad(&files.authorities, error))?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .map_err(|error| bad(&files.certificate, certificate::refusal(&error)))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self(Arc::new(config).into()))
    }

    /// Runs the handshake. The server's certificate must be valid for the host of `address`, which was
    /// dialled.
    pub(crate) async fn connect(
        &self,
        stream: TcpStream,
        address: &str,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let name = ServerName::try_from(host.to_owned())
            .map_err(|error| std::io::Error::new(std::io::ErrorKind::InvalidInput, error))?;
        self.0.connect(name, stream).await
    }
}

fn bad(path: &Path, why: impl std::fmt::Display) -> Error {
    Error::Tls { path: path.into(), why: why.to_string() }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|error| bad(path, error))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let found: std::result::Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(path)?).collect();
    let found = found.map_err(|error| bad(path, error))?;
    if found.is_empty() { Err(bad(path, "no certificate in PEM is in it")) } else { Ok(found) }
}
