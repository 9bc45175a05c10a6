//! The cgroup versions and controllers of the host.

use serde::Serialize;
use std::path::PathBuf;
use wardian_sys::procfs::MountInfo;

/// The cgroups of this host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Cgroups {
    /// `v1`, `v2`, `hybrid` (both are mounted) or `none`.
    pub version: &'static str,
    /// Controllers in hierarchies of version 1.
    pub v1: Vec<String>,
    /// Controllers in the hierarchy of version 2.
    pub v2: Vec<String>,
    /// Mount point of version 2.
    #[serde(skip)]
    pub unified: Option<PathBuf>,
}

impl Cgroups {
    /// Determines the cgroups from the mounts. `controllers` reads the file `cgroup.controllers` in a directory.
    pub fn from_mounts(mounts: &[MountInfo], controllers: impl Fn(&PathBuf) -> String) -> Self {
        const KNOWN: [&str; 14] = [
            "cpu",
            "cpuacct",
            "cpuset",
            "memory",
            "devices",
            "freezer",
            "blkio",
            "pids",
            "net_cls",
            "net_prio",
            "perf_event",
            "hugetlb",
            "rdma",
            "misc",
        ];
        let of = |kind: &'static str| mounts.iter().filter(move |mount| mount.fs_type == kind);
        let mut v1: Vec<String> = of("cgroup")
            .flat_map(|mount| &mount.super_options)
            .filter(|option| KNOWN.contains(&option.as_str()))
            .cloned()
            .collect();
        v1.sort();
        v1.dedup();
        let unified = of("cgroup2").next().map(|mount| mount.mount_point.clone());
        let v2 = unified.as_ref().map(controllers).unwrap_or_default();
        let version = match (of("cgroup").next().is_some(), unified.is_some()) {
            (true, true) => "hybrid",
            (true, false) => "v1",
            (false, true) => "v2",
            (false, false) => "none",
        };
        Self { version, v1, v2: v2.split_ascii_whitespace().map(str::to_owned).collect(), unified }
    }

    /// The controllers that limit containers and that neither version has.
    pub fn missing(&self) -> Vec<&'static str> {
        let has = |name: &str| self.v1.iter().chain(&self.v2).any(|controller| controller == name);
        ["cpu", "memory", "pids"].into_iter().filter(|name| !has(name)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wardian_sys::procfs::mountinfo;

    #[test]
    fn versions() {
        let v1 = "30 1 0:30 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpuacct,cpu\n\
                  31 1 0:31 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n";
        let v2 = "32 1 0:32 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n";
        let found = |text: &str| {
            Cgroups::from_mounts(&mountinfo(text).unwrap(), |dir| {
                assert_eq!(dir.to_str(), Some("/sys/fs/cgroup"));
                "cpuset cpu io memory pids\n".into()
            })
        };
        let first = found(v1);
        assert_eq!((first.version, first.v1.join(" ")), ("v1", "cpu cpuacct".into()));
        assert_eq!(first.missing(), ["memory", "pids"]);
        assert_eq!((found(v2).version, found(v2).missing()), ("v2", vec![]));
        assert_eq!(found(&format!("{v1}{v2}")).version, "hybrid");
        assert_eq!((found("").version, found("").missing().len()), ("none", 3));
    }
}
