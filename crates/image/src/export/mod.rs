//! Exports an image from its unpacked layers: in a format that [`crate::Source`] reads, as a plain tar or as a
//! directory.
//!
//! ```text
//! layers on disk ── walk ──┬─ one by one ─> tarball ─> layout (a directory or an archive)
//! (overlayfs' form)        └─ merged ─────> tarball or tree
//! ```
//!
//! The same layers give the same bytes: names are sorted, and nothing depends on the time or the host. Everything is
//! written under a temporary name beside the target, and removed on an error or a cancellation.

mod layout;
mod push;
mod tarball;
mod target;
mod temporary;
mod tree;
mod walk;
mod write;

pub use layout::{Whole, config_with_layer};
pub use push::{Progress, Pushed, PushedLayer, Pushing, push};
pub use target::{Compression, Exported, ExportedImage, Format, LeftOut, ROOTFS, Target};
pub(crate) use write::tree;
pub use write::{export, export_all, export_into};
