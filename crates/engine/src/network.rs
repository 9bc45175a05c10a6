//! The network of a living container: port mappings, egress rules, traffic.
//!
//! What is asked for is recorded before the kernel is told: after a crash in between, the next server brings
//! the firewall to what the records say.

use crate::admission::bounds;
use crate::assemble::network_files;
use crate::container::lifecycle::Event;
use crate::container::record::Record;
use crate::container::{Attached, Container};
use crate::ready::READY;
use crate::ready::ids::Home;
use crate::spec::ContainerSpec;
use crate::{Engine, Error, Result, Shared, instance};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use wardian_network::given::{self, Namespace};
use wardian_network::outside::Launched;
use wardian_network::{self as network, Mapping, Network, Order, Rule, Veth, Wanted};
use wardian_sys::directory::Directory;
use wardian_sys::memfd;
use wardian_sys::namespace::Pair;
use wardian_sys::text::clip;

/// How often the firewall is looked at, which other programs may flush, and what ended containers have left.
const LOOK: Duration = Duration::from_secs(1);
/// The most bytes of a client's text in an error.
const SHOWN: usize = 64;

/// What an info tells of a container without a link.
pub const CUT_OFF: &str = "its network link is gone: another program has deleted it";

/// The prefix of properties that are settings: they are given at a create, and stay as they are.
const SETTINGS: &str = "wardian.";
/// The property with a container's own name servers: addresses separated by commas.
const DNS: &str = "wardian.network.dns";
/// The C library reads no more name servers from a resolv.conf (`MAXNS`, resolv.conf(5)).
const MOST_DNS: usize = 3;

/// Takes the settings among the properties of a create into its order. `namespaces` are the operator's directories with
/// network namespaces.
///
/// # Errors
/// A setting is unknown, or its value is not valid.
pub fn heed_properties(spec: &mut ContainerSpec, namespaces: &[PathBuf]) -> Result<()> {
    for (key, value) in spec.properties.iter().filter(|(key, _)| key.starts_with(SETTINGS)) {
        match key.as_str() {
            DNS => spec.network.dns = dns(value)?,
            given::PROPERTY => {
                let namespace = Namespace::open(namespaces, value).map_err(network::Error::from)?;
                spec.network.namespace = Some(namespace);
            }
            _ => return Err(Error::Invalid(format!("property {key} is not supported yet"))),
        }
    }
    Ok(())
}

/// Refuses to change a property that is a setting: what it has set would stay.
///
/// # Errors
/// It is one.
pub fn no_setting(key: &str) -> Result<()> {
    match key.starts_with(SETTINGS) {
        true => Err(Error::Invalid(format!("property {key} can be given to a create only"))),
        false => Ok(()),
    }
}

fn dns(value: &str) -> Result<Vec<IpAddr>> {
    let address = |text: &str| {
        let shown = || Error::Invalid(format!("{DNS}: {:?} is no IP address", clip(text, SHOWN)));
        text.trim().parse().map_err(|_| shown())
    };
    let all: Vec<IpAddr> = value.split(',').take(MOST_DNS + 1).map(address).collect::<Result<_>>()?;
    if all.len() > MOST_DNS {
        return Err(Error::Invalid(format!("{DNS}: a container reads at most {MOST_DNS} name servers")));
    }
    Ok(all)
}

impl Shared {
    /// Takes namespaces for a container.
    ///
    /// # Errors
    /// The kernel refuses, or all ids are taken.
    pub fn home(&self, spec: &ContainerSpec) -> Result<Home> {
        let fail = Error::system("namespaces");
        let home = self.ready_home(spec.privileged)?;
        if let Some(namespace) = &spec.network.namespace {
            // The veth pair goes with the namespace in which it has an end.
            let pair = home.pair.with_network(namespace.file().map_err(fail)?).map_err(fail)?;
            return Ok(Home { pair, veth: None, ..home });
        }
        match &home.veth {
            Some(veth) if spec.network.is_loopback() => {
                self.networks.discard(veth)?;
                Ok(Home { veth: None, ..home })
            }
            _ => Ok(home),
        }
    }

