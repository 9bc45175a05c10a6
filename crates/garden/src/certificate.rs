//! Explanations of unusable certificates and keys, and checks of a server's certificate before any client
//! refuses it: its validity period, and its names.
//!
//! A server presents whatever certificate it is given (RFC 5280). Its clients refuse one that has expired, or
//! has its name in the subject alone, and their errors do not reach the server's operator.

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::time::{SystemTime, UNIX_EPOCH};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;
use x509_parser::time::ASN1Time;

/// Seconds of remaining validity below which there is a warning.
const SOON: i64 = 14 * DAY;
const DAY: i64 = 86_400;

/// Returns what clients will refuse in the certificates of a PEM file, of which the first is the server's
/// own; a sentence each.
pub fn doubts(pem: &[u8], now: SystemTime) -> Vec<String> {
    let now =
        now.duration_since(UNIX_EPOCH).map_or(0, |time| i64::try_from(time.as_secs()).unwrap_or(i64::MAX));
    let mut found = Vec::new();
    for (n, certificate) in CertificateDer::pem_slice_iter(pem).flatten().enumerate() {
        let which =
            if n == 0 { "the certificate".to_owned() } else { format!("certificate {} of the file", n + 1) };
        let Ok((_, certificate)) = X509Certificate::from_der(&certificate) else {
            found.push(format!("{which} cannot be read"));
            continue;
        };
        let (begin, end) = (certificate.validity().not_before, certificate.validity().not_after);
        let seconds = end.timestamp();
        if seconds < now {
            found.push(format!("{which} expired on {}: clients refuse it", day(end)));
        } else if seconds - now < SOON {
            found.push(format!("{which} expires on {}, in {} days", day(end), (seconds - now) / DAY));
        }
        if begin.timestamp() > now {
            found.push(format!("{which} begins on {}: clients refuse it until then", day(begin)));
        }
        if n == 0 && !matches!(certificate.subject_alternative_name(), Ok(Some(_))) {
            found.push(format!(
                "{which} (until {}) has no subjectAltName: clients refuse one with a name in its subject alone (CN)",
                day(end)
            ));
        }
    }
    found
}

/// Formats the day in UTC, as in 2026-01-31.
fn day(time: ASN1Time) -> String {
    time.to_datetime().date().to_string()
}

/// Reads the private key of a PEM file.
///
/// # Errors
/// The file has no private key, or one that cannot be used; in words.
pub fn private_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, String> {
    // The PEM label of RFC 7468, section 11, and the header of RFC 1421 that older OpenSSL versions write.
    let has_passphrase = [&b"BEGIN ENCRYPTED PRIVATE KEY"[..], b"Proc-Type: 4,ENCRYPTED"]
        .iter()
        .any(|mark| pem.windows(mark.len()).any(|part| part == *mark));
    if has_passphrase {
        let text = "the key has a passphrase, which nobody can be asked for: `openssl pkey -in KEY -out PLAIN` takes it off";
        return Err(text.to_owned());
    }
    PrivateKeyDer::from_pem_slice(pem).map_err(|error| format!("no private key in PEM: {error}"))
}

/// Explains why a certificate is refused.
pub fn refusal(error: &rustls::Error) -> String {
    let text = error.to_string();
    // The inner error can be recognized only by its name in the text.
    if text.contains("UnsupportedCertVersion") {
        return "a certificate is of X.509 version 1: make it with extensions (version 3)".to_owned();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn certificates_that_clients_refuse() {
        let made = |names: &[&str], from: i32, until: i32| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            let mut params = rcgen::CertificateParams::new(names).unwrap();
            params.not_before = rcgen::date_time_ymd(from, 1, 1);
            params.not_after = rcgen::date_time_ymd(until, 1, 1);
            params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem()
        };
        // 2026-01-01.
        let (now, day) = (UNIX_EPOCH + Duration::from_secs(1_767_225_600), Duration::from_secs(86_400));
        let good = made(&["localhost", "127.0.0.1"], 2025, 2060);
        assert_eq!(doubts(good.as_bytes(), now), Vec::<String>::new());
        let says = |pem: &str, now, text: &str| {
            let found = doubts(pem.as_bytes(), now);
            assert!(found.len() == 1 && found[0].contains(text), "{found:?}");
        };
        let short = made(&["a"], 2025, 2026);
        says(&short, now + day, "the certificate expired on 2026-01-01");
        says(&short, now - 3 * day, "expires on 2026-01-01, in 3 days");
        says(&made(&["a"], 2027, 2060), now, "begins on 2027-01-01");
        says(&made(&[], 2025, 2060), now, "(until 2060-01-01) has no subjectAltName");
        // An intermediate certificate needs no name.
        says(&(good + &made(&[], 2020, 2021)), now, "certificate 2 of the file expired on 2021-01-01");
        let odd = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
        says(odd, now, "cannot be read");
    }
}
