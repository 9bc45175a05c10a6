//! The directories and files of a store and of a run directory.

pub(crate) mod blocks;
pub(crate) mod files;
pub mod format;
pub mod inbox;
pub mod layout;
pub mod limit;
pub(crate) mod lock;
pub(crate) mod record;
pub mod remove;
pub mod run;
pub mod whose;
