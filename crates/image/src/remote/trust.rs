//! Verification of certificates of registries.

use std::io;
use std::sync::{Arc, OnceLock};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, DigitallySignedStruct, Error, InvalidMessage, RootCertStore, SignatureScheme,
};
use rustls_native_certs::{CertificateResult, load_certs_from_paths, load_native_certs};

/// Verifies certificates against the operator's roots and the system's. The latter are read when the first certificate is
/// verified, which takes longer than a request in the local network, and which a registry without TLS never needs.
///
/// It accepts any certificate of one host if the operator has named that as insecure. Other servers, where it redirects to
/// or which give its tokens, are asked by clients that verify all.
#[derive(Debug)]
pub(super) struct Trust {
    own: RootCertStore,
    any_of: Option<ServerName<'static>>,
    /// Of the system, the one file with all its roots.
    bundle: OnceLock<Verifier>,
    /// Of the system, also the files in its directories, which mostly are the same roots once more.
    whole: OnceLock<Verifier>,
    provider: Arc<CryptoProvider>,
}

/// `None` if no root is trusted at all.
type Verifier = Option<Arc<WebPkiServerVerifier>>;

impl Trust {
    /// `any_of` is the name or the address of the insecure host, without a port; one in brackets is IPv6.
    pub(super) fn new(
        own: RootCertStore,
        any_of: Option<&str>,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, String> {
        let named = |name: &str| ServerName::try_from(name.trim_matches(['[', ']']).to_owned());
        let any_of = any_of.map(named).transpose().map_err(|e| e.to_string())?;
        Ok(Self {
            own,
            any_of,
            bundle: OnceLock::new(),
            whole: OnceLock::new(),
            provider: Arc::clone(provider),
        })
    }

    /// A host without system roots can still fetch from servers that the operator's roots have signed.
    fn verifier(&self, system: CertificateResult) -> Verifier {
        let mut roots = self.own.clone();
        roots.add_parsable_certificates(system.certs);
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&self.provider)).build().ok()
    }

    /// SSL_CERT_FILE and SSL_CERT_DIR replace all of the system's roots.
    fn bundle(&self) -> Option<&Verifier> {
        let file = openssl_probe::probe().cert_file.filter(|_| !openssl_probe::has_ssl_cert_env_vars())?;
        Some(self.bundle.get_or_init(|| self.verifier(load_certs_from_paths(Some(&file), None))))
    }

    fn whole(&self) -> &Verifier {
        self.whole.get_or_init(|| self.verifier(load_native_certs()))
    }
}

impl ServerCertVerifier for Trust {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if self.any_of.as_ref() == Some(server_name) {
            return Ok(ServerCertVerified::assertion());
        }
        let unknown = || Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let by = |verifier: &Verifier| match verifier {
            Some(roots) => {
                roots.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
            }
            None => Err(unknown()),
        };
        match self.bundle().map(by) {
            Some(verified) if !matches!(&verified, Err(error) if *error == unknown()) => verified,
            _ => by(self.whole()),
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
pub(super) fn cause<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a Error> {
    causes(error).find_map(|cause| cause.downcast_ref())
}

/// An error, and one after the other what caused it.
pub(super) fn causes<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |error| {
        // The source of an I/O error is that of the error it wraps, which would be left out.
        match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(wrapped) => Some(wrapped),
            None => error.source(),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_tls() {
        let wrapped = |error: Error| io::Error::other(io::Error::other(error));
        let certificate = || Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let message = || Error::InvalidMessage(InvalidMessage::InvalidContentType);
        assert!(is_untrusted(&certificate()) && is_untrusted(&wrapped(certificate())));
        assert!(is_plain(&message()) && is_plain(&wrapped(message())));
        assert!(!is_untrusted(&wrapped(message())) && !is_plain(&wrapped(certificate())));
        assert!(!is_untrusted(&io::Error::from(io::ErrorKind::ConnectionRefused)));
    }
}
