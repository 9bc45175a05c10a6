//! Named images, opened images, and the progress of imports.

pub(crate) mod flight;
pub mod image;
pub(crate) mod opened;
pub(crate) mod progress;
pub(crate) mod reference;
pub(crate) mod terms;
