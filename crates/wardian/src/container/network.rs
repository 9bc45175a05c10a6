//! The network of a container on the command line: its flags at a create, and `wardian port`, `map` and `allow`.

use super::{Server, block_on};
use crate::exit::mistake;
use crate::print;
use crate::store::size;
use anyhow::{Context as _, Result, bail, ensure};
use clap::Args as ClapArgs;
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use wardian_garden::wire::{
    BandwidthLimits, ContainerInfo, ContainerSpec, IpRange, NetIn, NetOutRule, PortMapping, PortRange,
};
use wardian_network::given;

/// The property with a container's own name servers.
const DNS: &str = "wardian.network.dns";
/// The most ports of one range.
const MOST: usize = 1024;
/// Without a burst, as much may pass at once as passes in the tenth part of a second.
const BURST: u64 = 10;
/// Of each flag: as a property of the whole it would also be that of all flags that follow.
const HEADING: &str = "Network";
const PORTS: &str = "[HOST:]CONTAINER[/tcp|udp]";
const RULE: &str = "DESTINATION[:PORTS][/tcp|udp|icmp]";
/// The numbers of protocols in a NetOutRule.
const PROTOCOLS: [(&str, u8); 4] = [("all", 0), ("tcp", 1), ("udp", 2), ("icmp", 3)];
const ICMPV6: u8 = 4;

/// What a container's network is to be.
#[derive(Debug, Default, ClapArgs)]
pub struct Network {
    /// Make a port of the host lead to one of the container: 8080:80, 53:53/udp, 8000-8009:80-89; 80 alone takes a host
    /// port of the server's pool
    #[arg(help_heading = HEADING, short = 'p', long = "publish", value_name = PORTS, value_parser = ports)]
    ports: Vec<Range>,
    /// Let the container reach what the server denies it: 10.0.0.0/8, 10.0.0.0/8:443, 10.1.2.3:80,8000-8010/tcp,
    /// 10.1.2.3-10.1.2.9:53/udp, 10.0.0.0/8/icmp, [fd00::/8]:443
    #[arg(help_heading = HEADING, long, value_name = RULE, value_parser = rule)]
    allow: Vec<NetOutRule>,
    /// Have the server log each connection that a rule of --allow lets pass
    #[arg(help_heading = HEADING, long, requires = "allow")]
    allow_log: bool,
    /// The container's address (10.9.0.5/24); the subnet that it gets one of and shares with others that name it
    /// (10.9.0.0/24); none: loopback alone; ns:/run/netns/NAME: a network namespace of the operator's, in a directory of the
    /// server's --network-namespaces [default: a subnet of the server's pool]
    #[arg(help_heading = HEADING, long, value_name = "CIDR|none|ns:PATH")]
    network: Option<String>,
    /// Most bytes a second that it receives, and that it sends: 1M, 10M:1M. BURST bytes may pass at once [default: those of
    /// a tenth of a second]
    #[arg(help_heading = HEADING, long, value_name = "RATE[:BURST]", value_parser = bandwidth)]
    bandwidth: Option<BandwidthLimits>,
    /// A name server, instead of those that the server gives to all; at most three
    #[arg(help_heading = HEADING, long, value_name = "IP")]
    dns: Vec<IpAddr>,
}

impl Network {
    /// Enters all this into a container's spec, which has its properties already.
    pub fn enter(&self, spec: &mut ContainerSpec) -> Result<()> {
        spec.netin = self.ports.iter().flat_map(Range::each).collect();
        spec.netout_rules =
            self.allow.iter().map(|rule| NetOutRule { log: self.allow_log, ..rule.clone() }).collect();
        match self.network.as_deref().map(|network| network.strip_prefix("ns:").ok_or(network)) {
            Some(Ok(path)) => enter(spec, ("--network ns:PATH", given::PROPERTY), path.to_owned())?,
            Some(Err(network)) => spec.network = network.to_owned(),
            None => {}
        }
        spec.limits.bandwidth_limits = self.bandwidth.clone().unwrap_or_default();
        twice(&spec.netin).map_err(mistake)?;
        if !self.dns.is_empty() {
            let servers = self.dns.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
            enter(spec, ("--dns", DNS), servers)?;
        }
        Ok(())
    }
}

/// Enters what a flag stands for into the properties.
fn enter(spec: &mut ContainerSpec, (flag, property): (&str, &str), value: String) -> Result<()> {
    if spec.properties.insert(property.to_owned(), value).is_some() {
        return Err(mistake(anyhow::anyhow!("{flag} and --property {property}=…: give one of the two")));
    }
    Ok(())
}

