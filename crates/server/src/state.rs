//! The state that all connections share.

use crate::patience::Patience;
use crate::room::Rooms;
use crate::stream::Streams;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use wardian_engine::Engine;
use wardian_monitor::Page;

/// The state that all connections share.
pub(crate) struct State {
    pub(crate) engine: Engine,
    pub(crate) streams: Streams,
    /// Rooms for ordinary clients, and for those with reserved places.
    pub(crate) rooms: [Rooms; 2],
    /// What is served at `/monitor`.
    pub(crate) page: Option<Arc<Page>>,
    pub(crate) head_timeout: Option<Duration>,
    pub(crate) patience: Patience,
    /// True once the server is stopping.
    pub(crate) stop: watch::Receiver<bool>,
    /// Upgraded by all work that a shutdown waits for.
    pub(crate) work: mpsc::WeakSender<()>,
}

impl State {
    /// Begins work that a shutdown waits for until the result is dropped. `None`: the server has stopped
    /// already.
    pub(crate) fn working(&self) -> Option<mpsc::Sender<()>> {
        self.work.upgrade()
    }

    /// Returns the rooms for a client with (`local`) or without reserved places.
    pub(crate) fn rooms(&self, local: bool) -> &Rooms {
        &self.rooms[usize::from(local)]
    }

    /// Ready when the server is stopping.
    pub(crate) async fn stopping(&self) {
        let mut stop = self.stop.clone();
        // The sender lives in `serve`; without it the server has ended.
        let _ = stop.wait_for(|stop| *stop).await;
    }
}
