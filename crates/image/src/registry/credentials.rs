//! Logins at registries: the files and the helper programs of docker and podman (containers-auth.json(5), docker's
//! `config.json`, the protocol of docker-credential-helpers).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value, json};
use wardian_sys::program::Program;

use super::files;
use super::name::{DOCKER_HUB, canonical, is_host, without_account};
use crate::error::show;

/// Wardian's own file of logins, which a server and all commands read first.
pub const FILE: &str = "/etc/wardian/auth.json";
/// The environment variable that names the only file to be used, as for podman.
pub const VARIABLE: &str = "REGISTRY_AUTH_FILE";
/// What docker calls Docker Hub in its files, and at its helpers.
const DOCKER_HUB_URL: &str = "https://index.docker.io/v1/";
/// The user name with which a helper says that the secret is an identity token.
const TOKEN: &str = "<token>";
/// How long a helper may take: it may ask a service of a cloud.
const PATIENCE: Duration = Duration::from_secs(30);
/// The users of the host, which say where this one's home is, where the environment does not.
const USERS: &str = "/etc/passwd";

/// Why a login cannot be found or kept. Nothing of a secret is in it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file cannot be read.
    #[error("cannot read the logins in {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A file cannot be written.
    #[error("cannot write the logins to {path}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A file is no JSON, or not of the form.
    #[error("{path}: line {line}, column {column}: this is no file of logins")]
    Parse {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
    },
    /// An entry cannot be used.
    #[error("{path}: the entry of {key}: {why}")]
    Entry {
        /// The file.
        path: PathBuf,
        /// The entry.
        key: String,
        /// What is wrong.
        why: &'static str,
    },
    /// A helper has no name of a program.
    #[error("{path}: {helper} is no name of a credential helper")]
    Name {
        /// The file that names it.
        path: PathBuf,
        /// The name.
        helper: String,
    },
    /// A helper could not be run.
    #[error(
        "the credential helper for {registry}, which {path} asks for: {source}; install it into a directory of PATH, or \
         take it out of that file (credsStore, credHelpers) and log in: `wardian image login {registry}`"
    )]
    Run {
        /// The file that names it.
        path: PathBuf,
        /// The registry.
        registry: String,
        /// Why.
        source: wardian_sys::program::Error,
    },
    /// A helper has failed.
    #[error("the credential helper {helper} for {registry}, which {path} asks for, has failed: {said}")]
    Failed {
        /// The program.
        helper: String,
        /// The file that names it.
        path: PathBuf,
        /// The registry.
        registry: String,
        /// What it said on its standard error.
        said: String,
    },
    /// The text is no registry.
    #[error("{text} is no registry: expected HOST or HOST:PORT")]
    Registry {
        /// The text.
        text: String,
    },
}

/// A login. `Debug` shows no secrets.
#[derive(Clone, PartialEq, Eq)]
pub enum Login {
    /// A user's name and password.
    Basic {
        /// The name.
        user: String,
        /// The password.
        password: String,
    },
    /// A token that is changed for another one at the registry's token server (docker's `identitytoken`).
    Identity(String),
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Basic { .. } => "Basic(..)",
            Self::Identity(_) => "Identity(..)",
        })
    }
}

/// The files of logins of this host, in the order in which they are read.
#[derive(Debug, Clone, Default)]
pub struct Credentials {
    files: Vec<PathBuf>,
    /// The environment of helpers; `None`: this program's, from which those of clouds take their settings.
    env: Option<Vec<(String, String)>>,
}

/// What is null is not there: some writers leave it so.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    #[serde(default, deserialize_with = "or_null")]
    auths: BTreeMap<String, Option<Entry>>,
    #[serde(default, deserialize_with = "or_null")]
    cred_helpers: BTreeMap<String, Option<String>>,
    #[serde(default, deserialize_with = "or_null")]
    creds_store: String,
}

#[derive(Default, Deserialize)]
struct Entry {
    #[serde(default, deserialize_with = "or_null")]
    auth: String,
    #[serde(default, deserialize_with = "or_null")]
    username: String,
    #[serde(default, deserialize_with = "or_null")]
    password: String,
    #[serde(default, deserialize_with = "or_null")]
    identitytoken: String,
    #[serde(default, deserialize_with = "or_null")]
    registrytoken: String,
}

