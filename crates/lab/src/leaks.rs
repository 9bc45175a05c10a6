//! Finds leaks, which belong to no live container: keepers, attached root file systems, cgroups, directories.

use crate::ground::json;
use crate::instances::{self, Place, Survey};
use crate::leftovers::{self, Left};
use crate::search::Found;
use anyhow::{Context, Result};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use wardian_sys::directory::{Directory, Error as Untrusted};
use wardian_sys::procfs::MountInfo;
use wardian_sys::{lock, procfs};

/// A keeper's process name as the kernel keeps it: 15 bytes.
const KEEPER: &str = "wardian-keeper";
/// The memory file that a keeper is executed from, as in the link /proc/PID/exe.
const KEEPER_FILE: &str = "/memfd:wardian-keeper";
/// Size limit of an instance's record in bytes.
const MOST: u64 = 1 << 20;
const CGROUPS: &str = "/sys/fs/cgroup";
/// Time between two searches: what was being removed at the first one is gone at the second.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(1);

/// Something that belongs to no live container.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Leak {
    /// `keeper`, `mount`, `cgroup`, `container` or `rootfs`; of an experiment or a recorder that was killed
    /// `directory`, `sysctl` or `trace`.
    pub kind: &'static str,
    /// Name of the leaked object.
    pub what: String,
    /// Why it counts as leaked.
    pub why: String,
    /// Tag of the instance that made it.
    #[serde(skip)]
    pub instance: Option<String>,
}

/// A process of wardian.
#[derive(Debug, Default)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) comm: String,
    pub(crate) arguments: Vec<String>,
    pub(crate) mountinfo: Vec<u8>,
    /// Tag of the instance whose keepers' cgroup it is in.
    pub(crate) tag: String,
    /// Ids of the containers that it keeps.
    pub(crate) containers: BTreeSet<String>,
    /// Whether it has children, that is, a live container.
    pub(crate) parent: bool,
    /// Whether it is a keeper, by more than its name.
    pub(crate) keeper: bool,
    /// Whether it is a server, judged by its program.
    pub(crate) server: bool,
}

/// The records in the run directories.
#[derive(Debug, Default)]
pub(crate) struct Records {
    /// Directories of containers, by id.
    pub(crate) containers: BTreeMap<String, PathBuf>,
    /// Records of root file systems of this boot, and the mount point of each that is to be attached.
    rootfs: BTreeMap<PathBuf, Option<PathBuf>>,
    /// Tags of the instances, and whether their servers run.
    pub(crate) tags: BTreeMap<String, bool>,
    /// Tags that any record on this host names.
    pub(crate) claimed: BTreeSet<String>,
    /// Directories of the instances, by tag.
    pub(crate) places: BTreeMap<String, Place>,
    /// Tags of the instances, by run directory.
    owners: BTreeMap<PathBuf, String>,
    /// Why the records may be incomplete.
    doubt: Option<String>,
}

/// Finds what is leaked now and still is a second later: the trash is emptied in the background. `runs` are run
/// directories to search beside the usual one, those of running servers, and those on a tmpfs of this host.
///
/// # Errors
/// /proc cannot be read.
pub fn find(runs: &[PathBuf]) -> Result<BTreeSet<Leak>> {
    Ok(survey(runs)?.leaks)
}

/// Like [`find`], with the leaks by instance.
///
/// # Errors
/// See [`find`].
pub fn survey(runs: &[PathBuf]) -> Result<Survey> {
    let first = look(runs)?;
    if first.leaks.is_empty() {
        return Ok(first);
    }
    std::thread::sleep(PATIENCE);
    let mut now = look(runs)?;
    now.leaks.retain(|leak| first.leaks.contains(leak));
    for instance in &mut now.instances {
        instance.leaks.retain(|leak| first.leaks.contains(leak));
        instance.abandoned &= first.instances.iter().any(|i| i.tag == instance.tag && i.abandoned);
    }
    now.instances.retain(|instance| !instance.leaks.is_empty());
    Ok(now)
}

