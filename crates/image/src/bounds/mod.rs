//! Limits of the host's resources for an image, and cancellation.

pub(crate) mod budget;
pub(crate) mod limits;
pub(crate) mod room;
pub(crate) mod stop;
pub(crate) mod watch;
