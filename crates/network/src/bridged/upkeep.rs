//! What is to be done time and again while containers live: what ended ones have left is removed, and what others have
//! done is made up for: links that they have deleted or set down, and another address of the host.

use super::{Bridged, DELETED, ELSEWHERE, IDLE, Leases, Placed};
use crate::conntrack::Conntrack;
use crate::error::Result;
use crate::link::{self, Link};
use crate::notices::News;
use crate::route;
use crate::state::{State, bridge_name, gateway};
use ipnet::{Ipv4Net, Ipv6Net};
use std::collections::HashMap;
use std::net::IpAddr;
use wardian_sys::text::chain;

impl Placed {
    /// Whether its link should be a port of its bridge.
    fn is_connected(&self, leases: &Leases) -> bool {
        self.is_connected && !leases.departed.contains_key(&self.state.id)
    }
}

impl Leases {
    /// Whether something has happened to links that somebody needs.
    fn are_concerned(&self, news: &News) -> bool {
        if news.is_incomplete {
            return true;
        }
        if news.links.is_empty() {
            return false;
        }
        let is_bridge_bad = |index: &u32| {
            news.links.get(index).is_some_and(|link| !link.as_ref().is_some_and(|link| link.is_up))
        };
        let is_port_bad = |index: &u32| {
            let is_sound = |link: &Link| link.is_up && link.master.is_some();
            news.links.get(index).is_some_and(|link| !link.as_ref().is_some_and(is_sound))
        };
        self.bridges.values().any(is_bridge_bad)
            || self
                .members
                .values()
                .any(|placed| placed.is_connected(self) && is_port_bad(&placed.state.link))
    }
}

impl Bridged {
    /// Removes what is left of ended containers as far as the kernel has let go of their namespaces, and superfluous
    /// bridges, and makes up for what others have done to links and addresses. The engine calls this every second: one
    /// walk through connection tracking, which takes 20 ms, is for all that have ended since.
    pub fn tend(&self) {
        let closed = self.closed.lock();
        if *closed {
            return;
        }
        if let Err(error) = self.look_at_links() {
            tracing::warn!(error = chain(&error), "network.links-unknown");
        }
        if let Err(error) = self.follow_external() {
            tracing::warn!(error = chain(&error), "network.external-unknown");
        }
        let departed: Vec<State> = self.leases.lock().departed.values().cloned().collect();
        let gone: Vec<State> = departed.into_iter().filter(|state| self.unlink(state, false)).collect();
        self.forget(&gone);
        let turned = std::mem::take(&mut self.leases.lock().turned);
        if !turned.is_empty()
            && let Err(error) = Conntrack::open().and_then(|mut flows| flows.forget_udp_ports(&turned))
        {
            tracing::warn!(error = chain(&error), ?turned, "network.flows-left");
        }
        for _ in 0..DELETED {
            let mut leases = self.leases.lock();
            let idle: Vec<Ipv4Net> =
                leases.bridges.keys().filter(|subnet| !leases.subnets.is_used(**subnet)).copied().collect();
            // Of the highest: the lowest are given out first.
            let Some(last) = idle.iter().max().filter(|_| idle.len() > IDLE) else { return };
            self.delete_bridge(&mut leases, *last);
        }
    }

    /// Makes links again that others have deleted, detached or set down since the last call.
    ///
    /// # Errors
    /// The kernel does not say which links there are; the next call tries it again.
    pub(super) fn look_at_links(&self) -> Result<()> {
        let mut notices = self.notices.lock();
        let news = notices.0.read(self.policy.group)?;
        let is_due = std::mem::take(&mut notices.1);
        drop(notices);
        let mut leases = self.leases.lock();
        if !is_due && !leases.are_concerned(&news) {
            return Ok(());
        }
        let mended = self.mend(&mut leases);
        if !matches!(mended, Ok(true)) {
            self.notices.lock().1 = true;
        }
        mended.map(drop)
    }

