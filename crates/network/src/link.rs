//! Links: bridges, veth pairs, the ports of a bridge, and a container's end (`rtnetlink(7)`, `linux/if_link.h`).
//!
//! # Who owns a link
//! Links of one instance of the server have a *group* (`IFLA_GROUP`) of their own, a number that is not 0. Firewall
//! rules match it, and what a server that was killed has left is found by it ([`of_group`]). Below 2^31, iproute2
//! shows it as it is.
//!
//! # Why the ports of a bridge learn nothing
//! A bridge that learns takes the source address of each frame for the place of its sender. A container that sends
//! with the hardware address of another one, or of the gateway, would get their frames. Here each port has one entry
//! in the bridge's table, its container's, set when the port is added ([`attach`]); a port neither learns nor gets
//! frames for addresses that are in no entry. A container that changes its hardware address only cuts itself off. The
//! firewall drops frames with foreign addresses as well, but it can be flushed by others.
//!
//! # IPv6
//! The kernel would give each link a link-local address of its own making, and wait before it can be used (duplicate
//! address detection). Links with IPv6 here have `IN6_ADDR_GEN_MODE_NONE`; the gateway is [`GATEWAY_LOCAL`], a
//! container's address is made from its IPv4 one ([`link_local`]).
//!
//! A port of a bridge carries IPv6 but has no part in it: it is turned off there, and on bridges without an IPv6
//! address. For each link that comes up with IPv6 the kernel walks through all its IPv6 routes (`rt6_sync_up`): with
//! 250 bridges and ports on the host, adding a port cost 280 µs, and 620 µs when the bridges had addresses; now it is
//! 140 µs however many there are.
//!
//! # The end of a container's links
//! When nothing holds a container's namespace any more (processes, descriptors, sockets), the kernel deletes the pair
//! and takes the port off its bridge: 35 ms later for one container, 0.1 s for eighty that end together. Closing the
//! last descriptor takes 15 µs, deleting a link 15 to 40 ms.
//!
//! A bridge whose last port has gone keeps its address and is there for the next container of its subnet. It costs
//! 41 KiB of kernel memory and a route.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

use ipnet::{Ipv4Net, Ipv6Net};
use thiserror::Error;

use crate::message::{Message, Requests, Writer, find, find_path, text, u32_at, u64_at};
use crate::netlink::{self, Connection};

/// A hardware address.
pub type Mac = [u8; 6];

/// The link-local address of a bridge with IPv6.
pub const GATEWAY_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// `VETH_INFO_PEER` (`linux/veth.h`).
const VETH_INFO_PEER: u16 = 1;
/// `IFLA_INET6_ADDR_GEN_MODE` and its value `IN6_ADDR_GEN_MODE_NONE`.
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const ADDR_GEN_MODE_NONE: u8 = 1;
/// `IFLA_BR_MCAST_SNOOPING`.
const IFLA_BR_MCAST_SNOOPING: u16 = 23;
/// `IFLA_BRPORT_MODE`: hairpin.
const IFLA_BRPORT_MODE: u16 = 4;
/// `IFLA_BRPORT_LEARNING`.
const IFLA_BRPORT_LEARNING: u16 = 8;
/// `IFLA_BRPORT_UNICAST_FLOOD`.
const IFLA_BRPORT_UNICAST_FLOOD: u16 = 9;
/// `RTEXT_FILTER_SKIP_STATS`: lists of links without their statistics.
const SKIP_STATS: u32 = 1 << 3;
/// `IFLA_STATS_LINK_64`, and the bit that asks for it (`IFLA_STATS_FILTER_BIT`).
const IFLA_STATS_LINK_64: u16 = 1;
const STATS_LINK_64: u32 = 1;
/// The length of a veth's queue in packets, as Garden has it. A veth has none (`noqueue`); a queueing discipline that
/// is set later may take its length from it.
const QUEUE_LENGTH: u32 = 1;
/// The kernel would give a veth as many queues as there are processors (`veth_get_num_queues`), each with two objects
/// in sysfs: with two processors a pair cost 450 µs, with one queue 280 µs. Packets pass a veth without a queue's lock
/// (`NETIF_F_LLTX`), so more queues make nothing faster.
const QUEUES: u32 = 1;

