//! Images that `docker save` wrote.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use super::image::Image;
use super::layer::{Blob, Layer};
use crate::digest::Digest;
use crate::error::{Error, show};
use crate::format::archive::Archive;
use crate::format::docker::{Item, promised, select};
use crate::format::manifest::{ImageConfig, MAX_LAYERS, chain_id, parse};
use crate::format::plain::Opening;

/// Reads manifest and config of an image that `docker save` wrote: the one called `name`, or the only one.
pub(crate) fn open(path: &Path, name: Option<&str>, opening: &Opening<'_>) -> Result<Image, Error> {
    let archive = Archive::open(path, opening)?;
    let what = format!("manifest.json in {}", path.display());
    let items: Vec<Item> = parse(&archive.json("manifest.json")?, &what)?;
    let item = select(items, path, &what, name)?;
    let json = archive.json(&item.config)?;
    let what = format!("config {}", show(item.config.as_bytes()));
    let digest = Digest::of(&json);
    if let Some(expected) = promised(&item.config).filter(|promised| *promised != digest) {
        let (expected, actual) = (expected.to_string(), digest.to_string());
        return Err(Error::DigestMismatch { what, expected, actual });
    }
    let ImageConfig { config, diff_ids, .. } = ImageConfig::parse(&json, &what)?;
    let files = item.layers.unwrap_or_default();
    if files.len() > MAX_LAYERS {
        let what = format!("the number of layers of {what}");
        return Err(Error::Limit { what, limit: MAX_LAYERS as u64 });
    }
    if files.len() != diff_ids.len() {
        let why = format!("it has {} diff ids, but manifest.json {} layers", diff_ids.len(), files.len());
        return Err(Error::Corrupt { what, why });
    }
    let mut layers = Vec::with_capacity(files.len());
    let (budget, mut seen) = (Arc::default(), HashSet::new());
    let mut chain: Option<Digest> = None;
    for (file, diff_id) in files.iter().zip(diff_ids) {
        let section = archive.member(file)?;
        let id = chain_id(chain.as_ref(), &diff_id);
        let name = format!("the layer {} of {}", show(file.as_bytes()), path.display()).into();
        let blob = Blob::Member { name, section, diff_id: diff_id.clone() };
        let again = !seen.insert(diff_id);
        layers.push(Layer::new(id.as_hex().to_owned(), blob, None, again, &budget));
        chain = Some(id);
    }
    let id = digest.as_hex().to_owned();
    let names = name.map_or_else(|| item.repo_tags.unwrap_or_default(), |name| vec![name.to_owned()]);
    Ok(Image { config, layers, manifest: None, config_json: Some(json), id, names, digest: None })
}
