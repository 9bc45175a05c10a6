//! Images at registries.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::image::Image;
use super::layer::Blob;
use super::oci::layers;
use crate::error::{Error, RegistryError};
use crate::format::manifest::{Descriptor, ImageConfig};
use crate::format::plain::Opening;
use crate::registry::{Documents, Puller, RemoteBlob};

impl Puller {
    /// As [`Source::open_in`](crate::Source::open_in), with the token of the requests before.
    ///
    /// # Errors
    /// [`Error::Registry`], [`Error::Cancelled`], and whatever is wrong with the image.
    pub fn open(&self, opening: &Opening<'_>) -> Result<Image, Error> {
        open(self, opening)
    }
}

/// Fetches manifest and config of an image; its layers are fetched when they are unpacked.
fn open(puller: &Puller, opening: &Opening<'_>) -> Result<Image, Error> {
    let Documents { digest, manifest, manifest_json, config_json, from } =
        puller.documents(opening.cancelled)?;
    if let Some(layer) = manifest.layers.iter().find(|layer| is_foreign(layer)) {
        let layer = format!("layer {} of {}", layer.digest, puller.name());
        return Err(RegistryError::Foreign { layer }.into());
    }
    let what = format!("config {}", manifest.config.digest);
    let config = ImageConfig::parse(&config_json, &what)?;
    let partial = match opening.partial {
        None => None,
        Some(dir) => {
            let dir: OwnedFd = dir.try_clone_to_owned().map_err(|source| Error::Io {
                op: "use",
                path: "the directory of what is kept of blobs".into(),
                source,
            })?;
            Some(Arc::new(dir))
        }
    };
    let what = format!("manifest of {}", puller.name());
    let layers = layers(&manifest, &config, &what, |layer, diff_id| Blob::Registry {
        blob: RemoteBlob {
            puller: puller.clone(),
            first: from,
            digest: layer.digest.clone(),
            size: layer.size,
            partial: partial.clone(),
        },
        diff_id: diff_id.clone(),
    })?;
    Ok(Image {
        config: config.config,
        layers,
        id: manifest.config.digest.as_hex().to_owned(),
        manifest: Some(manifest_json),
        config_json: Some(config_json),
        names: vec![puller.name().to_string()],
        digest: Some(digest),
    })
}

/// Whether its publisher keeps a layer out of registries (OCI image spec, "Non-Distributable Layers").
pub(crate) fn is_foreign(layer: &Descriptor) -> bool {
    layer.media_type.contains(".nondistributable.") || layer.media_type.contains(".foreign.")
}
