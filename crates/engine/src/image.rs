//! Images of containers and peas: in the store before anything else of them is made.

use crate::create::chain;
use crate::{Engine, Error, Result};
use wardian_store::Image;

/// Requests that fetch an image or wait for one that is fetched: each takes a thread, of which there are 512 for
/// everything that blocks, and of each image at most four layers are unpacked side by side.
pub const AT_ONCE: usize = 64;

impl Engine {
    /// The image with all its layers. What is not in the store may take as long as a server on the net takes to send it:
    /// meanwhile no keeper is taken and no turn of a create, so that those whose image is at hand do not wait.
    /// `step` is what clients are told of as failed.
    pub(crate) async fn image(&self, step: &'static str, uri: &str) -> Result<Image> {
        let address = self.shared.address(uri)?;
        let (store, theirs) = (self.shared.store.clone(), address.clone());
        let at_hand = tokio::task::spawn_blocking(move || store.at_hand(&theirs)).await;
        let failed = |error: wardian_store::Error| Error::failed(step, chain(&error));
        if let Some(image) = at_hand.map_err(|e| Error::failed(step, e))?.map_err(failed)? {
            return Ok(image);
        }
        let _turn = self.shared.fetching.enter().await?;
        let store = self.shared.store.clone();
        let fetched = tokio::task::spawn_blocking(move || store.image(&address));
        fetched.await.map_err(|e| Error::failed(step, e))?.map_err(failed)
    }
}
