//! The driver for networks that other programs make: a network plugin as Garden has it, or CNI plugins.
//!
//! The two differ in when they are run. CNI plugins need a network namespace, which is there before the launch, so that
//! its results are in the container's first hosts and resolv.conf. Garden's plugin needs the pid of the container's
//! init; the two files are rewritten after it.
//!
//! Whatever happens to a container, its `down` or DEL is run before its record is removed, by this server or the next
//! one, until it succeeds. What they need is in the record.

use crate::cni::{self, Attachment, Call, List};
use crate::egress::Rule;
use crate::files;
use crate::netlink::{Connection, Protocol};
use crate::plugin::{self, Plugin};
use crate::ports::{Mapping, Ports, Transport};
use crate::state::Bandwidth;
use crate::{Files, Named, Order, Wanted, route};
use ipnet::IpNet;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;
use wardian_sys::directory;
use wardian_sys::program::Output;
use wardian_sys::text::{chain, clip, tame};

/// An address whose route tells the host's own address. Nothing is sent to it.
const ELSEWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(8, 8, 8, 8));
/// The time after which a program is killed, unless the operator sets another one.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// The most lines of a program's standard error that are logged.
const LINES: usize = 100;
/// The most bytes that pass at once, as CNI counts them: in bits, in a signed 32-bit number.
const BURST_BITS: u64 = i32::MAX as u64;
/// The fewest: several packets of the largest size.
const LEAST_BURST: u64 = 64 << 10;

/// Why the network is not as it was wanted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Garden's plugin has failed. The text is Garden's.
    #[error("external networker encountered an error running '{action}' action: {why}")]
    Plugin {
        /// What it was to do.
        action: &'static str,
        /// How it has ended.
        why: String,
    },
    /// Garden's plugin has not answered with the JSON that is expected. The text is Garden's.
    #[error("unmarshaling result from external networker: {}", tame(&clip(&.0.to_string(), 512)))]
    Unmarshal(#[source] serde_json::Error),
    /// Garden's plugin has answered with an address that is none.
    #[error("result from external networker: {key}: {text:?} is no IP address")]
    Address {
        /// The property.
        key: &'static str,
        /// Its value.
        text: String,
    },
    /// Garden's plugin has answered with a port that is none.
    #[error("result from external networker: {port} is no port")]
    Port {
        /// The number.
        port: u32,
    },
    /// Others than root could change Garden's plugin.
    #[error("network plugin {path}: {}", chain(source))]
    Trust {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: directory::Error,
    },
    /// Something that the program cannot be asked for.
    #[error("{what}: {why}")]
    Cannot {
        /// What.
        what: &'static str,
        /// Why not.
        why: &'static str,
    },
    /// The requested address is none.
    #[error("network: {0:?} is neither an IP address nor one with the length of its prefix")]
    Network(String),
    /// CNI does not do what is wanted.
    #[error(transparent)]
    Cni(#[from] cni::Error),
}

/// Which programs make the networks.
#[derive(Debug, Clone)]
pub enum Programs {
    /// Garden's network plugin.
    Plugin(Plugin),
    /// CNI plugins.
    Cni {
        /// A list of plugins, or a directory with lists.
        path: PathBuf,
        /// The name of a list in that directory; `None`: the first one.
        name: Option<String>,
        /// Directories with plugins.
        search: Vec<PathBuf>,
    },
}

/// Settings of the driver.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The programs.
    pub programs: Programs,
    /// After this time a program is killed.
    pub patience: Duration,
    /// The host's address to which mapped ports belong; `None`: the source address of the default route.
    pub external: Option<IpAddr>,
    /// The name servers of containers unless the programs name some; none: the host's.
    pub dns_servers: Vec<IpAddr>,
    /// Name servers after those.
    pub more_dns_servers: Vec<IpAddr>,
    /// Lines for the end of every hosts file.
    pub host_entries: Vec<String>,
    /// The first port of the pool for mappings that name none. Garden's plugin has a pool of its own.
    pub first_port: u16,
    /// The number of ports in that pool.
    pub ports: u16,
}