fn or_null<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(from: D) -> Result<T, D::Error> {
    Option::deserialize(from).map(Option::unwrap_or_default)
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Entry(..)")
    }
}

/// What a helper prints, and reads.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Spoken {
    #[serde(default, rename = "ServerURL")]
    server_url: String,
    username: String,
    secret: String,
}

impl Credentials {
    /// The file that [`VARIABLE`] names, alone; without it [`FILE`], and after it those of podman
    /// (`$XDG_RUNTIME_DIR/containers/auth.json`, `/run/containers/UID/auth.json`, and
    /// `$XDG_CONFIG_HOME/containers/auth.json`) and docker (`$DOCKER_CONFIG/config.json`). A service has neither
    /// `XDG_RUNTIME_DIR` nor `HOME`, and reads the same ones as the commands of its user.
    pub fn of_host() -> Self {
        let users = || std::fs::read_to_string(USERS).unwrap_or_default();
        Self::of(places(|name| std::env::var_os(name), rustix::process::geteuid().as_raw(), users))
    }

    /// These files, of which the first is written.
    pub fn of(files: Vec<PathBuf>) -> Self {
        Self { files, env: None }
    }

    /// Returns the login for a repository. In each file, the helper of its registry comes first, then the entries from
    /// the most special to the registry's own (`host/a/b`, `host/a`, `host`), then the file's helper for all.
    ///
    /// # Errors
    /// A file or an entry that cannot be used, a helper that fails: it might have had the login.
    pub fn find(&self, registry: &str, repository: &str) -> Result<Option<Login>, Error> {
        for path in &self.files {
            let Some(file) = read(path)? else { continue };
            let mut helpers = file.cred_helpers.iter().filter(|(key, _)| host_of(key) == registry);
            if let Some(name) = helpers.find_map(|(_, name)| name.as_ref()) {
                if let Some(login) = self.ask(path, name, registry)? {
                    return Ok(Some(login));
                }
                continue;
            }
            let mut place = format!("{registry}/{repository}");
            loop {
                // Several spellings of one registry may stand beside each other; one that is empty says that a helper
                // has it.
                for (key, entry) in file.auths.iter().filter(|(key, _)| key_of(key) == place) {
                    if let Some(entry) = entry
                        && let Some(login) = entry.login(path, key)?
                    {
                        return Ok(Some(login));
                    }
                }
                match place.rsplit_once('/') {
                    Some((shorter, _)) => place.truncate(shorter.len()),
                    None => break,
                }
            }
            if !file.creds_store.is_empty()
                && let Some(login) = self.ask(path, &file.creds_store, registry)?
            {
                return Ok(Some(login));
            }
        }
        Ok(None)
    }

    /// Keeps a login of the registry, in the first file, whose other content stays. Only its owner may read the file.
    ///
    /// # Errors
    /// The file cannot be read or written; the text is no registry.
    pub fn keep(&self, registry: &str, login: &Login) -> Result<(), Error> {
        let registry = &*checked(registry)?;
        let entry = match login {
            Login::Basic { user, password } => {
                json!({ "auth": BASE64_STANDARD.encode(format!("{user}:{password}")) })
            }
            Login::Identity(token) => {
                json!({ "auth": BASE64_STANDARD.encode(format!("{TOKEN}:")), "identitytoken": token })
            }
        };
        self.change(|auths| {
            auths.retain(|key, _| key_of(key) != registry);
            auths.insert(registry.to_owned(), entry);
            true
        })
        .map(drop)
    }

    /// Removes the registry's logins from the first file; false if there is none.
    ///
    /// # Errors
    /// As [`Credentials::keep`].
    pub fn forget(&self, registry: &str) -> Result<bool, Error> {
        let registry = &*checked(registry)?;
        if text(self.own())?.is_none() {
            return Ok(false);
        }
        self.change(|auths| {
            let before = auths.len();
            auths.retain(|key, _| key_of(key) != registry);
            auths.len() < before
        })
    }

    /// The file that is written.
    pub fn own(&self) -> &Path {
        self.files.first().map_or(Path::new(FILE), PathBuf::as_path)
    }

