//! Proxies, and the hosts that are reached without one.

use std::fmt;
use std::net::IpAddr;

use reqwest::{StatusCode, Url};

use super::hosts::is_loopback;
use crate::error::Error;

/// The proxies of requests by http and by https, and the hosts that are reached without them. Those on the loopback
/// interface always are: no proxy can reach them, and a password on its way there must not leave this host (as Go's
/// golang.org/x/net/http/httpproxy has it).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proxies {
    http: Option<Proxy>,
    https: Option<Proxy>,
    except: Vec<Except>,
}

/// A proxy. `Debug` and `Display` omit its user and its password.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Proxy {
    /// The variable that names it.
    variable: &'static str,
    /// `None` if no such proxy can be used.
    url: Option<Url>,
}

/// An entry of `NO_PROXY`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Except {
    hosts: Hosts,
    /// `None`: any.
    port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Hosts {
    All,
    /// The addresses whose first so many bits are equal.
    Net(IpAddr, u32),
    /// This name, in lower case, and those below it.
    Below(String),
}

impl Proxies {
    /// Those of the environment, the variables in upper case first: `HTTP_PROXY`, `HTTPS_PROXY` and, instead of one that is
    /// not set, `ALL_PROXY`; and `NO_PROXY`. With `REQUEST_METHOD` none counts: a CGI program has HTTP_PROXY from the
    /// header of a request.
    pub fn of_env() -> Self {
        Self::of(|name| std::env::var(name).ok())
    }

    /// Those of variables.
    pub(crate) fn of(get: impl Fn(&str) -> Option<String>) -> Self {
        if get("REQUEST_METHOD").is_some() {
            return Self::default();
        }
        let first = |names: &[&'static str]| {
            names.iter().find_map(|name| Some((*name, get(name).filter(|value| !value.trim().is_empty())?)))
        };
        let proxy =
            |names: &[&'static str]| first(names).map(|(name, value)| Proxy::parse(name, value.trim()));
        let except = first(&["NO_PROXY", "no_proxy"]).map_or_else(String::new, |(_, value)| value);
        Self {
            http: proxy(&["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"]),
            https: proxy(&["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"]),
            except: except.split(',').filter_map(Except::parse).collect(),
        }
    }

    /// Returns the proxy by which a URL is asked for.
    pub(super) fn by_way_of(&self, url: &Url) -> Option<&Proxy> {
        let proxy = match url.scheme() {
            "https" => self.https.as_ref(),
            _ => self.http.as_ref(),
        };
        let (host, port) = (url.host_str()?, url.port_or_known_default());
        proxy.filter(|_| !is_loopback(host) && !self.except.iter().any(|except| except.has(host, port)))
    }

    /// Returns the proxy of which an answer may be, because there is no tunnel to the server.
    pub(super) fn between(&self, url: &Url) -> Option<&Proxy> {
        self.by_way_of(url).filter(|_| url.scheme() == "http")
    }

    /// The proxy of requests by https, if there is one that can be used.
    pub(super) fn of_tunnels(&self) -> Option<Url> {
        self.https.as_ref().and_then(|proxy| proxy.url.clone())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.http.is_none() && self.https.is_none()
    }

    /// # Errors
    /// [`Error::Proxy`] if the URL is asked for by way of a proxy that cannot be used.
    pub(super) fn check(&self, url: &Url) -> Result<(), Error> {
        match self.by_way_of(url) {
            Some(proxy) if proxy.url.is_none() => Err(proxy.failed(
                url,
                "it cannot be used: only http://HOST:PORT and https://HOST:PORT are known".into(),
            )),
            _ => Ok(()),
        }
    }
}

impl Proxy {
    fn parse(variable: &'static str, text: &str) -> Self {
        let usable = |url: &Url| matches!(url.scheme(), "http" | "https") && url.has_host();
        // HOST:PORT would be a URL with the scheme HOST.
        let text = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        Self { variable, url: Url::parse(&text).ok().filter(usable) }
    }

    pub(super) fn url(&self) -> Option<Url> {
        self.url.clone()
    }

    /// Returns the error of a request that did not come as far as its server.
    pub(super) fn failed(&self, url: &Url, why: String) -> Error {
        let port = url.port_or_known_default().unwrap_or_default();
        let host = format!("{}:{port}", url.host_str().unwrap_or_default());
        Error::Proxy { host, proxy: self.to_string(), why }
    }

    /// Returns the error of a request that it has answered itself.
    pub(super) fn refused(&self, url: &Url, status: StatusCode) -> Error {
        let meaning = match status {
            StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
                ", it wants a user and a password that it knows, as in http://USER:PASSWORD@HOST:PORT"
            }
            _ => "",
        };
        self.failed(url, format!("the proxy answered {}{meaning}", status.as_u16()))
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(url) = &self.url else { return write!(f, "of {}", self.variable) };
        let port = url.port_or_known_default().unwrap_or_default();
        write!(f, "{}:{port} ({})", url.host_str().unwrap_or_default(), self.variable)
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proxy({self})")
    }
}

