//! How much memory this process may use.

use crate::procfs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// A budget of `bytes`, but at most one `of`-th of the memory that was available to this process at the first call.
pub fn budget(bytes: usize, of: usize) -> usize {
    static MEMORY: OnceLock<u64> = OnceLock::new();
    let memory = *MEMORY.get_or_init(of_this_process);
    bytes.min(usize::try_from(memory).unwrap_or(usize::MAX) / of)
}

/// The host's memory in bytes, or the lowest limit of this process's memory cgroups, v1 or v2, if that is less.
pub fn of_this_process() -> u64 {
    let host = rustix::system::sysinfo();
    let host = host.totalram * u64::from(host.mem_unit);
    let read = |path: &str| std::fs::read(path).unwrap_or_default();
    let cgroup = read("/proc/self/cgroup");
    let limits = limits(read("/proc/self/mountinfo"), &String::from_utf8_lossy(&cgroup));
    // "max", and files that do not exist, are no limits.
    let limits = limits.iter().filter_map(|file| std::fs::read_to_string(file).ok()?.trim().parse().ok());
    limits.fold(host, u64::min)
}

/// The paths of the limit files, from the texts of `/proc/self/mountinfo` and `/proc/self/cgroup` (cgroups(7)).
fn limits(mountinfo: impl AsRef<[u8]>, cgroup: &str) -> Vec<PathBuf> {
    let Ok(mounts) = procfs::mountinfo(mountinfo) else { return Vec::new() };
    let mut files = Vec::new();
    for line in cgroup.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let (kind, file) = match controllers {
            "" => ("cgroup2", "memory.max"),
            v1 if v1.split(',').any(|controller| controller == "memory") => {
                ("cgroup", "memory.limit_in_bytes")
            }
            _ => continue,
        };
        let fits = |mount: &&procfs::MountInfo| {
            let has_memory = || mount.super_options.iter().any(|option| option == "memory");
            mount.fs_type == kind && (kind == "cgroup2" || has_memory())
        };
        let Some(mount) = mounts.iter().find(fits) else { continue };
        // A mount may show only part of the hierarchy: the cgroups above its root cannot be seen.
        let below = Path::new(path).strip_prefix(&mount.root).unwrap_or(Path::new(""));
        files.extend(below.ancestors().map(|cgroup| mount.mount_point.join(cgroup).join(file)));
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "30 24 0:26 / /cg/memory rw shared:1 - cgroup cgroup rw,memory\n\
                      31 24 0:27 / /cg/unified rw shared:2 - cgroup2 cgroup2 rw\n";

    #[test]
    fn limits_are_found_up_to_the_top() {
        let found = limits(V1, "4:memory:/a/b\n3:cpuset:/\n0::/u\n");
        let expected = [
            "/cg/memory/a/b/memory.limit_in_bytes",
            "/cg/memory/a/memory.limit_in_bytes",
            "/cg/memory/memory.limit_in_bytes",
            "/cg/unified/u/memory.max",
            "/cg/unified/memory.max",
        ];
        assert_eq!(found, expected.map(PathBuf::from));
        assert_eq!(limits("nonsense", "0::/"), Vec::<PathBuf>::new());
        assert_eq!(limits(V1, "nonsense"), Vec::<PathBuf>::new());
    }

    #[test]
    fn there_is_some() {
        assert!(of_this_process() > 1 << 20);
        assert_eq!(budget(4096, 2), 4096);
        assert!(budget(usize::MAX, 8) <= usize::try_from(of_this_process()).unwrap() / 4);
    }
}
