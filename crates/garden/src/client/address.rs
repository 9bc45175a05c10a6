//! Addresses of servers, and paths of requests.

use crate::error::{Error, Result};
use std::fmt::Write as _;

/// The address of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A unix socket's path.
    Unix(std::path::PathBuf),
    /// `host:port`.
    Tcp(String),
}

impl std::str::FromStr for Address {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        match text.split_once(':') {
            Some(("unix", path)) if path.starts_with('/') => Ok(Self::Unix(path.into())),
            Some(("tcp", host)) if host.contains(':') => Ok(Self::Tcp(host.into())),
            _ => Err(Error::Address(text.into())),
        }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(to, "unix:{}", path.display()),
            Self::Tcp(host) => write!(to, "tcp:{host}"),
        }
    }
}

pub(super) fn container(handle: &str, rest: &str) -> String {
    format!("/containers/{}{rest}", escape(handle))
}

/// Returns the path of a bulk request: its handles are joined by commas, and the commas escaped, as by the Go
/// client.
pub(super) fn bulk(what: &str, handles: &[&str]) -> String {
    format!("/containers/{what}?handles={}", escape(&handles.join(",")))
}

pub(super) fn property(handle: &str, key: &str) -> String {
    container(handle, "/properties/") + &escape(key)
}

pub(super) fn files(handle: &str, what: &str, path: &str, user: &str) -> String {
    container(handle, &format!("/files?{what}={}&user={}", escape(path), escape(user)))
}

/// Percent-encodes for a path segment or a query value.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            let _ = write!(escaped, "%{byte:02X}");
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_escaped() {
        assert_eq!(property("h/1", "a b+%"), "/containers/h%2F1/properties/a%20b%2B%25");
        assert_eq!(bulk("bulk_info", &["a", "b&"]), "/containers/bulk_info?handles=a%2Cb%26");
    }
}
