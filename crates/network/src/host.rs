//! The host around the networks of containers: what its kernel lacks, what other programs have set up, and what
//! instances have left. This is for checks and for cleaning up; no container needs it.

pub use crate::bridged::filters_bridges;
use crate::conntrack::Conntrack;
use crate::egress::{self, Rule};
use crate::error::Result;
use crate::firewall::{self, Firewall, program};
use crate::link::{self, Link};
use crate::netlink::{Connection, Protocol};
use crate::nft::Family;
use crate::ports::{Mapping, Transport};
use crate::route::{self, Foreign, overlap};
use crate::tc;
use ipnet::Ipv4Net;
use std::collections::{BTreeMap, HashSet};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd as _, BorrowedFd};
use wardian_sys::namespace;
use wardian_sys::text::chain;

/// The group of the links that trials make, in a namespace of their own.
const GROUP: u32 = 1 << 30;
/// The prefix of the names of an instance's tables; its tag follows.
const TABLE: &str = "wardian-";

/// Something that the network needs of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Bridges and veth pairs. No container has a network without them.
    Links,
    /// The firewall. No container has a network without it.
    Firewall,
    /// Limits of the bandwidth. A create with such a limit fails without them.
    Bandwidth,
    /// Deleting tracked connections. Without it packets of a container that is gone can reach the next one with its
    /// address.
    Conntrack,
}

/// Tries what the network needs, in a network namespace that is made for it and goes with it. The kernel may load
/// modules. Returns what failed with each, or `None` if it works. Takes 60 ms, nearly all of it in the program nft.
///
/// # Errors
/// The kernel's, if no network namespace can be made: EPERM for others than root.
pub fn try_kernel() -> io::Result<[(Need, Option<String>); 4]> {
    let pair = namespace::pair(&[], &[], 0)?;
    let network = pair.network.as_fd();
    namespace::in_network(network, || {
        let links = try_links(network);
        let bandwidth = match &links {
            Ok(port) => try_bandwidth(*port).err().map(|error| chain(&error)),
            Err(_) => Some("not tried without links".to_owned()),
        };
        Ok([
            (Need::Links, links.err().map(|error| chain(&error))),
            (Need::Firewall, try_firewall()),
            (Need::Bandwidth, bandwidth),
            (Need::Conntrack, try_conntrack().err().map(|error| chain(&error))),
        ])
    })
}

/// Connects a veth pair with a bridge. Returns the number of the port.
fn try_links(network: BorrowedFd<'_>) -> Result<u32> {
    let mut route = Connection::open(Protocol::Route)?;
    let bridge = link::Bridge {
        name: "wbrdg-doctor",
        mac: link::random_mac(),
        mtu: 1500,
        group: GROUP,
        // TEST-NET-1 (RFC 5737): nobody has these addresses.
        gateway: Ipv4Net::new_assert(Ipv4Addr::new(192, 0, 2, 1), 30),
        gateway6: None,
    };
    let bridge = link::make_bridge(&mut route, &bridge)?;
    let (host, inside_mac) = ("wdoctor-0", link::random_mac());
    let pair = link::Veth {
        host,
        inside: "wdoctor-1",
        host_mac: link::random_mac(),
        inside_mac,
        mtu: 1500,
        group: GROUP,
    };
    let index = link::make_veth(&mut route, &pair, network)?;
    link::attach(&mut route, &link::Port { name: host, index, bridge, inside_mac, hairpin: false })?;
    Ok(index)
}

fn try_bandwidth(port: u32) -> Result<()> {
    let mut route = Connection::open(Protocol::Route)?;
    let limit = tc::Limit { rate: 1 << 20, burst: tc::LEAST_BURST };
    tc::limit_towards(&mut route, port, limit)?;
    tc::limit_from(&mut route, port, limit, "wdoctor-2", GROUP)?;
    Ok(())
}

fn try_conntrack() -> Result<()> {
    Conntrack::open()?.forget(&[Ipv4Addr::new(192, 0, 2, 2).into()])?;
    Ok(())
}

