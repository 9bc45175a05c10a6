//! Whiteouts and opaque directories: their names in an archive, and what overlayfs takes for them.

use std::os::fd::BorrowedFd;

use rustix::fs::{FileType, Stat, XattrFlags, fsetxattr};

use crate::error::{Error, at};

/// What the names of whiteouts begin with in an archive (OCI image spec, "Whiteouts").
pub(crate) const WHITEOUT: &[u8] = b".wh.";
/// Names of aufs' own bookkeeping, and of the opaque marker.
pub(crate) const WHITEOUT_META: &[u8] = b".wh..wh.";
/// The file that says that a directory hides what lower layers have in it.
pub(crate) const OPAQUE: &[u8] = b".wh..wh..opq";

/// True for the device node that overlayfs takes for "deleted".
pub(crate) fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// Hides what lower layers have in this directory.
pub(crate) fn set_opaque(dir: BorrowedFd<'_>, path: &[u8]) -> Result<(), Error> {
    fsetxattr(dir, "trusted.overlay.opaque", b"y", XattrFlags::empty()).map_err(at("mark as opaque", path))
}
