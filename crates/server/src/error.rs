//! What can go wrong at the door, and how the engine's errors look on the wire.

use hyper::StatusCode;
use std::path::PathBuf;
use wardian_engine::shown;
use wardian_garden::{ErrorBody, ErrorKind};

/// The server cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not an address.
    #[error("bad listen address {0:?}: expected unix:/path or tcp:ip:port")]
    Address(String),
    /// Another server answers there.
    #[error("{0}: a server is already listening there")]
    InUse(PathBuf),
    /// Something else has that name.
    #[error("{0}: exists and is not a socket")]
    NotASocket(PathBuf),
    /// Others could replace the socket.
    #[error("listen on {address}: {source}")]
    Untrusted {
        /// Where.
        address: String,
        /// Why its directory is not used.
        source: wardian_sys::directory::Error,
    },
    /// A socket that anybody can connect to.
    #[error(
        "{0}: whoever connects to it is root on this host, and nothing tells who that is: every local user can, loopback \
         included. Ask clients for certificates with --tls-cert, --tls-key and --tls-client-ca, or allow it with \
         --insecure-listen"
    )]
    Insecure(String),
    /// A unix socket that was handed to us and that anybody can connect to.
    #[error(
        "{0}: an abstract unix socket has no file mode, so every local user can connect to it and become root: give it a \
         path, or allow it with --insecure-listen"
    )]
    Nameless(String),
    /// A file for TLS.
    #[error("{path}: {why}")]
    Tls {
        /// The file, or what it is for.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A descriptor that was handed to us.
    #[error("the socket that was handed to this server is {0}")]
    Inherited(&'static str),
    /// The system said no.
    #[error("listen on {address}: {step}: {source}")]
    Listen {
        /// Where.
        address: String,
        /// Doing what.
        step: &'static str,
        /// Why not.
        source: std::io::Error,
    },
}

/// Shorthand.
pub type Result<T> = std::result::Result<T, Error>;

/// The one place where the engine's errors become Garden's.
pub(crate) fn to_wire(error: &wardian_engine::Error) -> ErrorBody {
    use wardian_engine::Error as E;
    let message = error.to_string();
    match error {
        // What can name nothing is not repeated as it is, for it is logged.
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
        E::ExecutableNotFound(_) => ErrorBody::new(ErrorKind::ExecutableNotFound, message),
        _ => ErrorBody::new(ErrorKind::Other, message),
    }
}

/// The status that goes with an error body.
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
