//! Writes the engine's bundles.

use super::{DIRECTORIES, INIT};
use crate::cgroup::devices::Devices;
use crate::oci::{
    Capabilities, Cpu, Device, DeviceType, IdMapping, Linux, Memory, Mount, Namespace, NamespaceType, Pids,
    Process, Propagation, Resources, Root, Seccomp, Spec, User,
};
use crate::{caps, seccomp};
use std::collections::BTreeMap;

/// The values in which bundles differ.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Whether container root is host root.
    pub privileged: bool,
    /// The id mapping, `(inside, outside, size)`; not used when privileged.
    pub mapping: Vec<(u32, u32, u32)>,
    /// UTS name; `None` for a pea, which shares its container's.
    pub hostname: Option<String>,
    /// Of a pea: the pid of the process whose namespaces it joins.
    pub joins: Option<i32>,
    /// Environment of pid 1 (for the record only: each process gets its environment with its run).
    pub env: Vec<String>,
    /// Host path of the root file system's upper directory, for human readers: the mount itself is detached.
    pub rootfs: String,
    /// What is mounted besides the file systems of every container, in order.
    pub extra: Vec<Extra>,
    /// See [`super::Plan::directories`].
    pub directories: Vec<String>,
    /// Path of the cgroup below each hierarchy.
    pub cgroups_path: String,
    /// Memory limit in bytes; zero: none.
    pub memory_bytes: u64,
    /// CPU shares as of cgroup v1; zero: none.
    pub cpu_shares: u64,
    /// Limit of processes; zero: none.
    pub pids: u64,
    /// `no_new_privs`.
    pub no_new_privileges: bool,
    /// Leaves out what keepers before [`crate::wire::Feature::Confinement`] do not know and so refuse: a pea in a
    /// container of such a keeper gets neither device nodes of its own nor a seccomp filter, as its container has
    /// none.
    pub earlier: bool,
    /// Size limit of /dev/shm in bytes; zero: the kernel's default for a tmpfs, half of the memory.
    pub shm_bytes: u64,
    /// Paths that are masked beside [`MASKED`] and depend on the host; see [`host_masks`].
    pub masks: Vec<String>,
}

/// A mount besides those of every container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Extra {
    /// A mount that is passed as a descriptor.
    Bind {
        /// Its path on the host, for human readers.
        source: String,
        /// Where it is in the container.
        destination: String,
        /// Whether the container may write.
        writable: bool,
    },
    /// A file system in memory.
    Tmpfs {
        /// Where it is in the container.
        destination: String,
        /// The most bytes of its files.
        bytes: u64,
        /// The permission bits of its root directory.
        mode: u32,
        /// Whether programs in it can be executed.
        exec: bool,
    },
}

/// So many bytes of a tmpfs allow it one inode, which takes about as many of the kernel's memory: without a bound empty
/// files could take what the limit of bytes is to prevent.
const BYTES_OF_INODE: u64 = 1024;
/// The least inodes of a tmpfs.
const FEWEST_INODES: u64 = 64;

/// Paths of /sys that reveal the host's thermal state, one for each processor that has it: runc has masked them since
/// 1.3.
pub fn host_masks(sysfs: &std::path::Path) -> Vec<String> {
    let throttle = |entry: std::fs::DirEntry| {
        let path = entry.path().join("thermal_throttle");
        let inside = std::path::Path::new("/sys").join(path.strip_prefix(sysfs).ok()?);
        path.is_dir().then(|| inside.to_string_lossy().into_owned())
    };
    let processors = std::fs::read_dir(sysfs.join("devices/system/cpu"));
    let mut masks: Vec<String> = processors.into_iter().flatten().flatten().filter_map(throttle).collect();
    masks.sort_unstable();
    masks
}

/// Masked paths: those of the recorded bundles, and those that runc masks since 1.2 because they reveal the host and
/// its neighbours.
const MASKED: [&str; 12] = [
    "/proc/kcore",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/keys",
    "/sys/firmware",
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/sys/devices/virtual/powercap",
];

/// The text before the seccomp profile in a bundle.
pub(super) const FILTER: &str = "\"seccomp\":";
/// Stands for Garden's profile, whose text is kept ready.
pub(super) const STAND_IN: &str = "{\"defaultAction\":\"\"}";

/// The bundle as Garden writes it (mounts, masks, capability sets and namespaces of the recorded bundles).
///
/// # Panics
/// Never: all keys are strings.
pub fn text(s: &Settings) -> String {
    let text = serde_json::to_string(&spec(s)).expect("a bundle has no keys but strings");
    // No string of the bundle can contain this text: quotes are escaped in strings.
    text.replacen(&format!("{FILTER}{STAND_IN}"), &format!("{FILTER}{}", *seccomp::TEXT), 1)
}

fn strings(list: &[&str]) -> Vec<String> {
    list.iter().map(|text| (*text).to_owned()).collect()
}

