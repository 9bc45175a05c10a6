//! Whose a leak is: the instances on this host, which of their servers live, and which of them belong to nobody.

use crate::leaks::{self, KEEPERS, Leak, Process, Records};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use wardian_sys::procfs;

/// Levels of a tmpfs that are searched for run directories.
const DEPTH: usize = 32;
/// Entries that are looked at for it, on all of them.
const ENTRIES: usize = 300_000;
const RECORD: &str = "instance.json";
/// Bytes of a record.
const MOST: u64 = 1 << 20;

/// Run directories that nobody has named.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) runs: BTreeSet<PathBuf>,
    /// Tags that have a record, also where only others can see it.
    pub(crate) tags: BTreeSet<String>,
    /// Why there may be more of them.
    pub(crate) doubt: Option<String>,
}

impl Found {
    /// Those of running servers, however they were told, and those that dead ones have left: records are on a tmpfs.
    pub(crate) fn look(processes: &[Process]) -> Self {
        let mut found = Self::default();
        for server in processes.iter().filter(|process| process.server) {
            let runs = locks(server.pid);
            if runs.is_empty() {
                found.doubt = Some(format!(
                    "the run directory of the server with process id {} is not known",
                    server.pid
                ));
            }
            found.runs.extend(runs);
        }
        let mut left = ENTRIES;
        for (root, mountinfo) in namespaces() {
            for mount in procfs::mountinfo(&mountinfo).unwrap_or_default() {
                let point = root.join(mount.mount_point.strip_prefix("/").unwrap_or(&mount.mount_point));
                if mount.fs_type == "tmpfs" && !found.walk(&point, DEPTH, &mut left) {
                    found.doubt =
                        Some(format!("{} holds too much to be searched for records", point.display()));
                }
            }
        }
        found
    }

    /// Whether everything was seen.
    fn walk(&mut self, dir: &Path, depth: usize, left: &mut usize) -> bool {
        let Ok(own) = std::fs::symlink_metadata(dir) else { return true };
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            if *left == 0 {
                return false;
            }
            *left -= 1;
            // Only root's say something; what is mounted there is looked at for itself.
            let Some(meta) = entry.metadata().ok().filter(|m| m.uid() == 0 && m.dev() == own.dev()) else {
                continue;
            };
            if entry.file_name() == RECORD && meta.is_file() && meta.len() < MOST {
                let text = std::fs::read(entry.path()).unwrap_or_default();
                let record: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
                self.tags.extend(record["tag"].as_str().map(str::to_owned));
                if !dir.starts_with("/proc") {
                    self.runs.insert(dir.to_owned());
                }
            }
            if meta.is_dir() && (depth == 0 || !self.walk(&entry.path(), depth - 1, left)) {
                return false;
            }
        }
        true
    }
}

/// The mount namespaces on this host, by a path to what is mounted in each: a server need not be in ours. Those of containers
/// hold no records.
fn namespaces() -> Vec<(PathBuf, String)> {
    let own = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut known: BTreeSet<PathBuf> = std::fs::read_link("/proc/self/ns/mnt").into_iter().collect();
    let mut found = vec![(PathBuf::from("/"), own)];
    for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let read = |name: &str| std::fs::read_to_string(process.path().join(name)).unwrap_or_default();
        let Ok(namespace) = std::fs::read_link(process.path().join("ns/mnt")) else { continue };
        if known.contains(&namespace) || leaks::instance_and_group(&read("cgroup")).is_some() {
            continue;
        }
        known.insert(namespace);
        found.push((process.path().join("root"), read("mountinfo")));
    }
    found
}

/// The run directories whose lock files a process has open.
pub(crate) fn locks(pid: u32) -> BTreeSet<PathBuf> {
    let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let links = fds.filter_map(|fd| std::fs::read_link(fd.path()).ok());
    let dirs = links.filter(|path| path.is_absolute() && path.ends_with("lock"));
    dirs.filter_map(|path| Some(path.parent()?.to_owned())).filter(|dir| dir.join(RECORD).exists()).collect()
}

/// What an instance has left.
#[derive(Debug, Clone, Serialize)]
pub struct Instance {
    /// It is part of the names of all that the instance makes.
    pub tag: String,
    /// Its run directory and its store, if there is a record of it.
    pub place: Option<Place>,
    /// Nothing and nobody can take it up again: no server has its tag, and no record on this host is of it.
    pub abandoned: bool,
    /// What it has left.
    pub leaks: Vec<Leak>,
}

/// Where an instance lives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Place {
    /// Its run directory.
    pub run: PathBuf,
    /// Its store.
    pub root: Option<PathBuf>,
    /// Its server runs.
    pub lives: bool,
}

