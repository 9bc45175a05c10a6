//! Limits on what may be written to a root file system, and which driver enforces them.

use serde::{Deserialize, Serialize};

/// What counts against the bytes of a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// The image's layers and what is written.
    #[default]
    Total,
    /// What is written alone.
    Exclusive,
}

/// A limit on the space of a root file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DiskLimit {
    /// Bytes; `None`: no limit.
    pub bytes: Option<u64>,
    /// Files, directories and other inodes that are written, whatever the scope: those of the image are shared.
    /// `None`: no limit.
    pub inodes: Option<u64>,
    /// What counts against `bytes`.
    pub scope: Scope,
}

/// The image takes as much as the whole limit, or more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "disk limit is smaller than volume size: the limit is {limit} bytes and the image takes {image} of them"
)]
pub struct TooSmall {
    limit: u64,
    image: u64,
}

impl DiskLimit {
    /// Returns what may be written above an image of this many bytes.
    ///
    /// # Errors
    /// Nothing may.
    pub(crate) fn above(&self, image: u64) -> Result<Bound, TooSmall> {
        let bytes = match (self.bytes, self.scope) {
            (Some(limit), Scope::Total) => {
                Some(limit.checked_sub(image).filter(|left| *left > 0).ok_or(TooSmall { limit, image })?)
            }
            (bytes, _) => bytes,
        };
        Ok(Bound { bytes, inodes: self.inodes })
    }
}

/// What may be written to a root file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Bound {
    /// Bytes on the disk; `None`: no bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Inodes; `None`: no bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inodes: Option<u64>,
}

impl Bound {
    /// No bound.
    pub const NONE: Self = Self { bytes: None, inodes: None };

    /// Whether nothing is bounded.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::NONE
    }
}

/// What has been written to a root file system, as its file system counts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Written {
    /// Bytes on the disk.
    pub bytes: u64,
    /// Inodes; `None`: it does not count them.
    pub inodes: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_counts_in_the_total_scope_alone() {
        let limit = |scope| DiskLimit { bytes: Some(100), inodes: Some(7), scope };
        let bound = |bytes| Ok(Bound { bytes: Some(bytes), inodes: Some(7) });
        assert_eq!(limit(Scope::Total).above(60), bound(40));
        assert_eq!(limit(Scope::Exclusive).above(60), bound(100));
        assert_eq!(limit(Scope::Exclusive).above(160), bound(100));
        assert_eq!(limit(Scope::Total).above(99), bound(1));
        for image in [100, u64::MAX] {
            assert_eq!(limit(Scope::Total).above(image), Err(TooSmall { limit: 100, image }));
        }
        assert_eq!(DiskLimit::default().above(u64::MAX), Ok(Bound::NONE));
    }
}
