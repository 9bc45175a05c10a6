//! One layer: where its bytes are, and the expected digest.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use super::app::Droplet;
use crate::bounds::budget::{Budget, Extent};
use crate::bounds::limits::Limits;
use crate::digest::Digest;
use crate::disk::file::Identity;
use crate::disk::rootfs::{Root, Seen};
use crate::disk::section::Section;
use crate::error::Error;
use crate::format::oci::Layout;
use crate::overlay::base::Base;
use crate::registry::RemoteBlob;
use crate::remote::{Location, Remote};

/// One layer of an image. Cheap to keep: the data is read when it is unpacked.
#[derive(Debug, Clone)]
pub struct Layer {
    /// The id, in hex, of this layer on top of those below it; safe as a file name. For OCI the chain id (OCI image
    /// spec, "Layer ChainID"); for a tar file a hash of its path and state: device, inode, size, and the times of its
    /// last modification and of its inode's last change.
    ///
    /// With a base directory the same blob makes another tree, so its id, and those of the layers above, differ: it
    /// is the sha256 of `<chain id as above> base-directory:<directory>` (no diff id looks like that), with the
    /// directory normalized (`/home/./x/` is `home/x`).
    pub chain_id: String,
    pub(crate) blob: Blob,
    pub(crate) base: Option<Base>,
    /// Whether a layer below it has the same blob, or one with the same content.
    pub(crate) again: bool,
    /// The budget that the layers of its image share.
    pub(crate) budget: Arc<Budget>,
}

/// Where the bytes of a layer are, and their expected digest or state.
#[derive(Debug, Clone)]
pub(crate) enum Blob {
    Oci {
        layout: Arc<Layout>,
        digest: Digest,
        /// `None`: any size.
        size: Option<u64>,
        /// `None`: any content that belongs to `digest`.
        diff_id: Option<Digest>,
        /// Its URLs, for a blob that the layout lacks; `None` if the manifest has none.
        locations: Option<Arc<[Location]>>,
        remote: Remote,
    },
    /// A file in an archive, which is verified only by its diff id.
    Member {
        /// Its name and the archive's, for errors.
        name: Arc<str>,
        section: Section,
        diff_id: Digest,
    },
    File {
        path: PathBuf,
        identity: Identity,
    },
    /// A directory that is a root file system.
    Tree {
        root: Arc<Root>,
        seen: Seen,
    },
    App(Arc<Droplet>),
    Registry {
        blob: RemoteBlob,
        diff_id: Digest,
    },
}

impl Layer {
    /// Returns a layer of an image whose layers share `budget`; `again` if a layer below it has the same blob, or one
    /// with the same content.
    pub(crate) fn new(
        chain_id: String,
        blob: Blob,
        base: Option<Base>,
        again: bool,
        budget: &Arc<Budget>,
    ) -> Self {
        Self { chain_id, blob, base, again, budget: Arc::clone(budget) }
    }

    /// Returns a layer with a budget of its own: the only one of its image, or one on top of an image that is
    /// unpacked already.
    pub(crate) fn alone(chain_id: String, blob: Blob, base: Option<Base>) -> Self {
        Self::new(chain_id, blob, base, false, &Arc::default())
    }

    /// Resets the counters of the layer's image, and counts the layers that are in the store already. Must not be
    /// called while a layer of the image is being unpacked.
    pub fn count<'a>(&self, present: impl IntoIterator<Item = (&'a Self, Extent)>) {
        self.budget.clear();
        for (layer, extent) in present {
            self.budget.add(extent, layer.again);
        }
    }

    /// Fails if the counters of the layer's image exceed its limits.
    ///
    /// # Errors
    /// [`Error::Allowance`], [`Error::Ratio`].
    pub fn check_sum(&self, limits: &Limits) -> Result<(), Error> {
        self.budget.check(limits)
    }

    /// Resets the counters of the layer's image, and counts the layers below: their entries, and the bytes of their
    /// files.
    pub fn count_below(&self, entries: u64, bytes: u64) {
        self.budget.clear();
        self.budget.add(Extent { entries, bytes, packed: None }, false);
    }

    /// Returns the bytes of the blob as stored (compressed, if it is); 0 if that is not known, as for an app on a
    /// server.
    pub fn size(&self) -> u64 {
        match &self.blob {
            Blob::Oci { size, .. } => size.unwrap_or(0),
            Blob::Member { section, .. } => section.size(),
            Blob::File { identity, .. } => identity.size,
            Blob::Tree { seen, .. } => seen.bytes,
            Blob::App(droplet) => droplet.size().unwrap_or(0),
            Blob::Registry { blob, .. } => blob.size,
        }
    }

    /// Returns the expected digest of the uncompressed bytes; `None` for a tar file, a directory and an app.
    pub fn diff_id(&self) -> Option<&Digest> {
        match &self.blob {
            Blob::Oci { diff_id, .. } => diff_id.as_ref(),
            Blob::Member { diff_id, .. } | Blob::Registry { diff_id, .. } => Some(diff_id),
            Blob::File { .. } | Blob::Tree { .. } | Blob::App(_) => None,
        }
    }

    /// Returns the registry that its blob is received from; `None` for one on this host, and for one of a server that the
    /// operator or the caller has named.
    pub fn registry(&self) -> Option<&str> {
        match &self.blob {
            Blob::Registry { blob, .. } => Some(blob.puller.name().registry()),
            Blob::Oci { .. } | Blob::Member { .. } | Blob::File { .. } | Blob::Tree { .. } | Blob::App(_) => {
                None
            }
        }
    }

    /// Whether unpacking it needs the layers below, because it has a base directory.
    pub fn needs_layers_below(&self) -> bool {
        self.base.is_some()
    }
}

/// Shows the layer's file or address to users.
impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.blob {
            Blob::Oci { layout, digest, .. } => {
                write!(f, "the layer {digest} of {}", layout.path().display())
            }
            Blob::Member { name, .. } => f.write_str(name),
            Blob::File { path, .. } => write!(f, "{}", path.display()),
            Blob::Tree { root, .. } => f.write_str(&root.shown()),
            Blob::App(droplet) => write!(f, "the app {droplet}"),
            Blob::Registry { blob, .. } => {
                write!(f, "the layer {} of {}", blob.digest, blob.puller.name())
            }
        }
    }
}
