//! What the kernel says of dirty pages, and what machine this is.

use anyhow::{Context, Result};
use serde::Serialize;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often [`Sampler`] looks.
const PERIOD: Duration = Duration::from_millis(50);

/// Bytes waiting to be written, and being written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Dirty {
    /// `Dirty` of /proc/meminfo.
    pub dirty_bytes: u64,
    /// `Writeback` of /proc/meminfo.
    pub writeback_bytes: u64,
}

impl Dirty {
    /// From the text of /proc/meminfo.
    pub fn parse(meminfo: &str) -> Self {
        let field = |name: &str| {
            let line = meminfo.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'));
            let kib = line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok());
            kib.unwrap_or(0) * 1024
        };
        Self { dirty_bytes: field("Dirty"), writeback_bytes: field("Writeback") }
    }

    /// Now.
    pub fn now() -> Result<Self> {
        Ok(Self::parse(&std::fs::read_to_string("/proc/meminfo").context("read /proc/meminfo")?))
    }
}

/// Pages ever written, from the text of /proc/vmstat, in bytes.
pub fn parse_written(vmstat: &str) -> u64 {
    let pages = vmstat.lines().find_map(|l| l.strip_prefix("nr_written ")?.trim().parse::<u64>().ok());
    pages.unwrap_or(0) * 4096
}

/// Bytes this machine has written back since its boot.
pub fn written() -> Result<u64> {
    Ok(parse_written(&std::fs::read_to_string("/proc/vmstat").context("read /proc/vmstat")?))
}

/// One look at the dirty pages.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Sample {
    /// Since the sampler was started.
    pub t_ms: f64,
    /// `Dirty` of /proc/meminfo.
    pub dirty_bytes: u64,
    /// `Writeback` of /proc/meminfo.
    pub writeback_bytes: u64,
}

/// Looks at the dirty pages every 50 ms, in a thread of its own, until it is dropped or asked.
#[derive(Debug)]
pub struct Sampler {
    stop: Arc<AtomicBool>,
    samples: Arc<Mutex<Vec<Sample>>>,
    thread: Option<JoinHandle<()>>,
}

impl Sampler {
    /// Start looking.
    pub fn start() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let samples = Arc::new(Mutex::new(Vec::new()));
        let (stopped, kept, since) = (stop.clone(), samples.clone(), Instant::now());
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

    /// Stop looking; what was seen.
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

/// The machine and the file system the figures belong to.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Host {
    /// Release of the kernel.
    pub kernel: String,
    /// Processors.
    pub cpus: usize,
    /// Memory.
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
    /// This machine; `store` is a path on the file system of the store, when it is known.
    pub fn probe(store: Option<&Path>) -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let memory = read("/proc/meminfo");
        let memory = memory.lines().find_map(|l| l.strip_prefix("MemTotal:")?.split_whitespace().next());
        let (filesystem, mount_options) = store
            .and_then(|p| std::path::absolute(p).ok())
            .and_then(|p| filesystem_of(&read("/proc/self/mountinfo"), &p))
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

/// Type and options of the file system that a path is on, from the text of mountinfo.
pub fn filesystem_of(mountinfo: &str, path: &Path) -> Option<(String, String)> {
    let mut best: Option<(usize, String, String)> = None;
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let left: Vec<&str> = left.split(' ').collect();
        let right: Vec<&str> = right.split(' ').collect();
        let (Some(point), Some(kind)) = (left.get(4), right.first()) else { continue };
        // A later mount on the same point covers the earlier one.
        if path.starts_with(point) && best.as_ref().is_none_or(|(length, ..)| point.len() >= *length) {
            let options = format!("{},{}", left.get(5).unwrap_or(&""), right.get(2).unwrap_or(&""));
            best = Some((point.len(), (*kind).to_owned(), options));
        }
    }
    best.map(|(_, kind, options)| (kind, options))
}

/// A duration in milliseconds, to the microsecond.
pub fn ms(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_and_vmstat_are_read_by_name() {
        let text = "MemTotal: 100 kB\nDirty:      12 kB\nWriteback:      3 kB\nWritebackTmp:  9 kB\n";
        assert_eq!(Dirty::parse(text), Dirty { dirty_bytes: 12288, writeback_bytes: 3072 });
        assert_eq!(Dirty::parse("nonsense"), Dirty::default());
        assert_eq!(parse_written("nr_dirtied 7\nnr_written 2\n"), 8192);
    }

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
