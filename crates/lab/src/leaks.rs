//! Finds leaks, which belong to no live container: keepers, attached root file systems, cgroups, directories.

use crate::ground::json;
use crate::instances::{Place, Survey};
use crate::leftovers::{self, Left};
use crate::links;
use crate::loops;
use crate::processes::{self, KEEPER, KEEPERS, Process, is_instance};
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

/// Size limit of an instance's record in bytes.
const MOST: u64 = 1 << 20;
const CGROUPS: &str = "/sys/fs/cgroup";
/// Time between two searches: what was being removed at the first one is gone at the second.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(1);

/// Something that belongs to no live container.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Leak {
    /// `keeper`, `mount`, `cgroup`, `link`, `firewall`, `container`, `rootfs` or `loop`; of an experiment or a recorder that was killed
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

impl Leak {
    /// Whether it is the same object, for whatever reason it counts as leaked.
    fn is(&self, other: &Self) -> bool {
        (self.kind, &self.what, &self.instance) == (other.kind, &other.what, &other.instance)
    }
}

/// The records in the run directories.
#[derive(Debug, Default)]
pub(crate) struct Records {
    /// Directories of containers, by id.
    pub(crate) containers: BTreeMap<String, PathBuf>,
    /// Records of root file systems of this boot, and the mount point of each that is to be attached.
    rootfs: BTreeMap<PathBuf, Option<PathBuf>>,
    /// Writable parts that records of root file systems of this boot name.
    pub(crate) parts: BTreeSet<String>,
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
    let stays = |leak: &Leak| first.leaks.iter().any(|first| first.is(leak));
    now.leaks.retain(stays);
    for instance in &mut now.instances {
        instance.leaks.retain(stays);
        instance.abandoned &= first.instances.iter().any(|i| i.tag == instance.tag && i.abandoned);
    }
    now.instances.retain(|instance| !instance.leaks.is_empty());
    Ok(now)
}

/// The certificate files of running servers, as their records name them.
pub(crate) fn certificates() -> BTreeSet<PathBuf> {
    let processes = processes::list().unwrap_or_default();
    let mut dirs = BTreeSet::from([PathBuf::from("/run/wardian")]);
    dirs.extend(processes.iter().filter_map(run_of_server));
    dirs.extend(
        processes.iter().filter(|process| process.server).flat_map(|server| processes::locks(server.pid)),
    );
    let named = dirs.iter().filter_map(|run| {
        let dir = Directory::open(run).ok()?;
        json(&dir, "instance.json")["certificate"].as_str().map(PathBuf::from)
    });
    named.collect()
}

