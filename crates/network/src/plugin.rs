//! Garden's external network plugin (Garden server §4.10): a program that makes the networks of containers. It is run
//! for each action with `--action ACTION --handle HANDLE`, reads JSON from its standard input, and answers with JSON.
//!
//! | action | when | what it reads | what it answers |
//! |---|---|---|---|
//! | `up` | after the launch of a container's init | its pid, properties, port mappings, egress rules | properties, name servers |
//! | `down` | at every destroy, also of a container whose create has failed | `null` | – |
//! | `net-in` | for a port mapping | both ports | both ports |
//! | `net-out`, `bulk-net-out` | for egress rules | the rules | – |
//!
//! Keys are read without regard to case, as Go reads them.

use crate::Wanted;
use crate::egress::{Protocol, Rule};
use crate::outside::Error;
use crate::ports::{Mapping, Transport};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;
use wardian_sys::program::Program;

/// A container's properties with this prefix are told to the plugin, without the prefix.
const TOLD: &str = "network.";
/// A property that is told under its full name.
const LOG_CONFIG: &str = "log_config";

/// How the plugin is run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plugin {
    /// Its path.
    pub program: PathBuf,
    /// Arguments before those of the action.
    pub args: Vec<String>,
}

/// What the plugin has made of a container's network.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Made {
    /// For the container's properties.
    pub properties: BTreeMap<String, String>,
    /// Instead of all other name servers.
    pub servers: Option<Vec<IpAddr>>,
    /// Instead of the host's search domains.
    pub search: Option<Vec<String>>,
    /// The container's address: `garden.network.container-ip`.
    pub ip: Option<IpAddr>,
    /// `garden.network.container-ipv6`.
    pub ipv6: Option<Ipv6Addr>,
    /// `garden.network.host-ip`, as it is.
    pub host_ip: String,
    /// `garden.network.mapped-ports`.
    pub mappings: Vec<Mapping>,
}

impl Plugin {
    /// Makes the network of the container with this init.
    pub(crate) fn up(
        &self,
        handle: &str,
        pid: i32,
        properties: &BTreeMap<String, String>,
        (ports, rules): (&[Wanted], &[Rule]),
        patience: Duration,
    ) -> Result<Made, Error> {
        let told = properties.iter().filter_map(|(key, value)| {
            let key = if key == LOG_CONFIG { key } else { key.strip_prefix(TOLD)? };
            Some((key.to_owned(), Value::from(value.as_str())))
        });
        let mut request = Map::from_iter([
            ("Pid".to_owned(), pid.into()),
            ("Properties".to_owned(), told.collect::<Map<_, _>>().into()),
        ]);
        if !rules.is_empty() {
            request.insert("netout_rules".to_owned(), rules.iter().map(rule).collect());
        }
        if !ports.is_empty() {
            let port =
                |wanted: &Wanted| json!({"host_port": wanted.host, "container_port": wanted.container});
            request.insert("netin".to_owned(), ports.iter().map(port).collect());
        }
        let answer = self.run("up", handle, &request.into(), patience)?;
        parse(&answer)
    }

    /// Removes a container's network, if there is one.
    pub(crate) fn down(&self, handle: &str, patience: Duration) -> Result<(), Error> {
        self.run("down", handle, &Value::Null, patience).map(drop)
    }

    /// Makes a port lead to one of the container's.
    pub(crate) fn net_in(
        &self,
        handle: &str,
        external: IpAddr,
        ip: &str,
        wanted: Wanted,
        patience: Duration,
    ) -> Result<Mapping, Error> {
        let (host, container) = (wanted.host, wanted.container);
        let request =
            json!({"HostIP": external, "HostPort": host, "ContainerIP": ip, "ContainerPort": container});
        let answer = self.run("net-in", handle, &request, patience)?;
        parse_ports(&answer, wanted)
    }

    /// Lets a container reach something. `bulk` is which of the two actions the client has asked for.
    pub(crate) fn net_out(
        &self,
        handle: &str,
        ip: &str,
        rules: &[Rule],
        bulk: bool,
        patience: Duration,
    ) -> Result<(), Error> {
        match rules {
            [one] if !bulk => {
                let request = json!({"container_ip": ip, "netout_rule": rule(one)});
                self.run("net-out", handle, &request, patience)?;
            }
            rules => {
                let rules: Value = rules.iter().map(rule).collect();
                let request = json!({"container_ip": ip, "netout_rules": rules});
                self.run("bulk-net-out", handle, &request, patience)?;
            }
        }
        Ok(())
    }

