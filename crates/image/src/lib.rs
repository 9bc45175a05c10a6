//! Images: their sources, and the unpacking of their layers into directories.
//!
//! [`Source`] says where an image is (a tar file, an OCI layout, an archive of images), [`Source::open`] reads its
//! manifest and config, and [`Layer::unpack`] streams one layer into a directory: decompressed, verified and turned
//! into what overlayfs expects. [`App`] is a layer that is fetched separately and lies on top of an image; [`Remote`]
//! fetches blobs from servers. [`export`] does the reverse. [`files`] is for a container's files, not for images.
//!
//! The modules; each uses only those before it:
//!
//! * `bounds`: limits of the host's resources for an image, and cancellation;
//! * `disk`: files and directories of this host that an image is read from;
//! * `format`: names, documents, layouts, archives, compressed files;
//! * `remote`: fetching blobs from servers;
//! * [`registry`]: images at registries, the settings of this host for them, and logins;
//! * `overlay`: layers as directories, in overlayfs' form;
//! * `source`: addresses of images and apps, and the layers that they consist of;
//! * `files` and `export`, as said above;
//! * `unpack`: the unpacking of a layer's blob into a directory.
//!
//! All input is untrusted and treated as hostile: names never leave the directory they are unpacked into, every size
//! has a limit, and digests cover every byte of a blob.
#![forbid(unsafe_code)]

mod bounds;
mod digest;
mod disk;
mod error;
pub mod export;
pub mod files;
mod format;
mod overlay;
pub mod registry;
mod remote;
mod source;
mod unpack;

#[cfg(test)]
mod tests;

pub use bounds::budget::{Extent, Packed};
pub use bounds::limits::Limits;
pub use bounds::watch::Watch;
pub use digest::Digest;
pub use disk::file::Identity;
pub use error::{Error, RegistryError};
pub use format::manifest::{Config, Descriptor, ImageConfig, Index, MAX_LAYERS, Manifest};
pub use format::plain::Opening;
pub use format::reference;
pub use remote::{Host, Location, Proxies, Remote, Settings, plain_client};
pub use source::address::{Source, Way};
pub use source::app::{App, shown};
pub use source::image::Image;
pub use source::layer::Layer;
pub use unpack::entries::{Unpacked, unpack_tar};