fn look(runs: &[PathBuf]) -> Result<Survey> {
    let processes = processes::list().context("look at the processes")?;
    let mut dirs: BTreeSet<PathBuf> = runs.iter().filter_map(|p| std::path::absolute(p).ok()).collect();
    for dir in &dirs {
        // A run directory that other users may write to cannot be trusted.
        if let Err(error @ (Untrusted::Owner { .. } | Untrusted::Writable { .. })) = Directory::open(dir) {
            return Err(error).context("--run");
        }
    }
    dirs.insert("/run/wardian".into());
    dirs.extend(runs_of_commands(Path::new("/run")));
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
    mount_leaks(&processes, &records, &mut leaks);
    rootfs_leaks(&mounts, &records, &mut leaks);
    run_leaks(&mounts, &processes, &mut leaks);
    let kept = processes.iter().flat_map(|process| process.containers.iter().cloned()).collect();
    cgroup_leaks(Path::new(CGROUPS), &records, &kept, &mut leaks);
    network_leaks(&processes, &records, &mut leaks);
    loops::leaks(Path::new("/sys/block"), &records, &mut leaks);
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

/// The run directories of stores that `grootfs` uses without a server: `wardian-TAG`.
fn runs_of_commands(dir: &Path) -> Vec<PathBuf> {
    let is_one = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.and_then(|name| name.strip_prefix("wardian-"))
            .is_some_and(|tag| tag.len() == 16 && tag.bytes().all(|b| b.is_ascii_hexdigit()))
    };
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(is_one).collect()
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
            if let Some(Rootfs { attached, part }) = read_rootfs(&record) {
                records.rootfs.insert(record, attached);
                records.parts.extend(part);
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

/// What the record of a root file system says.
struct Rootfs {
    /// The mount point, if it is to be attached.
    attached: Option<PathBuf>,
    /// The name of its writable part.
    part: Option<String>,
}

/// Reads the record of a root file system; `None`: no record of this boot.
fn read_rootfs(path: &Path) -> Option<Rootfs> {
    let name = path.file_name()?.to_str()?;
    if !name.ends_with(".json") || name.starts_with('.') {
        return None;
    }
    let record = json(&Directory::open(path.parent()?).ok()?, name);
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    // The kernel reports mount points without symlinks.
    let real = |path: &str| std::fs::canonicalize(path).unwrap_or_else(|_| path.into());
    (record["boot_id"] == boot.trim()).then(|| Rootfs {
        attached: record["attached"].as_str().map(real),
        part: record["dir"].as_str().map(str::to_owned),
    })
}

/// Whether a record beside the mount point says that a root file system is attached there: whoever asked for it, with
/// or without a server, removes it.
fn is_recorded(point: &Path) -> bool {
    let record = point.file_name().map(|id| {
        let mut name = id.to_owned();
        name.push(".json");
        point.with_file_name(name)
    });
    record.and_then(|record| read_rootfs(&record)?.attached).is_some_and(|attached| attached == point)
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

/// Finds visible root file systems without a record: those of containers are never attached on the host's side. Each is
/// told once, though all mount namespaces that were made meanwhile have a copy of the mount.
fn mount_leaks(processes: &[Process], records: &Records, leaks: &mut BTreeSet<Leak>) {
    let recorded: BTreeSet<&PathBuf> = records.rootfs.values().flatten().collect();
    let mut told = BTreeSet::new();
    for process in processes {
        for point in volatile_overlays(&process.mountinfo) {
            if recorded.contains(&point) || is_recorded(&point) || !told.insert(point.clone()) {
                continue;
            }
            let point = point.display();
            let what = format!("overlay on {point}");
            // The first process with a copy of the mount may be another one in the next search.
            let (pid, comm) = (process.pid, &process.comm);
            let why = format!("a root file system without a record, in process {pid} ({comm})");
            leaks.insert(Leak { kind: "mount", what, why, instance: None });
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

/// Finds links and firewalls of instances without a server that no recorded container uses.
fn network_leaks(processes: &[Process], records: &Records, leaks: &mut BTreeSet<Leak>) {
    let tags = processes.iter().map(|process| &process.tag).filter(|tag| !tag.is_empty());
    let tags = tags.chain(&records.claimed).chain(leaks.iter().filter_map(|leak| leak.instance.as_ref()));
    let owner = |dir: &Path| records.owners.get(dir.parent()?.parent()?).cloned();
    let known = links::Known {
        servers: records.tags.clone(),
        tags: tags.cloned().collect(),
        containers: records.containers.values().map(|dir| (dir.clone(), owner(dir))).collect(),
    };
    for links::Left { kind, what, why, instance } in known.find() {
        leaks.insert(Leak { kind, what, why, instance });
    }
}

/// The top cgroups of an instance, in all hierarchies.
pub(crate) fn groups(tag: &str) -> Vec<PathBuf> {
    let top = Path::new(CGROUPS);
    let below = std::fs::read_dir(top).into_iter().flatten().flatten().map(|entry| entry.path());
    let groups = std::iter::once(top.to_owned()).chain(below).map(|dir| dir.join(format!("wardian-{tag}")));
    groups.filter(|dir| dir.is_dir()).collect()
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

    /// Which process has a copy of a mount is another matter than whether it is leaked.
    #[test]
    fn a_mount_is_the_same_in_whatever_process_it_is_found() {
        let mountinfo =
            b"40 27 0:50 / /nowhere/x rw - overlay overlay rw,lowerdir=/l,upperdir=/upper,volatile\n";
        let found = |pid: u32| {
            let mut leaks = BTreeSet::new();
            let process = Process { pid, mountinfo: mountinfo.to_vec(), ..Process::default() };
            mount_leaks(&[process], &Records::default(), &mut leaks);
            leaks.pop_first().unwrap()
        };
        let (one, other) = (found(7), found(8));
        assert!(one.is(&other) && one.why.contains("process 7") && one.what == "overlay on /nowhere/x");
        assert!(!one.is(&Leak { what: "overlay on /nowhere/y".into(), ..other }));
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
