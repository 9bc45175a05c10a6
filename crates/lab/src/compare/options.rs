//! What is compared.

use super::engines::Engine;
use crate::code;
use crate::report::bytes;
use anyhow::{Context as _, Result, ensure};
use serde::{Serialize, Serializer};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Limits of instances, rounds and megabytes.
const MOST_INSTANCES: usize = 1000;
const MOST_RUNS: usize = 1000;
const MOST_MB: usize = 4096;
/// Memory of a command of another engine; each instance has one in a phase.
const COMMAND_BYTES: u64 = 40 << 20;

/// An experiment that each engine does in each round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Series {
    /// An app is scaled, its code streamed in.
    Stream,
    /// An app is scaled, its code a layer of the image.
    Layer,
    /// Containers with dirty data are destroyed.
    Teardown,
}

impl Series {
    /// The experiment.
    pub fn experiment(self) -> &'static str {
        if self == Self::Teardown { "teardown" } else { "scale" }
    }

    /// The mode, as `lab scale --mode` calls it.
    pub fn mode(self) -> &'static str {
        match self {
            Self::Stream => "stream",
            Self::Layer => "oci",
            Self::Teardown => "dirty",
        }
    }
}

impl Serialize for Series {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Words {
            experiment: &'static str,
            mode: &'static str,
        }
        Words { experiment: self.experiment(), mode: self.mode() }.serialize(to)
    }
}

/// Options of a comparison.
#[derive(Debug, Clone, Serialize)]
pub struct Options {
    /// The engines; `None`: all that are found.
    #[serde(skip)]
    pub engines: Option<Vec<Engine>>,
    /// Addresses of Garden servers that are compared too.
    pub gardens: Vec<String>,
    /// The experiments.
    pub series: Vec<Series>,
    /// Instances before the scaling.
    pub from: usize,
    /// Instances after it, and containers of a teardown.
    pub to: usize,
    /// Megabytes of code, or of dirty data, in each.
    pub code_mb: usize,
    /// Number of rounds.
    pub runs: usize,
    /// Determines the order of the turns.
    pub seed: u64,
    /// Whether a health check is run beside each instance.
    pub pea: bool,
    /// The longest time that one step of one engine may take.
    #[serde(rename = "timeout_ms", serialize_with = "as_ms")]
    pub timeout: Duration,
    /// A directory on the file system under test.
    pub fs: PathBuf,
    /// The program that has the commands `serve` and `lab hold`.
    #[serde(skip)]
    pub program: PathBuf,
}

fn as_ms<S: Serializer>(duration: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_u128(duration.as_millis())
}

impl Options {
    /// The usual comparison. `program` has the commands `serve` and `lab hold`.
    pub fn new(program: PathBuf) -> Self {
        Self {
            engines: None,
            gardens: Vec::new(),
            series: vec![Series::Stream, Series::Layer, Series::Teardown],
            from: 1,
            to: 10,
            code_mb: 100,
            runs: super::stats::FEWEST,
            seed: 0,
            pea: true,
            timeout: Duration::from_secs(300),
            fs: "/var/tmp".into(),
            program,
        }
    }

    /// Bytes of code, or of dirty data, in all instances.
    fn all_bytes(&self) -> u64 {
        (self.code_mb * code::MEGABYTE) as u64 * self.to as u64
    }

    /// Checks the options, as far as that is possible before anything is made.
    pub(super) fn check(&self) -> Result<()> {
        ensure!(!self.series.is_empty(), "nothing to compare: --experiment and --mode leave no experiment");
        if self.series.iter().any(|series| *series != Series::Teardown) {
            ensure!(self.from < self.to, "--to must be greater than --from");
        }
        ensure!((1..=MOST_INSTANCES).contains(&self.to), "--to must be between 1 and {MOST_INSTANCES}");
        ensure!((1..=MOST_RUNS).contains(&self.runs), "--runs must be between 1 and {MOST_RUNS}");
        ensure!(self.code_mb <= MOST_MB, "--code-mb must be at most {MOST_MB}");
        ensure!(!self.timeout.is_zero(), "--timeout must be more than 0");
        for (n, engine) in self.engines.iter().flatten().enumerate() {
            let before = &self.engines.as_deref().unwrap_or_default()[..n];
            ensure!(!before.contains(engine), "--engines names {} twice", engine.name());
        }
        for (n, garden) in self.gardens.iter().enumerate() {
            ensure!(!self.gardens[..n].contains(garden), "--garden names {garden} twice");
        }
        let real = std::fs::canonicalize(&self.fs)
            .with_context(|| format!("--fs: look at {}", self.fs.display()))?;
        if let Some(covered) = super::hold::COVERED.into_iter().find(|covered| real.starts_with(covered)) {
            anyhow::bail!(
                "--fs: {} is in {covered}, which is hidden from the other engines",
                self.fs.display()
            );
        }
        let stat = rustix::fs::statvfs(&real).with_context(|| format!("--fs: look at {}", real.display()))?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        // The layer: the archive with it, what an engine keeps of that, and the unpacked one.
        let layer = if self.series.contains(&Series::Layer) { 4 } else { 0 };
        let wanted = self.all_bytes().max(layer * (self.code_mb * code::MEGABYTE) as u64) + (64 << 20);
        ensure!(
            wanted <= free,
            "{} instances with {} MB each take up to {}, and {} has {}: smaller --to or --code-mb, or another --fs",
            self.to,
            self.code_mb,
            bytes(wanted),
            self.fs.display(),
            bytes(free)
        );
        self.memory(available()?)
    }

