//! The result of a recorder, as plain data.

use crate::causes::Cause;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// Everything a [`crate::Recorder`] recorded. Times are milliseconds since its start.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Recording {
    /// Duration of the recording, in ms.
    pub length_ms: f64,
    /// Sampling period, in ms.
    pub period_ms: f64,
    /// The directory whose file system was watched.
    pub path: PathBuf,
    /// The type of that file system (`ext4`, `xfs`, …); empty if unknown.
    pub fs_type: String,
    /// The block devices whose writes are counted, as `major:minor`. Writes to a device below them (the disk that
    /// holds a loop device's file) are not counted: they would count twice.
    pub devices: Vec<String>,
    /// The phases that [`crate::Recorder::mark`] named, in order.
    pub marks: Vec<Mark>,
    /// Samples of the host: one per period while there is I/O to the devices, else one per five.
    pub samples: Vec<Sample>,
    /// Bursts of writing, in the order of their beginning.
    pub written: Vec<Written>,
    /// Bursts of discards, in the same form: `bytes` were discarded, in `writes` requests.
    #[serde(default)]
    pub discarded: Vec<Written>,
    /// Bytes of `written` that are an estimate: the device has counted them while not every write was traced, because
    /// that would have cost too much. They are added to those who wrote just before, in proportion.
    #[serde(default)]
    pub estimated_bytes: u64,
    /// The waits, in the order of their beginning.
    pub waits: Vec<Wait>,
    /// The watched threads and all their descendants; `None` if they are not all known.
    #[serde(default)]
    pub watched: Option<BTreeSet<u32>>,
    /// The settings in force at the start.
    pub tunables: Tunables,
    /// The sources of the data, and those that were not available.
    pub sources: Vec<Source>,
    /// Trace events that the kernel dropped because they were not read in time.
    pub lost_events: u64,
    /// The recorder's own cost.
    pub cost: Cost,
    /// Whether a signal ended the recording early.
    pub interrupted: bool,
}

impl Recording {
    /// Whether every write to the devices was traced, with the task that submitted it.
    pub fn traced(&self) -> bool {
        self.sources.iter().any(|source| source.available && source.name == "block:block_bio_queue")
    }

    /// Bytes written according to the device's own counter, by all tasks; `None` if it has no counter.
    pub fn device_bytes(&self) -> Option<u64> {
        self.samples.last().and_then(|sample| sample.io).map(|io| io.written_bytes)
    }
}

impl Written {
    /// Whether one of these threads submitted some of the writes, asked for them, or had made the data dirty.
    pub(crate) fn concerns(&self, threads: &BTreeSet<u32>) -> bool {
        let tasks = self.asked_by.iter().chain(self.dirtied_by.values()).chain([&self.by]);
        tasks.into_iter().any(|task| threads.contains(&task.pid))
    }
}

/// The beginning of a phase.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Mark {
    /// Time in ms since the start.
    pub t_ms: f64,
    /// Its name.
    pub name: String,
}

/// The state of the host at one moment.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Time in ms since the start.
    pub t_ms: f64,
    /// `Dirty` of /proc/meminfo, in bytes.
    pub dirty_bytes: u64,
    /// `Writeback` of /proc/meminfo, in bytes.
    pub writeback_bytes: u64,
    /// Increase of the counters of /proc/vmstat since the start, in pages or events (`nr_dirtied`, `nr_written`,
    /// `pgscan_kswapd`, `pgscan_direct`, `nr_vmscan_write`, …); unchanged ones are left out. Read once per five periods;
    /// samples between repeat the values.
    pub vmstat: BTreeMap<String, u64>,
    /// `/proc/pressure/io`, if the kernel has it; read as often as `vmstat`.
    pub pressure: Option<Pressure>,
    /// Activity of the file system's device since the start.
    pub io: Option<Io>,
}

/// How long tasks were stalled on I/O since the start, in µs (Documentation/accounting/psi.rst).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pressure {
    /// Time with at least one stalled task.
    pub some_us: u64,
    /// Time with all non-idle tasks stalled.
    pub full_us: u64,
}

