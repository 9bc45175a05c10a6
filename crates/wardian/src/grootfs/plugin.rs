//! What Guardian tells its image plugin, for the server that has taken the place of both.

use super::config::Config;
use super::error::{Error, chain};
use super::{flags, place, usage};
use std::path::{Path, PathBuf};

/// Settings of the image plugin that have a meaning for the server.
#[derive(Debug, PartialEq, Eq)]
pub struct Plugin {
    /// The file of settings, if it is named. Whether others may write it is not looked at here.
    pub config: Option<PathBuf>,
    /// The directory of the store, if it is named.
    pub store: Option<String>,
    /// Registries that are asked without TLS, or without a look at their certificate.
    pub insecure_registries: Vec<String>,
    /// Servers that an image may name for its layers.
    pub layer_hosts: Vec<String>,
    /// The directory of certificates for servers that layers are fetched from.
    pub certificates: Option<String>,
    /// Garbage is collected above this number of bytes.
    pub threshold: Option<u64>,
    /// The limit in bytes of every root file system that comes without one.
    pub disk_limit: Option<i64>,
}

impl Plugin {
    /// Reads the flags that Guardian puts before the plugin's command, and the file that they name.
    ///
    /// # Errors
    /// What is wrong with them, for people.
    pub fn of(args: &[&str]) -> Result<Self, String> {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let global = flags::parse(&usage::GLOBAL, &args).map_err(|wrong| wrong.to_string())?;
        if let Some(word) = global.rest.first() {
            return Err(format!("{word:?} is no flag of grootfs"));
        }
        let config = Config::new(&global).and_then(Config::check).map_err(|error| chain(&error))?;
        let create = config.create;
        let threshold = u64::try_from(config.clean.threshold_bytes).unwrap_or(0);
        Ok(Self {
            config: global.text("config").filter(|path| !path.is_empty()).map(PathBuf::from),
            store: config.has_store.then_some(config.store_path),
            insecure_registries: create
                .insecure_registries
                .unwrap_or_default()
                .into_iter()
                .filter(|host| !host.is_empty())
                .collect(),
            layer_hosts: create.layer_hosts,
            certificates: Some(create.certificates).filter(|dir| !dir.is_empty()),
            threshold: Some(threshold).filter(|bytes| create.with_clean && *bytes > 0),
            disk_limit: Some(create.disk_limit_size_bytes).filter(|bytes| *bytes > 0),
        })
    }
}

/// Whether there is a store that the original GrootFS has made.
pub fn has_store(path: &Path) -> bool {
    matches!(place::look(path), Err(Error::OfGrootfs(_)))
}
