//! What a server does for the network at its start: it takes up what an earlier one has left, and looks at the host.

use super::{Leases, Placed, Settings, member};
use crate::error::{Error, Result};
use crate::firewall::program::Member;
use crate::netlink::Connection;
use crate::ports::{Mapping, Transport};
use crate::state::bridge_name;
use crate::subnets::Subnets;
use crate::{Found, Network, egress, link, names, route};
use ipnet::Ipv4Net;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with, sockopt};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use wardian_sys::text::chain;

/// Returns the host's address to which mapped ports belong: the setting, the source address of the default route, or
/// that of the containers of an earlier server. Without any nobody outside can ask for a mapped port.
pub(super) fn external(settings: &Settings, way: Option<&route::Way>, found: &[Found]) -> IpAddr {
    let earlier = || found.iter().filter_map(|found| found.network.external()).find(|ip| !ip.is_loopback());
    let present = settings.external.or(way.map(|way| way.source));
    present.or_else(earlier).unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
}

/// Takes the addresses and ports of living containers, and returns what the firewall has to know of them. One whose
/// address is taken cannot be given it twice; it keeps what it has until it is destroyed.
pub(super) fn restore(leases: &mut Leases, found: Vec<Found>, external: IpAddr) -> Vec<Member> {
    let mut members = Vec::new();
    for Found { network, handle, rules } in found {
        let Network::Bridged(state) = network else { continue };
        if let Err(error) = leases.subnets.restore(state.subnet, state.ip) {
            tracing::error!(handle, ip = %state.ip, %error, "restore.address");
        }
        for mapping in &state.mappings {
            if let Err(error) = leases.ports.restore(&state.id, mapping) {
                tracing::error!(handle, port = mapping.host, %error, "restore.port");
            }
        }
        let steps = egress::compile(&rules).unwrap_or_else(|error| {
            tracing::error!(handle, %error, "restore.egress-rules");
            Vec::new()
        });
        members.push(member(&state, &handle, &steps, external));
        let placed = Placed { state, is_connected: true, is_cut: false };
        leases.members.insert(placed.state.id.clone(), placed);
    }
    members
}

/// Finds the bridges that an earlier server has made, and deletes those that are of no use, as well as devices of
/// bandwidth limits.
pub(super) fn adopt(
    host: &mut Connection,
    leases: &mut Leases,
    group: u32,
    pool: Ipv4Net,
    mtu: u32,
) -> Result<()> {
    let (bridges, others): (Vec<_>, Vec<_>) =
        link::of_group(host, group)?.into_iter().partition(|link| link.kind == "bridge");
    // Devices of bandwidth limits, whose containers have ended while there was no server.
    for found in others.into_iter().filter(|link| link.kind == "ifb") {
        let id = found.name.strip_prefix('w').and_then(|rest| rest.strip_suffix("-2"));
        if !id.is_some_and(|id| leases.members.contains_key(id)) {
            link::delete(host, found.index)?;
        }
    }
    for found in bridges {
        let mut subnets = leases.members.values().map(|placed| placed.state.subnet);
        let used = subnets.find(|subnet| bridge_name(*subnet) == found.name);
        let free = || {
            let first =
                found.name.strip_prefix("wbrdg-").and_then(|hex| u32::from_str_radix(hex, 16).ok())?;
            let subnet = Ipv4Net::new(first.into(), 30).ok().filter(|subnet| subnet.trunc() == *subnet)?;
            (pool.contains(&subnet) && found.mtu == mtu).then_some(subnet)
        };
        match used.or_else(free) {
            Some(subnet) => drop(leases.bridges.insert(subnet, found.index)),
            None => link::delete(host, found.index)?,
        }
    }
    Ok(())
}

/// Keeps dynamic subnets out of networks that the host has within the pool. A larger network around the whole pool
/// does no harm: the subnets' routes are more specific.
pub(super) fn avoid(host: &mut Connection, subnets: &mut Subnets, group: u32, pool: Ipv4Net) -> Result<()> {
    let mut within = route::foreign_networks(host, group)?;
    within.retain(|foreign| pool.contains(&foreign.network));
    within.iter().for_each(|foreign| subnets.withhold(foreign.network));
    // Another instance with this pool has hundreds of them.
    if let Some(route::Foreign { network, link, .. }) = within.first() {
        tracing::info!(networks = within.len(), first = %network, link, "network.not-from-pool");
    }
    Ok(())
}

