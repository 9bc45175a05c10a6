//! The `network` field of a create: which subnet and address a container asks for (Garden server §4.2).

use ipnet::Ipv4Net;
use std::net::{Ipv4Addr, Ipv6Addr};

/// The longest text that can be a network: the longest IPv6 address, a slash and a prefix length take 49 bytes.
const LONGEST: usize = 64;
/// The prefix length of a request that names none: network, gateway, one container, broadcast.
const DEFAULT_PREFIX: u8 = 30;
/// The prefix lengths that a subnet may have. A longer one has no address for a container; a shorter one would take
/// most of the host's routes away.
const PREFIXES: std::ops::RangeInclusive<u8> = 8..=30;
/// Networks that no container can be in, and their names in the registry of special-purpose addresses (RFC 6890).
const RESERVED: [(Ipv4Net, &str); 5] = [
    (net(0, 0, 8), "this host"),
    (net(127, 0, 8), "loopback"),
    (net(169, 254, 16), "link-local"),
    (net(224, 0, 4), "multicast"),
    (net(240, 0, 4), "reserved"),
];

const fn net(a: u8, b: u8, prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, 0, 0), prefix)
}

/// What a create asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// A subnet of the pool, for this container alone.
    Dynamic,
    /// Any free address of this subnet, which containers share that ask for the same one.
    Subnet(Ipv4Net),
    /// One address of such a subnet.
    Address {
        /// The subnet.
        subnet: Ipv4Net,
        /// The address, which is inside it and is not its first.
        ip: Ipv4Addr,
    },
}

/// Why a network cannot be given to containers.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// The text is not an address with a prefix length. The text of the error is that of Go's `net.ParseCIDR`.
    #[error("invalid CIDR address: {0}")]
    Cidr(String),
    /// The text is what the server's own `--network` may be.
    #[error(
        "network: {0:?} is a driver, which is chosen for all containers (wardian serve --network); that of one container is an address, a subnet, or none"
    )]
    Driver(String),
    /// The text is an IPv6 network.
    #[error("the requested network ({0}) is IPv6; a container's IPv6 address follows from its IPv4 address")]
    Ipv6(String),
    /// The subnet is too small or too large.
    #[error("the requested subnet ({0}) must have a prefix length of {first} to {last}", first = PREFIXES.start(), last = PREFIXES.end())]
    Prefix(Ipv4Net),
    /// The subnet contains addresses that mean something else everywhere.
    #[error("the requested subnet ({subnet}) overlaps {range} ({name})")]
    Reserved {
        /// The subnet asked for.
        subnet: Ipv4Net,
        /// The range of special addresses.
        range: Ipv4Net,
        /// What the range is for.
        name: &'static str,
    },
}

impl Request {
    /// Parses the field: empty, an address, or a subnet in CIDR notation.
    ///
    /// # Errors
    ///
    /// The text is no IPv4 network, or no container can be in that network.
    pub fn parse(spec: &str) -> Result<Self, Error> {
        if spec.is_empty() {
            return Ok(Self::Dynamic);
        }
        if spec == "bridge" || ["plugin:", "cni:"].iter().any(|driver| spec.starts_with(driver)) {
            return Err(Error::Driver(clipped(spec)));
        }
        let cidr = match spec.contains('/') {
            true => spec.to_owned(),
            false => format!("{}/{DEFAULT_PREFIX}", clipped(spec)),
        };
        let Some((address, prefix)) = cidr.split_once('/').filter(|_| spec.len() <= LONGEST) else {
            return Err(Error::Cidr(clipped(&cidr)));
        };
        // As Go's parser: digits alone, of which the first may be zeros.
        let digits = !prefix.is_empty() && prefix.bytes().all(|b| b.is_ascii_digit());
        let length = prefix.parse::<u8>().ok().filter(|_| digits);
        if address.parse::<Ipv6Addr>().is_ok() && length.is_some_and(|length| length <= 128) {
            return Err(Error::Ipv6(cidr));
        }
        let parsed = address.parse().ok().zip(length).and_then(|(ip, length)| Ipv4Net::new(ip, length).ok());
        let net = parsed.ok_or_else(|| Error::Cidr(clipped(&cidr)))?;
        let subnet = net.trunc();
        check_subnet(subnet)?;
        if net.addr() == subnet.addr() {
            return Ok(Self::Subnet(subnet));
        }
        Ok(Self::Address { subnet, ip: net.addr() })
    }
}

