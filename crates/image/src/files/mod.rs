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
pub(crate) use place::{NotMade, fresh};
pub use place::{PROCESS, directory, make, special, special_in};
pub use unpack::{Name, Taken, unpack};

use crate::error::{Error, show};
use rustix::io::Errno;

/// What is said of a directory that is not the one it was.
pub(crate) const REPLACED: &str = "somebody has put something else in its place meanwhile";

fn write(op: &'static str, path: &[u8]) -> impl FnOnce(Errno) -> Error {
    move |source| Error::Write { op, path: show(path), source }
}

fn unsafe_path(path: &[u8], why: &'static str) -> Error {
    Error::UnsafePath { path: show(path), why }
}

#[cfg(test)]
mod tests;
