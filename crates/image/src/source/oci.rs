//! Images in OCI layouts.

use std::collections::HashSet;
use std::sync::Arc;

use super::image::Image;
use super::layer::{Blob, Layer};
use crate::digest::Digest;
use crate::disk::file::state_of;
use crate::error::Error;
use crate::format::manifest::{Descriptor, ImageConfig, Manifest, chain_id};
use crate::format::oci::Layout;
use crate::overlay::base::{self, Base};
use crate::remote::{Location, Remote};

/// Reads manifest and config of an image in a layout.
pub(crate) fn open(layout: Layout, tag: Option<&str>, remote: &Remote) -> Result<Image, Error> {
    let (chosen, names) = layout.select(tag)?;
    let what = format!("manifest {}", chosen.digest);
    let manifest_json = layout.document(&chosen, &what)?;
    let manifest = Manifest::parse(&manifest_json, &what)?;
    manifest.check_image(&format!("{what} of {}", layout.path().display()))?;
    let id = manifest.config.digest.as_hex().to_owned();
    let config_what = format!("config {}", manifest.config.digest);
    let config_json = layout.document(&manifest.config, &config_what)?;
    let config = ImageConfig::parse(&config_json, &config_what)?;
    let layout = Arc::new(layout.of_layers(&manifest));
    let layers = layers(&manifest, &config, &what, |layer, diff_id| Blob::Oci {
        layout: Arc::clone(&layout),
        digest: layer.digest.clone(),
        size: Some(layer.size),
        diff_id: Some(diff_id.clone()),
        locations: locations(layer).map(Into::into),
        remote: remote.clone(),
    })?;
    Ok(Image {
        config: config.config,
        layers,
        manifest: Some(manifest_json),
        config_json: Some(config_json),
        id,
        names,
        digest: None,
    })
}

/// As [`open`], but takes the layers as they are: Guardian makes layouts in which neither sizes nor digests are
/// those of the blobs, and base layers are links to tar files elsewhere.
///
/// A layer that is a file has the id of that file, as that of a tar file alone: so a tar file is one layer in the
/// store, whichever way it is named, and the layer of one file is never taken for that of another. A layer that must
/// be fetched is known by its digest alone, and that is verified.
pub(crate) fn open_unverified(layout: Layout, tag: Option<&str>, remote: &Remote) -> Result<Image, Error> {
    let (chosen, names) = layout.select(tag)?;
    let what = format!("manifest {}", chosen.digest);
    let manifest_json = layout.any_document(&chosen, &what)?;
    let manifest = Manifest::parse(&manifest_json, &what)?;
    manifest.check_image(&format!("{what} of {}", layout.path().display()))?;
    let config_what = format!("config {}", manifest.config.digest);
    let config_json = layout.document_of_any_size(&manifest.config, &config_what)?;
    let config = ImageConfig::parse(&config_json, &config_what)?.config;
    let layout = Arc::new(layout.of_layers(&manifest));
    let budget = Arc::default();
    let (mut layers, mut seen) = (Vec::<Layer>::new(), HashSet::new());
    for layer in &manifest.layers {
        let base = layer.annotation(base::ANNOTATION).map_or(Ok(None), Base::parse)?;
        let (own, blob) = match locations(layer) {
            Some(locations) if !layout.has(&layer.digest) => {
                let blob = Blob::Oci {
                    layout: Arc::clone(&layout),
                    digest: layer.digest.clone(),
                    size: None,
                    diff_id: None,
                    locations: Some(locations.into()),
                    remote: remote.clone(),
                };
                (format!("fetched {}", layer.digest), blob)
            }
            _ => {
                let (path, identity) = state_of(&layout.blob_path(&layer.digest)?)?;
                (identity.of_path(&path).as_hex().to_owned(), Blob::File { path, identity })
            }
        };
        let chain = match (layers.last(), &base) {
            (None, None) if !own.contains(' ') => own.clone(),
            (below, base) => {
                let below = below.map_or("", |layer| &layer.chain_id);
                let base = base.as_ref().map(|base| format!(" base-directory:{base}")).unwrap_or_default();
                Digest::of(format!("unverified {below} {own}{base}").as_bytes()).as_hex().to_owned()
            }
        };
        let again = !seen.insert(own);
        layers.push(Layer::new(chain, blob, base, again, &budget));
    }
    Ok(Image {
        config,
        id: Digest::of(&manifest_json).as_hex().to_owned(),
        layers,
        manifest: Some(manifest_json),
        config_json: Some(config_json),
        names,
        digest: None,
    })
}

/// Returns the layers with their ids; `blob` maps a descriptor and its diff id to the place of the bytes.
pub(super) fn layers(
    manifest: &Manifest,
    config: &ImageConfig,
    what: &str,
    blob: impl Fn(&Descriptor, &Digest) -> Blob,
) -> Result<Vec<Layer>, Error> {
    let mut layers = Vec::with_capacity(manifest.layers.len());
    let (budget, mut seen, mut contents) = (Arc::default(), HashSet::new(), HashSet::new());
    for ((layer, diff_id), (id, base)) in
        manifest.layers.iter().zip(&config.diff_ids).zip(ids(manifest, config, what)?)
    {
        // For a layer that is not unpacked now only the diff id is reliable, because its chain id is derived from it.
        let again = !seen.insert(&layer.digest) | !contents.insert(diff_id);
        layers.push(Layer::new(id.as_hex().to_owned(), blob(layer, diff_id), base, again, &budget));
    }
    Ok(layers)
}

/// Returns the chain id of each layer, bottom first, and its base directory.
///
/// # Errors
/// The manifest and the config are not of one image; [`Error::Unsupported`].
pub(crate) fn ids(
    manifest: &Manifest,
    config: &ImageConfig,
    what: &str,
) -> Result<Vec<(Digest, Option<Base>)>, Error> {
    let (count, diff_ids) = (manifest.layers.len(), config.diff_ids.len());
    if count != diff_ids {
        let why = format!("{count} layers, but the config has {diff_ids} diff ids");
        return Err(Error::Corrupt { what: what.into(), why });
    }
    let (mut ids, mut chain) = (Vec::with_capacity(count), None::<Digest>);
    for (layer, diff_id) in manifest.layers.iter().zip(&config.diff_ids) {
        if layer.media_type.ends_with("+encrypted") {
            return Err(Error::Unsupported { what: format!("layer media type {:?}", layer.media_type) });
        }
        let base = layer.annotation(base::ANNOTATION).map_or(Ok(None), Base::parse)?;
        let mut id = chain_id(chain.as_ref(), diff_id);
        if let Some(base) = &base {
            id = Digest::of(format!("{id} base-directory:{base}").as_bytes());
        }
        ids.push((id.clone(), base));
        chain = Some(id);
    }
    Ok(ids)
}

/// Returns the http and https URLs of a descriptor, in order of preference; `None` if it has no URLs at all. Other
/// URLs are ignored.
fn locations(of: &Descriptor) -> Option<Vec<Location>> {
    let urls = of.urls.as_ref().filter(|urls| !urls.is_empty())?;
    let parsed = urls.iter().filter_map(|url| Location::parse(url).ok());
    Some(parsed.filter(|place| place.file().is_none()).collect())
}
