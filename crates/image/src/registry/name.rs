//! Names of images in registries (distribution's `reference` package: grammar and normalization).

use std::borrow::Cow;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use crate::digest::Digest;
use crate::error::show;
use crate::format::reference::is_registry;

/// The registry of names without one.
pub const DOCKER_HUB: &str = "docker.io";
/// The hosts of Docker Hub, which are one registry.
const DOCKER_HUB_HOSTS: [&str; 3] = [DOCKER_HUB, "index.docker.io", "registry-1.docker.io"];
/// What stands before the colon of a digest.
const ALGORITHMS: [&str; 5] = ["sha256", "sha384", "sha512", "sha1", "md5"];
/// The longest name, host and repository together, in bytes (distribution's `NameTotalLengthMax`).
const LONGEST: usize = 255;
/// The longest tag in bytes.
pub(super) const LONGEST_TAG: usize = 128;

const NO_HOST: &str = "what is before the first / is no HOST or HOST:PORT: a port has no zero before it, and an address is \
                       written as 127.0.0.1 or [::1]";

/// Why a text names no image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text} names no image of a registry: {why}")]
pub struct Error {
    /// The text, escaped and cut, without a password.
    text: String,
    why: &'static str,
}

impl Error {
    fn of(text: &str, why: &'static str) -> Self {
        Self { text: show(without_account(text).as_bytes()), why }
    }
}

/// The full name of an image in a registry: `registry/repository:tag`, or `registry/repository@digest`.
///
/// It has a tag, a digest, or both; the digest decides then, and the tag is for people. The registry is in lower case,
/// since a host has one name, however it is written; but not one that only a capital letter tells from a namespace.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImageName {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl ImageName {
    /// Parses the address `docker://[HOST[:PORT]/]REPOSITORY[:TAG][@DIGEST]`, also with three slashes, and with `#`
    /// in place of the tag's colon, as Garden's clients write it (`docker:///busybox#1.36`).
    ///
    /// # Errors
    /// Another scheme, an account in the address, or what [`ImageName::parse`] refuses.
    pub fn of_uri(uri: &str) -> Result<Self, Error> {
        let Some(rest) = uri.strip_prefix("docker://") else {
            return Err(Error::of(uri, "it does not begin with docker://"));
        };
        let name = rest.strip_prefix('/').unwrap_or(rest);
        Self::parse(&name.replacen('#', ":", 1))
    }

    /// Parses a name as docker does: without a registry it belongs to Docker Hub, without a namespace there to
    /// `library`, and without tag and digest it has the tag `latest`.
    ///
    /// # Errors
    /// The text is no such name.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let refused = |why| Err(Error::of(text, why));
        if has_account(text) {
            let why = "it has an account in it, or what follows @ is no digest (sha256:, 64 lower-case hex digits); an \
                       account is given as username and password of the image, or by `wardian image login`";
            return refused(why);
        }
        let (name, digest) = match text.split_once('@') {
            None => (text, None),
            Some((name, digest)) => match digest.parse() {
                Ok(digest) => (name, Some(digest)),
                Err(_) => return refused("what follows @ is no digest (sha256:, 64 lower-case hex digits)"),
            },
        };
        let (name, tag) = match name.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (name, None),
        };
        let (registry, path) = match name.split_once('/') {
            Some((first, rest)) if is_registry(first) => (first, rest),
            _ => (DOCKER_HUB, name),
        };
        if !is_host(registry) {
            return refused(NO_HOST);
        }
        let registry = &*canonical(registry);
        if path.is_empty() {
            return refused("the repository is missing");
        }
        if !path.split('/').all(is_component) {
            let why = "a repository consists of lower-case letters, digits, and single separators (. _ __ -) between \
                       them";
            return refused(why);
        }
        let library = registry == DOCKER_HUB && !path.contains('/');
        let repository = if library { format!("library/{path}") } else { path.to_owned() };
        if registry.len() + 1 + repository.len() > LONGEST {
            return refused("it is longer than 255 bytes");
        }
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return refused("a tag has up to 128 letters, digits, and . _ - but does not begin with . or -");
        }
        let tag = match (tag, &digest) {
            (None, None) => Some("latest".to_owned()),
            (tag, _) => tag.map(str::to_owned),
        };
        Ok(Self { registry: registry.to_owned(), repository, tag, digest })
    }

    /// `HOST` or `HOST:PORT`; `docker.io` is the name of Docker Hub, not its host.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository in the registry, as `library/busybox`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag; `None` only if there is a digest.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest of the manifest, or of the index.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// What a registry is asked for: the digest, and otherwise the tag.
    pub fn reference(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, tag) => tag.clone().unwrap_or_default(),
        }
    }

    /// The name without tag and digest.
    pub fn without_tag(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// The address that [`ImageName::of_uri`] parses.
    pub fn uri(&self) -> String {
        format!("docker://{self}")
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        self.digest.as_ref().map_or(Ok(()), |digest| write!(f, "@{digest}"))
    }
}

