//! Which kernel changed a figure: an experiment on several kernels, each in a guest with a disk of the same speed.
//!
//! Without a bound every kernel is measured. With one the kernels are halved, as by `git bisect`, until the figure is at
//! most the bound on one kernel and above it on its neighbour.

pub mod experiment;
pub(crate) mod figures;
pub mod options;
pub mod report;
mod runs;
mod search;

pub use figures::parse_bound;
pub use runs::runs;
pub use search::{Side, Verdict};

use crate::guest::kernel::{Name, cached};
use crate::guest::{self, Failure, Guest, Settings, apt, machine};
use crate::host::{Host, since_1970};
use crate::leftovers::{PREFIX, Records};
use crate::progress::Progress;
use crate::{Interrupted, ground, interruption};
use anyhow::{Context, Result, bail, ensure};
use options::Options;
use report::{Measured, Report};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tokio::task::JoinSet;

/// A guest that fails before its first run is booted so many times: a boot may fail on a busy host.
const BOOTS: usize = 2;
/// A doubtful kernel is measured so many times as often at most.
const MOST_REPEATS: usize = 3;

/// The kernels that apt offers and the cache has, as text.
///
/// # Errors
/// apt is missing or fails.
pub async fn list(cache: &Path) -> Result<String> {
    let offered = apt::offered().await?;
    let cached = cached(cache);
    let mut out = String::new();
    for name in &offered {
        let note = if cached.contains(name) { "  (unpacked already)" } else { "" };
        out += &format!("{name}{note}\n");
    }
    for name in cached.iter().filter(|name| !offered.contains(name)) {
        out += &format!("{name}  (unpacked already; apt offers it no more)\n");
    }
    ensure!(!out.is_empty(), "apt offers no kernels: are its lists there (apt-get update)?");
    Ok(out)
}

/// What the tasks that measure share.
#[derive(Debug)]
struct Shared {
    options: Options,
    names: Vec<Name>,
    /// This program.
    program: PathBuf,
    /// Where the guests' files are made.
    dir: PathBuf,
    progress: Progress,
    found: Mutex<Vec<Measured>>,
}

/// Runs a bisection, and ends all guests however it ends. The report of one that failed or was interrupted, which is
/// marked as such, comes with its error: [`Interrupted`], or no kernel could be measured. `program` is this program; a
/// guest gets a copy.
///
/// # Errors
/// The bisection could not begin: a kernel does not exist, or something is missing here.
pub async fn measure(options: Options, program: &Path) -> Result<(Report, Result<()>)> {
    let host = Host::probe(Some(&options.scratch));
    options.check(host.cpus, available_memory())?;
    guest::check(program, options.fs)?;
    let parsed: Vec<Name> = options.kernels.iter().map(|name| Name::parse(name)).collect::<Result<_>>()?;
    let signal = interruption().context("listen for signals")?;
    let (begin, begun_ms) = (Instant::now(), since_1970(SystemTime::now()));
    let names = settled(parsed, &options).await?;
    let blank = names.iter().zip(&options.kernels).map(|(name, given)| {
        Measured::unknown(if let Name::Package(package) = name { package } else { given })
    });
    let mut report = Report {
        complete: false,
        error: None,
        begun_ms,
        kernels: blank.collect(),
        qemu: machine::version().await?,
        verdict: None,
        text: String::new(),
        seconds: 0.0,
        host,
        options,
    };
    let done = recorded(&mut report, names, program, signal).await;
    report.seconds = begin.elapsed().as_secs_f64();
    report.complete = done.is_ok();
    report.error = done.as_ref().err().map(|error| format!("{error:#}"));
    report.evaluate();
    Ok((report, done))
}

async fn settled(parsed: Vec<Name>, options: &Options) -> Result<Vec<Name>> {
    let cached = cached(&options.cache);
    let offered = if parsed.iter().any(Name::is_apts) {
        match apt::offered().await {
            Ok(offered) => offered,
            // Without apt the kernels that were unpacked before can still be used.
            Err(_) if !cached.is_empty() => Vec::new(),
            Err(error) => return Err(error),
        }
    } else {
        Vec::new()
    };
    let names: Vec<Name> =
        parsed.into_iter().map(|name| name.settle(&offered, &cached)).collect::<Result<_>>()?;
    for (at, name) in names.iter().enumerate() {
        let twice = names[..at].iter().position(|other| other == name);
        if let Some(first) = twice {
            bail!("--kernels: {} and {} are the same kernel", options.kernels[first], options.kernels[at]);
        }
    }
    Ok(names)
}

/// Makes the directory for the guests' files, which is recorded where root's experiments are: a killed one leaves it.
async fn recorded(
    report: &mut Report,
    names: Vec<Name>,
    program: &Path,
    signal: impl Future<Output = i32>,
) -> Result<()> {
    let dir = ground::dir_in(&report.options.scratch, PREFIX).context("--scratch")?;
    let mut record = rustix::process::geteuid().is_root().then(|| Records::usual().begin()).transpose()?;
    if let Some(record) = &mut record {
        record.dir(dir.path())?;
    }
    let shared = Arc::new(Shared {
        options: report.options.clone(),
        names,
        program: program.to_owned(),
        dir: dir.path().to_owned(),
        progress: Progress::new(),
        found: Mutex::new(report.kernels.clone()),
    });
    // The tasks outlive what drives them, until they have ended the guests.
    let mut tasks = JoinSet::new();
    let done = tokio::select! {
        done = drive(&shared, &mut tasks) => done,
        signal = signal => {
            shared.progress.say("interrupted: ending the guests");
            Err(Interrupted(signal).into())
        }
    };
    tasks.shutdown().await;
    report.kernels = shared.found();
    let path = dir.path().to_owned();
    let removed = dir.close().with_context(|| format!("remove {}", path.display()));
    let ended = record.map_or(Ok(()), crate::leftovers::Record::end);
    done?;
    removed.and(ended)?;
    if report.kernels.iter().all(|kernel| kernel.runs.is_empty()) {
        let first = report.kernels.iter().find(|kernel| kernel.skipped.is_some());
        let reason = first.and_then(|kernel| kernel.skipped.clone()).unwrap_or_default();
        let log = first.map(|kernel| kernel.log.join("\n  ")).filter(|log| !log.is_empty());
        let log = log.map(|log| format!("\nthe end of its log:\n  {log}")).unwrap_or_default();
        bail!("no kernel could be measured; {}: {reason}{log}", first.map_or("", Measured::name));
    }
    Ok(())
}

