//! How much data may be dirty, how fast the disk is, and so how long a sync may take.

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde::Serialize;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long the disk is written to.
const BUDGET: Duration = Duration::from_secs(1);
/// Limit of what is written: enough to exceed the write cache of a virtual machine's disk; a fast disk takes it in a
/// tenth of a second.
const MOST: u64 = 256 << 20;
/// At most one `SHARE`-th of the free space is written, and nothing if that is less than `LEAST`.
const SHARE: u64 = 20;
const LEAST: u64 = 1 << 20;
/// Size of one write: the initial one, and the largest one on fast disks.
const CHUNK: (usize, usize) = (256 << 10, 4 << 20);
/// O_DIRECT requires addresses, lengths and offsets that are multiples of the disk's block size.
const ALIGN: usize = 4096;
/// A flush may have to write other programs' dirty data first (ext4 in ordered mode): it is skipped if that would
/// take longer than this, in seconds.
const FLUSH: f64 = 1.0;

/// Dirty pages and the disk.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Dirty {
    /// `vm.dirty_ratio`, percent; 0 when the limit is given in bytes.
    pub ratio: u64,
    /// `vm.dirty_bytes`; 0 when it is given in percent.
    pub bytes: u64,
    /// `vm.dirty_background_ratio`.
    pub background_ratio: u64,
    /// `vm.dirty_background_bytes`.
    pub background_bytes: u64,
    /// `vm.dirty_expire_centisecs`.
    pub expire_centisecs: u64,
    /// `vm.dirty_writeback_centisecs`.
    pub writeback_centisecs: u64,
    /// The limit in bytes that currently results: above it writers are throttled (`nr_dirty_threshold` of
    /// /proc/vmstat).
    pub threshold_bytes: u64,
    /// The limit above which the kernel starts background writeback.
    pub background_threshold_bytes: u64,
    /// Bytes that are dirty or under writeback now.
    pub now_bytes: u64,
    /// The measured speed of the disk.
    pub disk: Option<Disk>,
    /// Why the disk was not measured.
    pub not_measured: Option<String>,
    /// Estimated duration of a sync with as much dirty data as this file system can have, in seconds.
    pub sync_worst_s: Option<f64>,
    /// Estimated duration of a sync now, in seconds.
    pub sync_now_s: Option<f64>,
}

/// The result of the measurement: a file written for a second with O_DIRECT, flushed and deleted.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Disk {
    /// Bytes written.
    pub bytes: u64,
    /// Time for writing and flushing.
    pub write_ms: f64,
    /// Whether the disk's own cache was flushed too; if not, much data is dirty, and the flush would have waited for
    /// it.
    pub flushed: bool,
    /// Time for deleting the file.
    pub delete_ms: f64,
    /// Bytes a second.
    pub bytes_per_s: u64,
}

impl Dirty {
    /// Reads the limits in force.
    ///
    /// # Errors
    /// /proc cannot be read.
    pub fn probe() -> Result<Self> {
        let settings = crate::teardown::sysctl::read()?;
        let sysctl =
            |name: &str| settings.get(name).copied().with_context(|| format!("there is no vm.{name}"));
        let vmstat = std::fs::read_to_string("/proc/vmstat").context("read /proc/vmstat")?;
        let now = crate::host::Dirty::now()?;
        Ok(Self {
            ratio: sysctl("dirty_ratio")?,
            bytes: sysctl("dirty_bytes")?,
            background_ratio: sysctl("dirty_background_ratio")?,
            background_bytes: sysctl("dirty_background_bytes")?,
            expire_centisecs: sysctl("dirty_expire_centisecs")?,
            writeback_centisecs: sysctl("dirty_writeback_centisecs")?,
            threshold_bytes: threshold(&vmstat, "nr_dirty_threshold")?,
            background_threshold_bytes: threshold(&vmstat, "nr_dirty_background_threshold")?,
            now_bytes: now.dirty_bytes + now.writeback_bytes,
            ..Self::default()
        })
    }

    /// Measures the disk by writing to the file system, and estimates the syncs. The file has no name, so nothing can
    /// be left behind.
    pub fn measure(&mut self, dir: &Path, total: u64, available: u64, stop: &AtomicBool) {
        match write(dir, available, self.now_bytes, stop) {
            Ok(disk) => self.conclude(disk, total),
            Err(why) => self.not_measured = Some(why),
        }
    }

    fn conclude(&mut self, disk: Disk, total: u64) {
        // The dirty data of a file system cannot exceed its size.
        self.sync_worst_s = Some(seconds(self.threshold_bytes.min(total), disk.bytes_per_s));
        self.sync_now_s = Some(seconds(self.now_bytes, disk.bytes_per_s));
        self.disk = Some(disk);
    }
}

