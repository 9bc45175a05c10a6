//! An image in the store.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::layers::layer::Layer;

/// An image whose layers are in the store. Cheap to clone; keeps its layers open.
#[derive(Debug, Clone)]
pub struct Image {
    /// The address as it was given.
    pub uri: String,
    /// The address without secrets such as credentials.
    pub shown: String,
    /// The digest of its config, or the chain id of a bare tar or of an app on top, in hex.
    pub id: String,
    /// The image's settings for processes.
    pub config: wardian_image::Config,
    /// The manifest as it was read; none for a bare tar.
    pub manifest: Option<Vec<u8>>,
    /// The config as it was read; none for a bare tar.
    pub config_json: Option<Vec<u8>>,
    /// Why no registry has told whether there is another image of this name by now; `None` if one has, or was not to be asked.
    pub unasked: Option<String>,
    /// Bottom first.
    pub(crate) layers: Arc<[Arc<Layer>]>,
}

impl Image {
    /// Chain ids of its layers, bottom first.
    pub fn chain_ids(&self) -> Vec<String> {
        self.layers.iter().map(|layer| layer.chain.clone()).collect()
    }

    /// The root directories of its layers, bottom first, for reading.
    ///
    /// # Errors
    /// The system's, when it runs out of descriptors.
    pub fn layer_dirs(&self) -> std::io::Result<Vec<OwnedFd>> {
        self.layers.iter().map(|layer| Ok(layer.fs()?)).collect()
    }

    /// Returns the memory that manifest and config take, in bytes; their size is up to the image's author.
    pub(crate) fn documents(&self) -> usize {
        let length = |text: &Option<Vec<u8>>| text.as_ref().map_or(0, Vec::len);
        // Factor 4: the parsed settings repeat a part of the config, with the overhead of each string.
        length(&self.manifest) + 4 * length(&self.config_json)
    }

    /// Returns the bytes of its layers, as recorded when they were unpacked.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.layers.iter().map(|layer| layer.extent.bytes).sum()
    }

    pub(crate) fn touch(&self) {
        self.layers.iter().for_each(|layer| layer.touch());
    }
}
