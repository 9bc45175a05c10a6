//! Errors of listening sockets, and the conversion of the engine's errors to Garden's.

use hyper::StatusCode;
use std::path::PathBuf;
use wardian_engine::shown;
use wardian_garden::{ErrorBody, ErrorKind};

/// Why the server cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The text is not a listen address.
    #[error("bad listen address {0:?}: expected unix:/path or tcp:ip:port")]
    Address(String),
    /// Another server listens there.
    #[error("{0}: a server is already listening there")]
    InUse(PathBuf),
    /// The path exists and is not a socket.
    #[error("{0}: exists and is not a socket")]
    NotASocket(PathBuf),
    /// Other users could replace the socket.
    #[error("listen on {address}: {source}")]
    Untrusted {
        /// Of the socket.
        address: String,
        /// Why the socket's directory is not trusted.
        source: wardian_sys::directory::Error,
    },
    /// A socket that any user can connect to.
    #[error(
        "{0}: whoever connects to it is root on this host, and nothing tells who that is: every local user can, loopback \
         included. Ask clients for certificates with --tls-cert, --tls-key and --tls-client-ca, or allow it with \
         --insecure-listen"
    )]
    Insecure(String),
    /// An inherited unix socket that any user can connect to.
    #[error(
        "{0}: an abstract unix socket has no file mode, so every local user can connect to it and become root: give it a \
         path, or allow it with --insecure-listen"
    )]
    Nameless(String),
    /// A file for TLS is missing or unusable.
    #[error("{path}: {why}")]
    Tls {
        /// The file, or what it is for.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// An inherited descriptor is unusable.
    #[error("the socket that was handed to this server is {0}")]
    Inherited(&'static str),
    /// A system call failed.
    #[error("listen on {address}: {step}: {source}")]
    Listen {
        /// Where.
        address: String,
        /// The failed step.
        step: &'static str,
        /// The cause.
        source: std::io::Error,
    },
}

/// A result with an [`Error`] of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Converts an engine error to Garden's error body; the only place that does.
pub(crate) fn to_wire(error: &wardian_engine::Error) -> ErrorBody {
    use wardian_engine::Error as E;
    let message = error.to_string();
    match error {
        // A name that is not valid is tamed before it is repeated, since the message is logged.
        E::UnknownHandle(handle) => {
            let handle = shown(handle).into_owned();
            let message = E::UnknownHandle(handle.clone()).to_string();
            ErrorBody { handle, ..ErrorBody::new(ErrorKind::ContainerNotFound, message) }
        }
        E::UnknownProcess(id) => {
            let process_id = shown(id).into_owned();
            let message = E::UnknownProcess(process_id.clone()).to_string();
            ErrorBody { process_id, ..ErrorBody::new(ErrorKind::ProcessNotFound, message) }
        }
        E::Busy(_) => ErrorBody::new(ErrorKind::ServiceUnavailable, message),
        E::UnknownVolume(_) => ErrorBody::new(ErrorKind::VolumeNotFound, message),
        E::ExecutableNotFound(_) => ErrorBody::new(ErrorKind::ExecutableNotFound, message),
        _ => ErrorBody::new(ErrorKind::Other, message),
    }
}

/// Returns the HTTP status for an error body.
pub(crate) fn status(body: &ErrorBody) -> StatusCode {
    StatusCode::from_u16(body.kind().status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

#[cfg(test)]
mod tests {
    use super::*;
    use wardian_engine::Error as E;

    #[test]
    fn engine_errors_have_gardens_types() {
        let wire = to_wire(&E::UnknownHandle("h".into()));
        assert_eq!((wire.kind.as_str(), wire.handle.as_str()), ("ContainerNotFoundError", "h"));
        assert_eq!(wire.message, "unknown handle: h");
        assert_eq!(status(&wire), 404);
        let wire = to_wire(&E::UnknownProcess("p".into()));
        assert_eq!((wire.kind.as_str(), wire.process_id.as_str()), ("ProcessNotFoundError", "p"));
        assert_eq!(status(&wire), 404);
        let wire = to_wire(&E::UnknownHandle("\u{202e}".repeat(20_000)));
        assert!(
            wire.message.starts_with("unknown handle: \\u{202e}") && wire.message.len() < 400,
            "{}",
            wire.message
        );
        assert!(
            wire.handle.len() < 400 && wire.handle.is_ascii() || wire.handle.contains('…'),
            "{}",
            wire.handle
        );
        let wire = to_wire(&E::ExecutableNotFound("exec: \"x\"".into()));
        assert_eq!((wire.kind.as_str(), wire.message.as_str()), ("ExecutableNotFoundError", "exec: \"x\""));
        assert_eq!(status(&wire), 500);
        let wire = to_wire(&E::Busy("later".into()));
        assert_eq!((wire.kind.as_str(), wire.message.as_str()), ("ServiceUnavailableError", "later"));
        assert_eq!(status(&wire), 500);
        for other in
            [E::BeingDestroyed, E::HandleInUse("h".into()), E::GivenUp { during: "mount", why: "no" }]
        {
            let wire = to_wire(&other);
            assert_eq!((wire.kind.as_str(), wire.handle.as_str(), status(&wire).as_u16()), ("", "", 500));
        }
    }
}
