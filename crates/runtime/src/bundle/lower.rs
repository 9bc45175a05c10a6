//! Translates a bundle into a plan. Every object is destructured without `..`: a field that is added to the types
//! cannot be overlooked.

use super::{DIRECTORIES, Error, INIT, Node, Plan, missing, mounts, none, value};
use crate::caps;
use crate::cgroup::{Limits, devices};
use crate::oci::{
    BlockIo, Capabilities, Cpu, Device, DeviceType, Hooks, IdMapping, Linux, Memory, Namespace,
    NamespaceType, Network, Pids, Process, Propagation, Resources, Root, Seccomp, Spec, User,
};
use crate::rights::{Rights, UMASK};
use crate::seccomp::{self, Profile, Program};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Translates a bundle. `gardens`: the seccomp profile is Garden's, and the bundle has a stand-in for it.
pub(super) fn lower(spec: Spec, gardens: bool) -> Result<Plan, Error> {
    let Spec { oci_version, process, root, hostname, domainname, mounts, hooks, annotations, linux } = spec;
    version(&oci_version)?;
    none("", &[("domainname", domainname.is_some())])?;
    self::hooks(hooks)?;
    // The root file system is passed as a detached mount: its path is for human readers only.
    let Root { path: _, readonly } = root.ok_or_else(|| missing("root"))?;
    none("root.", &[("readonly", readonly == Some(true))])?;
    let mut plan = Plan { hostname, ..Plan::default() };
    for (index, mount) in mounts.into_iter().flatten().enumerate() {
        plan.mounts.push(mounts::lower(index, mount)?);
    }
    plan.directories = directories(annotations)?;
    plan.rights = self::process(process.ok_or_else(|| missing("process"))?)?;
    self::linux(linux.ok_or_else(|| missing("linux"))?, gardens, &mut plan)?;
    Ok(plan)
}

/// The directories that one annotation lists; the specification lets a runtime ignore all others.
fn directories(annotations: Option<BTreeMap<String, String>>) -> Result<Vec<String>, Error> {
    let Some(text) = annotations.unwrap_or_default().remove(DIRECTORIES) else { return Ok(Vec::new()) };
    let at = || format!("annotations.{DIRECTORIES}");
    let list: Vec<String> =
        serde_json::from_str(&text).map_err(|error| value(at(), format!("{text:?} ({error})")))?;
    match list.iter().find(|path| !path.starts_with('/') || path.contains('\0')) {
        Some(path) => Err(value(at(), format!("{path:?}"))),
        None => Ok(list),
    }
}

/// Accepts the versions of the specification that [`crate::oci`] implements.
fn version(text: &str) -> Result<(), Error> {
    let numbers: Option<Vec<u32>> = text.split('.').map(|number| number.parse().ok()).collect();
    match numbers.as_deref() {
        Some([1, 0..=2, _]) => Ok(()),
        _ => Err(value("ociVersion", format!("{text:?}"))),
    }
}

fn hooks(hooks: Option<Hooks>) -> Result<(), Error> {
    let Hooks { prestart, create_runtime, create_container, start_container, poststart, poststop } =
        hooks.unwrap_or_default();
    none(
        "hooks.",
        &[
            ("prestart", prestart.is_some()),
            ("createRuntime", create_runtime.is_some()),
            ("createContainer", create_container.is_some()),
            ("startContainer", start_container.is_some()),
            ("poststart", poststart.is_some()),
            ("poststop", poststop.is_some()),
        ],
    )
}

/// The rights of pid 1; all else about it is the same in all containers. Later processes come with a description of
/// their own.
fn process(process: Process) -> Result<Rights, Error> {
    let Process {
        cwd,
        terminal,
        console_size,
        user,
        args,
        // Ignored: pid 1 has no environment, and the server adds this one to that of each process.
        env: _,
        capabilities,
        rlimits,
        no_new_privileges,
        apparmor_profile,
        oom_score_adj,
        scheduler,
        selinux_label,
        io_priority,
        exec_cpu_affinity,
    } = process;
    none(
        "process.",
        &[
            ("terminal", terminal == Some(true)),
            ("consoleSize", console_size.is_some()),
            ("rlimits", rlimits.is_some()),
            ("apparmorProfile", apparmor_profile.is_some()),
            ("oomScoreAdj", oom_score_adj.is_some()),
            ("scheduler", scheduler.is_some()),
            ("selinuxLabel", selinux_label.is_some()),
            ("ioPriority", io_priority.is_some()),
            ("execCPUAffinity", exec_cpu_affinity.is_some()),
        ],
    )?;
    if cwd != "/" {
        return Err(value("process.cwd", format!("{cwd:?}")));
    }
    let args = args.ok_or_else(|| missing("process.args"))?;
    if args != [INIT] {
        return Err(value("process.args", format!("another program than {INIT}: {args:?}")));
    }
    let User { uid, gid, umask, additional_gids } = user.ok_or_else(|| missing("process.user"))?;
    for (key, id) in [("uid", uid), ("gid", gid)] {
        if id != 0 {
            return Err(value(format!("process.user.{key}"), id.to_string()));
        }
    }
    none("process.user.", &[("additionalGids", additional_gids.is_some())])?;
    let umask = umask.unwrap_or(UMASK);
    if umask > 0o777 {
        return Err(value("process.user.umask", umask.to_string()));
    }
    Ok(Rights {
        capabilities: self::capabilities(capabilities.unwrap_or_default())?,
        no_new_privileges: no_new_privileges.unwrap_or(false),
        umask,
        ..Rights::default()
    })
}