    /// Asks a helper for the login of a registry.
    fn ask(&self, path: &Path, name: &str, registry: &str) -> Result<Option<Login>, Error> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        if name.is_empty() || !name.bytes().all(plain) {
            return Err(Error::Name { path: path.into(), helper: show(name.as_bytes()) });
        }
        let helper = format!("docker-credential-{name}");
        let server = if registry == DOCKER_HUB { DOCKER_HUB_URL } else { registry };
        let env = self.env.clone().unwrap_or_else(|| std::env::vars().collect());
        let env: Vec<_> = env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let program = Program {
            path: Path::new(&helper),
            args: &["get"],
            env: &env,
            input: server.as_bytes(),
            patience: PATIENCE,
        };
        let (registry, asking) = (registry.to_owned(), path.to_owned());
        let output = match program.run() {
            Ok(output) => output,
            Err(source) => return Err(Error::Run { path: asking, registry, source }),
        };
        let failed = |said: String| Error::Failed { helper, path: asking, registry, said };
        if !output.status.success() {
            // The protocol has no other way to say it.
            if String::from_utf8_lossy(&output.out).contains("credentials not found") {
                return Ok(None);
            }
            // Its standard output may be the login.
            return Err(failed(match output.said.trim() {
                said if said.is_empty() || said.to_ascii_lowercase().contains("secret\"") => {
                    format!("{}, and what it says is no text to be shown", output.status)
                }
                said => show(said.as_bytes()),
            }));
        }
        let Ok(spoken) = serde_json::from_slice::<Spoken>(&output.out) else {
            return Err(failed("what it prints is no login".to_owned()));
        };
        Ok(Some(match spoken.username.as_str() {
            TOKEN => Login::Identity(spoken.secret),
            _ => Login::Basic { user: spoken.username, password: spoken.secret },
        }))
    }

    fn change(&self, change: impl FnOnce(&mut Map<String, Value>) -> bool) -> Result<bool, Error> {
        let path = self.own();
        let failed = |source| Error::Write { path: path.into(), source };
        let target = files::target(path).map_err(failed)?;
        let _lock = files::lock(&target).map_err(failed)?;
        let mut whole: Map<String, Value> = match text(path)? {
            Some(text) => parse(path, &text)?,
            None => Map::new(),
        };
        let auths = whole.entry("auths").or_insert(Value::Null);
        if auths.is_null() {
            *auths = json!({});
        }
        let Some(auths) = auths.as_object_mut() else {
            return Err(Error::Entry { path: path.into(), key: "auths".into(), why: "it is no object" });
        };
        if !change(auths) {
            return Ok(false);
        }
        let text = format!("{:#}\n", Value::Object(whole));
        files::write(&target, &text).map_err(failed)?;
        Ok(true)
    }
}