/// The certificate files of running servers, as their records name them.
pub(crate) fn certificates() -> BTreeSet<PathBuf> {
    let processes = processes().unwrap_or_default();
    let mut dirs = BTreeSet::from([PathBuf::from("/run/wardian")]);
    dirs.extend(processes.iter().filter_map(run_of_server));
    dirs.extend(
        processes.iter().filter(|process| process.server).flat_map(|server| instances::locks(server.pid)),
    );
    let named = dirs.iter().filter_map(|run| {
        let dir = Directory::open(run).ok()?;
        json(&dir, "instance.json")["certificate"].as_str().map(PathBuf::from)
    });
    named.collect()
}

fn look(runs: &[PathBuf]) -> Result<Survey> {
    let processes = processes().context("look at the processes")?;
    let mut dirs: BTreeSet<PathBuf> = runs.iter().filter_map(|p| std::path::absolute(p).ok()).collect();
    for dir in &dirs {
        // A run directory that other users may write to cannot be trusted.
        if let Err(error @ (Untrusted::Owner { .. } | Untrusted::Writable { .. })) = Directory::open(dir) {
            return Err(error).context("--run");
        }
    }
    dirs.insert("/run/wardian".into());
    dirs.extend(processes.iter().filter_map(run_of_server));
    let Found { runs, tags, doubt } = Found::look(&processes);
    dirs.extend(runs);
    let mut records = read_records(&dirs, &processes);
    records.claimed = tags;
    let doubt = doubt.or_else(|| records.doubt.take());
    let mounts = std::fs::read("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
    let mounts = procfs::mountinfo(mounts)?;
    let mut leaks = BTreeSet::new();
    keeper_leaks(&processes, &records, &mut leaks);
    mount_leaks(&processes, &mut leaks);
    rootfs_leaks(&mounts, &records, &mut leaks);
    run_leaks(&mounts, &processes, &mut leaks);
    let kept = processes.iter().flat_map(|process| process.containers.iter().cloned()).collect();
    cgroup_leaks(Path::new(CGROUPS), &records, &kept, &mut leaks);
    for (kind, what) in leftovers::Records::usual().find().iter().flat_map(Left::things) {
        let why = "an experiment was killed; the next `wardian lab` sets it right".into();
        leaks.insert(Leak { kind, what, why, instance: None });
    }
    for instance in wardian_recorder::left_over() {
        let why = "its recorder was killed; the next recording removes it".into();
        leaks.insert(Leak {
            kind: "trace",
            what: format!("instances/{instance} of tracefs"),
            why,
            instance: None,
        });
    }
    Ok(Survey::new(leaks, &processes, &records, doubt))
}

/// Lists the processes of wardian.
fn processes() -> Result<Vec<Process>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // The process may end while it is examined.
        let read = |name: &str| {
            let bytes = std::fs::read(entry.path().join(name)).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        // Any user may give a process any name, but processes of wardian are root's.
        if !is_roots(&read("status")) {
            continue;
        }
        let comm = read("comm").trim().to_owned();
        let arguments: Vec<String> = read("cmdline").split('\0').map(str::to_owned).collect();
        let cgroup = read("cgroup");
        let place = instance_and_group(&cgroup);
        let exe = std::fs::read_link(entry.path().join("exe")).ok();
        let keeper = is_keeper(&comm, exe.as_deref(), place.map(|(_, group)| group));
        let is_server = arguments.get(1).is_some_and(|command| command == "serve");
        // Processes of a privileged container are root's as well.
        let inside = place.is_some_and(|(_, group)| group != KEEPERS);
        if inside || !keeper && !is_server && !comm.starts_with("wardian") {
            continue;
        }
        let tag = place.map(|(tag, _)| tag.to_owned()).unwrap_or_default();
        // A keeper has its container's id as an argument. With cgroup v1 its second thread is in the container's
        // cgroups, too; for a keeper without the argument that is the only hint.
        let told = arguments.get(1).filter(|id| keeper && !id.is_empty());
        let mut containers: BTreeSet<String> = told.cloned().into_iter().collect();
        let mut parent = false;
        for task in std::fs::read_dir(entry.path().join("task")).into_iter().flatten().flatten() {
            let read = |name: &str| std::fs::read_to_string(task.path().join(name)).unwrap_or_default();
            parent |= !read("children").trim().is_empty();
            let groups = read("cgroup");
            if let Some((_, id)) = instance_and_group(&groups).filter(|(_, id)| *id != KEEPERS) {
                containers.insert(id.to_owned());
            }
        }
        let mountinfo = std::fs::read(entry.path().join("mountinfo")).unwrap_or_default();
        let named =
            |exe: PathBuf| exe.file_name().is_some_and(|name| name.to_string_lossy().starts_with("wardian"));
        let server = is_server && (comm.starts_with("wardian") || exe.is_some_and(named));
        found.push(Process { pid, comm, arguments, mountinfo, tag, containers, parent, keeper, server });
    }
    Ok(found)
}

