//! Options of the experiment, and whether it can be run here.

use super::sysctl::Setting;
use crate::code::MEGABYTE;
use crate::report::bytes;
use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use std::io::IsTerminal as _;
use std::path::PathBuf;

/// Limits of mounts, files and megabytes.
const MOST_MOUNTS: usize = 1000;
const MOST_FILES: usize = 100_000;
const MOST_MB: u64 = 1 << 20;
/// Limit of the age in seconds: a day.
const MOST_AGE: u64 = 86_400;

/// The kind of directory that is written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// Overlays whose unmount syncs the whole file system under them.
    Durable,
    /// Overlays that never sync.
    Volatile,
    /// Plain directories, which need no unmount.
    Plain,
}

/// The data that is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// Zeros, which are written at the speed of the page cache.
    Zero,
    /// /dev/urandom, which is slow on old kernels.
    Urandom,
}

/// The order of the unmounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// All at once, each by a thread of its own.
    Parallel,
    /// One after another.
    Serial,
}

/// How existing files are written a second time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Again {
    /// Truncated first, as by `dd` and a shell's `>`.
    Truncate,
    /// Overwritten in place, as by `dd conv=notrunc`.
    Overwrite,
}

/// Options of the experiment.
#[derive(Debug, Clone, Serialize)]
pub struct Options {
    /// How many mounts.
    pub mounts: usize,
    /// Megabytes (2^20 bytes) written into each.
    pub mb: u64,
    /// Number of files in each mount that the data is spread over.
    pub files: usize,
    /// The kind of directory that is written to.
    pub target: Target,
    /// The data that is written.
    pub source: Source,
    /// Order of the unmounts.
    pub unmount: Order,
    /// Whether and how to write the same files a second time.
    pub again: Option<Again>,
    /// Megabytes that another writer has written to the same file system before.
    pub neighbour_mb: u64,
    /// A directory on the file system under test.
    pub fs: PathBuf,
    /// Seconds between write and unmount; with `again` in the first round only.
    pub age_s: u64,
    /// Interval in milliseconds of syncs of the file system during the writing.
    pub trickle_sync_ms: Option<u64>,
    /// Settings of the kernel during the experiment.
    pub sysctl: Vec<Setting>,
}

impl Default for Options {
    /// The options of the original story.
    fn default() -> Self {
        Self {
            mounts: 10,
            mb: 100,
            files: 1,
            target: Target::Durable,
            source: Source::Zero,
            unmount: Order::Parallel,
            again: None,
            neighbour_mb: 0,
            fs: "/var/tmp".into(),
            age_s: 0,
            trickle_sync_ms: None,
            sysctl: Vec::new(),
        }
    }
}

impl Options {
    /// Bytes written into each mount in a round.
    pub fn bytes_each(&self) -> u64 {
        self.mb * MEGABYTE as u64
    }

    /// Maximum of bytes on the file system at a time.
    pub fn bytes(&self) -> u64 {
        self.bytes_each() * self.mounts as u64 + self.neighbour_mb * MEGABYTE as u64
    }

    /// Checks the options.
    pub(super) fn check(&self) -> Result<()> {
        let within = |name: &str, value: u64, least: u64, most: u64| {
            ensure!((least..=most).contains(&value), "{name} must be between {least} and {most}");
            Ok(())
        };
        within("--mounts", self.mounts as u64, 1, MOST_MOUNTS as u64)?;
        within("--mb", self.mb, 0, MOST_MB)?;
        within("--neighbour-mb", self.neighbour_mb, 0, MOST_MB)?;
        within("--files", self.files as u64, 1, MOST_FILES as u64)?;
        within("--age", self.age_s, 0, MOST_AGE)?;
        within("--trickle-sync", self.trickle_sync_ms.unwrap_or(1), 1, MOST_AGE * 1000)?;
        ensure!(
            self.mounts * self.files <= 1_000_000,
            "{} files are more than a million: smaller --mounts or --files",
            self.mounts * self.files
        );
        ensure!(rustix::process::geteuid().is_root(), "only root can mount: try sudo");
        Ok(())
    }

    /// Checks that the file system has room. Asks for confirmation if more than a third of the free space is needed;
    /// where nobody can be asked, `yes` must be set.
    pub(super) fn room(&self, yes: bool) -> Result<()> {
        let fs = self.fs.display();
        let stat = rustix::fs::statvfs(&self.fs).with_context(|| format!("--fs: look at {fs}"))?;
        let (free, wanted) = (stat.f_bavail.saturating_mul(stat.f_frsize), self.bytes());
        if wanted > free {
            bail!(
                "{} would be written and {fs} has {} free: smaller --mounts or --mb, or --fs elsewhere",
                bytes(wanted),
                bytes(free)
            );
        }
        if yes || wanted <= free / 3 {
            return Ok(());
        }
        let much = format!(
            "{} would be written, more than a third of the {} that are free on {fs}",
            bytes(wanted),
            bytes(free)
        );
        ensure!(std::io::stdin().is_terminal(), "{much}: say --yes if it is meant");
        wardian_sys::stderr::write(&format!("{much}. Go on? [y/N] "));
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer).context("read the answer")?;
        ensure!(matches!(answer.trim(), "y" | "Y" | "yes"), "nothing was done");
        Ok(())
    }
}
