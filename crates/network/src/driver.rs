//! The networks of all containers of an instance: what the engine asks for, whichever driver does it.

use crate::bridged::{Bridged, Settings, Subnet, Veth};
use crate::egress::{Rule, Step};
use crate::error::{Error, Result};
use crate::files::{self, Names};
use crate::given::{self, Namespace};
use crate::outside::{self, Launched, Outside};
use crate::ports::{Mapping, Transport};
use crate::state::{Bandwidth, Network, State};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// Which network containers get.
#[derive(Debug, Clone, Default)]
pub enum Driver {
    /// Loopback alone.
    #[default]
    Loopback,
    /// A port on a bridge, behind a firewall of ours.
    Bridged(Box<Settings>),
    /// What other programs make.
    Outside(Box<outside::Settings>),
}

/// The names of a container.
#[derive(Debug, Clone, Copy)]
pub struct Named<'a> {
    /// Its unique id.
    pub id: &'a str,
    /// Its name for clients.
    pub handle: &'a str,
}

/// A port mapping that a client asks for. Port 0 on the host is one of the pool; port 0 in the container is the
/// same as the host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// The protocol.
    pub transport: Transport,
    /// On the host.
    pub host: u32,
    /// In the container.
    pub container: u32,
}

/// What a container's network is to be.
#[derive(Debug, Clone, Default)]
pub struct Order {
    /// Garden's `network` field: a subnet or an address (Garden §4.2); empty: a subnet of the pool. [`LOOPBACK`]:
    /// loopback alone.
    pub network: String,
    /// A namespace of the operator's, instead of one of the container's own.
    pub namespace: Option<Namespace>,
    /// Ports of the host that lead to the container.
    pub ports: Vec<Wanted>,
    /// What the container may reach although the policy denies it.
    pub egress: Vec<Rule>,
    /// Bounds of its traffic.
    pub bandwidth: Option<Bandwidth>,
    /// Its name servers, instead of those that the server gives to all; none: those.
    pub dns: Vec<IpAddr>,
}

/// The `network` of a container that is to have loopback alone, whatever the driver is.
pub const LOOPBACK: &str = "none";

impl Order {
    /// Whether the container is to have loopback alone, whatever the driver is.
    pub fn is_loopback(&self) -> bool {
        self.network == LOOPBACK && self.namespace.is_none()
    }

    /// Returns something that only a driver can do.
    pub(crate) fn needs(&self) -> Option<&'static str> {
        let named = [
            (!self.network.is_empty() && !self.is_loopback(), "an address"),
            (!self.ports.is_empty(), "a port mapping"),
            (!self.egress.is_empty(), "an egress rule"),
            (self.bandwidth.is_some(), "a bandwidth limit"),
        ];
        named.into_iter().find_map(|(is_named, what)| is_named.then_some(what))
    }

    /// Returns something that a container with loopback alone cannot have.
    fn needs_network(&self) -> Option<&'static str> {
        self.needs().or((!self.dns.is_empty()).then_some("a name server"))
    }
}

/// The texts of a container's hosts and resolv.conf.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// For /etc/hosts.
    pub hosts: String,
    /// For /etc/resolv.conf.
    pub resolv: String,
}

/// The networks of an instance. Clones share them. All calls block. Where other programs make the networks, some take
/// as long as these do ([`Network::Outside`]).
#[derive(Debug, Clone)]
pub struct Networks(Driven);

#[derive(Debug, Clone)]
enum Driven {
    Loopback,
    Bridged(Arc<Bridged>),
    Outside(Arc<Outside>),
}

impl Networks {
    /// Prepares the host for containers of the instance with this tag. `found` are the networks of living
    /// containers of an earlier server, with their handles and egress rules: their addresses, ports and rules
    /// stay as they are. `port` is what [`Networks::next_port`] has returned when that server ended: the pool of ports
    /// goes on there, as Garden's does (Garden server §4.6).
    ///
    /// # Errors
    /// A kernel feature or a program is missing, settings contradict each other, or there are containers on bridges of
    /// ours and the driver is another one: nobody would make the firewall again that keeps them apart.
    pub fn open(tag: &str, driver: &Driver, found: Vec<Found>, port: u32) -> Result<Self> {
        if !matches!(driver, Driver::Bridged(_)) {
            let ours = found.iter().filter(|found| matches!(found.network, Network::Bridged(_)));
            let handles: Vec<&str> = ours.map(|found| found.handle.as_str()).collect();
            if let Some(first) = handles.first() {
                return Err(Error::Unguarded { first: (*first).to_owned(), others: handles.len() - 1 });
            }
        }
        Ok(Self(match driver {
            Driver::Loopback => Driven::Loopback,
            Driver::Bridged(settings) => Driven::Bridged(Bridged::open(tag, settings, found, port)?),
            Driver::Outside(settings) => {
                let states = found.iter().filter_map(|found| match &found.network {
                    Network::Outside(state) => Some(&**state),
                    Network::Bridged(_) | Network::Given(_) => None,
                });
                Driven::Outside(Arc::new(Outside::open(settings, states, port)?))
            }
        }))
    }

