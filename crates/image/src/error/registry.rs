//! What goes wrong with a registry.

use super::Error;
use crate::digest::Digest;
use wardian_sys::text::chain;

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
    /// An image could not be pushed.
    #[error("pushing {image}: {source}")]
    Push {
        /// The image.
        image: String,
        /// Why.
        source: Box<Error>,
    },
    /// The registry does not let this user write.
    #[error(
        "{host} does not let you push to {image}: it answered {status}, requested access to the resource is denied{said}; \
         `wardian image login {login}` {remedy}, if that account may write there"
    )]
    PushDenied {
        /// The image.
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
    /// The registry has no such repository, and does not make one when something is pushed to it.
    #[error("{host} has no repository {repository} and does not make one{said}; make it there first")]
    NoRepository {
        /// The host.
        host: String,
        /// The repository.
        repository: String,
        /// What it says, after a colon; may be empty.
        said: String,
    },
    /// The registry names no usable address for the bytes of a blob.
    #[error("{host} gives no usable address for an upload: {why}")]
    UploadAddress {
        /// The host.
        host: String,
        /// What is wrong with it.
        why: String,
    },
    /// The user and the password, or the identity token, are wrong.
    #[error(
        "unable to retrieve auth token: invalid username/password: {host} refuses them{said}; they came with the request, or \
         `wardian image login {login}` replaces them"
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
        "the certificate of {host} is not trusted: {why}; put that of its authority into /etc/containers/certs.d/{host}/, as a \
         file *.crt, or do without verification, by `--insecure-registry {host}` (of the server, for containers)"
    )]
    Untrusted {
        /// The host.
        host: String,
        /// What is wrong with the certificate.
        why: String,
    },
    /// The certificate of a server is not trusted that the registry names or redirects to.
    #[error(
        "the certificate of {host}, where {registry} leads to, is not trusted: {why}; put that of its authority into \
         /etc/containers/certs.d/{host}/, as a file *.crt, or among the system's; what is set for {registry} does not hold \
         for {host}"
    )]
    UntrustedElsewhere {
        /// The host whose certificate it is.
        host: String,
        /// The registry.
        registry: String,
        /// What is wrong with the certificate.
        why: String,
    },
    /// A registry answers, but not by TLS, and nobody allows it to be without.
    #[error("{host} does not speak TLS; `--insecure-registry {host}` goes without ({why})")]
    NotTls {
        /// The host.
        host: String,
        /// What it answered.
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
    #[error(
        "{host} has no {path}: manifest unknown{said}; `wardian image tags {repository}` lists what it has"
    )]
    NoManifest {
        /// The host.
        host: String,
        /// The path below `/v2/` that it was asked for, which a mirror has of its own.
        path: String,
        /// The image.
        image: String,
        /// The same without its tag.
        repository: String,
        /// What it says, after a colon; may be empty.
        said: String,
    },
    /// The registry does not have the repository whose tags are asked for.
    #[error("{host} has no repository {repository}{said}")]
    NoTags {
        /// The host.
        host: String,
        /// The repository.
        repository: String,
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
    /// The registry limits how often images are pulled from it, or pushed to it.
    #[error(
        "{host} limits how often images are {done} it, and the limit is reached (429){limit}{said}; {remedy}"
    )]
    RateLimit {
        /// The host.
        host: String,
        /// What was to be done: `pulled from` or `pushed to`.
        done: &'static str,
        /// The limit and the time to wait, as the registry gives them; may be empty.
        limit: String,
        /// What it says, after a colon; may be empty.
        said: String,
        /// What to do.
        remedy: String,
    },
    /// The registry answered with an error.
    #[error("{url}: {who} answered {status}{said}")]
    Answer {
        /// The URL without its secrets.
        url: String,
        /// Who answered: the registry, or the server that it redirects to.
        who: String,
        /// The HTTP status.
        status: u16,
        /// What it says, after a colon; may be empty.
        said: String,
    },
    /// The registry does not let anybody log in, or not this user.
    #[error("{host} does not let you log in: it answered {status}{said}")]
    LoginDenied {
        /// The host.
        host: String,
        /// The status of its answer.
        status: u16,
        /// What it says, after a colon; may be empty.
        said: String,
    },
    /// A server is no registry.
    #[error("{host} is no registry: {why}")]
    NoRegistry {
        /// The host.
        host: String,
        /// How this shows.
        why: String,
    },
    /// What a registry gives for an image is no JSON.
    #[error("the answer is no manifest: it is {kind}")]
    NoDocument {
        /// Its media type.
        kind: String,
    },
    /// A registry says that a document has another digest than it has.
    #[error(
        "{url}: the registry's header Docker-Content-Digest is {header}, which is not that of the content, {actual}"
    )]
    Header {
        /// The URL without its secrets.
        url: String,
        /// The digest in the header.
        header: Digest,
        /// The digest of the bytes.
        actual: Digest,
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