/// Name of the keepers' cgroup, below the instance's.
pub(crate) const KEEPERS: &str = "keepers";

/// Whether a process has root's ids only, from the text of its status: real, effective, saved and file system uid.
fn is_roots(status: &str) -> bool {
    let users = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap_or_default();
    users.split_whitespace().count() == 4 && users.split_whitespace().all(|uid| uid == "0")
}

/// Whether a process of root's is a keeper: a server puts keepers into a cgroup of their own and executes them from a
/// memory file. Where /proc/PID/exe cannot be read the name decides.
fn is_keeper(comm: &str, exe: Option<&Path>, group: Option<&str>) -> bool {
    let ours = exe.map_or(comm == KEEPER, |exe| exe.to_string_lossy().starts_with(KEEPER_FILE));
    ours && group == Some(KEEPERS)
}

/// The run directory on a server's command line.
fn run_of_server(process: &Process) -> Option<PathBuf> {
    if process.arguments.get(1).map(String::as_str) != Some("serve") {
        return None;
    }
    let mut arguments = process.arguments.iter();
    while let Some(argument) = arguments.next() {
        if argument == "--run" {
            return arguments.next().map(PathBuf::from);
        }
        if let Some(run) = argument.strip_prefix("--run=") {
            return Some(run.into());
        }
    }
    None
}

fn read_records(runs: &BTreeSet<PathBuf>, processes: &[Process]) -> Records {
    let mut records = Records::default();
    for run in runs {
        // Any user may start a process that looks like a server, with a run directory of her own.
        let dir = match Directory::open(run) {
            Ok(dir) => dir,
            Err(error) => {
                records.doubt(&error);
                continue;
            }
        };
        let instance =
            dir.read("instance.json", MOST).map_err(|error| records.doubt(&error)).unwrap_or_default();
        let instance: serde_json::Value = serde_json::from_slice(&instance).unwrap_or_else(|error| {
            if !instance.is_empty() {
                records.doubt =
                    Some(format!("instance.json in {} is not understood: {error}", run.display()));
            }
            serde_json::Value::Null
        });
        if let (Some(tag), pid) = (instance["tag"].as_str(), instance["pid"].as_u64()) {
            // A server holds the lock, whatever its name is. Where root's processes cannot be examined the name
            // decides.
            let holds =
                dir.file("lock").is_ok_and(|lock| lock::holders(lock.as_fd()).iter().any(|h| h.is_ours));
            let named = processes.iter().any(|p| p.comm == "wardian" && Some(u64::from(p.pid)) == pid);
            let lives = holds || named;
            records.tags.insert(tag.to_owned(), lives);
            let root = instance["root"].as_str().map(PathBuf::from);
            records.places.insert(tag.to_owned(), Place { run: run.clone(), root, lives });
            records.owners.insert(run.clone(), tag.to_owned());
        }
        for record in records.names(run, "rootfs") {
            if let Some(attached) = read_rootfs(&record) {
                records.rootfs.insert(record, attached);
            }
        }
        for container in records.names(run, "containers") {
            let id = container.file_name().unwrap_or_default().to_string_lossy().into_owned();
            records.containers.insert(id, container);
        }
    }
    records
}

impl Records {
    /// A directory that is missing, or is another user's, has no records. One that could not be read may have some.
    fn doubt(&mut self, error: &Untrusted) {
        if matches!(error, Untrusted::System { .. }) && !error.is_missing() {
            self.doubt = Some(error.to_string());
        }
    }

    /// Paths of the entries of a directory in a run directory.
    fn names(&mut self, run: &Path, name: &str) -> Vec<PathBuf> {
        let dir = run.join(name);
        match Directory::open(&dir).and_then(|dir| dir.names()) {
            Ok(names) => names.into_iter().map(|name| dir.join(name)).collect(),
            Err(error) => {
                // Only root can have created it, even if other users may write to it now.
                if !error.is_missing() {
                    self.doubt = Some(error.to_string());
                }
                Vec::new()
            }
        }
    }
}

