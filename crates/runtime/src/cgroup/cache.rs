//! The page cache that a container leaves charged to its memory cgroup. Each page keeps the cgroup in the kernel's memory after its
//! removal (about 90 KB of slab and per-processor counters), until something else presses the page out: days, on a host with
//! enough memory.
//!
//! What stays is seldom the container's files, whose pages go when the files are deleted. It is blocks of directories, inode
//! tables and bitmaps, which the page cache of the *device* holds and the kernel charges to whoever touched them first. While
//! such a page is dirty the kernel can not let it go; and a reclaim that meets nothing but dirty pages wakes the flusher for
//! everybody's data (`shrink_inactive_list` in mm/vmscan.c). So the flusher's own round is waited for.

use super::{Cgroups, write_existing};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// Page cache that is worth more than the cgroup that it keeps, in bytes: files of layers that the next container reads again.
const WORTH: u64 = 4 << 20;

/// What a cgroup without members holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// Nothing that would outlive it.
    Nothing,
    /// Clean page cache.
    Clean,
    /// Some of it is still to be written.
    Dirty,
    /// More than may be dropped: layers, or files that are still to be deleted.
    Much,
}

impl Held {
    /// From the text of a `memory.stat`, v1 (`total_…`) or v2: the cgroup and those below it.
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
    /// Whether anything is charged to the memory cgroup of `id`: an exact figure, which has the kernel's own objects and
    /// what processors have charged ahead in it.
    pub fn charged(&self, id: &str) -> bool {
        let Some((dir, v1)) = self.place("memory", id).filter(|_| is_ours(id)) else { return false };
        let file = dir.join(if v1 { "memory.usage_in_bytes" } else { "memory.current" });
        fs::read_to_string(file).is_ok_and(|bytes| bytes.trim() != "0")
    }

    /// Close the memory cgroup of `id` to others: it waits for its page cache to go, and whoever looks for what was left
    /// behind can tell.
    pub fn close_memory(&self, id: &str) {
        if let Some((dir, _)) = self.place("memory", id).filter(|_| is_ours(id)) {
            drop(fs::set_permissions(dir, fs::Permissions::from_mode(0o700)));
        }
    }

    /// What the memory cgroup of `id` holds. The kernel's figures may be two seconds old
    /// (`FLUSH_TIME` in mm/memcontrol.c).
    pub fn held(&self, id: &str) -> Held {
        let Some((dir, v1)) = self.place("memory", id).filter(|_| is_ours(id)) else { return Held::Nothing };
        fs::read_to_string(dir.join("memory.stat")).map_or(Held::Nothing, |stat| Held::of(&stat, v1))
    }

    /// Let the kernel drop the clean page cache of the cgroup `id`, which must have no members. A kernel that cannot (v2
    /// before 5.19) keeps it.
    pub fn drop_cache(&self, id: &str) {
        if let Some((dir, v1)) = self.place("memory", id).filter(|_| is_ours(id)) {
            let (file, value) = if v1 {
                ("memory.force_empty", "0".to_owned())
            } else {
                ("memory.reclaim", WORTH.to_string())
            };
            // v2 answers EAGAIN when there was less than that.
            drop(write_existing(&dir.join(file), &value));
        }
    }

    /// Remove `id` in all hierarchies but that of the memory controller; `false`: something is busy. With v2 alone there is no
    /// other.
    pub fn remove_but_memory(&self, id: &str) -> bool {
        let memory = self.place("memory", id).map(|(dir, _)| dir);
        let others = self.hierarchies.all().map(|hierarchy| self.dir(hierarchy, id));
        others.filter(|dir| Some(dir) != memory.as_ref()).filter(|dir| !super::remove_tree(dir)).count() == 0
    }
}

/// Whether this names a cgroup below the top one: neither that nor the keepers' is to lose its cache.
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
