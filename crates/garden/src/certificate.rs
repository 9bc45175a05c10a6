//! What is wrong with a server's certificate before any client has said so: its time, and the names in it.
//!
//! A server shows whatever certificate it is given (RFC 5280); it is its clients that refuse one that has run out, or has a
//! name in its subject alone, and they say so where nobody looks.

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use std::time::{SystemTime, UNIX_EPOCH};

/// Who has so little time left is told.
const SOON: i64 = 14 * DAY;
const DAY: i64 = 86_400;
/// DER: id-ce-subjectAltName, 2.5.29.17.
const SUBJECT_ALT_NAME: [u8; 3] = [0x55, 0x1d, 0x11];
const SEQUENCE: u8 = 0x30;
const OID: u8 = 0x06;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// The version, and the extensions, of a certificate.
const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;

/// What clients will refuse in the certificates of a file in PEM, the first of which is the server's own; a sentence each.
pub fn doubts(pem: &[u8], now: SystemTime) -> Vec<String> {
    let now =
        now.duration_since(UNIX_EPOCH).map_or(0, |time| i64::try_from(time.as_secs()).unwrap_or(i64::MAX));
    let mut found = Vec::new();
    for (n, certificate) in CertificateDer::pem_slice_iter(pem).flatten().enumerate() {
        let which =
            if n == 0 { "the certificate".to_owned() } else { format!("certificate {} of the file", n + 1) };
        let Some(certificate) = Certificate::parse(&certificate) else {
            found.push(format!("{which} cannot be read"));
            continue;
        };
        let Certificate { begin, end, names } = certificate;
        let (seconds, day) = end;
        if seconds < now {
            found.push(format!("{which} ran out on {day}: clients refuse it"));
        } else if seconds - now < SOON {
            found.push(format!("{which} runs out on {day}, in {} days", (seconds - now) / DAY));
        }
        if begin.0 > now {
            found.push(format!("{which} begins on {}: clients refuse it until then", begin.1));
        }
        if n == 0 && !names {
            found.push(format!(
                "{which} (until {day}) has no subjectAltName: clients refuse one with a name in its subject alone (CN)"
            ));
        }
    }
    found
}

/// Seconds since 1970, and the day for people.
type Time = (i64, String);

struct Certificate {
    begin: Time,
    end: Time,
    /// It has a subjectAltName.
    names: bool,
}

impl Certificate {
    /// `TBSCertificate` of RFC 5280, section 4.1.
    fn parse(der: &[u8]) -> Option<Self> {
        let (tag, outer, _) = element(der)?;
        let (inner, mut rest, _) = element(outer).filter(|_| tag == SEQUENCE)?;
        if inner != SEQUENCE {
            return None;
        }
        let mut next = || -> Option<(u8, &[u8])> {
            let (tag, value, after) = element(rest)?;
            rest = after;
            Some((tag, value))
        };
        let (mut first, _) = next()?;
        if first == VERSION {
            first = next()?.0;
        }
        // After the serial number: the algorithm, who has signed.
        let _ = (first, next()?, next()?);
        let (_, validity) = next()?;
        let (tag, begin, after) = element(validity)?;
        let begin = time(tag, begin)?;
        let (tag, end, _) = element(after)?;
        let end = time(tag, end)?;
        let mut names = false;
        while let Some((tag, value)) = next() {
            if tag == EXTENSIONS {
                names = has_names(value);
            }
        }
        Some(Self { begin, end, names })
    }
}

/// Whether there is a subjectAltName among the extensions.
fn has_names(extensions: &[u8]) -> bool {
    let Some((SEQUENCE, mut rest, _)) = element(extensions) else { return false };
    while let Some((_, extension, after)) = element(rest) {
        if element(extension).is_some_and(|(tag, id, _)| tag == OID && id == SUBJECT_ALT_NAME) {
            return true;
        }
        rest = after;
    }
    false
}

/// Tag and value of the first element (X.690, section 8.1), and what follows it.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = if first < 0x80 {
        (usize::from(first), rest)
    } else {
        // More than four bytes of length are no certificate's.
        let count = usize::from(first & 0x7f);
        if count == 0 || count > 4 {
            return None;
        }
        let (bytes, rest) = rest.split_at_checked(count)?;
        (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
    };
    let (value, after) = rest.split_at_checked(length)?;
    Some((tag, value, after))
}

