//! Records the disk activity of a command, or of a running process.

use crate::{Interrupted, interrupted};
use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde::Serialize;
use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;
use tokio::process::Child;
use wardian_recorder::{Diagnosis, Options, Recorder, Recording, Watch, unnamed};

/// Time for the command to end by itself after a signal.
const GRACE: Duration = Duration::from_secs(5);
/// Poll interval for whether a process that is not a child is alive.
const ALIVE_EVERY: Duration = Duration::from_millis(100);

/// A recording and its diagnosis.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The command, if there was one.
    pub command: Vec<String>,
    /// Exit code as in a shell: 128 plus the signal's number if the command was killed by one.
    pub exit_code: Option<i32>,
    /// The evaluation of the recording.
    pub diagnosis: Diagnosis,
    /// The recording.
    pub recording: Recording,
    /// The signal that ended the recording early.
    pub interrupted: Option<i32>,
}

/// The error that a command could not be started.
#[derive(Debug)]
pub struct NotRun {
    /// The command's program.
    pub program: String,
    /// The system's error.
    pub source: std::io::Error,
}

impl std::fmt::Display for NotRun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "cannot run {}", self.program)
    }
}

impl std::error::Error for NotRun {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

impl NotRun {
    /// The exit code of a shell in this case: 127 if there is no such program, 126 if it cannot be executed.
    pub fn exit_code(&self) -> u8 {
        if self.source.kind() == std::io::ErrorKind::NotFound { 127 } else { 126 }
    }
}

impl Report {
    fn of(mut recording: Recording, interrupted: Option<Interrupted>) -> Self {
        recording.interrupted = interrupted.is_some();
        let diagnosis = Diagnosis::of(&recording, &unnamed);
        let interrupted = interrupted.map(|Interrupted(signal)| signal);
        Self { command: Vec::new(), exit_code: None, diagnosis, recording, interrupted }
    }
}

/// Records while a command runs. `fs` is a directory on the file system of interest; by default the working
/// directory.
///
/// # Errors
/// Recording, or the command, cannot be started. A command that fails is no error.
pub async fn command(command: &[OsString], fs: Option<PathBuf>) -> Result<Report> {
    let Some((program, args)) = command.split_first() else { bail!("give a command to run, after `--`") };
    // The command will be a child: it is watched from its start.
    let options = Options { watch: Watch::Children, ..Options::new(fs.unwrap_or_else(|| ".".into())) };
    let recorder = Recorder::start(options)?;
    let mut run = tokio::process::Command::new(program);
    run.args(args).kill_on_drop(true);
    // A terminal sends Ctrl-C to its whole foreground group, and lets no other group read from it. Without a terminal
    // the command gets a group of its own, so that all of its processes can be killed.
    let group = !std::io::stdin().is_terminal();
    if group {
        run.process_group(0);
    }
    let mut child =
        run.spawn().map_err(|source| NotRun { program: program.display().to_string(), source })?;
    let (status, signal) = tokio::select! {
        status = child.wait() => (status, None),
        signal = interrupted() => {
            let signal = signal?;
            (end(&mut child, group, signal).await, Some(Interrupted(signal)))
        }
    };
    let status = status.context("wait for the command")?;
    let mut report = Report::of(recorder.finish(), signal);
    report.command = command.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    report.exit_code = status.code().or(status.signal().map(|signal| 128 + signal));
    Ok(report)
}

/// Forwards a signal, and ensures that the command ends.
async fn end(child: &mut Child, group: bool, signal: i32) -> std::io::Result<ExitStatus> {
    let Some(pid) = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed())) else {
        return child.wait().await;
    };
    let send = |signal| {
        // The process may have ended meanwhile.
        let _ = if group { kill_process_group(pid, signal) } else { kill_process(pid, signal) };
    };
    send(Signal::from_named_raw(signal).unwrap_or(Signal::TERM));
    let ended = tokio::time::timeout(GRACE, child.wait()).await;
    if group || ended.is_err() {
        send(Signal::KILL);
    }
    match ended {
        Ok(status) => status,
        Err(_) => child.wait().await,
    }
}

/// Records a running process, for this time or until it ends.
///
/// # Errors
/// There is no such process, or it cannot be recorded.
pub async fn process(pid: u32, fs: Option<PathBuf>, length: Duration) -> Result<Report> {
    let dir = PathBuf::from(format!("/proc/{pid}"));
    if pid == 0 || !dir.exists() {
        bail!("there is no process {pid}");
    }
    let options = Options { watch: Watch::Tree(pid), ..Options::new(fs.unwrap_or_else(|| dir.join("cwd"))) };
    let recorder = Recorder::start(options)?;
    let ends = async {
        while dir.exists() {
            tokio::time::sleep(ALIVE_EVERY).await;
        }
    };
    let signal = tokio::select! {
        () = tokio::time::sleep(length) => None,
        () = ends => None,
        signal = interrupted() => Some(Interrupted(signal?)),
    };
    Ok(Report::of(recorder.finish(), signal))
}
