//! Whiteouts and opaque directories: their names in an archive, and their form in overlayfs.

use std::os::fd::BorrowedFd;

use rustix::fs::{FileType, Stat, XattrFlags, fsetxattr};

use crate::error::{Error, at};

/// The prefix of whiteouts in an archive (OCI image spec, "Whiteouts").
pub(crate) const WHITEOUT: &[u8] = b".wh.";
/// The prefix of aufs' internal files, and of the opaque marker.
pub(crate) const WHITEOUT_META: &[u8] = b".wh..wh.";
/// The opaque marker: a directory that contains it hides its content in lower layers.
pub(crate) const OPAQUE: &[u8] = b".wh..wh..opq";

/// True for a whiteout of overlayfs: a character device with the number 0/0.
pub(crate) fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// Marks the directory as opaque: its content in lower layers is hidden.
pub(crate) fn set_opaque(dir: BorrowedFd<'_>, path: &[u8]) -> Result<(), Error> {
    fsetxattr(dir, "trusted.overlay.opaque", b"y", XattrFlags::empty()).map_err(at("mark as opaque", path))
}
