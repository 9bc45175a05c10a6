//! What a recorder saw, as plain data.

use crate::diagnosis::Cause;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// Everything a [`crate::Recorder`] saw. Times are milliseconds since its start.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Recording {
    /// How long it recorded, in ms.
    pub length_ms: f64,
    /// The period of the samples, in ms.
    pub period_ms: f64,
    /// The directory whose file system was watched.
    pub path: PathBuf,
    /// The type of that file system (`ext4`, `xfs`, …); empty if it could not be told.
    pub fs_type: String,
    /// The block devices whose writes are counted, as `major:minor`. Writes to a device below them (the disk
    /// that holds a loop device's file) are not: they would count twice.
    pub devices: Vec<String>,
    /// The phases that [`crate::Recorder::mark`] named, in order.
    pub marks: Vec<Mark>,
    /// The host, at each period.
    pub samples: Vec<Sample>,
    /// Bursts of writing, in the order of their beginning.
    pub written: Vec<Written>,
    /// Who waited, in the order of beginning.
    pub waits: Vec<Wait>,
    /// The threads that were watched and all that they have started, if every one of them is known.
    #[serde(default)]
    pub watched: Option<BTreeSet<u32>>,
    /// The settings in force at the start.
    pub tunables: Tunables,
    /// Where the evidence comes from, and what was not to be had.
    pub sources: Vec<Source>,
    /// Trace events that the kernel threw away because nobody had read them in time.
    pub lost_events: u64,
    /// What the recorder itself took.
    pub cost: Cost,
    /// A signal ended it before its time.
    pub interrupted: bool,
}

impl Recording {
    /// Whether every write to the devices was seen, with the task that submitted it.
    pub fn traced(&self) -> bool {
        self.sources.iter().any(|source| source.available && source.name == "block:block_bio_queue")
    }

    /// Bytes that the device says were written to it, by whomever; none if it has no counter.
    pub fn device_bytes(&self) -> Option<u64> {
        self.samples.last().and_then(|sample| sample.io).map(|io| io.written_bytes)
    }
}

impl Written {
    /// Whether one of these threads wrote some of it, asked for it, or had made the data dirty.
    pub(crate) fn concerns(&self, threads: &BTreeSet<u32>) -> bool {
        let tasks = self.asked_by.iter().chain(self.dirtied_by.values()).chain([&self.by]);
        tasks.into_iter().any(|task| threads.contains(&task.pid))
    }
}

/// The beginning of a phase.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Mark {
    /// When, in ms since the start.
    pub t_ms: f64,
    /// Its name.
    pub name: String,
}

/// The host at one moment.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// When, in ms since the start.
    pub t_ms: f64,
    /// `Dirty` of /proc/meminfo, in bytes.
    pub dirty_bytes: u64,
    /// `Writeback` of /proc/meminfo, in bytes.
    pub writeback_bytes: u64,
    /// What the counters of /proc/vmstat have grown by since the start, in pages or times (`nr_dirtied`,
    /// `nr_written`, `pgscan_kswapd`, `pgscan_direct`, `nr_vmscan_write`, …); those that have not grown are left out.
    /// Read at every fifth sample; those between repeat it.
    pub vmstat: BTreeMap<String, u64>,
    /// `/proc/pressure/io`, if the kernel keeps it.
    pub pressure: Option<Pressure>,
    /// What the device of the file system has done since the start.
    pub io: Option<Io>,
}

/// How long tasks stood still for I/O since the start, in µs (Documentation/accounting/psi.rst).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pressure {
    /// At least one task.
    pub some_us: u64,
    /// All tasks that were not idle.
    pub full_us: u64,
}

/// A device's counters in /proc/diskstats (Documentation/admin-guide/iostats.rst), since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Io {
    /// Writes completed.
    pub writes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Requests in flight at this moment.
    pub in_flight: u64,
    /// Time with at least one request in flight, in ms.
    pub busy_ms: u64,
    /// Bytes discarded.
    pub discarded_bytes: u64,
}

/// A thread, as far as it is known.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Task {
    /// Its thread id.
    pub pid: u32,
    /// Its name: at most 15 bytes, set by the program itself.
    pub comm: String,
    /// The system call it was in (`umount`, `syncfs`, …), if known. `task_work` stands for what the kernel does for it
    /// on the way out of one, `exit` for what it does at its end.
    pub syscall: Option<String>,
}

/// Writes to the watched devices that had one cause and were asked for by one task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Written {
    /// When the first was submitted, in ms since the start.
    pub begin_ms: f64,
    /// When the last was submitted, in ms since the start.
    pub end_ms: f64,
    /// What caused them.
    pub cause: Cause,
    /// How that is known: the flusher's reason, or the function that gave it away.
    pub how: String,
    /// Bytes, metadata included.
    pub bytes: u64,
    /// Bytes of these that the file system flagged as metadata.
    pub metadata_bytes: u64,
    /// How many writes.
    pub writes: u64,
    /// The thread that submitted them.
    pub by: Task,
    /// Who asked that thread to; the thread itself if it wrote on its own behalf; none when the kernel decided.
    pub asked_by: Option<Task>,
    /// The functions on the asking thread's kernel stack, innermost first; empty if they were not to be had.
    pub stack: Vec<String>,
    /// Bytes by inode number, as far as the flusher told.
    pub inodes: BTreeMap<u64, u64>,
    /// Who had made these inodes dirty, as far as that was seen. Inode → thread.
    pub dirtied_by: BTreeMap<u64, Task>,
}

/// A thread that waited in the kernel.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Wait {
    /// The process.
    pub pid: u32,
    /// The thread, with the system call it waited in.
    pub task: Task,
    /// When it began, in ms since the start.
    pub begin_ms: f64,
    /// How long, in ms.
    pub ms: f64,
    /// The function it waited in: the first on its stack that is no mere helper for sleeping.
    pub kernel_function: Option<String>,
    /// The kernel stack it was seen with most often, innermost first.
    pub stack: Vec<String>,
    /// In how many samples it was seen waiting. Zero: only the trace tells of it, and both its ends are exact; else
    /// they are exact to about one period.
    pub samples: u64,
}

/// Settings of the kernel that decide when dirty pages are written (Documentation/admin-guide/sysctl/vm.rst), as the
/// files say.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tunables {
    /// `dirty_ratio`, `dirty_expire_centisecs`, … of /proc/sys/vm.
    pub vm: BTreeMap<String, u64>,
    /// Dirty bytes beyond which the flusher starts (`nr_dirty_background_threshold` of /proc/vmstat).
    pub background_threshold_bytes: u64,
    /// Dirty bytes beyond which writers are slowed down (`nr_dirty_threshold`).
    pub threshold_bytes: u64,
}

/// A source of evidence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Its name: `meminfo`, `tracefs`, an event such as `writeback:writeback_queue`, …
    pub name: String,
    /// It was there.
    pub available: bool,
    /// Why not, and what can be done about it.
    pub note: Option<String>,
}

/// What the recorder took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// CPU time of its thread, in ms.
    pub cpu_ms: f64,
    /// The same as a part of one CPU over the whole recording: 0.01 is 1 %.
    pub share: f64,
    /// Looks at the watched threads that were left out to keep the cost down.
    pub skipped_looks: u64,
}