/// The bundle with the stand-in for its seccomp profile.
fn spec(s: &Settings) -> Spec {
    let mask = if s.privileged { caps::PRIVILEGED } else { caps::UNPRIVILEGED };
    let capabilities = Some(strings(&caps::names(mask)));
    let process = Process {
        user: Some(User { uid: 0, gid: 0, ..User::default() }),
        args: Some(strings(&[INIT])),
        env: Some(s.env.clone()),
        cwd: "/".to_owned(),
        capabilities: Some(Capabilities {
            bounding: capabilities.clone(),
            effective: capabilities.clone(),
            inheritable: capabilities.clone(),
            permitted: capabilities,
            ambient: None,
        }),
        no_new_privileges: Some(s.no_new_privileges),
        ..Process::default()
    };
    Spec {
        oci_version: "1.0.0".to_owned(),
        process: Some(process),
        root: Some(Root { path: s.rootfs.clone(), readonly: None }),
        hostname: s.hostname.clone(),
        mounts: Some(mounts(s)),
        linux: Some(linux(s)),
        annotations: directories(s),
        ..Spec::default()
    }
}

fn directories(s: &Settings) -> Option<BTreeMap<String, String>> {
    let list = serde_json::to_string(&s.directories).ok().filter(|_| !s.directories.is_empty())?;
    Some(BTreeMap::from([(DIRECTORIES.to_owned(), list)]))
}

fn mounts(s: &Settings) -> Vec<Mount> {
    let mount = |destination: &str, kind: &str, options: &[&str]| Mount {
        destination: destination.to_owned(),
        kind: Some(kind.to_owned()),
        source: Some(kind.to_owned()),
        options: Some(strings(options)),
        ..Mount::default()
    };
    let size = format!("size={}", s.shm_bytes);
    let mut shm = vec!["noexec", "nosuid", "nodev", "mode=1777"];
    if s.shm_bytes > 0 {
        shm.push(&size);
    }
    let mut mounts = vec![
        mount("/sys", "sysfs", &["noexec", "nosuid", "nodev", "ro"]),
        mount("/dev", "tmpfs", &super::mounts::DEV),
        mount("/dev/shm", "tmpfs", &shm),
        mount("/dev/mqueue", "mqueue", &["noexec", "nosuid", "nodev"]),
        mount("/dev/pts", "devpts", &super::mounts::PTS),
        mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
    ];
    if !s.privileged {
        mounts.push(mount("/sys/fs/cgroup", "cgroup", &["ro", "nosuid", "noexec", "nodev"]));
    }
    mounts.extend(s.extra.iter().map(|extra| match extra {
        Extra::Bind { source, destination, writable } => {
            let mode = if *writable { "rw" } else { "ro" };
            Mount { source: Some(source.clone()), ..mount(destination, "bind", &["bind", mode]) }
        }
        Extra::Tmpfs { destination, bytes, mode, exec } => {
            let inodes = (bytes / BYTES_OF_INODE).max(FEWEST_INODES);
            let (mode, size) = (format!("mode={mode:o}"), format!("size={bytes}"));
            let inodes = format!("nr_inodes={inodes}");
            let mut options = vec!["nosuid", "nodev", &*mode, &*size, &*inodes];
            options.extend((!exec).then_some("noexec"));
            mount(destination, "tmpfs", &options)
        }
    }));
    mounts
}

fn namespaces(s: &Settings) -> Vec<Namespace> {
    use NamespaceType::{Cgroup, Ipc, Mount, Network, Pid, User, Uts};
    let mut namespaces = Vec::new();
    for (kind, file) in [(Network, "net"), (Pid, "pid"), (Uts, "uts"), (Ipc, "ipc"), (User, "user")] {
        if kind != User || !s.privileged {
            let path = s.joins.map(|pid| format!("/proc/{pid}/ns/{file}"));
            namespaces.push(Namespace { kind, path });
        }
    }
    namespaces.push(Namespace { kind: Mount, path: None });
    if s.joins.is_none() {
        namespaces.push(Namespace { kind: Cgroup, path: None });
    }
    namespaces
}

fn linux(s: &Settings) -> Linux {
    let bytes = i64::try_from(s.memory_bytes).unwrap_or(i64::MAX);
    let resources = Resources {
        memory: Some(Memory { limit: Some(bytes), swap: Some(bytes), ..Memory::default() }),
        cpu: Some(Cpu { shares: Some(s.cpu_shares), ..Cpu::default() }),
        pids: Some(Pids { limit: i64::try_from(s.pids).unwrap_or(i64::MAX) }),
        devices: (!s.earlier).then(|| Devices::from(s.privileged).bundle()),
        ..Resources::default()
    };
    let mut linux = Linux {
        resources: Some(resources),
        cgroups_path: Some(s.cgroups_path.clone()),
        namespaces: Some(namespaces(s)),
        rootfs_propagation: Some(Propagation::Private),
        ..Linux::default()
    };
    if s.privileged && !s.earlier {
        linux.devices = Some(vec![Device {
            path: "/dev/fuse".to_owned(),
            kind: DeviceType::Char,
            major: Some(10),
            minor: Some(229),
            file_mode: Some(0o666),
            ..Device::default()
        }]);
    }
    if !s.privileged {
        let range = |(inside, outside, size): &(u32, u32, u32)| IdMapping {
            container_id: *inside,
            host_id: *outside,
            size: *size,
        };
        let ids: Vec<IdMapping> = s.mapping.iter().map(range).collect();
        (linux.uid_mappings, linux.gid_mappings) = (Some(ids.clone()), Some(ids));
        linux.masked_paths = Some([strings(&MASKED), s.masks.clone()].concat());
        linux.seccomp = (!s.earlier).then(Seccomp::default);
    }
    linux
}
