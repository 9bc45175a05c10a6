//! Derives the cause of a write from a kernel stack, a flusher's reason, a thread's name or a system call.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Why data went to the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Cause {
    /// Too many dirty pages (`dirty_background_ratio`), or memory was being reclaimed.
    MemoryPressure,
    /// The data was older than `dirty_expire_centisecs`.
    Age,
    /// A requested sync: `sync`, `syncfs`, `fsync`, `umount`, …
    Sync,
    /// A file that had been truncated, or replaced by rename, was closed, and the file system wrote it at once.
    FlushAtClose,
    /// The file system's journal was committed or checkpointed, and in ext4's ordered mode the data with it.
    JournalCommit,
    /// Direct I/O (O_DIRECT), which bypasses the page cache.
    Direct,
    /// The file system is nearly full: ext4 writes what is dirty, to learn how much space it takes (`fs_free_space`).
    LittleSpace,
    /// Of discards: the file system has freed blocks, because files were deleted or truncated, and is mounted with
    /// `discard`.
    Deletion,
    /// Of discards: `fstrim`, or the same by another program.
    Trim,
    /// The cause could not be determined.
    Unknown,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::MemoryPressure => "memory pressure",
            Self::Age => "age",
            Self::Sync => "a sync",
            Self::FlushAtClose => "a flush at close",
            Self::JournalCommit => "a commit of the journal",
            Self::Direct => "direct I/O",
            Self::LittleSpace => "little free space",
            Self::Deletion => "the deletion of files",
            Self::Trim => "a trim",
            Self::Unknown => "a cause that could not be told",
        })
    }
}

/// Functions that identify a cause, by precedence: the first of these that is anywhere on the stack decides. A file
/// system that reclaims memory or journal space during another operation writes for that reason.
const TELLING: &[(&str, Cause)] = &[
    // Reclaim, also within a system call (mm/vmscan.c).
    ("shrink_folio_list", Cause::MemoryPressure),
    ("shrink_page_list", Cause::MemoryPressure),
    ("swap_writepage", Cause::MemoryPressure),
    ("swap_writeout", Cause::MemoryPressure),
    // Direct I/O, which bypasses the page cache.
    ("iomap_dio_rw", Cause::Direct),
    ("__iomap_dio_rw", Cause::Direct),
    ("blkdev_direct_IO", Cause::Direct),
    ("__blockdev_direct_IO", Cause::Direct),
    // Requested syncs.
    ("sync_filesystem", Cause::Sync),
    ("ksys_sync", Cause::Sync),
    ("iterate_supers", Cause::Sync),
    ("vfs_fsync_range", Cause::Sync),
    ("do_fsync", Cause::Sync),
    ("ksys_sync_file_range", Cause::Sync),
    ("generic_write_sync", Cause::Sync),
    ("generic_shutdown_super", Cause::Sync),
    ("freeze_super", Cause::Sync),
    // Each file system's own fsync: the compiler may leave no trace of vfs_fsync on the stack.
    ("file_write_and_wait_range", Cause::Sync),
    ("ext4_sync_file", Cause::Sync),
    ("xfs_file_fsync", Cause::Sync),
    ("btrfs_sync_file", Cause::Sync),
    // Delayed allocation is resolved at close and rename (ext4: auto_da_alloc); XFS flushes at close after a
    // truncation, and before a truncation.
    ("ext4_alloc_da_blocks", Cause::FlushAtClose),
    ("ext4_release_file", Cause::FlushAtClose),
    ("xfs_file_release", Cause::FlushAtClose),
    ("xfs_release", Cause::FlushAtClose),
    ("xfs_setattr_size", Cause::FlushAtClose),
    ("btrfs_release_file", Cause::FlushAtClose),
    ("filp_flush", Cause::FlushAtClose),
    // Journal writes: ext4, XFS.
    ("jbd2_journal_commit_transaction", Cause::JournalCommit),
    ("jbd2_log_do_checkpoint", Cause::JournalCommit),
    ("jbd2_write_superblock", Cause::JournalCommit),
    ("xlog_cil_push_work", Cause::JournalCommit),
    ("xlog_state_release_iclog", Cause::JournalCommit),
    ("xfsaild", Cause::JournalCommit),
    ("xfs_log_worker", Cause::JournalCommit),
    ("btrfs_commit_transaction", Cause::JournalCommit),
];

