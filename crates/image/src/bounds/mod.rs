//! What an image may take of this host, and what ends the work on it early.

pub(crate) mod budget;
pub(crate) mod limits;
pub(crate) mod room;
pub(crate) mod stop;
pub(crate) mod watch;