/// The mount point in a root file system's record, if it is to be attached; the outer `None`: no record of this boot.
fn read_rootfs(path: &Path) -> Option<Option<PathBuf>> {
    let name = path.file_name()?.to_str()?;
    if !name.ends_with(".json") || name.starts_with('.') {
        return None;
    }
    let record = json(&Directory::open(path.parent()?).ok()?, name);
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    // The kernel reports mount points without symlinks.
    let real = |path: &str| std::fs::canonicalize(path).unwrap_or_else(|_| path.into());
    (record["boot_id"] == boot.trim()).then(|| record["attached"].as_str().map(real))
}

/// Whether a record beside the mount point says that a root file system is attached there: whoever asked for it, with
/// or without a server, removes it.
fn is_recorded(point: &Path) -> bool {
    let record = point.file_name().map(|id| {
        let mut name = id.to_owned();
        name.push(".json");
        point.with_file_name(name)
    });
    record.and_then(|record| read_rootfs(&record)).flatten().is_some_and(|attached| attached == point)
}

/// The instance's tag and the cgroup below the instance's, from the text of /proc/PID/cgroup.
pub(crate) fn instance_and_group(cgroup: &str) -> Option<(&str, &str)> {
    cgroup.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').nth(2)?.split('/').skip_while(|part| !is_instance(part));
        Some((parts.next()?.strip_prefix("wardian-")?, parts.next()?))
    })
}

fn keeper_leaks(processes: &[Process], records: &Records, leaks: &mut BTreeSet<Leak>) {
    for keeper in processes.iter().filter(|p| p.keeper) {
        let what = format!("process {} ({KEEPER})", keeper.pid);
        // A keeper without a record waits for a container, as long as its server runs.
        let recorded = keeper.containers.iter().any(|id| records.containers.contains_key(id));
        let why = if recorded {
            continue;
        } else if keeper.parent {
            "its container has no record"
        } else if !records.tags.get(&keeper.tag).copied().unwrap_or(false) {
            "it has no container and no server"
        } else {
            continue;
        };
        leaks.insert(Leak { kind: "keeper", what, why: why.into(), instance: Some(keeper.tag.clone()) });
    }
    for (id, dir) in &records.containers {
        let what = dir.display().to_string();
        let why = if std::fs::symlink_metadata(dir.join("state.json")).is_err() {
            "it has no state.json"
        } else if !processes.iter().any(|p| p.keeper && p.containers.contains(id)) {
            "it has no keeper"
        } else {
            continue;
        };
        let run = dir.parent().and_then(Path::parent);
        let instance = run.and_then(|run| records.owners.get(run)).cloned();
        leaks.insert(Leak { kind: "container", what, why: why.into(), instance });
    }
}

/// Finds visible root file systems without a record: those of containers are never attached on the host's side.
fn mount_leaks(processes: &[Process], leaks: &mut BTreeSet<Leak>) {
    for process in processes {
        for point in volatile_overlays(&process.mountinfo) {
            if is_recorded(&point) {
                continue;
            }
            let point = point.display();
            let what = format!("overlay on {point} in process {} ({})", process.pid, process.comm);
            leaks.insert(Leak {
                kind: "mount",
                what,
                why: "a root file system without a record".into(),
                instance: None,
            });
        }
    }
}

/// Finds records whose root file systems were unmounted by hand.
fn rootfs_leaks(mounts: &[MountInfo], records: &Records, leaks: &mut BTreeSet<Leak>) {
    for (record, point) in &records.rootfs {
        let Some(point) = point else { continue };
        if !mounts.iter().any(|mount| mount.fs_type == "overlay" && mount.mount_point == *point) {
            let why = "it is not mounted any more: `wardian rootfs delete` removes the record".into();
            leaks.insert(Leak { kind: "rootfs", what: record.display().to_string(), why, instance: None });
        }
    }
}

/// Finds run directories on which a server has mounted a tmpfs, with no server and no records for the next one.
fn run_leaks(mounts: &[MountInfo], processes: &[Process], leaks: &mut BTreeSet<Leak>) {
    for mount in mounts {
        if mount.fs_type != "tmpfs" || mount.source != Path::new("wardian") {
            continue;
        }
        let records = read_records(&BTreeSet::from([mount.mount_point.clone()]), processes);
        let unused = records.containers.is_empty() && records.rootfs.is_empty() && records.doubt.is_none();
        if unused && !records.tags.values().any(|lives| *lives) {
            let what = format!("tmpfs on {}", mount.mount_point.display());
            let why = "no server, no container and no root file system uses it".into();
            leaks.insert(Leak { kind: "mount", what, why, instance: None });
        }
    }
}

