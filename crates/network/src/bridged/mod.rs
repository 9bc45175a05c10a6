//! The driver of our own: each container has a veth pair, whose end on the host is a port of its subnet's bridge,
//! behind a firewall in nftables.
//!
//! What takes long is made ahead: the pair with its namespace ([`Bridged::veth`]), and bridges of free subnets
//! ([`Bridged::subnet`]). A create then sets a port, an address and a route, and adds elements to the firewall's sets.
//! A teardown only removes the elements: the kernel removes a pair with its namespace, after the reply.

mod start;
mod upkeep;

pub use start::filters_bridges;

use crate::conntrack::Conntrack;
use crate::egress::{self, Rule, Step};
use crate::error::{Error, Result};
use crate::files;
use crate::firewall::program::{Member, Policy};
use crate::firewall::{Firewall, Health};
use crate::link::{self, Mac};
use crate::netlink::{Connection, Protocol};
use crate::notices::Notices;
use crate::ports::{Effect, Mapping, Ports, Transport};
use crate::route;
use crate::spec::Request;
use crate::state::{State, beside, bridge_name, gateway, mapped};
use crate::subnets::{Lease, Subnets};
use crate::{Files, Found, Order, Wanted, tc};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use parking_lot::{Mutex, RwLock};
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};
use wardian_sys::text::chain;

/// Settings of the driver.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Dynamic subnets of four addresses are taken from here.
    pub pool: Ipv4Net,
    /// A prefix of 96 bits: each container also has the IPv6 address that ends with its IPv4 address.
    pub pool_v6: Option<Ipv6Net>,
    /// Containers reach nothing here, but for their own egress rules …
    pub deny: Vec<IpNet>,
    /// … and these networks.
    pub allow: Vec<IpNet>,
    /// Containers reach the host's own addresses.
    pub host_access: bool,
    /// The name servers of containers; none: the host's.
    pub dns_servers: Vec<IpAddr>,
    /// Name servers after the others.
    pub more_dns_servers: Vec<IpAddr>,
    /// Lines for the end of every hosts file.
    pub host_entries: Vec<String>,
    /// The host's address to which mapped ports belong; `None`: the source address of the default route.
    pub external: Option<IpAddr>,
    /// Bytes of the largest packet; `None`: that of the interface with the external address. At most [`LARGEST`].
    pub mtu: Option<u32>,
    /// The first port of the pool for mappings that name none.
    pub first_port: u16,
    /// The number of ports in that pool.
    pub ports: u16,
    /// The NFLOG group that gets the packets of egress rules with logging.
    pub log_group: u16,
    /// The most flows that a container begins at a time; 0: no bound.
    pub flows: u32,
}

/// The MTU of containers is at most this (Garden §4.4).
const LARGEST: u32 = 1500;
/// An address whose route tells the default interface (Garden §4.5). Nothing is sent to it.
const ELSEWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(8, 8, 8, 8));
/// Bridges of free dynamic subnets that are kept for the next containers: one takes 41 KiB, and 40 ms to delete, in
/// which nobody can change any link of the host.
const IDLE: usize = 32;
/// The most mapped ports of a container: each is in its record and in the reply to `info`.
const MAPPED: usize = 1024;
/// The most superfluous bridges that one [`Bridged::tend`] deletes.
const DELETED: usize = 8;
/// Flags of a link's id: 55 bits, five a character.
pub(crate) const DIGITS: &[u8; 32] = b"0123456789abcdefghijklmnopqrstuv";

/// A veth pair into a network namespace that no container has yet.
#[derive(Debug)]
pub struct Veth {
    id: String,
    /// The number of the host's end.
    host: u32,
    /// The number of the container's end, in its namespace.
    inside: u32,
    mac: Mac,
    /// A connection in the namespace.
    connection: Connection,
}

/// A free subnet of the pool with its bridge. It is given to a container by [`Bridged::reserve`].
#[derive(Debug)]
pub struct Subnet(Lease);

/// The driver.
#[derive(Debug)]
pub struct Bridged {
    settings: Settings,
    policy: Policy,
    /// The host's address to which mapped ports belong. Held while the firewall is told of a container, so that a change
    /// misses none; never taken with the lock of the leases held.
    external: RwLock<IpAddr>,
    mtu: u32,
    /// What the kernel tells of links, and whether they must be looked at in any case.
    notices: Mutex<(Notices, bool)>,
    /// rtnetlink in the host's network namespace. This lock is taken after that of the leases.
    host: Mutex<Connection>,
    firewall: Firewall,
    leases: Mutex<Leases>,
    next: AtomicU64,
    /// See [`link::Port::hairpin`].
    hairpin: bool,
    /// Whether the server has ended. Held by the background work, which must not bring back what the end removes.
    closed: Mutex<bool>,
}

