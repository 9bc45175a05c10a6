//! Kernel behaviours that are known to cause waits, each recognised by what was observed and never by the kernel's
//! version.

use crate::causes::Cause;
use crate::diagnosis::size;
use crate::recording::Recording;
use serde::{Deserialize, Serialize};

/// A wait of at least this many ms needs an explanation.
const LONG_MS: f64 = 100.0;
/// With fewer samples than this, deletions were no mass unlink.
const MASS_SAMPLES: u64 = 5;

/// A known behaviour that was recognised.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// `sync-at-unmount`, `fsync-on-copy-up`, `cgroup-writeback-wait`, `shrinker-lock`, `slow-discard`,
    /// `mass-unlink`, or `unknown`.
    pub id: String,
    /// The observation that identified it.
    pub evidence: String,
    /// The recommendation.
    pub advice: String,
}

/// A known behaviour, and how it is recognised on a kernel stack.
struct Known {
    id: &'static str,
    /// Whether this stack, innermost function first, shows the behaviour.
    shows: fn(&[String]) -> bool,
    /// Minimum number of samples.
    samples: u64,
    advice: &'static str,
}

const KNOWN: &[Known] = &[
    Known {
        id: "sync-at-unmount",
        shows: |stack| {
            has(stack, &["ovl_sync_fs"])
                && has(stack, &["cleanup_mnt", "deactivate_super", "generic_shutdown_super", "umount"])
        },
        samples: 0,
        advice: "the unmount of an overlay syncs the whole file system under it, everybody's data included: mount it `volatile`",
    },
    Known {
        id: "fsync-on-copy-up",
        shows: |stack| {
            // vfs_fsync itself may be missing: its call of the file system's function is the last thing it does.
            let syncs = ["vfs_fsync", "vfs_fsync_range", "ovl_sync_file", "file_write_and_wait_range"];
            let of_upper = ["ext4_sync_file", "xfs_file_fsync", "btrfs_sync_file"];
            starts(stack, "ovl_copy_up") && (has(stack, &syncs) || has(stack, &of_upper))
        },
        samples: 0,
        advice: "each file copied up into an overlay is synced: mount it `volatile`, or do not change owners and modes of files in lower layers",
    },
    Known {
        id: "cgroup-writeback-wait",
        shows: |stack| has(stack, &["cgroup_writeback_umount"]),
        samples: 0,
        advice: "unmounts wait until inodes of all cgroups have changed hands: remove the files first and the cgroup after that, or unmount fewer at a time",
    },
    Known {
        id: "shrinker-lock",
        shows: |stack| {
            has(stack, &["unregister_shrinker", "shrinker_free", "prealloc_shrinker", "register_shrinker"])
                || has(stack, &["shrinker_alloc", "shrinker_register", "unregister_shrinker_delayed"])
        },
        samples: 1,
        advice: "mounts and unmounts wait for each other and for the reclaim of memory behind one lock: mount less often at the same time, and keep memory free",
    },
    Known {
        id: "slow-discard",
        shows: |stack| {
            starts(stack, "blkdev_issue_discard")
                || has(stack, &["__blkdev_issue_discard", "ext4_issue_discard", "xfs_discard_extents"])
                || has(stack, &["submit_bio_wait"]) && has(stack, &["ext4_free_blocks", "ext4_mb_clear_bb"])
        },
        samples: 1,
        advice: "freeing blocks waits for the disk to discard them: mount without `discard` and run fstrim now and then",
    },
    Known {
        id: "mass-unlink",
        shows: |stack| {
            let deletes =
                ["do_unlinkat", "do_rmdir", "ext4_evict_inode", "xfs_inactive", "btrfs_evict_inode"];
            has(stack, &deletes)
        },
        samples: MASS_SAMPLES,
        advice: "deleting many files takes its time: delete off the path that somebody waits on, or throw away a whole file system",
    },
];

fn has(stack: &[String], any: &[&str]) -> bool {
    stack.iter().any(|function| any.contains(&bare_call(function)))
}

/// Strips the prefix: `umount` for `__x64_sys_umount`.
fn bare_call(function: &str) -> &str {
    function.split_once("_sys_").map_or(function, |(_, call)| call)
}

fn starts(stack: &[String], prefix: &str) -> bool {
    stack.iter().any(|function| function.starts_with(prefix))
}