/// Ports of the host that lead to ports of a container, one by one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    /// The first port on the host; 0: ports of the server's pool.
    host: u32,
    /// The first port in the container.
    container: u32,
    count: u32,
    is_udp: bool,
}

impl Range {
    fn each(&self) -> impl Iterator<Item = NetIn> + use<> {
        let Self { host, container, count, is_udp } = *self;
        (0..count).map(move |n| NetIn {
            host_port: if host == 0 { 0 } else { host + n },
            container_port: container + n,
            protocol: protocol(is_udp).to_owned(),
        })
    }
}

/// The name of a protocol in a request; Garden's servers know TCP alone, which has none.
fn protocol(is_udp: bool) -> &'static str {
    if is_udp { "udp" } else { "" }
}

/// Refuses a port of the host that is named twice: the second mapping would have no effect.
fn twice(wanted: &[NetIn]) -> Result<()> {
    let mut seen = BTreeMap::new();
    for one in wanted.iter().filter(|one| one.host_port != 0) {
        if let Some(other) = seen.insert((one.host_port, &one.protocol), one.container_port) {
            bail!(
                "port {} of the host is to lead to port {other} and to port {}: leave one out",
                one.host_port,
                one.container_port
            );
        }
    }
    Ok(())
}

fn number(text: &str) -> Result<u16> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let port = text.parse().ok().filter(|port| digits && *port != 0);
    port.with_context(|| format!("{text:?} is no port: give a number from 1 to 65535"))
}

/// Parses a port, or a first and a last one.
fn port_range(text: &str) -> Result<(u16, u16)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (number(first)?, number(last)?);
    ensure!(first <= last, "{text}: the first port is the larger one");
    Ok((first, last))
}

/// Parses the argument of `-p`.
fn ports(text: &str) -> Result<Range, String> {
    parse_ports(text).map_err(|error| format!("{error:#}"))
}

