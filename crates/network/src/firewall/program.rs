//! What the firewall is told about: what is the same for all containers, and containers.

use crate::egress::Step;
use crate::ports::Mapping;
use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Everything that is the same for all containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// The interface group (`IFLA_GROUP`) of the instance's bridges and host ends; not 0, which is the host's default.
    pub group: u32,
    /// Networks that containers cannot reach.
    pub deny: Vec<IpNet>,
    /// Exceptions to them.
    pub allow: Vec<IpNet>,
    /// Whether containers may reach the host's own addresses.
    pub host_access: bool,
    /// Addresses of the host at which containers may ask for names in any case (port 53).
    pub dns: Vec<IpAddr>,
    /// The most flows that a container begins at a time; 0: no bound.
    pub flows: u32,
    /// The group of nfnetlink_log that gets what is logged.
    pub log_group: u16,
}

/// A container, as far as the firewall is concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Names its chains and sets: 1 to 16 of the characters 0-9 and a-z.
    pub id: String,
    /// For comments and the log.
    pub handle: String,
    /// The name of its bridge.
    pub bridge: String,
    /// The name of its port of the bridge, the host end of its veth pair.
    pub port: String,
    /// The MAC address of its own end.
    pub mac: [u8; 6],
    /// Its IPv4 address.
    pub v4: Ipv4Addr,
    /// Its global and its link-local IPv6 address.
    pub v6: Option<(Ipv6Addr, Ipv6Addr)>,
    /// The host's addresses at which its mapped ports are.
    pub external: Vec<IpAddr>,
    /// Its mapped ports. Of several with the same host port and protocol the first one counts.
    pub mappings: Vec<Mapping>,
    /// What it may send although the policy denies it: the first step that matches allows a packet. What matches none
    /// is subject to the policy.
    pub egress: Vec<Step>,
}
