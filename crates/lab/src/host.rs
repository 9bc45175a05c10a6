//! The kernel's counters of dirty pages, and a description of the machine.

use anyhow::{Context, Result};
use serde::Serialize;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};
use wardian_recorder::Disk;
use wardian_sys::procfs::{self, MountInfo};

/// The period of [`Sampler`].
const PERIOD: Duration = Duration::from_millis(50);

/// Bytes that are dirty, and bytes under writeback.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Dirty {
    /// `Dirty` of /proc/meminfo.
    pub dirty_bytes: u64,
    /// `Writeback` of /proc/meminfo.
    pub writeback_bytes: u64,
}

impl Dirty {
    /// Reads the present values.
    pub fn now() -> Result<Self> {
        let text = std::fs::read_to_string("/proc/meminfo").context("read /proc/meminfo")?;
        let now = procfs::meminfo(&text)?;
        Ok(Self { dirty_bytes: now.dirty, writeback_bytes: now.writeback })
    }
}

/// Bytes this machine has written back since its boot.
pub fn written() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/vmstat").context("read /proc/vmstat")?;
    Ok(procfs::vmstat(&text)?.written * rustix::param::page_size() as u64)
}

/// Bytes written since some moment, or since the boot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Written {
    /// Bytes that this machine has written back: pages that were dirty, some of which need no write any more, such as
    /// those of directories that were removed.
    pub bytes: u64,
    /// Bytes written to the disk; `None` without a disk.
    pub disk: Option<u64>,
}

impl Written {
    /// The difference to an earlier value.
    pub fn since(self, before: Self) -> Self {
        let disk = self.disk.zip(before.disk).map(|(now, then)| now.saturating_sub(then));
        Self { bytes: self.bytes.saturating_sub(before.bytes), disk }
    }

    /// The sum of two values.
    pub fn and(self, other: Self) -> Self {
        let disk = self.disk.zip(other.disk).map(|(a, b)| a + b);
        Self { bytes: self.bytes + other.bytes, disk }
    }
}

/// Counts bytes written, on the machine and on the disk below a directory.
#[derive(Debug, Clone)]
pub struct Counter(Disk);

impl Counter {
    /// Finds the counters for this directory.
    ///
    /// # Errors
    ///
    /// The directory cannot be accessed.
    pub fn below(dir: &Path) -> Result<Self> {
        Disk::below(dir).map(Self).with_context(|| format!("look at {}", dir.display()))
    }

    /// Bytes written since the boot.
    ///
    /// # Errors
    ///
    /// /proc/vmstat cannot be read.
    pub fn read(&self) -> Result<Written> {
        Ok(Written { bytes: written()?, disk: self.0.written() })
    }
}

/// A sample of the dirty pages.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Sample {
    /// Time in ms, since the sampler was started or the moment that it was given.
    pub t_ms: f64,
    /// `Dirty` of /proc/meminfo.
    pub dirty_bytes: u64,
    /// `Writeback` of /proc/meminfo.
    pub writeback_bytes: u64,
}

impl From<&Sample> for wardian_history::Sample {
    fn from(of: &Sample) -> Self {
        Self { t_ms: of.t_ms, dirty_bytes: of.dirty_bytes, writeback_bytes: of.writeback_bytes }
    }
}

/// Samples the dirty pages every 50 ms, in a thread of its own, until it is dropped or finished.
#[derive(Debug)]
pub struct Sampler {
    stop: Arc<AtomicBool>,
    samples: Arc<Mutex<Vec<Sample>>>,
    thread: Option<JoinHandle<()>>,
}

impl Sampler {
    /// Starts sampling.
    pub fn start() -> Self {
        Self::since(Instant::now())
    }

    /// Starts sampling. Times count from this moment.
    pub fn since(since: Instant) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let samples = Arc::new(Mutex::new(Vec::new()));
        let (stopped, kept) = (stop.clone(), samples.clone());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                if let (Ok(now), Ok(mut kept)) = (Dirty::now(), kept.lock()) {
                    kept.push(Sample {
                        t_ms: ms(since.elapsed()),
                        dirty_bytes: now.dirty_bytes,
                        writeback_bytes: now.writeback_bytes,
                    });
                }
                std::thread::sleep(PERIOD);
            }
        });
        Self { stop, samples, thread: Some(thread) }
    }

    /// Stops sampling. Returns the samples.
    pub fn finish(self) -> Vec<Sample> {
        self.stop.store(true, Ordering::Relaxed);
        self.samples.lock().map(|mut s| std::mem::take(&mut *s)).unwrap_or_default()
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The machine and the file system that the figures belong to.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Host {
    /// Release of the kernel.
    pub kernel: String,
    /// Number of processors.
    pub cpus: usize,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Type of the file system under the store.
    pub filesystem: String,
    /// Its mount options.
    pub mount_options: String,
    /// One-minute load average when the figures were taken.
    pub load: f64,
    /// `v1`, `v2` or `none`.
    pub cgroups: &'static str,
}

impl Host {
    /// Describes this machine; `store` is a path on the file system of the store, if known.
    pub fn probe(store: Option<&Path>) -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let memory = read("/proc/meminfo");
        let memory = memory.lines().find_map(|l| l.strip_prefix("MemTotal:")?.split_whitespace().next());
        let (filesystem, mount_options) = store
            .and_then(|p| std::path::absolute(p).ok())
            .and_then(|p| filesystem_of(std::fs::read("/proc/self/mountinfo").ok()?, &p))
            .unwrap_or_default();
        Self {
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: memory.and_then(|m| m.parse::<u64>().ok()).unwrap_or(0) * 1024,
            filesystem,
            mount_options,
            load: read("/proc/loadavg").split(' ').next().and_then(|l| l.parse().ok()).unwrap_or(0.0),
            cgroups: if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
                "v2"
            } else if Path::new("/sys/fs/cgroup").exists() {
                "v1"
            } else {
                "none"
            },
        }
    }
}

/// Type and options of the file system of a path, from the text of mountinfo.
pub fn filesystem_of(mountinfo: impl AsRef<[u8]>, path: &Path) -> Option<(String, String)> {
    let mounts = procfs::mountinfo(mountinfo).unwrap_or_default();
    let mount = mount_of(&mounts, path)?;
    let options = mount.mount_options.iter().chain(&mount.super_options);
    Some((mount.fs_type.clone(), options.map(String::as_str).collect::<Vec<_>>().join(",")))
}

/// The mount of an absolute path without symlinks.
pub fn mount_of<'a>(mounts: &'a [MountInfo], path: &Path) -> Option<&'a MountInfo> {
    let above = mounts.iter().filter(|mount| path.starts_with(&mount.mount_point));
    // A later mount on the same point covers the earlier one.
    above.max_by_key(|mount| mount.mount_point.components().count())
}

/// A time in ms since 1970.
pub(crate) fn since_1970(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// A duration in milliseconds, to the microsecond.
pub fn ms(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_mount_wins() {
        let text = "27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard\n\
                    31 27 0:9 / /var/tmp rw - xfs /dev/loop0 rw\n";
        assert_eq!(filesystem_of(text, Path::new("/var/tmp/x")).unwrap().0, "xfs");
        let root = filesystem_of(text, Path::new("/var/tmpx")).unwrap();
        assert_eq!(root, ("ext4".into(), "rw,relatime,rw,discard".into()));
    }

    #[test]
    fn the_sampler_sees_something() {
        let sampler = Sampler::start();
        std::thread::sleep(Duration::from_millis(120));
        assert!(sampler.finish().len() >= 2);
    }
}
