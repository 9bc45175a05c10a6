//! Files and directories of this host that an image is read from.

pub(crate) mod names;
pub(crate) mod rootfs;
pub(crate) mod stored;
