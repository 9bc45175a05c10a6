//! Garden's error body, and the client's errors.

use serde::{Deserialize, Serialize};

/// The body of the reply to every failed request. All keys are always present.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ErrorBody {
    /// Name of the kind; empty for a plain error.
    #[serde(rename = "Type")]
    pub kind: String,
    /// The message for people.
    pub message: String,
    /// The unknown handle, in an error about one.
    pub handle: String,
    /// The unknown process id, in an error about one.
    #[serde(rename = "ProcessID")]
    pub process_id: String,
    /// Always empty; kept by the API.
    pub binary: String,
}

/// The kinds of error that clients tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// No such container.
    ContainerNotFound,
    /// No such process.
    ProcessNotFound,
    /// The program is not in the container.
    ExecutableNotFound,
    /// No such volume; wardian's own.
    VolumeNotFound,
    /// The request may succeed later.
    ServiceUnavailable,
    /// The request will not succeed later either.
    Unrecoverable,
    /// Everything else.
    Other,
}

impl ErrorKind {
    const NAMES: [(Self, &'static str); 7] = [
        (Self::ContainerNotFound, "ContainerNotFoundError"),
        (Self::ProcessNotFound, "ProcessNotFoundError"),
        (Self::ExecutableNotFound, "ExecutableNotFoundError"),
        (Self::VolumeNotFound, "VolumeNotFoundError"),
        (Self::ServiceUnavailable, "ServiceUnavailableError"),
        (Self::Unrecoverable, "UnrecoverableError"),
        (Self::Other, ""),
    ];

    /// Returns the kind's name on the wire.
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(kind, _)| *kind == self).map_or("", |(_, name)| name)
    }

    /// Returns the HTTP status for the kind.
    pub fn status(self) -> u16 {
        match self {
            Self::ContainerNotFound | Self::ProcessNotFound | Self::VolumeNotFound => 404,
            _ => 500,
        }
    }
}

impl ErrorBody {
    /// Makes an error of this kind.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind: kind.name().into(), message: message.into(), ..Self::default() }
    }

    /// Returns the kind; for an unknown name it is [`ErrorKind::Other`].
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::NAMES
            .iter()
            .find(|(_, name)| *name == self.kind)
            .map_or(ErrorKind::Other, |(kind, _)| *kind)
    }
}

