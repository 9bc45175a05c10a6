//! Images and apps by their addresses, and the layers that they consist of.

pub(crate) mod address;
pub(crate) mod app;
pub(crate) mod layer;
