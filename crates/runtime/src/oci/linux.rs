//! `linux`, except for its resources and its seccomp profile.

use super::{IdMapping, Resources, Seccomp};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

object! {
    /// Everything that is specific to Linux.
    Linux {
        ;
        /// Uid mappings of the user namespace.
        uid_mappings: Vec<IdMapping>,
        /// Gid mappings of the user namespace.
        gid_mappings: Vec<IdMapping>,
        /// Values in /proc/sys, by names with dots.
        sysctl: BTreeMap<String, String>,
        /// Limits of the cgroup.
        resources: Resources,
        /// Path of the cgroup below the mount point of each hierarchy.
        cgroups_path: String,
        /// Namespaces that are created or joined; of all other kinds the runtime's are used.
        namespaces: Vec<Namespace>,
        /// Nodes in /dev.
        devices: Vec<Device>,
        /// Seccomp profile.
        seccomp: Seccomp,
        /// Propagation of the root mount.
        rootfs_propagation: Propagation,
        /// Paths that are hidden.
        masked_paths: Vec<String>,
        /// Paths that are read-only.
        readonly_paths: Vec<String>,
        /// SELinux label of the mounts.
        mount_label: String,
        /// Cache and memory bandwidth.
        intel_rdt: IntelRdt,
        /// Execution domain (personality(2)).
        personality: Personality,
        /// Offsets by clock, such as `monotonic` (time_namespaces(7)).
        time_offsets: BTreeMap<String, TimeOffset>,
    }
}

object! {
    /// A namespace (namespaces(7)).
    Namespace {
        /// Kind of namespace.
        #[serde(rename = "type")]
        kind: NamespaceType,
        ;
        /// File of the namespace to join; without it a new one is created.
        path: String,
    }
}

/// Kinds of namespaces.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum NamespaceType {
    #[default]
    Pid,
    Network,
    Mount,
    Ipc,
    Uts,
    User,
    Cgroup,
    Time,
}

impl fmt::Display for NamespaceType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pid => "pid",
            Self::Network => "network",
            Self::Mount => "mount",
            Self::Ipc => "ipc",
            Self::Uts => "uts",
            Self::User => "user",
            Self::Cgroup => "cgroup",
            Self::Time => "time",
        })
    }
}

object! {
    /// A device node or a FIFO.
    Device {
        /// Path inside.
        path: String,
        /// Type of device.
        #[serde(rename = "type")]
        kind: DeviceType,
        ;
        /// Major number; a FIFO has none.
        major: i64,
        /// Minor number.
        minor: i64,
        /// Permission bits.
        file_mode: u32,
        /// Owner's uid inside.
        uid: u32,
        /// Owner's gid inside.
        gid: u32,
    }
}

/// Kinds of devices, by the letters of mknod(1).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum DeviceType {
    /// All types; in rules only.
    #[default]
    #[serde(rename = "a")]
    All,
    /// Block devices.
    #[serde(rename = "b")]
    Block,
    /// Character devices.
    #[serde(rename = "c")]
    Char,
    /// Unbuffered character devices: another word for character devices.
    #[serde(rename = "u")]
    Unbuffered,
    /// FIFOs.
    #[serde(rename = "p")]
    Fifo,
}

impl DeviceType {
    /// The letter of the type.
    pub fn letter(self) -> char {
        match self {
            Self::All => 'a',
            Self::Block => 'b',
            Self::Char => 'c',
            Self::Unbuffered => 'u',
            Self::Fifo => 'p',
        }
    }
}

/// Mount propagation (mount_namespaces(7)).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Propagation {
    #[default]
    Private,
    Shared,
    Slave,
    Unbindable,
}

object! {
    /// Intel Resource Director Technology (Documentation/arch/x86/resctrl.rst).
    IntelRdt {
        ;
        /// Class of service.
        #[serde(rename = "closID")]
        clos_id: String,
        /// Line of `schemata` for the L3 cache.
        l3_cache_schema: String,
        /// Line of `schemata` for the memory bandwidth.
        mem_bw_schema: String,
        /// Whether to monitor the cache's occupancy.
        #[serde(rename = "enableCMT")]
        enable_cmt: bool,
        /// Whether to monitor the memory bandwidth.
        #[serde(rename = "enableMBM")]
        enable_mbm: bool,
    }
}

object! {
    /// Execution domain (personality(2)).
    Personality {
        /// What `uname` reports.
        domain: PersonalityDomain,
        ;
        /// Flags; none is defined.
        flags: Vec<String>,
    }
}

/// Execution domains.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "UPPERCASE")]
#[allow(missing_docs)]
pub enum PersonalityDomain {
    #[default]
    Linux,
    Linux32,
}

object! {
    /// Offset of a clock.
    TimeOffset {
        ;
        /// Seconds.
        secs: i64,
        /// Additional nanoseconds.
        nanosecs: u32,
    }
}
