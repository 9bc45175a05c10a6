//! How blobs are fetched, and who has named where from.

use std::path::PathBuf;
use std::time::Duration;

use super::hosts::Host;

/// How blobs are fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// A directory of certificates: `*.crt` are trusted besides the system's, a `*.cert` and the `*.key` of the same
    /// stem are shown to servers that ask for one. It may be missing; so may what is in it, by being empty.
    pub certificates: Option<PathBuf>,
    /// How long a connection may take, with TLS.
    pub connect: Duration,
    /// A server that sends fewer than 64 KiB, and not the end, in that time hangs.
    pub patience: Duration,
    /// Tries in a row of which none brings 64 KiB of what is missing, or the end.
    pub tries: u32,
    /// The pause after the first failure; each further one takes twice as long, at most 8 s.
    pub backoff: Duration,
    /// How long one layer may take in all: from all of its URLs, with all tries and pauses, and with the time that its
    /// writer takes, who holds up the server. It ends those that are slow, but never so slow that they hang.
    pub deadline: Duration,
    /// Servers that an image may name for its layers, and that those may redirect to. What whoever asks for an image names
    /// himself, as for an app, needs none of them.
    pub layer_hosts: Vec<Host>,
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
        }
    }
}

/// Who named an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NamedBy {
    /// Whoever asks for the image.
    Caller,
    /// The image itself, which must not make this host ask servers of its choice: those that only this host reaches would
    /// take the request for its own.
    Image,
}