/// Returns the one name of a registry, which is a host ([`is_host`]): in lower case, unless only a capital letter tells it
/// from a namespace; an IPv6 address in its short form; one name for Docker Hub.
pub(crate) fn canonical(registry: &str) -> Cow<'_, str> {
    let lower = registry.to_ascii_lowercase();
    let registry: Cow<'_, str> = if is_registry(&lower) { lower.into() } else { registry.into() };
    let (host, port) = split_port(&registry);
    if DOCKER_HUB_HOSTS.contains(&host) && matches!(port, None | Some("443")) {
        return DOCKER_HUB.into();
    }
    match bracketed(host).and_then(|inner| inner.parse::<Ipv6Addr>().ok()) {
        Some(address) => {
            let port = port.map(|port| format!(":{port}")).unwrap_or_default();
            format!("[{address}]{port}").into()
        }
        None => registry,
    }
}

/// Whether what is before an `@` is a user or a password, because no digest follows: whoever writes that may take it for
/// the address of a web page.
fn has_account(text: &str) -> bool {
    let Some((_, after)) = text.split_once('@') else { return false };
    let digest = |(algorithm, hex): (&str, &str)| {
        ALGORITHMS.contains(&algorithm) && hex.bytes().all(|b| b.is_ascii_hexdigit())
    };
    !after.split_once(':').is_some_and(digest)
}

/// Returns a text for an error, without the account in it.
pub(crate) fn without_account(text: &str) -> Cow<'_, str> {
    match text.rsplit_once('@') {
        Some((_, after)) if has_account(text) => format!("***@{after}").into(),
        _ => text.into(),
    }
}

/// Splits `HOST[:PORT]`.
pub(crate) fn split_port(text: &str) -> (&str, Option<&str>) {
    match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    }
}

fn bracketed(host: &str) -> Option<&str> {
    host.strip_prefix('[')?.strip_suffix(']')
}

/// Whether the text is `HOST` or `HOST:PORT`; an IPv6 address is in brackets. What a resolver takes for an address, as
/// `127.1` or `0x7f000001`, must be written as one (WHATWG URL standard, "ends in a number"), and a port without zeros
/// before it: a registry would otherwise have names that its settings do not know.
pub(crate) fn is_host(text: &str) -> bool {
    let (host, port) = split_port(text);
    let host_is_fine = match bracketed(host) {
        Some(inner) => inner.parse::<Ipv6Addr>().is_ok_and(|address| address.to_ipv4_mapped().is_none()),
        None => is_domain(host) && (!is_number(host) || host.parse::<Ipv4Addr>().is_ok()),
    };
    let digits = |port: &str| port.bytes().all(|b| b.is_ascii_digit()) && !port.starts_with('0');
    host_is_fine && port.is_none_or(|port| digits(port) && port.parse::<u16>().is_ok())
}

/// Whether the text consists of labels with dots between them.
pub(crate) fn is_domain(text: &str) -> bool {
    text.split('.').all(|label| {
        !label.is_empty()
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    })
}