/// The behaviours that a recording shows.
pub(crate) fn of(recording: &Recording) -> Vec<Fingerprint> {
    let mut found: Vec<Fingerprint> = Vec::new();
    for known in KNOWN {
        // A discard during an unlink counts as a slow discard, not as a mass unlink.
        let discards = found.iter().any(|f| f.id == "slow-discard");
        if known.id == "mass-unlink" && discards {
            continue;
        }
        let waits: Vec<_> = recording.waits.iter().filter(|wait| (known.shows)(&wait.stack)).collect();
        let samples: u64 = waits.iter().map(|wait| wait.samples).sum();
        let asked: Vec<_> = recording
            .written
            .iter()
            .filter(|burst| burst.cause == Cause::Sync && (known.shows)(&burst.stack))
            .collect();
        let mut evidence = Vec::new();
        if let Some(longest) = waits.iter().max_by(|a, b| a.ms.total_cmp(&b.ms)) {
            let count = if waits.len() == 1 { "1 wait".to_owned() } else { format!("{} waits", waits.len()) };
            evidence.push(format!(
                "{count}, the longest {:.0} ms: {}",
                longest.ms,
                longest.stack.join(" ← ")
            ));
        }
        if let Some(burst) = asked.iter().max_by_key(|burst| burst.bytes) {
            let bytes: u64 = asked.iter().map(|burst| burst.bytes).sum();
            evidence.push(format!("{} were asked for by {}", size(bytes), burst.stack.join(" ← ")));
        }
        if !evidence.is_empty() && (samples >= known.samples) {
            found.push(Fingerprint {
                id: known.id.to_owned(),
                evidence: evidence.join("; "),
                advice: known.advice.to_owned(),
            });
        }
    }
    let longest = recording.waits.iter().max_by(|a, b| a.ms.total_cmp(&b.ms));
    if found.is_empty()
        && let Some(wait) = longest.filter(|wait| wait.ms >= LONG_MS)
    {
        found.push(Fingerprint {
            id: "unknown".to_owned(),
            evidence: format!("a wait of {:.0} ms: {}", wait.ms, wait.stack.join(" ← ")),
            advice: "it looks like none of the known behaviours: the stack says where to ask".to_owned(),
        });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recording::{Task, Wait};

    fn of_stack(stack: &str, samples: u64) -> Vec<String> {
        let stack = stack.split(' ').map(str::to_owned).collect();
        let wait = Wait { task: Task::default(), ms: 200.0, stack, samples, ..Wait::default() };
        of(&Recording { waits: vec![wait], ..Recording::default() }).into_iter().map(|f| f.id).collect()
    }

    #[test]
    fn each_by_its_stack() {
        for (stack, samples, id) in [
            (
                "wb_wait_for_completion __writeback_inodes_sb_nr sync_filesystem ovl_sync_fs sync_filesystem \
                 generic_shutdown_super kill_anon_super deactivate_locked_super cleanup_mnt task_work_run",
                10,
                "sync-at-unmount",
            ),
            (
                "folio_wait_writeback vfs_fsync_range ovl_copy_up_file ovl_copy_up_flags",
                1,
                "fsync-on-copy-up",
            ),
            (
                "folio_wait_bit_common folio_wait_writeback __filemap_fdatawait_range file_write_and_wait_range \
                 ext4_sync_file ovl_copy_up_file ovl_copy_up_one ovl_copy_up_flags ovl_setattr notify_change",
                9,
                "fsync-on-copy-up",
            ),
            (
                "schedule cgroup_writeback_umount generic_shutdown_super cleanup_mnt",
                1,
                "cgroup-writeback-wait",
            ),
            ("down_write unregister_shrinker deactivate_locked_super cleanup_mnt", 1, "shrinker-lock"),
            ("submit_bio_wait blkdev_issue_discard ext4_free_blocks evict do_unlinkat", 9, "slow-discard"),
            ("io_schedule bit_wait_io ext4_evict_inode evict do_unlinkat", 9, "mass-unlink"),
            ("io_schedule bit_wait_io ext4_evict_inode evict do_unlinkat", 2, "unknown"),
            ("io_schedule something_new", 9, "unknown"),
            // The sync at the unmount of the file system itself is not an overlay's.
            ("wb_wait_for_completion sync_filesystem generic_shutdown_super cleanup_mnt", 9, "unknown"),
        ] {
            assert_eq!(of_stack(stack, samples), [id], "{stack}");
        }
    }

    #[test]
    fn what_is_short_needs_no_explanation() {
        let wait = Wait { ms: 50.0, stack: vec!["something_new".into()], samples: 2, ..Wait::default() };
        assert!(of(&Recording { waits: vec![wait], ..Recording::default() }).is_empty());
    }
}