/// The kind of bridges (`IFLA_INFO_KIND`).
const BRIDGE: &str = "bridge";

const AF_INET: u8 = libc::AF_INET as u8;
const AF_INET6: u8 = libc::AF_INET6 as u8;
const IFF_UP: u32 = libc::IFF_UP as u32;
const CREATE: u16 = (libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16;

/// Why a link is not as it was wanted.
#[derive(Debug, Error)]
pub enum Error {
    /// There is a link with this name already; it was not touched.
    #[error("make link {name}: a link of this name exists")]
    Exists {
        /// The name.
        name: String,
    },
    /// A bridge was not made; nothing is left of it.
    #[error("make bridge {name}")]
    Bridge {
        /// Its name.
        name: String,
        /// The kernel's reason.
        #[source]
        source: netlink::Error,
    },
    /// A veth pair was not made.
    #[error("make veth pair {name}")]
    Veth {
        /// The name of its end on the host.
        name: String,
        /// The kernel's reason.
        #[source]
        source: netlink::Error,
    },
    /// A link is not, or not completely, a port of the bridge.
    #[error("attach {name} to a bridge")]
    Attach {
        /// The port's name.
        name: String,
        /// The kernel's reason.
        #[source]
        source: netlink::Error,
    },
    /// A container's end has not got, or not all of, its addresses and routes.
    #[error("configure {name} in its container")]
    Inside {
        /// The link's name.
        name: String,
        /// The kernel's reason.
        #[source]
        source: netlink::Error,
    },
    /// IPv6 could not be turned on or off for a link.
    #[error("turn IPv6 on or off for {name}")]
    Ipv6 {
        /// The link's name.
        name: String,
        /// What came of writing to /proc/sys.
        #[source]
        source: io::Error,
    },
    /// A link could not be looked up.
    #[error("look up link {name}")]
    Find {
        /// Its name or number.
        name: String,
        /// The kernel's reason.
        #[source]
        source: netlink::Error,
    },
    /// An `ifb` device was not made or not raised.
    #[error("make device {name}")]
    Ifb {
        /// Its name.
        name: String,
        /// The kernel's reason.
        #[source]
        source: netlink::Error,
    },
    /// The links of a group could not be listed.
    #[error("list the links of group {group}")]
    List {
        /// The group.
        group: u32,
        /// The kernel's reason.
        #[source]
        source: netlink::Error,
    },
    /// A link could not be deleted.
    #[error("delete link {index}")]
    Delete {
        /// Its number.
        index: u32,
        /// The kernel's reason.
        #[source]
        source: netlink::Error,
    },
    /// The links of a group could not be deleted.
    #[error("delete the links of group {group}")]
    DeleteGroup {
        /// The group.
        group: u32,
        /// The kernel's reason.
        #[source]
        source: netlink::Error,
    },
    /// The statistics of a link could not be read.
    #[error("read the statistics of link {index}")]
    Statistics {
        /// Its number.
        index: u32,
        /// The kernel's reason.
        #[source]
        source: netlink::Error,
    },
}

/// A bridge to be made.
#[derive(Debug, Clone, Copy)]
pub struct Bridge<'a> {
    /// Its name, at most 15 bytes.
    pub name: &'a str,
    /// Its hardware address. A bridge that has not been given one takes that of a port, and changes it with its ports.
    pub mac: Mac,
    /// Its MTU in bytes, until it has ports: the kernel keeps it at the least of theirs.
    pub mtu: u32,
    /// Its group.
    pub group: u32,
    /// The address of the gateway and the size of its network.
    pub gateway: Ipv4Net,
    /// The same for IPv6; [`GATEWAY_LOCAL`] is added then.
    pub gateway6: Option<Ipv6Net>,
}

