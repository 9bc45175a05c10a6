//! Names of images in registries (distribution's `reference` package: grammar and normalization).

use std::fmt;

use crate::digest::Digest;
use crate::error::show;
use crate::format::reference::is_registry;

/// The registry of names without one.
pub const DOCKER_HUB: &str = "docker.io";
/// The longest name, host and repository together, in bytes (distribution's `NameTotalLengthMax`).
const LONGEST: usize = 255;
/// The longest tag in bytes.
const LONGEST_TAG: usize = 128;

/// Why a text names no image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text} names no image of a registry: {why}")]
pub struct Error {
    /// The text, escaped and cut, without a password.
    text: String,
    why: &'static str,
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
            return Err(Error { text: show(uri.as_bytes()), why: "it does not begin with docker://" });
        };
        let name = rest.strip_prefix('/').unwrap_or(rest);
        let account = name
            .split('/')
            .next()
            .is_some_and(|host| host.split_once('@').is_some_and(|(_, after)| !after.starts_with("sha256:")));
        if account {
            let why = "it has an account in it; give that as username and password of the image, or log in";
            return Err(Error { text: "the address".into(), why });
        }
        Self::parse(&name.replacen('#', ":", 1))
    }

    /// Parses a name as docker does: without a registry it belongs to Docker Hub, without a namespace there to
    /// `library`, and without tag and digest it has the tag `latest`.
    ///
    /// # Errors
    /// The text is no such name.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let refused = |why| Err(Error { text: show(text.as_bytes()), why });
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
        let registry = match registry.to_ascii_lowercase() {
            lower if is_registry(&lower) => lower,
            _ => registry.to_owned(),
        };
        let registry = if registry == "index.docker.io" { DOCKER_HUB } else { registry.as_str() };
        if !is_host(registry) {
            return refused("what is before the first / is no HOST or HOST:PORT");
        }
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

/// Whether the text is `HOST` or `HOST:PORT`; an IPv6 address is in brackets.
pub(crate) fn is_host(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    let label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let address = |inner: &str| inner.parse::<std::net::Ipv6Addr>().is_ok();
    let host_is_fine = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(inner) => address(inner),
        None => host.split('.').all(label),
    };
    let port_is_fine =
        port.is_none_or(|port| port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok());
    host_is_fine && port_is_fine
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
        let secret = name("docker://user:pass@host/a").unwrap_err().to_string();
        assert!(secret.contains("account") && !secret.contains("pass@"), "{secret}");
        assert!(name(&format!("docker:///a@sha256:{HEX}")).is_ok());
        assert!(name("oci:///a").is_err());
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
