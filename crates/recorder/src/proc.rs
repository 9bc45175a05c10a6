//! Parsers for files of /proc and /sys that only the recorder reads. They take text, never files.

use crate::recording::Io;
use crate::trace::bare;
use std::collections::BTreeMap;

/// Counters of /proc/vmstat about writeback and reclaim.
const COUNTERS: &[&str] = &[
    "nr_dirtied",
    "nr_written",
    "nr_vmscan_write",
    "nr_vmscan_immediate_reclaim",
    "nr_throttled_written",
    "pgscan_kswapd",
    "pgscan_direct",
    "pgsteal_kswapd",
    "pgsteal_direct",
    "pswpout",
    "allocstall_normal",
    "allocstall_movable",
];

/// The values of [`COUNTERS`] in a `vmstat` file.
pub(crate) fn vmstat(text: &str) -> BTreeMap<&'static str, u64> {
    let counter = |line: &str| {
        let (name, value) = line.split_once(' ')?;
        Some((*COUNTERS.iter().find(|counter| **counter == name)?, value.trim().parse().ok()?))
    };
    text.lines().filter_map(counter).collect()
}

/// The dirty thresholds in force, in pages: the background threshold, and the one at which writers are throttled.
pub(crate) fn thresholds(text: &str) -> Option<(u64, u64)> {
    let value = |name: &str| text.lines().find_map(|l| l.strip_prefix(name)?.trim().parse().ok());
    Some((value("nr_dirty_background_threshold ")?, value("nr_dirty_threshold ")?))
}

/// Parses the `stat` file of a block device (Documentation/block/stat.rst).
pub(crate) fn device_stat(text: &str) -> Option<Io> {
    let values: Vec<u64> = text.split_whitespace().map_while(|word| word.parse().ok()).collect();
    let sectors = |at: usize| values.get(at).copied().map(|n| n.saturating_mul(512));
    Some(Io {
        writes: *values.get(4)?,
        written_bytes: sectors(6)?,
        in_flight: *values.get(8)?,
        busy_ms: *values.get(9)?,
        // Discards are counted since kernel 4.18.
        discarded_bytes: sectors(13).unwrap_or(0),
    })
}

/// Name and state (`R`, `S`, `D`, …) of a thread, from its `stat` file. The name may contain anything.
pub(crate) fn task_stat(text: &str) -> Option<(&str, char)> {
    let (before, after) = text.rsplit_once(')')?;
    Some((before.split_once('(')?.1, after.trim_start().chars().next()?))
}

/// The functions of a `/proc/PID/stack`, innermost first.
pub(crate) fn stack(text: &str) -> Vec<String> {
    // `[<0>] wb_wait_for_completion+0x5e/0xa0`
    let function = |line: &str| Some(bare(line.split_once("] ")?.1).to_owned());
    text.lines().filter_map(function).filter(|f| !f.starts_with("0x") && !f.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters() {
        let text = "nr_free_pages 5\nnr_dirtied 7\nnr_written 6\npgscan_direct x\nnr_dirty_threshold 9\n\
                    nr_dirty_background_threshold 4\n";
        assert_eq!(vmstat(text), BTreeMap::from([("nr_dirtied", 7), ("nr_written", 6)]));
        assert_eq!(thresholds(text), Some((4, 9)));
        assert_eq!(thresholds("nr_dirty_threshold 9"), None);
    }

    #[test]
    fn devices() {
        let text = "     103       38     1298       74       94      151     1962      138        2      156      216        7        0       64        3        0        0\n";
        let io = device_stat(text).unwrap();
        assert_eq!((io.writes, io.written_bytes, io.in_flight, io.busy_ms), (94, 1962 * 512, 2, 156));
        assert_eq!(io.discarded_bytes, 64 * 512);
        assert_eq!(device_stat("1 2 3 4 5 6 7 8 9 10 11").unwrap().discarded_bytes, 0);
        assert_eq!(device_stat("1 2 3"), None);
    }

    #[test]
    fn tasks() {
        assert_eq!(task_stat("12 (a) b (c) D 1 2 3"), Some(("a) b (c", 'D')));
        assert_eq!(task_stat("12 (sh) S 1"), Some(("sh", 'S')));
        assert_eq!(task_stat("12 sh S"), None);
    }

    #[test]
    fn stacks() {
        let text = "[<0>] wb_wait_for_completion+0x5e/0xa0\n[<0>] sync_inodes_sb+0xbd/0x2a0\n\
                    [<0>] ovl_sync_fs+0x34/0x60 [overlay]\n[<0>] 0xffffffffffffffff\n";
        assert_eq!(stack(text), ["wb_wait_for_completion", "sync_inodes_sb", "ovl_sync_fs"]);
        assert!(stack("").is_empty());
    }
}