/// Addresses, ports and bridges.
#[derive(Debug)]
struct Leases {
    subnets: Subnets,
    ports: Ports,
    /// Networks that containers have, by their ids.
    members: HashMap<String, Placed>,
    /// Networks of ended containers whose addresses are still taken, by their ids: their links may be there, and
    /// connection tracking remembers their flows.
    departed: HashMap<String, State>,
    /// The numbers of all bridges, those of free dynamic subnets included.
    bridges: HashMap<Ipv4Net, u32>,
    /// UDP ports of the host that lead elsewhere since the last [`Bridged::tend`].
    turned: HashSet<(IpAddr, u16)>,
}

/// A container in its subnet.
#[derive(Debug)]
struct Placed {
    /// Its network, without ports that were mapped later.
    state: State,
    /// Whether its link has been made a port of the bridge.
    is_connected: bool,
    /// Whether somebody has deleted its link.
    is_cut: bool,
}

impl Leases {
    /// Notes UDP mappings that begin or end.
    fn turn(&mut self, external: IpAddr, mappings: &[Mapping]) {
        let udp = mappings.iter().filter(|mapping| mapping.transport == Transport::Udp);
        self.turned.extend(udp.map(|mapping| (external, mapping.host)));
    }
}

/// Returns the group of an instance's links: never 0, to which all others belong.
pub fn group(tag: &str) -> u32 {
    let digits: String = tag.chars().filter(char::is_ascii_hexdigit).take(8).collect();
    // ip(8) takes larger groups for negative ones.
    u32::from_str_radix(&digits, 16).unwrap_or(0) & 0x3fff_ffff | 1 << 30
}

/// Returns the name of what a counter's value names: eleven digits of base 32.
fn name(number: u64) -> String {
    let digit = |place: u32| char::from(DIGITS[(number >> (5 * place)) as usize % DIGITS.len()]);
    (0..11).rev().map(digit).collect()
}

impl Bridged {
    /// See [`crate::Networks::open`].
    pub fn open(tag: &str, settings: &Settings, found: Vec<Found>, port: u32) -> Result<Arc<Self>> {
        let mut host = Connection::open(Protocol::Route)?;
        // Before anything is looked at: what changes later is told.
        let notices = Notices::open()?;
        let way = route::way_to(&mut host, settings.external.unwrap_or(ELSEWHERE))?;
        let external = start::external(settings, way.as_ref(), &found);
        let mtu = settings
            .mtu
            .or(start::uplink(&mut host, external, way.as_ref())?)
            .unwrap_or(LARGEST)
            .min(LARGEST);
        start::forward(&mut host, settings.pool_v6.is_some())?;
        start::warn(settings, way.as_ref());
        let group = group(tag);
        let subnets = Subnets::new(settings.pool)?;
        let ports = Ports::new(settings.first_port.into(), settings.ports.into(), port)?;
        let dns = settings.dns_servers.iter().chain(&settings.more_dns_servers).copied().collect();
        let policy = Policy {
            group,
            deny: settings.deny.clone(),
            allow: settings.allow.clone(),
            host_access: settings.host_access,
            dns,
            log_group: settings.log_group,
            flows: settings.flows,
        };
        let mut leases = Leases {
            subnets,
            ports,
            members: HashMap::new(),
            departed: HashMap::new(),
            bridges: HashMap::new(),
            turned: HashSet::new(),
        };
        let members = start::restore(&mut leases, found, external);
        start::adopt(&mut host, &mut leases, group, settings.pool, mtu)?;
        start::avoid(&mut host, &mut leases.subnets, group, settings.pool)?;
        let firewall = Firewall::open(tag, &policy)?;
        firewall.replace_all(&members)?;
        let keep = members.iter().map(|member| member.v4).collect();
        if let Err(error) = Conntrack::open().and_then(|mut flows| flows.forget_others(settings.pool, &keep))
        {
            tracing::warn!(error = chain(&error), "network.flows-left");
        }
        let began = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let bridged = Self {
            settings: settings.clone(),
            policy,
            external: RwLock::new(external),
            mtu,
            notices: Mutex::new((notices, false)),
            host: Mutex::new(host),
            firewall,
            leases: Mutex::new(leases),
            next: AtomicU64::new(began.as_nanos() as u64),
            hairpin: filters_bridges(),
            closed: Mutex::new(false),
        };
        bridged.take_up()?;
        Ok(Arc::new(bridged))
    }

