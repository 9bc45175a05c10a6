//! `wardian lab bisect`.

use anyhow::{Context, Result, ensure};
use clap::{Args as _, ValueEnum};
use std::path::{Path, PathBuf};
use wardian_lab::bisect::experiment::Experiment;
use wardian_lab::bisect::options::Options;
use wardian_lab::bisect::{list, measure, parse_bound, runs};
use wardian_lab::guest::USUAL_CACHE;
use wardian_lab::guest::disk::{Filesystem, parse_bytes};
use wardian_lab::guest::machine::Acceleration;

/// The speed of a disk that is not held down.
const UNLIMITED: &str = "unlimited";

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The kernels, oldest first: a package (linux-image-…), a version (6.12: the newest that apt offers), a .deb file, or a
    /// directory with an image and lib/modules
    #[arg(long, value_name = "A,B,C", value_delimiter = ',', required_unless_present = "list")]
    kernels: Vec<String>,
    /// A figure above this (300ms, 1.5s; of one in bytes 50M) is slow: halve the kernels, and name the one that changed it.
    /// Without it each is measured
    #[arg(long, value_name = "DURATION|SIZE")]
    slow_above: Option<String>,
    /// The figure that is looked at [default: unmount_max_ms, or duration_ms of a command]
    #[arg(long, value_name = "NAME")]
    figure: Option<String>,
    /// Runs on each kernel; where the figure is near the bound, up to three times as many
    #[arg(long, value_name = "N", default_value_t = 3)]
    runs: usize,
    /// Guests at a time
    #[arg(long, value_name = "N", default_value_t = 1)]
    jobs: usize,
    /// Seconds that a boot may take, and each run
    #[arg(long, value_name = "S", default_value_t = 180)]
    timeout: u64,
    /// File system of the guest's disk
    #[arg(long, value_enum, default_value_t = FsArg::Ext4)]
    fs: FsArg,
    /// Bytes a second that the guest's disk reads and writes: 50M, or `unlimited`
    #[arg(long, value_name = "BYTES", default_value = "50M")]
    disk_bps: String,
    /// Size of the guest's disk, of which only what is written takes space
    #[arg(long, value_name = "BYTES", default_value = "4G")]
    disk_size: String,
    /// Memory of a guest; with little of it the kernel writes before an unmount asks it to
    #[arg(long, value_name = "MIB", default_value_t = 3072)]
    memory: u64,
    /// Processors of a guest
    #[arg(long, value_name = "N", default_value_t = 1)]
    cpus: u64,
    /// How QEMU executes a guest [default: kvm where it works]
    #[arg(long, value_enum)]
    accel: Option<AccelArg>,
    /// Modules that the guests load besides
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    modules: Vec<String>,
    /// A file to copy into the guests' PATH, a script or a static program; may be given more than once
    #[arg(long, value_name = "FILE")]
    file: Vec<PathBuf>,
    /// Where unpacked kernels are kept
    #[arg(long, value_name = "DIR", default_value = USUAL_CACHE)]
    cache: PathBuf,
    /// Where the guests' disks are made
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    scratch: PathBuf,
    #[command(flatten)]
    results: super::files::Files,
    #[command(flatten)]
    kept: super::kept::Args,
    /// Print the kernels that apt offers, and do nothing else
    #[arg(long, exclusive = true)]
    list: bool,
    /// After `--`: `teardown …` as of `lab teardown`, or `cmd COMMAND …`, whose figure is its duration; on the guest's disk
    /// [default: teardown --mounts 10 --mb 20]
    #[arg(last = true, value_name = "EXPERIMENT")]
    experiment: Vec<String>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum FsArg {
    /// ext4
    Ext4,
    /// XFS
    Xfs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum AccelArg {
    /// By the processor
    Kvm,
    /// By translation, slow
    Tcg,
}

impl Args {
    /// Do it and print what it found.
    pub fn run(mut self, runtime: &tokio::runtime::Runtime, program: &Path) -> Result<()> {
        if self.list {
            return crate::print::text(&runtime.block_on(list(&self.cache))?);
        }
        let (results, kept) = (std::mem::take(&mut self.results), self.kept.clone());
        let options = self.options().map_err(crate::exit::mistake)?;
        let files = results.check()?;
        let mut keeper = kept.open()?;
        let (report, done) = runtime.block_on(measure(options, program))?;
        runs(&report).into_iter().for_each(|run| keeper.keep(run));
        let written = files.write(&report);
        keeper.beside(done)?;
        crate::print::text(&format!("\n{}", crate::print::wrapped(&report.table())))?;
        written?;
        keeper.done()
    }

    fn options(self) -> Result<Options> {
        let experiment = Experiment::parse(&self.experiment)?;
        if let Experiment::Teardown(words) = &experiment {
            // What the guest's program would refuse is refused before anything boots: it is the same program.
            let parser =
                super::teardown::Args::augment_args(clap::Command::new("teardown").no_binary_name(true));
            parser.try_get_matches_from(words).map_err(|error| {
                let text = error.render().to_string();
                let first = text.lines().next().unwrap_or_default();
                anyhow::anyhow!("teardown: {}", first.strip_prefix("error: ").unwrap_or(first))
            })?;
        }
        let figure = self.figure.unwrap_or_else(|| experiment.headline().to_owned());
        ensure!(
            experiment.may_have(&figure),
            "--figure: {} has no figure {figure}: docs/lab.md has their names, such as {}",
            experiment.name(),
            experiment.headline()
        );
        let bound =
            self.slow_above.map(|text| parse_bound(&text, &figure)).transpose().context("--slow-above")?;
        ensure!(bound.is_none_or(|bound| bound > 0.0), "--slow-above must be more than 0");
        let disk_bps = match self.disk_bps.as_str() {
            UNLIMITED => None,
            text => Some(parse_bytes(text).context("--disk-bps")?),
        };
        Ok(Options {
            kernels: self.kernels,
            experiment,
            fs: match self.fs {
                FsArg::Ext4 => Filesystem::Ext4,
                FsArg::Xfs => Filesystem::Xfs,
            },
            disk_bps,
            disk_bytes: parse_bytes(&self.disk_size).context("--disk-size")?,
            memory_mib: self.memory,
            cpus: self.cpus,
            acceleration: match self.accel {
                Some(AccelArg::Kvm) => Acceleration::Kvm,
                Some(AccelArg::Tcg) => Acceleration::Tcg,
                None => Acceleration::probe(),
            },
            figure,
            bound,
            runs: self.runs,
            jobs: self.jobs,
            timeout_s: self.timeout,
            modules: self.modules,
            files: self.file,
            cache: self.cache,
            scratch: self.scratch,
        })
    }
}
