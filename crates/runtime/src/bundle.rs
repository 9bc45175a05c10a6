//! OCI bundles: what the engine writes, and what the launcher makes of it.
//!
//! The file on disk is an ordinary `config.json` of the OCI runtime spec. The launcher reads only that, and
//! refuses every field that it does not implement: what is asked for is done or is an error.

use crate::caps;
use serde_json::{Value, json};

/// What the launcher cannot do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not JSON, or not of the OCI shape.
    #[error("config.json: {0}")]
    Shape(String),
    /// A field that is not implemented.
    #[error("config.json: {0} is not supported by the native runtime yet")]
    Unsupported(String),
}

/// What differs from one bundle to another.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Container root is host root.
    pub privileged: bool,
    /// Host ids of the mapping, `(inside, outside, size)`; not used when privileged.
    pub mapping: Vec<(u32, u32, u32)>,
    /// UTS name; `None` for a pea, which shares its container's.
    pub hostname: Option<String>,
    /// Where the container's namespaces are found; for a pea.
    pub joins: Option<i32>,
    /// Environment of pid 1 (kept for the record: processes get theirs with each run).
    pub env: Vec<String>,
    /// Host path of the root file system's upper directory, for the reader: the mount itself is detached.
    pub rootfs: String,
    /// `(host path, path inside, writable)`.
    pub binds: Vec<(String, String, bool)>,
    /// Path of the cgroup below each hierarchy.
    pub cgroups_path: String,
    /// Bytes; zero: none.
    pub memory_bytes: u64,
    /// v1 shares; zero: none.
    pub cpu_shares: u64,
    /// Processes; zero: none.
    pub pids: u64,
    /// `no_new_privs`.
    pub no_new_privileges: bool,
    /// Bytes that /dev/shm may hold; zero: as many as the kernel gives a tmpfs, half of the memory.
    pub shm_bytes: u64,
    /// Paths to be masked beside [`MASKED`], which depend on the host; see [`host_masks`].
    pub masks: Vec<String>,
}

/// Paths of /sys that tell the host's thermal state, one for each processor that has it: as runc masks them since 1.3.
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

/// Those of the recorded bundles, and what runc hides since 1.2 because it tells of the host and its neighbours.
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

/// The bundle as Garden writes it (mounts, masks, capability sets and namespaces of the recorded bundles).
pub fn config(s: &Settings) -> Value {
    let mask = if s.privileged { caps::PRIVILEGED } else { caps::UNPRIVILEGED };
    let capabilities = caps::names(mask);
    let mount = |destination: &str, kind: &str, options: &[&str]| json!({"destination": destination, "type": kind, "source": kind, "options": options});
    let size = format!("size={}", s.shm_bytes);
    let mut shm = vec!["noexec", "nosuid", "nodev", "mode=1777"];
    if s.shm_bytes > 0 {
        shm.push(&size);
    }
    let mut mounts = vec![
        mount("/sys", "sysfs", &["noexec", "nosuid", "nodev", "ro"]),
        mount("/dev", "tmpfs", &["noexec", "strictatime", "mode=755"]),
        mount("/dev/shm", "tmpfs", &shm),
        mount("/dev/mqueue", "mqueue", &["noexec", "nosuid", "nodev"]),
        mount(
            "/dev/pts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "gid=5", "ptmxmode=0666", "mode=0620"],
        ),
        mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
    ];
    if !s.privileged {
        mounts.push(mount("/sys/fs/cgroup", "cgroup", &["ro", "nosuid", "noexec", "nodev"]));
    }
    for (source, destination, writable) in &s.binds {
        let mode = if *writable { "rw" } else { "ro" };
        mounts.push(
            json!({"destination": destination, "type": "bind", "source": source, "options": ["bind", mode]}),
        );
    }
    let mut namespaces = Vec::new();
    for (kind, file) in [("network", "net"), ("pid", "pid"), ("uts", "uts"), ("ipc", "ipc"), ("user", "user")]
    {
        if kind == "user" && s.privileged {
            continue;
        }
        namespaces.push(match s.joins {
            Some(pid) => json!({"type": kind, "path": format!("/proc/{pid}/ns/{file}")}),
            None => json!({"type": kind}),
        });
    }
    namespaces.push(json!({"type": "mount"}));
    if s.joins.is_none() {
        namespaces.push(json!({"type": "cgroup"}));
    }
    let ids: Vec<Value> = s
        .mapping
        .iter()
        .map(|(inside, outside, size)| json!({"containerID": inside, "hostID": outside, "size": size}))
        .collect();
    let mut linux = json!({
        "resources": {
            "memory": {"limit": s.memory_bytes, "swap": s.memory_bytes},
            "cpu": {"shares": s.cpu_shares},
            "pids": {"limit": s.pids},
        },
        "cgroupsPath": s.cgroups_path,
        "namespaces": namespaces,
        "rootfsPropagation": "private",
    });
    if !s.privileged {
        linux["uidMappings"] = json!(ids);
        linux["gidMappings"] = json!(ids);
        let masks = MASKED.iter().map(|path| (*path).to_owned()).chain(s.masks.iter().cloned());
        linux["maskedPaths"] = masks.collect();
    }
    let mut config = json!({
        "ociVersion": "1.0.0",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": ["/tmp/garden-init"],
            "env": s.env,
            "cwd": "/",
            "capabilities": {
                "bounding": capabilities,
                "effective": capabilities,
                "inheritable": capabilities,
                "permitted": capabilities,
            },
            "noNewPrivileges": s.no_new_privileges,
        },
        "root": {"path": s.rootfs},
        "mounts": mounts,
        "linux": linux,
    });
    if let Some(hostname) = &s.hostname {
        config["hostname"] = json!(hostname);
    }
    config
}