/// Functions that identify the cause of a discard, by precedence.
const DISCARDING: &[(&str, Cause)] = &[
    // ioctl(FITRIM) on a file system, ioctl(BLKDISCARD) on a device.
    ("ext4_trim_fs", Cause::Trim),
    ("xfs_ioc_trim", Cause::Trim),
    ("btrfs_trim_fs", Cause::Trim),
    ("btrfs_ioctl_fitrim", Cause::Trim),
    ("f2fs_trim_fs", Cause::Trim),
    ("fat_trim_fs", Cause::Trim),
    ("blk_ioctl_discard", Cause::Trim),
    ("blkdev_ioctl", Cause::Trim),
    // Freed blocks: at once, by the commit of the journal, or by a worker after it.
    ("ext4_issue_discard", Cause::Deletion),
    ("ext4_process_freed_data", Cause::Deletion),
    ("ext4_discard_work", Cause::Deletion),
    ("ext4_free_blocks", Cause::Deletion),
    ("xfs_discard_extents", Cause::Deletion),
    ("btrfs_discard_extent", Cause::Deletion),
    ("btrfs_issue_discard", Cause::Deletion),
    ("btrfs_finish_extent_commit", Cause::Deletion),
    ("btrfs_discard_workfn", Cause::Deletion),
    ("f2fs_submit_discard", Cause::Deletion),
    ("fat_free_clusters", Cause::Deletion),
];

/// The cause of a discard that a stack identifies, and by which function.
pub(crate) fn of_discard(stack: &[String]) -> (Cause, Option<&'static str>) {
    let found = DISCARDING.iter().find(|(name, _)| stack.iter().any(|f| f.contains(name)));
    found.map_or((Cause::Unknown, None), |(name, cause)| (*cause, Some(*name)))
}

/// The cause that a stack identifies, and by which function.
pub(crate) fn of_stack(stack: &[String]) -> Option<(Cause, &'static str)> {
    TELLING.iter().find(|(name, _)| stack.iter().any(|f| f == name)).map(|(name, cause)| (*cause, *name))
}

/// The cause of a flusher's reason (enum wb_reason in include/linux/backing-dev-defs.h).
pub(crate) fn of_reason(reason: &str) -> Cause {
    match reason {
        "background" | "vmscan" | "try_to_free_pages" | "foreign_flush" => Cause::MemoryPressure,
        "periodic" | "laptop_timer" => Cause::Age,
        "sync" => Cause::Sync,
        "fs_free_space" => Cause::LittleSpace,
        _ => Cause::Unknown,
    }
}

/// The cause that a kernel thread's name stands for.
pub(crate) fn of_thread(comm: &str) -> Option<Cause> {
    let starts = |prefix| comm.starts_with(prefix);
    if starts("jbd2/") || starts("xfsaild/") || starts("xfs-cil/") || starts("btrfs-transacti") {
        Some(Cause::JournalCommit)
    } else if starts("kswapd") {
        Some(Cause::MemoryPressure)
    } else {
        None
    }
}

/// The cause that a system call stands for.
pub(crate) fn of_call(call: &str) -> Option<Cause> {
    let asks = ["sync", "syncfs", "fsync", "fdatasync", "sync_file_range", "msync", "umount"];
    asks.contains(&call).then_some(Cause::Sync)
}

/// The system call at the outer end of a stack.
pub(crate) fn call_of(stack: &[String]) -> Option<String> {
    let entry = stack.iter().rev().find_map(|function| {
        let call = function
            .strip_prefix("__x64_sys_")
            .or_else(|| function.strip_prefix("__arm64_sys_"))
            .or_else(|| function.strip_prefix("__do_sys_"))
            .or_else(|| function.strip_prefix("__se_sys_"))
            .or_else(|| function.strip_prefix("ksys_"))?;
        Some(call.to_owned())
    });
    // Task work, deferred to the return from a call or to the end of the process, has no call on its stack.
    let has = |name: &str| stack.iter().any(|function| function == name);
    entry.filter(|call| call != "exit" && call != "exit_group").or_else(|| {
        if has("do_exit") {
            Some("exit".into())
        } else if has("task_work_run") {
            Some("task_work".into())
        } else {
            None
        }
    })
}

