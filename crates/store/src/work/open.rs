//! Limits how many layers are kept open. An open layer holds descriptors (its directory, and a mount for each id
//! mapping), and an image may have 500 layers.

use std::collections::HashSet;
use std::sync::Arc;

use rustix::process::{Resource, getrlimit};

use crate::error::{Error, Result};
use crate::layers::layer::State;
use crate::store::Inner;

/// One layer may be open for this many descriptors that the process may have: a layer being written back holds four.
const PART: u64 = 8;
const MOST: u64 = 4096;

/// Returns how many layers this process keeps open.
pub(crate) fn most() -> usize {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from((limit / PART).min(MOST)).unwrap_or(usize::MAX)
}

impl Inner {
    /// Refuses an image that would take too many descriptors.
    pub(crate) fn check_layers(&self, uri: &str, layers: usize) -> Result<()> {
        if layers > self.most_open {
            let uri = wardian_image::shown(uri);
            return Err(Error::Layers { uri, layers, most: self.most_open });
        }
        Ok(())
    }

    /// Closes the least recently used layers if too many are open; they are opened again when needed. Layers in use,
    /// and those not durable yet, stay open.
    pub(crate) fn close_layers(&self) {
        let mut layers = self.layers.lock();
        if layers.len() <= self.most_open {
            return;
        }
        let mut old: Vec<_> =
            layers.values().filter(|layer| layer.state() == State::Durable).cloned().collect();
        old.sort_by_key(|layer| layer.used());
        old.truncate(layers.len() - self.most_open / 4 * 3);
        old.iter().for_each(|layer| drop(layers.remove(&layer.chain)));
        drop(layers);
        let gone: HashSet<_> = old.iter().map(Arc::as_ptr).collect();
        self.images
            .lock()
            .retain(|_, (_, image)| !image.layers.iter().any(|layer| gone.contains(&Arc::as_ptr(layer))));
        for layer in old {
            layer.save_used(&self.layout);
            if Arc::strong_count(&layer) > 1 {
                self.layers.lock().entry(layer.chain.clone()).or_insert(layer);
            }
        }
    }
}