/// Returns the files of logins of a user, of whom `users`, the text of `/etc/passwd`, tells the home.
fn places(
    var: impl Fn(&str) -> Option<std::ffi::OsString>,
    uid: u32,
    users: impl FnOnce() -> String,
) -> Vec<PathBuf> {
    let var = |name| var(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(only) = var(VARIABLE) {
        return vec![only];
    }
    let home = var("HOME").or_else(|| home_of(uid, &users()));
    let below = |dir: &str| home.as_ref().map(|home| home.join(dir));
    let own: PathBuf = format!("/run/containers/{uid}").into();
    let runtime = var("XDG_RUNTIME_DIR").map(|dir| if dir == own { dir } else { dir.join("containers") });
    let config = var("XDG_CONFIG_HOME").or_else(|| below(".config")).map(|dir| dir.join("containers"));
    let docker = var("DOCKER_CONFIG").or_else(|| below(".docker")).map(|dir| dir.join("config.json"));
    let podman = [runtime, Some(own), config].into_iter().flatten().map(|dir| dir.join("auth.json"));
    let mut all: Vec<_> = [FILE.into()].into_iter().chain(podman).chain(docker).collect();
    let mut seen = std::collections::HashSet::new();
    all.retain(|path| seen.insert(path.clone()));
    all
}

/// Returns the home of a user (passwd(5)).
fn home_of(uid: u32, users: &str) -> Option<PathBuf> {
    let found = users.lines().find_map(|line| {
        let fields: Vec<_> = line.split(':').collect();
        (fields.get(2)?.parse() == Ok(uid)).then(|| fields.get(5).copied()).flatten()
    });
    let root = (uid == 0).then_some("/root");
    found.filter(|home| home.starts_with('/')).or(root).map(PathBuf::from)
}

impl Entry {
    /// Returns the login; `None` if the entry says only that a helper has it.
    fn login(&self, path: &Path, key: &str) -> Result<Option<Login>, Error> {
        let refused = |why| Err(Error::Entry { path: path.into(), key: show(key.as_bytes()), why });
        if !self.registrytoken.is_empty() {
            return refused("registrytoken is not supported: log in with a password or an identity token");
        }
        if !self.identitytoken.is_empty() {
            return Ok(Some(Login::Identity(self.identitytoken.clone())));
        }
        if self.auth.is_empty() {
            let has = !self.username.is_empty() || !self.password.is_empty();
            let (user, password) = (self.username.clone(), self.password.clone());
            return Ok(has.then_some(Login::Basic { user, password }));
        }
        let text =
            BASE64_STANDARD.decode(self.auth.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        match text.as_deref().map(|text| text.trim_matches('\0')).and_then(|text| text.split_once(':')) {
            Some((user, password)) => {
                Ok(Some(Login::Basic { user: user.to_owned(), password: password.to_owned() }))
            }
            None => refused("auth is no base64 of USER:PASSWORD"),
        }
    }
}

/// Returns the place of an entry's key: `host[/path]`, without the scheme and the version that docker writes.
fn key_of(key: &str) -> Cow<'_, str> {
    let bare = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://"));
    let has_version = key.split_once('/').is_some_and(|(_, version)| matches!(version, "v1/" | "v2/"));
    let rest = bare.unwrap_or(key).trim_end_matches('/');
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    // docker's addresses: only the host counts.
    let path = if bare.is_some() || has_version { "" } else { path };
    match canonical(host) {
        host if path.is_empty() => host,
        host => format!("{host}{path}").into(),
    }
}

fn host_of(key: &str) -> String {
    let place = key_of(key);
    place.split('/').next().unwrap_or_default().to_owned()
}

/// Returns the name of a registry in files of logins: without the scheme and the version that docker writes.
///
/// # Errors
/// The text is no registry.
pub(crate) fn checked(registry: &str) -> Result<Cow<'_, str>, Error> {
    let host = key_of(registry);
    if !is_host(&host) {
        return Err(Error::Registry { text: show(without_account(registry).as_bytes()) });
    }
    Ok(host)
}

fn read(path: &Path) -> Result<Option<File>, Error> {
    text(path)?.map(|text| parse(path, &text)).transpose()
}

fn parse<T: serde::de::DeserializeOwned + Default>(path: &Path, text: &str) -> Result<T, Error> {
    if text.trim().is_empty() {
        return Ok(T::default());
    }
    // The parser's text may quote a part of a secret.
    serde_json::from_str(text).map_err(|e| Error::Parse {
        path: path.into(),
        line: e.line(),
        column: e.column(),
    })
}

/// Reads a file; `None` if it is missing.
fn text(path: &Path) -> Result<Option<String>, Error> {
    let check = |found: &Metadata| trusted(found.uid(), found.mode(), rustix::process::geteuid().as_raw());
    files::text(path, check).map_err(|source| Error::Read { path: path.into(), source })
}

