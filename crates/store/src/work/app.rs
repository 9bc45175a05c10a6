//! Images with an app on top: the layers of a base image, and the app's layer, which is fetched separately.

use std::sync::Arc;

use wardian_image::{App, Digest, Watch, export};

use super::fetch::TRIES;
use crate::error::{Error, Result, image_error};
use crate::images::opened::Image;
use crate::images::progress::{Phase, Progress};
use crate::images::reference::Reference;
use crate::layers::layer::{self, Layer};
use crate::mounts::rootfs;
use crate::store::Inner;

impl Inner {
    /// Returns the image with its app on top. Only the layers are cached, since checking that they are
    /// present is cheap.
    pub(crate) fn image_with_app(
        &self,
        reference: &Reference,
        app: &App,
        progress: &Progress,
    ) -> Result<Image> {
        for _ in 0..TRIES {
            let below = self.image_below(reference, progress)?;
            if let Some(image) = self.with_app(reference.text(), &below, app, progress)? {
                return Ok(image);
            }
        }
        Err(Error::Collected { uri: app.to_string() })
    }

    /// Returns the image `below` with the app on top of it; `None` if a layer was collected meanwhile.
    pub(crate) fn with_app(
        &self,
        uri: &str,
        below: &Image,
        app: &App,
        progress: &Progress,
    ) -> Result<Option<Image>> {
        let source = self.app_layer(below, app, progress.watch())?;
        let sum = |part: fn(&Layer) -> u64| below.layers.iter().map(|layer| part(layer)).sum();
        source.count_below(sum(|layer| layer.extent.entries), sum(|layer| layer.extent.bytes));
        let watch = progress.add(&source);
        let layer = match self.present(&source.chain_id)? {
            Some(layer) => {
                watch.set(Phase::Present);
                layer
            }
            None => {
                let topmost_first: Vec<_> = below.layers.iter().rev().cloned().collect();
                match self.layer(&source, Some(uri), &topmost_first, &watch, progress) {
                    Err(error) if error.is_baseless() => return Ok(None),
                    layer => layer?,
                }
            }
        };
        Ok(self.with_layer(uri, below, &app.to_string(), layer))
    }

    /// As [`Inner::with_app`], but only if the app's layer is in the store and that can be told without asking a
    /// registry.
    pub(crate) fn app_at_hand(&self, uri: &str, below: &Image, app: &App) -> Result<Option<Image>> {
        if app.asks_server() {
            return Ok(None);
        }
        let source = self.app_layer(below, app, &Watch::default())?;
        let layer = self.present(&source.chain_id)?;
        Ok(layer.and_then(|layer| self.with_layer(uri, below, &app.to_string(), layer)))
    }

    pub(crate) fn app_layer(&self, below: &Image, app: &App, watch: &Watch) -> Result<wardian_image::Layer> {
        let Some(top) = below.layers.last() else {
            return Err(rootfs::Error::Empty { id: app.to_string() }.into());
        };
        if below.layers.len() >= wardian_image::MAX_LAYERS {
            let limit = wardian_image::MAX_LAYERS as u64;
            let error =
                wardian_image::Error::Limit { what: "the number of layers with the app's".into(), limit };
            return Err(image_error(&app.to_string(), error));
        }
        app.layer(&top.chain, &self.remote, watch).map_err(|error| image_error(&app.to_string(), error))
    }

    /// Returns the image with one more layer; `None` if one of the layers was collected meanwhile.
    fn with_layer(&self, uri: &str, below: &Image, shown: &str, layer: Arc<Layer>) -> Option<Image> {
        let image = Image {
            unasked: None,
            uri: uri.to_owned(),
            shown: shown.to_owned(),
            id: layer.chain.clone(),
            layers: below.layers.iter().cloned().chain([layer]).collect(),
            manifest: None,
            ..below.clone()
        };
        if !self.is_whole(&image) {
            return None;
        }
        image.touch();
        Some(image)
    }

    /// Returns the id and config with which an image is saved under a name. For an image with an app these are of an
    /// ordinary image, whose config has the diff ids of all layers.
    pub(crate) fn ordinary(&self, app: Option<&App>, image: &Image) -> Result<(String, Option<Vec<u8>>)> {
        let Some(app) = app else { return Ok((image.id.clone(), image.config_json.clone())) };
        let failed = |error| image_error(&image.shown, error);
        let mut diff_ids = Vec::new();
        for chain in image.chain_ids() {
            let found = layer::load(&self.layout, &chain)?;
            let found = found.ok_or_else(|| Error::Collected { uri: image.shown.clone() })?;
            diff_ids.push(found.record.diff_id.parse().map_err(failed)?);
        }
        let config = image.config_json.as_deref();
        let config =
            export::config_with_layer(config, &diff_ids, &format!("wardian {app}")).map_err(failed)?;
        Ok((Digest::of(&config).as_hex().to_owned(), Some(config)))
    }
}
