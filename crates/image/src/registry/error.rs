//! Why an image could not be had from a registry.

use wardian_sys::text::chain;

use crate::error::Error;

/// Why an image could not be had from a registry. Texts of servers are escaped and cut, and no text has a secret.
///
/// Some texts contain those of GrootFS, which its callers look for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// The name of an image, or the host of a registry, cannot be a part of a URL.
    #[error("invalid image name {name:?}: {why}")]
    Name {
        /// The name.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The manifest of an image, and what belongs to it, could not be had.
    #[error("fetching image reference: {image}: {source}")]
    Manifest {
        /// The image.
        image: String,
        /// Why.
        source: Box<Error>,
    },
    /// The config of an image could not be had.
    #[error("fetching image configuration: {image}: {source}")]
    Config {
        /// The image.
        image: String,
        /// Why.
        source: Box<Error>,
    },
    /// A layer could not be had.
    #[error("fetching blob: {image}: {source}")]
    Blob {
        /// The image.
        image: String,
        /// Why.
        source: Box<Error>,
    },
    /// Neither the mirrors nor the registry itself gave it.
    #[error("{}", each(.failures))]
    Everywhere {
        /// The host of each, in the order in which they were tried, and its failure.
        failures: Vec<(String, Error)>,
    },
    /// There is neither a mirror nor a registry that may be asked.
    #[error("no mirror may be asked for it, and its registry neither")]
    Nowhere,
    /// The registry does not give the image to this user, or does not have it, which it does not tell apart.
    #[error(
        "docker://{image} does not exist or you do not have permissions to see it. {host} answered {status}: requested \
         access to the resource is denied{said}; `wardian image login {login}` {remedy}"
    )]
    Denied {
        /// The image, or its repository.
        image: String,
        /// The host that was asked.
        host: String,
        /// The status of its answer.
        status: u16,
        /// What it says, after a colon; may be empty.
        said: String,
        /// What to log in to.
        login: String,
        /// What that is good for.
        remedy: &'static str,
    },
    /// The user and the password, or the identity token, are wrong.
    #[error(
        "unable to retrieve auth token: invalid username/password: {host} refuses them{said}; `wardian image login {login}` \
         replaces them"
    )]
    Login {
        /// The host that refused them.
        host: String,
        /// What it says, after a colon; may be empty.
        said: String,
        /// What to log in to.
        login: String,
    },
    /// The registry's certificate is not trusted.
    #[error(
        "This registry is insecure. To pull images from this registry, please use the --insecure-registry option. (The \
         certificate of {host} is not trusted: {why}; the certificate of its authority can be put into \
         /etc/containers/certs.d/{host}/, as a file *.crt, and `--insecure-registry {host}` does without)"
    )]
    Untrusted {
        /// The host.
        host: String,
        /// What is wrong with the certificate.
        why: String,
    },
    /// A registry that may be spoken to without TLS answers neither way.
    #[error("pinging container registry {host}: with TLS: {tls}; without: {plain}")]
    Unreachable {
        /// The host.
        host: String,
        /// The failure by https.
        tls: String,
        /// The failure by http.
        plain: String,
    },
    /// The registry does not have the manifest.
    #[error("{host} does not have {image}: manifest unknown{said}")]
    NoManifest {
        /// The host.
        host: String,
        /// The image.
        image: String,
        /// What it says, after a colon; may be empty.
        said: String,
    },
    /// The registry does not have a blob that a manifest of it names.
    #[error("{host} does not have {blob}: blob unknown to registry{said}")]
    NoBlob {
        /// The host.
        host: String,
        /// The digest.
        blob: String,
        /// What it says, after a colon; may be empty.
        said: String,
    },
    /// The registry limits how often images are pulled from it.
    #[error(
        "{host} limits how often images are pulled from it, and the limit is reached (429){limit}{said}; {remedy}"
    )]
    RateLimit {
        /// The host.
        host: String,
        /// The limit and the time to wait, as the registry gives them; may be empty.
        limit: String,
        /// What it says, after a colon; may be empty.
        said: String,
        /// What to do.
        remedy: String,
    },
    /// The registry answered with an error.
    #[error("{url}: the registry answered {status}{said}")]
    Answer {
        /// The URL without its secrets.
        url: String,
        /// The HTTP status.
        status: u16,
        /// What it says, after a colon; may be empty.
        said: String,
    },
    /// The registry asks for credentials in a way that is refused, or that is not known.
    #[error("{host} asks for credentials, but {why}")]
    Challenge {
        /// The host.
        host: String,
        /// What is wrong.
        why: String,
    },
    /// The token server named by the registry gave no token.
    #[error("unable to retrieve auth token: {url}: {why}")]
    Token {
        /// The URL of the token server without its secrets.
        url: String,
        /// Why.
        why: String,
    },
    /// The image is only there in docker's first format.
    #[error(
        "converting V1 schema failed: {image} has only a manifest of docker's schema 1, which registries and tools gave up in \
         2019 and which is not read here; push it again by a current tool, such as `skopeo copy --format v2s2`"
    )]
    Schema1 {
        /// The image.
        image: String,
    },
    /// A layer that its publisher keeps out of registries.
    #[error(
        "{layer} is a foreign layer, which its publisher does not allow to be in a registry: such layers are refused; have \
         the image built without them"
    )]
    Foreign {
        /// The layer.
        layer: String,
    },
}

fn each(failures: &[(String, Error)]) -> String {
    let texts: Vec<_> =
        failures.iter().map(|(host, error)| format!("from {host}: {}", chain(error))).collect();
    texts.join("; ")
}

impl From<RegistryError> for Error {
    fn from(source: RegistryError) -> Self {
        Self::Registry { source: Box::new(source) }
    }
}
