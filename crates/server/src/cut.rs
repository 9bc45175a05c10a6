//! A handle by which a request's handler cuts its connection.

use crate::socket::Look;
use std::sync::Arc;
use tokio::sync::Notify;

/// Cuts a connection whose client does not take the body of its reply; an extension of each request.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cut {
    pub(crate) told: Arc<Notify>,
    /// The client is one with reserved places and rooms.
    pub(crate) local: bool,
    /// Asks whether the client is still connected.
    pub(crate) look: Look,
}

impl Cut {
    /// Cuts the connection: the unsent rest of the body is lost, and so is the body's end.
    pub(crate) fn cut(&self) {
        self.told.notify_one();
    }
}
