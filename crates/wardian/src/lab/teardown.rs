//! `wardian lab teardown`.

use anyhow::Result;
use clap::ValueEnum;
use std::path::PathBuf;
use std::time::SystemTime;
use wardian_lab::runs;
use wardian_lab::teardown::measure;
use wardian_lab::teardown::options::{Again, Options, Order, Source, Target};
use wardian_lab::teardown::sysctl::Setting;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Overlay mounts
    #[arg(long, value_name = "N", default_value_t = 10)]
    mounts: usize,
    /// Megabytes written into each
    #[arg(long, value_name = "MB", default_value_t = 100)]
    mb: u64,
    /// Files in each, which they are spread over
    #[arg(long, value_name = "N", default_value_t = 1)]
    files: usize,
    /// What is written
    #[arg(long, value_enum, default_value_t = SourceArg::Zero)]
    source: SourceArg,
    /// Unmount all at once, or one after another
    #[arg(long, value_enum, default_value_t = OrderArg::Parallel, conflicts_with = "no_overlay")]
    unmount: OrderArg,
    /// Do it a second time without cleaning up, in fresh mounts: the same files are truncated first, or overwritten in place
    #[arg(long, value_enum, value_name = "HOW", num_args = 0..=1, require_equals = true, default_missing_value = "truncate")]
    again: Option<AgainArg>,
    /// Write into plain directories: nothing is mounted or unmounted
    #[arg(long)]
    no_overlay: bool,
    /// Mount overlays whose unmount syncs the whole file system under them (the default)
    #[arg(long, overrides_with = "volatile")]
    durable: bool,
    /// Mount overlays that never sync
    #[arg(long, conflicts_with = "no_overlay")]
    volatile: bool,
    /// Megabytes that somebody else writes on the same file system before
    #[arg(long, value_name = "MB", default_value_t = 0)]
    neighbour_mb: u64,
    /// A directory on the file system under test
    #[arg(long, value_name = "PATH", default_value = "/var/tmp")]
    fs: PathBuf,
    /// Let the data grow old for so long before it is unmounted; with --again in the first round only
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    age: u64,
    /// Sync the file system every so many milliseconds while writing
    #[arg(long, value_name = "MS")]
    trickle_sync: Option<u64>,
    /// Change a setting of the kernel for the time of the experiment: vm.dirty_...=N; may be given more than once
    #[arg(long, value_name = "NAME=N")]
    sysctl: Vec<Setting>,
    /// Also who wrote and who waited, the kernel's stacks and settings
    #[arg(long)]
    verbose: bool,
    #[command(flatten)]
    results: super::files::Files,
    /// Do not ask before taking more than a third of the free space
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    kept: super::kept::Args,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum SourceArg {
    /// Zeros
    Zero,
    /// Random bytes of the kernel: slow on old ones
    Urandom,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum OrderArg {
    /// All at once
    Parallel,
    /// One after another
    Serial,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum AgainArg {
    /// As dd does
    Truncate,
    /// As dd conv=notrunc does
    Overwrite,
}

impl Args {
    /// Do it and print what it found.
    pub fn run(self, runtime: &tokio::runtime::Runtime) -> Result<()> {
        let (verbose, files) = (self.verbose, self.results.check()?);
        let options = Options {
            mounts: self.mounts,
            mb: self.mb,
            files: self.files,
            target: match (self.no_overlay, self.volatile) {
                (true, _) => Target::Plain,
                (false, true) => Target::Volatile,
                (false, false) => Target::Durable,
            },
            source: match self.source {
                SourceArg::Zero => Source::Zero,
                SourceArg::Urandom => Source::Urandom,
            },
            unmount: match self.unmount {
                OrderArg::Parallel => Order::Parallel,
                OrderArg::Serial => Order::Serial,
            },
            again: self.again.map(|how| match how {
                AgainArg::Truncate => Again::Truncate,
                AgainArg::Overwrite => Again::Overwrite,
            }),
            neighbour_mb: self.neighbour_mb,
            fs: self.fs,
            age_s: self.age,
            trickle_sync_ms: self.trickle_sync,
            sysctl: self.sysctl,
        };
        let (mut keeper, begun) = (self.kept.open()?, SystemTime::now());
        let (report, done) = runtime.block_on(measure(options, self.yes))?;
        keeper.keep(runs::of_teardown(&report, begun));
        let written = files.write(&report);
        keeper.beside(done)?;
        crate::print::text(&format!("\n{}", crate::print::wrapped(&report.text(verbose))))?;
        written?;
        keeper.done()
    }
}
