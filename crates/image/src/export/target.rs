//! What an export makes where, and what it tells of that.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::digest::Digest;
use crate::error::Error;

/// What an export makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// A directory in the OCI image layout.
    Oci,
    /// A tar file of an OCI image layout.
    OciArchive,
    /// What `docker save` writes and `docker load` and `podman load` read: with a `manifest.json`, and also an OCI
    /// image layout. Layers are not compressed.
    DockerArchive,
    /// The root file system as one tar file.
    Tar,
    /// The root file system as a directory: [`ROOTFS`] in the target, which only its owner may enter. An image's own
    /// directories are open to everybody, and its programs are not for the host's users to run.
    Dir,
}

/// What the root file system is called in the target of [`Format::Dir`], as in an OCI bundle.
pub const ROOTFS: &str = "rootfs";

/// How layers are stored in an OCI image layout.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Compression {
    /// What every tool reads.
    #[default]
    Gzip,
    /// Smaller and several times faster; readers since about 2020 know it.
    Zstd,
}

/// Where an export goes.
#[derive(Debug, Clone)]
pub struct Target {
    /// What is made.
    pub format: Format,
    /// A directory of this name may exist if it is empty.
    pub path: PathBuf,
    /// For [`Format::Oci`] and [`Format::OciArchive`] only.
    pub compression: Compression,
    /// Replace a file that exists. A directory with something in it is never replaced.
    pub overwrite: bool,
    /// For [`Format::Dir`] only; archives keep everything. Set-uid and set-gid bits, file capabilities and device nodes
    /// are made too, which give whoever reaches them rights on this host.
    pub keep_privileges: bool,
}

/// What an export did.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Exported {
    /// Files, directories and so on, without whiteouts.
    pub entries: u64,
    /// Bytes of file data read.
    pub bytes: u64,
    /// Extended attributes that are not the image's (`trusted.*`, `system.*`, ...) or that no archive can express.
    pub skipped_xattrs: u64,
    /// Sockets, which no archive can express.
    pub skipped_sockets: u64,
    /// What [`Target::keep_privileges`] would have made.
    pub left_out: LeftOut,
    /// What was written as an image; none for a root file system.
    pub image: Option<ExportedImage>,
}

/// What gives rights on a host, and was left out of a directory.
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

impl FromStr for Format {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        [Self::Oci, Self::OciArchive, Self::DockerArchive, Self::Tar, Self::Dir]
            .into_iter()
            .find(|format| format.to_string() == text)
            .ok_or_else(|| Error::Unsupported { what: format!("the export format {text:?}") })
    }
}
