//! The host's settings of registries: `/etc/containers/registries.conf`, which podman, skopeo and others read too
//! (containers-registries.conf(5), version 2, and containers-registries.conf.d(5)).

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::files;
use super::name::{DOCKER_HUB, ImageName, canonical, is_domain, is_host, split_port};
use crate::error::show;
use crate::format::reference::is_registry;

/// The main file of a host.
pub const FILE: &str = "/etc/containers/registries.conf";
/// The environment variable that names another one.
pub const VARIABLE: &str = "CONTAINERS_REGISTRIES_CONF";
/// The main file of this host: what [`VARIABLE`] names, or [`FILE`].
pub fn path() -> PathBuf {
    std::env::var_os(VARIABLE).map_or_else(|| FILE.into(), PathBuf::from)
}

/// The host of Docker Hub's registry.
const DOCKER_HUB_HOST: &str = "registry-1.docker.io";

/// Why the settings cannot be used, or a name cannot with them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A file is no TOML, or has a field of another type.
    #[error("{path}: {source}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and what.
        source: Box<toml::de::Error>,
    },
    /// A file's content has no meaning.
    #[error("{path}: {what}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong, and with which entry.
        what: String,
    },
    /// The operator has blocked the registry, or the part of it.
    #[error("{name} is not {done}: `blocked = true` in {path} for {prefix}")]
    Blocked {
        /// The image, or the registry.
        name: String,
        /// What was to be done: `fetched`, `pushed`, or `logged in to`.
        done: &'static str,
        /// The prefix of the entry.
        prefix: String,
        /// The file that says so.
        path: PathBuf,
    },
    /// A short name without a registry to look it up in.
    #[error(
        "{name} is a short name, and no registry is configured for those: write it as docker.io/library/NAME or \
         HOST/REPOSITORY, or set unqualified-search-registries in {path}"
    )]
    Short {
        /// The name.
        name: String,
        /// The file where registries would be.
        path: PathBuf,
    },
    /// A short name that several registries may have, where guessing is forbidden.
    #[error("{name} is a short name (short-name-mode is enforcing): say which is meant, {candidates}")]
    Ambiguous {
        /// The name.
        name: String,
        /// The full names.
        candidates: String,
    },
    /// The text is no name at all.
    #[error(transparent)]
    Name(#[from] super::name::Error),
}

/// A registry or a mirror of it, and the repository of an image there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The authority of its URLs: `HOST` or `HOST:PORT`.
    pub host: String,
    /// The repository there, which may differ from that of the image's name.
    pub repository: String,
    /// Whether its certificate is not verified, and whether it is spoken to without TLS if it does not speak TLS. It
    /// may also go without TLS if it is on the loopback interface.
    pub insecure: bool,
}

impl Endpoint {
    /// The registry of an image itself, as if nothing was configured for it.
    pub fn of(name: &ImageName) -> Self {
        Self::at(name.registry(), name.repository().to_owned(), false)
    }

    fn at(registry: &str, repository: String, insecure: bool) -> Self {
        let host = if registry == DOCKER_HUB { DOCKER_HUB_HOST } else { registry };
        Self { host: host.to_owned(), repository, insecure }
    }
}

/// What the host's files say of registries.
#[derive(Debug, Clone)]
pub struct Registries {
    /// The main file, for errors.
    path: PathBuf,
    search: Vec<String>,
    enforcing: bool,
    aliases: BTreeMap<String, ImageName>,
    tables: Vec<Table>,
    /// Hosts that a flag of ours names insecure.
    insecure: Vec<String>,
    /// What the files say and has no meaning here, for a warning.
    ignored: Vec<String>,
}

impl Default for Registries {
    /// A host without files: as docker, which looks short names up on Docker Hub.
    fn default() -> Self {
        Self {
            path: FILE.into(),
            search: vec![DOCKER_HUB.into()],
            enforcing: false,
            aliases: BTreeMap::new(),
            tables: Vec::new(),
            insecure: Vec::new(),
            ignored: Vec::new(),
        }
    }
}

