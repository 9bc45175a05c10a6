//! `wardian lab run`: an experiment again and again, on a host that watches.

use super::history::{STEP, words};
use super::kept::{self, Place};
use super::webhook::{self, Webhook};
use crate::{exit, print};
use anyhow::{Context as _, Result, bail};
use parking_lot::Mutex;
use rustix::fs::{FlockOperation, Mode, OFlags, flock, openat};
use rustix::process::{Pid, Signal, kill_process};
use std::collections::VecDeque;
use std::ffi::OsString;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{ExitCode, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Command;
use tokio::time::Instant;
use wardian_history::Store;
use wardian_lab::Interrupted;
use wardian_lab::signals::{Signals, asking};
use wardian_sys::directory::Directory;

/// Experiments that can be repeated.
const EXPERIMENTS: [&str; 4] = ["scale", "teardown", "bench", "record"];
/// So much of what an experiment says is shown if it fails, in bytes.
const TAIL: usize = 4096;
/// How long its output may stay open after its end: a process that it has left may hold it for ever.
const AFTER: Duration = Duration::from_secs(1);

/// How often, and what.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The time from one begin to the next
    #[arg(long, value_name = "TIME", value_parser = period, default_value = "10m", conflicts_with = "once")]
    every: Duration,
    /// End after N runs [default: never]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), conflicts_with = "once")]
    count: Option<u32>,
    /// Run it once, for a timer of the system's; exit code 3 if a step appeared
    #[arg(long)]
    once: bool,
    /// Post a JSON object there when a step appears: http:// or https://. A URL with a secret belongs in the environment, not
    /// in a command line, which every user of the host can read
    #[arg(long, value_name = "URL", env = "WARDIAN_LAB_WEBHOOK", hide_env_values = true, value_parser = webhook::url)]
    webhook: Option<reqwest::Url>,
    #[command(flatten)]
    place: Place,
    /// The experiment, after `--`: scale --runs 1
    #[arg(last = true, required = true, value_name = "EXPERIMENT")]
    experiment: Vec<OsString>,
}

fn period(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(period) if period >= Duration::from_secs(1) => Ok(period),
        _ => Err(format!("{text:?} is not a time of at least a second, such as 10m or 1h30m")),
    }
}

/// Run it.
pub fn run(args: Args, runtime: &tokio::runtime::Runtime, program: &Path) -> Result<ExitCode> {
    check(&args.experiment)?;
    let path = kept::named(&args.place)?;
    let store = Store::open(&path)?;
    let _lock = lock(store.path())?;
    let webhook = args.webhook.map(Webhook::new).transpose()?;
    let mut watch = Watch { store, program, experiment: args.experiment, webhook, steps: 0, failures: 0 };
    runtime.block_on(async {
        let mut signals = Signals::catch(&asking()).context("listen for signals")?;
        let count = if args.once { Some(1) } else { args.count };
        watch.repeat(count, args.every, &mut signals).await
    })?;
    Ok(match (watch.steps, watch.failures) {
        (0, 0) => ExitCode::SUCCESS,
        (0, _) => ExitCode::FAILURE,
        _ => ExitCode::from(STEP),
    })
}

/// Refuses what is no experiment before it fails every ten minutes.
fn check(words: &[OsString]) -> Result<()> {
    let name = words.first().and_then(|word| word.to_str()).unwrap_or_default();
    if !EXPERIMENTS.contains(&name) {
        let all = EXPERIMENTS.join(", ");
        return Err(exit::mistake(anyhow::anyhow!(
            "{name:?} cannot be repeated: an experiment is one of {all}"
        )));
    }
    let own = words.iter().take_while(|word| *word != "--");
    for word in own.filter_map(|word| word.to_str()) {
        if word.starts_with("--history") || word == "--no-history" {
            return Err(exit::mistake(anyhow::anyhow!("give {word} to `lab run`, before its --")));
        }
    }
    let line = ["wardian", "lab"].into_iter().map(OsString::from).chain(words.iter().cloned());
    crate::help::command().try_get_matches_from(line).map(drop).map_err(|error| {
        let text = error.render().to_string();
        exit::mistake(anyhow::anyhow!("{}", text.trim_end().trim_start_matches("error: ")))
    })
}

