//! Resolves host names with `/etc/hosts` and the servers of `/etc/resolv.conf`.
//!
//! glibc's resolver loads the modules of `/etc/nsswitch.conf` at run time, which fails in a static program unless the
//! host has the very glibc it was linked with. It also blocks its thread.

use std::io;
use std::net::SocketAddr;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::LookupIpStrategy;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// The resolver, with the host's configuration at its creation.
#[derive(Debug, Clone)]
pub(super) struct Names(Result<TokioResolver, String>);

impl Names {
    /// Without `/etc/resolv.conf` only numeric addresses can be used.
    pub(super) fn of_host() -> Self {
        let resolver = TokioResolver::builder_tokio().and_then(|mut builder| {
            builder.options_mut().ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
            builder.build()
        });
        Self(resolver.map_err(|e| format!("cannot read /etc/resolv.conf: {e}")))
    }
}

impl Resolve for Names {
    fn resolve(&self, name: Name) -> Resolving {
        let resolver = self.0.clone();
        Box::pin(async move {
            let found = resolver.map_err(io::Error::other)?.lookup_ip(name.as_str()).await?;
            // The connector sets the port.
            let addresses: Vec<_> = found.iter().map(|address| SocketAddr::new(address, 0)).collect();
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}