    /// Takes namespaces that were made ahead. Those whose link another program has deleted meanwhile are dropped.
    fn ready_home(&self, is_privileged: bool) -> Result<Home> {
        let pairs = if is_privileged { &self.privileged_pairs } else { &self.pairs };
        let mut home = pairs.take().map_err(Error::system("namespaces"))?;
        // At most all that there are: one that was made just now has its link.
        for _ in 0..READY {
            if home.veth.as_ref().is_none_or(|veth| self.networks.holds(veth)) {
                break;
            }
            home = pairs.take().map_err(Error::system("namespaces"))?;
        }
        Ok(home)
    }

    /// Enters a network into a container's record, with Garden's properties for it.
    pub fn describe(&self, record: &mut Record, network: Option<&Network>) {
        record.network = network.cloned();
        let properties = network.map(|network| self.networks.properties(network)).unwrap_or_default();
        record.properties.extend(properties.into_iter().map(|(key, value)| (key.to_owned(), value)));
    }

    /// Records the container's network as it is now.
    fn save_network(&self, container: &Container, network: &Network) -> Result<()> {
        container.update(|record| self.describe(record, Some(network)), |record| self.records.save(record))
    }

    /// Connects a container with the network that is reserved for it, before its launch.
    pub fn connect(&self, container: &Container, home: &Pair, veth: Option<Veth>) -> Result<()> {
        let mut attached = container.network();
        let Some(Attached { network, rules, namespace }) = attached.as_mut() else { return Ok(()) };
        if self.networks.connect(network, home.network.as_fd(), veth, &container.handle, rules)? {
            *namespace = Some(home.network.try_clone().map_err(Error::system("network namespace"))?);
            self.save_network(container, network)?;
        }
        Ok(())
    }

    /// Does what remains for the network of a container whose init runs. Returns the new contents of hosts and
    /// resolv.conf, if that changes them.
    pub fn network_launched(
        &self,
        container: &Container,
        init: i32,
        order: &Order,
    ) -> Result<Option<[OwnedFd; 2]>> {
        let mut attached = container.network();
        let Some(Attached { network, .. }) = attached.as_mut() else { return Ok(None) };
        let properties = &container.record().properties;
        let Some(added) = self.networks.launched(network, Launched { pid: init, properties, order })? else {
            return Ok(None);
        };
        let describe = |record: &mut Record| {
            record.properties.extend(added);
            self.describe(record, Some(network));
            bounds::properties(&record.properties)
        };
        container.try_update(Event::Change, describe, |record| self.records.save(record))?;
        let texts = self.networks.files(Some(network), &container.handle)?;
        let fail = Error::system("network files");
        let dir = self.records.path(&container.id);
        let [hosts, resolv] = network_files(&dir).map(|file| file.source);
        std::fs::write(hosts, &texts.hosts).map_err(fail)?;
        std::fs::write(resolv, &texts.resolv).map_err(fail)?;
        let file =
            |text: &str| memfd::sealed("network", text.as_bytes(), 0o400).map_err(|error| fail(error.into()));
        Ok(Some([file(&texts.hosts)?, file(&texts.resolv)?]))
    }

    /// Has other programs take a container out of its network.
    pub fn disconnect(&self, container: &Container) -> Result<()> {
        match &*container.network() {
            Some(Attached { network, namespace, .. }) => {
                Ok(self.networks.disconnect(network, namespace.as_ref().map(AsFd::as_fd))?)
            }
            None => Ok(()),
        }
    }

    /// Records another address of the host, to which mapped ports belong now.
    fn follow_external(&self) {
        let Some(external) = self.networks.external() else { return };
        let is_other =
            |network: &Network| matches!(network, Network::Bridged(state) if state.external != external);
        let containers: Vec<Arc<Container>> = self.lock().values().cloned().collect();
        for container in containers {
            if !container.record().network.as_ref().is_some_and(is_other) {
                continue;
            }
            let mut attached = container.network();
            // A create records what it has reserved, and a teardown needs no address.
            if container.permits(Event::Use).is_err() {
                continue;
            }
            let Some(Attached { network: network @ Network::Bridged(_), .. }) = attached.as_mut() else {
                continue;
            };
            let mut moved = network.clone();
            if let Network::Bridged(state) = &mut moved {
                state.external = external;
            }
            match self.save_network(&container, &moved) {
                Ok(()) => *network = moved,
                Err(error) => tracing::warn!(handle = container.handle, %error, "network.external-unsaved"),
            }
        }
    }

