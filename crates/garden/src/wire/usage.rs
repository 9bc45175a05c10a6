//! What containers use, for those who look at all of them again and again. All of it is wardian's own.

use super::{wire, zero};
use serde::{Deserialize, Serialize};

wire!(/// What a container uses of the host, and its limits. A limit of 0 is none.
Usage {
    /// Its handle.
    handle: String,
    /// Its id.
    id: String,
    /// Milliseconds since it was made.
    age_ms: f64,
    /// Bytes of memory that count towards the limit.
    memory_bytes: u64,
    /// The limit of memory in bytes.
    #[serde(skip_serializing_if = "zero")] memory_limit: u64,
    /// Bytes in the page cache that wait for writeback (memory.stat: `file_dirty`, v1 `total_dirty`); none: the kernel does
    /// not tell.
    dirty_bytes: Option<u64>,
    /// Bytes under writeback (`file_writeback`, v1 `total_writeback`).
    writeback_bytes: Option<u64>,
    /// Nanoseconds of processor time.
    cpu_ns: u64,
    /// CPU shares.
    #[serde(skip_serializing_if = "zero")] cpu_shares: u64,
    /// Processes and threads.
    pids: u64,
    /// The most of them.
    #[serde(skip_serializing_if = "zero")] pids_limit: u64,
    /// Bytes received; none: not counted.
    rx_bytes: Option<u64>,
    /// Bytes sent; none: not counted.
    tx_bytes: Option<u64>,
    /// Bytes on the disk that count towards the limit: those that it wrote and, with a limit in the scope `total`, those of its
    /// image.
    disk_bytes: u64,
    /// The limit of the disk in bytes.
    #[serde(skip_serializing_if = "zero")] disk_limit: u64,
    /// Microseconds in which some of its tasks waited for a disk (`io.pressure`); none: the kernel does not tell, as on
    /// cgroup v1.
    #[serde(skip_serializing_if = "Option::is_none")] io_stalled_us: Option<u64>,
    /// The same for memory.
    #[serde(skip_serializing_if = "Option::is_none")] memory_stalled_us: Option<u64>,
    /// The same for a processor.
    #[serde(skip_serializing_if = "Option::is_none")] cpu_stalled_us: Option<u64>,
});
