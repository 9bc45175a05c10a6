//! The experiment: some overlay mounts, an app's worth of data written into each, and all of them unmounted, with the
//! duration of each step. An overlay that is not volatile syncs the whole file system under it at its unmount, so the
//! unmount pays for all dirty data there, whoever wrote it.
//!
//! It needs no server, only root. The experiment runs on a thread of its own in a mount namespace of its own: the
//! unmounts are real `umount2(2)` calls, and nothing is left mounted, however it ends.

mod mounts;
pub mod options;
pub mod report;
mod stop;
pub mod sysctl;
mod write;

use crate::host::{Dirty, Host, written};
use crate::leftovers::{PREFIX, Record, Records};
use crate::progress::Progress;
use crate::report::{Phase, Span};
use crate::{Interrupted, ground, interruption};
use anyhow::{Context, Result};
use options::{Options, Target};
use report::{Report, Round};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use stop::Stop;
use tempfile::TempDir;
use wardian_recorder::{self as recorder, Diagnosis, Recorder, Subject};
use write::{Writer, trickling};

/// Name of the thread that does everything except parallel unmounts.
pub(crate) const THREAD: &str = "teardown";

/// Runs the experiment, and cleans up after it, however it ends. `yes`: no confirmation is asked for.
///
/// # Errors
/// [`Interrupted`] by a signal; or the kernel's.
pub async fn run(options: Options, yes: bool) -> Result<Report> {
    let (report, done) = measure(options, yes).await?;
    done.map(|()| report)
}

/// The same; the report of an experiment that failed or was interrupted, which is marked as such, comes with its error.
///
/// # Errors
/// The experiment could not begin.
pub async fn measure(mut options: Options, yes: bool) -> Result<(Report, Result<()>)> {
    options.check()?;
    options.fs = std::path::absolute(&options.fs).context("--fs")?;
    options.room(yes)?;
    let signal = interruption().context("listen for signals")?;
    let stop = Stop::default();
    let (answer, answered) = tokio::sync::oneshot::channel();
    let theirs = stop.clone();
    let experiment = move || drop(answer.send(experiment(options, &theirs)));
    std::thread::Builder::new().name(THREAD.to_owned()).spawn(experiment).context("start a thread")?;
    tokio::pin!(answered);
    let done = tokio::select! {
        done = &mut answered => done,
        signal = signal => {
            stop.set(signal);
            Progress::new().say("interrupted: cleaning up");
            answered.await
        }
    };
    let (mut report, done) = done.context("the experiment panicked")?;
    report.complete = done.is_ok();
    report.error = done.as_ref().err().map(|error| format!("{error:#}"));
    Ok((report, done))
}

fn experiment(options: Options, stop: &Stop) -> (Report, Result<()>) {
    let mut report = Report {
        complete: false,
        error: None,
        host: Host::probe(Some(&options.fs)),
        options,
        first_round: None,
        round: Round::default(),
    };
    let done = Records::usual().begin().and_then(|mut record| {
        let done = with_record(&mut record, &mut report, stop);
        // The first error is reported.
        done.and(record.end())
    });
    (report, done)
}

/// Runs the rounds; the settings stay changed until the record ends.
fn with_record(record: &mut Record, report: &mut Report, stop: &Stop) -> Result<()> {
    record.change(&report.options.sysctl)?;
    let fs = report.options.fs.display();
    let dir = ground::dir_in(&report.options.fs, PREFIX)
        .with_context(|| format!("make a directory in {fs}: name another file system with --fs"))?;
    record.dir(dir.path())?;
    mounts::enter(dir.path())?;
    let mut ground = Ground {
        stop,
        progress: Progress::new(),
        dir: dir.path().to_owned(),
        mounted: Vec::new(),
        owners: HashMap::new(),
        options: report.options.clone(),
    };
    let done = ground.rounds(report);
    if let Err(error) = &done
        && !error.is::<Interrupted>()
    {
        ground.progress.say("failed: cleaning up");
    }
    let cleared = ground.clear(dir);
    done.and(cleared)
}

/// The working directory and state of the experiment.
struct Ground<'a> {
    options: Options,
    stop: &'a Stop,
    progress: Progress,
    dir: PathBuf,
    /// Numbers of the overlays that are mounted.
    mounted: Vec<usize>,
    /// Owner of each file, by inode number.
    owners: HashMap<u64, String>,
}

