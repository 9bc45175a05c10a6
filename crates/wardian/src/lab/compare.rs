//! `wardian lab compare`.

use anyhow::{Result, ensure};
use clap::ValueEnum;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use wardian_lab::compare::{Engine, FEWEST, Options, Series, measure, runs};

/// Compare engines on this host: an app that is scaled, and containers that are destroyed with dirty data
///
/// Each engine has a store and a server of its own, made for each turn and removed after it; what the host has of the
/// same engine is not touched. The exit code is 1 if an engine failed or did not answer; the others are compared all
/// the same.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The engines: wardian, podman, podman-rm, containerd, docker; the others are compared with the first one
    /// [default: those that are found]
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = engine)]
    engines: Option<Vec<Engine>>,
    /// Also a Garden server on this host: unix:/PATH or tcp:HOST:PORT; may be given more than once
    #[arg(long, value_name = "ADDR")]
    garden: Vec<String>,
    /// What each engine does
    #[arg(long, value_enum, value_name = "WHAT", value_delimiter = ',', default_value = "scale,teardown")]
    experiment: Vec<ExperimentArg>,
    /// How the code comes into the instances of an app that is scaled
    #[arg(long, value_enum, value_name = "MODE", value_delimiter = ',', default_value = "stream,oci")]
    mode: Vec<ModeArg>,
    /// Instances that run before the scaling
    #[arg(long, value_name = "N", default_value_t = 1)]
    from: usize,
    /// Instances that run after it; containers that are destroyed
    #[arg(long, value_name = "N", default_value_t = 10)]
    to: usize,
    /// Megabytes of code in each instance; megabytes that are written into each container
    #[arg(long, value_name = "MB", default_value_t = 100)]
    code_mb: usize,
    /// Rounds, in each of which every engine has its turn; a ratio needs 5
    #[arg(long, value_name = "N", default_value_t = FEWEST)]
    runs: usize,
    /// Determines the order of the turns [default: chosen, and printed]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Run no health checks
    #[arg(long)]
    no_pea: bool,
    /// The longest time, in seconds, that one step of one engine may take
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..))]
    timeout: u64,
    /// A directory on the file system under test, for all stores
    #[arg(long, visible_alias = "root", value_name = "DIR", default_value = "/var/tmp")]
    fs: PathBuf,
    #[command(flatten)]
    results: super::files::Files,
    #[command(flatten)]
    kept: super::kept::Args,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ExperimentArg {
    /// Scale an app, with a health check beside each instance
    Scale,
    /// Destroy containers with dirty data, all at once
    Teardown,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ModeArg {
    /// It is streamed into each
    Stream,
    /// It is a layer of their image
    Oci,
}

fn engine(word: &str) -> Result<Engine, String> {
    Engine::parse(word).map_err(|error| error.to_string())
}

impl Args {
    /// Compare and print what was found.
    pub fn run(self, runtime: &tokio::runtime::Runtime, program: PathBuf) -> Result<ExitCode> {
        let mut series = Vec::new();
        for experiment in &self.experiment {
            match experiment {
                ExperimentArg::Scale => series.extend(self.mode.iter().map(|mode| match mode {
                    ModeArg::Stream => Series::Stream,
                    ModeArg::Oci => Series::Layer,
                })),
                ExperimentArg::Teardown => series.push(Series::Teardown),
            }
        }
        for (n, one) in series.iter().enumerate() {
            let (experiment, mode) = (one.experiment(), one.mode());
            ensure!(!series[..n].contains(one), "{experiment} {mode} is named twice: --runs repeats it");
        }
        let since = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH);
        let options = Options {
            engines: self.engines,
            gardens: self.garden,
            series,
            from: self.from,
            to: self.to,
            code_mb: self.code_mb,
            runs: self.runs,
            // Any number will do, if it is short enough to be typed again.
            seed: self.seed.unwrap_or_else(|| since.unwrap_or_default().as_millis() as u64 % 100_000),
            pea: !self.no_pea,
            timeout: Duration::from_secs(self.timeout),
            fs: self.fs,
            program,
        };
        let files = self.results.check()?;
        let mut keeper = self.kept.open()?;
        let (report, done) = runtime.block_on(measure(options))?;
        runs(&report).into_iter().for_each(|run| keeper.keep(run));
        let written = files.write(&report);
        keeper.beside(done)?;
        crate::print::text(&format!("\n{}", report.text()))?;
        written?;
        keeper.done()?;
        Ok(if report.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}
