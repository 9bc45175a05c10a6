//! Where layers come from, and how they reach a directory.
//!
//! [`Source`] says where an image is (a tar file, an OCI layout, an archive of images), [`Source::open`] reads its
//! manifest and config, and [`Layer::unpack`] streams one layer into a directory: decompressed, verified and turned into
//! what overlayfs expects. [`App`] is a layer that is fetched on its own and lies on top of an image; [`Remote`] fetches
//! what is on servers. [`export`] goes the other way. [`files`] is for a container's files, not for images.
//!
//! What lies in which folder, each of which uses those before it only:
//!
//! * `bounds`: what an image may take of this host, and what ends the work on it early;
//! * `disk`: files and directories of this host that an image is read from;
//! * `format`: names, documents, layouts, archives, compressed files;
//! * `remote`: fetching blobs from servers;
//! * `overlay`: layers as directories, in overlayfs' form;
//! * `source`: images and apps by their addresses, and the layers that they consist of;
//! * `files` and `export`, as said above;
//! * `unpack`: the way of a layer from the bytes of its blob into a directory.
//!
//! Everything read here was written by somebody else and is treated as hostile: names never leave the directory they
//! are unpacked into, every size has a limit, and digests cover every byte of a blob.
#![forbid(unsafe_code)]

mod bounds;
mod digest;
mod disk;
mod error;
pub mod export;
pub mod files;
mod format;
mod overlay;
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
pub use error::Error;
pub use format::manifest::{Config, Descriptor, ImageConfig, Index, MAX_LAYERS, Manifest};
pub use format::plain::Opening;
pub use format::reference;
pub use remote::{Host, Location, Remote, Settings};
pub use source::address::{Source, Way};
pub use source::app::{App, shown};
pub use source::image::Image;
pub use source::layer::Layer;
pub use unpack::entries::{Unpacked, unpack_tar};