/// Returns the bounding set. The other sets must be the same, as after the exec of a program by root:
/// capabilities(7), "Capabilities and execution of programs by root".
fn capabilities(sets: Capabilities) -> Result<u64, Error> {
    let Capabilities { bounding, effective, inheritable, permitted, ambient } = sets;
    let mask = |key: &str, names: Option<Vec<String>>| {
        let mut mask = 0;
        for (index, name) in names.into_iter().flatten().enumerate() {
            let unknown = |name| value(format!("process.capabilities.{key}[{index}]"), format!("{name:?}"));
            mask |= caps::mask([name]).map_err(unknown)?;
        }
        Ok::<_, Error>(mask)
    };
    let bounding = mask("bounding", bounding)?;
    for (key, names) in [("effective", effective), ("inheritable", inheritable), ("permitted", permitted)] {
        if mask(key, names)? != bounding {
            let what = "another set than process.capabilities.bounding";
            return Err(value(format!("process.capabilities.{key}"), what));
        }
    }
    none("process.capabilities.", &[("ambient", ambient.is_some())])?;
    Ok(bounding)
}

fn linux(linux: Linux, gardens: bool, plan: &mut Plan) -> Result<(), Error> {
    let Linux {
        uid_mappings,
        gid_mappings,
        sysctl,
        resources,
        cgroups_path,
        namespaces,
        devices,
        seccomp,
        rootfs_propagation,
        masked_paths,
        readonly_paths,
        mount_label,
        intel_rdt,
        personality,
        time_offsets,
    } = linux;
    none(
        "linux.",
        &[
            ("sysctl", sysctl.is_some()),
            ("readonlyPaths", readonly_paths.is_some()),
            ("mountLabel", mount_label.is_some()),
            ("intelRdt", intel_rdt.is_some()),
            ("personality", personality.is_some()),
            ("timeOffsets", time_offsets.is_some()),
        ],
    )?;
    if rootfs_propagation.is_some_and(|kind| kind != Propagation::Private) {
        return Err(value("linux.rootfsPropagation", "another propagation than private"));
    }
    (plan.joins, plan.user) = self::namespaces(namespaces.unwrap_or_default())?;
    let uids = mappings("linux.uidMappings", uid_mappings.unwrap_or_default(), plan.user)?;
    let gids = mappings("linux.gidMappings", gid_mappings.unwrap_or_default(), plan.user)?;
    plan.root_ids = (outside("linux.uidMappings", &uids, 0)?, outside("linux.gidMappings", &gids, 0)?);
    plan.tty_gid = outside("linux.gidMappings", &gids, TTY)?;
    plan.cgroup = cgroups_path.ok_or_else(|| missing("linux.cgroupsPath"))?;
    if !plan.cgroup.starts_with('/') || plan.cgroup.split('/').any(|name| name == "..") {
        return Err(value("linux.cgroupsPath", format!("{:?}", plan.cgroup)));
    }
    (plan.limits, plan.devices) = self::resources(resources.unwrap_or_default())?;
    for (index, device) in devices.into_iter().flatten().enumerate() {
        plan.nodes.push(node(index, device)?);
    }
    plan.masked = masked_paths.unwrap_or_default();
    if let Some(index) = plan.masked.iter().position(|path| !path.starts_with('/')) {
        return Err(value(format!("linux.maskedPaths[{index}]"), format!("{:?}", plan.masked[index])));
    }
    plan.rights.seccomp = filter(seccomp, gardens)?;
    Ok(())
}

fn filter(profile: Option<Seccomp>, gardens: bool) -> Result<Option<Arc<Program>>, Error> {
    match profile {
        Some(_) if gardens => Ok(Some(seccomp::compiled()?)),
        Some(profile) => Ok(Some(Arc::new(Profile::read(&profile)?.compile()?))),
        // Garden's profile is at another place than `linux.seccomp`.
        None if gardens => Err(missing("linux.seccomp")),
        None => Ok(None),
    }
}

