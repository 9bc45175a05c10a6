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
use rustix::fs::Mode;
use rustix::io::Errno;
use std::io;

/// What is said of a directory that is not the one it was.
pub(crate) const REPLACED: &str = "somebody has put something else in its place meanwhile";

fn write(op: &'static str, path: &[u8]) -> impl FnOnce(Errno) -> Error {
    move |source| Error::Write { op, path: show(path), source }
}

/// The umask, for modes that are less it already: where a directory has a default access control list the kernel leaves it out
/// (umask(2)), and the list of another user's directory would let him write to what is the caller's.
fn umask() -> Result<Mode, Error> {
    let path = "/proc/thread-self/status";
    let error = |source| Error::Io { op: "read the umask in", path: path.into(), source };
    let text = std::fs::read_to_string(path).map_err(error)?;
    let umask = text.lines().find_map(|line| line.strip_prefix("Umask:"));
    let umask = umask.and_then(|umask| u32::from_str_radix(umask.trim(), 8).ok());
    umask.map(Mode::from_raw_mode).ok_or_else(|| error(io::ErrorKind::InvalidData.into()))
}

fn unsafe_path(path: &[u8], why: &'static str) -> Error {
    Error::UnsafePath { path: show(path), why }
}

#[cfg(test)]
mod tests;