/// Lets one monitor at a time append to a history: two would measure each other.
fn lock(history: &Path) -> Result<OwnedFd> {
    let (Some(above), Some(name)) = (history.parent(), history.file_name()) else { bail!("no file") };
    let mut name = name.to_owned();
    name.push(".lock");
    let dir = Directory::open(above)?;
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = openat(&dir, &name, flags, Mode::RUSR | Mode::WUSR)
        .with_context(|| format!("open the lock {}", above.join(&name).display()))?;
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        let holders = wardian_sys::lock::told(&wardian_sys::lock::holders(file.as_fd()));
        bail!("another `wardian lab run` appends to {}: {holders}", history.display());
    }
    Ok(file)
}

struct Watch<'a> {
    store: Store,
    program: &'a Path,
    experiment: Vec<OsString>,
    webhook: Option<Webhook>,
    /// Steps that appeared.
    steps: usize,
    /// Runs that failed.
    failures: usize,
}

impl Watch<'_> {
    async fn repeat(&mut self, count: Option<u32>, every: Duration, signals: &mut Signals) -> Result<()> {
        let (mut done, mut next) = (0, Instant::now());
        loop {
            self.once(signals).await?;
            done += 1;
            if count.is_some_and(|count| done >= count) {
                return Ok(());
            }
            next += every;
            if next < Instant::now() {
                print::note(&format!("the run took longer than {}: the next begins at once", told(every)));
                next = Instant::now();
            }
            tokio::select! {
                () = tokio::time::sleep_until(next) => {}
                signal = signals.next() => return Err(Interrupted(signal).into()),
            }
        }
    }

    /// Runs the experiment once, and looks at what it has appended. A failure is told and ends nothing: the next run may
    /// succeed.
    ///
    /// # Errors
    /// [`Interrupted`], or the experiment cannot be started.
    async fn once(&mut self, signals: &mut Signals) -> Result<()> {
        let before = match self.store.newest() {
            Ok(before) => before,
            Err(error) => {
                self.failed(&format!("the history cannot be read: {error}"));
                return Ok(());
            }
        };
        let (status, said) = self.run(signals).await?;
        if !status.success() {
            self.failed(&format!("the experiment failed ({status}):\n{said}"));
        }
        match self.look(before, signals).await {
            Ok(0) if status.success() => {
                self.failed(&format!("the experiment has kept no run in the history:\n{said}"));
            }
            Ok(_) => {}
            Err(error) if error.is::<Interrupted>() => return Err(error),
            Err(error) => self.failed(&format!("the history was not searched for steps: {error:#}")),
        }
        Ok(())
    }

    /// Tells of a failure, and counts it.
    fn failed(&mut self, text: &str) {
        self.failures += 1;
        print::note(text.trim_end());
    }

    /// Runs the experiment. Returns how it ended, and the end of what it said.
    async fn run(&self, signals: &mut Signals) -> Result<(ExitStatus, String)> {
        let mut command = std::process::Command::new(self.program);
        command
            .arg("lab")
            .args(&self.experiment)
            .env("WARDIAN_LAB_HISTORY", self.store.path())
            .env_remove("WARDIAN_LAB_WEBHOOK")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // Ctrl-C reaches this process alone, which passes it on.
            .process_group(0);
        // The next `lab run` would otherwise measure beside what this one has left when it was killed.
        wardian_sys::tether::tie(&mut command);
        let mut child = Command::from(command).spawn().context("start the experiment")?;
        let said = Arc::new(Mutex::new(VecDeque::new()));
        let tail = child.stderr.take().map(|stderr| tokio::spawn(tail(stderr, said.clone())));
        let pid = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
        let mut asked = None;
        let status = loop {
            tokio::select! {
                status = child.wait() => break status.context("wait for the experiment")?,
                // It cleans up, for which it has its own time limits.
                signal = signals.next() => {
                    asked = Some(signal);
                    if let (Some(pid), Some(signal)) = (pid, Signal::from_named_raw(signal)) {
                        let _ = kill_process(pid, signal);
                    }
                }
            }
        };
        if let Some(signal) = asked {
            return Err(Interrupted(signal).into());
        }
        if let Some(tail) = tail {
            let _ = tokio::time::timeout(AFTER, tail).await;
        }
        let text = String::from_utf8_lossy(said.lock().make_contiguous()).into_owned();
        Ok((status, text))
    }

    /// Tells what is new in the series that were appended to. Returns how many there are.
    async fn look(&mut self, before: i64, signals: &mut Signals) -> Result<usize> {
        let names = self.store.series_since(before)?;
        let mut all = Vec::new();
        for series in self.store.series()?.into_iter().filter(|series| names.contains(&series.name)) {
            all.push((self.store.points(&series.name)?.pop(), series));
        }
        // In the order of their runs.
        all.sort_by_key(|(newest, _)| newest.as_ref().map(|point| point.id));
        for (newest, series) in all {
            if let Some(point) = newest.filter(|point| point.complete) {
                let value =
                    point.value.map(|value| words::value(&series.headline, value)).unwrap_or_default();
                let what = words::short(&series.experiment, &series.mode);
                print::line(&format!("{} run {} {what} {value}", words::minute(point.begun_ms), point.id))?;
            }
            for step in self.store.new_steps(&series.name)? {
                self.steps += 1;
                let text = words::step(&series, &step);
                print::line(&text)?;
                print::line(&words::details(&series, &step))?;
                if let Some(webhook) = &self.webhook {
                    let message = webhook::Message { text: &text, series: &series.name, step: &step };
                    let posted = tokio::select! {
                        posted = webhook.post(&message) => posted,
                        signal = signals.next() => return Err(Interrupted(signal).into()),
                    };
                    if let Err(error) = posted {
                        print::note(&format!(
                            "the webhook was not told, and is after the next run: {error:#}"
                        ));
                        continue;
                    }
                }
                self.store.remember(&series.name, &step)?;
            }
        }
        Ok(names.len())
    }
}

