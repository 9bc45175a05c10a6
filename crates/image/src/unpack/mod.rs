//! The way of a layer from the bytes of its blob into a directory.

pub(crate) mod app;
pub(crate) mod directory;
pub(crate) mod entries;
pub(crate) mod layer;
pub(crate) mod pipeline;
