//! The hosts, the internet and the containers of the benchmark, all of them network namespaces.

use crate::namespace::Namespace;
use anyhow::{Context, Result};
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

/// Names of sets that hold the server's policy. All others hold what belongs to containers.
const POLICY: [&str; 6] = ["deny4", "deny6", "allow4", "allow6", "dns4", "dns6"];

/// An internet with hosts.
#[derive(Debug)]
pub struct World {
    /// It has the address [`World::SITE`], and a link to each host.
    pub internet: Namespace,
    hosts: AtomicU8,
}

impl World {
    /// An address in the internet.
    pub const SITE: &str = "203.0.113.1";

    /// Makes an internet without hosts.
    pub fn new() -> Result<Self> {
        let internet = Namespace::new()?;
        internet.run(&format!("ip address add {}/32 dev lo", Self::SITE))?;
        Ok(Self { internet, hosts: AtomicU8::new(0) })
    }

    /// Makes one more host, with a default route into the internet through its link `uplink`.
    pub fn host(&self) -> Result<Arc<Namespace>> {
        let number = self.hosts.fetch_add(1, Ordering::Relaxed);
        let host = Namespace::new()?;
        let link = format!("host{number}");
        let pair = format!("ip link add {link} type veth peer name uplink netns {}", host.path());
        self.internet.run(&pair)?;
        self.internet.run(&format!("ip address add 198.18.{number}.1/24 dev {link}"))?;
        self.internet.run(&format!("ip link set {link} up"))?;
        host.run(&format!("ip address add 198.18.{number}.2/24 dev uplink"))?;
        host.run("ip link set uplink up")?;
        host.run(&format!("ip route add default via 198.18.{number}.1"))?;
        Ok(Arc::new(host))
    }
}

/// The network of a container as an administrator would set it up: veth pair, bridge, masquerade.
#[derive(Debug)]
pub struct ByHand {
    /// The container.
    pub container: Namespace,
    _host: Arc<Namespace>,
}

impl ByHand {
    /// Sets it up on this host, which has nothing else.
    pub fn set_up(host: Arc<Namespace>) -> Result<Self> {
        let container = Namespace::new()?;
        host.inside(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1"))
            .context("let a host forward packets")?;
        for line in [
            "ip link add bridge type bridge",
            "ip address add 10.99.0.1/30 dev bridge",
            "ip link set bridge up",
            &format!("ip link add port type veth peer name eth0 netns {}", container.path()),
            "ip link set port master bridge up",
            "nft add table ip hand",
            "nft add chain ip hand post { type nat hook postrouting priority 100 ; }",
            "nft add rule ip hand post ip saddr 10.99.0.0/30 oifname uplink masquerade",
        ] {
            host.run(line)?;
        }
        for line in [
            "ip address add 10.99.0.2/30 dev eth0",
            "ip link set eth0 up",
            "ip route add default via 10.99.0.1",
        ] {
            container.run(line)?;
        }
        Ok(Self { container, _host: host })
    }
}

/// Returns the network namespace of a container, by its id: that of the processes in its cgroup.
pub fn of_container(id: &str) -> Result<Namespace> {
    for entry in std::fs::read_dir("/proc").context("look at the processes")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let groups = std::fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        if is_in(&groups, id) {
            return Namespace::of(pid);
        }
    }
    anyhow::bail!("no process is in the cgroup of container {id}")
}

/// Whether the text of /proc/PID/cgroup names the cgroup of this container.
fn is_in(groups: &str, id: &str) -> bool {
    groups.lines().any(|line| line.rsplit('/').next() == Some(id))
}

/// What a server has made on its host, beside what it always has.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Left {
    /// The names of links: host ends of veth pairs.
    pub links: HashSet<String>,
    /// The number of bridges.
    pub bridges: usize,
    /// The number of elements in sets and maps that belong to containers.
    pub elements: usize,
    /// The number of chains, sets, maps and rules.
    pub objects: usize,
}

impl Left {
    /// Looks at a host.
    pub fn look(host: &Namespace) -> Result<Self> {
        let mut left = Self::of_links(&host.run("ip -json link show")?)?;
        (left.elements, left.objects) = ruleset(&host.run("nft --json list ruleset")?)?;
        Ok(left)
    }

    fn of_links(json: &str) -> Result<Self> {
        let links: Vec<serde_json::Value> =
            serde_json::from_str(json).context("understand the list of links")?;
        let mut left = Self::default();
        for name in links.iter().filter_map(|link| link["ifname"].as_str()) {
            if name.starts_with("wbrdg-") {
                left.bridges += 1;
            } else if name.starts_with('w') && name.ends_with("-0") {
                left.links.insert(name.to_owned());
            }
        }
        Ok(left)
    }
}

/// Returns the numbers of elements that belong to containers, and of all other objects in tables.
fn ruleset(json: &str) -> Result<(usize, usize)> {
    let all: serde_json::Value = serde_json::from_str(json).context("understand the ruleset")?;
    let (mut elements, mut objects) = (0, 0);
    for object in all["nftables"].as_array().into_iter().flatten() {
        for kind in ["chain", "rule", "set", "map"] {
            let object = &object[kind];
            objects += usize::from(object.is_object());
            if !POLICY.contains(&object["name"].as_str().unwrap_or_default()) {
                elements += object["elem"].as_array().map_or(0, Vec::len);
            }
        }
    }
    Ok((elements, objects))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_of_containers_are_told_from_bridges_and_others() {
        let json = r#"[{"ifname":"lo"},{"ifname":"w0123456789a-0"},{"ifname":"wbrdg-0afe0000"},
            {"ifname":"wbrdg-0afe0004"},{"ifname":"wlan0"},{"ifname":"uplink"}]"#;
        let left = Left::of_links(json).unwrap();
        assert_eq!(left.links, HashSet::from(["w0123456789a-0".to_owned()]));
        assert_eq!(left.bridges, 2);
    }

    #[test]
    fn elements_of_the_policy_do_not_count() {
        let json = r#"{"nftables":[{"metainfo":{}},{"table":{"name":"t"}},
            {"set":{"name":"deny4","elem":["10.0.0.1"]}},
            {"set":{"name":"members4","elem":["10.0.0.1","10.0.0.2"]}},
            {"map":{"name":"egress4","elem":[["a","b"]]}},
            {"map":{"name":"mapped4"}},
            {"chain":{"name":"forward"}},{"rule":{"chain":"forward"}}]}"#;
        assert_eq!(ruleset(json).unwrap(), (3, 6));
        assert!(ruleset("").is_err());
    }

    #[test]
    fn cgroups_of_containers() {
        let groups = "9:pids:/wardian-ab/c0ffee\n0::/\n";
        assert!(is_in(groups, "c0ffee"));
        assert!(!is_in(groups, "ffee") && !is_in("9:pids:/wardian-ab/c0ffee/below\n", "c0ffee"));
    }
}
