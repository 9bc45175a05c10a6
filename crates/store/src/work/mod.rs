//! The store's calls, and its background work.

pub(crate) mod app;
pub(crate) mod attach;
pub(crate) mod calls;
pub(crate) mod close;
pub(crate) mod collect;
pub(crate) mod create;
pub mod erase;
pub(crate) mod fetch;
pub(crate) mod open;
pub(crate) mod opening;
pub(crate) mod publish;
pub(crate) mod pull;
pub(crate) mod recover;
pub(crate) mod steward;
pub(crate) mod usage;
pub mod volume;
