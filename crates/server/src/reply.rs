//! Replies as Go's server frames them.

use crate::error;
use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::body::{Body, Frame};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::sync::mpsc;
use wardian_engine::Call;
use wardian_garden::{ErrorBody, ErrorKind, TAR_FAILURE, encode};
use wardian_sys::text::{clip, tame_lines};

/// The most bytes of an error message.
const MESSAGE: usize = 4096;
/// The most bytes of a trailer's text: as JSON they at most double, and hyper reads 16 KiB of trailers.
const TRAILER_TEXT: usize = 6 << 10;

/// The body of a reply: complete, or still being made.
pub(crate) type ReplyBody = Either<Full<Bytes>, ChannelBody>;
pub(crate) type Reply = Response<ReplyBody>;

/// A piece of a body that another task makes.
#[derive(Debug)]
pub(crate) enum Piece {
    Data(Bytes),
    /// The end of a complete body.
    End,
    /// The end of an incomplete body; the trailers carry the reason, which the client has asked for.
    Failed(HeaderMap),
}

/// A body that another task makes. If the pieces end without an `End`, the connection is cut before the last
/// chunk is written, so that the client sees a broken transfer.
pub(crate) struct ChannelBody {
    pieces: mpsc::Receiver<Piece>,
    /// The call of the container, which lasts until everything has been sent.
    _call: Option<Call>,
}

impl ChannelBody {
    pub(crate) fn new(pieces: mpsc::Receiver<Piece>, call: Option<Call>) -> Self {
        Self { pieces, _call: call }
    }
}

impl Body for ChannelBody {
    type Data = Bytes;
    type Error = io::Error;
    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.pieces.poll_recv(cx).map(|piece| match piece {
            Some(Piece::Data(data)) => Some(Ok(Frame::data(data))),
            Some(Piece::End) => None,
            Some(Piece::Failed(why)) => Some(Ok(Frame::trailers(why))),
            None => Some(Err(io::Error::other("the body was broken off"))),
        })
    }
}

/// Why a request fails.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The engine refused or failed.
    Engine(wardian_engine::Error),
    /// The request is invalid; the text says why.
    Refused(String),
    /// The request to a route of wardian's own cannot be read; the text says why. Garden has no status for it.
    Malformed(String),
    /// The client has disconnected in the middle of its request: there is no answer.
    Gone,
}

impl From<wardian_engine::Error> for Failure {
    fn from(error: wardian_engine::Error) -> Self {
        Self::Engine(error)
    }
}

impl Failure {
    /// Returns the error body for the client.
    pub(crate) fn body(&self) -> ErrorBody {
        let mut body = match self {
            Self::Engine(error) => error::to_wire(error),
            Self::Refused(message) | Self::Malformed(message) => {
                ErrorBody::new(ErrorKind::Other, message.as_str())
            }
            Self::Gone => ErrorBody::new(ErrorKind::Other, "the client has gone"),
        };
        // The message may quote the request.
        if body.message.len() > MESSAGE {
            body.message = clip(&body.message, MESSAGE).into_owned();
        }
        body
    }

    /// Whether the request is at fault, or its client: the operator has nothing to do.
    pub(crate) fn is_the_clients(&self) -> bool {
        match self {
            Self::Engine(error) => error.is_the_clients(),
            Self::Refused(_) | Self::Malformed(_) | Self::Gone => true,
        }
    }

    /// Returns the HTTP status, for this error body.
    pub(crate) fn status(&self, body: &ErrorBody) -> StatusCode {
        match self {
            Self::Malformed(_) => StatusCode::BAD_REQUEST,
            _ => error::status(body),
        }
    }
}

pub(crate) fn full(status: StatusCode, kind: &'static str, body: Vec<u8>) -> Reply {
    let mut reply = Response::new(Either::Left(Full::new(Bytes::from(body))));
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    reply
}

pub(crate) fn json<T: serde::Serialize>(value: &T) -> Reply {
    full(StatusCode::OK, "application/json", encode(value))
}

/// Makes the reply `{}`.
pub(crate) fn done() -> Reply {
    full(StatusCode::OK, "application/json", b"{}\n".to_vec())
}

pub(crate) fn failure(body: &ErrorBody) -> Reply {
    full(error::status(body), "application/json", encode(body))
}

pub(crate) fn text(status: StatusCode, text: &str) -> Reply {
    let mut reply = full(status, "text/plain; charset=utf-8", format!("{text}\n").into_bytes());
    reply.headers_mut().insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    reply
}

pub(crate) fn wrong_method(allowed: &str) -> Reply {
    let mut reply = text(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed");
    if let Ok(allowed) = HeaderValue::from_str(allowed) {
        reply.headers_mut().insert(ALLOW, allowed);
    }
    reply
}

pub(crate) fn tar(pieces: mpsc::Receiver<Piece>, call: Option<Call>) -> Reply {
    let mut reply = Response::new(Either::Right(ChannelBody::new(pieces, call)));
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    reply
}

/// Makes the trailers that tell why a tar is incomplete.
pub(crate) fn tar_failure(text: &str) -> HeaderMap {
    // A header value must not contain control characters, and JSON escapes only those below U+0020.
    let text = tame_lines(text);
    let json = serde_json::Value::from(&*clip(&text, TRAILER_TEXT)).to_string();
    let value = HeaderValue::from_bytes(json.as_bytes()).unwrap_or(HeaderValue::from_static("\"\""));
    HeaderMap::from_iter([(HeaderName::from_static(TAR_FAILURE), value)])
}

/// Formats a time as HTTP writes it.
pub(crate) fn date(now: std::time::SystemTime) -> String {
    httpdate::fmt_http_date(now.max(std::time::UNIX_EPOCH))
}

#[cfg(test)]
mod tests {
    use super::{date, tar_failure};
    use std::time::{Duration, UNIX_EPOCH};

    #[test]
    fn why_a_tar_is_not_whole_fits_into_a_trailer() {
        for (text, expected) in [
            ("two: \"a\u{e4}\"\n\tb\u{1b}[2J\u{7f}", "two: \"a\u{e4}\"\n\tb\\u{1b}[2J\\u{7f}".to_owned()),
            (&"\\".repeat(10_000), format!("{}… (10000 bytes)", "\\".repeat(6 << 10))),
            (&"\u{1b}".repeat(12_000), format!("{}… (72000 bytes)", "\\u{1b}".repeat(1024))),
        ] {
            let trailers = tar_failure(text);
            assert!(trailers.values().all(|value| value.len() < 13 << 10));
            assert_eq!(wardian_garden::TarFailure::of(&trailers).unwrap().0, expected);
        }
        assert!(wardian_garden::TarFailure::of(&hyper::HeaderMap::new()).is_none());
        // Another server's trailer may be no JSON string, or too long.
        let told = |value: String| {
            let trailers = hyper::HeaderMap::from_iter([(
                hyper::header::HeaderName::from_static(wardian_garden::TAR_FAILURE),
                hyper::header::HeaderValue::try_from(value).unwrap(),
            )]);
            wardian_garden::TarFailure::of(&trailers).unwrap().0
        };
        assert_eq!(
            (told("\"\"".into()), told("no json".into())),
            (told("1".into()), "the server does not say why".into())
        );
        assert_eq!(told(format!("\"{}\"", "x".repeat(1 << 16))).len(), 8 << 10);
    }

    #[test]
    fn dates() {
        for (seconds, text) in [
            (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (951_782_400, "Tue, 29 Feb 2000 00:00:00 GMT"),
            (1_795_420_033, "Mon, 23 Nov 2026 07:47:13 GMT"),
        ] {
            assert_eq!(date(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }
}
