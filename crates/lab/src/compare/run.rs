//! Runs commands of the other engines.

use super::hold::Hold;
use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process_group};
use std::ffi::OsStr;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Child;
use tokio::task::JoinHandle;
use wardian_sys::text::tame;

/// The most bytes that are kept of what a command says.
const MOST: usize = 64 << 10;
/// How long the output is waited for after the command's end: a process that it has left may have it open.
const REST: Duration = Duration::from_millis(500);
/// Variables that would make the engines use what is the user's.
const FOREIGN: [&str; 9] = [
    "CONTAINER_HOST",
    "CONTAINER_CONNECTION",
    "CONTAINERD_ADDRESS",
    "CONTAINERD_NAMESPACE",
    "CONTAINERS_CONF",
    "CONTAINERS_STORAGE_CONF",
    "DOCKER_CONTEXT",
    "DOCKER_HOST",
    "STORAGE_DRIVER",
];

/// Something did not end in time.
#[derive(Debug)]
pub(super) struct Silent {
    what: String,
    limit: Duration,
}

impl std::fmt::Display for Silent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "no answer: {} did not end within {} s", self.what, self.limit.as_secs_f64())
    }
}

impl std::error::Error for Silent {}

/// Waits for this at most so long.
///
/// # Errors
/// [`Silent`], or its own.
pub(super) async fn within<T>(
    limit: Duration,
    what: &str,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    match tokio::time::timeout(limit, work).await {
        Ok(done) => done,
        Err(_) => Err(Silent { what: what.to_owned(), limit }.into()),
    }
}

/// What a command has said.
#[derive(Debug, Default)]
pub(super) struct Said {
    pub(super) out: Vec<u8>,
    pub(super) err: Vec<u8>,
    pub(super) code: Option<i32>,
}

impl Said {
    /// What it said of an error.
    pub(super) fn complaint(&self) -> String {
        format!("it said: {}", last(&self.err))
    }
}

/// A process; if it is dropped before its end, its group is killed.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(pid) = self.0.id().and_then(|pid| Pid::from_raw(pid.cast_signed())) {
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}

/// A command with words as its arguments, and nothing of the user's environment that would lead it astray.
pub(super) fn command<S: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(program);
    command.args(args);
    for name in FOREIGN {
        command.env_remove(name);
    }
    // Ctrl-C in the terminal must reach the lab alone.
    command.process_group(0);
    command
}

/// Starts a command, in the namespaces or on the host.
pub(super) async fn spawn(hold: Option<&Hold>, command: Command) -> Result<Child> {
    match hold {
        Some(hold) => hold.spawn(command).await,
        None => {
            let name = command.get_program().to_string_lossy().into_owned();
            let mut command = tokio::process::Command::from(command);
            command.kill_on_drop(true).spawn().with_context(|| format!("run {name}"))
        }
    }
}

/// Runs a command until it ends. `input` becomes its standard input. A failure is an error, but for the exit codes in
/// `also`.
pub(super) async fn run(
    hold: Option<&Hold>,
    mut command: Command,
    input: Stdio,
    also: &[i32],
) -> Result<Said> {
    command.stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped());
    let line = line(&command);
    let mut running = Running(spawn(hold, command).await?);
    let (out, err) = (Listener::new(running.0.stdout.take()), Listener::new(running.0.stderr.take()));
    let status = running.0.wait().await.with_context(|| format!("wait for {line}"))?;
    let said = Said { out: out.finish().await, err: err.finish().await, code: status.code() };
    let fine = status.success() || said.code.is_some_and(|code| also.contains(&code));
    ensure!(fine, "{line} failed ({status}), saying: {}", last(&said.err));
    Ok(said)
}

/// Reads a pipe to its end, so that whoever writes to it never waits, and keeps its begin.
struct Listener {
    kept: Arc<Mutex<Vec<u8>>>,
    task: JoinHandle<()>,
}

