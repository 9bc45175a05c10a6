//! What CNI plugins answer (Container Network Interface specification, section 5).

use serde::Deserialize;
use serde_json::Value;
use std::net::{IpAddr, Ipv6Addr};
use wardian_sys::text::{clip, tame};

/// The most bytes of a plugin's error that are told.
const TOLD: usize = 1024;

/// The network of a container as a result describes it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Made {
    /// The first IPv4 address, or, without one, the first IPv6 address.
    pub ip: Option<IpAddr>,
    /// The first IPv6 address.
    pub ipv6: Option<Ipv6Addr>,
    /// The gateway of that address.
    pub gateway: Option<IpAddr>,
    /// Name servers.
    pub servers: Vec<IpAddr>,
    /// Search domains.
    pub search: Vec<String>,
    /// Options for resolv.conf.
    pub options: Vec<String>,
}

#[derive(Deserialize)]
struct Words {
    #[serde(default)]
    interfaces: Option<Vec<Interface>>,
    #[serde(default)]
    ips: Option<Vec<Ip>>,
    #[serde(default)]
    dns: Option<Dns>,
}

#[derive(Deserialize)]
struct Interface {
    /// Empty for an interface of the host.
    #[serde(default)]
    sandbox: Option<String>,
}

#[derive(Deserialize)]
struct Ip {
    address: String,
    #[serde(default)]
    gateway: Option<String>,
    /// An index of `interfaces`.
    #[serde(default)]
    interface: Option<i64>,
}

#[derive(Deserialize, Default)]
struct Dns {
    #[serde(default)]
    nameservers: Option<Vec<String>>,
    #[serde(default)]
    domain: Option<String>,
    #[serde(default)]
    search: Option<Vec<String>>,
    #[serde(default)]
    options: Option<Vec<String>>,
}

/// Parses the result of a chain of plugins.
///
/// # Errors
/// What is wrong with it, in words.
pub fn parse(result: &Value) -> Result<Made, String> {
    // serde would take a list for a structure.
    if !result.is_object() {
        return Err("it is no object".to_owned());
    }
    let words =
        Words::deserialize(result).map_err(|error| tame(&clip(&error.to_string(), TOLD)).into_owned())?;
    let interfaces = words.interfaces.unwrap_or_default();
    let is_inside = |ip: &Ip| match ip.interface {
        None => true,
        Some(index) => {
            let found = usize::try_from(index).ok().and_then(|index| interfaces.get(index));
            found.is_some_and(|found| found.sandbox.as_ref().is_some_and(|sandbox| !sandbox.is_empty()))
        }
    };
    let mut made = Made::default();
    let mut first_v6 = None;
    for ip in words.ips.unwrap_or_default().iter().filter(|ip| is_inside(ip)) {
        let (bare, _) = ip.address.split_once('/').unwrap_or((&ip.address, ""));
        let found = address("ips.address", bare)?;
        let gateway = match ip.gateway.as_deref() {
            None | Some("") => None,
            Some(gateway) => Some(address("ips.gateway", gateway)?),
        };
        match found {
            IpAddr::V4(_) if made.ip.is_none() => (made.ip, made.gateway) = (Some(found), gateway),
            IpAddr::V6(v6) if first_v6.is_none() => {
                made.ipv6 = Some(v6);
                first_v6 = Some((found, gateway));
            }
            _ => {}
        }
    }
    if let (None, Some((ip, gateway))) = (made.ip, first_v6) {
        (made.ip, made.gateway) = (Some(ip), gateway);
    }
    let dns = words.dns.unwrap_or_default();
    for server in dns.nameservers.unwrap_or_default() {
        made.servers.push(address("dns.nameservers", &server)?);
    }
    made.search = dns.search.unwrap_or_default();
    if made.search.is_empty() {
        made.search.extend(dns.domain.filter(|domain| !domain.is_empty()));
    }
    made.options = dns.options.unwrap_or_default();
    Ok(made)
}

fn address(what: &str, text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| format!("{what}: \"{}\" is no IP address", tame(&clip(text, 64))))
}