async fn drive(shared: &Arc<Shared>, tasks: &mut JoinSet<Result<()>>) -> Result<()> {
    let options = &shared.options;
    loop {
        let sides: Vec<Side> = shared.found().iter().map(|kernel| kernel.side).collect();
        let round = if options.bound.is_some() {
            search::next(&sides, options.jobs)
        } else {
            let found = shared.found();
            let open = |at: &usize| found[*at].runs.is_empty() && found[*at].skipped.is_none();
            (0..found.len()).filter(open).take(options.jobs).collect()
        };
        if round.is_empty() {
            return Ok(());
        }
        for at in round {
            let shared = shared.clone();
            tasks.spawn(async move { shared.measure(at).await });
        }
        while let Some(done) = tasks.join_next().await {
            done.context("a task that measures a kernel panicked")??;
        }
    }
}

impl Shared {
    fn found(&self) -> Vec<Measured> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes what is known of a kernel.
    fn note(&self, at: usize, change: impl FnOnce(&mut Measured)) {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.get_mut(at).map(change);
    }

    async fn measure(&self, at: usize) -> Result<()> {
        let name = self.found().get(at).map(|kernel| kernel.name().to_owned()).unwrap_or_default();
        let mut boots = 1;
        let skipped = loop {
            match self.try_measure(at, &name).await {
                Ok(skipped) => break skipped,
                Err(Failure::Host(error)) => return Err(error.context(name)),
                Err(Failure::Guest(broken)) => {
                    if boots == BOOTS || self.found().get(at).is_none_or(|kernel| !kernel.runs.is_empty()) {
                        break Some((broken.reason, broken.log));
                    }
                    boots += 1;
                    self.progress.say(&format!("{name}: {}: it is booted again", broken.reason));
                }
            }
        };
        if let Some((reason, log)) = skipped {
            self.progress.say(&format!("{name}: skipped: {reason}"));
            self.note(at, |kernel| {
                (kernel.skipped, kernel.log, kernel.side) = (Some(reason), log, Side::Skipped);
            });
        }
        Ok(())
    }

    /// Measures a kernel. Returns why it could not be measured, and the end of its log.
    async fn try_measure(&self, at: usize, name: &str) -> Result<Option<(String, Vec<String>)>, Failure> {
        let options = &self.options;
        let patience = Duration::from_secs(options.timeout_s);
        let tell = |text: &str| self.progress.say(text);
        let kernel = self.names[at].kernel(&options.cache, &tell).await?;
        self.note(at, |known| known.source.clone_from(&kernel.source));
        let machine = options.machine();
        let settings = Settings {
            kernel: &kernel,
            machine: &machine,
            fs: options.fs,
            modules: &options.modules,
            program: &self.program,
            files: &options.files,
            dir: &self.dir,
            patience,
        };
        let mut guest = Guest::boot(settings).await?;
        let release = guest.sh("uname -r", patience).await?;
        let boot_s = guest.boot.as_secs_f64();
        tell(&format!("{name}: booted in {boot_s:.0} s"));
        self.note(at, |known| {
            (known.release, known.boot_s) = (Some(guest::said(&release.bytes)), Some(boot_s));
        });
        let skipped = self.runs(at, name, &mut guest, patience).await?;
        guest.end().await?;
        Ok(skipped)
    }

    /// Runs the experiment as often as wanted, and again while the figure is near the bound.
    async fn runs(
        &self,
        at: usize,
        name: &str,
        guest: &mut Guest,
        patience: Duration,
    ) -> Result<Option<(String, Vec<String>)>, Failure> {
        let options = &self.options;
        for number in 1..=options.runs * MOST_REPEATS {
            let run = match options.experiment.run(guest, patience).await? {
                Ok(run) => run,
                Err(reason) => return Ok(Some((reason, guest.log()))),
            };
            let Some(value) = run.figures.get(&options.figure).copied() else {
                let names: Vec<&str> = run.figures.keys().map(String::as_str).collect();
                let error = anyhow::anyhow!(
                    "--figure: the experiment has no figure {}; it has {}",
                    options.figure,
                    names.join(", ")
                );
                return Err(Failure::Host(error));
            };
            self.progress.say(&format!("{name}: run {number}: {}", figures::shown(&options.figure, value)));
            let mut doubtful = false;
            self.note(at, |known| {
                known.runs.push(run);
                if let (Some(bound), Some(spread)) = (options.bound, known.spread(&options.figure)) {
                    known.side = if number >= options.runs { spread.side(bound) } else { Side::Unknown };
                    doubtful = spread.is_doubtful(bound);
                }
            });
            if number >= options.runs && !doubtful {
                break;
            }
        }
        Ok(None)
    }
}

/// Memory in bytes that is available without swapping.
fn available_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib: Option<u64> = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    kib.map_or(u64::MAX, |kib| kib << 10)
}
