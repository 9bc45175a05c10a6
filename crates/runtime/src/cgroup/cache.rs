//! The page cache that stays charged to the memory cgroup of a destroyed container. Each such page keeps the removed
//! cgroup in kernel memory (about 90 KB of slab and per-processor counters) until memory pressure evicts the page:
//! for days, on a host with enough memory.
//!
//! The remaining pages are seldom the container's files, which go when the files are deleted. They are blocks of
//! directories, inode tables and bitmaps in the page cache of the *device*, which the kernel charges to the cgroup
//! that touched them first. While such a page is dirty the kernel cannot evict it, and a reclaim that meets nothing
//! but dirty pages wakes the flusher for everybody's data (`shrink_inactive_list` in mm/vmscan.c). So this code waits
//! for the flusher's own periodic writeback.

use super::Cgroups;
use super::files::{remove_tree, write_existing};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// Page cache in bytes that is worth more than the cgroup that it keeps: files of layers that the next container
/// reads again.
const WORTH: u64 = 4 << 20;

/// The page cache charged to a cgroup without members.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// No page cache.
    Nothing,
    /// Clean page cache.
    Clean,
    /// Some pages are dirty or under writeback.
    Dirty,
    /// More than `WORTH`: files of layers, or files that are still to be deleted.
    Much,
}

impl Held {
    /// Parses a `memory.stat`, v1 (`total_…`) or v2, which includes the cgroups below.
    fn of(stat: &str, v1: bool) -> Self {
        let sum = |names: [&str; 2]| -> u64 {
            let lines = stat.lines().filter_map(|line| line.split_once(' '));
            lines
                .filter(|(name, _)| names.contains(name))
                .filter_map(|(_, bytes)| bytes.parse::<u64>().ok())
                .fold(0, u64::saturating_add)
        };
        let (cache, dirty) = if v1 {
            (sum(["total_active_file", "total_inactive_file"]), sum(["total_dirty", "total_writeback"]))
        } else {
            (sum(["active_file", "inactive_file"]), sum(["file_dirty", "file_writeback"]))
        };
        match (cache, dirty) {
            (0, 0) => Self::Nothing,
            (_, 1..) => Self::Dirty,
            (cache, 0) if cache > WORTH => Self::Much,
            _ => Self::Clean,
        }
    }
}

impl Cgroups {
    /// Whether anything is charged to the memory cgroup of `id`. The counter is exact, and includes the kernel's own
    /// objects and the charges that processors have stocked ahead.
    pub fn charged(&self, id: &str) -> bool {
        let Some((dir, v1)) = self.place("memory", id).filter(|_| is_ours(id)) else { return false };
        let file = dir.join(if v1 { "memory.usage_in_bytes" } else { "memory.current" });
        fs::read_to_string(file).is_ok_and(|bytes| bytes.trim() != "0")
    }

    /// Marks the memory cgroup of `id` by closing it to other users (mode 0700): it waits for its page cache to go,
    /// and a search for leaked cgroups can recognise it.
    pub fn close_memory(&self, id: &str) {
        if let Some((dir, _)) = self.place("memory", id).filter(|_| is_ours(id)) {
            drop(fs::set_permissions(dir, fs::Permissions::from_mode(0o700)));
        }
    }

    /// What the memory cgroup of `id` holds. The kernel's counters may be two seconds old (`FLUSH_TIME` in
    /// mm/memcontrol.c).
    pub fn held(&self, id: &str) -> Held {
        let Some((dir, v1)) = self.place("memory", id).filter(|_| is_ours(id)) else { return Held::Nothing };
        fs::read_to_string(dir.join("memory.stat")).map_or(Held::Nothing, |stat| Held::of(&stat, v1))
    }

    /// Makes the kernel drop the clean page cache of the cgroup `id`, which must have no members. A kernel that does
    /// not support this (v2 before 5.19) keeps the cache.
    pub fn drop_cache(&self, id: &str) {
        if let Some((dir, v1)) = self.place("memory", id).filter(|_| is_ours(id)) {
            let (file, value) = if v1 {
                ("memory.force_empty", "0".to_owned())
            } else {
                ("memory.reclaim", WORTH.to_string())
            };
            // On v2 EAGAIN means that less than that could be reclaimed.
            drop(write_existing(&dir.join(file), &value));
        }
    }

    /// Removes `id` in all hierarchies but that of the memory controller; `false` if a cgroup is busy. With v2 alone
    /// there is no other hierarchy.
    pub fn remove_but_memory(&self, id: &str) -> bool {
        let memory = self.place("memory", id).map(|(dir, _)| dir);
        let others = self.hierarchies.all().map(|hierarchy| self.dir(hierarchy, id));
        others.filter(|dir| Some(dir) != memory.as_ref()).filter(|dir| !remove_tree(dir)).count() == 0
    }
}

/// Whether this names a cgroup below the top one. The top cgroup and the keepers' must not lose their caches.
fn is_ours(id: &str) -> bool {
    let mut parts = Path::new(id).components();
    !id.is_empty() && id != "keepers" && parts.all(|part| matches!(part, std::path::Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clean_cache_is_dropped_dirty_cache_waited_for_and_much_cache_left() {
        let v1 = |file: u64, dirty: u64, writeback: u64| {
            let text = format!(
                "dirty 4096\nactive_file 4096\ntotal_dirty {dirty}\ntotal_writeback {writeback}\n\
                 total_inactive_file 0\ntotal_active_file {file}\n"
            );
            Held::of(&text, true)
        };
        assert_eq!(
            [v1(0, 0, 0), v1(4096, 0, 0), v1(WORTH + 1, 0, 0)],
            [Held::Nothing, Held::Clean, Held::Much]
        );
        assert_eq!([v1(4096, 4096, 0), v1(4096, 0, 4096)], [Held::Dirty; 2]);
        let v2 = "anon 0\nfile 8192\nfile_dirty 0\nfile_writeback 0\ninactive_file 4096\nactive_file 4096\n";
        assert_eq!(Held::of(v2, false), Held::Clean);
        assert_eq!(Held::of(&v2.replace("file_dirty 0", "file_dirty 4096"), false), Held::Dirty);
        assert_eq!(Held::of("", false), Held::Nothing);
    }

    #[test]
    fn only_cgroups_below_the_top_are_ours() {
        assert!(is_ours("a") && is_ours("a/b") && is_ours("a.b"));
        assert!(!["", "keepers", "..", "a/../..", "/", "."].into_iter().any(is_ours));
    }
}