/// Mount points of volatile overlays made by wardian, recognised by the upper directory `/upper`, from the text of
/// mountinfo.
fn volatile_overlays(mountinfo: &[u8]) -> Vec<PathBuf> {
    let ours = |mount: &MountInfo| {
        mount.fs_type == "overlay"
            && mount.is_volatile()
            && mount.super_options.iter().any(|option| option == "upperdir=/upper")
    };
    let mounts = procfs::mountinfo(mountinfo).unwrap_or_default();
    mounts.into_iter().filter(|m| ours(m)).map(|m| m.mount_point).collect()
}

/// Finds cgroups of containers without a record, without processes and without a keeper that waits for its container
/// (`kept`).
fn cgroup_leaks(top: &Path, records: &Records, kept: &BTreeSet<String>, leaks: &mut BTreeSet<Leak>) {
    let dirs = |path: &Path| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()).collect()
    };
    let name = |path: &Path| path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let members = |group: &Path| std::fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    let hierarchies = std::iter::once(top.to_owned()).chain(dirs(top));
    let instances: Vec<PathBuf> =
        hierarchies.flat_map(|h| dirs(&h)).filter(|p| is_instance(&name(p))).collect();
    let occupied: BTreeSet<String> = instances
        .iter()
        .flat_map(|instance| dirs(instance))
        .filter(|group| !members(group).trim().is_empty())
        .map(|group| name(&group))
        .collect();
    // A running server keeps memory cgroups for some seconds, until their page cache is evicted, and marks them with
    // mode 0700.
    let closed = |group: &Path| {
        std::fs::metadata(group).is_ok_and(|metadata| metadata.permissions().mode() & 0o077 == 0)
    };
    for instance in instances {
        let tag = name(&instance).trim_start_matches("wardian-").to_owned();
        let served = records.tags.get(&tag).copied().unwrap_or(false);
        for group in dirs(&instance) {
            let id = name(&group);
            if served && closed(&group) {
                continue;
            }
            let live = id == KEEPERS || records.containers.contains_key(&id) || kept.contains(&id);
            let processes = members(&group);
            if !live && !occupied.contains(&id) && processes.trim().is_empty() {
                let what = group.display().to_string();
                let (why, instance) = ("no record and no process".into(), Some(tag.clone()));
                leaks.insert(Leak { kind: "cgroup", what, why, instance });
            }
        }
        let used = |group: &PathBuf| {
            std::fs::read_to_string(group.join("cgroup.procs")).is_ok_and(|pids| !pids.trim().is_empty())
        };
        if !records.tags.contains_key(&tag) && !dirs(&instance).iter().any(used) {
            let what = instance.display().to_string();
            leaks.insert(Leak {
                kind: "cgroup",
                what,
                why: "no server has this tag and no process is in it".into(),
                instance: Some(tag),
            });
        }
    }
}

/// The top cgroups of an instance, in all hierarchies.
pub(crate) fn groups(tag: &str) -> Vec<PathBuf> {
    let top = Path::new(CGROUPS);
    let below = std::fs::read_dir(top).into_iter().flatten().flatten().map(|entry| entry.path());
    let groups = std::iter::once(top.to_owned()).chain(below).map(|dir| dir.join(format!("wardian-{tag}")));
    groups.filter(|dir| dir.is_dir()).collect()
}