/// Increase of a device's counters in /proc/diskstats (Documentation/admin-guide/iostats.rst) since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Io {
    /// Writes completed.
    pub writes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Requests in flight at the time of the sample.
    pub in_flight: u64,
    /// Time with at least one request in flight, in ms.
    pub busy_ms: u64,
    /// Bytes discarded.
    pub discarded_bytes: u64,
}

/// A thread.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Task {
    /// Its thread id.
    pub pid: u32,
    /// Its name: at most 15 bytes, set by the program itself.
    pub comm: String,
    /// The system call it was in (`umount`, `syncfs`, …), if known. `task_work` stands for work that is deferred to
    /// the return from a call, `exit` for work at the thread's end.
    pub syscall: Option<String>,
}

/// Writes to the watched devices that had one cause and were asked for by one task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Written {
    /// When the first write was submitted, in ms since the start.
    pub begin_ms: f64,
    /// When the last write was submitted, in ms since the start.
    pub end_ms: f64,
    /// Their cause.
    pub cause: Cause,
    /// The evidence for the cause: the flusher's reason, or a function.
    pub how: String,
    /// Bytes, metadata included.
    pub bytes: u64,
    /// Bytes of these that the file system flagged as metadata.
    pub metadata_bytes: u64,
    /// Number of writes.
    pub writes: u64,
    /// The thread that submitted them.
    pub by: Task,
    /// The task that asked that thread to write; the thread itself if it wrote on its own behalf; `None` when the
    /// kernel decided.
    pub asked_by: Option<Task>,
    /// The functions on the asking thread's kernel stack, innermost first; empty if unavailable.
    pub stack: Vec<String>,
    /// Bytes by inode number, as far as the flusher reported them.
    pub inodes: BTreeMap<u64, u64>,
    /// By inode number: the thread that had made it dirty, as far as that was seen.
    pub dirtied_by: BTreeMap<u64, Task>,
}

/// A thread that waited in the kernel.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Wait {
    /// Its process id.
    pub pid: u32,
    /// The thread, with the system call it waited in.
    pub task: Task,
    /// Begin of the wait, in ms since the start.
    pub begin_ms: f64,
    /// Duration, in ms.
    pub ms: f64,
    /// The function it waited in: the first on its stack that is no mere helper for sleeping.
    pub kernel_function: Option<String>,
    /// The kernel stack in most of the samples, innermost first.
    pub stack: Vec<String>,
    /// Number of samples in which it was waiting. Zero: the wait is only known from the trace. The ends of a wait in a
    /// system call that is traced are exact; so is the end of an unmount if its thread goes on to another call, or ends.
    /// Other ends are accurate to about one period.
    pub samples: u64,
}

/// Settings of the kernel that determine when dirty pages are written (Documentation/admin-guide/sysctl/vm.rst), with
/// the values of the files.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tunables {
    /// `dirty_ratio`, `dirty_expire_centisecs`, … of /proc/sys/vm.
    pub vm: BTreeMap<String, u64>,
    /// Dirty bytes above which background writeback starts (`nr_dirty_background_threshold` of /proc/vmstat).
    pub background_threshold_bytes: u64,
    /// Dirty bytes above which writers are throttled (`nr_dirty_threshold`).
    pub threshold_bytes: u64,
}

/// A source of data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Its name: `meminfo`, `tracefs`, an event such as `writeback:writeback_queue`, …
    pub name: String,
    /// Whether it was available.
    pub available: bool,
    /// Why it was not available, and how that can be changed.
    pub note: Option<String>,
}

/// The recorder's own cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// CPU time of its thread, in ms.
    pub cpu_ms: f64,
    /// The same as a share of one CPU over the whole recording: 0.01 is 1 %.
    pub share: f64,
    /// Samples of the watched threads that were skipped to keep the cost down.
    pub skipped_looks: u64,
    /// CPU time for reading the trace, which is part of `cpu_ms`.
    #[serde(default)]
    pub trace_ms: f64,
    /// Time in which writes were not traced, to keep the cost down, in ms.
    #[serde(default)]
    pub untraced_ms: f64,
}
