//! An overview of the host: its features, its performance and its problems.
//!
//! Features are tried rather than derived from versions, and nothing that a trial makes is left behind: mounts are
//! never attached, files have no names, the one directory is removed, also on Ctrl-C.

pub mod cgroups;
pub mod dirty;
pub mod drivers;
pub mod features;
pub mod filesystem;
pub mod hazards;
pub mod limits;
pub mod machine;
pub mod network;
pub mod overlays;
pub mod place;
pub mod remains;
mod text;

use crate::host::Host;
use anyhow::{Context, Result};
use hazards::{Hazard, Severity};
use ipnet::Ipv4Net;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use wardian_sys::procfs;

/// What to examine.
#[derive(Debug, Clone)]
pub struct Options {
    /// The store's directory, which need not exist.
    pub root: PathBuf,
    /// Run directories to examine beside those that are found.
    pub runs: Vec<PathBuf>,
    /// The subnets of containers that ask for none are taken from here.
    pub pool: Ipv4Net,
    /// Whether to write for a second to measure the disk.
    pub measure: bool,
}

/// The observations.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Facts {
    /// The machine.
    pub host: Host,
    /// Whether this was run as root: otherwise some values are unknown.
    pub root: bool,
    /// Capabilities that a server uses and this process lacks.
    pub missing_capabilities: Vec<machine::Missing>,
    /// The cgroups of this host.
    pub cgroups: cgroups::Cgroups,
    /// Type of the file system at /run.
    pub run_filesystem: String,
    /// Features of the kernel.
    pub features: features::Features,
    /// Whether the store's file system has lost a write whose error has not been reported yet.
    pub unseen_error: bool,
    /// The store's file system.
    pub filesystem: filesystem::FileSystem,
    /// The driver with which a server limits what a container writes, if no other one is asked for.
    pub limit_driver: String,
    /// All such drivers, in the order in which they are tried, and why this host lacks them.
    pub limit_drivers: Vec<drivers::Driver>,
    /// Dirty pages and the speed of the disk.
    pub dirty: dirty::Dirty,
    /// Kernel limits.
    pub limits: Vec<limits::Limit>,
    /// Why servers refuse the store's directory, if other users could change it or one above it.
    pub store_doubt: Option<place::Doubt>,
    /// What clients will reject in the certificates of running servers.
    pub certificates: Vec<String>,
    /// What earlier servers have left in the store.
    pub remains: remains::Remains,
    /// Overlays of other programs that sync the store's file system.
    pub overlays: overlays::Overlays,
    /// The host's network.
    pub network: network::Network,
    /// Number of leaks, which belong to no container.
    pub leaks: usize,
}

/// The observations, and the hazards that follow from them.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The observations.
    #[serde(flatten)]
    pub facts: Facts,
    /// The hazards, the worst first.
    pub hazards: Vec<Hazard>,
}

impl Report {
    /// Evaluates the observations.
    pub fn new(facts: Facts) -> Self {
        let hazards = hazards::find(&facts);
        Self { facts, hazards }
    }

    /// Severity of the worst hazard.
    pub fn worst(&self) -> Option<Severity> {
        self.hazards.iter().map(|hazard| hazard.severity).max()
    }
}

/// Examines the host; takes up to five seconds.
///
/// # Errors
/// /proc cannot be read, no store can be at the given place, or [`Interrupted`](crate::Interrupted).
pub async fn run(options: Options) -> Result<Report> {
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let look = async { tokio::task::spawn_blocking(move || look(&options, &stopped)).await };
    tokio::pin!(look);
    tokio::select! {
        // Polled first, so that the signal handlers are installed before anything is made.
        biased;
        signal = crate::interrupted() => {
            // Stops the probes, which remove what they have made.
            stop.store(true, Ordering::Relaxed);
            let _ = look.await;
            Err(crate::Interrupted(signal?).into())
        }
        report = &mut look => report.context("look at the host")?.map(Report::new),
    }
}

fn look(options: &Options, stop: &AtomicBool) -> Result<Facts> {
    let mounts = std::fs::read("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
    let mounts = procfs::mountinfo(&mounts)?;
    let status = std::fs::read_to_string("/proc/self/status").context("read /proc/self/status")?;
    let fs = filesystem::FileSystem::probe(&options.root, &mounts)?;
    let mut dirty = dirty::Dirty::probe()?;
    let cgroups = cgroups::Cgroups::from_mounts(&mounts, |dir| {
        std::fs::read_to_string(dir.join("cgroup.controllers")).unwrap_or_default()
    });
    let run = crate::host::mount_of(&mounts, Path::new("/run"));
    let found = features::probe(&fs, &cgroups, &mounts);
    let limit_drivers = drivers::probe(&fs);
    // Probes that wait run in parallel.
    let leaks = std::thread::scope(|scope| {
        let leaks = scope.spawn(|| crate::leaks::find(&options.runs));
        if options.measure {
            dirty.measure(&fs.looked_at, fs.total_bytes, fs.available_bytes, stop);
        } else {
            dirty.not_measured = Some("not asked for".to_owned());
        }
        leaks.join().map_or(Ok(0), |leaks| leaks.map(|leaks| leaks.len()))
    })?;
    Ok(Facts {
        host: Host::probe(Some(&fs.looked_at)),
        root: rustix::process::geteuid().is_root(),
        missing_capabilities: machine::missing(&status),
        run_filesystem: run.map(|mount| mount.fs_type.clone()).unwrap_or_default(),
        unseen_error: found.unseen_error,
        features: found.features,
        limit_driver: drivers::chosen(&limit_drivers).to_owned(),
        limit_drivers,
        limits: limits::probe(),
        certificates: place::certificates(),
        store_doubt: place::probe(&options.root, &fs.looked_at),
        remains: remains::probe(&options.root),
        overlays: overlays::probe(&fs.looked_at),
        network: network::probe(options),
        leaks,
        cgroups,
        dirty,
        filesystem: fs,
    })
}

/// `1 thing`, `2 things`.
fn plural(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests;