/// A veth pair to be made.
#[derive(Debug, Clone, Copy)]
pub struct Veth<'a> {
    /// The name of the host's end, at most 15 bytes.
    pub host: &'a str,
    /// The name of the container's end, at most 15 bytes.
    pub inside: &'a str,
    /// The hardware address of the host's end.
    pub host_mac: Mac,
    /// The hardware address of the container's end.
    pub inside_mac: Mac,
    /// The MTU of both in bytes.
    pub mtu: u32,
    /// The group of the host's end.
    pub group: u32,
}

/// A port to be added to a bridge.
#[derive(Debug, Clone, Copy)]
pub struct Port<'a> {
    /// The name of the host's end, for errors.
    pub name: &'a str,
    /// Its number.
    pub index: u32,
    /// The bridge's number.
    pub bridge: u32,
    /// The hardware address of the *container's* end, whose frames come out of this port.
    pub inside_mac: Mac,
    /// Whether frames may go out where they have come in: where br_netfilter passes bridged frames to the firewall, a
    /// container's connection to its own mapped port is turned round on the bridge.
    pub hairpin: bool,
}

/// The addresses and routes of a container.
#[derive(Debug, Clone, Copy)]
pub struct Inside<'a> {
    /// The name of the container's end, for errors.
    pub name: &'a str,
    /// Its number, in the container's namespace ([`find_by_name`]).
    pub index: u32,
    /// The address of the container and the size of its network.
    pub address: Ipv4Net,
    /// The gateway, which is in that network.
    pub gateway: Ipv4Addr,
    /// The IPv6 address and the size of its network. The link-local address is made from `address`, and the default
    /// route leads to [`GATEWAY_LOCAL`].
    pub address6: Option<Ipv6Net>,
}

/// A link that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its kind, such as `bridge` or `veth`; empty for hardware.
    pub kind: String,
    /// The number of the bridge whose port it is.
    pub master: Option<u32>,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Its group.
    pub group: u32,
    /// Whether it is set up; this says nothing of its carrier.
    pub is_up: bool,
}

/// What a link has carried since it was made, seen from the host: what a port *receives* is what its container has
/// sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Packets received.
    pub received_packets: u64,
    /// Bytes received, with their Ethernet headers.
    pub received_bytes: u64,
    /// Packets sent.
    pub sent_packets: u64,
    /// Bytes sent, with their Ethernet headers.
    pub sent_bytes: u64,
}

/// A random hardware address: locally administered and of a single station (IEEE 802, the two low bits of the first
/// byte).
#[must_use]
pub fn random_mac() -> Mac {
    let [_, _, mut mac @ ..] = fastrand::u64(..).to_ne_bytes();
    mac[0] = mac[0] & !1 | 2;
    mac
}

/// The link-local address of the container with this IPv4 address. It never is [`GATEWAY_LOCAL`]: 0.0.0.1 is no
/// container's address.
#[must_use]
pub fn link_local(address: Ipv4Addr) -> Ipv6Addr {
    Ipv6Addr::from_bits(0xfe80 << 112 | u128::from(address.to_bits()))
}

/// `struct ifinfomsg`: a link by its number (0: by its name), and what changes of its flags.
fn link_header(index: u32, up: bool) -> [u8; 16] {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    if up {
        header[8..12].copy_from_slice(&IFF_UP.to_ne_bytes());
        header[12..16].copy_from_slice(&IFF_UP.to_ne_bytes());
    }
    header
}

fn get_by_name(requests: &mut Requests, name: &str) {
    requests.add(libc::RTM_GETLINK, 0, &link_header(0, false), |link| {
        link.text(libc::IFLA_IFNAME, name).u32(libc::IFLA_EXT_MASK, SKIP_STATS)
    });
}