/// Reads a threshold. The kernel computes it at each reading: the ratio of the dirtyable memory, which is free memory
/// and page cache.
fn threshold(vmstat: &str, field: &str) -> Result<u64> {
    let pages = vmstat.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(' '));
    let pages = pages.and_then(|n| n.trim().parse::<u64>().ok());
    let pages = pages.with_context(|| format!("/proc/vmstat has no usable {field}"))?;
    Ok(pages.saturating_mul(rustix::param::page_size() as u64))
}

/// Duration in seconds, rounded to a tenth.
#[allow(clippy::cast_precision_loss)]
fn seconds(bytes: u64, bytes_per_s: u64) -> f64 {
    (bytes as f64 / bytes_per_s.max(1) as f64 * 10.0).round() / 10.0
}

fn write(dir: &Path, available: u64, dirty: u64, stop: &AtomicBool) -> Result<Disk, String> {
    let most = MOST.min(available / SHARE);
    if most < LEAST {
        return Err("too little space is free".to_owned());
    }
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::DIRECT | OFlags::CLOEXEC;
    let file = rustix::fs::open(dir, flags, Mode::RUSR | Mode::WUSR).map_err(|error| match error {
        Errno::ACCESS | Errno::PERM => format!("{} may not be written", dir.display()),
        Errno::INVAL | Errno::OPNOTSUPP => {
            "this file system cannot write around the page cache to a file without a name".to_owned()
        }
        error => format!("{}: {error}", dir.display()),
    })?;
    // Random data, because some disks are faster with zeros or compressible data. (Xorshift, Marsaglia 2003.)
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut memory = vec![0_u8; CHUNK.1 + ALIGN];
    for word in memory.chunks_exact_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_ne_bytes());
    }
    let begin = memory.as_ptr().align_offset(ALIGN);
    let memory = &memory[begin..begin + CHUNK.1];

    let started = Instant::now();
    let (mut bytes, mut chunk) = (0_u64, CHUNK.0);
    while bytes < most && started.elapsed() < BUDGET && !stop.load(Ordering::Relaxed) {
        let before = Instant::now();
        match rustix::io::pwrite(&file, &memory[..chunk], bytes) {
            // After a short write the offset may be no multiple of the block size, so the loop ends.
            Ok(n) if n == chunk => bytes += n as u64,
            Ok(n) => {
                bytes += n as u64;
                break;
            }
            Err(Errno::INTR) => continue,
            Err(error) => return Err(format!("cannot write to {}: {error}", dir.display())),
        }
        if before.elapsed() < Duration::from_millis(10) {
            chunk = (chunk * 2).min(CHUNK.1);
        }
    }
    let rate = rate(bytes, started.elapsed());
    let flushed = !stop.load(Ordering::Relaxed) && seconds(dirty, rate) <= FLUSH;
    if flushed {
        rustix::fs::fdatasync(&file)
            .map_err(|error| format!("cannot write to {}: {error}", dir.display()))?;
    }
    let took = started.elapsed();
    let deleting = Instant::now();
    drop(file);
    let delete_ms = crate::host::ms(deleting.elapsed());
    Ok(Disk {
        bytes,
        write_ms: crate::host::ms(took),
        flushed,
        delete_ms,
        bytes_per_s: self::rate(bytes, took),
    })
}

fn rate(bytes: u64, took: Duration) -> u64 {
    u64::try_from(u128::from(bytes) * 1_000_000 / took.as_micros().max(1)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_long_a_sync_takes() {
        let mut dirty = Dirty { threshold_bytes: 1_400_000_000, now_bytes: 5_000_000, ..Dirty::default() };
        dirty.conclude(Disk { bytes_per_s: 100_000_000, ..Disk::default() }, u64::MAX);
        assert_eq!((dirty.sync_worst_s, dirty.sync_now_s), (Some(14.0), Some(0.1)));
        dirty.conclude(Disk { bytes_per_s: 100_000_000, ..Disk::default() }, 200_000_000);
        assert_eq!(dirty.sync_worst_s, Some(2.0));
        assert!(seconds(u64::MAX, 0).is_finite());
        assert_eq!(rate(1_000_000, Duration::from_millis(500)), 2_000_000);
        assert_eq!(rate(0, Duration::ZERO), 0);
    }

    #[test]
    fn thresholds() {
        let text = "nr_dirty 3\nnr_dirty_threshold 10\nnr_dirty_background_threshold 5\n";
        let page = rustix::param::page_size() as u64;
        assert_eq!(threshold(text, "nr_dirty_threshold").unwrap(), 10 * page);
        assert_eq!(threshold(text, "nr_dirty_background_threshold").unwrap(), 5 * page);
        assert!(threshold("nr_dirty_threshold x", "nr_dirty_threshold").is_err());
        assert!(threshold("", "nr_dirty_threshold").unwrap_err().to_string().contains("nr_dirty_threshold"));
    }

    #[test]
    fn what_cannot_be_written_is_said() {
        let stop = AtomicBool::new(false);
        assert!(write(Path::new("/proc"), 1 << 30, 0, &stop).is_err());
        assert!(write(Path::new("/var/tmp"), 1 << 20, 0, &stop).unwrap_err().contains("too little"));
    }
}
