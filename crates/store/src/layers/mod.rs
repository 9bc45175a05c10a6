//! Layers in the store, and their way to the disk.

pub(crate) mod durable;
pub mod layer;
pub(crate) mod owner;
