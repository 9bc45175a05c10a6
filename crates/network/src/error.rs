//! Why a container's network is not as it was wanted.

use crate::{
    conntrack, egress, files, firewall, given, link, netlink, outside, ports, route, spec, subnets, tc,
};
use ipnet::Ipv4Net;
use wardian_sys::text::chain;

/// A network error. The text is for the client and includes the causes.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server gives containers loopback alone.
    #[error("{what}: containers have no network here; start the server without --network none")]
    NoNetwork {
        /// What was asked for.
        what: &'static str,
    },
    /// The container has been made by a server with another driver.
    #[error("{what}: the container's network was made by a server with another --network")]
    OtherDriver {
        /// What was asked for.
        what: &'static str,
    },
    /// Containers of an earlier server are on bridges, which this one would not look after.
    #[error(
        "network: the container {first}{} of an earlier server {} on a bridge, whose firewall only a server with --network bridge restores when another program flushes it: start with --network bridge and destroy such containers first, or have all destroyed with `wardian reset`",
        match others { 0 => String::new(), others => format!(" and {others} more") },
        if *others == 0 { "is" } else { "are" }
    )]
    Unguarded {
        /// The handle of one of them.
        first: String,
        /// How many others there are.
        others: usize,
    },
    /// Another program does not make the network, or not so.
    #[error(transparent)]
    Outside(#[from] outside::Error),
    /// The container is to have loopback alone.
    #[error("{what}: the container is to have loopback alone (network none)")]
    Loopback {
        /// What was asked for.
        what: &'static str,
    },
    /// The container has loopback alone.
    #[error("the container has no network: it was made with --network none, its own or its server's")]
    Without,
    /// The container is not put into a namespace of the operator's, or not so.
    #[error(transparent)]
    Given(#[from] given::Error),
    /// Namespaces that were made ahead have no link.
    #[error("network: the container's namespace has no link to the host")]
    NoLink,
    /// A subnet could not be made ahead.
    #[error("{0}")]
    Ahead(#[source] std::io::Error),
    /// The `network` field is not valid.
    #[error(transparent)]
    Spec(#[from] spec::Error),
    /// No address can be given.
    #[error(transparent)]
    Subnets(#[from] subnets::Error),
    /// The host has the subnet already, or an address in it that the container or its gateway would take.
    #[error(
        "the requested subnet ({subnet}) overlaps a network of the host ({network}{})",
        link.as_ref().map(|link| format!(" on {link}")).unwrap_or_default()
    )]
    HostNetwork {
        /// The subnet asked for.
        subnet: Ipv4Net,
        /// The host's.
        network: Ipv4Net,
        /// The name of its link.
        link: Option<String>,
    },
    /// No port can be given.
    #[error(transparent)]
    Ports(#[from] ports::Error),
    /// Nobody could reach a mapped port.
    #[error(
        "a port mapping: this host had no address that others reach when the server was started (no default route); name one with --external-ip"
    )]
    NoExternal,
    /// The external address is IPv6, and the container has no such address.
    #[error(
        "a port mapping: the external address is IPv6, which containers have only with --network-pool-v6"
    )]
    ExternalV6,
    /// The container has many mapped ports.
    #[error("a container has at most {most} mapped ports")]
    TooManyMappings {
        /// How many it may have.
        most: usize,
    },
    /// Egress rules are not valid.
    #[error(transparent)]
    Egress(#[from] egress::Error),
    /// A text for hosts or resolv.conf cannot be made.
    #[error(transparent)]
    Files(#[from] files::Error),
    /// A netlink socket cannot be opened.
    #[error("network: {}", chain(.0))]
    Netlink(#[from] netlink::Error),
    /// The kernel refuses a link.
    #[error("network: {}", chain(.0))]
    Link(#[from] link::Error),
    /// The kernel does not tell its routes.
    #[error("network: {}", chain(.0))]
    Route(#[from] route::Error),
    /// The kernel refuses a bandwidth limit.
    #[error("bandwidth limit: {}", chain(.0))]
    Bandwidth(#[from] tc::Error),
    /// Flows of an earlier container cannot be forgotten.
    #[error("network: {}", chain(.0))]
    Conntrack(#[from] conntrack::Error),
    /// The firewall refuses.
    #[error("firewall: {}", chain(.0))]
    Firewall(#[from] firewall::Error),
    /// A sysctl cannot be set.
    #[error("network: set {name}: {source}")]
    Sysctl {
        /// Its file.
        name: String,
        /// Why.
        source: std::io::Error,
    },
}

impl Error {
    /// Whether what was asked for is at fault: neither this host nor its settings have failed.
    pub fn is_the_callers(&self) -> bool {
        match self {
            Self::NoNetwork { .. }
            | Self::OtherDriver { .. }
            | Self::Loopback { .. }
            | Self::Without
            | Self::Spec(_)
            | Self::HostNetwork { .. }
            | Self::ExternalV6
            | Self::TooManyMappings { .. }
            | Self::Egress(_)
            | Self::Files(_) => true,
            Self::Given(error) => !matches!(error, given::Error::Directory(_) | given::Error::Cannot { .. }),
            Self::Subnets(error) => !matches!(
                error,
                subnets::Error::Pool { .. } | subnets::Error::NoSubnet | subnets::Error::NoAddress
            ),
            Self::Ports(error) => !matches!(
                error,
                ports::Error::Pool { .. } | ports::Error::Exhausted | ports::Error::Share { .. }
            ),
            Self::Unguarded { .. }
            | Self::Outside(_)
            | Self::NoLink
            | Self::Ahead(_)
            | Self::NoExternal
            | Self::Netlink(_)
            | Self::Link(_)
            | Self::Route(_)
            | Self::Bandwidth(_)
            | Self::Conntrack(_)
            | Self::Firewall(_)
            | Self::Sysctl { .. } => false,
        }
    }
}

/// A result with a network [`Error`].
pub type Result<T> = std::result::Result<T, Error>;