/// A network that other programs have made or are making, as its container's record keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The container's handle.
    pub handle: String,
    /// Who makes it.
    pub maker: Maker,
    /// The container's address, once the programs have named one.
    pub ip: Option<IpAddr>,
    /// Its IPv6 address.
    pub ipv6: Option<Ipv6Addr>,
    /// The host's address in the network.
    pub host_ip: String,
    /// The host's address to which mapped ports belong.
    pub external: IpAddr,
    /// Bounds of its traffic, both ways.
    pub bandwidth: Option<Bandwidth>,
    /// Ports of the host that lead to the container, in the order of their requests.
    pub mappings: Vec<Mapping>,
    /// The name servers that the client has asked for; none: those of `servers`, or the operator's.
    pub dns: Vec<IpAddr>,
    /// The name servers that the programs have named.
    pub servers: Option<Vec<IpAddr>>,
    /// Instead of the host's search domains.
    pub search: Option<Vec<String>>,
    /// Further options of resolv.conf.
    pub options: Vec<String>,
}

/// Who makes a container's network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Maker {
    /// Garden's plugin.
    Plugin(Plugin),
    /// CNI plugins.
    Cni(Attachment),
}

/// The driver.
#[derive(Debug)]
pub struct Outside {
    settings: Settings,
    programs: Checked,
    external: IpAddr,
    ports: Mutex<Ports>,
}

/// Programs that are there.
#[derive(Debug)]
enum Checked {
    Plugin(Plugin),
    Cni(List, Vec<PathBuf>),
}

/// A container whose init runs.
#[derive(Debug, Clone, Copy)]
pub struct Launched<'a> {
    /// The init's pid.
    pub pid: i32,
    /// The container's properties.
    pub properties: &'a BTreeMap<String, String>,
    /// What its network is to be.
    pub order: &'a Order,
}

