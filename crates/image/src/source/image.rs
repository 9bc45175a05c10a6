//! An image that was opened.

use super::layer::Layer;
use crate::bounds::limits::Limits;
use crate::digest::Digest;
use crate::error::Error;
use crate::format::manifest::Config;

/// An opened image: its settings and its layers, whose data is read when they are unpacked.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Image {
    /// The image's settings for processes; empty for a tar file.
    pub config: Config,
    /// Bottom first.
    pub layers: Vec<Layer>,
    /// The manifest's bytes, exactly as read; none for a tar file and for what `docker save` wrote.
    pub manifest: Option<Vec<u8>>,
    /// The config's bytes, exactly as read; none for a tar file.
    pub config_json: Option<Vec<u8>>,
    /// The id of the image in hex: the digest of its config, or a tar file's chain id.
    pub id: String,
    /// Its names in the source, with or without a tag; if it was selected by name, only that one. Untrusted.
    pub names: Vec<String>,
    /// The digest that its name stands for at its registry: that of its manifest, or of an index that lists it. `None`
    /// for an image from elsewhere.
    pub digest: Option<Digest>,
}

impl Image {
    /// Fails if the sizes that the image declares exceed the limits, before anything of it is fetched or unpacked.
    ///
    /// # Errors
    /// [`Error::Allowance`].
    pub fn check(&self, limits: &Limits) -> Result<(), Error> {
        let mut sum = 0_u64;
        for layer in &self.layers {
            // An uncompressed layer is as large as its files and their headers; a compressed one is seldom larger.
            if layer.size() > limits.max_bytes.saturating_add(limits.headers()) {
                return Err(Error::layer_bytes("the size of a layer", limits.max_bytes));
            }
            sum = sum.saturating_add(layer.size());
        }
        if sum > limits.max_image_bytes.saturating_add(limits.headers()) {
            return Err(Error::image_bytes("the size of all layers", limits.max_image_bytes));
        }
        Ok(())
    }
}