    fn own(&self) -> Option<&Arc<Bridged>> {
        match &self.0 {
            Driven::Bridged(bridged) => Some(bridged),
            Driven::Loopback | Driven::Outside(_) => None,
        }
    }

    /// Returns the driver that has made a network, if it is this server's.
    fn whose<'a>(&'a self, network: &'a Network, what: &'static str) -> Result<Whose<'a>> {
        match (&self.0, network) {
            (Driven::Bridged(bridged), Network::Bridged(state)) => Ok(Whose::Bridged(bridged, state)),
            (Driven::Outside(outside), Network::Outside(state)) => Ok(Whose::Outside(outside, state)),
            (_, Network::Given(_)) => Err(given::Error::Cannot { what }.into()),
            (Driven::Loopback, _) => Err(Error::NoNetwork { what }),
            _ => Err(Error::OtherDriver { what }),
        }
    }

    /// Makes a veth pair into a network namespace: it is raised and joins a bridge when a container gets it. `None` if
    /// the driver needs none.
    ///
    /// # Errors
    /// The kernel's.
    pub fn veth(&self, namespace: BorrowedFd<'_>) -> Result<Option<Veth>> {
        self.own().map(|bridged| bridged.veth(namespace)).transpose()
    }

    /// Removes a veth pair that no container is to have.
    ///
    /// # Errors
    /// The kernel's.
    pub fn discard(&self, veth: &Veth) -> Result<()> {
        self.own().map_or(Ok(()), |bridged| bridged.discard(veth))
    }

    /// Makes the bridge of a free subnet of the pool; `None` if the driver needs none.
    ///
    /// # Errors
    /// The pool is exhausted, or the kernel refuses.
    pub fn subnet(&self) -> Result<Option<Subnet>> {
        self.own().map(|bridged| bridged.subnet()).transpose()
    }

    /// Reserves addresses and ports for a container. `ready` returns a subnet of the pool. What is reserved is given
    /// back by [`Networks::disconnect`] and [`Networks::release`].
    ///
    /// # Errors
    /// The request is not valid, or what it asks for is taken.
    pub fn reserve(
        &self,
        order: &Order,
        named: Named<'_>,
        veth: Option<&Veth>,
        ready: impl FnOnce() -> Result<Option<Subnet>>,
    ) -> Result<Option<Network>> {
        if let Some(namespace) = &order.namespace {
            return Ok(Some(Network::Given(given::State::new(namespace, order)?)));
        }
        match (&self.0, order.needs_network()) {
            (_, None) if order.is_loopback() => Ok(None),
            (_, Some(what)) if order.is_loopback() => Err(Error::Loopback { what }),
            (Driven::Loopback, None) => Ok(None),
            (Driven::Loopback, Some(what)) => Err(Error::NoNetwork { what }),
            (Driven::Bridged(bridged), _) => {
                let veth = veth.ok_or(Error::NoLink)?;
                Ok(Some(Network::Bridged(bridged.reserve(order, veth, ready)?)))
            }
            (Driven::Outside(outside), _) => {
                Ok(Some(Network::Outside(Box::new(outside.reserve(order, named)?))))
            }
        }
    }

    /// Connects a container's namespace with its network before the launch, as far as the driver can. Returns whether
    /// the network's state has changed.
    ///
    /// # Errors
    /// The kernel's, or a program's; a part may be there, which [`Networks::disconnect`] and [`Networks::release`]
    /// remove.
    pub fn connect(
        &self,
        network: &mut Network,
        namespace: BorrowedFd<'_>,
        veth: Option<Veth>,
        handle: &str,
        rules: &[Rule],
    ) -> Result<bool> {
        match (&self.0, network) {
            (Driven::Bridged(bridged), Network::Bridged(state)) => {
                bridged.connect(state, veth.ok_or(Error::NoLink)?, handle, rules)?;
                Ok(false)
            }
            (Driven::Outside(outside), Network::Outside(state)) => outside.connect(state, namespace),
            (_, Network::Given(_)) => Ok(false),
            _ => Err(Error::OtherDriver { what: "a connection" }),
        }
    }

    /// Does what remains once a container's init runs. If that changes the network's state, this returns what it adds
    /// to the container's properties.
    ///
    /// # Errors
    /// A program's.
    pub fn launched(
        &self,
        network: &mut Network,
        launched: Launched<'_>,
    ) -> Result<Option<BTreeMap<String, String>>> {
        match (&self.0, network) {
            (Driven::Outside(outside), Network::Outside(state)) => outside.launched(state, launched),
            _ => Ok(None),
        }
    }

    /// Reserves a port of the host for one of the container's. It has no effect before [`Networks::map`], except that
    /// a network plugin has mapped it then.
    ///
    /// # Errors
    /// The port is another container's, or the pool is exhausted.
    pub fn reserve_port(&self, network: &Network, wanted: Wanted) -> Result<Mapping> {
        match self.whose(network, "a port mapping")? {
            Whose::Bridged(bridged, state) => bridged.reserve_port(state, wanted),
            Whose::Outside(outside, state) => outside.reserve_port(state, wanted),
        }
    }

    /// Makes a reserved mapping work.
    ///
    /// # Errors
    /// The kernel's.
    pub fn map(&self, network: &Network, mapping: Mapping) -> Result<()> {
        match self.whose(network, "a port mapping")? {
            Whose::Bridged(bridged, state) => bridged.map(state, mapping),
            Whose::Outside(..) => Ok(()),
        }
    }

    /// Ends a mapping, or gives a reserved one back. A network plugin cannot be told of it: it ends with the container.
    pub fn unmap(&self, network: &Network, mapping: Mapping) {
        if let Ok(Whose::Bridged(bridged, state)) = self.whose(network, "a port mapping") {
            bridged.unmap(state, mapping);
        }
    }

    /// Sets the egress rules of a container. `steps` are all of them, compiled; `new` are those that the client has
    /// just added, with several in one request if `bulk`.
    ///
    /// # Errors
    /// The kernel's, or a program's.
    pub fn allow(&self, network: &Network, steps: &[Step], new: &[Rule], bulk: bool) -> Result<()> {
        match self.whose(network, "an egress rule")? {
            Whose::Bridged(bridged, state) => bridged.allow(state, steps),
            Whose::Outside(outside, state) => outside.allow(state, new, bulk),
        }
    }

    /// Checks all egress rules of a container, and compiles them if that is needed.
    ///
    /// # Errors
    /// A rule is not valid, or they are too many.
    pub fn check(&self, network: &Network, rules: &[Rule]) -> Result<Vec<Step>> {
        match self.whose(network, "an egress rule")? {
            Whose::Bridged(bridged, _) => bridged.check(rules),
            Whose::Outside(..) => {
                crate::egress::check(rules, true)?;
                Ok(Vec::new())
            }
        }
    }

    /// Has other programs take a container out of its network, which they may have begun to make, before its record is
    /// removed. `namespace` is the container's, if it is still known.
    ///
    /// # Errors
    /// A program's: this can be tried again.
    pub fn disconnect(&self, network: &Network, namespace: Option<BorrowedFd<'_>>) -> Result<()> {
        let Network::Outside(state) = network else { return Ok(()) };
        let patience = match &self.0 {
            Driven::Outside(outside) => outside.patience(),
            Driven::Loopback | Driven::Bridged(_) => outside::PATIENCE,
        };
        Ok(outside::remove(state, namespace, patience)?)
    }

    /// Takes a container out of the firewall, and gives its ports back; its address is given back by
    /// [`Networks::tend`], or as soon as somebody asks for it.
    pub fn release(&self, network: &Network) {
        match self.whose(network, "a release") {
            Ok(Whose::Bridged(bridged, state)) => bridged.release(state),
            Ok(Whose::Outside(outside, state)) => outside.release(state),
            // Another driver's, of an earlier server: nothing of it is reserved here.
            Err(_) => {}
        }
    }

    /// Gives back the addresses of released networks, once the kernel has removed their links; makes links again that
    /// other programs have deleted or set down, and follows the host's address.
    pub fn tend(&self) {
        if let Some(bridged) = self.own() {
            bridged.tend();
        }
    }

    /// Returns the texts of a container's hosts and resolv.conf.
    ///
    /// # Errors
    /// A text would be too long.
    pub fn files(&self, network: Option<&Network>, handle: &str) -> Result<Files> {
        if let Some(Network::Given(state)) = network {
            return state.files(handle, &self.names());
        }
        match network.map(|network| self.whose(network, "files")).transpose()? {
            Some(Whose::Bridged(bridged, state)) => bridged.files(state, handle),
            Some(Whose::Outside(outside, state)) => outside.files(state, handle),
            None => Ok(Files {
                hosts: files::hosts(Ipv4Addr::LOCALHOST.into(), None, handle, &[])?,
                resolv: std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default(),
            }),
        }
    }

    /// What the operator has set for the names of containers.
    fn names(&self) -> Names<'_> {
        match &self.0 {
            Driven::Loopback => Names::default(),
            Driven::Bridged(bridged) => bridged.names(),
            Driven::Outside(outside) => outside.names(),
        }
    }

    /// Whether a veth pair that was made ahead is still there: another program may have deleted it.
    pub fn holds(&self, veth: &Veth) -> bool {
        self.own().is_none_or(|bridged| bridged.holds(veth))
    }

    /// Whether another program has deleted the link of a container, which cannot be made again.
    pub fn is_cut(&self, network: &Network) -> bool {
        matches!(self.whose(network, "a link"), Ok(Whose::Bridged(bridged, state)) if bridged.is_cut(state))
    }

    /// Returns the host's address to which the mapped ports of all containers belong, if it is the same for all. It
    /// changes when the host gets another one.
    pub fn external(&self) -> Option<IpAddr> {
        self.own().map(|bridged| bridged.external())
    }

    /// Returns the bytes that a container has received and sent.
    pub fn traffic(&self, network: &Network) -> Option<(u64, u64)> {
        match self.whose(network, "metrics").ok()? {
            Whose::Bridged(bridged, state) => bridged.traffic(state),
            Whose::Outside(..) => None,
        }
    }

    /// Garden's properties of a container with this network (Garden §4.3).
    pub fn properties(&self, network: &Network) -> Vec<(&'static str, String)> {
        match network {
            Network::Bridged(state) => self.own().map_or_else(Vec::new, |bridged| bridged.properties(state)),
            Network::Outside(state) => state.properties(),
            Network::Given(state) => state.properties(),
        }
    }

    /// The most containers with a dynamic subnet.
    pub fn capacity(&self) -> Option<u64> {
        self.own().map(|bridged| bridged.capacity())
    }

    /// Looks whether the firewall is still as it was made, and makes it anew otherwise. Returns what was damaged.
    ///
    /// # Errors
    /// It cannot be made anew.
    pub fn watch(&self) -> Result<Option<String>> {
        self.own().map_or(Ok(None), |bridged| bridged.watch())
    }

    /// Returns the number of ports between the start of the pool and the port that is given out next. 0 without a pool.
    pub fn next_port(&self) -> u32 {
        match &self.0 {
            Driven::Loopback => 0,
            Driven::Bridged(bridged) => bridged.next_port(),
            Driven::Outside(outside) => outside.next_port(),
        }
    }

    /// Removes the bridges that no container uses; with `all` also the firewall.
    pub fn close(&self, all: bool) {
        if let Some(bridged) = self.own() {
            bridged.close(all);
        }
    }
}