/// Turns IPv6 on or off for a link of the thread's namespace: no netlink message does. A host without IPv6 has no such
/// file.
fn set_ipv6(name: &str, is_on: bool) -> Result<(), Error> {
    let value = if is_on { "0" } else { "1" };
    match std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), value) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(Error::Ipv6 { name: name.into(), source })
        }
        _ => Ok(()),
    }
}

/// No link-local address of the kernel's own making. Where IPv6 is off, for the host or for links with an MTU below
/// 1280, there is nothing to set.
fn no_generated_address(requests: &mut Requests, index: u32) {
    requests
        .add(libc::RTM_SETLINK, 0, &link_header(index, false), |link| {
            link.nest(libc::IFLA_AF_SPEC, |families| {
                families
                    .nest(u16::from(AF_INET6), |inet6| inet6.u8(IFLA_INET6_ADDR_GEN_MODE, ADDR_GEN_MODE_NONE))
            })
        })
        .tolerate(libc::EAFNOSUPPORT);
}

fn add_address(requests: &mut Requests, index: u32, address: IpAddr, prefix: u8, scope: u8) {
    let family = if address.is_ipv4() { AF_INET } else { AF_INET6 };
    // `struct ifaddrmsg`.
    let mut header = [family, prefix, 0, scope, 0, 0, 0, 0];
    header[4..].copy_from_slice(&index.to_ne_bytes());
    requests.add(libc::RTM_NEWADDR, CREATE, &header, |fields| {
        fields.address(libc::IFA_LOCAL, address);
        match address {
            IpAddr::V4(v4) => {
                fields.address(libc::IFA_ADDRESS, address);
                match Ipv4Net::new(v4, prefix) {
                    Ok(network) if prefix < 31 => {
                        fields.address(libc::IFA_BROADCAST, network.broadcast().into())
                    }
                    _ => fields,
                }
            }
            // Nobody else has this address, and without detection of duplicates it can be used at once.
            IpAddr::V6(_) => fields.u32(libc::IFA_FLAGS, libc::IFA_F_NODAD),
        }
    });
}

/// A default route by way of `gateway`.
fn add_default_route(requests: &mut Requests, index: u32, gateway: IpAddr) {
    let family = if gateway.is_ipv4() { AF_INET } else { AF_INET6 };
    // `struct rtmsg`: family, lengths of destination and source, tos, table, protocol, scope, type, flags.
    let table = [libc::RT_TABLE_MAIN, libc::RTPROT_BOOT, libc::RT_SCOPE_UNIVERSE, libc::RTN_UNICAST];
    let header = [&[family, 0, 0, 0], table.as_slice(), &[0; 4]].concat();
    requests.add(libc::RTM_NEWROUTE, CREATE, &header, |route| {
        route.address(libc::RTA_GATEWAY, gateway).u32(libc::RTA_OIF, index)
    });
}

/// Creates a link and returns its number. The request for it is in the same message, and harmless where the link is
/// somebody else's.
fn create(
    route: &mut Connection,
    name: &str,
    fill: impl FnOnce(&mut Writer) -> &mut Writer,
) -> Result<u32, netlink::Error> {
    let mut requests = Requests::default();
    requests.add(libc::RTM_NEWLINK, CREATE, &link_header(0, false), |link| {
        fill(link.text(libc::IFLA_IFNAME, name))
    });
    get_by_name(&mut requests, name);
    let mut index = None;
    route.ask(requests, |_, reply| index = u32_at(reply.body, 4))?;
    index.ok_or(netlink::Error::Incomplete)
}

