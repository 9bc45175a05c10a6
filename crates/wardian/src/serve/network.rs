//! The settings of `wardian serve` for the network of containers.

use anyhow::{Result, ensure};
use clap::Args as ClapArgs;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;
use wardian_network::outside::{self, Programs};
use wardian_network::{Driver, Plugin, Settings};

/// Where the network of containers comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Network {
    /// Each container has an address of its own on a bridge, behind wardian's firewall.
    Bridge,
    /// Loopback alone.
    None,
    /// What a program makes, in Garden's way.
    Plugin(PathBuf),
    /// What CNI plugins make, from a list or a directory of lists.
    Cni(PathBuf),
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let absolute = |path: &str| {
            let path = PathBuf::from(path);
            if path.is_absolute() {
                Ok(path)
            } else {
                Err(format!("{}: the path must be absolute", path.display()))
            }
        };
        match (text, text.split_once(':')) {
            ("bridge", _) => Ok(Self::Bridge),
            ("none", _) => Ok(Self::None),
            (_, Some(("plugin", path))) => absolute(path).map(Self::Plugin),
            (_, Some(("cni", path))) => absolute(path).map(Self::Cni),
            _ => Err("it is bridge, none, plugin:/PATH or cni:/PATH".to_owned()),
        }
    }
}

/// Parses a network, or an address, which is a network of one.
fn net(text: &str) -> Result<IpNet, String> {
    let parsed = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    parsed.map_err(|_| format!("{text:?} is neither a network such as 10.0.0.0/8 nor an IP address"))
}

/// Settings of the network.
#[derive(Debug, ClapArgs)]
#[command(next_help_heading = "Network of containers")]
pub struct Args {
    /// `bridge`: an address on a bridge, behind a firewall; `none`: loopback alone; `plugin:/PATH`: what this program makes,
    /// as Garden's network plugins do; `cni:/PATH`: what CNI plugins make, by a configuration list or a directory of lists
    #[arg(long, value_name = "DRIVER", env = "WARDIAN_NETWORK", default_value = "bridge")]
    network: Network,
    /// The same as `--network plugin:PATH`
    #[arg(long, value_name = "PATH", env = "WARDIAN_NETWORK_PLUGIN")]
    network_plugin: Option<PathBuf>,
    /// An argument for the network plugin, before those of the action; may be given more than once
    #[arg(long, value_name = "ARG", env = "WARDIAN_NETWORK_PLUGIN_EXTRA_ARG", allow_hyphen_values = true)]
    network_plugin_extra_arg: Vec<String>,
    /// How long a network plugin, of Garden's kind or CNI, may take; it is killed after that
    #[arg(long, value_name = "TIME", env = "WARDIAN_NETWORK_PLUGIN_TIMEOUT", value_parser = super::settings::patience, default_value = "60s")]
    network_plugin_timeout: Duration,
    /// The name of the CNI network in the directory of lists [default: that of the first file]
    #[arg(long, value_name = "NAME", env = "WARDIAN_CNI_NETWORK")]
    cni_network: Option<String>,
    /// A directory with CNI plugins; may be given more than once
    #[arg(long, value_name = "DIR", env = "WARDIAN_CNI_BIN_DIR", value_delimiter = ',', default_values = ["/opt/cni/bin", "/usr/lib/cni"])]
    cni_bin_dir: Vec<PathBuf>,
    /// A directory of network namespaces, such as /run/netns, into which clients may have containers created; may be given
    /// more than once [default: none]
    #[arg(long, value_name = "DIR", env = "WARDIAN_NETWORK_NAMESPACES", value_delimiter = ',')]
    network_namespaces: Vec<PathBuf>,
    /// The pool of /30 subnets for containers that are created without an address or subnet
    #[arg(long, value_name = "CIDR", env = "WARDIAN_NETWORK_POOL", default_value = "10.254.0.0/22")]
    network_pool: Ipv4Net,
    /// A prefix of 96 bits: each container also has the IPv6 address that ends with its IPv4 address [default: no IPv6]
    #[arg(long, value_name = "PREFIX/96", env = "WARDIAN_NETWORK_POOL_V6")]
    network_pool_v6: Option<Ipv6Net>,
    /// Containers reach nothing in this network, but for their own egress rules; may be given more than once
    #[arg(long, value_name = "CIDR|IP", env = "WARDIAN_DENY_NETWORK", value_delimiter = ',', value_parser = net)]
    deny_network: Vec<IpNet>,
    /// A network within a denied one that containers reach all the same; may be given more than once
    #[arg(long, value_name = "CIDR|IP", env = "WARDIAN_ALLOW_NETWORK", value_delimiter = ',', value_parser = net)]
    allow_network: Vec<IpNet>,
    /// Let containers reach this host's own addresses
    #[arg(long, env = "WARDIAN_ALLOW_HOST_ACCESS", num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", hide_default_value = true)]
    allow_host_access: bool,
    /// The name servers of containers, instead of the host's; may be given more than once
    #[arg(long, value_name = "IP", env = "WARDIAN_DNS_SERVER", value_delimiter = ',')]
    dns_server: Vec<IpAddr>,
    /// A name server after the others; may be given more than once
    #[arg(long, value_name = "IP", env = "WARDIAN_ADDITIONAL_DNS_SERVER", value_delimiter = ',')]
    additional_dns_server: Vec<IpAddr>,
    /// A line for the end of every container's /etc/hosts, such as "10.0.0.5 cell"; may be given more than once
    #[arg(long, value_name = "LINE", env = "WARDIAN_ADDITIONAL_HOST_ENTRY", value_delimiter = ',')]
    additional_host_entry: Vec<String>,
    /// The host's address whose ports can lead to containers [default: the source address of the default route]
    #[arg(long, value_name = "IP", env = "WARDIAN_EXTERNAL_IP")]
    external_ip: Option<IpAddr>,
    /// Bytes of the largest packet, at most 1500 [default: that of the interface with the external address]
    #[arg(long, value_name = "BYTES", env = "WARDIAN_MTU", value_parser = clap::value_parser!(u32).range(576..=65535))]
    mtu: Option<u32>,
    /// The first port of the pool for port mappings that name none
    #[arg(long, value_name = "PORT", env = "WARDIAN_PORT_POOL_START", default_value = "61001")]
    port_pool_start: u16,
    /// The number of ports in that pool
    #[arg(long, value_name = "N", env = "WARDIAN_PORT_POOL_SIZE", default_value = "4534")]
    port_pool_size: u16,
    /// Most connections and other flows that a container begins at a time; 0: no bound. Those of all containers share the
    /// ports of one external address
    #[arg(long, value_name = "N", env = "WARDIAN_MAX_FLOWS", default_value = "32768")]
    max_flows: u32,
    /// The NFLOG group that gets the packets of egress rules with logging
    #[arg(long, value_name = "N", env = "WARDIAN_NFLOG_GROUP", default_value = "1")]
    nflog_group: u16,
}