/// Loads the whole firewall with a container. If it fails, tries its parts one by one, so that what is missing has a
/// name.
fn try_firewall() -> Option<String> {
    let error = load_firewall().err()?;
    if matches!(error, firewall::Error::NoNft) {
        return Some(chain(&error));
    }
    // With each part the options of the kernel that it needs (net/netfilter/Kconfig, net/bridge/netfilter/Kconfig).
    let parts = [
        ("tables", "NF_TABLES, NF_TABLES_INET", "add table inet w"),
        (
            "tables for bridges",
            "NF_TABLES_BRIDGE",
            "table bridge w { chain c { type filter hook prerouting priority -300; } }",
        ),
        (
            "connection tracking",
            "NF_CONNTRACK, NFT_CT",
            "table inet w { chain c { ct state established accept; } }",
        ),
        ("refusals", "NFT_REJECT", "table inet w { chain c { reject with icmpx admin-prohibited; } }"),
        (
            "port mappings",
            "NFT_NAT",
            "table inet w { chain c { type nat hook prerouting priority -100; tcp dport 1 dnat ip to 192.0.2.1:1; } }",
        ),
        (
            "address translation",
            "NFT_MASQ",
            "table inet w { chain c { type nat hook postrouting priority 100; masquerade; } }",
        ),
        ("logs", "NFT_LOG, NETFILTER_NETLINK_LOG", "table inet w { chain c { log group 1; } }"),
    ];
    let missing: Vec<String> = parts
        .into_iter()
        .filter(|(.., script)| firewall::skeleton::load(script).is_err())
        .map(|(what, options, _)| format!("{what} ({options})"))
        .collect();
    match missing.as_slice() {
        [] => Some(chain(&error)),
        missing => Some(format!("nf_tables lacks {}", missing.join(", "))),
    }
}

fn load_firewall() -> std::result::Result<(), firewall::Error> {
    let policy = program::Policy {
        group: GROUP,
        deny: Vec::new(),
        allow: Vec::new(),
        host_access: false,
        dns: Vec::new(),
        log_group: 1,
        flows: 1,
    };
    let rule = |log| Rule {
        protocol: egress::Protocol::Tcp,
        networks: vec![(Ipv4Addr::new(192, 0, 2, 5).into(), Ipv4Addr::new(192, 0, 2, 9).into())],
        ports: vec![(80, 90)],
        icmp: None,
        log,
    };
    let member = program::Member {
        id: "doctor".to_owned(),
        handle: "doctor".to_owned(),
        bridge: "wbrdg-doctor".to_owned(),
        port: "wdoctor-0".to_owned(),
        mac: [2, 0, 0, 0, 0, 1],
        v4: Ipv4Addr::new(192, 0, 2, 2),
        v6: None,
        external: vec![Ipv4Addr::new(192, 0, 2, 1).into()],
        mappings: vec![Mapping { transport: Transport::Tcp, host: 1, container: 1 }],
        egress: egress::compile(&[rule(false), rule(true)]).unwrap_or_default(),
    };
    Firewall::open("doctor", &policy)?.add(&member)
}

/// Whether a link is named as the links of an instance are, and is in a group as theirs.
fn is_ours(link: &Link) -> bool {
    /// The two highest bits of the group of every instance.
    const KIND: u32 = 3 << 30;
    let digits = |text: &str, of: &[u8]| text.bytes().all(|byte| of.contains(&byte));
    let is_end = |name: &str| {
        let id = name.strip_prefix('w').and_then(|rest| rest.split_once('-'));
        id.is_some_and(|(id, end)| {
            id.len() == 11 && digits(id, crate::bridged::DIGITS) && ["0", "2"].contains(&end)
        })
    };
    let is_bridge = |name: &str| {
        name.strip_prefix("wbrdg-").is_some_and(|hex| hex.len() == 8 && digits(hex, b"0123456789abcdef"))
    };
    // Guardian's links have the same names, and are in group 0.
    link.group & KIND == GROUP && (is_end(&link.name) || is_bridge(&link.name))
}

/// Returns the links of all instances in this network namespace.
///
/// # Errors
/// The kernel's.
pub fn links() -> Result<Vec<Link>> {
    let mut links = link::all(&mut Connection::open(Protocol::Route)?)?;
    links.retain(is_ours);
    Ok(links)
}