/// Returns the MTU of the interface with the external address.
pub(super) fn uplink(
    host: &mut Connection,
    external: IpAddr,
    way: Option<&route::Way>,
) -> Result<Option<u32>> {
    if let Some(way) = way.filter(|way| way.source == external && way.link.name != "lo") {
        return Ok(Some(way.link.mtu));
    }
    let IpAddr::V4(external) = external else { return Ok(None) };
    let networks = route::foreign_networks(host, 0)?;
    let holds = |foreign: &&route::Foreign| foreign.is_address && foreign.network.contains(&external);
    let Some(name) = networks.iter().find(holds).and_then(|foreign| foreign.link.as_deref()) else {
        return Ok(None);
    };
    Ok(link::find_by_name(host, name)?.map(|link| link.mtu))
}

/// Whether bridged frames pass the firewall's hooks of IP (Documentation/networking/ip-sysctl.rst, bridge-nf-call-*).
pub fn filters_bridges() -> bool {
    ["iptables", "ip6tables"].iter().any(|name| {
        let path = format!("/proc/sys/net/bridge/bridge-nf-call-{name}");
        std::fs::read_to_string(path).is_ok_and(|value| value.trim() != "0")
    })
}

/// Lets the host forward packets (Documentation/networking/ip-sysctl.rst).
pub(super) fn forward(host: &mut Connection, ipv6: bool) -> Result<()> {
    const V6: &str = "/proc/sys/net/ipv6/conf/all/forwarding";
    const NAMES: [&str; 2] = ["/proc/sys/net/ipv4/ip_forward", V6];
    for name in NAMES.iter().take(if ipv6 { 2 } else { 1 }) {
        let fail = |source| Error::Sysctl { name: (*name).to_owned(), source };
        if std::fs::read_to_string(name).map_err(fail)?.trim() == "0" {
            if *name == V6 {
                keep_announced_routes(host)?;
            }
            std::fs::write(name, "1").map_err(fail)?;
            tracing::info!(name, "network.forwarding-on");
        }
    }
    Ok(())
}

/// Lets the host keep default routes of IPv6 that routers have announced: where `accept_ra` is 1, the kernel deletes them
/// when forwarding is turned on, and heeds no later ones. Links without such a route stay as they are, so that nobody
/// there becomes the host's router.
fn keep_announced_routes(host: &mut Connection) -> Result<()> {
    for link in route::announced(host)? {
        let name = format!("/proc/sys/net/ipv6/conf/{link}/accept_ra");
        let fail = |source| Error::Sysctl { name: name.clone(), source };
        if std::fs::read_to_string(&name).map_err(fail)?.trim() == "1" {
            std::fs::write(&name, "2").map_err(fail)?;
            tracing::warn!(
                name,
                text = "otherwise this host would lose its default route of IPv6",
                "network.accept-ra"
            );
        }
    }
    Ok(())
}

/// Tells what of the settings will not work on this host as it is now.
pub(super) fn warn(settings: &Settings, way: Option<&route::Way>) {
    // The route to an address of the host's own is by way of loopback.
    if let Some(ip) = settings.external
        && way.is_none_or(|way| way.link.name != "lo")
    {
        let text = "--external-ip is no address of this host: mapped ports work for packets that arrive with this \
                    destination. Where a router in front translates it to another address of this host, name that one";
        tracing::warn!(%ip, text, "network.external-elsewhere");
    }
    let servers: Vec<IpAddr> =
        settings.dns_servers.iter().chain(&settings.more_dns_servers).copied().collect();
    match names::lacking(&servers, settings.host_access) {
        Ok(None) => {}
        Ok(Some(why)) => {
            tracing::warn!(why, text = "name some with --dns-server", "network.no-name-server");
        }
        Err(error) => tracing::warn!(error = chain(&error), "network.name-servers-unknown"),
    }
}

/// Whether a program of the host listens on a port, which leads to a container once it is mapped. Another failure says
/// nothing.
pub(super) fn is_listened(external: IpAddr, mapping: &Mapping) -> bool {
    let kind = match mapping.transport {
        Transport::Tcp => SocketType::STREAM,
        Transport::Udp => SocketType::DGRAM,
    };
    let family = if external.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let probe = || -> rustix::io::Result<()> {
        let socket = socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
        // Connections that have ended do not count.
        sockopt::set_socket_reuseaddr(&socket, mapping.transport == Transport::Tcp)?;
        bind(&socket, &SocketAddr::new(external, mapping.host))
    };
    probe() == Err(Errno::ADDRINUSE)
}