/// Checks that containers can be in a subnet, whatever else uses it.
///
/// # Errors
///
/// Its prefix length is out of range, or it overlaps addresses of a special meaning.
pub fn check_subnet(subnet: Ipv4Net) -> Result<(), Error> {
    if !PREFIXES.contains(&subnet.prefix_len()) {
        return Err(Error::Prefix(subnet));
    }
    // Networks either contain each other or have no address in common.
    let overlaps = |range: &Ipv4Net| range.contains(&subnet.network()) || subnet.contains(&range.network());
    match RESERVED.into_iter().find(|(range, _)| overlaps(range)) {
        Some((range, name)) => Err(Error::Reserved { subnet, range, name }),
        None => Ok(()),
    }
}

/// A client's text for an error: no longer than needed, and without characters that control a terminal.
fn clipped(text: &str) -> String {
    let mut chars = text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c });
    let mut cut: String = chars.by_ref().take(LONGEST).collect();
    if chars.next().is_some() {
        cut.push('…');
    }
    cut
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(spec: &str) -> String {
        Request::parse(spec).unwrap_err().to_string()
    }

    #[test]
    fn networks_are_read_as_garden_reads_them() {
        let subnet = |text: &str| Request::Subnet(text.parse().unwrap());
        let address = |text: &str, ip: &str| Request::Address {
            subnet: text.parse().unwrap(),
            ip: ip.parse().unwrap(),
        };
        for (spec, request) in [
            ("", Request::Dynamic),
            ("10.1.2.0", subnet("10.1.2.0/30")),
            ("10.1.2.3", address("10.1.2.0/30", "10.1.2.3")),
            ("10.253.0.0/16", subnet("10.253.0.0/16")),
            ("10.253.7.9/16", address("10.253.0.0/16", "10.253.7.9")),
            ("10.0.0.0/8", subnet("10.0.0.0/8")),
            // Go takes zeros before a prefix length.
            ("10.1.2.0/024", subnet("10.1.2.0/24")),
        ] {
            assert_eq!(Request::parse(spec), Ok(request), "{spec}");
        }
    }

    #[test]
    fn what_is_no_network_is_refused_with_the_text_of_go() {
        for (spec, shown) in [
            ("not-a-cidr", "not-a-cidr/30"),
            ("10.1.2", "10.1.2/30"),
            ("10.1.2.3/", "10.1.2.3/"),
            ("10.1.2.3/33", "10.1.2.3/33"),
            ("10.1.2.3/256", "10.1.2.3/256"),
            ("10.1.2.3/+8", "10.1.2.3/+8"),
            ("10.1.2.3/8/8", "10.1.2.3/8/8"),
            ("10.1.2.03/8", "10.1.2.03/8"),
            (" 10.1.2.3/24", " 10.1.2.3/24"),
            ("/24", "/24"),
            ("a\n\u{1b}b", "a\u{fffd}\u{fffd}b/30"),
            ("fd00::/129", "fd00::/129"),
        ] {
            assert_eq!(error(spec), format!("invalid CIDR address: {shown}"));
        }
    }

    #[test]
    fn a_long_text_is_cut() {
        for long in ["1".repeat(1 << 20), "é".repeat(1 << 20), format!("10.0.0.0/{}8", "0".repeat(1 << 20))]
        {
            let error = error(&long);
            assert!(error.starts_with("invalid CIDR address: "), "{error}");
            assert!(error.len() < 200, "{}", error.len());
        }
    }

    #[test]
    fn networks_that_containers_cannot_be_in_are_refused() {
        let prefix =
            |shown: &str| format!("the requested subnet ({shown}) must have a prefix length of 8 to 30");
        assert_eq!(error("10.0.0.0/31"), prefix("10.0.0.0/31"));
        assert_eq!(error("10.0.0.1/32"), prefix("10.0.0.1/32"));
        assert_eq!(error("0.0.0.0/0"), prefix("0.0.0.0/0"));
        assert_eq!(error("10.0.0.0/7"), prefix("10.0.0.0/7"));
        let reserved =
            |subnet: &str, range: &str| format!("the requested subnet ({subnet}) overlaps {range}");
        for (spec, subnet, range) in [
            ("127.0.0.1", "127.0.0.0/30", "127.0.0.0/8 (loopback)"),
            ("0.1.0.0/16", "0.1.0.0/16", "0.0.0.0/8 (this host)"),
            ("169.254.0.0/24", "169.254.0.0/24", "169.254.0.0/16 (link-local)"),
            ("169.0.0.0/8", "169.0.0.0/8", "169.254.0.0/16 (link-local)"),
            ("239.1.0.0/16", "239.1.0.0/16", "224.0.0.0/4 (multicast)"),
            ("255.255.255.252/30", "255.255.255.252/30", "240.0.0.0/4 (reserved)"),
        ] {
            assert_eq!(error(spec), reserved(subnet, range));
        }
        assert!(error("fd00::1/64").contains("(fd00::1/64) is IPv6"));
        assert!(error("::1").contains("(::1/30) is IPv6"));
    }
}