impl Args {
    /// Checks the flags against each other.
    pub fn check(&self) -> Result<()> {
        if let Some(prefix) = self.network_pool_v6 {
            ensure!(
                prefix.prefix_len() == 96,
                "network-pool-v6: {prefix} must have 96 bits, after which the IPv4 address follows"
            );
        }
        let host_line = |line: &String| !line.is_empty() && !line.contains(['\n', '\r', '\0']);
        ensure!(
            self.additional_host_entry.iter().all(host_line),
            "additional-host-entry: each must be one line, such as \"10.0.0.5 cell\""
        );
        ensure!(
            self.network_namespaces.iter().all(|dir| dir.is_absolute()),
            "network-namespaces: each is the absolute path of a directory"
        );
        let plugin = self.network_plugin.as_ref();
        ensure!(
            plugin.is_none_or(|path| path.is_absolute() && self.network == Network::Bridge),
            "network-plugin: it is an absolute path, and not given along with --network"
        );
        let network = self.network();
        ensure!(
            self.network_plugin_extra_arg.is_empty() || matches!(network, Network::Plugin(_)),
            "network-plugin-extra-arg: there is no network plugin; name it with --network plugin:/PATH"
        );
        ensure!(
            self.cni_network.is_none() || matches!(network, Network::Cni(_)),
            "cni-network: the network is not CNI's; name a directory of lists with --network cni:/PATH"
        );
        if matches!(network, Network::Plugin(_) | Network::Cni(_)) {
            for (given, flag) in [
                (self.network_pool_v6.is_some(), "network-pool-v6"),
                (!self.deny_network.is_empty(), "deny-network"),
                (!self.allow_network.is_empty(), "allow-network"),
                (self.allow_host_access, "allow-host-access"),
                (self.mtu.is_some(), "mtu"),
            ] {
                ensure!(
                    !given,
                    "{flag}: with a network plugin or CNI, what containers reach is up to those programs"
                );
            }
        }
        Ok(())
    }

    fn network(&self) -> Network {
        self.network_plugin.clone().map_or_else(|| self.network.clone(), Network::Plugin)
    }

    fn outside(&self, programs: Programs) -> Driver {
        Driver::Outside(Box::new(outside::Settings {
            programs,
            patience: self.network_plugin_timeout,
            external: self.external_ip,
            dns_servers: self.dns_server.clone(),
            more_dns_servers: self.additional_dns_server.clone(),
            host_entries: self.additional_host_entry.clone(),
            first_port: self.port_pool_start,
            ports: self.port_pool_size,
        }))
    }

    /// Returns the operator's directories with network namespaces.
    pub fn namespaces(&self) -> Vec<PathBuf> {
        self.network_namespaces.clone()
    }

    /// Returns the driver with its settings.
    pub fn driver(&self) -> Driver {
        match self.network() {
            Network::None => Driver::Loopback,
            Network::Plugin(program) => self
                .outside(Programs::Plugin(Plugin { program, args: self.network_plugin_extra_arg.clone() })),
            Network::Cni(path) => {
                let (name, search) = (self.cni_network.clone(), self.cni_bin_dir.clone());
                self.outside(Programs::Cni { path, name, search })
            }
            Network::Bridge => Driver::Bridged(Box::new(Settings {
                pool: self.network_pool,
                pool_v6: self.network_pool_v6,
                deny: self.deny_network.clone(),
                allow: self.allow_network.clone(),
                host_access: self.allow_host_access,
                dns_servers: self.dns_server.clone(),
                more_dns_servers: self.additional_dns_server.clone(),
                host_entries: self.additional_host_entry.clone(),
                external: self.external_ip,
                mtu: self.mtu,
                first_port: self.port_pool_start,
                ports: self.port_pool_size,
                log_group: self.nflog_group,
                flows: self.max_flows,
            })),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_network_of_one() {
        let shown = |text: &str| net(text).map(|net| net.to_string());
        assert_eq!(shown("169.254.169.254").as_deref(), Ok("169.254.169.254/32"));
        assert_eq!(shown("fd00::1").as_deref(), Ok("fd00::1/128"));
        assert_eq!(shown("10.0.0.0/8").as_deref(), Ok("10.0.0.0/8"));
        for bad in ["", "10.0.0", "10.0.0.0/33", "example.com"] {
            assert!(shown(bad).unwrap_err().contains("neither a network"), "{bad}");
        }
    }
}