    fn run(
        &self,
        action: &'static str,
        handle: &str,
        input: &Value,
        patience: Duration,
    ) -> Result<Vec<u8>, Error> {
        let mut args: Vec<&str> = self.args.iter().map(String::as_str).collect();
        args.extend(["--action", action, "--handle", handle]);
        let input = input.to_string();
        let program =
            Program { path: &self.program, args: &args, env: &[], input: input.as_bytes(), patience };
        let output = program.run().map_err(|source| Error::Plugin { action, why: source.to_string() })?;
        crate::outside::log(&self.program, action, handle, &output);
        if !output.status.success() {
            return Err(Error::Plugin { action, why: output.status.to_string().replace(": ", " ") });
        }
        Ok(output.out)
    }
}

/// Parses the answer to `up`.
pub(crate) fn parse(answer: &[u8]) -> Result<Made, Error> {
    let answer = object(answer)?;
    let mut made = Made::default();
    for (key, value) in answer {
        if value.is_null() {
            continue;
        }
        match key.to_ascii_lowercase().as_str() {
            "properties" => made.properties = serde_json::from_value(value).map_err(Error::Unmarshal)?,
            "dns_servers" => made.servers = Some(serde_json::from_value(value).map_err(Error::Unmarshal)?),
            "search_domains" => made.search = Some(serde_json::from_value(value).map_err(Error::Unmarshal)?),
            _ => {}
        }
    }
    made.ip = address(&made.properties, "garden.network.container-ip")?;
    made.ipv6 = address(&made.properties, "garden.network.container-ipv6")?;
    made.host_ip = made.properties.get("garden.network.host-ip").cloned().unwrap_or_default();
    if let Some(text) = made.properties.get("garden.network.mapped-ports").filter(|text| !text.is_empty()) {
        let ports: Vec<Ports> = serde_json::from_str(text).map_err(Error::Unmarshal)?;
        made.mappings = ports.iter().map(Ports::mapping).collect::<Result<_, _>>()?;
    }
    Ok(made)
}

fn address<T: std::str::FromStr>(
    properties: &BTreeMap<String, String>,
    key: &'static str,
) -> Result<Option<T>, Error> {
    let Some(text) = properties.get(key).filter(|text| !text.is_empty()) else { return Ok(None) };
    let no_address = |_| Error::Address { key, text: text.chars().take(64).collect() };
    text.parse().map(Some).map_err(no_address)
}

/// Parses the answer to `net-in`; ports that it does not name are those of the request.
pub(crate) fn parse_ports(answer: &[u8], wanted: Wanted) -> Result<Mapping, Error> {
    let mut ports = Ports { host: wanted.host, container: wanted.container };
    for (key, value) in object(answer)? {
        let port = match key.to_ascii_lowercase().as_str() {
            "host_port" => &mut ports.host,
            "container_port" => &mut ports.container,
            _ => continue,
        };
        *port = serde_json::from_value(value).map_err(Error::Unmarshal)?;
    }
    ports.mapping()
}

/// Parses an object; nothing counts as an empty one.
fn object(answer: &[u8]) -> Result<Map<String, Value>, Error> {
    if answer.trim_ascii().is_empty() {
        return Ok(Map::new());
    }
    let parsed: Option<Map<String, Value>> = serde_json::from_slice(answer).map_err(Error::Unmarshal)?;
    Ok(parsed.unwrap_or_default())
}

#[derive(Deserialize)]
struct Ports {
    #[serde(rename = "HostPort")]
    host: u32,
    #[serde(rename = "ContainerPort")]
    container: u32,
}

impl Ports {
    fn mapping(&self) -> Result<Mapping, Error> {
        let port = |port: u32| u16::try_from(port).map_err(|_| Error::Port { port });
        Ok(Mapping { transport: Transport::Tcp, host: port(self.host)?, container: port(self.container)? })
    }
}

