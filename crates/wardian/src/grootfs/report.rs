//! `grootfs stats`, `list` and `capacity`.

use serde_json::json;
use wardian_store::rootfs::Error as RootfsError;

use super::config::Config;
use super::error::Error;
use super::flags::Parsed;
use super::log::Log;
use super::place;
use crate::print;

/// Runs `stats`.
pub fn stats(config: &Config, flags: &Parsed, log: &Log) -> Result<(), Error> {
    let [argument] = flags.rest.as_slice() else {
        return Err(Error::Usage("stats [options] <id|image path>"));
    };
    let not_found = |error: &Error| log.error("find-id-failed", error);
    let id = place::id(config, argument).inspect_err(not_found)?;
    let unknown = || Error::NotFound(id.to_owned());
    let Some(opened) = place::existing(config)? else { return Err(unknown()).inspect_err(not_found) };
    let log = log.session("groot-stats", &[("imageID", id.into())]);
    log.debug("starting", &[]);
    let fetching = log.session("fetching-stats", &[("id", id.into())]);
    fetching.debug("starting", &[]);
    let usage = match opened.store.published_usage(id) {
        Err(error) if matches!(error.root(), wardian_store::Error::Rootfs(RootfsError::Id { .. })) => None,
        usage => usage?,
    };
    fetching.debug("ending", &[]);
    log.debug("ending", &[]);
    let usage = usage.ok_or_else(unknown)?;
    let total = usage.image_bytes + usage.own_bytes;
    let committed = usage.image_bytes + usage.bound_bytes;
    let text = format!(
        "{{\"disk_usage\":{{\"total_bytes_used\":{total},\"exclusive_bytes_used\":{},\"quota_size_bytes\":{},\
         \"committed_space_bytes\":{committed}}}}}\n",
        usage.own_bytes, usage.bound_bytes,
    );
    print::written(text.as_bytes()).map(drop).map_err(Error::Print)
}

/// Runs `list`.
pub fn list(config: &Config, log: &Log) -> Result<(), Error> {
    let Some(opened) = place::existing(config)? else { return Err(Error::NoStore(place::path(config))) };
    let log = log.session("groot-listing", &[("storePath", config.store_path.as_str().into())]);
    let records = log.around(|| opened.store.published())?;
    let images = place::path(config).join("images");
    let lines: String = records
        .iter()
        .filter_map(|record| record.published.as_deref())
        .map(|id| format!("{}\n", images.join(id).display()))
        .collect();
    print::text(if lines.is_empty() { "Store empty\n" } else { &lines }).map_err(Error::Print)
}

/// Runs `capacity`: the answer is the configured size, whatever is on the disk.
pub fn capacity(config: &Config) -> Result<(), Error> {
    let text = format!("{}\n", json!({ "capacity": config.init.store_size_bytes }));
    print::written(text.as_bytes()).map(drop).map_err(Error::Print)
}
