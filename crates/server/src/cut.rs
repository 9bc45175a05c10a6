//! The end of a connection, by whoever answers it.

use crate::socket::Look;
use std::sync::Arc;
use tokio::sync::Notify;

/// Ends a connection whose client does not take the body that it has asked for: an extension of its requests.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cut {
    pub(crate) told: Arc<Notify>,
    /// The client is one for whom places, and rooms, are kept.
    pub(crate) local: bool,
    /// Asks whether it is there.
    pub(crate) look: Look,
}

impl Cut {
    /// What was not sent yet is lost, and with it the body's end.
    pub(crate) fn cut(&self) {
        self.told.notify_one();
    }
}
