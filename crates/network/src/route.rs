//! Which way the host sends packets, and which networks it knows already.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};

use ipnet::Ipv4Net;
use thiserror::Error;

use crate::link::{self, Link};
use crate::message::{Message, Requests, address, find, u32_at};
use crate::netlink::{self, Connection};

/// Why a question about routes has no answer.
#[derive(Debug, Error)]
pub enum Error {
    /// The route to an address could not be looked up.
    #[error("look up the route to {to}")]
    Lookup {
        /// The address.
        to: IpAddr,
        /// The kernel's reason.
        #[source]
        source: netlink::Error,
    },
    /// The link of a route could not be looked up.
    #[error("look up the link of the route to {to}")]
    Link {
        /// The address.
        to: IpAddr,
        /// The reason.
        #[source]
        source: link::Error,
    },
    /// The networks of the host could not be listed.
    #[error("list the host's {what}")]
    List {
        /// Links, addresses or routes.
        what: &'static str,
        /// The kernel's reason.
        #[source]
        source: netlink::Error,
    },
}

/// The way to an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Way {
    /// The link by which packets leave the host.
    pub link: Link,
    /// The source address that they get.
    pub source: IpAddr,
}

/// A network that the host knows and that is not ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Foreign {
    /// The network.
    pub network: Ipv4Net,
    /// The name of the link that it belongs to; nothing for routes to several links or to none.
    pub link: Option<String>,
    /// Whether the host has an address in it; otherwise it has a route to it.
    pub is_address: bool,
}

/// The link and the source address with which the host sends to `to`; nothing if it has no route. With an address on
/// the internet this finds the interface of the default route. No packet is sent.
///
/// # Errors
/// [`Error::Lookup`], [`Error::Link`].
pub fn way_to(route: &mut Connection, to: IpAddr) -> Result<Option<Way>, Error> {
    let Some((index, source)) = lookup(route, to)? else { return Ok(None) };
    let link = link::find_by_index(route, index).map_err(|source| Error::Link { to, source })?;
    Ok(link.map(|link| Way { link, source }))
}

/// The source address of [`way_to`] alone, which takes no lock of the kernel's.
///
/// # Errors
/// [`Error::Lookup`].
pub fn source_to(route: &mut Connection, to: IpAddr) -> Result<Option<IpAddr>, Error> {
    Ok(lookup(route, to)?.map(|(_, source)| source))
}

/// The number of the link, and the source address.
fn lookup(route: &mut Connection, to: IpAddr) -> Result<Option<(u32, IpAddr)>, Error> {
    let (family, length) = if to.is_ipv4() { (libc::AF_INET, 32) } else { (libc::AF_INET6, 128) };
    // `struct rtmsg`.
    let header = [family as u8, length, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut requests = Requests::default();
    requests.add(libc::RTM_GETROUTE, 0, &header, |fields| fields.address(libc::RTA_DST, to));
    let mut found = None;
    let result = route.ask(requests, |_, reply| {
        let attributes = reply.body.get(12..).unwrap_or_default();
        let index = find(attributes, libc::RTA_OIF).and_then(|value| u32_at(value, 0));
        let source = find(attributes, libc::RTA_PREFSRC).and_then(address);
        found = index.zip(source);
    });
    match result.map_err(|error| (error.errno(), error)) {
        Ok(()) => Ok(found),
        // A route of the types unreachable, blackhole and prohibit, or none.
        Err((Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EINVAL | libc::EACCES), _)) => Ok(None),
        Err((_, source)) => Err(Error::Lookup { to, source }),
    }
}