/// The client's errors.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address is neither `unix:/path` nor `tcp:host:port`.
    #[error("bad address {0:?}: expected unix:/path or tcp:host:port")]
    Address(String),
    /// The server cannot be reached.
    #[error("connect to {address}: {source}")]
    Connect {
        /// The server's address.
        address: String,
        /// Why.
        source: std::io::Error,
    },
    /// A file for TLS is missing, or not what it should be.
    #[error("{path}: {why}")]
    Tls {
        /// The file.
        path: std::path::PathBuf,
        /// What is wrong.
        why: String,
    },
    /// TLS was requested for a unix socket.
    #[error("{0} is a unix socket, which has no TLS: certificates are for tcp:HOST:PORT")]
    TlsOnUnix(String),
    /// The connection broke.
    #[error("talk to the server: {0}")]
    Io(#[from] std::io::Error),
    /// The connection broke, or the reply is not HTTP.
    #[error("talk to the server: {0}")]
    Http(#[from] hyper::Error),
    /// The server refused the request, or failed.
    #[error("{}", .0.message)]
    Garden(ErrorBody),
    /// The server's reply cannot be understood.
    #[error("bad response: {0}")]
    Response(String),
    /// The reply is not HTTP.
    #[error("bad response: not HTTP: {0:?}")]
    NotHttp(String),
    /// The server refused the request, and the body is not Garden's: it may come from a proxy.
    #[error("bad response: status {status}: {text}")]
    Status {
        /// The HTTP status.
        status: u16,
        /// The beginning of the body.
        text: String,
    },
    /// Waiting for the process failed on the server's side.
    #[error("process error: {0}")]
    Process(String),
    /// The process was started and runs, but a connection for its output was refused, or has broken.
    #[error("process {process} was started, but its output cannot be fetched: {source}")]
    Output {
        /// The process's id.
        process: String,
        /// Why.
        source: Box<Error>,
    },
    /// The process's input is not UTF-8, and the server accepts nothing else. A part of it was not sent.
    #[error("the input is not UTF-8, and this server's protocol carries nothing else")]
    BinaryInput,
    /// Reading the process's input failed. What came before was sent; the end of the input was not.
    #[error("read the input: {0}")]
    Input(std::sync::Arc<std::io::Error>),
    /// The server closed the connection before the process ended.
    #[error("the connection ended before the process did")]
    Disconnected,
}

impl Error {
    /// Makes the error for a reply that cannot be understood. `why` may quote the reply, and is clipped.
    pub(crate) fn response(why: &impl std::fmt::Display) -> Self {
        Self::Response(clip(&why.to_string()))
    }

    /// Returns the kind of a Garden error; `None` if the error is not the server's.
    pub fn kind(&self) -> Option<ErrorKind> {
        match self {
            Self::Garden(body) => Some(body.kind()),
            _ => None,
        }
    }

    /// Makes the error from a reply with a status that is not 2xx.
    pub(crate) fn from_reply(status: u16, body: &[u8]) -> Self {
        match serde_json::from_slice::<ErrorBody>(body) {
            Ok(mut body) if !body.message.is_empty() || !body.kind.is_empty() => {
                body.message = clip(&body.message);
                Self::Garden(body)
            }
            _ => Self::Status { status, text: clip(String::from_utf8_lossy(body).trim()) },
        }
    }
}

/// The most bytes of a server's text that are shown to people; wardian's own messages are shorter.
const SHOWN: usize = 8 << 10;

/// Returns the beginning of a text that may be long.
pub(crate) fn clip(text: &str) -> String {
    if text.len() <= SHOWN {
        return text.to_owned();
    }
    let end = (0..=SHOWN).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    format!("{}… ({} more bytes)", &text[..end], text.len() - end)
}

/// A result with the client's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_their_names_and_statuses() {
        let body = ErrorBody::new(ErrorKind::ContainerNotFound, "unknown handle: x");
        assert_eq!(body.kind, "ContainerNotFoundError");
        assert_eq!(body.kind(), ErrorKind::ContainerNotFound);
        assert_eq!(body.kind().status(), 404);
        assert_eq!(ErrorBody::new(ErrorKind::Other, "x").kind(), ErrorKind::Other);
        assert_eq!(ErrorKind::ServiceUnavailable.status(), 500);
    }

    #[test]
    fn the_body_has_all_keys_in_order() {
        let body = ErrorBody::new(ErrorKind::Other, "EOF");
        let text = String::from_utf8(crate::encode(&body)).unwrap();
        assert_eq!(
            text,
            "{\"Type\":\"\",\"Message\":\"EOF\",\"Handle\":\"\",\"ProcessID\":\"\",\"Binary\":\"\"}\n"
        );
    }

    #[test]
    fn a_reply_that_is_no_error_body_is_shown() {
        let error = Error::from_reply(404, b"404 page not found\n");
        assert_eq!(error.to_string(), "bad response: status 404: 404 page not found");
        assert_eq!(error.kind(), None);
        // So is JSON that is not Garden's.
        assert_eq!(Error::from_reply(502, b"{}").to_string(), "bad response: status 502: {}");
    }

    #[test]
    fn a_long_reply_is_not_shown_whole() {
        let long = "é".repeat(1 << 20);
        let body = crate::encode(&ErrorBody::new(ErrorKind::Other, long.clone()));
        for body in [long.as_bytes(), &body] {
            let text = Error::from_reply(500, body).to_string();
            assert!(text.len() < 2 * SHOWN && text.contains("é… (2088960 more bytes)"), "{}", text.len());
        }
    }
}
