//! `manifest.json`, by which `docker save` lists the images of an archive (moby, image/tarexport).

use std::path::Path;

use serde::Deserialize;

use super::reference::{but_there_are, several_images, short};
use crate::digest::Digest;
use crate::error::Error;

/// One image of `manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Item {
    pub(crate) config: String,
    #[serde(default)]
    pub(crate) repo_tags: Option<Vec<String>>,
    pub(crate) layers: Option<Vec<String>>,
}

/// Returns the digest that a config's name contains: `<hex>.json`, `blobs/sha256/<hex>` or `sha256:<hex>`.
pub(crate) fn promised(name: &str) -> Option<Digest> {
    let last = name.rsplit('/').next().unwrap_or(name);
    let last = last.strip_suffix(".json").unwrap_or(last);
    let hex = last.strip_prefix("sha256:").unwrap_or(last);
    format!("sha256:{hex}").parse().ok()
}

/// Returns the image called `name`, or the only one. `what` names the list in errors.
///
/// # Errors
/// [`Error::Select`], [`Error::Several`].
pub(crate) fn select(
    mut items: Vec<Item>,
    path: &Path,
    what: &str,
    name: Option<&str>,
) -> Result<Item, Error> {
    let error = |why| Err(Error::Select { what: what.into(), why });
    if let Some(name) = name {
        let wanted = short(name);
        let is_it = |item: &Item| item.repo_tags.iter().flatten().any(|tag| short(tag) == wanted);
        if !items.iter().any(is_it) {
            let names = items.iter().flat_map(|item| item.repo_tags.iter().flatten());
            let there = but_there_are(names.map(String::as_str));
            return error(format!("no image is called {name:?}; {there}"));
        }
        items.retain(is_it);
    }
    match (items.len(), name) {
        (1, _) => Ok(items.remove(0)),
        (0, _) => error("there is no image".into()),
        (_, None) => {
            let names = items.iter().flat_map(|item| item.repo_tags.iter().flatten());
            let why = several_images(names.map(String::as_str), "docker-archive", path);
            let first = |item: &Item| item.repo_tags.iter().flatten().next().cloned();
            let names: Vec<String> = items.iter().filter_map(first).collect();
            let nameless = items.len() - names.len();
            Err(Error::Several { what: what.into(), why, names, nameless })
        }
        (n, Some(name)) => error(format!("{n} images are called {name:?}")),
    }
}