/// The IPv4 networks of the host that do not belong to links of the group `own`: those of its addresses, and the
/// destinations of its routes in all tables but the default routes. Addresses of 127.0.0.0/8 are left out.
///
/// Reads all links, addresses and routes, which costs about 10 µs for each link. Meant for the start of a server and
/// for `doctor`; the result is to be kept.
///
/// # Errors
/// [`Error::List`].
pub fn foreign_networks(route: &mut Connection, own: u32) -> Result<Vec<Foreign>, Error> {
    let failed = |what| move |source| Error::List { what, source };
    let links = link::all(route).map_err(failed("links"))?;
    let links: HashMap<u32, Link> = links.into_iter().map(|link| (link.index, link)).collect();
    let addresses = route
        .list(
            |requests, flags| {
                // `struct ifaddrmsg`.
                let header = [libc::AF_INET as u8, 0, 0, 0, 0, 0, 0, 0];
                requests.add(libc::RTM_GETADDR, flags, &header, |writer| writer);
            },
            parse_address,
        )
        .map_err(failed("addresses"))?;
    let routes = routes(route, libc::AF_INET, parse_route).map_err(failed("routes"))?;

    let mut seen = HashSet::new();
    let mut found = Vec::new();
    let all = addresses.into_iter().map(|one| (one, true)).chain(routes.into_iter().map(|one| (one, false)));
    for ((network, index), is_address) in all {
        let link = index.and_then(|index| links.get(&index));
        let network = network.trunc();
        let is_ours = link.is_some_and(|link| link.group == own);
        // The kernel makes a route for each address: it says nothing new.
        if is_ours || network.network().is_loopback() || !seen.insert(network) {
            continue;
        }
        found.push(Foreign { network, link: link.map(|link| link.name.clone()), is_address });
    }
    Ok(found)
}

/// Returns the network that the host itself is in and that contains an address, unless its link is of the group
/// `own`. Costs two questions, however many routes there are.
///
/// # Errors
/// [`Error::Lookup`], [`Error::Link`].
pub fn host_network(route: &mut Connection, ip: Ipv4Addr, own: u32) -> Result<Option<Foreign>, Error> {
    /// The reply has the destination of the route that was found, instead of the address that was asked for
    /// (`linux/rtnetlink.h`).
    const RTM_F_FIB_MATCH: u32 = 0x2000;
    let to = IpAddr::V4(ip);
    let mut header = [libc::AF_INET as u8, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    header[8..].copy_from_slice(&RTM_F_FIB_MATCH.to_ne_bytes());
    let mut requests = Requests::default();
    requests.add(libc::RTM_GETROUTE, 0, &header, |fields| fields.address(libc::RTA_DST, to));
    let mut found = None;
    let result = route.ask(requests, |_, reply| {
        let [_, length, _, _, _, protocol, ..] = *reply.body else { return };
        let attributes = reply.body.get(12..).unwrap_or_default();
        let network = find(attributes, libc::RTA_DST).and_then(address);
        // The kernel itself makes the routes of the host's addresses, and nobody else's.
        if let (libc::RTPROT_KERNEL, Some(IpAddr::V4(network))) = (protocol, network) {
            let link = find(attributes, libc::RTA_OIF).and_then(|value| u32_at(value, 0));
            found = Ipv4Net::new(network, length).ok().map(|network| (network, link));
        }
    });
    match result.map_err(|error| (error.errno(), error)) {
        Ok(()) => {}
        Err((Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EINVAL | libc::EACCES), _)) => {
            return Ok(None);
        }
        Err((_, source)) => return Err(Error::Lookup { to, source }),
    }
    let Some((network, index)) = found else { return Ok(None) };
    let link = index.map(|index| link::find_by_index(route, index)).transpose();
    let link = link.map_err(|source| Error::Link { to, source })?.flatten();
    if link.as_ref().is_some_and(|link| link.group == own) {
        return Ok(None);
    }
    Ok(Some(Foreign { network, link: link.map(|link| link.name), is_address: true }))
}

/// The addresses of all interfaces that others can reach, so none of loopback and none that is link-local, in the order
/// in which the kernel lists them.
///
/// # Errors
/// [`Error::List`].
pub fn addresses(route: &mut Connection) -> Result<Vec<IpAddr>, Error> {
    let found = route.list(
        |requests, flags| {
            // `struct ifaddrmsg`.
            let header = [libc::AF_UNSPEC as u8, 0, 0, 0, 0, 0, 0, 0];
            requests.add(libc::RTM_GETADDR, flags, &header, |writer| writer);
        },
        |message| {
            let [_, _, _, scope, ..] = *message.body else { return None };
            let attributes = message.body.get(8..)?;
            // Of a point-to-point link IFA_ADDRESS is the other end.
            let local = find(attributes, libc::IFA_LOCAL).or_else(|| find(attributes, libc::IFA_ADDRESS));
            local.and_then(address).filter(|_| scope == libc::RT_SCOPE_UNIVERSE)
        },
    );
    found.map_err(|source| Error::List { what: "addresses", source })
}