impl Outside {
    /// Finds the programs. `found` are the networks of living containers, `port` is the offset of the next port.
    pub fn open<'a>(
        settings: &Settings,
        found: impl Iterator<Item = &'a State>,
        port: u32,
    ) -> crate::Result<Self> {
        let programs = match &settings.programs {
            Programs::Plugin(plugin) => {
                let path = &plugin.program;
                let trusted = directory::check_file(path);
                trusted.map_err(|source| Error::Trust { path: path.clone(), source })?;
                Checked::Plugin(plugin.clone())
            }
            Programs::Cni { path, name, search } => {
                let list = List::read(path, name.as_deref()).map_err(Error::Cni)?;
                cni::check(&list, search, settings.patience).map_err(Error::Cni)?;
                tracing::info!(network = list.name, version = list.version, "network.cni");
                Checked::Cni(list, search.clone())
            }
        };
        let external = match settings.external {
            Some(external) => external,
            None => {
                let mut host = Connection::open(Protocol::Route)?;
                route::way_to(&mut host, ELSEWHERE)?.map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |way| way.source)
            }
        };
        let mut ports = Ports::new(settings.first_port.into(), settings.ports.into(), port)?;
        for state in found {
            let Maker::Cni(Attachment { id, .. }) = &state.maker else { continue };
            for mapping in &state.mappings {
                if let Err(error) = ports.restore(id, mapping) {
                    tracing::error!(handle = state.handle, port = mapping.host, %error, "restore.port");
                }
            }
        }
        Ok(Self { settings: settings.clone(), programs, external, ports: Mutex::new(ports) })
    }

    /// See [`crate::Networks::next_port`].
    pub fn next_port(&self) -> u32 {
        self.ports.lock().offset()
    }

    /// See [`crate::Networks::reserve`].
    pub fn reserve(&self, order: &Order, named: Named<'_>) -> crate::Result<State> {
        let mut mappings = Vec::new();
        let maker = match &self.programs {
            Checked::Plugin(plugin) => {
                refuse(
                    !order.network.is_empty(),
                    "network",
                    "a network plugin chooses the addresses itself",
                )?;
                refuse(order.bandwidth.is_some(), "bandwidth limit", "a network plugin is not told of one")?;
                let others = order.ports.iter().any(|wanted| wanted.transport != Transport::Tcp);
                refuse(others, "port mapping", "a network plugin maps TCP ports only")?;
                crate::egress::check(&order.egress, true)?;
                Maker::Plugin(plugin.clone())
            }
            Checked::Cni(list, search) => {
                refuse(!order.egress.is_empty(), "egress rules", "CNI has none")?;
                for (wanted, what, capability) in [
                    (!order.ports.is_empty(), "port mapping", "portMappings"),
                    (order.bandwidth.is_some(), "bandwidth limit", "bandwidth"),
                    (!order.network.is_empty(), "address of the client's choice", "ips"),
                ] {
                    if wanted && !list.takes(capability) {
                        let network = list.name.clone();
                        return Err(Error::Cni(cni::Error::Capability { network, what, capability }).into());
                    }
                }
                if !order.network.is_empty() && !is_address(&order.network) {
                    return Err(Error::Network(order.network.chars().take(64).collect()).into());
                }
                mappings = self.reserve_ports(named.id, &order.ports)?;
                Maker::Cni(Attachment {
                    id: named.id.to_owned(),
                    list: list.clone(),
                    search: search.clone(),
                    runtime: runtime(order, &mappings),
                    namespace: 0,
                    result: None,
                })
            }
        };
        Ok(State {
            handle: named.handle.to_owned(),
            maker,
            ip: None,
            ipv6: None,
            host_ip: String::new(),
            external: self.external,
            bandwidth: order.bandwidth,
            mappings,
            dns: order.dns.clone(),
            servers: None,
            search: None,
            options: Vec::new(),
        })
    }

    fn reserve_ports(&self, id: &str, wanted: &[Wanted]) -> crate::Result<Vec<Mapping>> {
        let mut ports = self.ports.lock();
        let mut mappings = Vec::new();
        for Wanted { transport, host, container } in wanted {
            match ports.map(id, *transport, *host, *container) {
                Ok((mapping, _)) => mappings.push(mapping),
                Err(error) => {
                    for mapping in &mappings {
                        ports.unmap(id, mapping);
                    }
                    return Err(error.into());
                }
            }
        }
        Ok(mappings)
    }

    /// Adds a container to its network before the launch, if the programs can. Returns whether the state has changed.
    pub fn connect(&self, state: &mut State, namespace: BorrowedFd<'_>) -> crate::Result<bool> {
        let call = Call { handle: &state.handle, patience: self.settings.patience };
        let Maker::Cni(attachment) = &mut state.maker else { return Ok(false) };
        let made = attachment.add(namespace, call).map_err(Error::Cni)?;
        (state.ip, state.ipv6) = (made.ip, made.ipv6);
        state.host_ip = made.gateway.map(|gateway| gateway.to_string()).unwrap_or_default();
        state.servers = Some(made.servers).filter(|servers| !servers.is_empty());
        state.search = Some(made.search).filter(|search| !search.is_empty());
        state.options = made.options;
        Ok(true)
    }

    /// Has the network of a launched container made, if that was not done before. Returns what the programs add to
    /// its properties.
    pub fn launched(
        &self,
        state: &mut State,
        launched: Launched<'_>,
    ) -> crate::Result<Option<BTreeMap<String, String>>> {
        let Maker::Plugin(plugin) = &state.maker else { return Ok(None) };
        // The plugin is told the host's address before it is run, as in Garden.
        let Launched { pid, properties, order } = launched;
        let asked = (&*order.ports, &*order.egress);
        let made = plugin.up(&state.handle, pid, properties, asked, self.settings.patience)?;
        let plugin::Made { properties, servers, search, ip, ipv6, host_ip, mappings } = made;
        (state.ip, state.ipv6, state.host_ip, state.mappings) = (ip, ipv6, host_ip, mappings);
        (state.servers, state.search) = (servers, search);
        Ok(Some(properties))
    }

    /// See [`crate::Networks::reserve_port`].
    pub fn reserve_port(&self, state: &State, wanted: Wanted) -> crate::Result<Mapping> {
        match &state.maker {
            Maker::Plugin(plugin) => {
                let others = wanted.transport != Transport::Tcp;
                refuse(others, "port mapping", "a network plugin maps TCP ports only")?;
                let ip = state.ip.map(|ip| ip.to_string()).unwrap_or_default();
                Ok(plugin.net_in(&state.handle, state.external, &ip, wanted, self.settings.patience)?)
            }
            Maker::Cni(_) => {
                let why = "with CNI, ports are mapped when the container is created, and not afterwards";
                Err(Error::Cannot { what: "port mapping", why }.into())
            }
        }
    }

    /// See [`crate::Networks::allow`].
    pub fn allow(&self, state: &State, rules: &[Rule], bulk: bool) -> crate::Result<()> {
        match &state.maker {
            Maker::Plugin(plugin) => {
                let ip = state.ip.map(|ip| ip.to_string()).unwrap_or_default();
                Ok(plugin.net_out(&state.handle, &ip, rules, bulk, self.settings.patience)?)
            }
            Maker::Cni(_) => Err(Error::Cannot { what: "egress rules", why: "CNI has none" }.into()),
        }
    }

    /// See [`crate::Networks::release`].
    pub fn release(&self, state: &State) {
        if let Maker::Cni(Attachment { id, .. }) = &state.maker {
            let mut ports = self.ports.lock();
            for mapping in &state.mappings {
                ports.unmap(id, mapping);
            }
        }
    }

    /// The time after which a program is killed.
    pub fn patience(&self) -> Duration {
        self.settings.patience
    }

    /// What the operator has set for the names of containers.
    pub fn names(&self) -> files::Names<'_> {
        let Settings { dns_servers, more_dns_servers, host_entries, .. } = &self.settings;
        files::Names { servers: dns_servers, additional: more_dns_servers, host_entries }
    }

    /// See [`crate::Networks::files`].
    pub fn files(&self, state: &State, handle: &str) -> crate::Result<Files> {
        // Garden takes the container's own address for the bridge's, which its plugins do not name.
        let ip = state.ip.unwrap_or(Ipv4Addr::LOCALHOST.into());
        // The container's own come first, the programs' replace all others, also if they have none.
        let own = Some(&*state.dns).filter(|own| !own.is_empty()).or(state.servers.as_deref());
        let (host, bridge) = (files::Host::read(), state.host_ip.parse().unwrap_or(ip));
        let resolv = self.names().resolv(&host, bridge, own, state.search.as_deref());
        let ipv6 = state.ipv6.filter(|ipv6| IpAddr::from(*ipv6) != ip);
        let hosts = files::hosts(ip, ipv6, handle, &self.settings.host_entries)?;
        Ok(Files { hosts, resolv: resolv.text()? + &files::options(&state.options)? })
    }
}

