//! Resolves host names with `/etc/hosts` and the servers of `/etc/resolv.conf`.
//!
//! glibc's resolver loads the modules of `/etc/nsswitch.conf` at run time, which fails in a static program unless the
//! host has the very glibc it was linked with. It also blocks its thread.

use std::io;
use std::net::SocketAddr;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::LookupIpStrategy;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use super::trust::causes;

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

/// Why a name has no address.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("there is no host of the name {0}")]
    Unknown(String),
    #[error("the name servers of /etc/resolv.conf do not tell the address of {name}: {why}")]
    Unanswered { name: String, why: String },
}

/// Returns the name that has no address, if that caused an error: another try would not find it either.
pub(super) fn unknown<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a Error> {
    causes(error).find_map(|cause| cause.downcast_ref().filter(|why| matches!(why, Error::Unknown(_))))
}

impl Error {
    fn of(name: &str, error: &NetError) -> Self {
        let name = name.to_owned();
        let why = match error {
            NetError::Dns(DnsError::NoRecordsFound(none)) => match none.response_code {
                ResponseCode::NXDomain | ResponseCode::NoError => return Self::Unknown(name),
                code => code.to_string(),
            },
            other => other.to_string(),
        };
        Self::Unanswered { name, why }
    }
}

impl Resolve for Names {
    fn resolve(&self, name: Name) -> Resolving {
        let resolver = self.0.clone();
        Box::pin(async move {
            let found = resolver.map_err(io::Error::other)?.lookup_ip(name.as_str()).await;
            let found = found.map_err(|error| Error::of(name.as_str(), &error))?;
            // The connector sets the port.
            let addresses: Vec<_> = found.iter().map(|address| SocketAddr::new(address, 0)).collect();
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_resolver::net::NoRecords;
    use hickory_resolver::proto::op::Query;

    #[test]
    fn texts() {
        let of = |code| {
            let none = NoRecords::new(Query::new(), code);
            Error::of("a.example", &NetError::Dns(DnsError::NoRecordsFound(none)))
        };
        for code in [ResponseCode::NXDomain, ResponseCode::NoError] {
            let error = io::Error::other(of(code));
            assert_eq!(unknown(&error).unwrap().to_string(), "there is no host of the name a.example");
        }
        let refused = of(ResponseCode::Refused);
        assert!(unknown(&refused).is_none() && !refused.to_string().contains("Query {"), "{refused}");
        let late = Error::of("a.example", &NetError::Timeout);
        assert!(unknown(&late).is_none() && late.to_string().contains("timed out"), "{late}");
    }
}
