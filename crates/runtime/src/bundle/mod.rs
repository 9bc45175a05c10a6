//! OCI bundles: what the engine writes, and what the launcher reads from them.
//!
//! The file on disk is an ordinary `config.json` of the OCI runtime spec ([`crate::oci`]). The launcher reads only that.
//! Each field of the specification is in one of four groups, and the test `fields` has the list of them all:
//!
//! | a field | such as | |
//! |---|---|---|
//! | is implemented | `mounts`, `linux.maskedPaths` | it changes the [`Plan`] |
//! | has one supported value | `process.args`, `process.cwd` | any other value is refused |
//! | is for human readers | `annotations` but one, `root.path` | what it describes is passed as a descriptor, or the server does it |
//! | is not implemented | `hooks`, `linux.sysctl` | refused |
//!
//! An error names what is refused by its path, such as `linux.namespaces[2].type`.

mod lower;
mod mounts;
mod write;

#[cfg(test)]
mod fields;
#[cfg(test)]
mod tests;

pub use write::{Extra, Settings, host_masks, text};

use crate::cgroup::{Limits, devices};
use crate::oci::Spec;
use crate::rights::Rights;
use crate::{oci, seccomp};
use std::borrow::Cow;
use write::{FILTER, STAND_IN};

/// The name of pid 1 in a bundle. The program is not in the container: it is executed from a descriptor.
const INIT: &str = "/tmp/garden-init";

/// The annotation with [`Plan::directories`], a list in JSON: the specification has no field for them.
const DIRECTORIES: &str = "wardian.directories";

/// How a launch says that a mount does not fit its mount point: `directory` is what is mounted.
pub fn misplaced(destination: &str, directory: bool) -> String {
    let [is, mounted] = if directory { ["file", "directory"] } else { ["directory", "file"] };
    format!("mount point {destination}: it is a {is} in the image, and what is mounted there is a {mounted}")
}

/// Why a bundle is refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not JSON, or not of the OCI shape.
    #[error("config.json: {0}")]
    Shape(#[from] oci::Error),
    /// A field that is not implemented.
    #[error("config.json: {path} is not supported")]
    Field {
        /// The field's path.
        path: String,
    },
    /// A value that is not supported for the field.
    #[error("config.json: {path}: {what} is not supported")]
    Value {
        /// The field's path.
        path: String,
        /// The value, as text.
        what: String,
    },
    /// A field that the launcher requires.
    #[error("config.json: {path} is missing")]
    Missing {
        /// The field's path.
        path: String,
    },
    /// The seccomp filter cannot be compiled.
    #[error("config.json: {0}")]
    Seccomp(#[from] seccomp::Error),
}

fn value(path: impl Into<String>, what: impl Into<String>) -> Error {
    Error::Value { path: path.into(), what: what.into() }
}

fn missing(path: impl Into<String>) -> Error {
    Error::Missing { path: path.into() }
}

/// Refuses the first of these fields that is set.
fn none(at: &str, fields: &[(&str, bool)]) -> Result<(), Error> {
    match fields.iter().find(|(_, asks)| *asks) {
        Some((name, _)) => Err(Error::Field { path: format!("{at}{name}") }),
        None => Ok(()),
    }
}

/// A file system to mount.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mount {
    /// The mount point inside.
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
    /// Options of the file system itself, `key=value`.
    pub data: Vec<(String, String)>,
}

/// A device node to create in /dev, beside those of every container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// The node's name in /dev.
    pub name: String,
    /// Whether it is a block device.
    pub block: bool,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Permission bits.
    pub mode: u32,
}

/// A bundle, as the launcher carries it out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// UTS name to set.
    pub hostname: Option<String>,
    /// The mounts, in order.
    pub mounts: Vec<Mount>,
    /// Directories to be made in the root file system where the image lacks them, before anything of the request is mounted.
    pub directories: Vec<String>,
    /// Paths to be masked.
    pub masked: Vec<String>,
    /// Rights of pid 1. Other processes of the container come with rights of their own, except for the seccomp
    /// filter.
    pub rights: Rights,
    /// Host ids of container root.
    pub root_ids: (u32, u32),
    /// Host id of the container's group 5, `tty`.
    pub tty_gid: u32,
    /// Whether there is a user namespace.
    pub user: bool,
    /// Of a pea: the pid, on the host, of the process whose namespaces it joins, except for the mount namespace.
    pub joins: Option<i32>,
    /// Path of the cgroup below each hierarchy. Not used: the cgroup is passed by descriptors.
    pub cgroup: String,
    /// Limits of the cgroup. Not used: the engine has set them.
    pub limits: Limits,
    /// The device nodes, in order.
    pub nodes: Vec<Node>,
    /// The devices that may be used. Not used: the engine has set the rules of the cgroup. `None`: written by a
    /// server that had no device rules.
    pub devices: Option<Vec<devices::Allow>>,
}

/// Reads a `config.json`.
///
/// # Errors
/// It is malformed, or asks for something that is not implemented.
pub fn plan(text: &[u8]) -> Result<Plan, Error> {
    let whole = |what: String| oci::Error { path: ".".to_owned(), what };
    let text = str::from_utf8(text).map_err(|error| whole(error.to_string()))?;
    // Garden's seccomp profile is the larger half of nearly all bundles. It is recognised by its text, and a short
    // stand-in is parsed in its place: at a place where no profile belongs, the stand-in is an error as the profile
    // itself would be.
    let garden = text.find(&*seccomp::TEXT).filter(|at| text[..*at].ends_with(FILTER));
    let text = match garden {
        Some(at) => Cow::from([&text[..at], STAND_IN, &text[at + seccomp::TEXT.len()..]].concat()),
        None => Cow::from(text),
    };
    lower::lower(Spec::read(&text)?, garden.is_some())
}
