//! Which requests are answered: none that a page of another origin has caused, and none for a host that is not this one.
//!
//! Whoever opens a page elsewhere lets it send requests here. Browsers add `Origin` and `Sec-Fetch-Site` to them, and name
//! the host of the page's URL; a name that was resolved to this address all of a sudden (DNS rebinding) is not one of ours.

use hyper::header::{HOST, HeaderMap, HeaderName, ORIGIN};
use hyper::{StatusCode, Uri};
use std::net::{IpAddr, SocketAddr};

const SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");
const DESTINATION: HeaderName = HeaderName::from_static("sec-fetch-dest");

/// Why a request is refused.
pub(crate) type Refusal = (StatusCode, &'static str);

/// Names by which browsers may call this host.
#[derive(Debug, Clone)]
pub struct Hosts {
    names: Vec<String>,
    address: IpAddr,
    port: u16,
}

/// Whether others than this host can connect to this address.
pub fn is_public(address: IpAddr) -> bool {
    !address.to_canonical().is_loopback()
}

impl Hosts {
    /// Those of a page that listens at this address, with further `names`.
    pub fn new(address: SocketAddr, names: &[String]) -> Self {
        Self { names: names.to_vec(), address: address.ip(), port: address.port() }
    }

    /// Whether this is one of them, with the port. Browsers leave port 80 out, and with TLS 443.
    fn know(&self, host: &str) -> bool {
        let (name, port) = match host.strip_prefix('[') {
            Some(rest) => {
                let Some((address, port)) = rest.split_once(']') else { return false };
                match (port.is_empty(), port.strip_prefix(':')) {
                    (true, _) => (address, None),
                    (false, Some(port)) => (address, Some(port)),
                    (false, None) => return false,
                }
            }
            None => match host.split_once(':') {
                Some((name, port)) => (name, Some(port)),
                None => (host, None),
            },
        };
        let is_ours = match port {
            Some(port) => port.parse() == Ok(self.port),
            None => matches!(self.port, 80 | 443),
        };
        if !is_ours {
            return false;
        }
        if let Ok(address) = name.parse::<IpAddr>() {
            // All addresses of the host are meant by the unspecified one. An address cannot be rebound.
            return self.address.is_unspecified()
                || address.to_canonical() == self.address.to_canonical()
                || (!is_public(self.address) && !is_public(address));
        }
        let name = name.strip_suffix('.').unwrap_or(name);
        name.eq_ignore_ascii_case("localhost")
            || self.names.iter().any(|ours| name.eq_ignore_ascii_case(ours))
    }
}

/// Returns why a request is refused before it is looked at further. Without `hosts` any host may be named. `is_page`: it asks for the page itself, which a link
/// elsewhere may lead to; what the page then asks for comes from the page.
pub(crate) fn refusal(
    headers: &HeaderMap,
    uri: &Uri,
    hosts: Option<&Hosts>,
    is_page: bool,
) -> Option<Refusal> {
    let mut named = headers.get_all(HOST).iter();
    let (Some(host), None) = (named.next(), named.next()) else {
        return Some((StatusCode::BAD_REQUEST, "a request names exactly one host"));
    };
    let host = host.to_str().unwrap_or_default();
    if hosts.is_some_and(|hosts| !hosts.know(host))
        || uri.authority().is_some_and(|authority| authority.as_str() != host)
    {
        return Some((
            StatusCode::MISDIRECTED_REQUEST,
            "the monitor does not know the host that the request names: use its address, or start it with --host NAME",
        ));
    }
    let is_foreign = |origin: &str| {
        let authority = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
        authority.is_none_or(|authority| !authority.eq_ignore_ascii_case(host))
    };
    if headers.get_all(ORIGIN).iter().any(|origin| origin.to_str().map_or(true, is_foreign)) {
        return Some((StatusCode::FORBIDDEN, "requests of other pages are refused"));
    }
    let is = |name: &HeaderName, wanted: &[&str]| {
        headers.get_all(name).iter().all(|value| wanted.iter().any(|wanted| value == wanted))
    };
    let is_opened = is_page && is(&MODE, &["navigate"]) && is(&DESTINATION, &["document"]);
    if !is(&SITE, &["none", "same-origin"]) && !is_opened {
        return Some((StatusCode::FORBIDDEN, "requests of other pages are refused"));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(address: &str) -> Hosts {
        Hosts::new(address.parse().unwrap(), &["wall.example".to_owned()])
    }

    #[test]
    fn a_name_that_was_rebound_is_not_ours() {
        let local = hosts("127.0.0.1:8080");
        for good in ["127.0.0.1:8080", "localhost:8080", "LOCALHOST.:8080", "[::1]:8080", "wall.example:8080"]
        {
            assert!(local.know(good), "{good}");
        }
        for bad in [
            "",
            "127.0.0.1",
            "127.0.0.1:81",
            "evil.example:8080",
            "localhost.evil.example:8080",
            "localhost:8080@evil.example",
            "evil.example@localhost:8080",
            "10.0.0.1:8080",
            "[::1:8080",
            "[::1]8080",
            "wall.example:",
        ] {
            assert!(!local.know(bad), "{bad}");
        }
        assert!(hosts("0.0.0.0:80").know("10.1.2.3") && hosts("[::]:80").know("[fe80::1]"));
        assert!(!hosts("0.0.0.0:80").know("evil.example"));
        assert!(hosts("10.1.2.3:80").know("10.1.2.3") && !hosts("10.1.2.3:80").know("10.1.2.4"));
    }

    #[test]
    fn what_other_pages_cause_is_refused_but_a_link_to_the_page() {
        let hosts = hosts("127.0.0.1:8080");
        let told = |is_page: bool, headers: &[(&'static str, &'static str)]| {
            let mut map = HeaderMap::new();
            map.insert(HOST, "127.0.0.1:8080".parse().unwrap());
            for (name, value) in headers {
                map.append(*name, value.parse().unwrap());
            }
            refusal(&map, &Uri::from_static("/monitor/"), Some(&hosts), is_page)
                .map(|(status, _)| status.as_u16())
        };
        assert_eq!(told(false, &[]), None);
        assert_eq!(
            told(false, &[("origin", "http://127.0.0.1:8080"), ("sec-fetch-site", "same-origin")]),
            None
        );
        for origin in
            ["null", "http://evil.example", "http://127.0.0.1:81", "http://127.0.0.1:8080.evil.example"]
        {
            assert_eq!(told(true, &[("origin", origin)]), Some(403), "{origin}");
        }
        let link = [
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-mode", "navigate"),
            ("sec-fetch-dest", "document"),
        ];
        assert_eq!((told(true, &link), told(false, &link)), (None, Some(403)));
        let frame =
            [("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "iframe")];
        assert_eq!(told(true, &frame), Some(403));
        assert_eq!(told(false, &[("sec-fetch-site", "same-site")]), Some(403));
        assert_eq!(told(false, &[("host", "evil.example")]), Some(400));
    }
}