impl Listener {
    fn new(pipe: Option<impl AsyncRead + Unpin + Send + 'static>) -> Self {
        let kept = Arc::<Mutex<Vec<u8>>>::default();
        let keep = kept.clone();
        let task = tokio::spawn(async move {
            let Some(mut pipe) = pipe else { return };
            let mut block = [0; 4096];
            while let Ok(n @ 1..) = pipe.read(&mut block).await {
                if let Ok(mut kept) = keep.lock() {
                    let room = MOST.saturating_sub(kept.len()).min(n);
                    kept.extend_from_slice(&block[..room]);
                }
            }
        });
        Self { kept, task }
    }

    async fn finish(mut self) -> Vec<u8> {
        if tokio::time::timeout(REST, &mut self.task).await.is_err() {
            self.task.abort();
        }
        self.kept.lock().map(|mut kept| std::mem::take(&mut *kept)).unwrap_or_default()
    }
}

/// The words of a command, as in a shell.
fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let text = words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ");
    let text = tame(&text).into_owned();
    match text.char_indices().nth(160) {
        Some((at, _)) => format!("`{}…`", &text[..at]),
        None => format!("`{text}`"),
    }
}

/// The last lines of what it said.
fn last(said: &[u8]) -> String {
    let text = String::from_utf8_lossy(said);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let text = lines[lines.len().saturating_sub(3)..].join("; ");
    if text.is_empty() { "nothing".to_owned() } else { tame(&text).chars().take(600).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        command("sh", ["-c", script])
    }

    #[tokio::test]
    async fn commands_are_heard_and_judged() {
        let said = run(None, shell("echo out; echo err >&2"), Stdio::null(), &[]).await.unwrap();
        assert_eq!((&said.out[..], &said.err[..], said.code), (&b"out\n"[..], &b"err\n"[..], Some(0)));
        let error =
            run(None, shell("echo why >&2; exit 3"), Stdio::null(), &[]).await.unwrap_err().to_string();
        assert!(error.contains("exit 3` failed") && error.ends_with("why"), "{error}");
        let said = run(None, shell("exit 3"), Stdio::null(), &[1, 3]).await.unwrap();
        assert_eq!(said.code, Some(3));
        let error = run(None, command("/nowhere/podman", ["x"]), Stdio::null(), &[]).await.unwrap_err();
        assert!(error.to_string().contains("run /nowhere/podman"), "{error:#}");
    }

    #[tokio::test]
    async fn a_process_left_with_the_output_holds_nothing_up() {
        let begin = std::time::Instant::now();
        let said = run(None, shell("echo x; sleep 3 &"), Stdio::null(), &[]).await.unwrap();
        assert_eq!(said.out, b"x\n");
        assert!(begin.elapsed() < Duration::from_secs(3));
    }

    #[tokio::test]
    async fn much_output_is_read_and_cut() {
        let said = run(None, shell("head -c 1000000 /dev/zero"), Stdio::null(), &[]).await.unwrap();
        assert_eq!(said.out.len(), MOST);
    }

    #[tokio::test]
    async fn what_does_not_answer_is_killed_with_its_children() {
        let dir = tempfile::tempdir().unwrap();
        let script = format!("sleep 1000 & echo $! > {0}/pid; wait", dir.path().display());
        let slow = run(None, shell(&script), Stdio::null(), &[]);
        let error =
            within(Duration::from_millis(300), "a create", async { slow.await.map(drop) }).await.unwrap_err();
        assert!(error.is::<Silent>(), "{error:#}");
        assert_eq!(error.to_string(), "no answer: a create did not end within 0.3 s");
        let pid = std::fs::read_to_string(dir.path().join("pid")).unwrap();
        let stat = format!("/proc/{}/stat", pid.trim());
        for _ in 0..100 {
            let is_dead = std::fs::read_to_string(&stat).map_or(true, |stat| stat.contains(") Z "));
            if is_dead {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{stat} is still there");
    }
}
