//! Logins at registries: the files and the helper programs of docker and podman (containers-auth.json(5), docker's
//! `config.json`, the protocol of docker-credential-helpers).

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use wardian_sys::program::Program;

use super::name::{DOCKER_HUB, is_host};
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
/// The most bytes of one file.
const MOST: u64 = 4 << 20;

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
    #[error("the credential helper for {registry}: {source}")]
    Run {
        /// The registry.
        registry: String,
        /// Why.
        source: wardian_sys::program::Error,
    },
    /// A helper has failed.
    #[error("the credential helper {helper} for {registry} has failed: {said}")]
    Failed {
        /// The program.
        helper: String,
        /// The registry.
        registry: String,
        /// What it said.
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

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
    #[serde(default)]
    cred_helpers: BTreeMap<String, String>,
    #[serde(default)]
    creds_store: String,
}

#[derive(Default, Deserialize)]
struct Entry {
    #[serde(default)]
    auth: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    identitytoken: String,
    #[serde(default)]
    registrytoken: String,
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
    /// (`$XDG_RUNTIME_DIR/containers/auth.json`, by default below `/run/containers/0`, and
    /// `$XDG_CONFIG_HOME/containers/auth.json`) and docker (`$DOCKER_CONFIG/config.json`).
    pub fn of_host() -> Self {
        let var = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        if let Some(only) = var(VARIABLE) {
            return Self::of(vec![only]);
        }
        let home = var("HOME");
        let below = |dir: &str| home.as_ref().map(|home| home.join(dir));
        let runtime = var("XDG_RUNTIME_DIR").unwrap_or_else(|| "/run/containers/0".into());
        let runtime = if runtime.ends_with("containers/0") { runtime } else { runtime.join("containers") };
        let config =
            var("XDG_CONFIG_HOME").or_else(|| below(".config")).map(|dir| dir.join("containers/auth.json"));
        let docker = var("DOCKER_CONFIG").or_else(|| below(".docker")).map(|dir| dir.join("config.json"));
        Self::of(
            [Some(FILE.into()), Some(runtime.join("auth.json")), config, docker]
                .into_iter()
                .flatten()
                .collect(),
        )
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
            let helper =
                file.cred_helpers.iter().find(|(key, _)| host_of(key) == registry).map(|(_, name)| name);
            if let Some(name) = helper {
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
                    if let Some(login) = entry.login(path, key)? {
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
        let registry = checked(registry)?;
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
        let registry = checked(registry)?;
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
        let output = program.run().map_err(|source| Error::Run { registry: registry.to_owned(), source })?;
        let out = String::from_utf8_lossy(&output.out);
        if !output.status.success() {
            // The protocol has no other way to say it.
            if out.contains("credentials not found") {
                return Ok(None);
            }
            let said = show(if out.trim().is_empty() { output.said.trim() } else { out.trim() }.as_bytes());
            return Err(Error::Failed { helper, registry: registry.to_owned(), said });
        }
        let Ok(spoken) = serde_json::from_slice::<Spoken>(&output.out) else {
            let said = "what it prints is no login".to_owned();
            return Err(Error::Failed { helper, registry: registry.to_owned(), said });
        };
        Ok(Some(match spoken.username.as_str() {
            TOKEN => Login::Identity(spoken.secret),
            _ => Login::Basic { user: spoken.username, password: spoken.secret },
        }))
    }

    fn change(&self, change: impl FnOnce(&mut Map<String, Value>) -> bool) -> Result<bool, Error> {
        let path = self.own();
        let mut whole: Map<String, Value> = match text(path)? {
            Some(text) => parse(path, &text)?,
            None => Map::new(),
        };
        let auths = whole.entry("auths").or_insert_with(|| json!({}));
        let Some(auths) = auths.as_object_mut() else {
            return Err(Error::Entry { path: path.into(), key: "auths".into(), why: "it is no object" });
        };
        if !change(auths) {
            return Ok(false);
        }
        let text = format!("{:#}\n", Value::Object(whole));
        write(path, &text).map_err(|source| Error::Write { path: path.into(), source })?;
        Ok(true)
    }
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
fn key_of(key: &str) -> &str {
    let bare = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://"));
    let place = match bare {
        // docker's addresses: only the host counts.
        Some(rest) => rest.split('/').next().unwrap_or(rest),
        None => key.trim_end_matches('/'),
    };
    match place {
        "index.docker.io" | "registry-1.docker.io" => DOCKER_HUB,
        place => place,
    }
}

fn host_of(key: &str) -> &str {
    let place = key_of(key);
    place.split('/').next().unwrap_or(place)
}

/// Returns the name of a registry in files of logins: without the scheme and the version that docker writes.
///
/// # Errors
/// The text is no registry.
pub(crate) fn checked(registry: &str) -> Result<&str, Error> {
    let host = key_of(registry);
    if !is_host(host) {
        return Err(Error::Registry { text: show(registry.as_bytes()) });
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
    let read = || -> io::Result<String> {
        let file = fs::File::open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("it is no file"));
        }
        let mut text = String::new();
        file.take(MOST + 1).read_to_string(&mut text)?;
        match text.len() as u64 > MOST {
            true => Err(io::Error::other("it is larger than 4 MiB")),
            false => Ok(text),
        }
    };
    match read() {
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        text => text.map(Some).map_err(|source| Error::Read { path: path.into(), source }),
    }
}

/// Replaces a file by one that only its owner may read; a reader sees the old or the new one.
fn write(path: &Path, text: &str) -> io::Result<()> {
    // Of a link the target is replaced, as the one who made it expects.
    let path = &fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let dir = path.parent().unwrap_or(Path::new("/"));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy();
    let new = dir.join(format!(".{name}.{}.{:x}", std::process::id(), fastrand::u64(..)));
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    let done =
        file.write_all(text.as_bytes()).and_then(|()| file.sync_data()).and_then(|()| fs::rename(&new, path));
    if done.is_err() {
        let _ = fs::remove_file(&new);
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;
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
        let of_all = |name: &str| asking(&json!({ "credsStore": name }).to_string());
        assert_eq!(of_all("user").unwrap(), basic("u", "p"));
        assert_eq!(of_all("token").unwrap(), Some(Login::Identity("get r.x".into())));
        assert_eq!(of_all("none").unwrap(), None);
        assert!(of_all("broken").unwrap_err().to_string().contains("out of order"));
        assert!(matches!(of_all("odd"), Err(Error::Failed { .. })));
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
        assert!(matches!(found.find("r.x", "a"), Err(Error::Run { .. })));
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
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        for bad in ["", "a/b c", "-x", "a b"] {
            assert!(found.keep(bad, &Login::Identity("i".into())).is_err(), "{bad}");
        }
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
