//! Ordinary files, between this host and a container: packed into a tar, and unpacked from one.
//!
//! The tar that comes from a container is hostile: its names never leave the directory they are unpacked into, no symlink is
//! followed on the way, devices and sockets are left out, and nobody gets a setuid program from it.

mod pack;
mod unpack;

pub use pack::{Packed, pack};
pub use unpack::{Name, Taken, unpack};

#[cfg(test)]
mod tests;