/// The pid in the path of a process's namespace file.
fn found(path: &str, kind: NamespaceType) -> Option<i32> {
    let file = if kind == NamespaceType::Network { "net".to_owned() } else { kind.to_string() };
    let pid = path.strip_prefix("/proc/")?.strip_suffix(&format!("/ns/{file}"))?;
    pid.parse().ok().filter(|pid| *pid > 0)
}

/// Checks the namespaces: a container's are all new; a pea joins those of a process, but has a mount namespace of its
/// own. Returns the pid of that process, and whether there is a user namespace.
fn namespaces(list: Vec<Namespace>) -> Result<(Option<i32>, bool), Error> {
    use NamespaceType::{Cgroup, Ipc, Mount, Network, Pid, Time, User, Uts};
    let mut there: BTreeMap<NamespaceType, (usize, Option<i32>)> = BTreeMap::new();
    for (index, Namespace { kind, path }) in list.into_iter().enumerate() {
        let at = |key: &str| format!("linux.namespaces[{index}].{key}");
        let joins = match path {
            None => None,
            Some(path) if kind != Mount => {
                Some(found(&path, kind).ok_or_else(|| value(at("path"), format!("{path:?}")))?)
            }
            Some(path) => return Err(value(at("path"), format!("{path:?}"))),
        };
        if kind == Time {
            return Err(value(at("type"), "time"));
        }
        if there.insert(kind, (index, joins)).is_some() {
            return Err(value(at("type"), format!("a second namespace of type {kind}")));
        }
    }
    let lacking = |kind: NamespaceType| value("linux.namespaces", format!("no namespace of type {kind}"));
    let joins = there.get(&Pid).ok_or_else(|| lacking(Pid))?.1;
    for kind in [Network, Mount, Ipc, Uts] {
        there.get(&kind).ok_or_else(|| lacking(kind))?;
    }
    if joins.is_none() && !there.contains_key(&Cgroup) {
        return Err(lacking(Cgroup));
    }
    for (kind, (index, other)) in &there {
        // A launch joins all namespaces at once, by the pidfd of one process.
        if *kind != Mount && *other != joins {
            let what = format!("a {kind} namespace that is not of the same process as the pid namespace");
            return Err(value(format!("linux.namespaces[{index}].path"), what));
        }
    }
    Ok((joins, there.contains_key(&User)))
}

/// The group of terminals, by convention.
const TTY: u32 = 5;

/// Checks the id ranges; without a user namespace there must be none, and the identity mapping
/// of all ids is returned.
fn mappings(at: &str, list: Vec<IdMapping>, user: bool) -> Result<Vec<IdMapping>, Error> {
    match (user, list.is_empty()) {
        (true, true) => return Err(missing(at)),
        (false, false) => return Err(value(at, "a mapping without a user namespace")),
        (false, true) => return Ok(vec![IdMapping { container_id: 0, host_id: 0, size: u32::MAX }]),
        (true, false) => {}
    }
    for (index, IdMapping { container_id, host_id, size }) in list.iter().enumerate() {
        if *size == 0 || container_id.checked_add(*size).is_none() || host_id.checked_add(*size).is_none() {
            let what = format!("a range of {size} ids from {container_id} inside and {host_id} outside");
            return Err(value(format!("{at}[{index}]"), what));
        }
    }
    Ok(list)
}

/// The host's id for an id of the container.
fn outside(at: &str, mappings: &[IdMapping], inside: u32) -> Result<u32, Error> {
    let host = |m: &IdMapping| {
        let offset = inside.checked_sub(m.container_id).filter(|offset| *offset < m.size)?;
        Some(m.host_id + offset)
    };
    mappings.iter().find_map(host).ok_or_else(|| value(at, format!("a mapping without the id {inside}")))
}

/// Returns the limits, which the engine has set before, and the devices that it has allowed.
fn resources(resources: Resources) -> Result<(Limits, Option<Vec<devices::Allow>>), Error> {
    let Resources { devices, memory, cpu, pids, block_io, hugepage_limits, network, rdma, unified } =
        resources;
    none(
        "linux.resources.",
        &[
            ("hugepageLimits", hugepage_limits.is_some()),
            ("rdma", rdma.is_some()),
            ("unified", unified.is_some()),
        ],
    )?;
    self::block_io(block_io)?;
    let Network { class_id, priorities } = network.unwrap_or_default();
    none(
        "linux.resources.network.",
        &[("classID", class_id.is_some()), ("priorities", priorities.is_some())],
    )?;
    let limits = Limits {
        memory_bytes: self::memory(&memory.unwrap_or_default())?,
        cpu_shares: self::cpu(cpu.unwrap_or_default())?,
        pids: match pids {
            None => 0,
            Some(Pids { limit }) => limit_of("linux.resources.pids.limit", Some(limit))?,
        },
    };
    let read = |rules: Vec<_>| devices::read(&rules).map_err(|what| value("linux.resources.devices", what));
    Ok((limits, devices.map(read).transpose()?))
}

