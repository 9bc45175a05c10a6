//! What the store does on request and beside all requests.

pub(crate) mod app;
pub(crate) mod attach;
pub(crate) mod close;
pub(crate) mod collect;
pub mod erase;
pub(crate) mod fetch;
pub(crate) mod open;
pub(crate) mod recover;
pub(crate) mod steward;
pub(crate) mod usage;