/// Returns the names of the tables of all instances in this network namespace, by their instances' tags; none where
/// the kernel has no nf_tables.
///
/// # Errors
/// The kernel's.
pub fn tables() -> Result<BTreeMap<String, Vec<String>>> {
    let mut tables = BTreeMap::<String, Vec<String>>::new();
    for chain in firewall::chains()? {
        let Some(tag) = chain.table.strip_prefix(TABLE) else { continue };
        let family = match chain.family {
            Family::Bridge => "bridge",
            Family::Inet => "inet",
            _ => continue,
        };
        let name = format!("{family} {}", chain.table);
        let names = tables.entry(tag.to_owned()).or_default();
        if !names.contains(&name) {
            names.push(name);
        }
    }
    Ok(tables)
}

/// Returns the networks of the host, other than those of containers of any instance, that have addresses in common
/// with a pool of subnets for containers.
///
/// # Errors
/// The kernel's.
pub fn collisions(pool: Ipv4Net) -> Result<Vec<Foreign>> {
    let mut route = Connection::open(Protocol::Route)?;
    let all = link::all(&mut route)?;
    let ours: HashSet<&str> =
        all.iter().filter(|link| is_ours(link)).map(|link| link.name.as_str()).collect();
    // Our links are left out by their names: there may be several instances.
    let mut foreign = route::foreign_networks(&mut route, GROUP)?;
    let is_ours = |link: &Option<String>| link.as_deref().is_some_and(|link| ours.contains(link));
    foreign.retain(|foreign| overlap(foreign.network, pool) && !is_ours(&foreign.link));
    Ok(foreign)
}

/// Whether the host forwards packets of IPv4; `None`: it cannot be read.
pub fn forwards() -> Option<bool> {
    let value = std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").ok()?;
    Some(value.trim() != "0")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Namespace;
    use wardian_needs::needs;

    fn link(name: &str, group: u32) -> Link {
        Link { index: 1, name: name.into(), kind: String::new(), master: None, mtu: 1500, group, is_up: true }
    }

    #[test]
    fn links_are_known_by_their_names_and_groups() {
        for name in ["wqkss70he4db-0", "wqkss70he4db-2", "wbrdg-0afe0004"] {
            assert!(is_ours(&link(name, 0x4876_86b5)), "{name}");
            assert!(!is_ours(&link(name, 0)) && !is_ours(&link(name, u32::MAX)), "{name}");
        }
        for name in ["wlan0", "wqkss70he4db-1", "wqkss70he4-0", "wqkss70he4dz-0", "wbrdg-0afe000g", "eth0"] {
            assert!(!is_ours(&link(name, 0x4876_86b5)), "{name}");
        }
    }

    #[test]
    fn trials_leave_nothing() {
        needs!(Nftables, TrafficControl);
        let world = Namespace::new();
        world.within(|| {
            for (need, failure) in try_kernel().unwrap() {
                assert_eq!(failure, None, "{need:?}");
            }
            assert_eq!(links().unwrap(), []);
            assert!(tables().unwrap().is_empty());
        });
        assert_eq!(world.sh("nft list ruleset; ip -br link | grep -v ^lo || true"), "");
    }

    #[test]
    fn what_instances_have_made_is_found() {
        needs!(Nftables);
        let world = Namespace::new();
        world.sh(
            "ip link add wbrdg-0afe0004 type bridge && ip link set wbrdg-0afe0004 group 1216775861 up && \
             ip addr add 10.254.0.5/30 dev wbrdg-0afe0004 && \
             ip link add br0 type bridge && ip link set br0 up && ip addr add 10.254.1.1/24 dev br0 && \
             ip route add 10.0.0.0/8 dev br0 && ip route add 10.254.64.0/24 dev br0 && \
             for family in inet bridge; do nft \"table $family wardian-ab { chain c { }; }\"; done && \
             nft 'table ip other { chain c { }; }'",
        );
        world.within(|| {
            let names: Vec<String> = links().unwrap().into_iter().map(|link| link.name).collect();
            assert_eq!(names, ["wbrdg-0afe0004"]);
            let found = tables().unwrap();
            assert_eq!(found["ab"], ["inet wardian-ab", "bridge wardian-ab"]);
            assert_eq!(found.len(), 1);
            let pool = "10.254.0.0/22".parse().unwrap();
            let found: Vec<String> =
                collisions(pool).unwrap().iter().map(|foreign| foreign.network.to_string()).collect();
            assert_eq!(found, ["10.254.1.0/24", "10.0.0.0/8"]);
        });
    }
}
