//! Root file systems: made ahead, mounted, measured and deleted.

pub(crate) mod blank;
pub(crate) mod btrfs;
pub mod changes;
pub(crate) mod directories;
pub(crate) mod door;
pub mod driver;
pub(crate) mod image;
pub(crate) mod measure;
pub(crate) mod mounted;
pub(crate) mod names;
pub(crate) mod pool;
pub(crate) mod project_quota;
pub mod ready;
pub(crate) mod reaper;
pub mod rootfs;
pub(crate) mod sentinel;
pub(crate) mod template;
pub(crate) mod upper;