/// `YYMMDDHHMMSSZ`, or with four digits of the year (RFC 5280, section 4.1.2.5).
fn time(tag: u8, value: &[u8]) -> Option<Time> {
    let text = std::str::from_utf8(value).ok()?.strip_suffix('Z')?;
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number = |text: &str| text.parse::<i64>().ok();
    let (year, rest) = match tag {
        UTC_TIME if text.len() == 12 => {
            let year = number(&text[..2])?;
            (year + if year < 50 { 2000 } else { 1900 }, &text[2..])
        }
        GENERALIZED_TIME if text.len() == 14 => (number(&text[..4])?, &text[4..]),
        _ => return None,
    };
    let part = |at: usize| number(&rest[at..at + 2]);
    let (month, day) = (part(0)?, part(2)?);
    let seconds = days(year, month, day) * DAY + part(4)? * 3600 + part(6)? * 60 + part(8)?;
    Some((seconds, format!("{year:04}-{month:02}-{day:02}")))
}

/// Days since 1970-01-01 of a date in the Gregorian calendar; a year begins with March, so that its last day is the odd one.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    year * 365 + year.div_euclid(4) - year.div_euclid(100)
        + year.div_euclid(400)
        + (153 * month + 2) / 5
        + day
        - 719_469
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn times_are_read() {
        assert_eq!(time(UTC_TIME, b"700101000000Z"), Some((0, "1970-01-01".into())));
        assert_eq!(time(UTC_TIME, b"260228235959Z"), Some((1_772_323_199, "2026-02-28".into())));
        assert_eq!(time(GENERALIZED_TIME, b"20000301000000Z"), Some((951_868_800, "2000-03-01".into())));
        for (tag, bad) in [
            (UTC_TIME, &b"7001010000Z"[..]),
            (UTC_TIME, b"70010100000xZ"),
            (GENERALIZED_TIME, b""),
            (1, b"Z"),
        ] {
            assert_eq!(time(tag, bad), None);
        }
    }

    #[test]
    fn certificates_that_clients_refuse() {
        let made = |names: &[&str], from: i32, until: i32| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            let mut params = rcgen::CertificateParams::new(names).unwrap();
            params.not_before = rcgen::date_time_ymd(from, 1, 1);
            params.not_after = rcgen::date_time_ymd(until, 1, 1);
            params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem()
        };
        let new_year =
            |year: i64| UNIX_EPOCH + Duration::from_secs(u64::try_from(days(year, 1, 1) * DAY).unwrap());
        let (now, day) = (new_year(2026), Duration::from_secs(86_400));
        let good = made(&["localhost", "127.0.0.1"], 2025, 2060);
        assert_eq!(doubts(good.as_bytes(), now), Vec::<String>::new());
        let says = |pem: &str, now, text: &str| {
            let found = doubts(pem.as_bytes(), now);
            assert!(found.len() == 1 && found[0].contains(text), "{found:?}");
        };
        let short = made(&["a"], 2025, 2026);
        says(&short, now + day, "the certificate ran out on 2026-01-01");
        says(&short, now - 3 * day, "runs out on 2026-01-01, in 3 days");
        says(&made(&["a"], 2027, 2060), now, "begins on 2027-01-01");
        says(&made(&[], 2025, 2060), now, "(until 2060-01-01) has no subjectAltName");
        // One between it and its authority needs no name.
        says(&(good + &made(&[], 2020, 2021)), now, "certificate 2 of the file ran out on 2021-01-01");
        // Whatever is in the file, it is read to its end and no further.
        let der = CertificateDer::from_pem_slice(short.as_bytes()).unwrap().to_vec();
        for at in 0..der.len() {
            Certificate::parse(&der[..at]);
            for byte in [0, 0x30, 0x7f, 0x80, 0x84, 0xff, der[at] ^ 1] {
                let mut changed = der.clone();
                changed[at] = byte;
                Certificate::parse(&changed);
            }
        }
        let odd = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
        says(odd, now, "cannot be read");
    }
}
