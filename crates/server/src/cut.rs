//! A handle by which a request's handler cuts its connection.

use crate::socket::Look;
use std::sync::Arc;
use tokio::sync::Notify;

/// Cuts a connection whose client does not take the body of its reply, or does not send that of its request;
/// an extension of each request.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cut {
    pub(crate) told: Arc<Notify>,
    /// The client is one with reserved places and rooms.
    pub(crate) local: bool,
    /// Asks whether the client is still connected.
    pub(crate) look: Look,
}

impl Cut {
    /// Cuts the connection: the rest of the bodies is lost.
    pub(crate) fn cut(&self) {
        self.told.notify_one();
    }
}
