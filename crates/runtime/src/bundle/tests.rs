use super::*;
use crate::caps;
use crate::cgroup::devices::Devices;
use serde_json::{Value, json};

pub(super) fn config(settings: &Settings) -> Value {
    serde_json::from_str(&text(settings)).unwrap()
}

fn bind(source: &str, destination: &str, writable: bool) -> Extra {
    Extra::Bind { source: source.into(), destination: destination.into(), writable }
}

pub(super) fn settings() -> Settings {
    Settings {
        cgroups_path: "/garden/id".into(),
        mapping: vec![(0, 4_294_967_294, 1), (1, 1, 4_294_967_293)],
        hostname: Some("h".into()),
        extra: vec![bind("/src", "/dst", false)],
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
fn file_systems_in_memory_are_bounded_and_in_order() {
    let tmpfs = |destination: &str, bytes, exec| Extra::Tmpfs {
        destination: destination.into(),
        bytes,
        mode: 0o1777,
        exec,
    };
    let extra = vec![bind("/src", "/a", true), tmpfs("/a/b", 1 << 20, false), tmpfs("/c", 1, true)];
    let directories = vec!["/data".to_owned(), "/var/\"x\"".to_owned()];
    let settings = Settings { extra, directories: directories.clone(), ..settings() };
    let plan = plan(text(&settings).as_bytes()).unwrap();
    assert_eq!(plan.directories, directories);
    let [first, second, third] = plan.mounts.last_chunk().unwrap();
    assert_eq!((first.destination.as_str(), second.destination.as_str()), ("/a", "/a/b"));
    let option = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let data = [option("mode", "1777"), option("size", "1048576"), option("nr_inodes", "1024")];
    assert!(second.data == data && second.nosuid && second.nodev && second.noexec);
    assert!(third.data[2] == option("nr_inodes", "64") && third.nosuid && third.nodev && !third.noexec);
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
    // Recorded from a privileged container, verbatim.
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
    assert!(
        error.contains("linux.resources.devices: a list that does not begin by denying everything"),
        "{error}"
    );
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
    // The same profile with its keys in another order, and a profile that is not Garden's, are parsed as well.
    let mut bundle = config(&settings());
    assert_eq!(bundle["linux"]["seccomp"], seccomp::garden());
    let pretty = serde_json::to_string_pretty(&bundle).unwrap();
    assert_eq!(plan(pretty.as_bytes()).unwrap().rights.seccomp, filter(false, None));
    bundle["linux"]["seccomp"] =
        json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"]});
    let other = plan(bundle.to_string().as_bytes()).unwrap().rights.seccomp;
    assert!(other.is_some() && other != filter(false, None));
    // A profile in the wrong place, or none at all, is an error and does not result in a process without a filter.
    bundle["linux"]["seccomp"] = Value::Null;
    assert!(plan(bundle.to_string().as_bytes()).is_err());
    bundle["seccomp"] = seccomp::garden();
    bundle["linux"].as_object_mut().unwrap().remove("seccomp");
    assert!(plan(bundle.to_string().as_bytes()).is_err());
    // A client's own text is not taken for the profile.
    let env = vec![format!("A={FILTER}{STAND_IN}"), format!("B={FILTER}{}", *seccomp::TEXT)];
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

/// The bundle of a container as servers have written it since the first version, except for device rules and the
/// seccomp filter, which were added later. Keepers of all versions accept it.
fn written() -> Value {
    let sets = caps::names(caps::UNPRIVILEGED);
    let mount = |at: &str, kind: &str, options: &[&str]| json!({"destination": at, "type": kind, "source": kind, "options": options});
    let ids = json!([
        {"containerID": 0, "hostID": 4_294_967_294_u32, "size": 1},
        {"containerID": 1, "hostID": 1, "size": 4_294_967_293_u32},
    ]);
    json!({
        "ociVersion": "1.0.0",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": ["/tmp/garden-init"],
            "env": ["A=B"],
            "cwd": "/",
            "capabilities": {"bounding": sets, "effective": sets, "inheritable": sets, "permitted": sets},
            "noNewPrivileges": true,
        },
        "root": {"path": "/store/id"},
        "hostname": "h",
        "mounts": [
            mount("/sys", "sysfs", &["noexec", "nosuid", "nodev", "ro"]),
            mount("/dev", "tmpfs", &["noexec", "strictatime", "mode=755"]),
            mount("/dev/shm", "tmpfs", &["noexec", "nosuid", "nodev", "mode=1777"]),
            mount("/dev/mqueue", "mqueue", &["noexec", "nosuid", "nodev"]),
            mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "gid=5", "ptmxmode=0666", "mode=0620"]),
            mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
            mount("/sys/fs/cgroup", "cgroup", &["ro", "nosuid", "noexec", "nodev"]),
            {"destination": "/dst", "type": "bind", "source": "/src", "options": ["bind", "ro"]},
            {"destination": "/etc/hosts", "type": "bind", "source": "/run/hosts", "options": ["bind", "rw"]},
        ],
        "linux": {
            "resources": {
                "memory": {"limit": 1_048_576, "swap": 1_048_576},
                "cpu": {"shares": 7},
                "pids": {"limit": 9},
            },
            "cgroupsPath": "/garden/id",
            "namespaces": [
                {"type": "network"},
                {"type": "pid"},
                {"type": "uts"},
                {"type": "ipc"},
                {"type": "user"},
                {"type": "mount"},
                {"type": "cgroup"},
            ],
            "rootfsPropagation": "private",
            "uidMappings": ids,
            "gidMappings": ids,
            "maskedPaths": [
                "/proc/kcore", "/proc/latency_stats", "/proc/sched_debug", "/proc/scsi", "/proc/timer_list",
                "/proc/timer_stats", "/proc/keys", "/sys/firmware", "/proc/acpi", "/proc/asound", "/proc/interrupts",
                "/sys/devices/virtual/powercap",
            ],
        },
    })
}