/// Lists the routes of an address family.
fn routes<T>(
    route: &mut Connection,
    family: libc::c_int,
    parse: impl FnMut(&Message<'_>) -> Option<T>,
) -> std::result::Result<Vec<T>, netlink::Error> {
    // `struct rtmsg`.
    let header = [family as u8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    route.list(
        |requests, flags| {
            requests.add(libc::RTM_GETROUTE, flags, &header, |writer| writer);
        },
        parse,
    )
}

/// The names of the links by which routers have announced a default route of IPv6 (RFC 4861, router advertisements).
///
/// # Errors
/// [`Error::List`].
pub fn announced(route: &mut Connection) -> Result<Vec<String>, Error> {
    let failed = |what| move |source| Error::List { what, source };
    let links = routes(route, libc::AF_INET6, parse_announced).map_err(failed("routes of IPv6"))?;
    if links.is_empty() {
        return Ok(Vec::new());
    }
    let all = link::all(route).map_err(failed("links"))?;
    Ok(all.into_iter().filter(|link| links.contains(&link.index)).map(|link| link.name).collect())
}

/// The number of the link of a default route that a router has announced.
fn parse_announced(message: &Message<'_>) -> Option<u32> {
    /// `RTPROT_RA` (`linux/rtnetlink.h`).
    const ANNOUNCED: u8 = 9;
    /// Where `struct rtnexthop` has the number of the link.
    const NEXT_HOP_LINK: usize = 4;
    let [_, length, _, _, _, protocol, ..] = *message.body.first_chunk::<12>()?;
    if protocol != ANNOUNCED || length != 0 {
        return None;
    }
    let attributes = message.body.get(12..)?;
    let single = find(attributes, libc::RTA_OIF).and_then(|value| u32_at(value, 0));
    single.or_else(|| find(attributes, libc::RTA_MULTIPATH).and_then(|value| u32_at(value, NEXT_HOP_LINK)))
}

/// Whether two networks have an address in common.
#[must_use]
pub fn overlap(one: Ipv4Net, other: Ipv4Net) -> bool {
    one.contains(&other) || other.contains(&one)
}

fn parse_address(message: &Message<'_>) -> Option<(Ipv4Net, Option<u32>)> {
    let attributes = message.body.get(8..)?;
    // Of a point-to-point link this is the other end; of all others the address itself.
    let IpAddr::V4(address) = find(attributes, libc::IFA_ADDRESS).and_then(address)? else { return None };
    Some((Ipv4Net::new(address, *message.body.get(1)?).ok()?, u32_at(message.body, 4)))
}

fn parse_route(message: &Message<'_>) -> Option<(Ipv4Net, Option<u32>)> {
    let [_, length, _, _, _, _, _, kind] = *message.body.first_chunk()?;
    let attributes = message.body.get(12..)?;
    // Other types are the host's own addresses (local, broadcast), and refusals.
    if kind != libc::RTN_UNICAST || length == 0 {
        return None;
    }
    let to = find(attributes, libc::RTA_DST).and_then(address);
    let IpAddr::V4(to) = to.unwrap_or(Ipv4Addr::UNSPECIFIED.into()) else { return None };
    let index = find(attributes, libc::RTA_OIF).and_then(|value| u32_at(value, 0));
    Some((Ipv4Net::new(to, length).ok()?, index))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_overlap_where_one_is_in_the_other() {
        let net = |text: &str| text.parse::<Ipv4Net>().unwrap();
        for (one, other, does) in [
            ("10.254.0.0/30", "10.0.0.0/8", true),
            ("10.0.0.0/8", "10.254.0.0/30", true),
            ("10.254.0.0/30", "10.254.0.4/30", false),
            ("10.254.0.1/30", "10.254.0.2/30", true),
            ("0.0.0.0/0", "1.1.1.1/32", true),
        ] {
            assert_eq!(overlap(net(one), net(other)), does, "{one} {other}");
        }
    }
}