/// Makes a bridge with its addresses, raises it and returns its number. The calling thread and the connection are in
/// the same namespace. Two messages: what changes a link by its name must not follow a request that may fail because
/// the name is another's.
///
/// # Errors
/// [`Error::Exists`], [`Error::Bridge`], [`Error::Ipv6`].
pub fn make_bridge(route: &mut Connection, bridge: &Bridge<'_>) -> Result<u32, Error> {
    let name = bridge.name;
    let failed = |source: netlink::Error| match source.errno() {
        Some(libc::EEXIST) => Error::Exists { name: name.into() },
        _ => Error::Bridge { name: name.into(), source },
    };
    let index = create(route, name, |link| {
        link.put(libc::IFLA_ADDRESS, &bridge.mac)
            .u32(libc::IFLA_MTU, bridge.mtu)
            .u32(libc::IFLA_GROUP, bridge.group)
            .nest(libc::IFLA_LINKINFO, |info| {
                info.text(libc::IFLA_INFO_KIND, BRIDGE)
                    .nest(libc::IFLA_INFO_DATA, |data| data.u8(IFLA_BR_MCAST_SNOOPING, 0))
            })
    })
    .map_err(failed)?;

    let made = match bridge.gateway6 {
        None => set_ipv6(name, false),
        Some(_) => Ok(()),
    };
    let made = made.and_then(|()| restore_bridge(route, index, bridge));
    if made.is_err() {
        // It is ours and has no ports. If it stays for whatever reason, its group still tells whose it is.
        let _ = delete(route, index);
    }
    made.map(|()| index)
}

/// Raises a bridge and gives it its addresses, as far as it is down or lacks them. A bridge that was made without IPv6
/// gets it if it is to have it; one that has IPv6 keeps it. Setting a bridge down takes its IPv6 addresses away.
///
/// # Errors
/// [`Error::Bridge`], [`Error::Ipv6`].
pub fn restore_bridge(route: &mut Connection, index: u32, bridge: &Bridge<'_>) -> Result<(), Error> {
    let failed = |source| Error::Bridge { name: bridge.name.into(), source };
    if bridge.gateway6.is_some() {
        // The kernel makes link-local addresses, or does not, when IPv6 is turned on.
        let mut requests = Requests::default();
        no_generated_address(&mut requests, index);
        route.command(requests).map_err(failed)?;
        set_ipv6(bridge.name, true)?;
    }
    let mut requests = Requests::default();
    let add = |requests: &mut Requests, address: IpAddr, prefix, scope| {
        add_address(requests, index, address, prefix, scope);
        requests.tolerate(libc::EEXIST);
    };
    let v4 = bridge.gateway;
    add(&mut requests, v4.addr().into(), v4.prefix_len(), libc::RT_SCOPE_UNIVERSE);
    requests.add(libc::RTM_SETLINK, 0, &link_header(index, true), |writer| writer);
    if let Some(v6) = bridge.gateway6 {
        add(&mut requests, v6.addr().into(), v6.prefix_len(), libc::RT_SCOPE_UNIVERSE);
        add(&mut requests, GATEWAY_LOCAL.into(), 64, libc::RT_SCOPE_LINK);
    }
    route.command(requests).map_err(failed)
}

/// Makes a veth pair, one end in the namespace of the connection, which is the calling thread's, and the other in
/// `network`, and returns the number of the first. Both are down. IPv6 is off for the first.
///
/// # Errors
/// [`Error::Exists`]: one of the names is taken, each in its namespace. [`Error::Veth`]. [`Error::Ipv6`]: the pair
/// goes with the namespace.
pub fn make_veth(route: &mut Connection, veth: &Veth<'_>, network: BorrowedFd<'_>) -> Result<u32, Error> {
    let index = create(route, veth.host, |link| {
        link.put(libc::IFLA_ADDRESS, &veth.host_mac)
            .u32(libc::IFLA_MTU, veth.mtu)
            .u32(libc::IFLA_TXQLEN, QUEUE_LENGTH)
            .u32(libc::IFLA_NUM_TX_QUEUES, QUEUES)
            .u32(libc::IFLA_NUM_RX_QUEUES, QUEUES)
            .u32(libc::IFLA_GROUP, veth.group)
            .nest(libc::IFLA_LINKINFO, |info| {
                info.text(libc::IFLA_INFO_KIND, "veth").nest(libc::IFLA_INFO_DATA, |data| {
                    data.nest_after(VETH_INFO_PEER, &link_header(0, false), |peer| {
                        peer.text(libc::IFLA_IFNAME, veth.inside)
                            .put(libc::IFLA_ADDRESS, &veth.inside_mac)
                            .u32(libc::IFLA_MTU, veth.mtu)
                            .u32(libc::IFLA_TXQLEN, QUEUE_LENGTH)
                            .u32(libc::IFLA_NUM_TX_QUEUES, QUEUES)
                            .u32(libc::IFLA_NUM_RX_QUEUES, QUEUES)
                            .u32(libc::IFLA_NET_NS_FD, network.as_raw_fd().cast_unsigned())
                    })
                })
            })
    })
    .map_err(|source| match source.errno() {
        Some(libc::EEXIST) => Error::Exists { name: veth.host.into() },
        _ => Error::Veth { name: veth.host.into(), source },
    })?;
    set_ipv6(veth.host, false)?;
    Ok(index)
}