#[test]
fn bundles_are_those_that_have_always_been_written() {
    let hosts = bind("/run/hosts", "/etc/hosts", true);
    let container = Settings {
        env: vec!["A=B".into()],
        rootfs: "/store/id".into(),
        extra: settings().extra.into_iter().chain([hosts]).collect(),
        memory_bytes: 1 << 20,
        cpu_shares: 7,
        pids: 9,
        no_new_privileges: true,
        earlier: true,
        ..settings()
    };
    assert_eq!(config(&container), written());
    let read = plan(written().to_string().as_bytes()).unwrap();
    assert_eq!(read.limits, Limits { memory_bytes: 1 << 20, cpu_shares: 7, pids: 9 });
    assert!(read.joins.is_none() && read.devices.is_none() && read.rights.seccomp.is_none());
    assert!(read.rights.no_new_privileges && read.cgroup == "/garden/id");
    // The bundle of a pea of that container.
    let pea = Settings { hostname: None, joins: Some(77), ..container.clone() };
    let mut bundle = written();
    bundle.as_object_mut().unwrap().remove("hostname");
    bundle["linux"]["namespaces"] = json!([
        {"type": "network", "path": "/proc/77/ns/net"},
        {"type": "pid", "path": "/proc/77/ns/pid"},
        {"type": "uts", "path": "/proc/77/ns/uts"},
        {"type": "ipc", "path": "/proc/77/ns/ipc"},
        {"type": "user", "path": "/proc/77/ns/user"},
        {"type": "mount"},
    ]);
    assert_eq!(config(&pea), bundle);
    assert_eq!(plan(bundle.to_string().as_bytes()).unwrap().joins, Some(77));
    // The bundle of a privileged container.
    let privileged = config(&Settings { privileged: true, ..container });
    let mut bundle = written();
    let linux = bundle["linux"].as_object_mut().unwrap();
    for key in ["uidMappings", "gidMappings", "maskedPaths"] {
        linux.remove(key);
    }
    linux["namespaces"].as_array_mut().unwrap().remove(4);
    bundle["mounts"].as_array_mut().unwrap().remove(6);
    for set in ["bounding", "effective", "inheritable", "permitted"] {
        bundle["process"]["capabilities"][set] = json!(caps::names(caps::PRIVILEGED));
    }
    assert_eq!(privileged, bundle);
}

#[test]
fn what_is_not_of_the_specification_is_named() {
    let said = |change: &dyn Fn(&mut Value)| {
        let mut bundle = written();
        change(&mut bundle);
        plan(bundle.to_string().as_bytes()).unwrap_err().to_string()
    };
    for (error, wanted) in [
        (said(&|b| b["linux"]["nope"] = json!(1)), "linux.nope: unknown field"),
        (said(&|b| b["windows"] = json!({})), "windows: unknown field"),
        (said(&|b| b["linux"]["netDevices"] = json!({})), "linux.netDevices: unknown field"),
        (said(&|b| b["process"]["user"]["username"] = json!("x")), "process.user.username: unknown field"),
        (
            said(&|b| b["linux"]["namespaces"][2]["type"] = json!("x")),
            "linux.namespaces[2].type: unknown variant",
        ),
        (
            said(&|b| b["linux"]["namespaces"][2]["type"] = json!("time")),
            "linux.namespaces[2].type: time is not supported",
        ),
        (said(&|b| b["mounts"][1]["options"] = json!("x")), "mounts[1].options: invalid type"),
        (said(&|b| b["mounts"][1]["options"] = Value::Null), "mounts[1].options: invalid type: null"),
        (said(&|b| b["hostname"] = Value::Null), "hostname: invalid type: null"),
        (said(&|b| b["linux"] = Value::Null), "linux: invalid type: null"),
        (said(&|b| drop(b.as_object_mut().unwrap().remove("process"))), "process is missing"),
        (
            said(&|b| drop(b["linux"].as_object_mut().unwrap().remove("cgroupsPath"))),
            "linux.cgroupsPath is missing",
        ),
    ] {
        assert!(error.starts_with(&format!("config.json: {wanted}")), "{error}");
    }
    let text = written().to_string();
    // Some readers would use the second value, and others the first.
    let twice = text.replacen('{', "{\"hostname\":\"other\",", 1);
    assert!(plan(twice.as_bytes()).unwrap_err().to_string().contains("duplicate field"));
    assert!(plan(format!("{text} x").as_bytes()).is_err() && plan(b"\xff").is_err());
}