    /// The code is kept in memory, several times; each instance has a command of its engine at work.
    fn memory(&self, available: u64) -> Result<()> {
        let code = 5 * (self.code_mb * code::MEGABYTE) as u64;
        let wanted = code + COMMAND_BYTES * self.to as u64;
        ensure!(
            wanted <= available / 2,
            "{} instances with {} MB of code take {} of memory, half of the {} that are free must do: smaller --to or \
             --code-mb",
            self.to,
            self.code_mb,
            bytes(wanted),
            bytes(available)
        );
        Ok(())
    }
}

fn available() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").context("read /proc/meminfo")?;
    Ok(wardian_sys::procfs::meminfo(&text)?.available)
}

/// The words that repeat this comparison.
pub(super) fn command(options: &Options, engines: &[&str]) -> Vec<String> {
    let mut words = vec!["wardian".to_owned(), "lab".to_owned(), "compare".to_owned()];
    let mut flag = |name: &str, value: String| words.extend([format!("--{name}"), value]);
    flag("engines", engines.join(","));
    for garden in &options.gardens {
        flag("garden", garden.clone());
    }
    let has = |series| options.series.contains(&series);
    let (stream, layer) = (has(Series::Stream), has(Series::Layer));
    let experiments = [(stream || layer, "scale"), (has(Series::Teardown), "teardown")];
    let named = |all: &[(bool, &'static str)]| {
        all.iter().filter(|(is, _)| *is).map(|(_, name)| *name).collect::<Vec<_>>().join(",")
    };
    flag("experiment", named(&experiments));
    if stream || layer {
        flag("mode", named(&[(stream, "stream"), (layer, "oci")]));
        flag("from", options.from.to_string());
    }
    flag("to", options.to.to_string());
    flag("code-mb", options.code_mb.to_string());
    flag("runs", options.runs.to_string());
    flag("seed", options.seed.to_string());
    flag("fs", Path::new(&options.fs).display().to_string());
    if !options.pea {
        words.push("--no-pea".to_owned());
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_comparison_is_refused() {
        let refused = |change: &dyn Fn(&mut Options)| {
            let mut options = Options { code_mb: 1, ..Options::new("wardian".into()) };
            change(&mut options);
            options.check().err().map(|error| error.to_string()).unwrap_or_default()
        };
        assert_eq!(refused(&|_| ()), "");
        assert!(refused(&|o| o.to = 1).contains("--to must be greater"));
        assert_eq!(refused(&|o| (o.to, o.series) = (1, vec![Series::Teardown])), "");
        assert!(refused(&|o| o.to = 1001).contains("between 1 and 1000"));
        assert!(refused(&|o| o.runs = 0).contains("--runs"));
        assert!(refused(&|o| o.code_mb = 5000).contains("--code-mb"));
        assert!(refused(&|o| o.series.clear()).contains("nothing to compare"));
        assert!(refused(&|o| o.fs = "/nowhere".into()).contains("--fs"));
        assert!(refused(&|o| o.fs = "/dev/shm".into()).contains("hidden from the other engines"));
        assert!(refused(&|o| o.engines = Some(vec![Engine::Podman; 2])).contains("podman twice"));
        assert!(refused(&|o| o.gardens = vec!["unix:/x".into(); 2]).contains("twice"));
        let options = Options { code_mb: 100, to: 10, ..Options::new("wardian".into()) };
        assert!(options.memory(4 << 30).is_ok());
        assert!(options.memory(1 << 30).unwrap_err().to_string().contains("of memory"));
    }

    #[test]
    fn the_command_repeats_it() {
        let mut options = Options { seed: 7, pea: false, ..Options::new("wardian".into()) };
        let line = |options: &Options| command(options, &["wardian", "podman"]).join(" ");
        assert_eq!(
            line(&options),
            "wardian lab compare --engines wardian,podman --experiment scale,teardown --mode stream,oci --from 1 --to 10 \
             --code-mb 100 --runs 5 --seed 7 --fs /var/tmp --no-pea"
        );
        options.series = vec![Series::Teardown];
        assert!(line(&options).contains("--experiment teardown --to"));
    }
}