/// Has the network of a container removed, whatever driver this server has. `namespace` is the container's, if it is
/// still known.
///
/// # Errors
/// A program fails; this can be tried again.
pub fn remove(state: &State, namespace: Option<BorrowedFd<'_>>, patience: Duration) -> Result<(), Error> {
    match &state.maker {
        Maker::Plugin(plugin) => plugin.down(&state.handle, patience),
        Maker::Cni(attachment) => {
            if namespace.is_none() && attachment.result.is_some() {
                let text = "the container's network namespace is gone: CNI plugins may leave rules of its addresses behind";
                tracing::warn!(handle = state.handle, text, "network.namespace-gone");
            }
            Ok(attachment.delete(namespace, Call { handle: &state.handle, patience })?)
        }
    }
}

impl State {
    /// Whether this is the network namespace to which CNI plugins have added the container.
    pub fn is_of(&self, namespace: BorrowedFd<'_>) -> bool {
        matches!(&self.maker, Maker::Cni(attachment) if attachment.namespace == cni::number(namespace))
    }

    /// Garden's properties of a container with this network (Garden §2.1).
    pub(crate) fn properties(&self) -> Vec<(&'static str, String)> {
        let mut all = vec![("garden.network.external-ip", self.external.to_string())];
        if let Some(ip) = self.ip {
            all.push(("garden.network.container-ip", ip.to_string()));
        }
        if let Some(ip) = self.ipv6 {
            all.push(("garden.network.container-ipv6", ip.to_string()));
        }
        if !self.host_ip.is_empty() {
            all.push(("garden.network.host-ip", self.host_ip.clone()));
        }
        if !self.mappings.is_empty() {
            all.push(("garden.network.mapped-ports", crate::state::mapped(&self.mappings)));
        }
        all
    }
}

