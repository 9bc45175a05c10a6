//! The servers that an image may name.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use reqwest::Url;

use crate::error::Error;

/// A server that the operator allows images to name: its name or address, exactly, and its port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// The name as normalized by the URL parser.
    name: String,
    /// The port; `None` is the scheme's default.
    port: Option<u16>,
}

impl FromStr for Host {
    type Err = Error;

    /// Parses `HOST` or `HOST:PORT`; an IPv6 address is in brackets. The default port is the scheme's, 80 or 443.
    fn from_str(text: &str) -> Result<Self, Error> {
        let invalid = || Error::Url { why: format!("{text:?} is no HOST or HOST:PORT") };
        let (name, port) = match text.rsplit_once(':') {
            Some((name, port)) if !port.ends_with(']') => {
                if !port.bytes().all(|b| b.is_ascii_digit()) {
                    return Err(invalid());
                }
                (name, Some(port.parse().map_err(|_| invalid())?))
            }
            _ => (text, None),
        };
        let url = Url::parse(&format!("http://{name}/")).map_err(|_| invalid())?;
        let plain = url.path() == "/" && url.port().is_none() && url.username().is_empty();
        match url.host_str() {
            Some(host) if plain && !name.is_empty() && !name.contains(['/', '@', '?', '#', '\\', '*']) => {
                Ok(Self { name: host.to_owned(), port })
            }
            _ => Err(invalid()),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

impl Host {
    /// Returns the host of a URL.
    pub(super) fn of(url: &Url) -> Option<Self> {
        Some(Self { name: url.host_str()?.to_owned(), port: url.port() })
    }

    /// The name, or the address; one of IPv6 is in brackets.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Whether it is on the loopback interface.
    pub(crate) fn is_loopback(&self) -> bool {
        is_loopback(&self.name)
    }

    fn is_of(&self, url: &Url) -> bool {
        let port = match self.port {
            None => url.port().is_none(),
            port => url.port_or_known_default() == port,
        };
        port && url.host_str() == Some(&self.name)
    }
}

/// Whether a host, a name or an address without a port, is on the loopback interface.
pub(crate) fn is_loopback(host: &str) -> bool {
    let address = |text: &str| text.trim_matches(['[', ']']).parse::<IpAddr>();
    host.eq_ignore_ascii_case("localhost")
        || address(host).is_ok_and(|address| address.to_canonical().is_loopback())
}

/// Whether a URL has a user or a password. An image may not name such URLs: a server is allowed, and no account on
/// it.
pub(super) fn has_account(url: &Url) -> bool {
    !url.username().is_empty() || url.password().is_some()
}

/// Whether an image may name this URL.
pub(super) fn allow(hosts: &[Host], url: &Url) -> bool {
    !has_account(url) && hosts.iter().any(|host| host.is_of(url))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback() {
        for (host, expected) in [
            ("localhost", true),
            ("127.0.0.1", true),
            ("127.8.8.8", true),
            ("[::1]", true),
            ("[::ffff:127.0.0.1]", true),
            ("localhost.example", false),
            ("10.0.0.1", false),
            ("[::2]", false),
            ("", false),
        ] {
            assert_eq!(is_loopback(host), expected, "{host}");
        }
        assert!("LOCALHOST:5000".parse::<Host>().unwrap().is_loopback());
    }

    #[test]
    fn only_what_was_named() {
        let hosts: Vec<Host> =
            ["Blobs.example", "127.0.0.1:8080", "[::1]:443", "10.0.0.1"].map(|h| h.parse().unwrap()).into();
        let allowed = |url: &str| allow(&hosts, &Url::parse(url).unwrap());
        for url in [
            "http://blobs.example/x",
            "https://BLOBS.example:443/x?y",
            "http://127.0.0.1:8080/",
            // The parser reads numbers as inet_aton(3) does, and the connection uses its result.
            "http://0x7f.1:8080/",
            "https://[::1]/",
            "http://[0:0:0:0:0:0:0:1]:443/",
        ] {
            assert!(allowed(url), "{url}");
        }
        for url in [
            "http://blobs.example:8080/",
            "http://blobs.example.evil/",
            "http://evil-blobs.example/",
            "http://blobs.example./",
            "http://127.0.0.1/",
            "http://127.0.0.1:80/",
            "http://127.0.0.2:8080/",
            "http://[::1]:8080/",
            "http://[::ffff:127.0.0.1]:8080/",
            "http://user@blobs.example/",
            "http://:secret@blobs.example/",
            "http://blobs.example@evil/",
            "http://169.254.169.254/",
        ] {
            assert!(!allowed(url), "{url}");
        }
        assert!(!allow(&[], &Url::parse("http://localhost/").unwrap()));
        for bad in
            ["", ":80", "a:", "a:99999", "a:b", "http://a", "a/b", "u@a", "a b", "*", "*.a", "a?b", "::1"]
        {
            assert!(bad.parse::<Host>().is_err(), "{bad}");
        }
        for text in ["a", "a:80", "[::1]:8080"] {
            assert_eq!(text.parse::<Host>().unwrap().to_string(), text);
        }
    }
}
