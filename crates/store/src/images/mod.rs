//! Images by their names, and what is known of one while it is fetched.

pub(crate) mod flight;
pub mod image;
pub(crate) mod opened;
pub(crate) mod progress;
