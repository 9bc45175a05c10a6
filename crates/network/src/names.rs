//! Which name servers containers get from the host, and whether they can reach them.

use crate::error::Result;
use crate::files::{self, Host, Names};
use crate::netlink::{Connection, Protocol};
use crate::route;
use std::net::{IpAddr, Ipv4Addr};

/// Returns the name servers that containers get from the host's files.
fn servers_of(host: &Host, bridge: IpAddr) -> Result<Vec<IpAddr>> {
    Ok(files::servers(&Names::default().resolv(host, bridge, None, None).text()?))
}

/// Tells why containers would have no name server that they can reach, if that is so. `servers` are the operator's own,
/// which they may ask wherever those are; with `host_access` they reach servers at addresses of the host, too.
///
/// # Errors
/// The kernel's; a file of the host is too long.
pub fn lacking(servers: &[IpAddr], host_access: bool) -> Result<Option<String>> {
    let mut route = Connection::open(Protocol::Route)?;
    let mut is_here = |ip| {
        // The route to an address of the host's own is by way of loopback.
        let way = route::way_to(&mut route, ip)?;
        Ok(way.is_some_and(|way| way.link.name == "lo"))
    };
    unreachable_names(&Host::read(), servers, host_access, &mut is_here)
}

fn unreachable_names(
    host: &Host,
    servers: &[IpAddr],
    host_access: bool,
    is_here: &mut dyn FnMut(IpAddr) -> Result<bool>,
) -> Result<Option<String>> {
    // Stands for the address of a bridge: TEST-NET-1 (RFC 5737), which nobody has.
    const BRIDGE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    if !servers.is_empty() {
        return Ok(None);
    }
    let given = servers_of(host, BRIDGE)?;
    if given.is_empty() {
        let why = "this host's /etc/resolv.conf names no server but such on its own loopback, which containers cannot reach";
        return Ok(Some(why.to_owned()));
    }
    for server in given.into_iter().filter(|_| !host_access) {
        if server != BRIDGE && !is_here(server)? {
            return Ok(None);
        }
    }
    let why = "this host's /etc/resolv.conf names no server but such on this host itself, which containers may ask with --allow-host-access only";
    Ok((!host_access).then(|| why.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_without_name_servers_for_containers_is_told() {
        let here: IpAddr = "10.77.0.2".parse().unwrap();
        let why = |resolv: &str, upstream: Option<&str>, servers: &[&str], host_access| {
            let host = Host { resolv: resolv.into(), upstream: upstream.map(str::to_owned) };
            let servers: Vec<IpAddr> = servers.iter().map(|ip| ip.parse().unwrap()).collect();
            unreachable_names(&host, &servers, host_access, &mut |ip| Ok(ip == here)).unwrap()
        };
        let (stub, two) =
            ("nameserver 127.0.0.53\noptions edns0\n", "nameserver 10.77.0.2\nnameserver 8.8.8.8\n");
        for (resolv, upstream, servers, host_access, says) in [
            (stub, None, &[][..], false, Some("loopback")),
            (stub, None, &[], true, Some("loopback")),
            (stub, Some("search a\n"), &[], false, Some("loopback")),
            ("", None, &[], false, Some("loopback")),
            ("nameserver 127.0.0.1", None, &[], false, Some("--allow-host-access")),
            ("nameserver 127.0.0.1", None, &[], true, None),
            ("nameserver 10.77.0.2", None, &[], false, Some("--allow-host-access")),
            (stub, Some("nameserver 8.8.8.8\n"), &[], false, None),
            (stub, None, &["1.1.1.1"], false, None),
            (two, None, &[], false, None),
        ] {
            let why = why(resolv, upstream, servers, host_access);
            assert_eq!(why.is_some(), says.is_some(), "{resolv:?}: {why:?}");
            assert!(why.unwrap_or_default().contains(says.unwrap_or_default()), "{resolv:?}");
        }
    }
}