/// Adds a port to a bridge and raises it: it learns no addresses, is sent no frames for unknown ones, and none that
/// have come from it (the head of this file says why). For one that is a port of this bridge already, this sets what
/// others have changed of it.
///
/// # Errors
/// [`Error::Attach`]. The link may be a port by then, without being up.
pub fn attach(route: &mut Connection, port: &Port<'_>) -> Result<(), Error> {
    let mut requests = Requests::default();
    requests.add(libc::RTM_SETLINK, 0, &link_header(port.index, false), |link| {
        link.u32(libc::IFLA_MASTER, port.bridge)
    });
    // `struct ndmsg` of a static entry of the bridge's table: it neither ages nor is it an address of the host's own.
    let mut entry = [0; 12];
    entry[0] = libc::AF_BRIDGE as u8;
    entry[4..8].copy_from_slice(&port.index.to_ne_bytes());
    entry[8..10].copy_from_slice(&libc::NUD_NOARP.to_ne_bytes());
    entry[10] = libc::NTF_MASTER;
    requests.add(libc::RTM_NEWNEIGH, CREATE, &entry, |fields| fields.put(libc::NDA_LLADDR, &port.inside_mac));
    requests.tolerate(libc::EEXIST);
    // RTM_SETLINK ignores what belongs to a port.
    // Frames to link-local multicast addresses are the port's own, not the bridge's: without this flag ARP messages
    // among them would fill the host's table of neighbours.
    let mut up = link_header(port.index, true);
    let flags = (IFF_UP | libc::IFF_NOARP as u32).to_ne_bytes();
    up[8..12].copy_from_slice(&flags);
    up[12..16].copy_from_slice(&flags);
    requests.add(libc::RTM_NEWLINK, 0, &up, |link| {
        link.nest(libc::IFLA_LINKINFO, |info| {
            info.text(libc::IFLA_INFO_SLAVE_KIND, BRIDGE).nest(libc::IFLA_INFO_SLAVE_DATA, |data| {
                data.u8(IFLA_BRPORT_MODE, port.hairpin.into())
                    .u8(IFLA_BRPORT_LEARNING, 0)
                    .u8(IFLA_BRPORT_UNICAST_FLOOD, 0)
            })
        })
    });
    route.command(requests).map_err(|source| Error::Attach { name: port.name.into(), source })
}