/// All that was left behind.
#[derive(Debug, Default)]
pub struct Survey {
    /// One by one.
    pub leaks: BTreeSet<Leak>,
    /// By instance; what is of none is not in it.
    pub instances: Vec<Instance>,
    /// Why it is not known whether an instance belongs to nobody.
    pub doubt: Option<String>,
}

impl Survey {
    pub(crate) fn new(
        leaks: BTreeSet<Leak>,
        processes: &[Process],
        records: &Records,
        doubt: Option<String>,
    ) -> Self {
        let mut by_tag = BTreeMap::<String, Vec<Leak>>::new();
        for leak in &leaks {
            if let Some(tag) = &leak.instance {
                by_tag.entry(tag.clone()).or_default().push(leak.clone());
            }
        }
        let instances = by_tag.into_iter().map(|(tag, leaks)| Instance {
            place: records.places.get(&tag).cloned(),
            abandoned: doubt.is_none() && is_abandoned(&tag, processes, records),
            tag,
            leaks,
        });
        Self { instances: instances.collect(), leaks, doubt }
    }

    /// What is of no instance.
    pub fn others(&self) -> Vec<&Leak> {
        self.leaks.iter().filter(|leak| leak.instance.is_none()).collect()
    }
}

/// Whether nobody has or can take up an instance. Everything in its cgroups may be ended then, for nothing but an instance
/// of that tag puts anything there.
fn is_abandoned(tag: &str, processes: &[Process], records: &Records) -> bool {
    // A server stands in the cgroup of its keepers, with one thread at least.
    let server = || {
        leaks::groups(tag).iter().any(|top| {
            let members = std::fs::read_to_string(top.join(KEEPERS).join("cgroup.procs")).unwrap_or_default();
            members.split_whitespace().any(|pid| {
                let keeper = processes.iter().any(|p| p.keeper && p.pid.to_string() == pid);
                !keeper && Path::new("/proc").join(pid).exists()
            })
        })
    };
    let recorded = || {
        let named = leaks::groups(tag)
            .into_iter()
            .flat_map(|top| std::fs::read_dir(top).into_iter().flatten().flatten());
        named.into_iter().any(|group| records.containers.contains_key(&*group.file_name().to_string_lossy()))
            || processes
                .iter()
                .any(|p| p.tag == tag && p.containers.iter().any(|id| records.containers.contains_key(id)))
    };
    !records.tags.contains_key(tag) && !records.claimed.contains(tag) && !server() && !recorded()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAG: &str = "0a1b2c3d0a1b2c3d0a1b2c3d0a1b2c3d";

    fn keeper(id: &str) -> Process {
        let containers = BTreeSet::from([id.to_owned()]);
        Process {
            pid: 1 << 30,
            keeper: true,
            tag: TAG.into(),
            containers,
            parent: true,
            ..Process::default()
        }
    }

    #[test]
    fn an_instance_with_a_server_or_a_record_is_somebodys() {
        let none = Records::default();
        assert!(is_abandoned(TAG, &[keeper("a")], &none));
        let mut tagged = Records::default();
        // Also one whose server does not run: its next one takes everything up.
        tagged.tags.insert(TAG.into(), false);
        assert!(!is_abandoned(TAG, &[keeper("a")], &tagged));
        let mut recorded = Records::default();
        recorded.containers.insert("a".into(), "/run/x/containers/a".into());
        assert!(!is_abandoned(TAG, &[keeper("a")], &recorded));
        assert!(is_abandoned(TAG, &[keeper("b")], &recorded));
    }

    #[test]
    fn doubt_makes_nothing_abandoned() {
        let leak =
            Leak { kind: "keeper", what: "process 1".into(), why: String::new(), instance: Some(TAG.into()) };
        let survey = |doubt| Survey::new(BTreeSet::from([leak.clone()]), &[], &Records::default(), doubt);
        assert!(survey(None).instances[0].abandoned);
        assert!(!survey(Some("x".into())).instances[0].abandoned);
    }

    #[test]
    fn records_are_found_without_being_named() {
        let Ok(base) = tempfile::tempdir_in("/dev/shm") else { return };
        if std::fs::metadata(base.path()).map_or(true, |m| m.uid() != 0) {
            return;
        }
        let run = base.path().join("some/where");
        std::fs::create_dir_all(&run).unwrap();
        std::fs::write(run.join("instance.json"), "{}").unwrap();
        let mut found = Found::default();
        assert!(found.walk(base.path(), DEPTH, &mut 10) && found.runs.contains(&run));
        assert!(!found.walk(base.path(), DEPTH, &mut 1));
    }
}
