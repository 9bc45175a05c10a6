//! The body of an answer that is read as a whole: of an error, or of a token.

use std::time::{Duration, Instant};

use reqwest::header::HeaderMap;
use reqwest::{Response, StatusCode};
use serde::Deserialize;
use wardian_sys::text::{clip, tame};

use super::client::{Client, Waited};
use super::location::Location;
use crate::bounds::stop::Stop;

/// The maximum size of the body of an error that is read, in bytes.
const MAX_ERROR: usize = 8 << 10;
/// The maximum size of a text in it that is shown, in bytes.
const MAX_SHOWN: usize = 300;
/// How long the body of an error is waited for: the error itself is known without it.
const ERROR_PATIENCE: Duration = Duration::from_secs(5);

/// An answer that is no success.
pub(crate) struct Refusal<'r> {
    pub(crate) location: &'r Location,
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    /// What the server says, after a colon ([`said`]).
    pub(crate) said: String,
    /// Whether the registry itself answered, and no server that it redirected to.
    pub(crate) own: bool,
    /// Who answered, for errors.
    pub(crate) who: String,
    /// Its host and port.
    pub(crate) host: String,
}

/// The body of an error (OCI distribution spec, "Error Codes"), or of a token server's (RFC 6749, section 5.2).
#[derive(Deserialize)]
struct Errors {
    #[serde(default)]
    errors: Vec<Item>,
    #[serde(default)]
    details: Option<String>,
    #[serde(default)]
    error: Option<String>,
    #[serde(default)]
    error_description: Option<String>,
}

#[derive(Deserialize)]
struct Item {
    #[serde(default)]
    code: Option<String>,
    #[serde(default)]
    message: Option<String>,
}

/// Returns what a server says in the body of an error, `: CODE: message` of each, escaped and cut; an empty text if it
/// says nothing in this form. Anything else is left out: a server that the registry named may be one that only this
/// host can reach, and its pages are nobody's business.
pub(crate) fn said(body: &[u8]) -> String {
    let Ok(found) = serde_json::from_slice::<Errors>(body) else { return String::new() };
    let pair = |code: Option<String>, message: Option<String>| {
        let parts = [code, message].into_iter().flatten().filter(|text| !text.is_empty());
        parts.collect::<Vec<_>>().join(": ")
    };
    let mut texts: Vec<_> =
        found.errors.into_iter().take(3).map(|item| pair(item.code, item.message)).collect();
    texts.extend(found.details);
    texts.push(pair(found.error, found.error_description));
    texts.retain(|text| !text.is_empty());
    match texts.join("; ") {
        text if text.is_empty() => text,
        text => format!(": {}", tame(&clip(&text, MAX_SHOWN))),
    }
}

/// Why a body could not be read.
pub(crate) enum Unread {
    Stopped,
    TooLong,
    TooLarge,
    Broken(String),
}

/// Reads a body of at most `most` bytes within `limit`.
pub(crate) fn read(
    client: &Client,
    response: &mut Response,
    most: usize,
    stop: &Stop<'_>,
    limit: Duration,
) -> Result<Vec<u8>, Unread> {
    let (mut bytes, start) = (Vec::new(), Instant::now());
    loop {
        let left = limit.saturating_sub(start.elapsed());
        match client.wait(stop, left, response.chunk()) {
            Waited::Stopped => return Err(Unread::Stopped),
            Waited::TooLong => return Err(Unread::TooLong),
            Waited::Done(Err(e)) => return Err(Unread::Broken(super::client::causes(e))),
            Waited::Done(Ok(None)) => return Ok(bytes),
            Waited::Done(Ok(Some(chunk))) if bytes.len() + chunk.len() > most => {
                return Err(Unread::TooLarge);
            }
            Waited::Done(Ok(Some(chunk))) => bytes.extend_from_slice(&chunk),
        }
    }
}

impl<'r> Refusal<'r> {
    /// Reads what the server says; `own` tells whether it is the registry itself, and `who` who it is.
    pub(super) fn of(
        (location, own, who): (&'r Location, bool, String),
        client: &Client,
        mut response: Response,
        stop: &Stop<'_>,
        limit: Duration,
    ) -> Self {
        let limit = limit.min(ERROR_PATIENCE);
        let body = read(client, &mut response, MAX_ERROR, stop, limit).unwrap_or_default();
        let (status, headers) = (response.status(), response.headers().clone());
        let host = Location::of_url(response.url().clone()).authority();
        Self { location, status, headers, said: said(&body), own, who, host }
    }
}

#[cfg(test)]
mod tests {
    use super::said;

    #[test]
    fn what_servers_say() {
        for (body, shown) in [
            (r#"{"errors":[{"code":"DENIED","message":"no","detail":{"a":1}}]}"#, ": DENIED: no"),
            (r#"{"errors":[{"code":"A"},{"message":"b"},{},{"code":"D"}]}"#, ": A; b"),
            (r#"{"details":"incorrect username or password"}"#, ": incorrect username or password"),
            (r#"{"error":"invalid_grant","error_description":"x\u001b[2J"}"#, ": invalid_grant: x\\u{1b}[2J"),
            ("<html>the secrets of another server", ""),
            ("[]", ""),
            ("", ""),
        ] {
            assert_eq!(said(body.as_bytes()), shown, "{body}");
        }
        let long = format!(r#"{{"errors":[{{"message":"{}"}}]}}"#, "a".repeat(5000));
        assert!(said(long.as_bytes()).len() < 350);
    }
}
