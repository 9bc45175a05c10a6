//! What happened when in a run, as a picture needs it.

use serde::{Deserialize, Serialize};

/// What happened in a run. All times are in ms since its begin.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Timeline {
    /// Duration of the run.
    pub length_ms: f64,
    /// Instances, mounts or containers, each with its phases.
    pub rows: Vec<Row>,
    /// Dirty and writeback bytes of the host.
    #[serde(default)]
    pub samples: Vec<Sample>,
    /// Begins of phases.
    #[serde(default)]
    pub marks: Vec<Mark>,
    /// Who waited for whom in the kernel.
    #[serde(default)]
    pub waits: Vec<Wait>,
}

/// A row of a timeline: an instance, a mount.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Its name.
    pub name: String,
    /// Its phases, in order of their begin.
    pub bars: Vec<Bar>,
}

/// A phase of a row.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Bar {
    /// Name of the phase: `create`, `stream_in`, `start_app`, `pea`, `destroy`; `mount`, `write`, `unmount`, `remove`.
    pub phase: String,
    /// Begin.
    pub begin_ms: f64,
    /// Duration.
    pub ms: f64,
}

/// The host's dirty pages at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// The moment.
    pub t_ms: f64,
    /// `Dirty` of /proc/meminfo.
    pub dirty_bytes: u64,
    /// `Writeback` of /proc/meminfo.
    pub writeback_bytes: u64,
}

/// The begin of a phase of the whole run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Mark {
    /// Time.
    pub t_ms: f64,
    /// Name of the phase.
    pub name: String,
}

/// A thread that waited in the kernel.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Wait {
    /// Name of the row that it belongs to, if it does to one.
    #[serde(default)]
    pub row: Option<String>,
    /// The thread.
    pub who: String,
    /// Begin.
    pub begin_ms: f64,
    /// Duration.
    pub ms: f64,
    /// The system call and the kernel function that it waited in: `umount in wb_wait_for_completion`.
    pub place: String,
    /// Whom or what it waited for, if that is known: `a sync, asked for by the unmount of mount 0`.
    #[serde(default)]
    pub on: Option<String>,
}