    /// Brings the links of an earlier server to what they should be.
    fn take_up(&self) -> Result<()> {
        let mut leases = self.leases.lock();
        if self.settings.pool_v6.is_some() {
            // The earlier server may have made them without IPv6.
            for (subnet, index) in &leases.bridges {
                self.restore_bridge(&leases, *subnet, *index)?;
            }
        }
        self.notices.lock().1 = !self.mend(&mut leases)?;
        Ok(())
    }

    /// See [`crate::Networks::veth`].
    pub fn veth(&self, namespace: BorrowedFd<'_>) -> Result<Veth> {
        let id = name(self.next.fetch_add(1, Ordering::Relaxed));
        let (host, inside) = (format!("w{id}-0"), format!("w{id}-1"));
        let mac = link::random_mac();
        let pair = link::Veth {
            host: &host,
            inside: &inside,
            host_mac: link::random_mac(),
            inside_mac: mac,
            mtu: self.mtu,
            group: self.policy.group,
        };
        let host = link::make_veth(&mut self.host.lock(), &pair, namespace)?;
        let mut connection = Connection::open_in(namespace, Protocol::Route)?;
        let inside = link::find_by_name(&mut connection, &inside)?.ok_or(Error::NoLink)?.index;
        Ok(Veth { id, host, inside, mac, connection })
    }

    /// See [`crate::Networks::subnet`].
    pub fn subnet(&self) -> Result<Subnet> {
        loop {
            let (lease, has_bridge) = {
                let mut leases = self.leases.lock();
                match leases.subnets.reserve_dynamic() {
                    Err(_) if !leases.departed.is_empty() => {
                        drop(leases);
                        self.hurry(|_| true);
                        leases = self.leases.lock();
                        let lease = leases.subnets.reserve_dynamic()?;
                        (lease, leases.bridges.contains_key(&lease.subnet))
                    }
                    lease => {
                        let lease = lease?;
                        (lease, leases.bridges.contains_key(&lease.subnet))
                    }
                }
            };
            if has_bridge {
                return Ok(Subnet(lease));
            }
            let made = self.make_bridge(lease.subnet, self.ipv6(lease.subnet, lease.gateway));
            let mut leases = self.leases.lock();
            match made {
                Ok(index) => {
                    leases.bridges.insert(lease.subnet, index);
                    return Ok(Subnet(lease));
                }
                // Another instance's: it has this subnet.
                Err(link::Error::Exists { name }) => {
                    leases.subnets.release(&lease);
                    leases.subnets.withhold(lease.subnet);
                    tracing::info!(subnet = %lease.subnet, name, "network.subnet-in-use");
                }
                Err(error) => {
                    leases.subnets.release(&lease);
                    return Err(error.into());
                }
            }
        }
    }

    fn make_bridge(
        &self,
        subnet: Ipv4Net,
        gateway6: Option<Ipv6Net>,
    ) -> std::result::Result<u32, link::Error> {
        let name = bridge_name(subnet);
        link::make_bridge(&mut self.host.lock(), &self.bridge_of(subnet, &name, gateway6))
    }