    /// Tells which containers another program has cut off, each of them once.
    fn tell_cut(&self, told: &mut BTreeSet<String>) {
        let containers: Vec<Arc<Container>> = self.lock().values().cloned().collect();
        told.retain(|id| containers.iter().any(|container| container.id == *id));
        for container in containers {
            let record = container.record();
            let is_cut = record.network.as_ref().is_some_and(|network| self.networks.is_cut(network));
            if is_cut && container.permits(Event::Use).is_ok() && told.insert(container.id.clone()) {
                tracing::error!(handle = container.handle, text = CUT_OFF, "network.cut-off");
            }
        }
    }

    /// Stops making networks ahead, and removes those that no container has got.
    pub fn close_networks(&self) {
        self.pairs.close();
        self.privileged_pairs.close();
        self.subnets.close();
        self.networks.close(self.lock().is_empty());
        if let Err(error) = self.note_port() {
            tracing::warn!(%error, "network.next-port-lost");
        }
    }

    /// Notes for the next server where the pool of ports goes on.
    fn note_port(&self) -> std::result::Result<(), instance::Error> {
        let dir = Directory::open(&self.config.run)?;
        let (tag, certificate) = (instance::tag(&dir), self.config.certificate.as_deref());
        instance::write(&dir, &tag, &self.config.root, certificate, self.networks.next_port())
    }
}

impl Container {
    /// Whether other programs make the container's network, which may take long.
    pub fn is_outside(&self) -> bool {
        matches!(self.record().network, Some(Network::Outside(_)))
    }

    /// Finds the network namespace of a container of an earlier server, if other programs need it to take the container
    /// out of its network. `init` is its pid 1, which lives.
    pub fn find_namespace(&self, init: i32) {
        let mut attached = self.network();
        let Some(Attached { network: Network::Outside(state), namespace, .. }) = attached.as_mut() else {
            return;
        };
        let found = std::fs::File::open(format!("/proc/{init}/ns/net")).map(OwnedFd::from);
        *namespace = found.ok().filter(|found| state.is_of(found.as_fd()));
    }
}

impl Engine {
    /// Makes a port of the host lead to one of the container's (Garden's NetIn).
    ///
    /// # Errors
    /// Unknown handle, the port is another container's, no port is left, or the container has no network.
    pub async fn map_port(&self, handle: &str, wanted: Wanted) -> Result<Mapping> {
        self.with_network(handle, move |shared, container, attached| {
            let mapping = shared.networks.reserve_port(&attached.network, wanted)?;
            let mut network = attached.network.clone();
            network.add(mapping);
            let done = shared
                .save_network(container, &network)
                .and_then(|()| Ok(shared.networks.map(&network, mapping)?));
            if let Err(error) = done {
                shared.networks.unmap(&attached.network, mapping);
                drop(shared.save_network(container, &attached.network));
                return Err(error);
            }
            attached.network = network;
            Ok(mapping)
        })
        .await
    }

    /// Lets the container reach what the server's policy denies (Garden's NetOut, or BulkNetOut if `bulk`).
    ///
    /// # Errors
    /// Unknown handle, too many rules, or the container has no network.
    pub async fn allow(&self, handle: &str, rules: Vec<Rule>, bulk: bool) -> Result<()> {
        self.with_network(handle, move |shared, container, attached| {
            if rules.is_empty() {
                return Ok(());
            }
            let mut all = attached.rules.to_vec();
            let known = all.len();
            all.extend(rules);
            let steps = shared.networks.check(&attached.network, &all)?;
            let save = |rules: &[Rule]| {
                let saved = shared.records.save_egress(&container.id, rules);
                saved.map_err(Error::system("save the container's egress rules"))
            };
            save(&all)?;
            if let Err(error) = shared.networks.allow(&attached.network, &steps, &all[known..], bulk) {
                drop(save(&attached.rules));
                return Err(error.into());
            }
            attached.rules = Arc::new(all);
            Ok(())
        })
        .await
    }