/// Gives a container's end its addresses, raises it and adds the default routes, in one message. `inside` is a
/// connection in the container's namespace; it keeps the namespace alive and must be closed before its end.
///
/// # Errors
/// [`Error::Inside`].
pub fn configure(inside: &mut Connection, container: &Inside<'_>) -> Result<(), Error> {
    let index = container.index;
    let mut requests = Requests::default();
    no_generated_address(&mut requests, index);
    let v4 = container.address;
    add_address(&mut requests, index, v4.addr().into(), v4.prefix_len(), libc::RT_SCOPE_UNIVERSE);
    requests.add(libc::RTM_SETLINK, 0, &link_header(index, true), |writer| writer);
    add_default_route(&mut requests, index, container.gateway.into());
    if let Some(v6) = container.address6 {
        add_address(&mut requests, index, v6.addr().into(), v6.prefix_len(), libc::RT_SCOPE_UNIVERSE);
        add_address(&mut requests, index, link_local(v4.addr()).into(), 64, libc::RT_SCOPE_LINK);
        add_default_route(&mut requests, index, GATEWAY_LOCAL.into());
    }
    inside.command(requests).map_err(|source| Error::Inside { name: container.name.into(), source })
}

/// Makes and raises an `ifb` device, to which packets can be redirected, unless there is one of this name and group
/// already. Returns its number.
pub(crate) fn ensure_ifb(route: &mut Connection, name: &str, group: u32) -> Result<u32, Error> {
    let failed = |source| Error::Ifb { name: name.into(), source };
    let made = create(route, name, |link| {
        link.u32(libc::IFLA_GROUP, group)
            .nest(libc::IFLA_LINKINFO, |info| info.text(libc::IFLA_INFO_KIND, "ifb"))
    });
    let index = match made {
        Ok(index) => index,
        Err(error) if error.errno() == Some(libc::EEXIST) => match find_by_name(route, name)? {
            Some(link) if link.group == group && link.kind == "ifb" => link.index,
            _ => return Err(Error::Exists { name: name.into() }),
        },
        Err(error) => return Err(failed(error)),
    };
    let mut requests = Requests::default();
    no_generated_address(&mut requests, index);
    requests.add(libc::RTM_SETLINK, 0, &link_header(index, true), |writer| writer);
    route.command(requests).map_err(failed)?;
    Ok(index)
}

/// Reads a message about a link (`RTM_NEWLINK`).
pub(crate) fn parse(message: &Message<'_>) -> Option<Link> {
    let attributes = message.body.get(16..)?;
    let number = |kind| find(attributes, kind).and_then(|value| u32_at(value, 0));
    Some(Link {
        index: u32_at(message.body, 4)?,
        name: find(attributes, libc::IFLA_IFNAME).map(text)?,
        kind: find_path(attributes, &[libc::IFLA_LINKINFO, libc::IFLA_INFO_KIND])
            .map(text)
            .unwrap_or_default(),
        master: number(libc::IFLA_MASTER),
        mtu: number(libc::IFLA_MTU)?,
        group: number(libc::IFLA_GROUP).unwrap_or(0),
        is_up: u32_at(message.body, 8)? & IFF_UP != 0,
    })
}

/// The result of a request about one link that may not exist.
fn one(route: &mut Connection, requests: Requests) -> Result<Option<Link>, netlink::Error> {
    let mut found = None;
    match route.ask(requests, |_, reply| found = parse(reply)) {
        Err(error) if error.errno() == Some(libc::ENODEV) => Ok(None),
        result => result.map(|()| found),
    }
}

/// Finds a link by its name.
///
/// # Errors
/// [`Error::Find`].
pub fn find_by_name(route: &mut Connection, name: &str) -> Result<Option<Link>, Error> {
    let mut requests = Requests::default();
    get_by_name(&mut requests, name);
    one(route, requests).map_err(|source| Error::Find { name: name.into(), source })
}

/// Finds a link by its number.
///
/// # Errors
/// [`Error::Find`].
pub fn find_by_index(route: &mut Connection, index: u32) -> Result<Option<Link>, Error> {
    let mut requests = Requests::default();
    requests.add(libc::RTM_GETLINK, 0, &link_header(index, false), |link| {
        link.u32(libc::IFLA_EXT_MASK, SKIP_STATS)
    });
    one(route, requests).map_err(|source| Error::Find { name: index.to_string(), source })
}

