//! `grootfs delete` and `delete-store`.

use std::time::Duration;

use serde_json::Value;
use wardian_store::rootfs::Error as RootfsError;
use wardian_store::{Config as StoreConfig, erase};

use super::config::Config;
use super::error::{Error, chain, go_text};
use super::flags::Parsed;
use super::log::Log;
use super::metrics::Metrics;
use super::namespace::Mappings;
use super::place::{self, Found, Opened};
use crate::print;

/// How long the deletion of what was thrown away may take.
const PATIENCE: Duration = Duration::from_secs(600);

/// Whether the store's error is that the id cannot be one: then nothing has it.
fn is_no_id(error: &wardian_store::Error) -> bool {
    matches!(error.root(), wardian_store::Error::Rootfs(RootfsError::Id { .. }))
}

/// Runs `delete`. An unknown id is no error: callers delete each id in both of their stores.
pub fn run(config: &Config, flags: &Parsed, log: &Log) -> Result<(), Error> {
    let [argument] = flags.rest.as_slice() else { return Err(Error::NoId) };
    let skip = |error: &Error| {
        let data: [(&str, Value); 3] = [
            ("id", argument.as_str().into()),
            ("storePath", config.store_path.as_str().into()),
            ("errorMessage", error.to_string().into()),
        ];
        log.debug("id-not-found-skipping", &data);
        print::text(&format!("{error} Skipping delete.\n")).map_err(Error::Print)
    };
    let id = match place::id(config, argument) {
        Ok(id) => id,
        Err(error) => return skip(&error),
    };
    let unknown = || Error::NotFound(id.to_owned());
    let Some(opened) = place::existing(config)? else { return skip(&unknown()) };
    let path = place::path(config).join("images").join(id);
    let there = match opened.store.find_published(id) {
        Err(error) if is_no_id(&error) => false,
        Ok(None) => path.is_dir(),
        found => found?.is_some(),
    };
    if !there {
        return skip(&unknown());
    }
    Mappings::read(&place::path(config))
        .inspect_err(|error| log.error("failed-to-initialise-image-driver", error))?;
    let metrics = Metrics::new(config, log);
    let deleting = log.session("groot-deleting", &[("imageID", id.into())]);
    let deleted = deleting.around(|| {
        let data = [("id", id.into()), ("storePath", config.store_path.as_str().into())];
        deleting.session("deleting-image", &data).around(|| opened.store.withdraw_rootfs(id))
    });
    metrics.whole("ImageDeletionTime");
    metrics.layers(&opened.store);
    match deleted {
        Ok(true) => opened.leave_trash(),
        _ => opened.leave(),
    }
    match deleted {
        Ok(true) => print::text(&format!("Image {id} deleted\n")).map_err(Error::Print),
        // Another process was faster.
        Ok(false) => skip(&unknown()),
        Err(error) => Err(Error::Delete { path, why: chain(&error) }),
    }
}

/// Runs `delete-store`.
pub fn store(config: &Config) -> Result<(), Error> {
    let path = place::path(config);
    if !path.exists() {
        return Ok(());
    }
    let found = match place::look(&path) {
        Err(Error::Store(_)) if !path.join("images").is_dir() => return Err(Error::NoImages(path)),
        found => found?,
    };
    let failed = |why: String| Error::DeleteStore(why);
    if found == Found::Ours {
        let opened = Opened::new(config, &path)?;
        if opened.store.has_server() {
            return Err(failed("a server uses it: end that first".into()));
        }
        let all = opened.store.rootfs()?;
        if let Some(other) = all.iter().find(|record| record.published.is_none()) {
            return Err(failed(format!(
                "the root file system {} is in it, which `wardian rootfs` or a server has made",
                other.id
            )));
        }
        if let Some(volume) = opened.store.volumes()?.first() {
            let name = &volume.name;
            return Err(failed(format!(
                "the volume {name} is in it: remove volumes by `wardian volume rm` first"
            )));
        }
        for record in opened.store.published()? {
            let id = record.published.unwrap_or_default();
            let path = path.join("images").join(&id);
            let deleted = opened.store.withdraw_rootfs(&id);
            deleted.map_err(|error| Error::Delete { path, why: chain(&error) })?;
        }
        opened.store.tidy_published()?;
        let run = opened.run().to_owned();
        opened.store.close();
        drop(opened);
        let emptied = erase::empty(&StoreConfig::new(&path, &run), PATIENCE)?;
        if emptied.is_none() {
            return Err(failed("the disk is slow".into()));
        }
        let all = erase::Parts { images: true, volumes: true };
        erase::parts(&path, all).map_err(|error| failed(chain(&error)))?;
        wardian_store::run::leave(&run);
        // It stays if there is anything else in it.
        for dir in [run.join("rootfs"), run.join("l"), run] {
            let _ = std::fs::remove_dir(dir);
        }
    } else {
        std::fs::remove_dir(&path).map_err(|error| failed(go_text(&error)))?;
    }
    Ok(())
}
