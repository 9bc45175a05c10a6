//! Protection against requests from web pages: which requests a browser may have sent, and which host a
//! request may name.
//!
//! A web page that a user of this host, or of one near it, looks at can make the browser send requests here.
//! Two things distinguish them from a client's: browsers add `Origin` to all requests but the plainest, and
//! they name the host of the page's URL. A page whose own host name is suddenly resolved to this server's
//! address (DNS rebinding) names a host that is not this server's. An IP address cannot be rebound.
//!
//! Garden's clients name the host `api`, whatever address they have dialled. A browser names the port as well, unless it
//! is 80: on all other ports a bare `api` does not come from a browser.

use hyper::header::{HOST, HeaderMap, HeaderName, ORIGIN};
use hyper::{StatusCode, Uri};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

/// A browser's header that tells what caused a request: a page, or (`none`) the user.
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
/// The port that browsers do not name.
const HTTP_PORT: u16 = 80;

/// Names of this server's host.
#[derive(Debug)]
pub(crate) struct Hosts {
    names: Vec<String>,
    /// The same for the monitor, whose clients are browsers.
    pub(crate) page: wardian_monitor::Hosts,
    /// `api` counts as a name of this host: Garden's clients use it.
    garden: bool,
}

/// Why a request is not answered.
pub(crate) type Refusal = (StatusCode, &'static str);

impl Hosts {
    /// Makes the names for a server that listens at this TCP address.
    pub(crate) fn new(names: &[String], address: SocketAddr) -> Self {
        let page = wardian_monitor::Hosts::new(address, names);
        Self { names: names.to_vec(), page, garden: address.port() != HTTP_PORT }
    }

    /// Whether `host`, which may include a port, is one of this server's. A host after user information
    /// (`localhost:x@evil.example`) is not: other parsers than this one would take what follows the `@` for
    /// the host.
    fn know(&self, host: &str) -> bool {
        let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
        if let Some(rest) = host.strip_prefix('[') {
            let Some((address, port)) = rest.split_once(']') else { return false };
            let address = address.split_once('%').map_or(address, |(address, _zone)| address);
            let port = port.strip_prefix(':').or(port.is_empty().then_some(""));
            return address.parse::<Ipv6Addr>().is_ok() && port.is_some_and(is_port);
        }
        let (name, port) = host.split_once(':').unwrap_or((host, ""));
        if !is_port(port) {
            return false;
        }
        let name = name.strip_suffix('.').unwrap_or(name);
        name.parse::<Ipv4Addr>().is_ok()
            || name.eq_ignore_ascii_case("localhost")
            || (self.garden && host == "api")
            || self.names.iter().any(|ours| name.eq_ignore_ascii_case(ours))
    }
}

/// Returns why a request is refused before it is read any further. Without `hosts` any host may be named:
/// browsers do not speak to unix sockets.
pub(crate) fn refusal(headers: &HeaderMap, uri: &Uri, hosts: Option<&Hosts>) -> Option<Refusal> {
    let from_page = headers.get_all(SEC_FETCH_SITE).iter().any(|site| site != "none");
    if headers.contains_key(ORIGIN) || from_page {
        return Some((StatusCode::FORBIDDEN, "requests from web pages are refused"));
    }
    let hosts = hosts?;
    let mut named = headers.get_all(HOST).iter();
    let (Some(host), None) = (named.next(), named.next()) else {
        return Some((StatusCode::BAD_REQUEST, "a request names exactly one host"));
    };
    let known = host.to_str().is_ok_and(|host| hosts.know(host));
    // A request target in absolute form has a host of its own (RFC 9112, section 3.2.2).
    if known && uri.authority().is_none_or(|authority| hosts.know(authority.as_str())) {
        return None;
    }
    Some((
        StatusCode::MISDIRECTED_REQUEST,
        "this server does not know the host that the request names: name it by its IP address, or start it with --host-name",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;

    fn asked(headers: &[(HeaderName, &str)], uri: &str, hosts: Option<&Hosts>) -> Option<StatusCode> {
        let value = |text: &str| HeaderValue::from_str(text).unwrap();
        let mut map = HeaderMap::new();
        for (name, text) in headers {
            map.append(name.clone(), value(text));
        }
        refusal(&map, &uri.parse().unwrap(), hosts).map(|(status, _)| status)
    }

    #[test]
    fn a_host_is_an_address_or_a_name_of_ours() {
        let hosts = Hosts::new(&["Cell-1.example".to_owned()], SocketAddr::from(([127, 0, 0, 1], 7777)));
        for ours in [
            "127.0.0.1:7777",
            "10.1.2.3",
            "[::1]:7777",
            "[fe80::1%25eth0]",
            "localhost:7777",
            "LOCALHOST",
            "localhost.",
            "cell-1.example",
            "cell-1.example:7777",
            "api",
        ] {
            assert_eq!(asked(&[(HOST, ours)], "/ping", Some(&hosts)), None, "{ours}");
        }
        let misdirected = Some(StatusCode::MISDIRECTED_REQUEST);
        for theirs in [
            "evil.example",
            "evil.example:7777",
            "api:7777",
            "API",
            "api.evil.example",
            "localhost.evil.example",
            "",
            "127.0.0.1.evil.example",
            "0x7f000001",
            "[::1",
            "[evil.example]",
            "[::1]x",
            ":7777",
            "x.localhost",
            "cell-1",
            "localhost:x@evil.example",
            "127.0.0.1:@evil.example",
            "u@localhost",
            "[::1]:7777@evil.example",
            "localhost:evil",
        ] {
            assert_eq!(asked(&[(HOST, theirs)], "/ping", Some(&hosts)), misdirected, "{theirs}");
            assert_eq!(asked(&[(HOST, theirs)], "/ping", None), None, "{theirs}");
        }
        for uri in
            ["http://evil.example/ping", "http://localhost:1@evil.example/ping", "http://u@localhost/ping"]
        {
            assert_eq!(asked(&[(HOST, "api")], uri, Some(&hosts)), misdirected, "{uri}");
        }
        assert_eq!(
            asked(&[(HOST, "api")], "/ping", Some(&Hosts::new(&[], SocketAddr::from(([127, 0, 0, 1], 80))))),
            misdirected
        );
        let bad = Some(StatusCode::BAD_REQUEST);
        assert_eq!(asked(&[], "/ping", Some(&hosts)), bad);
        assert_eq!(asked(&[(HOST, "api"), (HOST, "evil.example")], "/ping", Some(&hosts)), bad);
    }

    #[test]
    fn pages_are_refused_on_every_socket() {
        let forbidden = Some(StatusCode::FORBIDDEN);
        for origin in ["http://evil.example", "http://localhost:7777", "null", ""] {
            assert_eq!(asked(&[(HOST, "api"), (ORIGIN, origin)], "/ping", None), forbidden, "{origin}");
        }
        for (site, expected) in [("cross-site", forbidden), ("same-origin", forbidden), ("none", None)] {
            assert_eq!(asked(&[(SEC_FETCH_SITE, site)], "/ping", None), expected, "{site}");
        }
    }
}
