//! The network of one container, as its record keeps it.

use crate::ports::Mapping;
use crate::{given, outside};
use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A container's network, as its record keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// A port on a bridge of ours.
    Bridged(State),
    /// What other programs make.
    Outside(Box<outside::State>),
    /// A network namespace of the operator's, in which nothing is ours.
    Given(given::State),
}

impl Network {
    /// Returns the container's address, if there is one.
    pub fn ip(&self) -> Option<IpAddr> {
        match self {
            Self::Bridged(state) => Some(state.ip.into()),
            Self::Outside(state) => state.ip,
            Self::Given(state) => state.ip.map(IpAddr::from),
        }
    }

    /// Returns its IPv6 address.
    pub fn ipv6(&self) -> Option<Ipv6Addr> {
        match self {
            Self::Bridged(state) => state.ipv6.map(|net| net.addr()),
            Self::Outside(state) => state.ipv6,
            Self::Given(state) => state.ipv6,
        }
    }

    /// Returns the host's address in the network; empty if it is not known.
    pub fn host_ip(&self) -> String {
        match self {
            Self::Bridged(state) => state.gateway().to_string(),
            Self::Outside(state) => state.host_ip.clone(),
            Self::Given(_) => String::new(),
        }
    }

    /// Returns the host's address to which mapped ports belong, if ports can be mapped.
    pub fn external(&self) -> Option<IpAddr> {
        match self {
            Self::Bridged(state) => Some(state.external),
            Self::Outside(state) => Some(state.external),
            Self::Given(_) => None,
        }
    }

    /// Returns the ports of the host that lead to the container, in the order of their requests.
    pub fn mappings(&self) -> &[Mapping] {
        match self {
            Self::Bridged(state) => &state.mappings,
            Self::Outside(state) => &state.mappings,
            Self::Given(_) => &[],
        }
    }

    /// Adds a mapping.
    pub fn add(&mut self, mapping: Mapping) {
        match self {
            Self::Bridged(state) => state.mappings.push(mapping),
            Self::Outside(state) => state.mappings.push(mapping),
            // No port is reserved for it.
            Self::Given(_) => {}
        }
    }

    /// Returns the bounds of its traffic.
    pub fn bandwidth(&self) -> Option<Bandwidth> {
        match self {
            Self::Bridged(state) => state.bandwidth,
            Self::Outside(state) => state.bandwidth,
            Self::Given(_) => None,
        }
    }
}

/// Returns Garden's property of mapped ports, as JSON.
pub fn mapped(mappings: &[Mapping]) -> String {
    let pair = |Mapping { host, container, .. }: &Mapping| {
        format!("{{\"HostPort\":{host},\"ContainerPort\":{container}}}")
    };
    format!("[{}]", mappings.iter().map(pair).collect::<Vec<_>>().join(","))
}

/// A container's network on a bridge of ours. Names of links follow from it, and all that the firewall needs to know but the
/// egress rules.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Eleven characters of base 32, which name the container's links and chains.
    pub id: String,
    /// The number of its link on the host.
    pub link: u32,
    /// The subnet of its bridge.
    pub subnet: Ipv4Net,
    /// Its address.
    pub ip: Ipv4Addr,
    /// Its IPv6 address and the length of the subnet's prefix.
    pub ipv6: Option<Ipv6Net>,
    /// The MAC address of the link inside.
    pub mac: [u8; 6],
    /// The host's address to which mapped ports belong.
    pub external: IpAddr,
    /// Bytes of the largest packet.
    pub mtu: u32,
    /// Bounds of its traffic, both ways.
    #[serde(default)]
    pub bandwidth: Option<Bandwidth>,
    /// The container's own name servers; none: those of the instance.
    #[serde(default)]
    pub dns: Vec<IpAddr>,
    /// Ports of the host that lead to the container, in the order of their requests.
    pub mappings: Vec<Mapping>,
}

/// A bound of traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bandwidth {
    /// Bytes per second.
    pub rate: u64,
    /// Bytes that may pass at once.
    pub burst: u32,
}

impl State {
    /// Returns the name of the host's end of the veth pair.
    pub fn host_link(&self) -> String {
        format!("w{}-0", self.id)
    }

    /// Returns the name of the container's end.
    pub fn inside_link(&self) -> String {
        format!("w{}-1", self.id)
    }

    /// Returns the name of the device that bounds what the container sends.
    pub fn limiter(&self) -> String {
        format!("w{}-2", self.id)
    }

    /// Returns the name of the subnet's bridge.
    pub fn bridge(&self) -> String {
        bridge_name(self.subnet)
    }

    /// Returns the bridge's address, the container's way out.
    pub fn gateway(&self) -> Ipv4Addr {
        gateway(self.subnet)
    }

    /// Returns the bridge's IPv6 address.
    pub fn gateway_v6(&self) -> Option<Ipv6Addr> {
        self.ipv6.map(|net| beside(net, self.gateway()).addr())
    }
}

/// Returns the name of a subnet's bridge, as Garden names it.
pub fn bridge_name(subnet: Ipv4Net) -> String {
    format!("wbrdg-{:08x}", u32::from(subnet.network()))
}

/// Returns the address of a subnet's bridge: the first one after the network's own.
pub fn gateway(subnet: Ipv4Net) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(subnet.network()) + 1)
}

/// Returns the IPv6 address that belongs to an IPv4 address: the low 32 bits are the same.
pub fn beside(net: Ipv6Net, ip: Ipv4Addr) -> Ipv6Net {
    let high = u128::from(net.addr()) & !u128::from(u32::MAX);
    let address = Ipv6Addr::from(high | u128::from(u32::from(ip)));
    // The prefix length was valid before.
    Ipv6Net::new(address, net.prefix_len()).unwrap_or(net)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_addresses_follow_from_the_state() {
        let state = State {
            id: "qkss70he4db".into(),
            link: 7,
            subnet: "10.254.0.4/30".parse().unwrap(),
            ip: "10.254.0.6".parse().unwrap(),
            ipv6: Some("fd00:1::afe:6/126".parse().unwrap()),
            mac: [2; 6],
            external: "10.77.0.2".parse().unwrap(),
            mtu: 1500,
            bandwidth: None,
            dns: Vec::new(),
            mappings: Vec::new(),
        };
        assert_eq!(state.host_link(), "wqkss70he4db-0");
        assert_eq!(state.inside_link(), "wqkss70he4db-1");
        assert_eq!(state.bridge(), "wbrdg-0afe0004");
        assert_eq!(state.gateway().to_string(), "10.254.0.5");
        assert_eq!(state.gateway_v6().unwrap().to_string(), "fd00:1::afe:5");
        assert_eq!(crate::link::link_local(state.ip).to_string(), "fe80::afe:6");
    }
}
