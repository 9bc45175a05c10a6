//! Networks of containers: addresses, links, firewall, port mappings, and the programs of others that make them.
//!
//! | file | what is in it |
//! |---|---|
//! | `driver`, `state` | what the engine asks for, and what a container's record keeps |
//! | `bridged/` | the driver of our own |
//! | `outside`, `plugin`, `cni/` | the driver for networks that other programs make, and those programs |
//! | `given` | network namespaces of the operator's |
//! | `spec`, `subnets`, `ports`, `ranges` | which addresses and ports containers get |
//! | `egress/` | rules for what containers may send, and their compiler |
//! | `files`, `names` | the texts of hosts and resolv.conf, and the name servers of the host |
//! | `host` | what the kernel lacks, what others have set up, what instances have left |
//! | `netlink`, `message`, `notices` | requests to the kernel, and what it tells of itself |
//! | `link`, `route`, `tc`, `conntrack` | links, routes, bandwidth, flows |
//! | `nft/`, `firewall/` | nftables, and what we make of it |
//!
//! The driver of our own starts no process but `nft`, once, for the skeleton of the firewall: what a container needs is
//! a few requests through netlink sockets.
#![forbid(unsafe_code)]

mod bridged;
mod cni;
pub mod conntrack;
mod driver;
pub mod egress;
mod error;
pub mod files;
pub mod firewall;
#[cfg(fuzzing)]
pub mod fuzzed;
pub mod given;
pub mod host;
pub mod link;
mod message;
pub mod names;
pub mod netlink;
pub mod nft;
mod notices;
pub mod outside;
mod plugin;
pub mod ports;
mod ranges;
pub mod route;
pub mod spec;
mod state;
pub mod subnets;
pub mod tc;

#[cfg(test)]
mod testing;

pub use bridged::{Left, Settings, Subnet, Veth, group, remove};
pub use driver::{Driver, Files, Found, Named, Networks, Order, Wanted};
pub use egress::{Protocol, Rule};
pub use error::{Error, Result};
pub use plugin::Plugin;
pub use ports::{Mapping, Transport};
pub use state::{Bandwidth, Network, State, bridge_name};