impl Except {
    /// Parses `*`, an address, a net such as `10.0.0.0/8`, a name, or `.NAME`; all but a net may have a port. The names
    /// below a name count as well.
    fn parse(text: &str) -> Option<Self> {
        let text = text.trim().to_ascii_lowercase();
        if text == "*" {
            return Some(Self { hosts: Hosts::All, port: None });
        }
        let address = |text: &str| text.parse::<IpAddr>().ok();
        if let Some((net, bits)) = text.split_once('/') {
            let hosts = Hosts::Net(address(net)?, bits.parse().ok()?);
            return Some(Self { hosts, port: None });
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) if address(&text).is_none() && !port.ends_with(']') => {
                (host, Some(port.parse().ok()?))
            }
            _ => (&*text, None),
        };
        let host = host.trim_matches(['[', ']']);
        let hosts = match address(host) {
            Some(address) => Hosts::Net(address, u32::MAX),
            None => Hosts::Below(host.trim_start_matches('*').trim_start_matches('.').to_owned()),
        };
        Some(Self { hosts, port }).filter(|except| except.hosts != Hosts::Below(String::new()))
    }

    fn has(&self, host: &str, port: Option<u16>) -> bool {
        if self.port.is_some() && self.port != port {
            return false;
        }
        match &self.hosts {
            Hosts::All => true,
            Hosts::Net(net, bits) => {
                let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
                address.is_ok_and(|address| has(*net, *bits, address))
            }
            Hosts::Below(name) => {
                let host = host.to_ascii_lowercase();
                host.strip_suffix(name.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            }
        }
    }
}

/// Whether an address is in a net.
fn has(net: IpAddr, bits: u32, address: IpAddr) -> bool {
    match (net, address.to_canonical()) {
        (IpAddr::V4(net), IpAddr::V4(address)) => {
            (net.to_bits() ^ address.to_bits()).leading_zeros() >= bits.min(32)
        }
        (IpAddr::V6(net), IpAddr::V6(address)) => {
            (net.to_bits() ^ address.to_bits()).leading_zeros() >= bits.min(128)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Proxies {
        let get =
            |name: &str| variables.iter().find(|(own, _)| *own == name).map(|(_, value)| (*value).to_owned());
        Proxies::of(get)
    }

    fn by(proxies: &Proxies, url: &str) -> Option<String> {
        proxies.by_way_of(&Url::parse(url).unwrap()).map(ToString::to_string)
    }

    #[test]
    fn of_schemes() {
        let proxies = of(&[
            ("HTTPS_PROXY", "http://u:SECRET@p:3128"),
            ("all_proxy", "other"),
            ("https_proxy", "http://x"),
        ]);
        assert_eq!(by(&proxies, "https://h/").unwrap(), "p:3128 (HTTPS_PROXY)");
        assert_eq!(by(&proxies, "http://h/").unwrap(), "other:80 (all_proxy)");
        assert!(!format!("{proxies:?}").contains("SECRET"));
        assert_eq!(proxies.of_tunnels().unwrap().as_str(), "http://u:SECRET@p:3128/");
        let one = of(&[("http_proxy", " 127.0.0.1:3128 "), ("HTTPS_PROXY", "")]);
        assert_eq!(by(&one, "http://h/").unwrap(), "127.0.0.1:3128 (http_proxy)");
        assert_eq!(by(&one, "https://h/"), None);
        assert!(
            of(&[]).is_empty() && of(&[("REQUEST_METHOD", "GET"), ("HTTP_PROXY", "http://evil")]).is_empty()
        );
    }

    /// The loopback interface of this host is not the proxy's, which would get the passwords.
    #[test]
    fn never_for_loopback() {
        let proxies = of(&[("ALL_PROXY", "http://p")]);
        for host in
            ["localhost", "LOCALHOST:5000", "127.0.0.1", "127.9.9.9:1", "[::1]:5000", "[::ffff:127.0.0.1]"]
        {
            for scheme in ["http", "https"] {
                assert_eq!(by(&proxies, &format!("{scheme}://{host}/")), None, "{host}");
            }
        }
        assert!(by(&proxies, "http://localhost.example/").is_some());
    }

    #[test]
    fn exceptions() {
        for (no, host, excepted) in [
            ("*", "a", true),
            ("x, a.example", "a.example", true),
            ("a.example", "A.EXAMPLE:5000", true),
            ("a.example", "b.a.example", true),
            ("a.example", "ba.example", false),
            (".example", "a.example", true),
            ("*.example", "a.example", true),
            ("a.example:5000", "a.example:5000", true),
            ("a.example:5000", "b.a.example:5000", true),
            ("a.example:5000", "a.example", false),
            ("a.example:443", "a.example", true),
            ("10.0.0.1", "10.0.0.1:5000", true),
            ("10.0.0.1:5000", "10.0.0.1:5000", true),
            ("10.0.0.1:5000", "10.0.0.1:5001", false),
            ("10.0.0.0/8", "10.9.8.7:1", true),
            ("10.0.0.0/8", "11.0.0.1", false),
            ("0.0.0.0/0", "11.0.0.1", true),
            ("fd00::/8", "[fd12::1]:5000", true),
            ("fd00::1", "[fd00::1]:5000", true),
            ("[fd00::1]", "[fd00::1]:5000", true),
            ("[fd00::1]:5000", "[fd00::1]:5000", true),
            ("[fd00::1]:5000", "[fd00::1]", false),
            ("fd00::1", "[fd00::2]", false),
            ("", "a", false),
            (",.,:,:80,a:b,1/x,*.", "a", false),
        ] {
            let proxies = of(&[("HTTPS_PROXY", "http://p"), ("NO_PROXY", no)]);
            assert_eq!(by(&proxies, &format!("https://{host}/")).is_none(), excepted, "{no} {host}");
        }
    }

    #[test]
    fn that_cannot_be_used() {
        for text in ["socks5://u:SECRET@p:1080", "http://", "ftp://p", "http://[SECRET"] {
            let proxies = of(&[("HTTPS_PROXY", text)]);
            assert!(proxies.check(&Url::parse("http://h/").unwrap()).is_ok());
            let error = proxies.check(&Url::parse("https://h/").unwrap()).unwrap_err().to_string();
            assert!(error.contains("h:443") && error.contains("HTTPS_PROXY"), "{error}");
            assert!(!error.contains("SECRET"), "{error}");
        }
    }
}