fn told(time: Duration) -> String {
    humantime::format_duration(time).to_string()
}

/// Reads to the end, and keeps the last part.
async fn tail(mut from: impl AsyncRead + Unpin, last: Arc<Mutex<VecDeque<u8>>>) {
    let mut buffer = [0; TAIL];
    while let Ok(read) = from.read(&mut buffer).await
        && read > 0
    {
        let mut last = last.lock();
        last.extend(&buffer[..read]);
        let more = last.len().saturating_sub(TAIL);
        last.drain(..more);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_experiments_are_repeated() {
        let said = |line: &str| {
            let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            check(&words).err().map(|error| error.to_string()).unwrap_or_default()
        };
        assert_eq!(said("scale --runs 1 --mode stream,oci"), "");
        assert_eq!(said("record -- ls --no-history"), "");
        for (line, words) in [
            ("history list", "cannot be repeated"),
            ("run -- scale", "cannot be repeated"),
            ("scale --rnus 1", "unexpected argument"),
            ("teardown --no-history", "before its --"),
            ("teardown --history=/x", "before its --"),
        ] {
            assert!(said(line).contains(words), "{line}: {}", said(line));
        }
        assert!(period("10m").is_ok() && period("0s").is_err() && period("x").is_err());
    }

    #[tokio::test]
    async fn the_tail_is_kept() {
        let text = [vec![b'a'; 10_000], b"the end".to_vec()].concat();
        let kept = Arc::default();
        tail(&text[..], Arc::clone(&kept)).await;
        let kept = String::from_utf8(kept.lock().make_contiguous().to_vec()).unwrap();
        assert!(kept.len() == TAIL && kept.ends_with("the end"));
    }
}
