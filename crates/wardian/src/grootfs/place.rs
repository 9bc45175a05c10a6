//! The store of a command: which directory it is, and with which run directory.

use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use wardian_image::registry::{Credentials, Known, conf};
use wardian_store::{Config as StoreConfig, Host, Store, whose};

use super::config::Config;
use super::error::{Error, chain};
use super::namespace::Mappings;
use crate::store::Place;

/// What is in a store's directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// Nothing: it is missing or empty.
    Nothing,
    /// A store of wardian.
    Ours,
}

/// Returns the absolute path of the store.
pub fn path(config: &Config) -> PathBuf {
    let given = Path::new(&config.store_path);
    // Without a working directory the path stays relative, and is refused when it is opened.
    std::path::absolute(given).unwrap_or_else(|_| given.to_owned())
}

/// Looks at the store's directory, and touches nothing.
///
/// # Errors
/// It is a store of GrootFS, or something else that is not ours, or it cannot be read.
pub fn look(path: &Path) -> Result<Found, Error> {
    match whose::store(path) {
        Ok(true) => Ok(Found::Ours),
        Ok(false) => Ok(Found::Nothing),
        Err(whose::Error::NotAStore { .. }) if is_grootfs(path) => Err(Error::OfGrootfs(path.to_owned())),
        Err(error) => Err(wardian_store::Error::Layout(wardian_store::layout::Error::Foreign(error)).into()),
    }
}

/// Whether the directory has what a store of GrootFS has, and no store of ours.
fn is_grootfs(path: &Path) -> bool {
    ["volumes", "images", "meta"].iter().all(|name| path.join(name).is_dir())
}

/// Returns the run directory of the store: the one that it was used with last, if that still exists, so that a server
/// and its commands see the same records; otherwise one of its own, named by the store's path.
fn run_dir(path: &Path) -> PathBuf {
    if let Some(noted) = wardian_store::run_of(path)
        && noted.is_dir()
    {
        return noted;
    }
    use std::os::unix::ffi::OsStrExt as _;
    // Several paths may lead to one store.
    let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let digest = Sha256::digest(path.as_os_str().as_bytes());
    let tag: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    PathBuf::from(format!("/run/wardian-{tag}"))
}

/// Returns what is known of registries: the host's settings, and no logins but those of the command line. Empty names,
/// as GrootFS takes them, are none.
fn registries(insecure: &[String]) -> Result<Known, Error> {
    let insecure: Vec<_> = insecure.iter().filter(|host| !host.is_empty()).cloned().collect();
    let known = Known::of(Some(conf::path()), Credentials::default());
    known.with_insecure(&insecure).map_err(|error| Error::InsecureRegistry(chain(&error)))
}

/// A store that is open for one command.
pub struct Opened {
    pub store: Store,
    place: Place,
    run: PathBuf,
}

impl Opened {
    /// Opens the store, or makes it.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn new(config: &Config, path: &Path) -> Result<Self, Error> {
        Self::open(config, path, false)
    }

    /// As [`Opened::new`], for a command that may make a root file system: its run directory is on a tmpfs then.
    ///
    /// # Errors
    /// As [`Store::open`], or the run directory cannot be made.
    pub fn for_rootfs(config: &Config, path: &Path) -> Result<Self, Error> {
        Self::open(config, path, true)
    }

    fn open(config: &Config, path: &Path, prepare: bool) -> Result<Self, Error> {
        let run = run_dir(path);
        if prepare {
            wardian_store::run::prepare(&run).map_err(|source| Error::Run { path: run.clone(), source })?;
        }
        let mut to = StoreConfig::new(path, &run);
        let create = &config.create;
        if let Some(limit) = config.inclusive_limit() {
            to.limits.max_image_bytes = to.limits.max_image_bytes.min(limit);
        }
        to.unverified = create.skip_layer_validation;
        if !create.certificates.is_empty() && Path::new(&create.certificates).is_dir() {
            to.remote.certificates = Some(PathBuf::from(&create.certificates));
        }
        let hosts: Result<Vec<Host>, _> = create.layer_hosts.iter().map(|host| host.parse()).collect();
        to.remote.layer_hosts =
            hosts.map_err(|error| Error::ConfigFile(format!("create.layer_hosts: {error}")))?;
        // Only a create asks registries, and no other command is to fail because of them.
        if prepare {
            to.registries = registries(create.insecure_registries.as_deref().unwrap_or_default())?;
        }
        Ok(Self { store: Store::open(&to)?, place: Place::at(path.to_owned(), run.clone()), run })
    }

    /// Its run directory.
    pub fn run(&self) -> &Path {
        &self.run
    }

    /// Ends a command that may have thrown something away: that is deleted in the background.
    pub fn leave(&self) {
        self.place.leave(&self.store);
    }

    /// As [`Opened::leave`], for a command that has.
    pub fn leave_trash(&self) {
        self.place.leave_trash(&self.store);
    }
}

