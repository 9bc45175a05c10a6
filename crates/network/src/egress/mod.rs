//! Rules for what a container may send (Garden server §4.6, NetOut), and their compiler.
//!
//! Every rule allows something and may ask for a log of it. They are evaluated from the last to the first, which
//! matters for the log alone. A container may have thousands of them, so they are not evaluated one by one in the
//! kernel: [`compile`] turns each run of rules that do the same into sets of disjoint boxes, which an nftables set
//! looks up in one step. (Its sets of concatenated ranges refuse elements that overlap; see nft(8), SETS.)

mod compile;
mod cover;
#[cfg(test)]
mod tests;

pub use compile::{Boxes, IcmpBox, MAX_BOXES, Step, TransportBox, compile};

use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::IpAddr;

/// The most rules of a container.
pub const MAX_RULES: usize = 10_000;
/// The most networks, and the most ranges of ports, of a rule.
pub const MAX_RANGES: usize = 1024;
/// The most pairs of a network and a range of ports in all rules of a container. The time of [`compile`] grows with
/// them.
pub const MAX_PAIRS: usize = 1 << 18;
/// The most steps of a container: the kernel looks at one after the other when a connection begins.
pub const MAX_STEPS: usize = 512;

/// The ICMP type that stands for all types. iptables(8) has this from ip_tables' first versions, and clients that
/// mean "all" send -1, which is 255 in Garden's JSON.
const ANY_TYPE: u8 = 255;

/// Why rules cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// Garden's number stands for no protocol. The text is Garden's.
    #[error("invalid protocol: {0}")]
    Protocol(u8),
    /// The protocol has no ports. The text is Garden's.
    #[error("Ports cannot be specified for Protocol {0}")]
    Ports(Protocol),
    /// The protocol has no types.
    #[error("ICMP types cannot be specified for Protocol {0}")]
    Types(Protocol),
    /// The ends of a network are an IPv4 and an IPv6 address.
    #[error("the network {start}-{end} is IPv4 at one end and IPv6 at the other")]
    Mixed {
        /// The first address.
        start: IpAddr,
        /// The last address.
        end: IpAddr,
    },
    /// The network's addresses cannot be destinations of the protocol.
    #[error("the network {start}-{end} cannot be specified for Protocol {protocol}")]
    Family {
        /// The first address.
        start: IpAddr,
        /// The last address.
        end: IpAddr,
        /// The protocol.
        protocol: Protocol,
    },
    /// The container has no IPv6 address.
    #[error("the network {start}-{end} is IPv6, which containers do not have here")]
    NoIpv6 {
        /// The first address.
        start: IpAddr,
        /// The last address.
        end: IpAddr,
    },
    /// There is too much of something.
    #[error("{count} {what} in rules for outgoing traffic, of which {most} are allowed")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How much there is.
        count: usize,
        /// How much there may be.
        most: usize,
    },
    /// The rules overlap in a way that takes too many boxes.
    #[error("rules for outgoing traffic that take more than {MAX_BOXES} elements of sets")]
    Boxes,
}

/// The protocols in the order of Garden's numbers.
const GARDENS: [Protocol; 5] = [Protocol::All, Protocol::Tcp, Protocol::Udp, Protocol::Icmp, Protocol::Icmp6];

/// What a rule is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Every protocol above IP.
    All,
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP, the control messages of IPv4.
    Icmp,
    /// ICMPv6, the control messages of IPv6.
    Icmp6,
}

impl Protocol {
    /// Returns the protocol of Garden's number (`protocol` of a NetOutRule).
    ///
    /// # Errors
    ///
    /// The number stands for none.
    pub fn from_garden(number: u8) -> Result<Self, Error> {
        GARDENS.get(usize::from(number)).copied().ok_or(Error::Protocol(number))
    }