/// Whether a user may read logins in a file with this owner and mode: another user could have root run a program of their
/// choice as a helper, or fetch from a registry of theirs as somebody.
fn trusted(owner: u32, mode: u32, reader: u32) -> io::Result<()> {
    let refused = |why: &str| Err(io::Error::new(io::ErrorKind::PermissionDenied, why.to_owned()));
    match reader {
        0 if owner != 0 => {
            refused(&format!("it belongs to user {owner}, and root reads none but its own: `chown root` it"))
        }
        0 if mode & 0o022 != 0 => refused("others than its owner may write it: `chmod go-w` it"),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    fn encoded(text: &str) -> String {
        BASE64_STANDARD.encode(text)
    }

    fn basic(user: &str, password: &str) -> Option<Login> {
        Some(Login::Basic { user: user.into(), password: password.into() })
    }

    fn with(files: &[&str]) -> (tempfile::TempDir, Credentials) {
        let dir = tempfile::tempdir().unwrap();
        let paths: Vec<_> = (0..files.len()).map(|at| dir.path().join(format!("{at}.json"))).collect();
        for (path, text) in paths.iter().zip(files) {
            fs::write(path, text).unwrap();
        }
        (dir, Credentials::of(paths))
    }

    #[test]
    fn the_most_special_entry_is_taken() {
        let text = json!({ "auths": {
            "r.x/a/b": { "auth": encoded("ab:1") },
            "r.x/a": { "auth": encoded("a:2:3") },
            "r.x": { "username": "r", "password": "4" },
            "https://index.docker.io/v1/": { "auth": encoded("hub:5") },
            "https://old.x/v2/": { "identitytoken": "token" },
            "empty.x": {},
        } });
        let (_dir, found) =
            with(&["", &text.to_string(), r#"{"auths":{"empty.x":{"auth":"ZTpm"},"r.x":{}}}"#]);
        let find = |registry, repository| found.find(registry, repository).unwrap();
        assert_eq!(find("r.x", "a/b"), basic("ab", "1"));
        assert_eq!(find("r.x", "a/b/c"), basic("ab", "1"));
        assert_eq!(find("r.x", "a/bc"), basic("a", "2:3"));
        assert_eq!(find("r.x", "other"), basic("r", "4"));
        assert_eq!(find("docker.io", "library/busybox"), basic("hub", "5"));
        assert_eq!(find("old.x", "a"), Some(Login::Identity("token".into())));
        assert_eq!(find("empty.x", "a"), basic("e", "f"));
        assert_eq!(find("r.x.evil", "a"), None);
        assert_eq!(find("x", "a"), None);
    }

    #[test]
    fn helpers_are_asked() {
        let (dir, _) = with(&[]);
        let script = |name: &str, text: &str| {
            let path = dir.path().join(format!("docker-credential-{name}"));
            fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        };
        let asking = |text: &str| {
            let (kept, mut found) = with(&[text]);
            let path = format!("{}:/usr/bin:/bin", dir.path().display());
            found.env = Some(vec![("PATH".into(), path)]);
            let answer = found.find("r.x", "a");
            drop(kept);
            answer
        };
        script(
            "token",
            r#"read -r s; echo "{\"ServerURL\":\"$s\",\"Username\":\"<token>\",\"Secret\":\"$1 $s\"}""#,
        );
        script("user", r#"cat >/dev/null; echo '{"Username":"u","Secret":"p"}'"#);
        script("none", "echo credentials not found in native keychain; exit 1");
        script("broken", "echo out of order >&2; exit 1");
        script("odd", "echo hello");
        script("leaky", r#"echo '{"Username":"u","Secret":"s3cr3t"}'; exit 1"#);
        script("loud", r#"echo '{"Username":"u","Secret":"s3cr3t"}' >&2; exit 1"#);
        let of_all = |name: &str| asking(&json!({ "credsStore": name }).to_string());
        assert_eq!(of_all("user").unwrap(), basic("u", "p"));
        assert_eq!(of_all("token").unwrap(), Some(Login::Identity("get r.x".into())));
        assert_eq!(of_all("none").unwrap(), None);
        assert!(of_all("broken").unwrap_err().to_string().contains("out of order"));
        assert!(matches!(of_all("odd"), Err(Error::Failed { .. })));
        for name in ["leaky", "loud"] {
            let error = of_all(name).unwrap_err().to_string();
            assert!(
                error.contains(".json") && error.contains("exit status: 1") && !error.contains("s3cr3t"),
                "{error}"
            );
        }
        // That of the registry comes before the entry, and the entry before that of all.
        let auth = encoded("e:f");
        let both = json!({ "credHelpers": { "r.x": "user" }, "auths": { "r.x": { "auth": auth } } });
        assert_eq!(asking(&both.to_string()).unwrap(), basic("u", "p"));
        let all = json!({ "credsStore": "user", "auths": { "r.x": { "auth": auth } } });
        assert_eq!(asking(&all.to_string()).unwrap(), basic("e", "f"));
        for name in ["", "../x", "a/b", "a b", "a;b"] {
            let file = json!({ "credsStore": "y", "credHelpers": { "r.x": name } }).to_string();
            let (_dir, found) = with(&[&file]);
            assert!(matches!(found.find("r.x", "a"), Err(Error::Name { .. })), "{name:?}");
        }
        let (_dir, found) = with(&[r#"{"credHelpers":{"https://r.x":"wardian-has-none"}}"#]);
        let error = found.find("r.x", "a").unwrap_err().to_string();
        for part in ["0.json", "docker-credential-wardian-has-none", "credHelpers", "image login r.x"] {
            assert!(error.contains(part), "{error}");
        }
        assert_eq!(found.find("other.x", "a").unwrap(), None);
    }

    #[test]
    fn logins_are_kept_for_the_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/auth.json");
        let found = Credentials::of(vec![path.clone()]);
        let login = Login::Basic { user: "u".into(), password: "p:w".into() };
        found.keep("https://r.x:5000/v2/", &login).unwrap();
        found.keep("r.x:5000", &login).unwrap();
        found.keep("docker.io", &Login::Identity("i".into())).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(found.find("r.x:5000", "a").unwrap(), Some(login));
        assert_eq!(found.find("docker.io", "a").unwrap(), Some(Login::Identity("i".into())));
        assert!(found.forget("index.docker.io").unwrap());
        assert!(!found.forget("docker.io").unwrap());
        assert_eq!(found.find("docker.io", "a").unwrap(), None);
        // What others have written stays.
        fs::write(&path, r#"{"credsStore":"","psFormat":"x","auths":{"a.x":{"auth":"ZTpm"}}}"#).unwrap();
        found.keep("b.x", &Login::Identity("i".into())).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains("psFormat") && text.contains("a.x"), "{text}");
        let names = fs::read_dir(path.parent().unwrap()).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<_> = names.collect();
        names.sort();
        assert_eq!(names, [".auth.json.lock", "auth.json"]);
        for bad in ["", "a/b c", "-x", "a b", "127.1", "u:s3cr3t@r.x", "u:s3cr3t@r.x/app"] {
            let error = found.keep(bad, &Login::Identity("i".into())).unwrap_err().to_string();
            assert!(!error.contains("s3cr3t"), "{error}");
        }
        fs::write(&path, r#"{"auths":null}"#).unwrap();
        found.keep("b.x", &Login::Identity("i".into())).unwrap();
        assert!(found.find("b.x", "").unwrap().is_some());
        // Nothing is made where nothing is to be forgotten.
        let none = Credentials::of(vec![dir.path().join("none/auth.json")]);
        assert!(!none.forget("r.x").unwrap() && !dir.path().join("none").exists());
    }

    #[test]
    fn of_logins_at_the_same_time_all_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("auth.json");
        std::thread::scope(|scope| {
            for at in 0..16 {
                let path = path.clone();
                scope.spawn(move || {
                    Credentials::of(vec![path])
                        .keep(&format!("r{at}.x"), &Login::Identity("i".into()))
                        .unwrap();
                });
            }
        });
        let found = Credentials::of(vec![path]);
        for at in 0..16 {
            assert!(found.find(&format!("r{at}.x"), "").unwrap().is_some(), "{at}");
        }
    }

    #[test]
    fn what_a_link_leads_to_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let (link, target) = (dir.path().join("auth.json"), dir.path().join("real/logins.json"));
        std::os::unix::fs::symlink("real/logins.json", &link).unwrap();
        let found = Credentials::of(vec![link.clone()]);
        for registry in ["a.x", "b.x"] {
            found.keep(registry, &Login::Identity("i".into())).unwrap();
            assert!(link.is_symlink() && fs::read_to_string(&target).unwrap().contains(registry));
        }
    }

    #[test]
    fn whose_files_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("auth.json");
        let found = Credentials::of(vec![path.clone()]);
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        assert!(found.find("r.x", "").unwrap_err().to_string().contains("it is no file"));
        assert!(found.keep("r.x", &Login::Identity("i".into())).is_err());
        for (owner, mode, reader, why) in [
            (0, 0o600, 0, ""),
            (0, 0o644, 0, ""),
            (0, 0o660, 0, "chmod go-w"),
            (0, 0o602, 0, "chmod go-w"),
            (1000, 0o600, 0, "belongs to user 1000"),
            (1000, 0o600, 1000, ""),
            (0, 0o666, 1000, ""),
        ] {
            let said =
                trusted(owner, mode, reader).map_or_else(|error| error.to_string(), |()| String::new());
            assert!(
                said.contains(why) && said.is_empty() == why.is_empty(),
                "{owner} {mode:o} {reader}: {said}"
            );
        }
    }

    #[test]
    fn what_is_null_is_absent() {
        let auth = encoded("e:f");
        for text in [
            json!({ "auths": { "other.x": null, "r.x": { "auth": auth, "identitytoken": null } }, "credHelpers": null }),
            json!({ "auths": { "r.x": { "auth": auth } }, "credHelpers": { "r.x": null }, "credsStore": null }),
            json!({ "auths": { "r.x/v1/": { "auth": auth } } }),
            json!({ "auths": { "R.x/v2/": { "auth": auth } } }),
        ] {
            let (_dir, found) = with(&[&text.to_string()]);
            assert_eq!(found.find("r.x", "a").unwrap(), basic("e", "f"), "{text}");
        }
        let (_dir, found) = with(&[r#"{"auths":null,"credHelpers":null,"credsStore":null}"#]);
        assert_eq!(found.find("r.x", "a").unwrap(), None);
    }

    /// The server, which has neither `HOME` nor `XDG_RUNTIME_DIR`, reads the same files as commands do.
    #[test]
    fn where_logins_are() {
        let users = "root:x:0:0:root:/root:/bin/sh\nu:x:1000:1000:,,,:/home/u:/bin/sh\nodd:x:7:7\n";
        let found = |vars: &[(&str, &str)], uid| -> Vec<String> {
            let var = |name: &str| vars.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into());
            places(var, uid, || users.to_owned()).iter().map(|path| path.display().to_string()).collect()
        };
        let root = [
            FILE,
            "/run/containers/0/auth.json",
            "/root/.config/containers/auth.json",
            "/root/.docker/config.json",
        ];
        assert_eq!(found(&[], 0), root);
        assert_eq!(found(&[("HOME", "/root"), ("XDG_RUNTIME_DIR", "/run/containers/0")], 0), root);
        let session = found(&[("HOME", "/root"), ("XDG_RUNTIME_DIR", "/run/user/0")], 0);
        assert_eq!(session[..2], [FILE, "/run/user/0/containers/auth.json"]);
        assert_eq!(session[2..], root[1..]);
        assert_eq!(found(&[], 1000)[3], "/home/u/.docker/config.json");
        assert_eq!(found(&[("HOME", "/x")], 1000)[3], "/x/.docker/config.json");
        assert_eq!(found(&[], 7), [FILE, "/run/containers/7/auth.json"]);
        assert_eq!(
            found(&[("DOCKER_CONFIG", "/d"), ("XDG_CONFIG_HOME", "/c")], 7)[2..],
            ["/c/containers/auth.json", "/d/config.json"]
        );
        assert_eq!(found(&[(VARIABLE, "/only")], 0), ["/only"]);
        assert_eq!(home_of(0, ""), Some("/root".into()));
    }

    #[test]
    fn no_secret_is_shown() {
        for text in [
            r#"{"auths":{"r.x":{"auth":"c2VjcmV0"}}}"#,
            r#"{"auths":{"r.x":{"auth":"secret!"}}}"#,
            r#"{"auths":{"r.x":{"registrytoken":"secret"}}}"#,
            r#"{"auths":{"r.x":"secret"}}"#,
            r#"{"auths":["secret"]}"#,
            "secret",
        ] {
            let (_dir, found) = with(&[text]);
            let error = found.find("r.x", "a").unwrap_err();
            let shown = format!("{error} {error:?}");
            assert!(!shown.contains("secret") && !shown.contains("c2VjcmV0"), "{shown}");
        }
        let login = Login::Basic { user: "secret".into(), password: "secret".into() };
        assert!(!format!("{login:?}{:?}", Login::Identity("secret".into())).contains("secret"));
    }
}
