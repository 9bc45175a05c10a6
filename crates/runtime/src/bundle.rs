//! OCI bundles: what the engine writes, and what the launcher makes of it.
//!
//! The file on disk is an ordinary `config.json` of the OCI runtime spec. The launcher reads only that, and
//! refuses every field that it does not implement: what is asked for is done or is an error.

use crate::cgroup::devices::{self, Devices};
use crate::rights::Rights;
use crate::{caps, seccomp};
use serde_json::{Value, json};
use std::borrow::Cow;
use std::sync::Arc;

/// What the launcher cannot do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not JSON, or not of the OCI shape.
    #[error("config.json: {0}")]
    Shape(String),
    /// A field that is not implemented.
    #[error("config.json: {0} is not supported by the native runtime yet")]
    Unsupported(String),
    /// The filter of system calls cannot be made.
    #[error("config.json: {0}")]
    Seccomp(#[from] seccomp::Error),
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
    /// Without what keepers before [`crate::wire::CONFINED`] refuse because they do not know it: a pea in a container of such
    /// a keeper gets neither device nodes of its own nor a filter of system calls, as its container has none.
    pub earlier: bool,
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
pub fn text(s: &Settings) -> String {
    // No string of the bundle can be mistaken for it: quotes are escaped in those.
    value(s).to_string().replacen(NO_FILTER, &format!("{FILTER}{}", *seccomp::TEXT), 1)
}

/// As it stands in a bundle, before the profile itself.
const FILTER: &str = "\"seccomp\":";
const NO_FILTER: &str = "\"seccomp\":null";

/// The bundle without its profile of system calls, which [`text`] adds.
fn value(s: &Settings) -> Value {
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
    if !s.earlier {
        linux["resources"]["devices"] = Devices::from(s.privileged).bundle();
        if s.privileged {
            linux["devices"] =
                json!([{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o666}]);
        }
    }
    if !s.privileged {
        linux["uidMappings"] = json!(ids);
        linux["gidMappings"] = json!(ids);
        let masks = MASKED.iter().map(|path| (*path).to_owned()).chain(s.masks.iter().cloned());
        linux["maskedPaths"] = masks.collect();
        if !s.earlier {
            linux["seccomp"] = Value::Null;
        }
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
    /// In order.
    pub nodes: Vec<Node>,
    /// What may be done with which devices, for the reader: the engine has set the rules of the cgroup. `None`: a server
    /// wrote this that knew no rules.
    pub devices: Option<Vec<devices::Allow>>,
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
    "linux.resources.devices.*.allow",
    "linux.resources.devices.*.type",
    "linux.resources.devices.*.major",
    "linux.resources.devices.*.minor",
    "linux.resources.devices.*.access",
    "linux.devices.*.path",
    "linux.devices.*.type",
    "linux.devices.*.major",
    "linux.devices.*.minor",
    "linux.devices.*.fileMode",
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
    let text = str::from_utf8(text).map_err(|e| Error::Shape(e.to_string()))?;
    let garden = text.find(&*seccomp::TEXT).filter(|at| text[..*at].ends_with(FILTER));
    let text = match garden {
        Some(at) => Cow::from([&text[..at], "null", &text[at + seccomp::TEXT.len()..]].concat()),
        None => Cow::from(text),
    };
    let mut value: Value = serde_json::from_str(&text).map_err(|e| Error::Shape(e.to_string()))?;
    // It is the larger half of a bundle, and is read strictly by a reader of its own.
    let filter = value.get_mut("linux").and_then(Value::as_object_mut).and_then(|l| l.remove("seccomp"));
    let filter = match (garden, filter) {
        (Some(_), Some(Value::Null)) => Some(seccomp::compiled()?),
        (_, filter) => {
            filter.map(|filter| seccomp::Profile::read(&filter)?.compile().map(Arc::new)).transpose()?
        }
    };
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
        rights: Rights { seccomp: filter, ..Rights::default() },
        ..Plan::default()
    };
    for mount in spec.mounts().iter().flatten() {
        plan.mounts.push(read_mount(mount)?);
    }
    if let Some(rules) = linux.resources().as_ref().and_then(|r| r.devices().as_ref()) {
        let read =
            devices::read(rules).map_err(|what| Error::Unsupported(format!("{what} in device rules")))?;
        plan.devices = Some(read);
    }
    for device in linux.devices().iter().flatten() {
        plan.nodes.push(read_node(device)?);
    }
    if let Some(process) = spec.process() {
        plan.rights.no_new_privileges = process.no_new_privileges().unwrap_or(false);
        if let Some(set) = process.capabilities().as_ref().and_then(|c| c.bounding().as_ref()) {
            plan.rights.capabilities =
                caps::mask(set.iter().map(|c| format!("CAP_{}", c.to_string().trim_start_matches("CAP_"))))
                    .map_err(|name| Error::Unsupported(format!("capability {name}")))?;
        }
    }
    Ok(plan)
}

fn read_node(device: &oci_spec::runtime::LinuxDevice) -> Result<Node, Error> {
    use oci_spec::runtime::LinuxDeviceType as Kind;
    let path = device.path().to_string_lossy();
    let unsupported = |what: String| Error::Unsupported(format!("{what} of the device {path:?}"));
    let name =
        path.strip_prefix("/dev/").filter(|name| !matches!(*name, "" | "." | "..") && !name.contains('/'));
    let name = name.ok_or_else(|| unsupported("the path".to_owned()))?.to_owned();
    let block = match device.typ() {
        Kind::B => true,
        Kind::C => false,
        other => return Err(unsupported(format!("the type {}", other.as_str()))),
    };
    let number = |given: i64, max: u32| {
        let within = u32::try_from(given).ok().filter(|n| *n <= max);
        within.ok_or_else(|| unsupported(format!("the number {given}")))
    };
    let mode = device.file_mode().unwrap_or(0o666);
    if mode & !0o777 != 0 {
        return Err(unsupported(format!("the mode {mode:o}")));
    }
    let (major, minor) =
        (number(device.major(), devices::MAX_MAJOR)?, number(device.minor(), devices::MAX_MINOR)?);
    Ok(Node { name, block, major, minor, mode })
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

    fn config(settings: &Settings) -> Value {
        serde_json::from_str(&text(settings)).unwrap()
    }

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
        assert_eq!(plan.rights.capabilities, caps::UNPRIVILEGED);
        assert_eq!((plan.root_ids, plan.tty_gid), ((4_294_967_294, 4_294_967_294), 5));
        assert_eq!(plan.hostname.as_deref(), Some("h"));
        assert!(plan.user && plan.masked.contains(&"/proc/keys".to_owned()));
        let bind = plan.mounts.last().unwrap();
        assert!(bind.kind == "bind" && bind.readonly && bind.destination == "/dst");
    }

    #[test]
    fn devices_are_written_and_read() {
        let read = |settings: &Settings| plan(config(settings).to_string().as_bytes()).unwrap();
        let unprivileged = read(&settings());
        assert_eq!((unprivileged.devices, unprivileged.nodes), (Some(Devices::Unprivileged.rules()), vec![]));
        let privileged = Settings { privileged: true, ..settings() };
        let fuse = Node { name: "fuse".into(), block: false, major: 10, minor: 229, mode: 0o666 };
        assert_eq!(read(&privileged).devices, Some(Devices::Privileged.rules()));
        assert_eq!(read(&privileged).nodes, [fuse]);
        let earlier = Settings { earlier: true, ..privileged };
        assert_eq!((read(&earlier).devices, read(&earlier).nodes), (None, vec![]));
        // As recorded of a privileged container, word for word.
        let recorded = json!([
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "major": -1, "minor": -1, "access": "m"},
            {"allow": true, "type": "b", "major": -1, "minor": -1, "access": "m"},
            {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
            {"allow": true, "type": "c", "major": 1, "minor": 8, "access": "rwm"},
            {"allow": true, "type": "c", "major": 1, "minor": 7, "access": "rwm"},
            {"allow": true, "type": "c", "major": 5, "minor": 0, "access": "rwm"},
            {"allow": true, "type": "c", "major": 1, "minor": 5, "access": "rwm"},
            {"allow": true, "type": "c", "major": 1, "minor": 9, "access": "rwm"},
            {"allow": true, "type": "c", "major": 136, "minor": -1, "access": "rwm"},
            {"allow": true, "type": "c", "major": 5, "minor": 2, "access": "rwm"},
            {"allow": true, "type": "c", "major": 10, "minor": 200, "access": "rwm"},
            {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rwm"},
        ]);
        let bundle = config(&Settings { privileged: true, ..settings() });
        assert_eq!(bundle["linux"]["resources"]["devices"], recorded);
    }

    #[test]
    fn devices_that_cannot_be_made_or_enforced_are_refused() {
        let node = |key: &str, value: Value| {
            let mut bundle = config(&Settings { privileged: true, ..settings() });
            bundle["linux"]["devices"][0][key] = value;
            plan(bundle.to_string().as_bytes())
        };
        assert!(node("path", json!("/dev/other")).is_ok() && node("type", json!("b")).is_ok());
        for path in ["/dev/", "/dev/..", "/dev/a/b", "/dev/../etc/x", "/etc/x", "fuse", "", "/dev/./x"] {
            assert!(node("path", json!(path)).is_err(), "{path}");
        }
        for kind in [json!("a"), json!("p"), json!("u"), json!("x"), json!(1), json!(null)] {
            assert!(node("type", kind.clone()).is_err(), "{kind}");
        }
        for number in [json!(-1), json!(4096), json!(i64::MIN), json!(1.5), json!("10")] {
            assert!(node("major", number.clone()).is_err(), "{number}");
        }
        for mode in [json!(0o4777), json!(-1), json!("666")] {
            assert!(node("fileMode", mode.clone()).is_err(), "{mode}");
        }
        for key in ["uid", "gid", "note"] {
            assert!(node(key, json!(0)).is_err(), "{key}");
        }
        let rules = |rules: Value| {
            let mut bundle = config(&settings());
            bundle["linux"]["resources"]["devices"] = rules;
            plan(bundle.to_string().as_bytes())
        };
        let error = rules(json!([{"allow": true, "access": "rwm"}])).unwrap_err().to_string();
        assert!(error.contains("does not begin by denying everything in device rules"), "{error}");
        assert!(rules(json!([{"allow": false, "access": "rwm", "note": 1}])).is_err());
        assert!(rules(json!([])).is_err() && rules(json!({})).is_err() && rules(json!(1)).is_err());
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
    fn all_but_privileged_bundles_have_gardens_filter() {
        let filter = |privileged, joins| {
            let settings = Settings { privileged, joins, ..settings() };
            plan(text(&settings).as_bytes()).unwrap().rights.seccomp
        };
        let garden = seccomp::compiled().unwrap();
        assert_eq!(filter(false, None).as_ref(), Some(&garden));
        assert_eq!(filter(false, Some(7)), Some(garden));
        assert_eq!((filter(true, None), filter(true, Some(7))), (None, None));
        // The same in another order, and one that is not Garden's, are understood as well.
        let mut bundle = config(&settings());
        assert_eq!(bundle["linux"]["seccomp"], seccomp::garden());
        let pretty = serde_json::to_string_pretty(&bundle).unwrap();
        assert_eq!(plan(pretty.as_bytes()).unwrap().rights.seccomp, filter(false, None));
        bundle["linux"]["seccomp"] =
            json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"]});
        let other = plan(bundle.to_string().as_bytes()).unwrap().rights.seccomp;
        assert!(other.is_some() && other != filter(false, None));
        // A place where it does not belong, or none at all, is an error and not a process without a filter.
        bundle["linux"]["seccomp"] = Value::Null;
        assert!(plan(bundle.to_string().as_bytes()).is_err());
        bundle["seccomp"] = seccomp::garden();
        bundle["linux"].as_object_mut().unwrap().remove("seccomp");
        assert!(plan(bundle.to_string().as_bytes()).is_err());
        // What a client writes cannot be mistaken for it.
        let env = vec![format!("A={NO_FILTER}"), format!("B={FILTER}{}", *seccomp::TEXT)];
        let bundle = config(&Settings { env: env.clone(), ..settings() });
        assert_eq!(bundle["process"]["env"], json!(env));
        assert_eq!(bundle["linux"]["seccomp"], seccomp::garden());
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
    fn a_field_that_is_not_implemented_is_an_error() {
        for (pointer, value) in [
            ("seccomp.listenerPath", json!("/agent.sock")),
            ("readonlyPaths", json!(["/proc/sys"])),
            ("sysctl", json!({"net.ipv4.ip_forward": "1"})),
        ] {
            let mut bundle = config(&settings());
            *pointer.split('.').fold(&mut bundle["linux"], |at, key| &mut at[key]) = value;
            let error = plan(bundle.to_string().as_bytes()).unwrap_err().to_string();
            assert!(error.contains(&format!("linux.{pointer}")), "{error}");
        }
        let mut bundle = config(&settings());
        bundle["mounts"][0]["options"] = json!(["rbind"]);
        assert!(plan(bundle.to_string().as_bytes()).unwrap_err().to_string().contains("rbind"));
        assert!(plan(b"{").is_err());
    }
}