/// Whether the last label of a host is a number, so that the host is an address.
fn is_number(host: &str) -> bool {
    let last = host.rsplit('.').next().unwrap_or_default();
    let hex = last.strip_prefix("0x").or_else(|| last.strip_prefix("0X"));
    last.bytes().all(|b| b.is_ascii_digit())
        || hex.is_some_and(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Whether the text is one component of a repository: runs of lower-case letters and digits, with one `.`, one or two
/// `_`, or any number of `-` between them.
fn is_component(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let separator = |run: &str| matches!(run, "." | "_" | "__") || run.bytes().all(|b| b == b'-');
    text.starts_with(plain) && text.ends_with(plain) && text.split(plain).all(separator)
}

fn is_tag(text: &str) -> bool {
    let first = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let further = |b: u8| first(b) || b == b'.' || b == b'-';
    text.len() <= LONGEST_TAG && text.bytes().next().is_some_and(first) && text.bytes().all(further)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn names_are_normalized_as_docker_does() {
        for (text, full) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("busybox:1.36", "docker.io/library/busybox:1.36"),
            ("docker.io/busybox", "docker.io/library/busybox:latest"),
            ("index.docker.io/library/busybox", "docker.io/library/busybox:latest"),
            ("cloudfoundry/cflinuxfs4", "docker.io/cloudfoundry/cflinuxfs4:latest"),
            ("localhost/a", "localhost/a:latest"),
            ("localhost:5000/a/b:v1", "localhost:5000/a/b:v1"),
            ("127.0.0.1:5000/a__b/c---d.e", "127.0.0.1:5000/a__b/c---d.e:latest"),
            ("[::1]:5000/a", "[::1]:5000/a:latest"),
            ("Registry/a", "Registry/a:latest"),
            ("Registry.Example:5000/a", "registry.example:5000/a:latest"),
            ("LocalHost/a", "localhost/a:latest"),
            ("registry-1.docker.io/busybox", "docker.io/library/busybox:latest"),
            ("Index.Docker.io:443/busybox", "docker.io/library/busybox:latest"),
            ("docker.io:5000/busybox", "docker.io:5000/busybox:latest"),
            ("[0:0::0001]:5000/a", "[::1]:5000/a:latest"),
            ("0xa.example/a", "0xa.example/a:latest"),
            ("quay.io/a/b/c/d:V_1.2-3", "quay.io/a/b/c/d:V_1.2-3"),
        ] {
            assert_eq!(ImageName::parse(text).map(|name| name.to_string()).as_deref(), Ok(full));
        }
        let pinned = ImageName::parse(&format!("a:t@sha256:{HEX}")).unwrap();
        assert_eq!(pinned.to_string(), format!("docker.io/library/a:t@sha256:{HEX}"));
        assert_eq!(pinned.reference(), format!("sha256:{HEX}"));
        assert_eq!(ImageName::parse(&format!("a@sha256:{HEX}")).unwrap().tag(), None);
    }

    #[test]
    fn addresses_of_clients() {
        let name = |uri: &str| ImageName::of_uri(uri).map(|name| name.to_string());
        assert_eq!(name("docker:///busybox#1.37.0").as_deref(), Ok("docker.io/library/busybox:1.37.0"));
        assert_eq!(name("docker://busybox").as_deref(), Ok("docker.io/library/busybox:latest"));
        assert_eq!(name("docker://host:5000/a/b:tag").as_deref(), Ok("host:5000/a/b:tag"));
        let again = ImageName::of_uri("docker://host:5000/a/b:tag").unwrap();
        assert_eq!(ImageName::of_uri(&again.uri()), Ok(again));
        assert!(name(&format!("docker:///a@sha256:{HEX}")).is_ok());
        assert!(name("oci:///a").is_err());
    }

    #[test]
    fn no_password_is_shown() {
        for text in [
            "user:s3cr3t@host/app",
            "user:s3cr3t@host.example:5000",
            "docker://user:s3cr3t@host/app",
            "docker:////user:s3cr3t@host/app",
            "docker://user:s3cr3t@sha256:x@host/app",
            "https://user:s3cr3t@host/app",
            "user:s3cr3t@sha256:12@host/app",
            "user:p@s3cr3t@host/app",
            "docker://host.example/user:s3cr3t@x/app",
        ] {
            for result in [ImageName::parse(text), ImageName::of_uri(text)] {
                let error = result.unwrap_err();
                let shown = format!("{error} {error:?}");
                assert!(!shown.contains("s3cr3t") && shown.contains("***@"), "{shown}");
            }
            let error = ImageName::parse(text).unwrap_err().to_string();
            assert!(error.contains("account"), "{error}");
        }
        // A digest that is none is shown.
        let error = ImageName::parse("a@sha256:12").unwrap_err().to_string();
        assert!(error.contains("a@sha256:12") && !error.contains("account"), "{error}");
    }

    #[test]
    fn what_is_no_name() {
        let long = format!("a/{}", "b".repeat(255));
        let tag = format!("a:{}", "t".repeat(129));
        for bad in [
            "",
            "/",
            "a/",
            "/a",
            "a//b",
            "A",
            "a:",
            "a:-t",
            "a:.t",
            "a: t",
            "a@",
            "a@sha256:12",
            "a@md5:12",
            "-a",
            "a-",
            "a..b",
            "a___b",
            "a/../b",
            "host:99999/a",
            "host:/a",
            "host:05000/a",
            "host:0/a",
            "127.1:5000/a",
            "2130706433:5000/a",
            "0x7f.1/a",
            "0x7f000001:5000/a",
            "127.0.0.0x1/a",
            "0177.0.0.1/a",
            "127.0.0.1.5/a",
            "h.0x:5000/a",
            "[::ffff:127.0.0.1]:5000/a",
            "-h.x/a",
            "h..x/a",
            "[::1/a",
            "a\nb",
            "a b",
            "é",
            "a:é",
            "a?b",
            "a%2fb",
            "user:pw@host/a",
            "h.x/",
            &long,
            &tag,
        ] {
            assert!(ImageName::parse(bad).is_err(), "{bad:?}");
        }
    }
}