fn refuse(wanted: bool, what: &'static str, why: &'static str) -> Result<(), Error> {
    if wanted { Err(Error::Cannot { what, why }) } else { Ok(()) }
}

fn is_address(text: &str) -> bool {
    text.parse::<IpAddr>().is_ok() || text.parse::<IpNet>().is_ok()
}

/// Returns what CNI plugins may be told, by capability (the specification's document CONVENTIONS).
fn runtime(order: &Order, mappings: &[Mapping]) -> Map<String, Value> {
    let mut runtime = Map::new();
    if !mappings.is_empty() {
        let port = |Mapping { transport, host, container }: &Mapping| json!({"hostPort": host, "containerPort": container, "protocol": transport});
        runtime.insert("portMappings".to_owned(), mappings.iter().map(port).collect());
    }
    if let Some(Bandwidth { rate, burst }) = order.bandwidth {
        let rate = rate.saturating_mul(8).min(i64::MAX as u64);
        let burst = (u64::from(burst).max(LEAST_BURST) * 8).min(BURST_BITS);
        let limits =
            json!({"ingressRate": rate, "ingressBurst": burst, "egressRate": rate, "egressBurst": burst});
        runtime.insert("bandwidth".to_owned(), limits);
    }
    if !order.network.is_empty() {
        runtime.insert("ips".to_owned(), json!([order.network]));
    }
    runtime
}

/// Logs what a program has written to its standard error, which is of interest above all if it has failed.
pub(crate) fn log(program: &Path, action: &str, handle: &str, output: &Output) {
    let program = program.display();
    for text in output.said.lines().map(str::trim_end).filter(|line| !line.is_empty()).take(LINES) {
        if output.status.success() {
            tracing::debug!(%program, action, handle, text = &*tame(text), "network.plugin-says");
        } else {
            tracing::info!(%program, action, handle, text = &*tame(text), "network.plugin-says");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cni_plugins_are_told() {
        let mapping = |transport, host, container| Mapping { transport, host, container };
        let mappings = [mapping(Transport::Tcp, 8080, 80), mapping(Transport::Udp, 53, 5353)];
        let bandwidth = Some(Bandwidth { rate: 1000, burst: u32::MAX });
        let order = Order { network: "10.9.0.7/24".to_owned(), bandwidth, ..Order::default() };
        let told = json!({
            "portMappings": [
                {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
                {"hostPort": 53, "containerPort": 5353, "protocol": "udp"},
            ],
            "bandwidth": {
                "ingressRate": 8000, "ingressBurst": 2_147_483_647, "egressRate": 8000, "egressBurst": 2_147_483_647,
            },
            "ips": ["10.9.0.7/24"],
        });
        assert_eq!(Value::from(runtime(&order, &mappings)), told);
        assert!(runtime(&Order::default(), &[]).is_empty());
        assert!(
            is_address("10.0.0.1")
                && is_address("fd00::1/64")
                && !is_address("10.0.0.1/33")
                && !is_address("x")
        );
    }
}
