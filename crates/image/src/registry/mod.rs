//! Images from registries (OCI distribution spec 1.1, docker's registry HTTP API V2).
//!
//! A [`Puller`] has an image's name and the endpoints that it may be pulled from: mirrors first, then the registry
//! itself. Each endpoint is a `client::Registry`, which sends requests by way of `remote`, and answers the registry's
//! challenges (`challenge`) with credentials or a token (`token`).

mod blob;
mod challenge;
mod client;
mod document;
#[cfg(fuzzing)]
pub mod fuzzed;
mod partial;
mod pull;
mod token;

use std::fmt;

use crate::digest::Digest;

pub use self::pull::{Found, Puller};

pub(crate) use self::blob::RemoteBlob;
pub(crate) use self::partial::{LEAST, Partial};
pub(crate) use self::pull::Documents;

/// The registry of images whose name has none.
const DOCKER: &str = "docker.io";
/// The host of its API, which is not that of its name.
const DOCKER_HOST: &str = "registry-1.docker.io";

/// The name of an image at a registry.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ImageName {
    /// `docker.io`, or `HOST[:PORT]`.
    pub registry: String,
    /// Its path, `library/alpine`.
    pub repository: String,
    /// The tag; with neither a tag nor a digest it is `latest`.
    pub tag: Option<String>,
    /// The digest; the tag then has no meaning.
    pub digest: Option<Digest>,
}

impl ImageName {
    /// The endpoint of the registry itself, if nothing is configured for it.
    pub fn endpoint(&self) -> Endpoint {
        let host = if self.registry == DOCKER { DOCKER_HOST } else { &self.registry };
        Endpoint {
            host: host.to_owned(),
            repository: self.repository.clone(),
            insecure: false,
            digests_only: false,
            tags_only: false,
        }
    }

    /// The tag or the digest, as in a URL.
    fn reference(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => "latest".to_owned(),
        }
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

/// A registry or a mirror of it, and the repository of an image there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The authority of its URLs: `HOST[:PORT]`.
    pub host: String,
    /// The repository there, which may differ from that of the image's name.
    pub repository: String,
    /// Whether its certificate is not verified, and whether it is spoken to without TLS if it does not speak TLS. It
    /// may also go without TLS if it is on the loopback interface.
    pub insecure: bool,
    /// Whether it is asked only for images named by digest (`pull-from-mirror = "digest-only"`).
    pub digests_only: bool,
    /// Whether it is asked only for images named by tag (`pull-from-mirror = "tag-only"`).
    pub tags_only: bool,
}

/// Credentials for an endpoint.
#[derive(Clone, PartialEq, Eq)]
pub enum Login {
    /// A user and a password.
    Basic {
        /// The user.
        user: String,
        /// The password.
        password: String,
    },
    /// An identity token, which a token server exchanges for a token (OAuth 2's refresh token).
    Identity(String),
}

/// Shows no secrets.
impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Basic { user, .. } => f.debug_struct("Basic").field("user", user).finish_non_exhaustive(),
            Self::Identity(_) => f.debug_tuple("Identity").finish_non_exhaustive(),
        }
    }
}