/// Functions that only put a thread to sleep, and do not tell what it waits for.
const SLEEPING: &[&str] = &[
    "schedule",
    "__schedule",
    "schedule_timeout",
    "schedule_preempt_disabled",
    "io_schedule",
    "io_schedule_timeout",
    "bit_wait",
    "bit_wait_io",
    "__wait_on_bit",
    "__wait_on_bit_lock",
    "out_of_line_wait_on_bit",
    "out_of_line_wait_on_bit_lock",
    "wait_for_completion",
    "wait_for_completion_io",
    "wait_for_completion_io_timeout",
    "__wait_for_common",
    "wait_for_common_io",
    "submit_bio_wait",
    "folio_wait_bit",
    "folio_wait_bit_common",
    "folio_wait_writeback",
    "wait_on_page_bit",
    "wait_on_page_bit_common",
    "wait_on_page_writeback",
    "__down_read",
    "__down_write",
    "down_read",
    "down_write",
    "rwsem_down_read_slowpath",
    "rwsem_down_write_slowpath",
    "__mutex_lock",
    "__mutex_lock_slowpath",
    "mutex_lock",
];

/// The first function that tells what the thread waits for.
pub(crate) fn meaningful(stack: &[String]) -> Option<&String> {
    stack.iter().find(|function| !SLEEPING.contains(&function.as_str())).or(stack.first())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stack(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    /// Stacks as this kernel's `block_bio_queue` reports them.
    #[test]
    fn stacks() {
        for (text, cause, call) in [
            (
                "submit_bio_noacct_nocheck ext4_io_submit ext4_do_writepages ext4_writepages do_writepages \
                 filemap_fdatawrite_wbc __filemap_fdatawrite_range ext4_release_file __fput task_work_run \
                 exit_to_user_mode_loop do_syscall_64",
                Some((Cause::FlushAtClose, "ext4_release_file")),
                Some("task_work"),
            ),
            (
                "submit_bio_noacct_nocheck ext4_io_submit ext4_do_writepages do_writepages \
                 file_write_and_wait_range ext4_sync_file do_fsync __x64_sys_fsync do_syscall_64",
                Some((Cause::Sync, "do_fsync")),
                Some("fsync"),
            ),
            (
                "submit_bio_noacct_nocheck __block_write_full_folio blkdev_writepages do_writepages \
                 sync_filesystem __x64_sys_syncfs do_syscall_64",
                Some((Cause::Sync, "sync_filesystem")),
                Some("syncfs"),
            ),
            (
                "submit_bio_noacct_nocheck jbd2_journal_commit_transaction kjournald2 kthread ret_from_fork",
                Some((Cause::JournalCommit, "jbd2_journal_commit_transaction")),
                None,
            ),
            ("submit_bio_noacct_nocheck something_new __x64_sys_write", None, Some("write")),
        ] {
            assert_eq!(of_stack(&stack(text)), cause, "{text}");
            assert_eq!(call_of(&stack(text)).as_deref(), call, "{text}");
        }
        let at_end =
            stack("filemap_flush ext4_release_file __fput task_work_run do_exit __x64_sys_exit_group");
        assert_eq!(call_of(&at_end).as_deref(), Some("exit"));
    }

    #[test]
    fn sleeping_says_nothing() {
        let of = |text: &str| meaningful(&stack(text)).cloned();
        assert_eq!(of("io_schedule folio_wait_bit_common jbd2_x").as_deref(), Some("jbd2_x"));
        assert_eq!(of("wb_wait_for_completion sync_inodes_sb").as_deref(), Some("wb_wait_for_completion"));
        assert_eq!(of("io_schedule").as_deref(), Some("io_schedule"));
    }
}
