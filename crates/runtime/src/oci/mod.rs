//! The types of an OCI bundle's `config.json`: the whole of the runtime specification 1.2.1 as far as it is about Linux
//! (config.md, config-linux.md).
//!
//! The types define what a bundle can ask for. What is implemented, and what is refused, is decided field by field in
//! [`crate::bundle`]. Bundles are parsed strictly: an unknown key, a duplicate key and `null` are errors. The same
//! types write bundles; fields that are `None` are left out.

/// An object of the specification: its required fields, then its optional ones.
macro_rules! object {
    ($(#[$about:meta])* $name:ident {
        $($(#[$needed_about:meta])* $needed:ident: $needed_type:ty,)*
        $(; $($(#[$about_field:meta])* $field:ident: $type:ty,)*)?
    }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
        #[serde(rename_all = "camelCase", deny_unknown_fields)]
        pub struct $name {
            $($(#[$needed_about])* pub $needed: $needed_type,)*
            $($(
                $(#[$about_field])*
                #[serde(default, deserialize_with = "crate::oci::present", skip_serializing_if = "Option::is_none")]
                pub $field: Option<$type>,
            )*)?
        }
    };
}

mod linux;
mod process;
mod resources;
mod seccomp;
#[cfg(test)]
pub(crate) mod shape;

pub use linux::{
    Device, DeviceType, IntelRdt, Linux, Namespace, NamespaceType, Personality, PersonalityDomain,
    Propagation, TimeOffset,
};
pub use process::{
    Capabilities, ConsoleSize, ExecCpuAffinity, IoPriority, IoPriorityClass, Process, Rlimit, Scheduler,
    SchedulerFlag, SchedulerPolicy, User,
};
pub use resources::{
    BlockIo, Cpu, DeviceRule, HugepageLimit, InterfacePriority, Memory, Network, Pids, Rdma, Resources,
    Throttle, Weight,
};
pub use seccomp::{Argument, Seccomp, Syscall};

use serde::{Deserialize, Deserializer};
use std::collections::BTreeMap;

/// Why a text is no valid `config.json`.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {what}")]
pub struct Error {
    /// Path of the fault, such as `linux.namespaces[2].type`; `.` for the whole document.
    pub path: String,
    /// The error text.
    pub what: String,
}

object! {
    /// `config.json`.
    Spec {
        /// Version of the specification that the bundle follows.
        oci_version: String,
        ;
        /// The container's process.
        process: Process,
        /// Root file system.
        root: Root,
        /// UTS name.
        hostname: String,
        /// NIS name.
        domainname: String,
        /// Mounts besides the root file system, in order.
        mounts: Vec<Mount>,
        /// Programs of the host that run at certain points of a container's life.
        hooks: Hooks,
        /// Arbitrary annotations.
        annotations: BTreeMap<String, String>,
        /// Everything that is specific to Linux.
        linux: Linux,
    }
}

object! {
    /// The root file system.
    Root {
        /// Path on the host.
        path: String,
        ;
        /// Read-only inside.
        readonly: bool,
    }
}

object! {
    /// A mount.
    Mount {
        /// Mount point inside, absolute.
        destination: String,
        ;
        /// File system type, or `bind`.
        #[serde(rename = "type")]
        kind: String,
        /// Device, or the host path of a bind mount.
        source: String,
        /// Options as in mount(8).
        options: Vec<String>,
        /// Uid mappings of an idmapped mount.
        uid_mappings: Vec<IdMapping>,
        /// Gid mappings of an idmapped mount.
        gid_mappings: Vec<IdMapping>,
    }
}

object! {
    /// A range of ids in a user namespace (user_namespaces(7)).
    IdMapping {
        /// First id inside.
        #[serde(rename = "containerID")]
        container_id: u32,
        /// First id on the host.
        #[serde(rename = "hostID")]
        host_id: u32,
        /// Number of ids.
        size: u32,
    }
}

object! {
    /// Programs of the host, by the time at which they run.
    Hooks {
        ;
        /// Deprecated by the specification.
        prestart: Vec<Hook>,
        /// Run in the runtime's namespaces, before pivot_root.
        create_runtime: Vec<Hook>,
        /// Run in the container's namespaces, before pivot_root.
        create_container: Vec<Hook>,
        /// Run inside, before the program starts.
        start_container: Vec<Hook>,
        /// Run after the program's start.
        poststart: Vec<Hook>,
        /// Run after the container's end.
        poststop: Vec<Hook>,
    }
}

object! {
    /// A program to run.
    Hook {
        /// Absolute path.
        path: String,
        ;
        /// Arguments, including the program's name.
        args: Vec<String>,
        /// Environment, `K=V`.
        env: Vec<String>,
        /// Time limit in seconds.
        timeout: i64,
    }
}

/// Deserializes a field that is present: it must have a value, and `null` is none.
fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(field: D) -> Result<Option<T>, D::Error> {
    T::deserialize(field).map(Some)
}

impl Spec {
    /// Reads a `config.json`.
    ///
    /// # Errors
    /// It is not JSON, or violates the specification; the error has the path.
    pub fn read(text: &str) -> Result<Self, Error> {
        serde_json::from_str(text).map_err(|error| place(text, &error))
    }
}

/// Adds the path to an error: the document is parsed again for that, because tracking the path costs time.
fn place(text: &str, error: &serde_json::Error) -> Error {
    let mut reader = serde_json::Deserializer::from_str(text);
    match serde_path_to_error::deserialize::<_, Spec>(&mut reader) {
        Err(error) => Error { path: error.path().to_string(), what: error.inner().to_string() },
        // The document is complete, but followed by more text.
        Ok(_) => Error { path: ".".to_owned(), what: error.to_string() },
    }
}
