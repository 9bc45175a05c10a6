//! The types of an OCI bundle's `config.json`: the whole of the runtime specification 1.2.1 as far as it is about Linux
//! (config.md, config-linux.md).
//!
//! They say what a bundle can ask for. What is done of it, and what is refused, is decided field by field in
//! [`crate::bundle`]. A bundle is read strictly: a key that the specification does not have, one that is there twice, and
//! `null` are errors. The same types write bundles; what is `None` is not written.

/// An object of the specification: its required fields, then those that may be missing.
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

/// Why a text is no `config.json`.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {what}")]
pub struct Error {
    /// Where, as `linux.namespaces[2].type`; `.` for the whole.
    pub path: String,
    /// In words.
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
        /// Besides the root file system, in order.
        mounts: Vec<Mount>,
        /// Programs of the host at points of a container's life.
        hooks: Hooks,
        /// Whatever somebody wants to note.
        annotations: BTreeMap<String, String>,
        /// All that only Linux has.
        linux: Linux,
    }
}

object! {
    /// The root file system.
    Root {
        /// On the host.
        path: String,
        ;
        /// Read-only inside.
        readonly: bool,
    }
}

object! {
    /// A mount.
    Mount {
        /// Absolute, inside.
        destination: String,
        ;
        /// File system type, or `bind`.
        #[serde(rename = "type")]
        kind: String,
        /// Device, or on the host the path of a bind mount.
        source: String,
        /// As of mount(8).
        options: Vec<String>,
        /// Users of an id-mapped mount.
        uid_mappings: Vec<IdMapping>,
        /// Its groups.
        gid_mappings: Vec<IdMapping>,
    }
}

object! {
    /// A range of ids in a user namespace (user_namespaces(7)).
    IdMapping {
        /// Its first id inside.
        #[serde(rename = "containerID")]
        container_id: u32,
        /// Its first id on the host.
        #[serde(rename = "hostID")]
        host_id: u32,
        /// So many.
        size: u32,
    }
}

object! {
    /// Programs of the host by the time when they run.
    Hooks {
        ;
        /// Deprecated by the specification.
        prestart: Vec<Hook>,
        /// In the runtime's namespaces, before the root is changed.
        create_runtime: Vec<Hook>,
        /// In the container's namespaces, before the root is changed.
        create_container: Vec<Hook>,
        /// Inside, before the program.
        start_container: Vec<Hook>,
        /// After the program's start.
        poststart: Vec<Hook>,
        /// After the container's end.
        poststop: Vec<Hook>,
    }
}

object! {
    /// A program.
    Hook {
        /// Absolute.
        path: String,
        ;
        /// With the program's name.
        args: Vec<String>,
        /// `K=V`.
        env: Vec<String>,
        /// Seconds.
        timeout: i64,
    }
}

/// A field that is there has a value, and `null` is none.
fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(field: D) -> Result<Option<T>, D::Error> {
    T::deserialize(field).map(Some)
}

impl Spec {
    /// Read a `config.json`.
    ///
    /// # Errors
    /// When it is not JSON, or not what the specification allows; with the place.
    pub fn read(text: &str) -> Result<Self, Error> {
        serde_json::from_str(text).map_err(|error| place(text, &error))
    }
}

/// The error with its place in the document: it is read once more for that, because to keep the place costs time.
fn place(text: &str, error: &serde_json::Error) -> Error {
    let mut reader = serde_json::Deserializer::from_str(text);
    match serde_path_to_error::deserialize::<_, Spec>(&mut reader) {
        Err(error) => Error { path: error.path().to_string(), what: error.inner().to_string() },
        // The document is whole, and something follows it.
        Ok(_) => Error { path: ".".to_owned(), what: error.to_string() },
    }
}
