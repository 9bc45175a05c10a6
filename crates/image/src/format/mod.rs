//! The formats that images come in: names, documents, layouts, archives and compressed files.

pub(crate) mod archive;
pub(crate) mod compression;
pub(crate) mod docker;
pub(crate) mod few;
mod json;
pub(crate) mod manifest;
pub(crate) mod oci;
pub(crate) mod plain;
pub mod reference;
pub(crate) mod stream;