/// Whether this is the name of an instance's top cgroup.
fn is_instance(name: &str) -> bool {
    // An earlier version used eight digits.
    name.strip_prefix("wardian-")
        .is_some_and(|tag| [8, 32].contains(&tag.len()) && tag.bytes().all(|b| b.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_of_volatile_are_seen() {
        let line = |option: &str| {
            format!("40 27 0:50 / /mnt/x rw - overlay overlay rw,lowerdir=/l,upperdir=/upper,{option}\n")
        };
        assert_eq!(volatile_overlays(line("volatile").as_bytes()), [Path::new("/mnt/x")]);
        assert_eq!(volatile_overlays(line("fsync=volatile").as_bytes()), [Path::new("/mnt/x")]);
        assert!(volatile_overlays(line("index=off").as_bytes()).is_empty());
        let others = line("volatile").replace("=/upper", "=/var/lib/other/upper");
        assert!(volatile_overlays(others.as_bytes()).is_empty());
        assert!(volatile_overlays(b"27 1 254:0 / / rw - ext4 /dev/vda rw\n").is_empty());
    }

    #[test]
    fn a_process_is_traced_to_its_container() {
        let v1 = "9:name=systemd:/wardian-0a1b2c3d/keepers\n8:pids:/wardian-0a1b2c3d/keepers\n";
        assert_eq!(instance_and_group(v1), Some(("0a1b2c3d", "keepers")));
        assert_eq!(instance_and_group("0::/a.slice/wardian-0a1b2c3d/abc\n"), Some(("0a1b2c3d", "abc")));
        assert_eq!(instance_and_group("0::/user.slice\n"), None);
    }

    #[test]
    fn a_keeper_belongs_to_a_record_or_to_a_live_server() {
        let keeper = |tag: &str, id: Option<&str>, parent: bool| Process {
            parent,
            keeper: true,
            tag: tag.into(),
            containers: id.map(str::to_owned).into_iter().collect(),
            ..Process::default()
        };
        let mut records = Records::default();
        records.tags.insert("0a1b2c3d".into(), true);
        let found = |process: Process| {
            let mut leaks = BTreeSet::new();
            keeper_leaks(&[process], &records, &mut leaks);
            leaks.len()
        };
        assert_eq!(found(keeper("0a1b2c3d", None, false)), 0);
        assert_eq!(found(keeper("ffffffff", None, false)), 1);
        assert_eq!(found(keeper("0a1b2c3d", Some("waiting"), false)), 0);
        assert_eq!(found(keeper("0a1b2c3d", Some("lost"), true)), 1);
    }

    #[test]
    fn a_name_makes_no_keeper() {
        let memory = Some(Path::new("/memfd:wardian-keeper (deleted)"));
        let other = Some(Path::new("/home/user/wardian-keeper"));
        assert!(is_keeper(KEEPER, memory, Some("keepers")) && is_keeper("renamed", memory, Some("keepers")));
        assert!(!is_keeper(KEEPER, other, Some("keepers")) && !is_keeper(KEEPER, memory, None));
        // A process of a container, and what a user other than root sees.
        assert!(!is_keeper(KEEPER, memory, Some("0123456789abcdef0123456789abcdef")));
        assert!(is_keeper(KEEPER, None, Some("keepers")) && !is_keeper("sleep", None, Some("keepers")));
        assert!(is_roots("Name:\tx\nUid:\t0\t0\t0\t0\n"));
        assert!(!is_roots("Uid:\t1000\t0\t0\t0\n") && !is_roots("Uid:\t0\t0\t0\t1\n") && !is_roots(""));
    }

    #[test]
    fn instance_names() {
        assert!(is_instance("wardian-0a1b2c3d"));
        assert!(is_instance("wardian-b00e6bf5bba5e51e1eabb1d373af14c7"));
        assert!(!is_instance("wardian-keeper") && !is_instance("wardian-12345") && !is_instance("wardian"));
    }

    #[test]
    fn a_cgroup_without_a_record_is_a_leak() {
        let top = std::env::temp_dir().join(format!("wardian-doctor-{}", std::process::id()));
        let instance = top.join("memory/wardian-0a1b2c3d");
        for id in ["lost", "known", "waiting", "keepers", "cached"] {
            std::fs::create_dir_all(instance.join(id)).unwrap();
        }
        std::fs::set_permissions(instance.join("cached"), std::fs::Permissions::from_mode(0o700)).unwrap();
        let mut records = Records::default();
        records.containers.insert("known".into(), "/x".into());
        records.tags.insert("0a1b2c3d".into(), true);
        let mut leaks = BTreeSet::new();
        cgroup_leaks(&top, &records, &BTreeSet::from(["waiting".to_owned()]), &mut leaks);
        std::fs::remove_dir_all(&top).unwrap();
        let what: Vec<_> = leaks.iter().map(|l| l.what.rsplit('/').next().unwrap_or_default()).collect();
        assert_eq!(what, ["lost"]);
    }
}
