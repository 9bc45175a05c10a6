//! Files and directories of this host that an image is read from.

pub(crate) mod file;
pub(crate) mod names;
pub(crate) mod remove;
pub(crate) mod rootfs;
pub(crate) mod section;
pub(crate) mod stored;
