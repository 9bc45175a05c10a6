//! Tests how each field that a bundle can have is treated.

use super::tests::{config, settings};
use super::*;
use crate::oci::shape;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// The treatment of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It changes the plan.
    Done,
    /// It changes nothing in the plan, see the module.
    Reader,
    /// It is refused, and the error names it.
    Refused,
}
use Fate::{Done, Reader, Refused};

/// A container's bundle in which each list has an item.
fn base() -> Value {
    let mut base = config(&Settings { env: vec!["A=B".into()], ..settings() });
    base["linux"]["devices"] = json!([{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229}]);
    base
}

/// All fields of the specification with a value and its treatment. A field that is missing here fails the test.
fn fates() -> Vec<(&'static str, Value, Fate)> {
    let joined = |kind: &str, file: &str| json!({"type": kind, "path": format!("/proc/77/ns/{file}")});
    let pea = json!([
        joined("pid", "pid"),
        joined("network", "net"),
        joined("ipc", "ipc"),
        joined("uts", "uts"),
        joined("user", "user"),
        {"type": "mount"},
    ]);
    vec![
        ("ociVersion", json!("1.2.1"), Reader),
        ("ociVersion", json!("1.3.0"), Refused),
        ("ociVersion", json!("2.0.0"), Refused),
        ("ociVersion", json!("1"), Refused),
        ("hostname", json!("other"), Done),
        ("domainname", json!("other"), Refused),
        ("annotations", json!({"who": "me"}), Reader),
        ("annotations", json!({"wardian.directories": r#"["/data"]"#}), Done),
        ("annotations", json!({"wardian.directories": r#"["data"]"#}), Refused),
        ("annotations", json!({"wardian.directories": "/data"}), Refused),
        ("hooks.prestart", json!([{"path": "/x"}]), Refused),
        ("hooks.createRuntime", json!([{"path": "/x"}]), Refused),
        ("hooks.createContainer", json!([{"path": "/x"}]), Refused),
        ("hooks.startContainer", json!([{"path": "/x"}]), Refused),
        ("hooks.poststart", json!([{"path": "/x"}]), Refused),
        ("hooks.poststop", json!([{"path": "/x"}]), Refused),
        ("root.path", json!("/other"), Reader),
        ("root.readonly", json!(false), Reader),
        ("root.readonly", json!(true), Refused),
        ("mounts[0].destination", json!("/sys2"), Done),
        ("mounts[0].destination", json!("sys"), Refused),
        ("mounts[0].type", json!("ext4"), Refused),
        ("mounts[0].source", json!("/dev/sda"), Refused),
        ("mounts[0].options[3]", json!("rw"), Done),
        ("mounts[0].options[0]", json!("rbind"), Refused),
        ("mounts[0].options[0]", json!("strictatime"), Refused),
        ("mounts[0].options[0]", json!("size=1"), Refused),
        ("mounts[0].uidMappings", json!([{"containerID": 0, "hostID": 7, "size": 1}]), Refused),
        ("mounts[0].gidMappings", json!([{"containerID": 0, "hostID": 7, "size": 1}]), Refused),
        ("mounts[1].options[0]", json!("nosuid"), Refused),
        ("mounts[1].options", json!(["noexec", "mode=755"]), Refused),
        ("mounts[2].options[3]", json!("mode=700"), Done),
        ("mounts[2].options[3]", json!("nr_inodes=7"), Done),
        ("mounts[2].options[3]", json!("huge=always"), Refused),
        ("mounts[4].destination", json!("/pts"), Refused),
        ("mounts[4].options[3]", json!("gid=7"), Refused),
        // The last mount is a bind mount.
        ("mounts[7].source", json!("/other"), Reader),
        ("mounts[7].source", json!("other"), Refused),
        ("mounts[7].options[1]", json!("rw"), Done),
        ("mounts[7].options[1]", json!("noexec"), Refused),
        ("process.cwd", json!("/tmp"), Refused),
        ("process.terminal", json!(false), Reader),
        ("process.terminal", json!(true), Refused),
        ("process.consoleSize", json!({"height": 24, "width": 80}), Refused),
        ("process.user.uid", json!(7), Refused),
        ("process.user.gid", json!(7), Refused),
        ("process.user.umask", json!(0o077), Done),
        ("process.user.umask", json!(0o1000), Refused),
        ("process.user.additionalGids", json!([7]), Refused),
        ("process.args[0]", json!("/bin/sh"), Refused),
        ("process.args", json!(["/tmp/garden-init", "x"]), Refused),
        ("process.env[0]", json!("A=C"), Reader),
        (
            "process.capabilities",
            json!({"bounding": ["CAP_KILL"], "effective": ["CAP_KILL"], "inheritable": ["CAP_KILL"], "permitted": ["CAP_KILL"]}),
            Done,
        ),
        ("process.capabilities.bounding[0]", json!("CAP_NOPE"), Refused),
        ("process.capabilities.effective", json!(["CAP_KILL"]), Refused),
        ("process.capabilities.inheritable", json!([]), Refused),
        ("process.capabilities.permitted", json!(["CAP_KILL"]), Refused),
        ("process.capabilities.ambient", json!(["CAP_KILL"]), Refused),
        ("process.rlimits", json!([{"type": "RLIMIT_NOFILE", "soft": 7, "hard": 7}]), Refused),
        ("process.noNewPrivileges", json!(true), Done),
        ("process.apparmorProfile", json!("x"), Refused),
        ("process.oomScoreAdj", json!(0), Refused),
        ("process.scheduler", json!({"policy": "SCHED_FIFO", "flags": ["SCHED_FLAG_DL_OVERRUN"]}), Refused),
        ("process.selinuxLabel", json!("x"), Refused),
        ("process.ioPriority", json!({"class": "IOPRIO_CLASS_RT", "priority": 0}), Refused),
        ("process.execCPUAffinity", json!({"initial": "0", "final": "1"}), Refused),
        ("linux.uidMappings", json!([{"containerID": 0, "hostID": 7, "size": 9}]), Done),
        ("linux.uidMappings[0].containerID", json!(7), Refused),
        ("linux.uidMappings[1].size", json!(0), Refused),
        ("linux.uidMappings[1].size", json!(u32::MAX), Refused),
        ("linux.gidMappings", json!([{"containerID": 0, "hostID": 7, "size": 9}]), Done),
        ("linux.gidMappings", json!([{"containerID": 0, "hostID": 7, "size": 5}]), Refused),
        ("linux.gidMappings[1].hostID", json!(u32::MAX), Refused),
        ("linux.sysctl", json!({"net.ipv4.ip_forward": "1"}), Refused),
        ("linux.resources.devices[11].access", json!("r"), Done),
        ("linux.resources.devices[11].major", json!(7), Done),
        ("linux.resources.devices[11].minor", json!(7), Done),
        ("linux.resources.devices[11].type", json!("b"), Done),
        ("linux.resources.devices[0].allow", json!(true), Refused),
        ("linux.resources.memory", json!({"limit": 4096, "swap": 4096}), Done),
        ("linux.resources.memory.limit", json!(-2), Refused),
        ("linux.resources.memory.swap", json!(4096), Refused),
        ("linux.resources.memory.reservation", json!(7), Refused),
        ("linux.resources.memory.kernel", json!(7), Refused),
        ("linux.resources.memory.kernelTCP", json!(7), Refused),
        ("linux.resources.memory.swappiness", json!(7), Refused),
        ("linux.resources.memory.disableOOMKiller", json!(true), Refused),
        ("linux.resources.memory.useHierarchy", json!(true), Refused),
        ("linux.resources.memory.checkBeforeUpdate", json!(true), Refused),
        ("linux.resources.cpu.shares", json!(7), Done),
        ("linux.resources.cpu.quota", json!(7), Refused),
        ("linux.resources.cpu.burst", json!(7), Refused),
        ("linux.resources.cpu.period", json!(7), Refused),
        ("linux.resources.cpu.realtimeRuntime", json!(7), Refused),
        ("linux.resources.cpu.realtimePeriod", json!(7), Refused),
        ("linux.resources.cpu.cpus", json!("0"), Refused),
        ("linux.resources.cpu.mems", json!("0"), Refused),
        ("linux.resources.cpu.idle", json!(1), Refused),
        ("linux.resources.pids.limit", json!(7), Done),
        ("linux.resources.pids.limit", json!(-2), Refused),
        ("linux.resources.blockIO.weight", json!(7), Refused),
        ("linux.resources.blockIO.leafWeight", json!(7), Refused),
        ("linux.resources.blockIO.weightDevice", json!([{"major": 8, "minor": 0, "weight": 7}]), Refused),
        (
            "linux.resources.blockIO.throttleReadBpsDevice",
            json!([{"major": 8, "minor": 0, "rate": 7}]),
            Refused,
        ),
        ("linux.resources.blockIO.throttleWriteBpsDevice", json!([]), Refused),
        ("linux.resources.blockIO.throttleReadIOPSDevice", json!([]), Refused),
        ("linux.resources.blockIO.throttleWriteIOPSDevice", json!([]), Refused),
        ("linux.resources.hugepageLimits", json!([{"pageSize": "2MB", "limit": 7}]), Refused),
        ("linux.resources.network.classID", json!(7), Refused),
        ("linux.resources.network.priorities", json!([{"name": "eth0", "priority": 7}]), Refused),
        ("linux.resources.rdma", json!({"mlx5_1": {"hcaHandles": 7, "hcaObjects": 7}}), Refused),
        ("linux.resources.unified", json!({"memory.high": "7"}), Refused),
        ("linux.cgroupsPath", json!("/other"), Done),
        ("linux.cgroupsPath", json!("other"), Refused),
        ("linux.cgroupsPath", json!("/garden/../other"), Refused),
        ("linux.namespaces", pea, Done),
        ("linux.namespaces", json!([]), Refused),
        ("linux.namespaces[2].type", json!("time"), Refused),
        ("linux.namespaces[2].type", json!("pid"), Refused),
        ("linux.namespaces[2].path", json!("/proc/77/ns/uts"), Refused),
        ("linux.namespaces[2].path", json!("/proc/77/ns/net"), Refused),
        ("linux.namespaces[2].path", json!("/var/run/netns/x"), Refused),
        ("linux.namespaces[5].path", json!("/proc/77/ns/mnt"), Refused),
        ("linux.devices[0].path", json!("/dev/other"), Done),
        ("linux.devices[0].path", json!("/etc/other"), Refused),
        ("linux.devices[0].type", json!("b"), Done),
        ("linux.devices[0].type", json!("p"), Refused),
        ("linux.devices[0].major", json!(7), Done),
        ("linux.devices[0].major", json!(4096), Refused),
        ("linux.devices[0].minor", json!(7), Done),
        ("linux.devices[0].fileMode", json!(0o600), Done),
        ("linux.devices[0].fileMode", json!(0o4600), Refused),
        ("linux.devices[0].uid", json!(0), Refused),
        ("linux.devices[0].gid", json!(0), Refused),
        ("linux.seccomp.defaultAction", json!("SCMP_ACT_LOG"), Done),
        ("linux.seccomp.defaultAction", json!("SCMP_ACT_NOTIFY"), Refused),
        ("linux.seccomp.defaultErrnoRet", json!(7), Done),
        ("linux.seccomp.architectures", json!(["SCMP_ARCH_X86_64"]), Done),
        ("linux.seccomp.architectures[0]", json!("SCMP_ARCH_S390"), Refused),
        ("linux.seccomp.flags", json!(["SECCOMP_FILTER_FLAG_LOG"]), Done),
        ("linux.seccomp.flags", json!(["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]), Refused),
        ("linux.seccomp.listenerPath", json!("/agent.sock"), Refused),
        ("linux.seccomp.listenerMetadata", json!("x"), Refused),
        (
            "linux.seccomp.syscalls[0]",
            json!({"names": ["read"], "action": "SCMP_ACT_ERRNO", "errnoRet": 7, "args": [{"index": 0, "value": 7, "valueTwo": 7, "op": "SCMP_CMP_MASKED_EQ"}]}),
            Done,
        ),
        ("linux.seccomp.syscalls[0].action", json!("SCMP_ACT_NOTIFY"), Refused),
        ("linux.seccomp.syscalls[0].names", json!([]), Refused),
        ("linux.rootfsPropagation", json!("shared"), Refused),
        ("linux.maskedPaths[0]", json!("/other"), Done),
        ("linux.maskedPaths[0]", json!("other"), Refused),
        ("linux.readonlyPaths", json!(["/proc/sys"]), Refused),
        ("linux.mountLabel", json!("x"), Refused),
        ("linux.intelRdt", json!({"closID": "x", "enableCMT": true}), Refused),
        ("linux.personality", json!({"domain": "LINUX32", "flags": []}), Refused),
        ("linux.timeOffsets", json!({"monotonic": {"secs": 7, "nanosecs": 7}}), Refused),
    ]
}

/// Sets the value at a path, and creates missing parents.
fn put(into: &mut Value, path: &str, value: Value) {
    let path = path.replace('[', ".").replace(']', "");
    let at = path.split('.').fold(into, |at, step| match step.parse::<usize>() {
        Ok(index) => &mut at[index],
        Err(_) => &mut at[step],
    });
    *at = value;
}

/// The path in the notation of [`shape::places`].
fn place(path: &str) -> String {
    let steps = path.split('[').enumerate();
    steps
        .map(
            |(n, part)| {
                if n == 0 { part.to_owned() } else { format!("[{}", &part[part.find(']').unwrap()..]) }
            },
        )
        .collect()
}

/// Objects whose keys are not defined by the specification.
const MAPS: [&str; 5] =
    ["annotations", "linux.sysctl", "linux.resources.rdma", "linux.resources.unified", "linux.timeOffsets"];

/// Collects the paths of all leaves of a value.
fn leaves(at: &str, value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let below = if MAPS.contains(&at) { format!("{at}{{}}") } else { format!("{at}.{key}") };
                leaves(&below, value, found);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| leaves(&format!("{at}[]"), item, found)),
        _ => {
            found.insert(at.to_owned());
        }
    }
}

#[test]
fn every_field_of_the_specification_is_done_or_refused() {
    let planned = |bundle: &Value| plan(bundle.to_string().as_bytes());
    let base = base();
    let without = planned(&base).unwrap();
    let (mut known, mut refused, mut wrong) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
    for (path, value, fate) in fates() {
        let mut bundle = base.clone();
        put(&mut bundle, path, value.clone());
        let (found, said) = match planned(&bundle) {
            Ok(plan) if plan == without => (Reader, String::new()),
            Ok(_) => (Done, String::new()),
            Err(error) => (Refused, error.to_string()),
        };
        let named = said.trim_start_matches("config.json: ").split([':', ' ']).next().unwrap_or_default();
        // For a list the error names the item, and for values that contradict each other the object that holds them.
        let is_named = named.starts_with(path) || path.starts_with(named) && named.contains('.');
        if found != fate || fate == Refused && !is_named {
            wrong.push(format!("{path}: {value}: {found:?} {said}"));
        }
        leaves(&place(path), &value, &mut known);
        if fate == Refused {
            refused.insert(place(path));
        }
    }
    let places: BTreeSet<String> = shape::places::<oci::Spec>().into_iter().collect();
    let below = |place: &str, above: &str| {
        place.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[', '{']))
    };
    for place in &places {
        let decided = known.contains(place) || refused.iter().any(|above| below(place, above));
        if !decided {
            wrong.push(format!("{place}: nobody has said what becomes of it"));
        }
    }
    for known in known.iter().chain(&refused) {
        if !places.iter().any(|place| below(place, known)) {
            wrong.push(format!("{known}: it is not in the specification"));
        }
    }
    assert!(places.len() > 130, "{}", places.len());
    assert!(wrong.is_empty(), "{wrong:#?}");
}
