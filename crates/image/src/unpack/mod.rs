//! The way of a layer from the bytes of its blob into a directory.

pub(crate) mod entries;
pub(crate) mod pipeline;
