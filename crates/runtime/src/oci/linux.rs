//! `linux`, but for its resources and its filter of system calls.

use super::{IdMapping, Resources, Seccomp};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

object! {
    /// All that only Linux has.
    Linux {
        ;
        /// Users of the user namespace.
        uid_mappings: Vec<IdMapping>,
        /// Its groups.
        gid_mappings: Vec<IdMapping>,
        /// Values in /proc/sys by names with dots.
        sysctl: BTreeMap<String, String>,
        /// Limits of the cgroup.
        resources: Resources,
        /// The cgroup, below the mount point of each hierarchy.
        cgroups_path: String,
        /// Those that are made or joined; all others are the runtime's.
        namespaces: Vec<Namespace>,
        /// Nodes in /dev.
        devices: Vec<Device>,
        /// Filter of system calls.
        seccomp: Seccomp,
        /// Of the root mount.
        rootfs_propagation: Propagation,
        /// What is hidden.
        masked_paths: Vec<String>,
        /// What cannot be written.
        readonly_paths: Vec<String>,
        /// SELinux label of the mounts.
        mount_label: String,
        /// Cache and memory bandwidth.
        intel_rdt: IntelRdt,
        /// personality(2).
        personality: Personality,
        /// By clock, as `monotonic` (time_namespaces(7)).
        time_offsets: BTreeMap<String, TimeOffset>,
    }
}

object! {
    /// A namespace (namespaces(7)).
    Namespace {
        /// Which.
        #[serde(rename = "type")]
        kind: NamespaceType,
        ;
        /// A file by which one is joined; if there is none, one is made.
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
    /// A device node or a fifo.
    Device {
        /// Inside.
        path: String,
        /// Which.
        #[serde(rename = "type")]
        kind: DeviceType,
        ;
        /// Major number; a fifo has none.
        major: i64,
        /// Minor number.
        minor: i64,
        /// Permission bits.
        file_mode: u32,
        /// Owner inside.
        uid: u32,
        /// Group inside.
        gid: u32,
    }
}

/// Kinds of devices, by the letters of mknod(1).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum DeviceType {
    /// All; of rules alone.
    #[default]
    #[serde(rename = "a")]
    All,
    /// Block devices.
    #[serde(rename = "b")]
    Block,
    /// Character devices.
    #[serde(rename = "c")]
    Char,
    /// Character devices without buffer: another word for them.
    #[serde(rename = "u")]
    Unbuffered,
    /// Fifos.
    #[serde(rename = "p")]
    Fifo,
}

impl DeviceType {
    /// Its letter.
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
    /// Resource director technology (Documentation/arch/x86/resctrl.rst).
    IntelRdt {
        ;
        /// Class of service.
        #[serde(rename = "closID")]
        clos_id: String,
        /// Line of `schemata` for the L3 cache.
        l3_cache_schema: String,
        /// Line of `schemata` for the memory bandwidth.
        mem_bw_schema: String,
        /// Watch the cache's occupancy.
        #[serde(rename = "enableCMT")]
        enable_cmt: bool,
        /// Watch the memory bandwidth.
        #[serde(rename = "enableMBM")]
        enable_mbm: bool,
    }
}

object! {
    /// personality(2).
    Personality {
        /// What `uname` tells.
        domain: PersonalityDomain,
        ;
        /// None is defined.
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
    /// What a clock is put forward by.
    TimeOffset {
        ;
        /// Seconds.
        secs: i64,
        /// And nanoseconds.
        nanosecs: u32,
    }
}
