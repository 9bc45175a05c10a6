//! Verification of certificates of registries.

use std::io;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, Error, InvalidMessage, RootCertStore, SignatureScheme};

/// Accepts any certificate of one host, which the operator has named as insecure, and verifies those of all others:
/// the servers that it redirects to, and those of its tokens.
#[derive(Debug)]
pub(super) struct AnyOf {
    name: ServerName<'static>,
    /// `None` if no root is trusted at all.
    others: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
}

impl AnyOf {
    /// `name` is a name or an address, without a port; one in brackets is IPv6.
    pub(super) fn new(
        name: &str,
        roots: RootCertStore,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, String> {
        let name =
            ServerName::try_from(name.trim_matches(['[', ']']).to_owned()).map_err(|e| e.to_string())?;
        let others =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider)).build();
        Ok(Self { name, others: others.ok(), provider: Arc::clone(provider) })
    }
}

impl ServerCertVerifier for AnyOf {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if *server_name == self.name {
            return Ok(ServerCertVerified::assertion());
        }
        match &self.others {
            Some(others) => {
                others.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
            }
            None => Err(Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer)),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Whether an error is, or was caused by, a certificate that is not trusted.
pub(super) fn is_untrusted(error: &(dyn std::error::Error + 'static)) -> bool {
    matches!(cause(error), Some(Error::InvalidCertificate(_)))
}

/// Whether an error is, or was caused by, a server that does not speak TLS.
pub(super) fn is_plain(error: &(dyn std::error::Error + 'static)) -> bool {
    matches!(cause(error), Some(Error::InvalidMessage(InvalidMessage::InvalidContentType)))
}

/// Returns the error of TLS that caused another one.
fn cause<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<Error>() {
            return Some(error);
        }
        // The source of an I/O error is that of the error it wraps, which would be left out.
        next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(wrapped) => Some(wrapped),
            None => error.source(),
        };
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes() {
        let wrapped = |error: Error| io::Error::other(io::Error::other(error));
        let certificate = || Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let message = || Error::InvalidMessage(InvalidMessage::InvalidContentType);
        assert!(is_untrusted(&certificate()) && is_untrusted(&wrapped(certificate())));
        assert!(is_plain(&message()) && is_plain(&wrapped(message())));
        assert!(!is_untrusted(&wrapped(message())) && !is_plain(&wrapped(certificate())));
        assert!(!is_untrusted(&io::Error::from(io::ErrorKind::ConnectionRefused)));
    }
}
