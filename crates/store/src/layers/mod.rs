//! Layers in the store, their owners and their durability.

pub(crate) mod durable;
pub mod layer;
pub(crate) mod owner;
pub(crate) mod partial;