/// All links of the namespace. The kernel cannot filter them by their group; a link costs about
/// 10 µs.
pub(crate) fn all(route: &mut Connection) -> Result<Vec<Link>, netlink::Error> {
    let request = |requests: &mut Requests, flags| {
        requests.add(libc::RTM_GETLINK, flags, &link_header(0, false), |link| {
            link.u32(libc::IFLA_EXT_MASK, SKIP_STATS)
        });
    };
    route.list(request, parse)
}

/// The links of a group. Reads all links.
///
/// # Errors
/// [`Error::List`].
pub fn of_group(route: &mut Connection, group: u32) -> Result<Vec<Link>, Error> {
    let mut links = all(route).map_err(|source| Error::List { group, source })?;
    links.retain(|link| link.group == group);
    Ok(links)
}

/// Deletes a link. A bridge takes 40 ms, a port 15 ms, and for half of it nobody else can change any link of the host
/// (`rtnl_mutex`): bridges are best kept for the next container of their subnet, and a container's pair goes with its
/// namespace instead. A link that is gone already is no error.
///
/// # Errors
/// [`Error::Delete`].
pub fn delete(route: &mut Connection, index: u32) -> Result<(), Error> {
    let mut requests = Requests::default();
    requests.add(libc::RTM_DELLINK, 0, &link_header(index, false), |writer| writer).tolerate(libc::ENODEV);
    route.command(requests).map_err(|source| Error::Delete { index, source })
}

/// Deletes all links of a group. A group without links is no error.
///
/// The kernel could do that at one request, but it would keep all others from their links for 20 ms a bridge. So each
/// bridge is deleted by itself; hundreds of other links together take about 60 ms.
///
/// # Errors
/// [`Error::List`], [`Error::Delete`], [`Error::DeleteGroup`]. Group 0, which all links belong to that were given none,
/// is refused as `EINVAL`.
pub fn delete_group(route: &mut Connection, group: u32) -> Result<(), Error> {
    let failed = |source| Error::DeleteGroup { group, source };
    if group == 0 {
        let source = io::Error::from_raw_os_error(libc::EINVAL);
        return Err(failed(netlink::Error::Refused { request: 0, source, text: None }));
    }
    for link in of_group(route, group)? {
        if link.kind == BRIDGE {
            delete(route, link.index)?;
        }
    }
    let mut requests = Requests::default();
    requests
        .add(libc::RTM_DELLINK, 0, &link_header(0, false), |link| link.u32(libc::IFLA_GROUP, group))
        .tolerate(libc::ENODEV);
    route.command(requests).map_err(failed)
}

/// The statistics of a link; nothing if it does not exist.
///
/// # Errors
/// [`Error::Statistics`].
pub fn statistics(route: &mut Connection, index: u32) -> Result<Option<Statistics>, Error> {
    // `struct if_stats_msg`: family and padding, number, filter.
    let header = [[0; 4], index.to_ne_bytes(), STATS_LINK_64.to_ne_bytes()].concat();
    let mut requests = Requests::default();
    requests.add(libc::RTM_GETSTATS, 0, &header, |writer| writer);
    let mut found = None;
    let result = route.ask(requests, |_, reply| {
        // `struct rtnl_link_stats64`.
        let counters = reply.body.get(12..).and_then(|body| find(body, IFLA_STATS_LINK_64));
        let counter = |number: usize| counters.and_then(|bytes| u64_at(bytes, number * 8));
        found = counter(0).zip(counter(1)).zip(counter(2)).zip(counter(3));
    });
    match result {
        Err(error) if error.errno() == Some(libc::ENODEV) => Ok(None),
        Err(source) => Err(Error::Statistics { index, source }),
        Ok(()) => match found {
            None => Err(Error::Statistics { index, source: netlink::Error::Incomplete }),
            Some((((received_packets, sent_packets), received_bytes), sent_bytes)) => {
                Ok(Some(Statistics { received_packets, received_bytes, sent_packets, sent_bytes }))
            }
        },
    }
}