fn parse_ports(text: &str) -> Result<Range> {
    let (ends, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let is_udp = match protocol {
        "tcp" => false,
        "udp" => true,
        other => bail!("{other:?} is neither tcp nor udp; expected {PORTS}"),
    };
    let (host, container) = match ends.rsplit_once(':') {
        Some((host, container)) => (Some(host), container),
        None => (None, ends),
    };
    if let Some((address, _)) = host.and_then(|host| host.rsplit_once(':')) {
        bail!(
            "an address of the host cannot be chosen ({address}): mapped ports are on the server's --external-ip"
        );
    }
    let (first, last) = port_range(container)?;
    let count = last - first + 1;
    let host = match host {
        None => 0,
        Some(host) => {
            let (from, to) = port_range(host)?;
            let there = u32::from(to - from) + 1;
            ensure!(
                there == u32::from(count),
                "{there} ports of the host cannot lead to {count} of the container: give as many of both"
            );
            from
        }
    };
    ensure!(usize::from(count) <= MOST, "{count} ports: at most {MOST} can be given as one range");
    Ok(Range { host: host.into(), container: first.into(), count: count.into(), is_udp })
}

/// Parses a rule for what a container may send.
pub fn rule(text: &str) -> Result<NetOutRule, String> {
    parse_rule(text).map_err(|error| format!("{error:#}"))
}

fn parse_rule(text: &str) -> Result<NetOutRule> {
    let named = |(rest, name): (_, &str)| {
        let number = PROTOCOLS.iter().find(|(known, _)| *known == name)?.1;
        Some((rest, number))
    };
    let (rest, protocol) = match text.rsplit_once('/').and_then(named) {
        Some((rest, number)) => (rest, Some(number)),
        None => (text, None),
    };
    let (destination, ports) = destination(rest)?;
    let (first, last) = addresses(destination)?;
    let ports: Vec<PortRange> = match ports {
        None => Vec::new(),
        Some(ports) => {
            let range = |text| port_range(text).map(|(start, end)| PortRange { start, end });
            ports.split(',').map(range).collect::<Result<_>>()?
        }
    };
    let protocol = match (protocol, ports.is_empty()) {
        (None, true) => 0,
        // Ports belong to a protocol; TCP is meant nearly always.
        (None, false) => 1,
        (Some(protocol @ (0 | 3)), false) => {
            let name = PROTOCOLS[usize::from(protocol)].0;
            bail!("{name} has no ports: leave them out, or say /tcp or /udp")
        }
        (Some(3), true) if first.is_ipv6() => ICMPV6,
        (Some(protocol), _) => protocol,
    };
    let networks = vec![IpRange { start: first.to_string(), end: last.to_string() }];
    Ok(NetOutRule { protocol, networks, ports, ..NetOutRule::default() })
}

/// Splits a destination from its ports. Of an IPv6 destination with ports the addresses are in brackets (RFC 3986).
fn destination(text: &str) -> Result<(&str, Option<&str>)> {
    if let Some(rest) = text.strip_prefix('[') {
        let (inside, after) =
            rest.split_once(']').with_context(|| format!("a ] is missing; expected {RULE}"))?;
        let ports = after.strip_prefix(':');
        ensure!(
            ports.is_some() || after.is_empty(),
            "{after:?} after the ] is not understood; expected {RULE}"
        );
        return Ok((inside, ports));
    }
    match text.split_once(':') {
        Some((destination, ports)) if !ports.contains(':') => Ok((destination, Some(ports))),
        _ => Ok((text, None)),
    }
}

/// Parses an address, a network, or a first and a last address.
fn addresses(text: &str) -> Result<(IpAddr, IpAddr)> {
    let address = |text: &str| {
        let wrong = || format!("{text:?} is no IP address; expected {RULE}, such as 10.0.0.0/8:443");
        text.parse::<IpAddr>().ok().with_context(wrong)
    };
    if text.contains('/') {
        let net: IpNet = text.parse().ok().with_context(|| format!("{text:?} is no network"))?;
        let whole = net.trunc();
        ensure!(
            net.addr() == whole.addr(),
            "{text} has bits after its prefix: say {whole} for the network, or {} for the address",
            net.addr()
        );
        return Ok((whole.network(), whole.broadcast()));
    }
    let Some((first, last)) = text.split_once('-') else { return address(text).map(|one| (one, one)) };
    let (first, last) = (address(first)?, address(last)?);
    ensure!(first.is_ipv4() == last.is_ipv4(), "{text}: one end is IPv4, the other IPv6");
    ensure!(first <= last, "{text}: the first address is the larger one");
    Ok((first, last))
}

fn bandwidth(text: &str) -> Result<BandwidthLimits, String> {
    let (rate, burst) = match text.split_once(':') {
        Some((rate, burst)) => (size(rate)?, Some(size(burst)?)),
        None => (size(text)?, None),
    };
    if rate == 0 {
        return Err("a rate of 0 would let nothing pass: leave the flag out for no bound".to_owned());
    }
    Ok(BandwidthLimits { rate, burst: burst.unwrap_or(rate / BURST) })
}

/// Formats a container's mapped port: `80/tcp -> 10.77.0.2:8080`.
fn mapped(info: &ContainerInfo, port: &PortMapping) -> String {
    format!("{}/{} -> {}", port.container_port, name(port), at(info, port))
}

fn name(port: &PortMapping) -> &str {
    if port.protocol.is_empty() { "tcp" } else { &port.protocol }
}

/// The host's end of a mapping, as clients dial it.
fn at(info: &ContainerInfo, port: &PortMapping) -> String {
    match info.external_ip.parse::<IpAddr>() {
        Ok(ip @ IpAddr::V6(_)) => match u16::try_from(port.host_port) {
            Ok(port) => SocketAddr::new(ip, port).to_string(),
            Err(_) => format!("[{ip}]:{}", port.host_port),
        },
        _ => format!("{}:{}", info.external_ip, port.host_port),
    }
}

/// Formats mapped ports for a table: `8080->80/tcp`, the first few of many.
pub fn summary(ports: &[PortMapping]) -> String {
    const SHOWN: usize = 3;
    let one = |port: &PortMapping| format!("{}->{}/{}", port.host_port, port.container_port, name(port));
    let mut shown: Vec<String> = ports.iter().take(SHOWN).map(one).collect();
    if ports.len() > SHOWN {
        shown.push(format!("{} more", ports.len() - SHOWN));
    }
    if shown.is_empty() { "-".to_owned() } else { shown.join(", ") }
}

/// Which mapped ports to list.
#[derive(Debug, ClapArgs)]
pub struct Port {
    #[command(flatten)]
    server: Server,
    /// The container's handle, or the beginning of its id
    handle: String,
    /// A port of the container: print only where it can be reached
    #[arg(value_name = "PORT[/tcp|udp]", value_parser = ports)]
    port: Option<Range>,
}

/// Which ports to map.
#[derive(Debug, ClapArgs)]
pub struct Map {
    #[command(flatten)]
    server: Server,
    /// The container's handle, or the beginning of its id
    handle: String,
    /// Such as 8080:80, 53:53/udp, 8000-8009:80-89; 80 alone takes a host port of the server's pool
    #[arg(required = true, value_name = PORTS, value_parser = ports)]
    ports: Vec<Range>,
}

/// What to allow.
#[derive(Debug, ClapArgs)]
pub struct Allow {
    #[command(flatten)]
    server: Server,
    /// Have the server log each connection that one of these rules lets pass
    #[arg(long)]
    log: bool,
    /// The container's handle, or the beginning of its id
    handle: String,
    /// Such as 10.0.0.0/8, 10.0.0.0/8:443, 10.1.2.3-10.1.2.9:53/udp, 10.0.0.0/8/icmp, [fd00::/8]:443
    #[arg(required = true, value_name = RULE, value_parser = rule)]
    rules: Vec<NetOutRule>,
}

/// Lists the ports of the host that lead to a container.
pub fn port(args: Port) -> Result<ExitCode> {
    let Port { server, handle, port: wanted } = args;
    if wanted.as_ref().is_some_and(|wanted| wanted.host != 0 || wanted.count != 1) {
        return Err(mistake(anyhow::anyhow!("name one port of the container, such as 80 or 53/udp")));
    }
    let client = server.client()?;
    let info = block_on(async {
        let handle = server.named(&client, &handle).await?;
        client.info(&handle).await.map_err(|error| server.explain(error))
    })?;
    let ports = info.mapped_ports.as_deref().unwrap_or_default();
    let Some(Range { container, is_udp, .. }) = wanted else {
        let lines: String = ports.iter().map(|port| mapped(&info, port) + "\n").collect();
        print::text(&lines)?;
        return Ok(ExitCode::SUCCESS);
    };
    let is_it = |port: &&PortMapping| port.container_port == container && port.protocol == protocol(is_udp);
    let lines: String = ports.iter().filter(is_it).map(|port| at(&info, port) + "\n").collect();
    ensure!(
        !lines.is_empty(),
        "no port of the host leads to port {container}/{} of {handle}: `wardian map {handle} {container}{}` makes one",
        if is_udp { "udp" } else { "tcp" },
        if is_udp { "/udp" } else { "" }
    );
    print::text(&lines)?;
    Ok(ExitCode::SUCCESS)
}

/// Finds a mapping of the container's that keeps a wanted one from having an effect: of a port of the host that leads to
/// several, Garden's servers heed the first mapping, and report the others.
fn elsewhere<'a>(ports: &'a [PortMapping], wanted: &'a NetIn) -> Option<(&'a PortMapping, &'a NetIn)> {
    let is_same = |port: &&PortMapping| {
        (port.host_port, &port.protocol) == (wanted.host_port, &wanted.protocol)
            && port.container_port != wanted.container_port
    };
    ports.iter().find(is_same).map(|port| (port, wanted))
}