/// Returns a rule as Garden's clients write it (`NetOutRule`): what is empty is left out.
fn rule(rule: &Rule) -> Value {
    let number = match rule.protocol {
        Protocol::All => 0,
        Protocol::Tcp => 1,
        Protocol::Udp => 2,
        Protocol::Icmp => 3,
        Protocol::Icmp6 => 4,
    };
    let mut all = Map::new();
    let mut put = |key: &str, value: Value| drop(all.insert(key.to_owned(), value));
    if number != 0 {
        put("protocol", number.into());
    }
    if !rule.networks.is_empty() {
        put(
            "networks",
            rule.networks.iter().map(|(start, end)| json!({"start": start, "end": end})).collect(),
        );
    }
    if !rule.ports.is_empty() {
        put("ports", rule.ports.iter().map(|(start, end)| json!({"start": start, "end": end})).collect());
    }
    match rule.icmp {
        Some((kind, Some(code))) => put("icmps", json!({"type": kind, "code": code})),
        Some((kind, None)) => put("icmps", json!({"type": kind})),
        None => {}
    }
    if rule.log {
        put("log", true.into());
    }
    all.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_up_answers() {
        let made = parse(
            br#"{"properties": {"a": "b", "garden.network.container-ip": "10.1.0.2", "garden.network.host-ip": "x",
                "garden.network.container-ipv6": "fd00::2",
                "garden.network.mapped-ports": "[{\"HostPort\":60000,\"ContainerPort\":8080}]"},
                "DNS_Servers": ["1.2.3.4"], "search_domains": null, "more": 1}"#,
        )
        .unwrap();
        assert_eq!((made.ip, made.ipv6), ("10.1.0.2".parse().ok(), "fd00::2".parse().ok()));
        assert_eq!((made.host_ip.as_str(), made.properties["a"].as_str()), ("x", "b"));
        assert_eq!((made.servers, made.search), (Some(vec!["1.2.3.4".parse().unwrap()]), None));
        assert_eq!(made.mappings, [Mapping { transport: Transport::Tcp, host: 60000, container: 8080 }]);
        for nothing in ["", " \n", "{}", "null"] {
            assert_eq!(parse(nothing.as_bytes()).unwrap(), Made::default());
        }
        for (bad, says) in [
            ("{", "unmarshaling result from external networker: "),
            ("[]", "unmarshaling result from external networker: "),
            (r#"{"properties": {"a": 1}}"#, "unmarshaling result from external networker: "),
            (r#"{"dns_servers": ["x"]}"#, "unmarshaling result from external networker: "),
            (r#"{"properties": {"garden.network.container-ip": "x"}}"#, "\"x\" is no IP address"),
            (
                r#"{"properties": {"garden.network.container-ipv6": "1.2.3.4"}}"#,
                "\"1.2.3.4\" is no IP address",
            ),
            (
                r#"{"properties": {"garden.network.mapped-ports": "[{\"HostPort\":70000,\"ContainerPort\":1}]"}}"#,
                "70000 is no port",
            ),
        ] {
            let error = parse(bad.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(says), "{bad}: {error}");
        }
    }

    #[test]
    fn what_net_in_answers() {
        let wanted = Wanted { transport: Transport::Tcp, host: 0, container: 80 };
        let ports = |text: &str| {
            parse_ports(text.as_bytes(), wanted).map(|mapping| (mapping.host, mapping.container))
        };
        assert_eq!(ports(r#"{"host_port": 60001, "container_port": 8080}"#).unwrap(), (60001, 8080));
        assert_eq!(ports(r#"{"host_port": 60001}"#).unwrap(), (60001, 80));
        assert_eq!(ports("").unwrap(), (0, 80));
        assert!(ports(r#"{"host_port": 65536}"#).is_err() && ports(r#"{"host_port": -1}"#).is_err());
    }

    #[test]
    fn rules_are_written_as_gardens_clients_do() {
        let all =
            Rule { protocol: Protocol::All, networks: Vec::new(), ports: Vec::new(), icmp: None, log: false };
        assert_eq!(rule(&all), json!({}));
        let (start, end): (IpAddr, IpAddr) = ("10.0.0.1".parse().unwrap(), "10.0.0.9".parse().unwrap());
        let tcp = Rule {
            protocol: Protocol::Tcp,
            networks: vec![(start, end)],
            ports: vec![(80, 81)],
            log: true,
            ..all.clone()
        };
        let networks = json!([{"start": "10.0.0.1", "end": "10.0.0.9"}]);
        let ports = json!([{"start": 80, "end": 81}]);
        assert_eq!(rule(&tcp), json!({"protocol": 1, "networks": networks, "ports": ports, "log": true}));
        let icmp = Rule { protocol: Protocol::Icmp, icmp: Some((8, Some(0))), ..all };
        assert_eq!(rule(&icmp), json!({"protocol": 3, "icmps": {"type": 8, "code": 0}}));
    }
}
