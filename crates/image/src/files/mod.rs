//! Ordinary files, between this host and a container: packed into a tar, and unpacked from one.
//!
//! The tar that comes from a container is hostile: its names never leave the directory they are unpacked into, no symlink is
//! followed on the way, devices and sockets are left out, and nobody gets a setuid program from it.
//!
//! The directories of the host may be those of another user, who renames them and plants links while a copy is made: on
//! both ways they are walked by descriptors.

mod pack;
mod place;
mod unpack;

pub use pack::{LeftOut, Packed, Source, pack};
pub(crate) use place::{NotMade, REPLACED, fresh};
pub use place::{PROCESS, directory, make, special, special_in};
pub use unpack::{Name, Taken, unpack};

#[cfg(test)]
mod tests;
