//! TLS on TCP sockets: only clients with a certificate of the operator's authorities can connect.

use crate::{Error, Result};
use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use tokio_rustls::TlsAcceptor;
use wardian_garden::certificate;
use wardian_sys::directory;

/// The most bytes of a file of certificates.
const FILE_LIMIT: u64 = 4 << 20;

/// The server's TLS configuration: its certificate, and the authorities of its clients' certificates. Clones
/// are cheap.
#[derive(Clone)]
pub struct Tls(TlsAcceptor);

impl std::fmt::Debug for Tls {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        to.write_str("Tls")
    }
}

impl Tls {
    /// Loads files in PEM: the server's certificate with the intermediate ones, its key, and the certificates
    /// of the authorities whose clients are admitted.
    ///
    /// # Errors
    /// A file cannot be read or is not what it should be, the key does not belong to the certificate, or
    /// other users can read the key.
    pub fn load(chain: &Path, key: &Path, client_authorities: &Path) -> Result<Self> {
        let shown = certificates(chain)?;
        for doubt in certificate::doubts(&read(chain, false)?, std::time::SystemTime::now()) {
            tracing::warn!(file = %chain.display(), doubt, "serve.certificate");
        }
        let secret = certificate::private_key(&read(key, true)?).map_err(|why| bad(key, why))?;
        let mut roots = RootCertStore::empty();
        for authority in certificates(client_authorities)? {
            roots.add(authority).map_err(|error| bad(client_authorities, certificate::refusal(&error)))?;
        }
        let provider = Arc::new(ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone())
            .build()
            .map_err(|error| bad(client_authorities, error.to_string()))?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| bad(chain, error.to_string()))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(shown, secret)
            .map_err(|error| {
                bad(chain, format!("with the key in {}: {}", key.display(), certificate::refusal(&error)))
            })?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        // Every client shows its certificate on each connection: a resumed session could outlive the
        // certificate.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Self(Arc::new(config).into()))
    }

    pub(crate) fn acceptor(&self) -> &TlsAcceptor {
        &self.0
    }
}

fn bad(path: &Path, why: impl Into<String>) -> Error {
    Error::Tls { path: path.into(), why: why.into() }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let text = read(path, false)?;
    let found: std::result::Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let found = found.map_err(|error| bad(path, format!("no certificates in PEM: {error}")))?;
    if found.is_empty() { Err(bad(path, "no certificate is in it")) } else { Ok(found) }
}

/// Reads a file that other users cannot write. A writer of one of the files decides which clients are root on
/// this host, and a reader of the key (`secret`) can impersonate this server.
fn read(path: &Path, secret: bool) -> Result<Vec<u8>> {
    let text = directory::read(path, FILE_LIMIT).map_err(|error| match error {
        directory::Error::Strange { .. } => bad(path, "not a file"),
        error => bad(path, error.to_string()),
    })?;
    // The file cannot have been replaced meanwhile: `directory::read` has checked that other users cannot
    // write there.
    let mode = std::fs::metadata(path).map_err(|error| bad(path, error.to_string()))?.mode() & 0o777;
    if secret && mode & 0o007 != 0 {
        return Err(bad(
            path,
            format!(
                "others than root and a group can read this key (mode {mode:04o}), and whoever has it can pass for this \
                 server: `chmod 600` it"
            ),
        ));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn files_have_to_be_right_and_the_key_secret() {
        let dir = tempfile::tempdir().unwrap();
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let other = rcgen::KeyPair::generate().unwrap();
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
            path
        };
        let certificate = write("cert", &made.cert.pem());
        let key = write("key", &made.signing_key.serialize_pem());
        let (wrong, empty) = (write("wrong", &other.serialize_pem()), write("empty", ""));
        Tls::load(&certificate, &key, &certificate).unwrap();
        let why = |certificate: &Path, key: &Path, authorities: &Path| {
            Tls::load(certificate, key, authorities).unwrap_err().to_string()
        };
        assert!(why(&certificate, &wrong, &certificate).contains("key"));
        assert!(why(&certificate, &key, &empty).contains("no certificate is in it"));
        assert!(why(&empty, &key, &certificate).contains("no certificate is in it"));
        assert!(why(&certificate, &empty, &certificate).contains("no private key"));
        let closed = write(
            "closed",
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
        );
        assert!(why(&certificate, &closed, &certificate).contains("passphrase"));
        assert!(why(&certificate, dir.path(), &certificate).contains("not a file"));
        for (mode, good) in [(0o640, true), (0o644, false), (0o604, false), (0o660, false), (0o400, true)] {
            std::fs::set_permissions(&key, std::fs::Permissions::from_mode(mode)).unwrap();
            let loaded = Tls::load(&certificate, &key, &certificate);
            assert_eq!(loaded.is_ok(), good, "{mode:o}");
        }
        // A writer of the authorities decides which clients are root.
        let authorities = write("authorities", &made.cert.pem());
        for (mode, good) in [(0o644, true), (0o666, false)] {
            std::fs::set_permissions(&authorities, std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(Tls::load(&certificate, &key, &authorities).is_ok(), good, "{mode:o}");
        }
        let fifo = dir.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        assert!(why(&certificate, &key, &fifo).contains("not a file"));
    }
}