#[derive(Debug, Clone)]
struct Table {
    prefix: String,
    /// Empty: as the name says.
    location: String,
    insecure: bool,
    blocked: bool,
    mirrors: Vec<Mirror>,
    path: PathBuf,
}

#[derive(Debug, Clone)]
struct Mirror {
    location: String,
    insecure: bool,
    pull: Pull,
}

/// Which images a mirror is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Pull {
    #[default]
    All,
    DigestOnly,
    TagOnly,
}

type Rest = BTreeMap<String, toml::Value>;

/// A file as written.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Written {
    unqualified_search_registries: Option<Vec<String>>,
    short_name_mode: Option<String>,
    #[serde(default, rename = "registry")]
    tables: Vec<WrittenTable>,
    #[serde(default)]
    aliases: BTreeMap<String, String>,
    #[serde(flatten)]
    rest: Rest,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct WrittenTable {
    #[serde(default)]
    prefix: String,
    #[serde(default)]
    location: String,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    blocked: bool,
    #[serde(default)]
    mirror_by_digest_only: bool,
    #[serde(default, rename = "mirror")]
    mirrors: Vec<WrittenMirror>,
    #[serde(flatten)]
    rest: Rest,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct WrittenMirror {
    location: String,
    #[serde(default)]
    insecure: bool,
    pull_from_mirror: Option<Pull>,
    #[serde(flatten)]
    rest: Rest,
}

impl Registries {
    /// Reads the file, and the `*.conf` files of the directory beside it of the same name with `.d`, in the order of
    /// their names: each setting of a later one replaces an earlier one's; tables with the same prefix replace each
    /// other whole. Files of users are not read: a server has no user.
    ///
    /// # Errors
    /// A file that cannot be read or used. A missing one is none.
    pub fn load(file: &Path) -> Result<Self, Error> {
        let mut found = Self { path: file.to_owned(), ..Self::default() };
        let read = |path: &Path| {
            files::text(path, |_| Ok(())).map_err(|source| Error::Read { path: path.to_owned(), source })
        };
        // Whoever writes the main file says all of it: without the setting there, no registry is asked for short names.
        if let Some(text) = read(file)? {
            found.search.clear();
            found.add(file, &text)?;
        }
        for path in drop_ins(file)? {
            if let Some(text) = read(&path)? {
                found.add(&path, &text)?;
            }
        }
        Ok(found)
    }

    /// Adds hosts whose certificates are not verified, and which may be asked by plain http.
    ///
    /// # Errors
    /// A text is no `HOST` or `HOST:PORT`.
    pub fn with_insecure(mut self, hosts: &[String]) -> Result<Self, Error> {
        if let Some(bad) = hosts.iter().find(|host| !is_host(host)) {
            let what = format!("{} is no HOST or HOST:PORT", show(bad.as_bytes()));
            return Err(Error::Content { path: "--insecure-registry".into(), what });
        }
        self.insecure.extend_from_slice(hosts);
        Ok(self)
    }

    /// What the files say and has no meaning here, as `FILE: SETTING`.
    pub fn ignored(&self) -> &[String] {
        &self.ignored
    }

    fn add(&mut self, path: &Path, text: &str) -> Result<(), Error> {
        let content = |what: String| Error::Content { path: path.to_owned(), what };
        let written: Written = toml::from_str(text)
            .map_err(|source| Error::Parse { path: path.to_owned(), source: Box::new(source) })?;
        if written.rest.contains_key("registries") {
            let what = "it is of version 1 ([registries.search]), which nobody reads any more; version 2 has \
                        unqualified-search-registries and [[registry]]";
            return Err(content(what.into()));
        }
        self.ignore(path, &written.rest);
        if let Some(mut search) = written.unqualified_search_registries {
            search.iter_mut().for_each(trim);
            if let Some(bad) = search.iter().find(|host| !is_host(host)) {
                let bad = show(bad.as_bytes());
                return Err(content(format!("unqualified-search-registries: {bad} is no HOST or HOST:PORT")));
            }
            self.search = search;
        }
        match written.short_name_mode.as_deref() {
            None => {}
            Some("enforcing") => self.enforcing = true,
            // There is nobody to ask, so both try all of them.
            Some("permissive" | "disabled" | "") => self.enforcing = false,
            Some(other) => {
                let other = show(other.as_bytes());
                return Err(content(format!(
                    "short-name-mode is {other}; it can be enforcing, permissive or disabled"
                )));
            }
        }
        for (alias, name) in &written.aliases {
            if name.is_empty() {
                self.aliases.remove(alias);
                continue;
            }
            let full = name.split_once('/').is_some_and(|(first, _)| is_registry(first));
            match ImageName::parse(name) {
                Ok(parsed) if full && !name.contains('@') && !has_tag(name) => {
                    self.aliases.insert(alias.clone(), parsed);
                }
                _ => {
                    let (alias, name) = (show(alias.as_bytes()), show(name.as_bytes()));
                    return Err(content(format!("aliases: {alias} = {name}, which is no HOST/REPOSITORY")));
                }
            }
        }
        for table in written.tables {
            let table = self.table(path, table)?;
            self.tables.retain(|other| other.prefix != table.prefix || other.path == table.path);
            if self.tables.iter().any(|other| other.prefix == table.prefix) {
                return Err(content(format!(
                    "there are two [[registry]] of {}",
                    show(table.prefix.as_bytes())
                )));
            }
            self.tables.push(table);
        }
        Ok(())
    }

    fn ignore(&mut self, path: &Path, rest: &Rest) {
        let path = path.display();
        self.ignored.extend(rest.keys().map(|key| format!("{path}: {}", show(key.as_bytes()))));
    }

    fn table(&mut self, path: &Path, written: WrittenTable) -> Result<Table, Error> {
        let content = |what: String| Error::Content { path: path.to_owned(), what };
        let place = |text: &str| text.split('/').next().is_some_and(is_host);
        self.ignore(path, &written.rest);
        let (mut prefix, mut location) = (written.prefix, written.location);
        trim(&mut prefix);
        trim(&mut location);
        if prefix.is_empty() {
            prefix.clone_from(&location);
        }
        let shown = show(prefix.as_bytes());
        match prefix.strip_prefix("*.") {
            Some(domain) if !is_domain(domain) => {
                return Err(content(format!("prefix {shown}: only a host may follow *.")));
            }
            Some(_) => prefix = prefix.to_ascii_lowercase(),
            None if !place(&prefix) => {
                return Err(content(format!(
                    "a [[registry]] has the prefix {shown}, which begins with no host"
                )));
            }
            None => prefix = of_canonical(&prefix),
        }
        if !location.is_empty() && !place(&location) || has_tag(&location) || location.contains('@') {
            return Err(content(format!("location of {shown}: {} is no place", show(location.as_bytes()))));
        }
        let mut mirrors = Vec::new();
        for mut mirror in written.mirrors {
            self.ignore(path, &mirror.rest);
            trim(&mut mirror.location);
            if !place(&mirror.location) || has_tag(&mirror.location) || mirror.location.contains('@') {
                let bad = show(mirror.location.as_bytes());
                return Err(content(format!("a mirror of {shown}: {bad} is no place")));
            }
            let pull = match (mirror.pull_from_mirror, written.mirror_by_digest_only) {
                (Some(_), true) => {
                    let what =
                        format!("{shown} has mirror-by-digest-only, and a mirror of it pull-from-mirror");
                    return Err(content(what));
                }
                (None, true) => Pull::DigestOnly,
                (pull, false) => pull.unwrap_or_default(),
            };
            mirrors.push(Mirror { location: mirror.location, insecure: mirror.insecure, pull });
        }
        let (insecure, blocked) = (written.insecure, written.blocked);
        let location = of_canonical(&location);
        Ok(Table { prefix, location, insecure, blocked, mirrors, path: path.to_owned() })
    }

    /// Returns the full names that a text may mean, in the order in which they are tried: one, unless it is a short
    /// name without alias where several registries are searched.
    ///
    /// # Errors
    /// [`Error::Name`], [`Error::Short`], [`Error::Ambiguous`].
    pub fn candidates(&self, text: &str) -> Result<Vec<ImageName>, Error> {
        let name = ImageName::parse(text)?;
        if text.split_once('/').is_some_and(|(first, _)| is_registry(first)) {
            return Ok(vec![name]);
        }
        let end = [text.find('@'), text.find(':')].into_iter().flatten().min().unwrap_or(text.len());
        let (bare, rest) = text.split_at(end);
        if let Some(alias) = self.aliases.get(bare) {
            return Ok(vec![ImageName::parse(&format!("{}{rest}", alias.without_tag()))?]);
        }
        let full = self.search.iter().map(|registry| ImageName::parse(&format!("{registry}/{text}")));
        let full = full.collect::<Result<Vec<_>, _>>()?;
        match full.len() {
            0 => Err(Error::Short { name: show(text.as_bytes()), path: self.path.clone() }),
            1 => Ok(full),
            _ if self.enforcing => {
                let candidates: Vec<_> = full.iter().map(ToString::to_string).collect();
                Err(Error::Ambiguous { name: show(text.as_bytes()), candidates: candidates.join(" or ") })
            }
            _ => Ok(full),
        }
    }

    /// Returns where the image is fetched from, in order: its mirrors, and then its registry.
    ///
    /// # Errors
    /// [`Error::Blocked`].
    pub fn endpoints(&self, name: &ImageName) -> Result<Vec<Endpoint>, Error> {
        let full = name.to_string();
        self.check(name.registry(), &full, || full.clone(), "fetched")?;
        let own = || self.endpoint(name.registry(), name.repository().to_owned(), false);
        let Some((end, table)) = self.entry(&full) else {
            return Ok(vec![own()]);
        };
        let place = name.without_tag();
        // What the location takes the place of; a prefix may include a tag.
        let rest = place.get(end..).unwrap_or_default();
        let tag = full.get(place.len()..).unwrap_or_default();
        let at = |location: &str, insecure: bool| {
            let place = of_canonical(&format!("{location}{rest}"));
            let (host, repository) = place.split_once('/').unwrap_or((&place, ""));
            // What is blocked by its own name is so by this one.
            self.check(host, &format!("{place}{tag}"), || format!("{full}, from {place},"), "fetched")?;
            let library = host == DOCKER_HUB && !repository.contains('/');
            let repository = if library { format!("library/{repository}") } else { repository.to_owned() };
            Ok(self.endpoint(host, repository, insecure))
        };
        let wanted = |mirror: &&Mirror| match mirror.pull {
            Pull::All => true,
            Pull::DigestOnly => name.digest().is_some(),
            Pull::TagOnly => name.digest().is_none(),
        };
        let mirrors = table.mirrors.iter().filter(wanted).map(|mirror| at(&mirror.location, mirror.insecure));
        let mut all = mirrors.collect::<Result<Vec<_>, Error>>()?;
        all.push(match table.location.is_empty() {
            true => Endpoint { insecure: table.insecure || own().insecure, ..own() },
            false => at(&table.location, table.insecure)?,
        });
        Ok(all)
    }

    /// Returns the entry of the longest prefix of a full name, and where the prefix ends.
    fn entry(&self, full: &str) -> Option<(usize, &Table)> {
        let found = self.tables.iter().filter_map(|table| Some((matched(full, &table.prefix)?, table)));
        found.max_by_key(|(_, table)| table.prefix.len())
    }

    /// Fails if a full name of this registry is blocked. The port of https may be left out of either.
    fn check(
        &self,
        registry: &str,
        full: &str,
        name: impl FnOnce() -> String,
        done: &'static str,
    ) -> Result<(), Error> {
        let blocked = |full: &str| self.entry(full).map(|(_, table)| table).filter(|table| table.blocked);
        let with_port = || {
            let rest = full.strip_prefix(registry).filter(|_| split_port(registry).1.is_none())?;
            blocked(&format!("{registry}:443{rest}"))
        };
        match blocked(full).or_else(with_port) {
            None => Ok(()),
            Some(table) => {
                let (prefix, path) = (table.prefix.clone(), table.path.clone());
                Err(Error::Blocked { name: name(), done, prefix, path })
            }
        }
    }

    /// Returns where the image is pushed to, which is its registry itself: what is at another place is a copy.
    ///
    /// # Errors
    /// [`Error::Blocked`].
    pub fn own_endpoint(&self, name: &ImageName) -> Result<Endpoint, Error> {
        let (full, registry) = (name.to_string(), name.registry());
        self.check(registry, &full, || full.clone(), "pushed")?;
        // An entry may be insecure because of its location, which may be elsewhere.
        let insecure = self.entry(&full).is_some_and(|(_, table)| {
            let host = table.location.split('/').next().unwrap_or_default();
            table.insecure && (host.is_empty() || canonical(host) == registry)
        });
        Ok(self.endpoint(registry, name.repository().to_owned(), insecure))
    }

    /// Returns a registry without a repository, to log in to.
    ///
    /// # Errors
    /// [`Error::Blocked`].
    pub(crate) fn bare_endpoint(&self, registry: &str) -> Result<Endpoint, Error> {
        self.check(registry, registry, || registry.to_owned(), "logged in to")?;
        let of_registry =
            |table: &&Table| table.prefix == registry && ["", registry].contains(&table.location.as_str());
        let insecure = self.tables.iter().find(of_registry).is_some_and(|table| table.insecure);
        Ok(self.endpoint(registry, String::new(), insecure))
    }

    fn endpoint(&self, host: &str, repository: String, insecure: bool) -> Endpoint {
        let insecure = insecure || self.insecure.iter().any(|other| other.eq_ignore_ascii_case(host));
        Endpoint::at(host, repository, insecure)
    }
}

/// Returns where the match of the prefix ends in the full name; `None` if it does not match. It matches whole parts
/// only; `*.domain` all hosts below it, whatever their port, before which it ends (containers/image,
/// `refMatchingSubdomainPrefix`).
fn matched(full: &str, prefix: &str) -> Option<usize> {
    let Some(domain) = prefix.strip_prefix('*') else {
        let rest = full.strip_prefix(prefix)?;
        return (rest.is_empty() || rest.starts_with(['/', ':', '@'])).then_some(prefix.len());
    };
    let (host, _) = split_port(full.split('/').next().unwrap_or_default());
    host.strip_suffix(domain).is_some_and(|sub| !sub.is_empty()).then_some(host.len())
}

/// Takes the slashes off the end of a place, as containers/image does.
fn trim(place: &mut String) {
    place.truncate(place.trim_end_matches('/').len());
}

/// Returns a place whose registry has its one name.
fn of_canonical(place: &str) -> String {
    let (registry, rest) = place.split_at(place.find('/').unwrap_or(place.len()));
    format!("{}{rest}", canonical(registry))
}

fn has_tag(place: &str) -> bool {
    place.split_once('/').is_some_and(|(_, path)| path.contains(':'))
}

/// Returns the `*.conf` files of the directory beside the main file, in the order of their names.
fn drop_ins(file: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut dir = file.as_os_str().to_owned();
    dir.push(".d");
    let failed = |source| Error::Read { path: dir.clone().into(), source };
    let entries = match fs::read_dir(&dir) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        entries => entries.map_err(failed)?,
    };
    let paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<_>>>();
    let mut paths = paths.map_err(failed)?;
    paths.retain(|path| path.extension().is_some_and(|end| end == "conf"));
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(texts: &[&str]) -> Result<Registries, Error> {
        let dir = tempfile::tempdir().unwrap();
        let main = dir.path().join("registries.conf");
        fs::create_dir(dir.path().join("registries.conf.d")).unwrap();
        for (at, text) in texts.iter().enumerate() {
            let path = match at {
                0 => main.clone(),
                _ => dir.path().join(format!("registries.conf.d/{at}.conf")),
            };
            fs::write(path, text).unwrap();
        }
        fs::write(dir.path().join("registries.conf.d/README"), "= no TOML").unwrap();
        Registries::load(&main)
    }

    fn names(found: &Registries, text: &str) -> Vec<String> {
        found.candidates(text).unwrap().iter().map(ToString::to_string).collect()
    }

    fn places(found: &Registries, text: &str) -> Vec<String> {
        let endpoints = found.endpoints(&ImageName::parse(text).unwrap()).unwrap();
        let shown = |end: &Endpoint| {
            format!("{}/{}{}", end.host, end.repository, if end.insecure { " insecure" } else { "" })
        };
        endpoints.iter().map(shown).collect()
    }

    const DIGEST: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn a_host_without_files_is_as_docker() {
        let dir = tempfile::tempdir().unwrap();
        let none = Registries::load(&dir.path().join("registries.conf")).unwrap();
        assert_eq!(names(&none, "alpine:3"), ["docker.io/library/alpine:3"]);
        assert_eq!(places(&none, "alpine"), ["registry-1.docker.io/library/alpine"]);
        assert_eq!(places(&none, "quay.io/a/b"), ["quay.io/a/b"]);
        // Aliases alone change nothing for other names.
        fs::create_dir(dir.path().join("registries.conf.d")).unwrap();
        fs::write(
            dir.path().join("registries.conf.d/shortnames.conf"),
            "[aliases]\nfedora = \"r.x/fedora\"\n",
        )
        .unwrap();
        let aliases = Registries::load(&dir.path().join("registries.conf")).unwrap();
        assert_eq!(names(&aliases, "fedora:40"), ["r.x/fedora:40"]);
        assert_eq!(names(&aliases, "alpine"), ["docker.io/library/alpine:latest"]);
    }

    #[test]
    fn short_names() {
        let none = of(&[""]).unwrap();
        assert!(matches!(none.candidates("alpine"), Err(Error::Short { .. })));
        assert_eq!(names(&none, "localhost/alpine"), ["localhost/alpine:latest"]);
        let two =
            "unqualified-search-registries = [\"a.x\", \"b.x:5000\"]\n[aliases]\nweb = \"c.x/site/web\"\n";
        let found = of(&[two]).unwrap();
        assert_eq!(names(&found, "tool:1"), ["a.x/tool:1", "b.x:5000/tool:1"]);
        assert_eq!(names(&found, "web"), ["c.x/site/web:latest"]);
        assert_eq!(names(&found, &format!("web@{DIGEST}")), [format!("c.x/site/web@{DIGEST}")]);
        let later = of(&[two, "short-name-mode = \"enforcing\"\n[aliases]\nweb = \"\"\n"]).unwrap();
        let error = later.candidates("web").unwrap_err().to_string();
        assert!(error.contains("a.x/web:latest or b.x:5000/web:latest"), "{error}");
        let one = of(&[two, "unqualified-search-registries = [\"docker.io\"]"]).unwrap();
        assert_eq!(names(&one, "tool"), ["docker.io/library/tool:latest"]);
    }

    #[test]
    fn mirrors_and_locations() {
        let text = "
            [[registry]]
            prefix = \"example.com/foo\"
            location = \"internal.net/bar\"
            [[registry.mirror]]
            location = \"m0.local/for-foo\"
            [[registry.mirror]]
            location = \"m1.local:5000\"
            insecure = true
            pull-from-mirror = \"digest-only\"
            [[registry]]
            location = \"example.com/foo/secret\"
            blocked = true
            [[registry]]
            location = \"docker.io\"
            mirror-by-digest-only = false
            [[registry.mirror]]
            location = \"cache.local/hub\"
            [[registry]]
            prefix = \"*.corp.example\"
            insecure = true
        ";
        let found = of(&[text]).unwrap();
        assert_eq!(places(&found, "example.com/foo/a:1"), ["m0.local/for-foo/a", "internal.net/bar/a"]);
        assert_eq!(
            places(&found, &format!("example.com/foo/a@{DIGEST}")),
            ["m0.local/for-foo/a", "m1.local:5000/a insecure", "internal.net/bar/a"]
        );
        assert_eq!(places(&found, "example.com/food/a"), ["example.com/food/a"]);
        assert_eq!(
            places(&found, "alpine"),
            ["cache.local/hub/library/alpine", "registry-1.docker.io/library/alpine"]
        );
        assert_eq!(places(&found, "a.b.corp.example/x"), ["a.b.corp.example/x insecure"]);
        assert_eq!(places(&found, "corp.example/x"), ["corp.example/x"]);
        let blocked = found.endpoints(&ImageName::parse("example.com/foo/secret:1").unwrap());
        assert!(matches!(blocked, Err(Error::Blocked { .. })));
        let unblocked = of(&[text, "[[registry]]\nlocation = \"example.com/foo/secret\"\n"]).unwrap();
        assert_eq!(places(&unblocked, "example.com/foo/secret"), ["example.com/foo/secret"]);
    }

    /// A blocked registry is blocked by whatever name it is reached.
    #[test]
    fn what_is_blocked() {
        let is_blocked = |found: &Registries, text: &str| {
            let name = ImageName::parse(text).unwrap();
            let pulled = matches!(found.endpoints(&name), Err(Error::Blocked { .. }));
            let pushed = matches!(found.own_endpoint(&name), Err(Error::Blocked { .. }));
            assert_eq!(pulled, pushed, "{text}");
            let login = matches!(found.bare_endpoint(name.registry()), Err(Error::Blocked { .. }));
            assert_eq!(pulled, login, "{text}");
            pulled
        };
        for (prefix, names, others) in [
            (
                "*.evil.example",
                &["a.evil.example/x", "a.evil.example:5000/x", "A.b.Evil.example:1/x"][..],
                &["evil.example/x", "notevil.example:5000/x", "b.example/a.evil.example/x"][..],
            ),
            ("*.Evil.Example", &["a.evil.example/x"], &[]),
            ("*.0.0.1", &["127.0.0.1:5000/x"], &[]),
            ("Evil.Example", &["evil.example/x", "evil.example:5000/x"], &["evil.example.org/x"]),
            ("evil.example:443", &["evil.example/x", "evil.example:443/x"], &["evil.example:5000/x"]),
            ("[::1]:5000", &["[0:0::1]:5000/x"], &["[::1]/x"]),
            (
                "docker.io",
                &[
                    "alpine",
                    "index.docker.io/library/alpine",
                    "registry-1.docker.io/library/alpine",
                    "docker.io:443/a/b",
                ],
                &["quay.io/a"],
            ),
            ("registry-1.docker.io", &["alpine", "docker.io/a/b"], &[]),
        ] {
            let found = of(&[&format!("[[registry]]\nprefix = \"{prefix}\"\nblocked = true\n")]).unwrap();
            for name in names {
                assert!(is_blocked(&found, name), "{prefix} {name}");
            }
            for name in others {
                assert!(!is_blocked(&found, name), "{prefix} {name}");
            }
        }
        // What is blocked is not reached by a name that leads there either, and may still be left out of a push.
        for place in
            ["location = \"evil.example:5000\"", "[[registry.mirror]]\nlocation = \"Evil.example:5000/y\""]
        {
            let text = format!(
                "[[registry]]\nprefix = \"evil.example\"\nblocked = true\n[[registry]]\nprefix = \"r.x\"\n{place}\n"
            );
            let (found, name) = (of(&[&text]).unwrap(), ImageName::parse("r.x/a").unwrap());
            let error = found.endpoints(&name).unwrap_err().to_string();
            assert!(
                error.contains("r.x/a:latest, from evil.example:5000/") && error.contains("not fetched"),
                "{error}"
            );
            assert_eq!(found.own_endpoint(&name).unwrap().host, "r.x");
        }
        let found = of(&["[[registry]]\nlocation = \"r.x\"\nblocked = true\n"]).unwrap();
        let pushed = found.own_endpoint(&ImageName::parse("r.x/a").unwrap()).unwrap_err().to_string();
        assert!(pushed.starts_with("r.x/a:latest is not pushed: "), "{pushed}");
        let login = found.bare_endpoint("r.x").unwrap_err().to_string();
        assert!(login.starts_with("r.x is not logged in to: "), "{login}");
    }

    /// The port that a prefix `*.domain` leaves over belongs to the location.
    #[test]
    fn ports_of_wildcards() {
        let found = of(&["[[registry]]\nprefix = \"*.a.x\"\nlocation = \"b.x\"\n"]).unwrap();
        assert_eq!(places(&found, "r.a.x:5000/i"), ["b.x:5000/i"]);
        assert_eq!(places(&found, "r.a.x/i"), ["b.x/i"]);
    }

    #[test]
    fn slashes_at_the_end() {
        let text = "unqualified-search-registries = [\"a.x/\"]\n[[registry]]\nprefix = \"hub.x/\"\n\
                    location = \"b.x:5000/\"\n[[registry.mirror]]\nlocation = \"c.x/team/\"\n";
        let found = of(&[text]).unwrap();
        assert_eq!(names(&found, "tool"), ["a.x/tool:latest"]);
        assert_eq!(places(&found, "hub.x/i"), ["c.x/team/i", "b.x:5000/i"]);
    }

    #[test]
    fn a_file_that_is_null_says_nothing() {
        let found = Registries::load(Path::new("/dev/null")).unwrap();
        assert_eq!(places(&found, "a.x/i"), ["a.x/i"]);
    }

    #[test]
    fn insecure_is_one_host_exactly() {
        let found = of(&[""]).unwrap().with_insecure(&["reg.local:5000".to_owned()]).unwrap();
        assert_eq!(places(&found, "reg.local:5000/a"), ["reg.local:5000/a insecure"]);
        assert_eq!(places(&found, "reg.local/a"), ["reg.local/a"]);
        assert_eq!(places(&found, "x.reg.local:5000/a"), ["x.reg.local:5000/a"]);
        for bad in ["", "http://a", "a/b", "*.a", "10.0.0.0/8"] {
            assert!(of(&[""]).unwrap().with_insecure(&[bad.to_owned()]).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_cannot_be_used_is_said() {
        let found =
            of(&["additional-layer-store-auth-helper = \"x\"\n[[registry]]\nlocation = \"a.x\"\nnew = 1\n"]);
        let ignored = found.unwrap().ignored.join(" ");
        assert!(
            ignored.contains("additional-layer-store-auth-helper") && ignored.contains("new"),
            "{ignored}"
        );
        for bad in [
            "= 1",
            "registry = 1",
            "[registries.search]\nregistries = [\"a\"]",
            "unqualified-search-registries = [\"http://a\"]",
            "short-name-mode = \"other\"",
            "[aliases]\na = \"b\"",
            "[aliases]\na = \"r.x/b:tag\"",
            "[[registry]]\n",
            "[[registry]]\nlocation = \"/a\"",
            "[[registry]]\nprefix = \"*.a/b\"",
            "[[registry]]\nprefix = \"a.x\"\nlocation = \"b.x/c:tag\"",
            "[[registry]]\nlocation = \"a.x\"\n[[registry.mirror]]\nlocation = \"\"",
            "[[registry]]\nlocation = \"a.x\"\n[[registry.mirror]]\nlocation = \"b.x\"\npull-from-mirror = \"x\"",
            "[[registry]]\nlocation = \"a.x\"\nmirror-by-digest-only = true\n[[registry.mirror]]\nlocation = \"b.x\"\npull-from-mirror = \"all\"",
            "[[registry]]\nlocation = \"a.x\"\n[[registry]]\nlocation = \"a.x\"",
        ] {
            assert!(of(&[bad]).is_err(), "{bad}");
        }
    }
}
