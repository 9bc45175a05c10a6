//! Copies files between this host and a container, by packing them into a tar and unpacking one.
//!
//! A tar from a container is untrusted: its names never leave the directory they are unpacked into, no symlink is
//! followed, devices and sockets are left out, and setuid bits are dropped.
//!
//! The host's directories may belong to another user, who may rename them and plant symlinks during a copy, so in
//! both directions they are walked by descriptors.

mod pack;
mod place;
mod unpack;

pub use pack::{LeftOut, Packed, Source, pack};
pub(crate) use place::{NotMade, REPLACED, fresh};
pub use place::{PROCESS, directory, make, special, special_in};
pub use unpack::{Name, Taken, unpack};

#[cfg(test)]
mod tests;
