//! What all connections share.

use crate::patience::Patience;
use crate::room::Rooms;
use crate::stream::Streams;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use wardian_engine::Engine;

/// What all connections share.
pub(crate) struct State {
    pub(crate) engine: Engine,
    pub(crate) streams: Streams,
    /// For others, and for those for whom places are kept.
    pub(crate) rooms: [Rooms; 2],
    pub(crate) head_timeout: Option<Duration>,
    pub(crate) patience: Patience,
    /// True once the server is to end.
    pub(crate) stop: watch::Receiver<bool>,
    /// Held by everything that is still at work.
    pub(crate) work: mpsc::WeakSender<()>,
}

impl State {
    /// Something begins that a shutdown waits for until it is dropped. `None`: too late.
    pub(crate) fn working(&self) -> Option<mpsc::Sender<()>> {
        self.work.upgrade()
    }

    /// Rooms for such a client.
    pub(crate) fn rooms(&self, local: bool) -> &Rooms {
        &self.rooms[usize::from(local)]
    }

    /// Ready when the server is to end.
    pub(crate) async fn stopping(&self) {
        let mut stop = self.stop.clone();
        // The sender lives in `serve`; without it the server has ended.
        let _ = stop.wait_for(|stop| *stop).await;
    }
}