impl Ground<'_> {
    fn rounds(&mut self, report: &mut Report) -> Result<()> {
        mounts::prepare(self.options.mounts, self.overlay())?;
        let last = if self.options.again.is_some() { 2 } else { 1 };
        for number in 1..=last {
            if number == 2 {
                report.first_round = Some(std::mem::take(&mut report.round));
                self.progress.say("again, on the same files");
            }
            let recorder = Recorder::start(recorder::Options::new(&self.dir))?;
            let done = self.round(number, number == last, &recorder, &mut report.round);
            let recording = recorder.finish();
            report.round.diagnosis = Diagnosis::of(&recording, &|subject| self.name(subject));
            report.round.length_ms = recording.length_ms;
            (report.round.samples, report.round.marks) = (recording.samples, recording.marks);
            done?;
        }
        Ok(())
    }

    /// Names that the recorder cannot know.
    fn name(&self, subject: Subject<'_>) -> Option<String> {
        match subject {
            Subject::Inode(inode) => self.owners.get(&inode).cloned(),
            Subject::Task(task) => match task.comm.as_str() {
                THREAD => Some("the writer".to_owned()),
                write::TRICKLE => Some("the trickling sync".to_owned()),
                other => Some(format!("the unmount of mount {}", mount_of(other)?)),
            },
        }
    }

    fn overlay(&self) -> bool {
        self.options.target != Target::Plain
    }

    fn round(&mut self, number: usize, last: bool, recorder: &Recorder, round: &mut Round) -> Result<()> {
        let since = recorder.since();
        let (count, again) = (self.options.mounts, self.options.again.filter(|_| number > 1));
        let mut writer = Writer::new(self.options.source, self.stop)?;
        if self.options.neighbour_mb > 0 {
            let counted = Counted::begin("neighbour", recorder)?;
            self.progress.say(&format!("a neighbour writes {} MB", self.options.neighbour_mb));
            let wrote = writer.neighbour(self.options.neighbour_mb);
            counted.end(round)?;
            wrote?;
        }

        let counted = Counted::begin("write", recorder)?;
        let (mut mounting, mut writing) = (Vec::new(), Vec::new());
        let bar = self.progress.phase("write", count);
        let filled = trickling(self.options.trickle_sync_ms.map(Duration::from_millis), || {
            for n in 0..count {
                self.stop.check()?;
                if self.overlay() {
                    let volatile = self.options.target == Target::Volatile;
                    mounting.push((n, mounts::mount(n, number, volatile)?));
                    self.mounted.push(n);
                }
                writing.push((n, writer.fill(n, &self.options, again)?));
                bar.step();
            }
            Ok(())
        });
        drop(bar);
        for (name, each) in [("mount", &mounting), ("write", &writing)] {
            // They take turns: a phase is as long as all of its parts.
            if let [(_, first), ..] = each[..] {
                let took = each.iter().map(|(_, span)| span.took).sum();
                self.over(Phase::timed(name, since, Span { begin: first.begin, took }, each), round);
            }
        }
        counted.end(round)?;
        self.owners = write::owners(&self.options, self.overlay());
        filled?;

        if self.options.age_s > 0 && number == 1 {
            let (counted, begin) = (Counted::begin("age", recorder)?, Instant::now());
            self.progress.say(&format!("the data grows old for {} s", self.options.age_s));
            let slept = self.stop.sleep(Duration::from_secs(self.options.age_s));
            self.over(Phase::timed("age", since, Span::since(begin), &[]), round);
            counted.end(round)?;
            slept?;
        }

        round.dirty_at_unmount_bytes = Dirty::now()?.dirty_bytes;
        if self.overlay() {
            let counted = Counted::begin("unmount", recorder)?;
            let (bar, begin) = (self.progress.phase("unmount", count), Instant::now());
            let done = Mutex::new(Vec::new());
            let each = |n, span| {
                done.lock().unwrap_or_else(PoisonError::into_inner).push((n, span));
                bar.step();
            };
            let unmounted = mounts::unmount(&mut self.mounted, self.options.unmount, self.stop, each);
            drop(bar);
            counted.end(round)?;
            let mut each = done.into_inner().unwrap_or_else(PoisonError::into_inner);
            each.sort_by_key(|(n, _)| *n);
            // Of half a phase, what there is.
            let whole = unmounted.as_ref().map_or_else(|_| Span::since(begin), |whole| *whole);
            if unmounted.is_ok() || !each.is_empty() {
                self.over(Phase::timed("unmount", since, whole, &each), round);
            }
            unmounted?;
        }
        if last { self.remove(recorder, round) } else { Ok(()) }
    }

    fn remove(&self, recorder: &Recorder, round: &mut Round) -> Result<()> {
        let (counted, begin, mut each) = (Counted::begin("remove", recorder)?, Instant::now(), Vec::new());
        let bar = self.progress.phase("remove", self.options.mounts);
        let mut remove = || {
            for n in 0..self.options.mounts {
                self.stop.check()?;
                let begin = Instant::now();
                std::fs::remove_dir_all(n.to_string())
                    .with_context(|| format!("remove the files of mount {n}"))?;
                each.push((n, Span::since(begin)));
                bar.step();
            }
            Ok(())
        };
        let removed = remove();
        drop(bar);
        if removed.is_ok() || !each.is_empty() {
            self.over(Phase::timed("remove", recorder.since(), Span::since(begin), &each), round);
        }
        counted.end(round)?;
        removed
    }

    fn over(&self, phase: Phase, round: &mut Round) {
        self.progress.tell(&phase);
        round.phases.push(phase);
    }

    /// Removes everything that is left.
    fn clear(&self, dir: TempDir) -> Result<()> {
        write::discard(&self.options, self.overlay());
        for n in &self.mounted {
            // Some of several parallel unmounts may have succeeded.
            let _ = wardian_sys::mount::unmount(&mounts::root(*n));
        }
        let path = dir.path().to_owned();
        dir.close().with_context(|| format!("remove {}", path.display()))
    }
}

/// The number of the mount that a thread of this name unmounts.
pub(crate) fn mount_of(thread: &str) -> Option<usize> {
    thread.strip_prefix(mounts::THREAD)?.parse().ok()
}

/// A phase, marked in the recording, and the bytes that this machine writes during it.
struct Counted {
    phase: &'static str,
    before: u64,
}

impl Counted {
    fn begin(phase: &'static str, recorder: &Recorder) -> Result<Self> {
        recorder.mark(phase);
        Ok(Self { phase, before: written()? })
    }

    fn end(self, round: &mut Round) -> Result<()> {
        round.written_bytes.insert(self.phase, written()?.saturating_sub(self.before));
        Ok(())
    }
}
