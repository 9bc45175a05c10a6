//! `grootfs init-store`, and what prepares a store before a server starts.

use super::config::Config;
use super::error::Error;
use super::flags::Parsed;
use super::log::Log;
use super::namespace::Mappings;
use super::place::{self, Found, Opened};

/// Runs `init-store`. It makes no file system: a store of wardian may be on any that has overlay and idmapped
/// mounts, so the size is only what `capacity` answers.
pub fn run(config: &Config, flags: &Parsed, log: &Log) -> Result<(), Error> {
    if !flags.rest.is_empty() {
        return Err(Error::Usage("init-store --store <path>"));
    }
    let path = place::path(config);
    if !rustix::process::geteuid().is_root() {
        return Err(Error::InitNotRoot(path));
    }
    let mappings = Mappings::parse(&flags.list("uid-mapping"), &flags.list("gid-mapping"))?;
    let [uids, gids] = mappings.shown();
    let spec = serde_json::json!({
        "UIDMappings": uids, "GIDMappings": gids, "StoreSizeBytes": config.init.store_size_bytes,
    });
    let data = [("storePath", config.store_path.as_str().into()), ("spec", spec)];
    let log = log.session("store-manager-init-store", &data);
    log.debug("starting", &[]);
    if place::look(&path)? == Found::Ours {
        log.debug("store-already-initialized", &[]);
    }
    let opened = Opened::new(config, &path)?;
    mappings.record(&path)?;
    // The directories of root file systems that were there before the last boot.
    opened.store.tidy_published()?;
    opened.leave();
    log.debug("ending", &[]);
    Ok(())
}

/// Runs `generate-volume-size-metadata`. A layer's size is recorded with the layer, so there is nothing to do.
///
/// # Errors
/// There is no store.
pub fn sizes(config: &Config) -> Result<(), Error> {
    let path = place::path(config);
    match place::look(&path)? {
        Found::Ours => Ok(()),
        Found::Nothing => Err(Error::NoStore(path)),
    }
}