    /// Returns the egress rules of a container, those of its create first.
    ///
    /// # Errors
    /// Unknown handle.
    pub async fn egress(&self, handle: &str) -> Result<Arc<Vec<Rule>>> {
        let container = self.find(handle)?;
        // A program that changes the network holds its lock.
        let look = move || container.network().as_ref().map(|attached| attached.rules.clone());
        let rules = tokio::task::spawn_blocking(look).await.map_err(Error::task("network"))?;
        Ok(rules.unwrap_or_default())
    }

    /// Changes the network of a living container. Changes of one container wait for each other.
    async fn with_network<T: Send + 'static>(
        &self,
        handle: &str,
        change: impl FnOnce(&Shared, &Container, &mut Attached) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let container = self.find(handle)?;
        container.permits(Event::Use)?;
        let shared = self.shared.clone();
        let change = move || {
            let mut network = container.network();
            // A destroy may have taken the network away meanwhile.
            container.permits(Event::Use)?;
            let attached = network.as_mut().ok_or(network::Error::Without)?;
            change(&shared, &container, attached)
        };
        tokio::task::spawn_blocking(change).await.map_err(Error::task("network"))?
    }

    /// Makes the firewall anew whenever another program has flushed it, and removes what ended containers have left.
    pub(crate) fn watch_network(&self) {
        let shared = Arc::downgrade(&self.shared);
        tokio::spawn(async move {
            let mut told = BTreeSet::new();
            let mut wakes = tokio::time::interval(LOOK);
            wakes.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                wakes.tick().await;
                let Some(shared) = shared.upgrade() else { return };
                let mut known = std::mem::take(&mut told);
                let look = move || {
                    shared.networks.tend();
                    shared.follow_external();
                    shared.tell_cut(&mut known);
                    (shared.networks.watch(), known)
                };
                let Ok((looked, known)) = tokio::task::spawn_blocking(look).await else { return };
                told = known;
                match looked {
                    Ok(None) => {}
                    Ok(Some(damage)) => {
                        let text = "another program has changed the firewall of containers: it was made anew";
                        tracing::warn!(damage, text, "network.firewall-restored");
                    }
                    Err(error) => tracing::error!(%error, "network.firewall-lost"),
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heeded(key: &str, value: &str) -> Result<ContainerSpec> {
        let properties = [(key.to_owned(), value.to_owned())].into();
        let mut spec = ContainerSpec { properties, ..ContainerSpec::default() };
        heed_properties(&mut spec, &[]).map(|()| spec)
    }

    #[test]
    fn name_servers_are_a_setting() {
        let spec = heeded(DNS, "10.0.0.53, fd00::53").unwrap();
        assert_eq!(spec.network.dns, ["10.0.0.53".parse::<IpAddr>().unwrap(), "fd00::53".parse().unwrap()]);
        assert_eq!(spec.properties.len(), 1, "info shows it");
        for (value, why) in [
            ("", "\"\" is no IP address"),
            ("10.0.0.53,", "\"\" is no IP address"),
            ("dns.example", "\"dns.example\" is no IP address"),
            ("fe80::1%eth0", "is no IP address"),
            ("1.1.1.1,1.1.1.2,1.1.1.3,1.1.1.4", "at most 3 name servers"),
        ] {
            let error = heeded(DNS, value).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        let long = heeded(DNS, &"1".repeat(1 << 20)).unwrap_err().to_string();
        assert!(long.len() < 200, "{}", long.len());
    }

    #[test]
    fn other_settings_are_refused() {
        assert!(heeded("wardian.network.mtu", "1").unwrap_err().to_string().contains("not supported"));
        let error = heeded(given::PROPERTY, "/run/netns/a").unwrap_err().to_string();
        assert!(error.contains("--network-namespaces"), "{error}");
        assert!(heeded("color", "red").unwrap().network.dns.is_empty());
        assert!(no_setting(DNS).is_err() && no_setting("color").is_ok());
    }
}