/// Maps ports of a container that is there, and prints where they can be reached.
pub fn map(args: Map) -> Result<ExitCode> {
    let Map { server, handle, ports } = args;
    let wanted: Vec<NetIn> = ports.iter().flat_map(Range::each).collect();
    twice(&wanted).map_err(mistake)?;
    let client = server.client()?;
    block_on(async {
        let handle = server.named(&client, &handle).await?;
        let info = client.info(&handle).await.map_err(|error| server.explain(error))?;
        let mapped_ports = info.mapped_ports.as_deref().unwrap_or_default();
        if let Some((port, wanted)) = wanted.iter().find_map(|wanted| elsewhere(mapped_ports, wanted)) {
            bail!(
                "port {}/{} of the host leads to port {} of {handle} already, and would not lead to port {}",
                port.host_port,
                name(port),
                port.container_port,
                wanted.container_port
            );
        }
        for wanted in &wanted {
            let made = client.net_in(&handle, wanted).await.map_err(|error| server.explain(error))?;
            let NetIn { host_port, container_port, protocol } = made;
            let port = PortMapping { host_port, container_port, protocol };
            print::text(&format!("{}\n", mapped(&info, &port)))?;
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// Lets a container that is there reach what the server denies it: all rules, or none if one is refused.
pub fn allow(args: Allow) -> Result<ExitCode> {
    let Allow { server, log, handle, rules } = args;
    let rules: Vec<NetOutRule> = rules.into_iter().map(|rule| NetOutRule { log, ..rule }).collect();
    let client = server.client()?;
    block_on(async {
        let handle = server.named(&client, &handle).await?;
        client.bulk_net_out(&handle, &rules).await.map_err(|error| server.explain(error))
    })?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn netin(text: &str) -> Vec<(u32, u32, String)> {
        let range = parse_ports(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        range.each().map(|one| (one.host_port, one.container_port, one.protocol)).collect()
    }

    #[test]
    fn ports_of_the_host_lead_to_those_of_the_container() {
        assert_eq!(netin("8080:80"), [(8080, 80, String::new())]);
        assert_eq!(netin("8080:80/tcp"), netin("8080:80"));
        assert_eq!(netin("53:53/udp"), [(53, 53, "udp".to_owned())]);
        assert_eq!(netin("80"), [(0, 80, String::new())]);
        assert_eq!(netin("80-81/udp"), [(0, 80, "udp".to_owned()), (0, 81, "udp".to_owned())]);
        let range = netin("8000-8010:80-90");
        assert_eq!((range.len(), range[10].0, range[10].1), (11, 8010, 90));
        assert_eq!(netin("65535:1"), [(65535, 1, String::new())]);
    }

    #[test]
    fn what_is_no_port_mapping_is_explained() {
        for (bad, why) in [
            ("", "\"\" is no port"),
            ("0", "from 1 to 65535"),
            ("8080:65536", "\"65536\" is no port"),
            ("http:80", "\"http\" is no port"),
            ("+80", "\"+80\" is no port"),
            (":80", "\"\" is no port"),
            ("80:", "\"\" is no port"),
            ("80/sctp", "neither tcp nor udp"),
            ("90-80", "the first port is the larger one"),
            ("8000-8001:80", "2 ports of the host cannot lead to 1"),
            ("127.0.0.1:8080:80", "--external-ip"),
            ("[::1]:8080:80", "--external-ip"),
            ("1-65535", "at most 1024"),
        ] {
            let error = parse_ports(bad).unwrap_err().to_string();
            assert!(error.contains(why), "{bad}: {error}");
        }
    }

    #[test]
    fn a_port_of_the_host_leads_to_one_place() {
        let each = |text: &&str| parse_ports(text).unwrap().each();
        let check = |all: &[&str]| twice(&all.iter().flat_map(each).collect::<Vec<_>>());
        assert!(check(&["53:53", "53:53/udp", "80", "80"]).is_ok());
        let error = check(&["8000-8002:80-82", "8001:443"]).unwrap_err().to_string();
        assert!(error.contains("port 8001 of the host is to lead to port 81 and to port 443"), "{error}");
    }

    /// The protocol, the first and the last address, and the ports.
    fn shown(text: &str) -> String {
        let rule = parse_rule(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        let ports: Vec<String> = rule.ports.iter().map(|p| format!("{}-{}", p.start, p.end)).collect();
        let [IpRange { start, end }] = &rule.networks[..] else { panic!("{rule:?}") };
        format!("{} {start} {end} {}", rule.protocol, ports.join(","))
    }

    #[test]
    fn rules_name_destinations_ports_and_protocols() {
        for (text, rule) in [
            ("10.0.0.0/8", "0 10.0.0.0 10.255.255.255 "),
            ("10.0.0.0/8:443", "1 10.0.0.0 10.255.255.255 443-443"),
            ("10.0.0.0/8:443/tcp", "1 10.0.0.0 10.255.255.255 443-443"),
            ("10.0.0.0/8/tcp", "1 10.0.0.0 10.255.255.255 "),
            ("10.1.2.3", "0 10.1.2.3 10.1.2.3 "),
            ("10.1.2.3:80,8000-8010", "1 10.1.2.3 10.1.2.3 80-80,8000-8010"),
            ("10.1.2.3-10.1.2.9:53/udp", "2 10.1.2.3 10.1.2.9 53-53"),
            ("10.0.0.0/8/icmp", "3 10.0.0.0 10.255.255.255 "),
            ("10.0.0.0/8/all", "0 10.0.0.0 10.255.255.255 "),
            ("0.0.0.0/0:53/udp", "2 0.0.0.0 255.255.255.255 53-53"),
            ("fd00::1", "0 fd00::1 fd00::1 "),
            ("fd00::/64/icmp", "4 fd00:: fd00::ffff:ffff:ffff:ffff "),
            ("[fd00::/64]:443", "1 fd00:: fd00::ffff:ffff:ffff:ffff 443-443"),
            ("[fd00::1]", "0 fd00::1 fd00::1 "),
            ("[fd00::1-fd00::9]:53/udp", "2 fd00::1 fd00::9 53-53"),
        ] {
            assert_eq!(shown(text), rule, "{text}");
        }
    }

    #[test]
    fn what_is_no_rule_is_explained() {
        for (bad, why) in [
            ("", "is no IP address"),
            ("example.com:443", "\"example.com\" is no IP address"),
            ("10.0.0.0/33", "is no network"),
            ("10.0.0.5/8", "say 10.0.0.0/8 for the network, or 10.0.0.5"),
            ("10.0.0.0/8/sctp", "is no network"),
            ("10.0.0.9-10.0.0.1", "the first address is the larger one"),
            ("10.0.0.1-fd00::1", "one end is IPv4"),
            ("10.0.0.0/8:", "\"\" is no port"),
            ("10.0.0.0/8:0", "\"0\" is no port"),
            ("10.0.0.0/8:443/icmp", "icmp has no ports"),
            ("10.0.0.0/8:443/all", "all has no ports"),
            ("[fd00::1", "a ] is missing"),
            ("[fd00::1]443", "after the ]"),
            (":443", "is no IP address"),
        ] {
            let error = format!("{:#}", parse_rule(bad).unwrap_err());
            assert!(error.contains(why), "{bad}: {error}");
        }
    }

    #[test]
    fn a_rate_has_a_burst() {
        let limits = |text: &str| bandwidth(text).map(|limits| (limits.rate, limits.burst));
        assert_eq!(limits("1M:64K"), Ok((1 << 20, 64 << 10)));
        assert_eq!(limits("10MB"), Ok((10_000_000, 1_000_000)));
        assert!(limits("0").unwrap_err().contains("leave the flag out"));
        for bad in ["", "1M:", ":1M", "fast", "1M:1M:1M"] {
            assert!(limits(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn all_flags_are_in_the_spec() {
        let network = Network {
            ports: vec![parse_ports("8080:80").unwrap()],
            allow: vec![parse_rule("10.0.0.0/8:443").unwrap()],
            allow_log: true,
            network: Some("10.9.0.0/24".into()),
            bandwidth: Some(bandwidth("1M").unwrap()),
            dns: vec!["10.0.0.53".parse().unwrap(), "fd00::53".parse().unwrap()],
        };
        let mut spec = ContainerSpec::default();
        network.enter(&mut spec).unwrap();
        assert_eq!((spec.netin.len(), spec.network.as_str()), (1, "10.9.0.0/24"));
        assert!(spec.netout_rules[0].log && spec.limits.bandwidth_limits.rate == 1 << 20);
        assert_eq!(spec.properties[DNS], "10.0.0.53,fd00::53");
        assert!(network.enter(&mut spec).is_err(), "the property is there");
        let network = Network { network: Some("ns:/run/netns/a".into()), ..Network::default() };
        let mut spec = ContainerSpec::default();
        network.enter(&mut spec).unwrap();
        assert_eq!((spec.network.as_str(), &*spec.properties[given::PROPERTY]), ("", "/run/netns/a"));
        let error = network.enter(&mut spec).unwrap_err().to_string();
        assert!(error.contains("--network ns:PATH and --property"), "{error}");
    }

    #[test]
    fn mapped_ports_are_shown_as_they_are_dialled() {
        let port = |host_port, container_port, protocol: &str| PortMapping {
            host_port,
            container_port,
            protocol: protocol.into(),
        };
        let mut info = ContainerInfo { external_ip: "10.77.0.2".into(), ..ContainerInfo::default() };
        assert_eq!(summary(info.mapped_ports.as_deref().unwrap_or_default()), "-");
        info.mapped_ports = Some(vec![port(8080, 80, ""), port(53, 53, "udp")]);
        let ports = info.mapped_ports.clone().unwrap();
        assert_eq!(mapped(&info, &ports[0]), "80/tcp -> 10.77.0.2:8080");
        assert_eq!(summary(info.mapped_ports.as_deref().unwrap_or_default()), "8080->80/tcp, 53->53/udp");
        info.external_ip = "fd00::2".into();
        assert_eq!(mapped(&info, &ports[1]), "53/udp -> [fd00::2]:53");
        info.mapped_ports = Some((1..=9).map(|n| port(n, n, "")).collect());
        assert_eq!(
            summary(info.mapped_ports.as_deref().unwrap_or_default()),
            "1->1/tcp, 2->2/tcp, 3->3/tcp, 6 more"
        );
    }
}
