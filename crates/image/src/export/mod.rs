//! Writes an image out of its unpacked layers: what [`crate::Source`] reads, a plain tar or a directory.
//!
//! ```text
//! layers on disk ── walk ──┬─ one by one ─> tarball ─> layout (a directory or an archive)
//! (overlayfs' form)        └─ merged ─────> tarball or tree
//! ```
//!
//! The same layers give the same bytes: names are sorted, and nothing depends on the time or the host. All is written
//! under a temporary name beside the target, which an error or a cancellation removes again.

mod layout;
mod tarball;
mod target;
mod temporary;
mod tree;
mod walk;
mod write;

pub use layout::config_with_layer;
pub use target::{Compression, Exported, ExportedImage, Format, LeftOut, ROOTFS, Target};
pub(crate) use write::tree;
pub use write::{export, export_into};
