//! Pools of what is made before a container needs it: namespaces with their ids, and keepers.

pub mod ids;
pub mod keepers;
pub mod pool;