    /// Returns Garden's number.
    pub fn to_garden(self) -> u8 {
        GARDENS
            .iter()
            .zip(0..)
            .find_map(|(protocol, number)| (*protocol == self).then_some(number))
            .unwrap_or(0)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::All => "ALL",
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Icmp => "ICMP",
            Self::Icmp6 => "ICMPv6",
        })
    }
}

/// A rule: a packet is allowed if its destination is in one of the networks *and* in one of the ports. A range whose
/// end is before its start contains nothing, as in iptables.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// The protocol.
    pub protocol: Protocol,
    /// The first and the last address of each network; none: all addresses of both families. See [`networks`].
    #[serde(default)]
    pub networks: Vec<(IpAddr, IpAddr)>,
    /// The first and the last port of each range; none: all ports. Only for protocols that have ports.
    #[serde(default)]
    pub ports: Vec<(u16, u16)>,
    /// ICMP type, and code if not all are meant; none: all types, as is type 255.
    #[serde(default)]
    pub icmp: Option<(u8, Option<u8>)>,
    /// New connections that the rule allows are logged.
    #[serde(default)]
    pub log: bool,
}

impl Rule {
    /// Checks a rule. Without `ipv6` it must not be about IPv6, as in Garden.
    ///
    /// # Errors
    ///
    /// The rule has what its protocol does not, or too many ranges.
    pub fn check(&self, ipv6: bool) -> Result<(), Error> {
        let protocol = self.protocol;
        if protocol == Protocol::Icmp6 && !ipv6 {
            return Err(Error::Protocol(4));
        }
        if !self.ports.is_empty() && !matches!(protocol, Protocol::Tcp | Protocol::Udp) {
            return Err(Error::Ports(protocol));
        }
        if self.icmp.is_some() && !matches!(protocol, Protocol::Icmp | Protocol::Icmp6) {
            return Err(Error::Types(protocol));
        }
        at_most("networks of a rule", self.networks.len(), MAX_RANGES)?;
        at_most("ranges of ports of a rule", self.ports.len(), MAX_RANGES)?;
        for &(start, end) in &self.networks {
            let (start, end) = (start.to_canonical(), end.to_canonical());
            if start.is_ipv4() != end.is_ipv4() {
                return Err(Error::Mixed { start, end });
            }
            if start.is_ipv6() && !ipv6 {
                return Err(Error::NoIpv6 { start, end });
            }
            let other = if start.is_ipv4() { Protocol::Icmp6 } else { Protocol::Icmp };
            if protocol == other {
                return Err(Error::Family { start, end, protocol });
            }
        }
        Ok(())
    }

    /// The pairs of a network and a range of ports.
    fn pairs(&self) -> usize {
        self.networks.len().max(1) * self.ports.len().max(1)
    }
}

/// Checks all rules of a container. See [`Rule::check`].
///
/// # Errors
///
/// A rule is wrong, or they are too many.
pub fn check(rules: &[Rule], ipv6: bool) -> Result<(), Error> {
    at_most("rules", rules.len(), MAX_RULES)?;
    rules.iter().try_for_each(|rule| rule.check(ipv6))?;
    at_most("pairs of networks and ports", rules.iter().map(Rule::pairs).sum(), MAX_PAIRS)
}

/// Returns the networks of a rule from ranges of which either end may be missing: such a range has one address. A
/// range without both is everything, and then so is the rule.
pub fn networks(ends: impl IntoIterator<Item = (Option<IpAddr>, Option<IpAddr>)>) -> Vec<(IpAddr, IpAddr)> {
    let mut networks = Vec::new();
    for (start, end) in ends {
        let Some((start, end)) = start.or(end).zip(end.or(start)) else { return Vec::new() };
        networks.push((start.to_canonical(), end.to_canonical()));
    }
    networks
}

fn at_most(what: &'static str, count: usize, most: usize) -> Result<(), Error> {
    if count <= most { Ok(()) } else { Err(Error::TooMany { what, count, most }) }
}