/// A file system to mount, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
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

/// What the launcher does, read from a `config.json`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// UTS name to set.
    pub hostname: Option<String>,
    /// In order.
    pub mounts: Vec<Mount>,
    /// Hidden paths.
    pub masked: Vec<String>,
    /// Bounding, inheritable, permitted and effective set of pid 1.
    pub capabilities: u64,
    /// `PR_SET_NO_NEW_PRIVS`.
    pub no_new_privileges: bool,
    /// Host ids of container root.
    pub root_ids: (u32, u32),
    /// Host id of the container's group 5, `tty`.
    pub tty_gid: u32,
    /// There is a user namespace.
    pub user: bool,
}

/// Every key that the launcher, or the engine before it, acts upon. A `*` stands for array elements.
const KNOWN: &[&str] = &[
    "ociVersion",
    "hostname",
    "root.path",
    "process.user.uid",
    "process.user.gid",
    "process.args.*",
    "process.env.*",
    "process.cwd",
    "process.capabilities.bounding.*",
    "process.capabilities.effective.*",
    "process.capabilities.inheritable.*",
    "process.capabilities.permitted.*",
    "process.noNewPrivileges",
    "mounts.*.destination",
    "mounts.*.type",
    "mounts.*.source",
    "mounts.*.options.*",
    "linux.uidMappings.*.containerID",
    "linux.uidMappings.*.hostID",
    "linux.uidMappings.*.size",
    "linux.gidMappings.*.containerID",
    "linux.gidMappings.*.hostID",
    "linux.gidMappings.*.size",
    "linux.resources.memory.limit",
    "linux.resources.memory.swap",
    "linux.resources.cpu.shares",
    "linux.resources.pids.limit",
    "linux.cgroupsPath",
    "linux.namespaces.*.type",
    "linux.namespaces.*.path",
    "linux.rootfsPropagation",
    "linux.maskedPaths.*",
];

fn unknown(value: &Value, path: &str) -> Option<String> {
    let join = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    match value {
        Value::Object(map) => map.iter().find_map(|(key, value)| unknown(value, &join(key))),
        Value::Array(items) => items.iter().find_map(|item| unknown(item, &join("*"))),
        _ => (!KNOWN.contains(&path)).then(|| path.to_owned()),
    }
}

/// The group of terminals, by convention.
const TTY: u32 = 5;

/// Read a `config.json`.
///
/// # Errors
/// When it is malformed, or asks for something that is not implemented.
pub fn plan(text: &[u8]) -> Result<Plan, Error> {
    let value: Value = serde_json::from_slice(text).map_err(|e| Error::Shape(e.to_string()))?;
    if let Some(path) = unknown(&value, "") {
        return Err(Error::Unsupported(path));
    }
    let spec: oci_spec::runtime::Spec =
        serde_json::from_value(value).map_err(|e| Error::Shape(e.to_string()))?;
    let linux = spec.linux().as_ref().ok_or_else(|| Error::Shape("no linux section".into()))?;
    let root = |maps: &Option<Vec<oci_spec::runtime::LinuxIdMapping>>| {
        maps.iter()
            .flatten()
            .find(|m| m.container_id() == 0)
            .map_or(0, oci_spec::runtime::LinuxIdMapping::host_id)
    };
    let gids = linux.gid_mappings().iter().flatten();
    let tty =
        gids.filter_map(|m| Some((m, TTY.checked_sub(m.container_id())?))).find(|(m, at)| *at < m.size());
    let mut plan = Plan {
        hostname: spec.hostname().clone(),
        masked: linux.masked_paths().clone().unwrap_or_default(),
        root_ids: (root(linux.uid_mappings()), root(linux.gid_mappings())),
        tty_gid: tty.map_or(TTY, |(m, at)| m.host_id() + at),
        user: linux.uid_mappings().as_ref().is_some_and(|m| !m.is_empty()),
        ..Plan::default()
    };
    for mount in spec.mounts().iter().flatten() {
        plan.mounts.push(read_mount(mount)?);
    }
    if let Some(process) = spec.process() {
        plan.no_new_privileges = process.no_new_privileges().unwrap_or(false);
        if let Some(set) = process.capabilities().as_ref().and_then(|c| c.bounding().as_ref()) {
            plan.capabilities =
                caps::mask(set.iter().map(|c| format!("CAP_{}", c.to_string().trim_start_matches("CAP_"))))
                    .map_err(|name| Error::Unsupported(format!("capability {name}")))?;
        }
    }
    Ok(plan)
}