/// Opens the store for a command that uses what is in it; `None` if there is none.
///
/// # Errors
/// As [`Store::open`]; it is not ours.
pub fn existing(config: &Config) -> Result<Option<Opened>, Error> {
    let path = path(config);
    Ok(match look(&path)? {
        Found::Nothing => None,
        Found::Ours => Some(Opened::new(config, &path)?),
    })
}

/// Opens the store for a `create`.
///
/// # Errors
/// As [`Store::open`]; there is none, or it was not initialized.
pub fn initialized(config: &Config) -> Result<(Opened, Mappings), Error> {
    let path = path(config);
    if look(&path)? == Found::Nothing || !Mappings::are_recorded(&path) {
        return Err(Error::NotInitialized);
    }
    let mappings = Mappings::read(&path)?;
    Ok((Opened::for_rootfs(config, &path)?, mappings))
}

/// Returns the id that an argument of `delete` and `stats` means: an id, or the path of its directory in the store.
///
/// # Errors
/// The path leads elsewhere.
pub fn id<'a>(config: &Config, argument: &'a str) -> Result<&'a str, Error> {
    if !argument.starts_with('/') {
        return Ok(argument);
    }
    let images = path(config).join("images");
    let below = images.to_str().and_then(|images| argument.strip_prefix(images));
    let id = below.and_then(|id| id.strip_prefix('/'));
    id.ok_or_else(|| Error::Outside(argument.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::super::{flags, usage};
    use super::*;

    fn config(store: &Path) -> Config {
        let args = ["--store".to_owned(), store.to_str().unwrap().to_owned()];
        Config::new(&flags::parse(&usage::GLOBAL, &args).unwrap()).unwrap()
    }

    #[test]
    fn a_store_of_grootfs_is_not_ours() {
        let base = tempfile::tempdir().unwrap();
        let store = base.path().join("store");
        assert_eq!(look(&store).unwrap(), Found::Nothing);
        for dir in ["volumes", "images", "meta/dependencies", "l", "locks", "tmp"] {
            std::fs::create_dir_all(store.join(dir)).unwrap();
        }
        assert!(matches!(look(&store), Err(Error::OfGrootfs(_))));
        assert!(matches!(existing(&config(&store)), Err(Error::OfGrootfs(_))));
        std::fs::remove_dir(store.join("volumes")).unwrap();
        assert!(matches!(look(&store), Err(Error::Store(_))));
    }

    #[test]
    fn ids_and_paths() {
        let config = config(Path::new("/s/t"));
        for (argument, id_of) in [("x", "x"), ("../x", "../x"), ("/s/t/images/x", "x"), ("", "")] {
            assert_eq!(id(&config, argument).unwrap(), id_of);
        }
        for outside in ["/s/t/images", "/s/t/imagesx", "/elsewhere/x", "/s/t", "/"] {
            assert!(matches!(id(&config, outside), Err(Error::Outside(_))), "{outside}");
        }
    }
}
