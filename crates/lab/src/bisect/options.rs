//! Options of a bisection, and whether it can be run here.

use super::experiment::Experiment;
use crate::guest::disk::Filesystem;
use crate::guest::machine::{Acceleration, Machine};
use anyhow::{Context, Result, ensure};
use serde::Serialize;
use std::path::PathBuf;

/// Limits.
const MOST_KERNELS: usize = 200;
const MOST_RUNS: usize = 100;
const MOST_TIMEOUT_S: u64 = 86_400;
const MOST_FILES: usize = 64;
/// Smallest disk in bytes: XFS needs 300 MB.
const LEAST_DISK: u64 = 400_000_000;
const MOST_DISK: u64 = 1 << 44;

/// Options of a bisection.
#[derive(Debug, Clone, Serialize)]
pub struct Options {
    /// The kernels, as they were named, in their order.
    pub kernels: Vec<String>,
    /// What is run on each.
    pub experiment: Experiment,
    /// The file system of the guest's disk.
    pub fs: Filesystem,
    /// Speed of the guest's disk in bytes per second; `None`: as fast as it is.
    pub disk_bps: Option<u64>,
    /// Size of the guest's disk in bytes.
    pub disk_bytes: u64,
    /// Memory of a guest in MiB.
    pub memory_mib: u64,
    /// Processors of a guest.
    pub cpus: u64,
    /// How the guests' instructions are executed.
    pub acceleration: Acceleration,
    /// The figure that is looked at.
    pub figure: String,
    /// A figure above this is slow; `None`: every kernel is measured.
    pub bound: Option<f64>,
    /// Runs on each kernel.
    pub runs: usize,
    /// Guests at a time.
    pub jobs: usize,
    /// Seconds that a boot may take, and each run.
    pub timeout_s: u64,
    /// Modules that the guests load besides.
    pub modules: Vec<String>,
    /// Files that are copied into the guests.
    pub files: Vec<PathBuf>,
    /// Where unpacked kernels are kept.
    pub cache: PathBuf,
    /// Where the guests' disks are made.
    pub scratch: PathBuf,
}

impl Options {
    /// Checks the options. `cpus` and `memory` (bytes) are those of the host.
    pub(super) fn check(&self, cpus: usize, memory: u64) -> Result<()> {
        let within = |name: &str, value: u64, least: u64, most: u64| {
            ensure!((least..=most).contains(&value), "{name} must be between {least} and {most}");
            Ok(())
        };
        ensure!(
            !self.kernels.is_empty(),
            "give the kernels with --kernels A,B,C; --list shows those that apt offers"
        );
        ensure!(self.kernels.len() <= MOST_KERNELS, "at most {MOST_KERNELS} kernels");
        for (at, kernel) in self.kernels.iter().enumerate() {
            ensure!(!self.kernels[..at].contains(kernel), "--kernels has {kernel} twice");
        }
        if self.bound.is_some() {
            ensure!(
                self.kernels.len() > 1,
                "--slow-above needs two kernels at least: one before the change, and one after"
            );
        }
        within("--runs", self.runs as u64, 1, MOST_RUNS as u64)?;
        within("--timeout", self.timeout_s, 1, MOST_TIMEOUT_S)?;
        within("--memory", self.memory_mib, 256, 1 << 20)?;
        within("--cpus", self.cpus, 1, 64)?;
        within("--disk-size", self.disk_bytes, LEAST_DISK, MOST_DISK)?;
        within("--disk-bps", self.disk_bps.unwrap_or(1 << 20), 1 << 16, 1 << 40)?;
        let (jobs, cpus) = (self.jobs as u64, cpus as u64);
        within("--jobs", jobs, 1, 64)?;
        ensure!(
            jobs == 1 || self.disk_bps.is_some(),
            "--jobs {jobs} needs --disk-bps: guests at the same time would share the speed of one disk"
        );
        ensure!(
            jobs == 1 || jobs * self.cpus <= cpus,
            "--jobs {jobs} needs {} processors, and this host has {cpus}: guests would wait for each other",
            jobs * self.cpus
        );
        let wanted = jobs * self.memory_mib * (1 << 20);
        ensure!(
            wanted <= memory,
            "the guests would need {} MiB of memory, and {} are available: smaller --memory or --jobs",
            wanted >> 20,
            memory >> 20
        );
        for module in &self.modules {
            let plain = module.len() <= 64
                && module.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte));
            ensure!(plain && !module.is_empty(), "--modules: {module:?} is no name of a module");
        }
        ensure!(self.files.len() <= MOST_FILES, "at most {MOST_FILES} --file");
        for (at, file) in self.files.iter().enumerate() {
            let shown = file.display();
            let name = file.file_name().with_context(|| format!("--file {shown} is no file"))?;
            ensure!(file.is_file(), "--file {shown} is no file");
            let twice = self.files[..at].iter().any(|other| other.file_name() == Some(name));
            ensure!(!twice, "--file: two files are named {}", name.display());
        }
        Ok(())
    }

    /// The guests' machine.
    pub(super) fn machine(&self) -> Machine {
        Machine {
            acceleration: self.acceleration,
            memory_mib: self.memory_mib,
            cpus: self.cpus,
            disk_bytes: self.disk_bytes,
            disk_bps: self.disk_bps,
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn options() -> Options {
        Options {
            kernels: vec!["6.1".into(), "6.12".into()],
            experiment: Experiment::parse(&[]).unwrap(),
            fs: Filesystem::Ext4,
            disk_bps: Some(50_000_000),
            disk_bytes: 4_000_000_000,
            memory_mib: 3072,
            cpus: 1,
            acceleration: Acceleration::Tcg,
            figure: "unmount_max_ms".into(),
            bound: Some(300.0),
            runs: 3,
            jobs: 1,
            timeout_s: 180,
            modules: Vec::new(),
            files: Vec::new(),
            cache: "/nowhere".into(),
            scratch: "/var/tmp".into(),
        }
    }

    #[test]
    fn what_cannot_be_measured_is_refused() {
        let check = |change: &dyn Fn(&mut Options)| {
            let mut given = options();
            change(&mut given);
            given.check(2, 8 << 30).map_err(|error| error.to_string())
        };
        check(&|_| {}).unwrap();
        check(&|given| given.jobs = 2).unwrap();
        type Change<'a> = &'a dyn Fn(&mut Options);
        let bad: [(Change<'_>, &str); 12] = [
            (&|given| given.kernels.clear(), "--kernels"),
            (&|given| given.kernels = vec!["6.1".into(); 2], "twice"),
            (&|given| given.kernels.truncate(1), "two kernels"),
            (&|given| given.runs = 0, "--runs"),
            (&|given| given.jobs = 3, "3 processors"),
            (&|given| (given.jobs, given.disk_bps) = (2, None), "--disk-bps"),
            (&|given| given.memory_mib = 9000, "--memory"),
            (&|given| given.disk_bytes = 1, "--disk-size"),
            (&|given| given.disk_bps = Some(1), "--disk-bps"),
            (&|given| given.modules = vec!["../x".into()], "--modules"),
            (&|given| given.files = vec!["/no/such".into()], "--file"),
            (&|given| given.timeout_s = 0, "--timeout"),
        ];
        for (change, word) in bad {
            let error = check(change).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }
}
