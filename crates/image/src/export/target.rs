//! The target and the result of an export.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::digest::Digest;
use crate::error::Error;

/// The format of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// A directory in the OCI image layout.
    Oci,
    /// A tar file of an OCI image layout.
    OciArchive,
    /// The format of `docker save`, read by `docker load` and `podman load`: a `manifest.json`, and also an OCI image
    /// layout. Layers are not compressed.
    DockerArchive,
    /// The root file system as one tar file.
    Tar,
    /// The root file system as a directory: [`ROOTFS`] in the target, which only its owner may enter, because an
    /// image's own directories are accessible to everybody, and the host's users must not run its programs.
    Dir,
}

/// The name of the root file system in the target of [`Format::Dir`], as in an OCI bundle.
pub const ROOTFS: &str = "rootfs";

/// How layers are stored in an OCI image layout.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Compression {
    /// Supported by every tool.
    #[default]
    Gzip,
    /// Smaller and several times faster; supported by tools since about 2020.
    Zstd,
}

/// The target of an export.
#[derive(Debug, Clone)]
pub struct Target {
    /// The format.
    pub format: Format,
    /// The path. An existing directory is accepted if it is empty.
    pub path: PathBuf,
    /// The compression; for [`Format::Oci`] and [`Format::OciArchive`] only.
    pub compression: Compression,
    /// Whether an existing file is replaced. A directory that is not empty is never replaced.
    pub overwrite: bool,
    /// Whether set-uid and set-gid bits, file capabilities and device nodes are kept, which give users who can reach
    /// them rights on this host. For [`Format::Dir`] only; archives keep everything.
    pub keep_privileges: bool,
}

/// The result of an export.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Exported {
    /// The number of entries, without whiteouts.
    pub entries: u64,
    /// Bytes of file data read.
    pub bytes: u64,
    /// The number of skipped extended attributes: those that do not belong to the image (`trusted.*`, `system.*`,
    /// ...), and those that no archive can express.
    pub skipped_xattrs: u64,
    /// The number of skipped sockets, which no archive can express.
    pub skipped_sockets: u64,
    /// The privileges that were left out, because [`Target::keep_privileges`] was not set.
    pub left_out: LeftOut,
    /// The digests of the exported image; none for a root file system.
    pub image: Option<ExportedImage>,
}

/// Privileges that were left out of an exported directory.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeftOut {
    /// Files and directories without their set-uid and set-gid bits.
    pub set_id: u64,
    /// Files without their capabilities (`security.capability`).
    pub capabilities: u64,
    /// Device nodes that were not made.
    pub devices: u64,
}

/// The digests of an exported image.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExportedImage {
    /// The manifest.
    pub manifest: Digest,
    /// The config, which is the image's id.
    pub config: Digest,
    /// The uncompressed layers, bottom first.
    pub diff_ids: Vec<Digest>,
}

impl Format {
    pub(super) fn is_directory(self) -> bool {
        matches!(self, Self::Oci | Self::Dir)
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Oci => "oci",
            Self::OciArchive => "oci-archive",
            Self::DockerArchive => "docker-archive",
            Self::Tar => "tar",
            Self::Dir => "dir",
        })
    }
}

impl FromStr for Compression {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "gzip" => Ok(Self::Gzip),
            "zstd" => Ok(Self::Zstd),
            _ => Err(Error::Unsupported {
                what: format!("the compression {text:?} (known are gzip and zstd)"),
            }),
        }
    }
}

impl FromStr for Format {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        [Self::Oci, Self::OciArchive, Self::DockerArchive, Self::Tar, Self::Dir]
            .into_iter()
            .find(|format| format.to_string() == text)
            .ok_or_else(|| Error::Unsupported { what: format!("the export format {text:?}") })
    }
}
