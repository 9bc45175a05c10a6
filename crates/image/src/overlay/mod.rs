//! Layers as directories in the form that overlayfs has them in: what unpacking makes, and export reads.

pub(crate) mod base;
pub(crate) mod times;
pub(crate) mod tree;
pub(crate) mod whiteout;
pub(crate) mod xattr;