/// Returns what a plugin that has failed says: the error that it has written as JSON, or else what it has written to
/// its standard error.
pub fn failure(out: &[u8], said: &str) -> String {
    #[derive(Deserialize)]
    struct Words {
        msg: String,
        #[serde(default)]
        details: String,
    }
    let text = match serde_json::from_slice::<Words>(out) {
        Ok(Words { msg, details }) if details.is_empty() => msg,
        Ok(Words { msg, details }) => format!("{msg}; {details}"),
        Err(_) => said.trim().to_owned(),
    };
    tame(&clip(&text, TOLD)).into_owned()
}

/// Returns the versions that a plugin supports, from its answer to VERSION.
///
/// # Errors
/// What is wrong with the answer, in words.
pub fn versions(answer: &[u8]) -> Result<Vec<String>, String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Words {
        supported_versions: Vec<String>,
    }
    serde_json::from_slice(answer)
        .map(|words: Words| words.supported_versions)
        .map_err(|error| tame(&clip(&error.to_string(), TOLD)).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn addresses_are_those_of_the_container() {
        let made = parse(&json!({
            "cniVersion": "1.0.0",
            "interfaces": [{"name": "b0"}, {"name": "v0", "sandbox": ""}, {"name": "eth0", "sandbox": "/proc/1/fd/3"}],
            "ips": [
                {"address": "10.9.0.1/24", "interface": 0},
                {"address": "fd00::2/64", "gateway": "fd00::1", "interface": 2},
                {"version": "4", "address": "10.9.0.2/24", "gateway": "10.9.0.1", "interface": 2},
                {"address": "10.9.0.3/24", "interface": 2},
                {"address": "10.9.0.4/24", "interface": 7},
            ],
            "routes": [{"dst": "0.0.0.0/0"}],
            "dns": {"nameservers": ["9.9.9.9"], "domain": "x.y", "options": ["ndots:2"]},
        }));
        let made = made.unwrap();
        let ip = |text: &str| text.parse::<IpAddr>().ok();
        assert_eq!((made.ip, made.gateway), (ip("10.9.0.2"), ip("10.9.0.1")));
        assert_eq!(
            (made.ipv6.map(IpAddr::from), made.servers),
            (ip("fd00::2"), vec![ip("9.9.9.9").unwrap()])
        );
        assert_eq!((made.search, made.options), (vec!["x.y".to_owned()], vec!["ndots:2".to_owned()]));
        let made = parse(&json!({"ips": [{"address": "fd00::2/64", "gateway": "fd00::1"}]})).unwrap();
        assert_eq!((made.ip, made.gateway), (ip("fd00::2"), ip("fd00::1")));
        for nothing in [json!({}), json!({"ips": null, "dns": null, "interfaces": null})] {
            assert_eq!(parse(&nothing).unwrap(), Made::default());
        }
    }

    #[test]
    fn what_is_wrong_is_told() {
        for (bad, says) in [
            (json!([]), "no object"),
            (json!({"ips": 1}), "invalid type"),
            (json!({"ips": [{"address": "x/24"}]}), "ips.address: \"x\" is no IP address"),
            (json!({"ips": [{"address": "10.0.0.1/24", "gateway": "x\n"}]}), "ips.gateway: \"x\\n\" is no"),
            (json!({"dns": {"nameservers": ["x"]}}), "dns.nameservers: \"x\""),
        ] {
            let error = parse(&bad).unwrap_err();
            assert!(error.contains(says), "{bad}: {error}");
        }
        let failed = br#"{"cniVersion": "1.0.0", "code": 7, "msg": "no", "details": "why\u001b[1m"}"#;
        assert_eq!(failure(failed, "x"), "no; why\\u{1b}[1m");
        assert_eq!(failure(b"{}", " said \n"), "said");
        assert_eq!(
            versions(br#"{"cniVersion": "1.0.0", "supportedVersions": ["0.4.0"]}"#).unwrap(),
            ["0.4.0"]
        );
        assert!(versions(b"{}").is_err());
    }
}