fn read_mount(mount: &oci_spec::runtime::Mount) -> Result<Mount, Error> {
    let destination = mount.destination().to_string_lossy().into_owned();
    let mut read = Mount {
        kind: mount.typ().clone().unwrap_or_default(),
        destination,
        readonly: false,
        noexec: false,
        nosuid: false,
        nodev: false,
        data: Vec::new(),
    };
    let kinds = ["proc", "sysfs", "tmpfs", "mqueue", "devpts", "cgroup", "bind"];
    if !kinds.contains(&read.kind.as_str()) {
        return Err(Error::Unsupported(format!("a mount of type {:?}", read.kind)));
    }
    for option in mount.options().iter().flatten() {
        match option.as_str() {
            "ro" => read.readonly = true,
            "rw" | "bind" | "strictatime" | "newinstance" => {}
            "noexec" => read.noexec = true,
            "nosuid" => read.nosuid = true,
            "nodev" => read.nodev = true,
            other => match other.split_once('=') {
                Some((key @ ("mode" | "gid" | "ptmxmode" | "size"), value)) => {
                    read.data.push((key.to_owned(), value.to_owned()));
                }
                _ => return Err(Error::Unsupported(format!("mount option {other:?}"))),
            },
        }
    }
    Ok(read)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings {
            mapping: vec![(0, 4_294_967_294, 1), (1, 1, 4_294_967_293)],
            hostname: Some("h".into()),
            binds: vec![("/src".into(), "/dst".into(), false)],
            ..Settings::default()
        }
    }

    #[test]
    fn what_the_engine_writes_the_launcher_reads() {
        let plan = plan(config(&settings()).to_string().as_bytes()).unwrap();
        assert_eq!(plan.capabilities, caps::UNPRIVILEGED);
        assert_eq!((plan.root_ids, plan.tty_gid), ((4_294_967_294, 4_294_967_294), 5));
        assert_eq!(plan.hostname.as_deref(), Some("h"));
        assert!(plan.user && plan.masked.contains(&"/proc/keys".to_owned()));
        let bind = plan.mounts.last().unwrap();
        assert!(bind.kind == "bind" && bind.readonly && bind.destination == "/dst");
    }

    #[test]
    fn ids_of_a_range_of_its_own() {
        let settings = Settings { mapping: vec![(0, 100_000, 65_536)], ..settings() };
        let plan = plan(config(&settings).to_string().as_bytes()).unwrap();
        assert_eq!((plan.root_ids, plan.tty_gid), ((100_000, 100_000), 100_005));
        let privileged = Settings { privileged: true, ..settings };
        let plan = super::plan(config(&privileged).to_string().as_bytes()).unwrap();
        assert_eq!((plan.root_ids, plan.tty_gid), ((0, 0), 5));
    }

    #[test]
    fn processors_that_tell_their_temperature_are_masked() {
        let sysfs = tempfile::tempdir().unwrap();
        for dir in ["cpu0/thermal_throttle", "cpu1/thermal_throttle", "cpu2/cache", "cpufreq"] {
            std::fs::create_dir_all(sysfs.path().join("devices/system/cpu").join(dir)).unwrap();
        }
        let masks = host_masks(sysfs.path());
        let of = |n: u32| format!("/sys/devices/system/cpu/cpu{n}/thermal_throttle");
        assert_eq!(masks, [of(0), of(1)]);
        let bundle = config(&Settings { masks, shm_bytes: 4096, ..settings() });
        let plan = plan(bundle.to_string().as_bytes()).unwrap();
        assert!(plan.masked.contains(&of(1)) && plan.masked.contains(&"/proc/interrupts".to_owned()));
        let shm = plan.mounts.iter().find(|mount| mount.destination == "/dev/shm").unwrap();
        assert!(shm.data.contains(&("size".to_owned(), "4096".to_owned())));
    }

    #[test]
    fn a_field_that_is_not_implemented_is_an_error() {
        for (pointer, value) in [
            ("seccomp", json!({"defaultAction": "SCMP_ACT_ERRNO"})),
            ("readonlyPaths", json!(["/proc/sys"])),
            ("sysctl", json!({"net.ipv4.ip_forward": "1"})),
        ] {
            let mut bundle = config(&settings());
            bundle["linux"][pointer] = value;
            let error = plan(bundle.to_string().as_bytes()).unwrap_err().to_string();
            assert!(error.contains(&format!("linux.{pointer}")), "{error}");
        }
        let mut bundle = config(&settings());
        bundle["mounts"][0]["options"] = json!(["rbind"]);
        assert!(plan(bundle.to_string().as_bytes()).unwrap_err().to_string().contains("rbind"));
        assert!(plan(b"{").is_err());
    }
}
