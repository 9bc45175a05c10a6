//! The directories and files of a store and of a run directory.

pub mod format;
pub mod layout;
pub(crate) mod record;
pub mod remove;
pub mod run;
pub mod whose;
