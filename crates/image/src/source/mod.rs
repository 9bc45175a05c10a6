//! Addresses of images and apps, and the layers that they consist of.

pub(crate) mod address;
pub(crate) mod app;
pub(crate) mod app_layer;
pub(crate) mod bare;
pub(crate) mod docker;
pub(crate) mod image;
pub(crate) mod layer;
pub(crate) mod oci;
pub(crate) mod query;
pub(crate) mod registry;
