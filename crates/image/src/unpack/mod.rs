//! Unpacks a layer's blob into a directory.

pub(crate) mod app;
pub(crate) mod directory;
pub(crate) mod entries;
pub(crate) mod layer;
pub(crate) mod pipeline;