/// Returns a limit; -1 and 0 mean none.
fn limit_of(at: &str, limit: Option<i64>) -> Result<u64, Error> {
    match limit.unwrap_or(0) {
        -1 => Ok(0),
        limit => u64::try_from(limit).map_err(|_| value(at, limit.to_string())),
    }
}

fn memory(memory: &Memory) -> Result<u64, Error> {
    let Memory {
        limit,
        reservation,
        swap,
        kernel,
        kernel_tcp,
        swappiness,
        disable_oom_killer,
        use_hierarchy,
        check_before_update,
    } = *memory;
    none(
        "linux.resources.memory.",
        &[
            ("reservation", reservation.is_some()),
            ("kernel", kernel.is_some()),
            ("kernelTCP", kernel_tcp.is_some()),
            ("swappiness", swappiness.is_some()),
            ("disableOOMKiller", disable_oom_killer.is_some()),
            ("useHierarchy", use_hierarchy.is_some()),
            ("checkBeforeUpdate", check_before_update.is_some()),
        ],
    )?;
    let bytes = limit_of("linux.resources.memory.limit", limit)?;
    if limit_of("linux.resources.memory.swap", swap)? != bytes {
        let what = "another value than linux.resources.memory.limit";
        return Err(value("linux.resources.memory.swap", what));
    }
    Ok(bytes)
}

fn cpu(cpu: Cpu) -> Result<u64, Error> {
    let Cpu { shares, quota, burst, period, realtime_runtime, realtime_period, cpus, mems, idle } = cpu;
    none(
        "linux.resources.cpu.",
        &[
            ("quota", quota.is_some()),
            ("burst", burst.is_some()),
            ("period", period.is_some()),
            ("realtimeRuntime", realtime_runtime.is_some()),
            ("realtimePeriod", realtime_period.is_some()),
            ("cpus", cpus.is_some()),
            ("mems", mems.is_some()),
            ("idle", idle.is_some()),
        ],
    )?;
    Ok(shares.unwrap_or(0))
}

fn block_io(block_io: Option<BlockIo>) -> Result<(), Error> {
    let BlockIo {
        weight,
        leaf_weight,
        weight_device,
        throttle_read_bps_device,
        throttle_write_bps_device,
        throttle_read_iops_device,
        throttle_write_iops_device,
    } = block_io.unwrap_or_default();
    none(
        "linux.resources.blockIO.",
        &[
            ("weight", weight.is_some()),
            ("leafWeight", leaf_weight.is_some()),
            ("weightDevice", weight_device.is_some()),
            ("throttleReadBpsDevice", throttle_read_bps_device.is_some()),
            ("throttleWriteBpsDevice", throttle_write_bps_device.is_some()),
            ("throttleReadIOPSDevice", throttle_read_iops_device.is_some()),
            ("throttleWriteIOPSDevice", throttle_write_iops_device.is_some()),
        ],
    )
}

fn node(index: usize, device: Device) -> Result<Node, Error> {
    let Device { path, kind, major, minor, file_mode, uid, gid } = device;
    let at = |key: &str| format!("linux.devices[{index}].{key}");
    // Device nodes belong to container root.
    none(&at(""), &[("uid", uid.is_some()), ("gid", gid.is_some())])?;
    let name = path
        .strip_prefix("/dev/")
        .filter(|name| !matches!(*name, "" | "." | "..") && !name.contains(['/', '\0']));
    let name = name.ok_or_else(|| value(at("path"), format!("{path:?}")))?.to_owned();
    let block = match kind {
        DeviceType::Block => true,
        DeviceType::Char => false,
        other => return Err(value(at("type"), other.letter().to_string())),
    };
    let number = |key: &str, given: Option<i64>, max: u32| {
        let given = given.ok_or_else(|| missing(at(key)))?;
        let within = u32::try_from(given).ok().filter(|n| *n <= max);
        within.ok_or_else(|| value(at(key), given.to_string()))
    };
    let (major, minor) =
        (number("major", major, devices::MAX_MAJOR)?, number("minor", minor, devices::MAX_MINOR)?);
    let mode = file_mode.unwrap_or(0o666);
    if mode & !0o777 != 0 {
        return Err(value(at("fileMode"), format!("the mode {mode:o}")));
    }
    Ok(Node { name, block, major, minor, mode })
}