    fn bridge_of<'a>(&self, subnet: Ipv4Net, name: &'a str, gateway6: Option<Ipv6Net>) -> link::Bridge<'a> {
        // Containers remember the address of their gateway: a bridge that is made again has the same one.
        let [a, b, c, d] = subnet.network().octets();
        link::Bridge {
            name,
            mac: [0x02, self.policy.group.to_be_bytes()[3], a, b, c, d],
            mtu: self.mtu,
            group: self.policy.group,
            gateway: Ipv4Net::new(gateway(subnet), subnet.prefix_len()).unwrap_or(subnet),
            gateway6,
        }
    }

    /// Returns the IPv6 address beside an IPv4 address of a subnet, if containers have IPv6.
    fn ipv6(&self, subnet: Ipv4Net, address: Ipv4Addr) -> Option<Ipv6Net> {
        let prefix = self.settings.pool_v6?;
        let net = Ipv6Net::new(prefix.addr(), 96 + subnet.prefix_len()).ok()?;
        Some(beside(net, address))
    }

    /// See [`crate::Networks::reserve`].
    pub fn reserve(
        &self,
        order: &Order,
        veth: &Veth,
        ready: impl FnOnce() -> Result<Option<Subnet>>,
    ) -> Result<State> {
        let request = Request::parse(&order.network)?;
        egress::check(&order.egress, self.settings.pool_v6.is_some())?;
        let lease = match request {
            Request::Dynamic => match ready()? {
                Some(Subnet(lease)) => lease,
                None => self.subnet()?.0,
            },
            request => self.acquire(&request)?,
        };
        let mut state = State {
            id: veth.id.clone(),
            link: veth.host,
            subnet: lease.subnet,
            ip: lease.ip,
            ipv6: self.ipv6(lease.subnet, lease.ip),
            mac: veth.mac,
            external: *self.external.read(),
            mtu: self.mtu,
            bandwidth: order.bandwidth,
            dns: order.dns.clone(),
            mappings: Vec::new(),
        };
        let placed = Placed { state: state.clone(), is_connected: false, is_cut: false };
        self.leases.lock().members.insert(veth.id.clone(), placed);
        for wanted in &order.ports {
            match self.reserve_port(&state, *wanted) {
                Ok(mapping) => state.mappings.push(mapping),
                Err(error) => {
                    self.release_ports(&state);
                    self.give_back(&state);
                    return Err(error);
                }
            }
        }
        Ok(state)
    }

    /// Leases an address that a client has named. If it is taken by a container that has just been destroyed, what is
    /// left of that one is removed at once instead of in the background.
    fn acquire(&self, request: &Request) -> Result<Lease> {
        self.free_on_host(request)?;
        let first = self.leases.lock().subnets.acquire(request);
        let (Request::Subnet(subnet) | Request::Address { subnet, .. }) = request else { return Ok(first?) };
        if first.is_err() && self.hurry(|state| route::overlap(state.subnet, *subnet)) {
            return Ok(self.leases.lock().subnets.acquire(request)?);
        }
        Ok(first?)
    }

    /// Checks that neither the gateway nor the address that a client has named lies in a network that the host is in:
    /// the host would lose its way there. Networks inside a large subnet do no harm, because their routes are more
    /// specific, and neither do larger networks that the host reaches by a gateway.
    fn free_on_host(&self, request: &Request) -> Result<()> {
        let (subnet, ip) = match *request {
            Request::Dynamic => return Ok(()),
            Request::Subnet(subnet) => (subnet, None),
            Request::Address { subnet, ip } => (subnet, Some(ip)),
        };
        if self.leases.lock().bridges.contains_key(&subnet) {
            return Ok(());
        }
        let mut host = self.host.lock();
        for ip in [Some(gateway(subnet)), ip].into_iter().flatten() {
            if let Some(found) = route::host_network(&mut host, ip, self.policy.group)? {
                return Err(Error::HostNetwork { subnet, network: found.network, link: found.link });
            }
        }
        Ok(())
    }

    /// Removes at once what is left of some ended containers. Returns whether there were any.
    fn hurry(&self, which: impl Fn(&State) -> bool) -> bool {
        let departed: Vec<State> =
            self.leases.lock().departed.values().filter(|state| which(state)).cloned().collect();
        let gone: Vec<State> = departed.into_iter().filter(|state| self.unlink(state, true)).collect();
        self.forget(&gone);
        !gone.is_empty()
    }

    /// See [`crate::Networks::reserve_port`].
    pub fn reserve_port(&self, state: &State, wanted: Wanted) -> Result<Mapping> {
        let external = self.external();
        if external.is_loopback() {
            return Err(Error::NoExternal);
        }
        if external.is_ipv6() && state.ipv6.is_none() {
            return Err(Error::ExternalV6);
        }
        if state.mappings.len() >= MAPPED {
            return Err(Error::TooManyMappings { most: MAPPED });
        }
        let Wanted { transport, host, container } = wanted;
        let (mapping, effect) = self.leases.lock().ports.map(&state.id, transport, host, container)?;
        // Programs do not listen on ports of the pool, unless by chance.
        if host != 0 && effect == Effect::First && start::is_listened(*self.external.read(), &mapping) {
            let text = "a program of this host listens on the port; packets from outside go to the container";
            tracing::warn!(%transport, port = mapping.host, ip = %state.ip, text, "network.port-of-program");
        }
        Ok(mapping)
    }

    fn release_ports(&self, state: &State) {
        let external = self.external();
        let mut leases = self.leases.lock();
        for mapping in &state.mappings {
            leases.ports.unmap(&state.id, mapping);
        }
        leases.turn(external, &state.mappings);
    }

    /// Returns the number of the bridge of a container's subnet. The bridge of a subnet that a client has named is
    /// made with its first container.
    fn bridge(&self, state: &State) -> Result<u32> {
        let mut leases = self.leases.lock();
        if let Some(index) = leases.bridges.get(&state.subnet) {
            return Ok(*index);
        }
        // Under the lock: another container of the subnet needs the same bridge.
        let index = self.make_bridge(state.subnet, self.ipv6(state.subnet, state.gateway()))?;
        leases.bridges.insert(state.subnet, index);
        Ok(index)
    }

    /// See [`crate::Networks::connect`].
    pub fn connect(&self, state: &State, mut veth: Veth, handle: &str, rules: &[Rule]) -> Result<()> {
        let steps = egress::compile(rules)?;
        // The firewall first: no frame passes unseen.
        let external = {
            let external = self.external.read();
            let member = member(state, handle, &steps, *external);
            self.firewall.mended(|firewall| firewall.add(&member))?;
            *external
        };
        self.leases.lock().turn(external, &state.mappings);
        let inside = link::Inside {
            name: &state.inside_link(),
            index: veth.inside,
            address: Ipv4Net::new(state.ip, state.subnet.prefix_len()).unwrap_or(state.subnet),
            gateway: state.gateway(),
            address6: state.ipv6,
        };
        link::configure(&mut veth.connection, &inside)?;
        if let Some(limit) = state.bandwidth {
            let limit = tc::Limit { rate: limit.rate, burst: limit.burst };
            let mut host = self.host.lock();
            tc::limit_towards(&mut host, veth.host, limit)?;
            tc::limit_from(&mut host, veth.host, limit, &state.limiter(), self.policy.group)?;
        }
        let attach = || -> Result<()> { Ok(self.attach_to(state, veth.host, self.bridge(state)?)?) };
        if attach().is_err() {
            // Another program may have deleted a bridge that was made ahead.
            self.mend(&mut self.leases.lock())?;
            attach()?;
        }
        if let Some(placed) = self.leases.lock().members.get_mut(&state.id) {
            placed.is_connected = true;
        }
        Ok(())
    }

    fn attach_to(&self, state: &State, link: u32, bridge: u32) -> std::result::Result<(), link::Error> {
        let name = &state.host_link();
        let port = link::Port { name, index: link, bridge, inside_mac: state.mac, hairpin: self.hairpin };
        link::attach(&mut self.host.lock(), &port)
    }

    /// See [`crate::Networks::map`].
    pub fn map(&self, state: &State, mapping: Mapping) -> Result<()> {
        self.firewall.mended(|firewall| firewall.map_port(&state.id, mapping))?;
        let external = self.external();
        self.leases.lock().turn(external, &[mapping]);
        Ok(())
    }

    /// See [`crate::Networks::unmap`].
    pub fn unmap(&self, state: &State, mapping: Mapping) {
        // The port is given back only once nothing leads from it.
        match self.firewall.mended(|firewall| firewall.unmap_port(&state.id, mapping)) {
            Ok(()) => {
                let external = self.external();
                let mut leases = self.leases.lock();
                leases.ports.unmap(&state.id, &mapping);
                leases.turn(external, &[mapping]);
            }
            Err(error) => tracing::warn!(error = chain(&error), port = mapping.host, "network.port-left"),
        }
    }

    /// See [`crate::Networks::allow`].
    pub fn allow(&self, state: &State, steps: &[Step]) -> Result<()> {
        Ok(self.firewall.mended(|firewall| firewall.set_egress(&state.id, steps))?)
    }

    /// See [`crate::Networks::check`].
    pub fn check(&self, rules: &[Rule]) -> Result<Vec<Step>> {
        egress::check(rules, self.settings.pool_v6.is_some())?;
        Ok(egress::compile(rules)?)
    }

    /// See [`crate::Networks::release`].
    pub fn release(&self, state: &State) {
        match self.firewall.remove(&state.id) {
            // A create that failed early has not added it.
            Ok(()) | Err(crate::firewall::Error::Unknown { .. }) => {}
            // The next look at the firewall, or the next server, removes it.
            Err(error) => tracing::warn!(error = chain(&error), ip = %state.ip, "network.rules-left"),
        }
        self.release_ports(state);
        self.leases.lock().departed.insert(state.id.clone(), state.clone());
    }

    /// Whether an ended container's link is gone. With `force` it is deleted if the kernel has not yet: somebody may
    /// keep its namespace.
    fn unlink(&self, state: &State, force: bool) -> bool {
        let mut host = self.host.lock();
        let done = match link::find_by_index(&mut host, state.link) {
            Ok(Some(link)) if link.name == state.host_link() => {
                force && link::delete(&mut host, state.link).is_ok()
            }
            Ok(_) => true,
            Err(error) => {
                tracing::warn!(error = chain(&error), link = state.host_link(), "network.link-unknown");
                false
            }
        };
        if done
            && state.bandwidth.is_some()
            && let Err(error) = tc::remove_from(&mut host, state.link, &state.limiter())
        {
            tracing::warn!(error = chain(&error), link = state.limiter(), "network.link-left");
        }
        done
    }

    /// Forgets the flows of ended containers, and gives their addresses back.
    fn forget(&self, gone: &[State]) {
        if gone.is_empty() {
            return;
        }
        let of = |state: &State| [Some(state.ip.into()), state.ipv6.map(|net| IpAddr::from(net.addr()))];
        let addresses: Vec<IpAddr> = gone.iter().flat_map(of).flatten().collect();
        if let Err(error) = Conntrack::open().and_then(|mut flows| flows.forget(&addresses)) {
            tracing::warn!(error = chain(&error), ?addresses, "network.flows-left");
        }
        gone.iter().for_each(|state| self.give_back(state));
    }

    /// Gives an address back; with the last one of its subnet the bridge goes, unless it is kept for another
    /// container.
    fn give_back(&self, state: &State) {
        let lease = Lease { subnet: state.subnet, ip: state.ip, gateway: state.gateway() };
        let mut leases = self.leases.lock();
        // Two may have found the link gone at the same time.
        let is_ours = leases.members.remove(&state.id).is_some();
        leases.departed.remove(&state.id);
        if !is_ours || !leases.subnets.release(&lease) {
            return;
        }
        // Another subnet that overlaps it may come next.
        if !self.settings.pool.contains(&state.subnet) {
            self.delete_bridge(&mut leases, state.subnet);
        }
    }

    fn delete_bridge(&self, leases: &mut Leases, subnet: Ipv4Net) {
        let Some(index) = leases.bridges.remove(&subnet) else { return };
        if let Err(error) = link::delete(&mut self.host.lock(), index) {
            tracing::warn!(error = chain(&error), %subnet, "network.bridge-left");
        }
    }

    /// See [`crate::Networks::files`].
    pub fn files(&self, state: &State, handle: &str) -> Result<Files> {
        let own = Some(&*state.dns).filter(|own| !own.is_empty());
        let host = files::Host::read();
        let resolv = self.names().resolv(&host, state.gateway().into(), own, None);
        let ipv6 = state.ipv6.map(|net| net.addr());
        let hosts = files::hosts(state.ip.into(), ipv6, handle, &self.settings.host_entries)?;
        Ok(Files { hosts, resolv: resolv.text()? })
    }

    /// What the operator has set for the names of containers.
    pub fn names(&self) -> files::Names<'_> {
        let Settings { dns_servers, more_dns_servers, host_entries, .. } = &self.settings;
        files::Names { servers: dns_servers, additional: more_dns_servers, host_entries }
    }

    /// Removes a link that no container is to have.
    ///
    /// # Errors
    /// The kernel's.
    pub fn discard(&self, veth: &Veth) -> Result<()> {
        Ok(link::delete(&mut self.host.lock(), veth.host)?)
    }

    /// See [`crate::Networks::external`].
    pub fn external(&self) -> IpAddr {
        *self.external.read()
    }

    /// See [`crate::Networks::traffic`].
    pub fn traffic(&self, state: &State) -> Option<(u64, u64)> {
        let found = link::statistics(&mut self.host.lock(), state.link).ok()??;
        // What the host's end receives is what the container has sent.
        Some((found.sent_bytes, found.received_bytes))
    }

    /// See [`crate::Networks::properties`].
    pub fn properties(&self, state: &State) -> Vec<(&'static str, String)> {
        let joined = |all: &[IpAddr]| all.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let mut all = vec![
            ("garden.network.container-ip", state.ip.to_string()),
            ("garden.network.external-ip", state.external.to_string()),
            ("garden.network.host-ip", state.gateway().to_string()),
            ("kawasaki.bridge-interface", state.bridge()),
            ("kawasaki.container-interface", state.inside_link()),
            ("kawasaki.dns-servers", joined(&self.settings.dns_servers)),
            ("kawasaki.host-entries", self.settings.host_entries.join(", ")),
            ("kawasaki.host-interface", state.host_link()),
            ("kawasaki.iptable-inst", state.id.clone()),
            ("kawasaki.iptable-prefix", "w--".to_owned()),
            ("kawasaki.mtu", state.mtu.to_string()),
            ("kawasaki.subnet", state.subnet.to_string()),
        ];
        if let Some(net) = state.ipv6 {
            all.push(("garden.network.container-ipv6", net.addr().to_string()));
        }
        if !state.mappings.is_empty() {
            all.push(("garden.network.mapped-ports", mapped(&state.mappings)));
        }
        all
    }

    /// The number of dynamic subnets.
    pub fn capacity(&self) -> u64 {
        self.leases.lock().subnets.capacity()
    }

    /// See [`crate::Networks::watch`].
    pub fn watch(&self) -> Result<Option<String>> {
        let closed = self.closed.lock();
        if *closed {
            return Ok(None);
        }
        match self.firewall.check()? {
            Health::Intact => Ok(None),
            Health::Damaged(what) => {
                self.firewall.repair()?;
                Ok(Some(what))
            }
        }
    }

    /// See [`crate::Networks::next_port`].
    pub fn next_port(&self) -> u32 {
        self.leases.lock().ports.offset()
    }

    /// See [`crate::Networks::close`].
    pub fn close(&self, all: bool) {
        let mut closed = self.closed.lock();
        *closed = true;
        // Other links of ended containers go with their namespaces.
        let limited = |state: &&State| state.bandwidth.is_some();
        let limited: Vec<State> = self.leases.lock().departed.values().filter(limited).cloned().collect();
        for state in &limited {
            self.unlink(state, true);
        }
        // Otherwise the next server takes up the bridges, and the firewall goes on.
        if !all {
            return;
        }
        // In this order, as everywhere.
        let mut leases = self.leases.lock();
        let mut host = self.host.lock();
        for (subnet, index) in leases.bridges.drain() {
            if let Err(error) = link::delete(&mut host, index) {
                tracing::warn!(error = chain(&error), %subnet, "network.bridge-left");
            }
        }
        drop((host, leases));
        if let Err(error) = self.firewall.remove_tables() {
            tracing::warn!(error = chain(&error), "network.firewall-left");
        }
    }
}

