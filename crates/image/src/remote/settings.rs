//! Settings for fetching blobs.

use std::path::PathBuf;
use std::time::Duration;

use super::hosts::Host;
use super::proxies::Proxies;

/// Settings for fetching blobs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// A directory of certificates: `*.crt` are trusted besides the system's, a `*.cert` and the `*.key` of the same
    /// stem are shown to servers that ask for one. The directory may be missing, and its files may be empty.
    pub certificates: Option<PathBuf>,
    /// The connect timeout, TLS handshake included.
    pub connect: Duration,
    /// The receive timeout: a server that sends neither 64 KiB nor the end in this time counts as hanging.
    pub patience: Duration,
    /// How many tries in a row may fail to bring 64 KiB of new data, or the end.
    pub tries: u32,
    /// The pause after the first failure; each further pause is twice as long, at most 8 s.
    pub backoff: Duration,
    /// The total timeout of one layer: for all of its URLs, with all tries and pauses, and with the time of its
    /// writer, which applies backpressure to the server. It ends fetches that are slow, but never slow enough to
    /// count as hanging.
    pub deadline: Duration,
    /// Servers that an image may name for its layers, and that these may redirect to. URLs named by the caller, as
    /// for an app, are not restricted.
    pub layer_hosts: Vec<Host>,
    /// Directories with the certificates of registries, each in a directory named as the registry, `HOST[:PORT]`, of
    /// the same form as [`Settings::certificates`]. The first one that has a directory for the registry is used
    /// (containers-certs.d(5), docker's `certs.d`).
    pub registry_certificates: Vec<PathBuf>,
    /// The proxies; by default those of the environment.
    pub proxies: Proxies,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            certificates: None,
            connect: Duration::from_secs(10),
            patience: Duration::from_secs(30),
            tries: 5,
            backoff: Duration::from_millis(250),
            deadline: Duration::from_secs(3600),
            layer_hosts: Vec::new(),
            registry_certificates: ["/etc/containers/certs.d", "/etc/docker/certs.d"].map(Into::into).into(),
            proxies: Proxies::of_env(),
        }
    }
}
