//! Pools of what is made before a container needs it: namespaces with their ids, and keepers.

pub mod ids;
pub mod keepers;
pub mod pool;

/// Pairs and keepers ready at any time: enough for a burst of a scale-up on a small host.
pub const READY: usize = 12;
