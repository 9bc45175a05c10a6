//! OCI bundles: what the engine writes, and what the launcher makes of it.
//!
//! The file on disk is an ordinary `config.json` of the OCI runtime spec ([`crate::oci`]). The launcher reads only that.
//! Each field of the specification is in one of four groups, and the test `fields` has the list of them all:
//!
//! | a field | such as | |
//! |---|---|---|
//! | is done | `mounts`, `linux.maskedPaths` | it changes the [`Plan`] |
//! | has one value that is done | `process.args`, `process.cwd` | any other is refused |
//! | is for the reader | `annotations`, `root.path` | what it describes is handed over as a descriptor, or the server does it |
//! | is not implemented | `hooks`, `linux.sysctl` | refused |
//!
//! What is refused is named by its place, as `linux.namespaces[2].type`.

mod lower;
mod mounts;
mod write;

#[cfg(test)]
mod fields;
#[cfg(test)]
mod tests;

pub use write::{Settings, host_masks, text};

use crate::cgroup::{Limits, devices};
use crate::oci::Spec;
use crate::rights::Rights;
use crate::{oci, seccomp};
use std::borrow::Cow;
use write::{FILTER, STAND_IN};

/// What the launcher cannot do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not JSON, or not of the OCI shape.
    #[error("config.json: {0}")]
    Shape(#[from] oci::Error),
    /// A field that is not implemented.
    #[error("config.json: {path} is not supported")]
    Field {
        /// Its place.
        path: String,
    },
    /// A value of a field that would not be done.
    #[error("config.json: {path}: {what} is not supported")]
    Value {
        /// The field's place.
        path: String,
        /// In words.
        what: String,
    },
    /// A field without which it is not told what to do.
    #[error("config.json: {path} is missing")]
    Missing {
        /// Its place.
        path: String,
    },
    /// The filter of system calls cannot be made.
    #[error("config.json: {0}")]
    Seccomp(#[from] seccomp::Error),
}

/// A file system to mount, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mount {
    /// Where.
    pub destination: String,
    /// `proc`, `sysfs`, `tmpfs`, `mqueue`, `devpts`, `cgroup`, `bind`.
    pub kind: String,
    /// Read-only.
    pub readonly: bool,
    /// `noexec`.
    pub noexec: bool,
    /// `nosuid`.
    pub nosuid: bool,
    /// `nodev`.
    pub nodev: bool,
    /// Options for the file system itself, `key=value`.
    pub data: Vec<(String, String)>,
}

/// A device node to make in /dev, beside those of every container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its name there.
    pub name: String,
    /// Block device?
    pub block: bool,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Permission bits.
    pub mode: u32,
}

/// What the launcher does, read from a `config.json`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// UTS name to set.
    pub hostname: Option<String>,
    /// In order.
    pub mounts: Vec<Mount>,
    /// Hidden paths.
    pub masked: Vec<String>,
    /// Of pid 1. What else runs in the container is told its own, but for the filter of system calls.
    pub rights: Rights,
    /// Host ids of container root.
    pub root_ids: (u32, u32),
    /// Host id of the container's group 5, `tty`.
    pub tty_gid: u32,
    /// There is a user namespace.
    pub user: bool,
    /// A pea: its namespaces, but for the mounts, are those of this process as the host sees it.
    pub joins: Option<i32>,
    /// Path of the cgroup below each hierarchy, for the reader: the descriptors that come along lead there.
    pub cgroup: String,
    /// For the reader: the engine has set those of the cgroup.
    pub limits: Limits,
    /// In order.
    pub nodes: Vec<Node>,
    /// What may be done with which devices, for the reader: the engine has set the rules of the cgroup. `None`: a server
    /// wrote this that knew no rules.
    pub devices: Option<Vec<devices::Allow>>,
}

/// Read a `config.json`.
///
/// # Errors
/// When it is malformed, or asks for something that is not implemented.
pub fn plan(text: &[u8]) -> Result<Plan, Error> {
    let whole = |what: String| oci::Error { path: ".".to_owned(), what };
    let text = str::from_utf8(text).map_err(|error| whole(error.to_string()))?;
    // Garden's filter is the larger half of nearly all bundles. It is told by its text, and something short is read in its
    // place: if it stands where no filter belongs, that is an error as the filter itself would be.
    let garden = text.find(&*seccomp::TEXT).filter(|at| text[..*at].ends_with(FILTER));
    let text = match garden {
        Some(at) => Cow::from([&text[..at], STAND_IN, &text[at + seccomp::TEXT.len()..]].concat()),
        None => Cow::from(text),
    };
    lower::lower(Spec::read(&text)?, garden.is_some())
}