/// A driver with a network of its own.
#[derive(Debug)]
enum Whose<'a> {
    Bridged(&'a Bridged, &'a State),
    Outside(&'a Outside, &'a outside::State),
}

/// The network of a container that an earlier server has made.
#[derive(Debug)]
pub struct Found {
    /// Its network.
    pub network: Network,
    /// The container's handle.
    pub handle: String,
    /// Its egress rules.
    pub rules: Vec<Rule>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(handle: &str) -> Found {
        let state = State {
            id: "qkss70he4db".into(),
            link: 7,
            subnet: "10.254.0.4/30".parse().unwrap(),
            ip: "10.254.0.6".parse().unwrap(),
            ipv6: None,
            mac: [2; 6],
            external: "10.77.0.2".parse().unwrap(),
            mtu: 1500,
            bandwidth: None,
            dns: Vec::new(),
            mappings: Vec::new(),
        };
        Found { network: Network::Bridged(state), handle: handle.into(), rules: Vec::new() }
    }

    #[test]
    fn containers_on_bridges_are_not_left_to_a_server_without_a_firewall() {
        let open = |found| Networks::open("ab", &Driver::Loopback, found, 0).map(drop);
        assert!(open(Vec::new()).is_ok());
        let error = open(vec![found("web"), found("db")]).unwrap_err().to_string();
        assert!(
            error.contains("the container web and 1 more of an earlier server are on a bridge"),
            "{error}"
        );
        assert!(error.contains("--network bridge") && error.contains("wardian reset"), "{error}");
    }
}