fn member(state: &State, handle: &str, steps: &[Step], external: IpAddr) -> Member {
    Member {
        id: state.id.clone(),
        handle: handle.to_owned(),
        bridge: state.bridge(),
        port: state.host_link(),
        mac: state.mac,
        v4: state.ip,
        v6: state.ipv6.map(|net| (net.addr(), link::link_local(state.ip))),
        external: vec![external],
        mappings: state.mappings.clone(),
        egress: steps.to_vec(),
    }
}

/// What an instance had left in the host's network namespace.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Left {
    /// Its links, whose containers' ends go with them.
    pub links: usize,
    /// Whether its firewall was there.
    pub firewall: bool,
}

/// Removes the links and the firewall of an instance, of which no server runs and no container lives.
///
/// # Errors
/// The kernel's.
pub fn remove(tag: &str) -> Result<Left> {
    let mut host = Connection::open(Protocol::Route)?;
    let links = link::of_group(&mut host, group(tag))?;
    if !links.is_empty() {
        link::delete_group(&mut host, group(tag))?;
    }
    Ok(Left { links: links.len(), firewall: crate::firewall::remove(tag)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_count_in_base_32() {
        assert_eq!(name(0), "00000000000");
        assert_eq!(name(33), "00000000011");
        assert_eq!(name((1 << 55) - 1), "vvvvvvvvvvv");
        assert_eq!(name(1 << 55), "00000000000");
    }

    #[test]
    fn a_group_is_never_that_of_other_links() {
        assert_eq!(group("087686b5d781cc9e2fe29b6fd5c1782d"), 0x4876_86b5);
        assert_eq!(group(""), 1 << 30);
    }
}
