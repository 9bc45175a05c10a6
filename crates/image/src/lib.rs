//! Where layers come from, and how they reach a directory.
//!
//! [`Source`] says where an image is (a tar file, an OCI layout, an archive of images), [`Source::open`] reads its
//! manifest and config, and [`Layer::unpack`] streams one layer into a directory: decompressed, verified and turned into
//! what overlayfs expects. [`App`] is a
//! layer that is fetched on its own and lies on top of an image; [`Remote`] fetches what is on servers. [`export`] goes
//! the other way. [`files`] is for a container's files, not for images.
//!
//! Everything read here was written by somebody else and is treated as hostile: names never leave the directory they
//! are unpacked into, every size has a limit, and digests cover every byte of a blob.
#![forbid(unsafe_code)]

mod app;
mod archives;
mod base;
mod budget;
mod digest;
mod disk;
mod error;
pub mod export;
pub mod files;
mod layer;
mod manifest;
mod names;
mod oci;
mod pipeline;
mod plain;
pub mod reference;
mod remote;
mod room;
mod rootfs;
mod source;
mod stream;
mod times;
mod tree;
mod unpack;
mod watch;
mod xattr;

#[cfg(test)]
mod tests;

pub use app::{App, shown};
pub use budget::{Extent, Packed};
pub use digest::Digest;
pub use error::Error;
pub use layer::{Identity, Layer};
pub use manifest::{Descriptor, ImageConfig, Index, MAX_LAYERS, Manifest};
pub use plain::Opening;
pub use remote::{Host, Location, Remote, Settings};
pub use source::{Config, Image, Source, Way};
pub use unpack::{Limits, Unpacked, unpack_tar};
pub use watch::Watch;