    /// Compares the links of living containers and the bridges with what they should be, and makes up for the
    /// difference. A container's own link cannot be made again, because its other end is in the container. Returns
    /// whether all has succeeded.
    ///
    /// # Errors
    /// The kernel does not say which links there are.
    pub(super) fn mend(&self, leases: &mut Leases) -> Result<bool> {
        let found = link::of_group(&mut self.host.lock(), self.policy.group)?;
        let links: HashMap<u32, Link> = found.into_iter().map(|link| (link.index, link)).collect();
        let mut is_whole = true;
        for (subnet, index) in leases.bridges.clone() {
            let name = bridge_name(subnet);
            match links.get(&index) {
                Some(link) if link.is_up => {}
                Some(_) => match self.restore_bridge(leases, subnet, index) {
                    Ok(()) => tracing::warn!(
                        name,
                        text = "another program has set it down",
                        "network.link-restored"
                    ),
                    Err(error) => {
                        is_whole = false;
                        tracing::error!(name, error = chain(&error), "network.link-lost");
                    }
                },
                None => drop(leases.bridges.remove(&subnet)),
            }
        }
        let connected = leases.members.values().filter(|placed| placed.is_connected(leases));
        for state in connected.map(|placed| placed.state.clone()).collect::<Vec<_>>() {
            let name = state.host_link();
            let Some(link) = links.get(&state.link).filter(|link| link.name == name) else {
                if let Some(placed) = leases.members.get_mut(&state.id) {
                    placed.is_cut = true;
                }
                continue;
            };
            if link.is_up
                && link.master.is_some()
                && link.master == leases.bridges.get(&state.subnet).copied()
            {
                continue;
            }
            match self.reattach(leases, &state) {
                Ok(()) => tracing::warn!(
                    name,
                    text = "another program has deleted its bridge, detached it or set it down",
                    "network.link-restored"
                ),
                Err(error) => {
                    is_whole = false;
                    tracing::error!(name, error = chain(&error), "network.link-lost");
                }
            }
        }
        Ok(is_whole)
    }

    /// Makes a container's link a port of its bridge again, which is made if there is none.
    fn reattach(&self, leases: &mut Leases, state: &State) -> std::result::Result<(), link::Error> {
        let bridge = match leases.bridges.get(&state.subnet) {
            Some(index) => *index,
            None => {
                let index = self.make_bridge(state.subnet, self.gateway6(leases, state.subnet))?;
                tracing::warn!(
                    name = bridge_name(state.subnet),
                    text = "another program has deleted it",
                    "network.link-restored"
                );
                leases.bridges.insert(state.subnet, index);
                index
            }
        };
        self.attach_to(state, state.link, bridge)
    }

    /// Raises a bridge and gives it the addresses that it lacks.
    pub(super) fn restore_bridge(
        &self,
        leases: &Leases,
        subnet: Ipv4Net,
        index: u32,
    ) -> std::result::Result<(), link::Error> {
        let name = bridge_name(subnet);
        let bridge = self.bridge_of(subnet, &name, self.gateway6(leases, subnet));
        link::restore_bridge(&mut self.host.lock(), index, &bridge)
    }

    /// Returns the IPv6 address of a subnet's bridge, if containers have IPv6 or one of the subnet has it from an
    /// earlier server.
    fn gateway6(&self, leases: &Leases, subnet: Ipv4Net) -> Option<Ipv6Net> {
        let earlier = || {
            let mut members = leases.members.values().filter(|placed| placed.state.subnet == subnet);
            members.find_map(|placed| placed.state.gateway_v6().zip(placed.state.ipv6))
        };
        let earlier = || earlier().and_then(|(address, net)| Ipv6Net::new(address, net.prefix_len()).ok());
        self.ipv6(subnet, gateway(subnet)).or_else(earlier)
    }

    /// See [`crate::Networks::is_cut`].
    pub fn is_cut(&self, state: &State) -> bool {
        self.leases.lock().members.get(&state.id).is_some_and(|placed| placed.is_cut)
    }

    /// See [`crate::Networks::holds`].
    pub fn holds(&self, veth: &super::Veth) -> bool {
        match link::find_by_index(&mut self.host.lock(), veth.host) {
            Ok(found) => found.is_some_and(|link| link.name == format!("w{}-0", veth.id)),
            // What cannot be found out shows when the link is used.
            Err(_) => true,
        }
    }

    /// Takes up another source address of the default route: a lease may have given the host another one, or there was
    /// no default route at the start.
    ///
    /// # Errors
    /// The kernel's; the next call tries it again.
    pub(super) fn follow_external(&self) -> Result<()> {
        if self.settings.external.is_some() {
            return Ok(());
        }
        // Without a route the address may come back.
        let Some(source) = route::source_to(&mut self.host.lock(), ELSEWHERE)? else { return Ok(()) };
        let mut external = self.external.write();
        if *external == source {
            return Ok(());
        }
        let before: IpAddr = *external;
        self.firewall.mended(|firewall| firewall.set_external(&[source]))?;
        *external = source;
        tracing::warn!(%before, now = %source, "network.external-changed");
        Ok(())
    }
}
