//! Connects the standard streams to a process in a container, until either side ends the session.

use super::MAIN;
use super::terminal::{self, Keys, Raw};
use crate::exit::{self, OWN};
use crate::print;
use anyhow::{Context as _, Result};
use std::cell::Cell;
use std::io::ErrorKind as Kind;
use std::pin::Pin;
use std::process::ExitCode;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::signal::unix::{SignalKind, signal as heard};
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;
use wardian_garden::wire::{ProcessSpec, Tty};
use wardian_garden::{Error, ErrorKind, Io, OutputReader, Process};
use wardian_lab::{Interrupted, signals};
use wardian_sys::signal;

/// The exit codes of `run` and `exec`, for their help.
pub const EXIT_CODES: &str = "Exit codes: the process's own (128 + signal if one ended it), 125: it was not started, or some \
    of its input or output is lost, 126: the program cannot be executed, 127: there is no such program, 2: the command line is wrong.";
/// Exit codes: the program cannot be executed, and it does not exist.
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;
/// How long a process may take after a signal that nobody may repeat: as long as for a stop.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// How long the last output of a killed process is waited for.
const LAST: Duration = Duration::from_secs(3);
const INTERRUPT: i32 = 2;
const HANGUP: i32 = 1;
const QUIT: i32 = 3;
pub const PIPE: i32 = 13;

/// Signals whose default action ends a process, and which are caught: otherwise the process in the container would be
/// left behind, and with `run --rm` the container too. They are passed on; a server that passes on only TERM and KILL,
/// as Garden's protocol has it, is sent TERM. Signals of a fault (ABRT, SEGV …) and real-time signals are not among them.
const UNUSUAL: [i32; 10] = [
    10, // USR1
    12, // USR2
    14, // ALRM
    16, // STKFLT
    24, // XCPU
    25, // XFSZ
    26, // VTALRM
    27, // PROF
    29, // IO
    30, // PWR
];

/// The signals that ask this process to end. Those ignored at the start (nohup, a background job) stay ignored.
#[derive(Debug)]
pub struct Signals {
    all: signals::Signals,
    /// A signal that was received, and is kept for the next wait.
    kept: Option<i32>,
}

impl Signals {
    /// Catches the signals from now on.
    pub fn catch() -> Result<Self> {
        let unusual = UNUSUAL.into_iter().map(SignalKind::from_raw);
        let kinds: Vec<_> = signals::asking().into_iter().chain(unusual).collect();
        let all = signals::Signals::catch(&kinds).context("catch signals")?;
        Ok(Self { all, kept: None })
    }

    /// Waits for the next signal; returns its number.
    pub async fn next(&mut self) -> i32 {
        match self.take_kept() {
            Some(kept) => kept,
            None => self.all.next().await,
        }
    }

    /// Takes the kept signal, for a caller that handles it in another way.
    pub fn take_kept(&mut self) -> Option<i32> {
        self.kept.take()
    }

    /// Waits for an answer; returns the signal that came before it as the error.
    pub async fn until<T>(&mut self, answer: impl Future<Output = T>) -> Result<T, i32> {
        tokio::select! {
            answer = answer => Ok(answer),
            number = self.next() => Err(number),
        }
    }

    /// As [`Signals::until`], for an operation that should not be abandoned: after a first signal, `note` is printed
    /// and the signal is kept for the result, unless a second one comes or the answer takes longer than [`PATIENCE`].
    pub async fn begun<T>(&mut self, note: Option<&str>, answer: impl Future<Output = T>) -> Result<T, i32> {
        let mut answer = std::pin::pin!(answer);
        match self.until(&mut answer).await {
            Err(number) => self.rest(number, note, answer).await,
            answer => answer,
        }
    }

    /// The second half of [`Signals::begun`], after the signal with this number.
    pub async fn rest<T>(
        &mut self,
        number: i32,
        note: Option<&str>,
        answer: impl Future<Output = T>,
    ) -> Result<T, i32> {
        note.into_iter().for_each(print::note);
        tokio::select! {
            answer = answer => {
                self.kept = Some(number);
                Ok(answer)
            }
            second = self.all.next() => Err(second),
            () = tokio::time::sleep(PATIENCE) => Err(number),
        }
    }
}

/// How the streams of a process are connected.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wanted {
    /// Whether standard input is passed to the process.
    pub input: bool,
    /// Whether the process has a terminal.
    pub tty: bool,
    /// Whether Ctrl-P Ctrl-Q detaches.
    pub detachable: bool,
    /// Whether signals end this program only, and are not passed to the process.
    pub ours: bool,
}

impl Wanted {
    /// Refuses a terminal without a user at it.
    ///
    /// # Errors
    /// `-i -t` without a terminal.
    pub fn check(self) -> Result<()> {
        if self.tty && self.input && !terminal::is_input() {
            return Err(exit::mistake(anyhow::anyhow!(
                "-t needs a terminal, and standard input is none: leave -t out in scripts and pipes"
            )));
        }
        Ok(())
    }

    /// Waits until this job is in the terminal's foreground. Must be called before anything is started: a background
    /// job that reads from the terminal is stopped again by the kernel, and would not handle the signal for which it
    /// was continued.
    ///
    /// # Errors
    /// A signal that asks this process to end.
    pub async fn foreground(self, signals: &mut Signals) -> Result<()> {
        if self.tty
            && self.input
            && let Some(number) = terminal::foreground(signals).await
        {
            return Err(Interrupted(number).into());
        }
        Ok(())
    }

    /// Adds the terminal's size and TERM to a process.
    pub fn prepare(self, spec: &mut ProcessSpec) {
        if !self.tty {
            return;
        }
        spec.tty = Some(Tty { window_size: terminal::size() });
        if !spec.env.iter().any(|variable| variable.starts_with("TERM="))
            && let Ok(term) = std::env::var("TERM")
        {
            spec.env.push(format!("TERM={term}"));
        }
    }
}

/// Returns the streams for a process that is to be started, and a receiver that tells when the detach keys are typed.
pub fn streams(wanted: Wanted) -> (Io, oneshot::Receiver<()>) {
    let (detached, left) = oneshot::channel();
    let stdin: Option<Box<dyn AsyncRead + Send + Unpin>> = if wanted.input {
        let keys = (wanted.tty && wanted.detachable).then(Keys::default);
        Some(Box::new(Input {
            stdin: tokio::io::stdin(),
            // Determined now, because a terminal that has hung up is none any more.
            terminal: terminal::is_input(),
            keys,
            detached: Some(detached),
        }))
    } else if wanted.tty {
        // The end of the input would be sent to the terminal as an EOF character.
        None
    } else {
        Some(Box::new(tokio::io::empty()))
    };
    (Io { stdin, stdout: true, stderr: !wanted.tty, wait: true }, left)
}

/// Standard input, with the detach keys filtered out.
struct Input {
    stdin: tokio::io::Stdin,
    terminal: bool,
    keys: Option<Keys>,
    detached: Option<oneshot::Sender<()>>,
}

impl AsyncRead for Input {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        to: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let Self { stdin, terminal, keys, detached } = &mut *self;
        let Some(keys) = keys else { return typed(*terminal, Pin::new(stdin).poll_read(cx, to)) };
        loop {
            if detached.is_none() {
                // Detached: no more input comes, and the input does not end either.
                return Poll::Pending;
            }
            let mut keys_typed = [0; 4096];
            // One byte less, because a held-back byte may be added.
            let room = keys_typed.len().min(to.remaining().saturating_sub(1));
            let mut buffer = ReadBuf::new(&mut keys_typed[..room]);
            ready!(typed(*terminal, Pin::new(&mut *stdin).poll_read(cx, &mut buffer)))?;
            let mut out = Vec::new();
            if buffer.filled().is_empty() {
                to.put_slice(keys.rest().as_slice());
                return Poll::Ready(Ok(()));
            }
            if keys.take(buffer.filled(), &mut out)
                && let Some(detached) = detached.take()
            {
                let _ = detached.send(());
            }
            if !out.is_empty() {
                to.put_slice(&out);
                return Poll::Ready(Ok(()));
            }
        }
    }
}

/// Turns EIO of a terminal into an end of file: it has hung up, or belongs to another job for good (tty(4)). For a
/// file or a pipe EIO stays an error.
fn typed(terminal: bool, read: Poll<std::io::Result<()>>) -> Poll<std::io::Result<()>> {
    const EIO: i32 = rustix::io::Errno::IO.raw_os_error();
    match read {
        Poll::Ready(Err(error)) if terminal && error.raw_os_error() == Some(EIO) => Poll::Ready(Ok(())),
        read => read,
    }
}

/// How a session has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The process has ended with this status.
    Exit(i32),
    /// The detach keys were typed; the process goes on.
    Detached,
    /// This signal has ended the session; the process may go on.
    Left(i32),
    /// Some of its output was lost; the cause was printed.
    Lost,
}

impl End {
    /// Returns the exit code of this program.
    pub fn code(self) -> ExitCode {
        let number = match self {
            Self::Exit(status) => status,
            Self::Detached => 0,
            Self::Left(signal) => 128 + signal,
            Self::Lost => OWN.into(),
        };
        ExitCode::from(u8::try_from(number & 0xff).unwrap_or(u8::MAX))
    }
}

/// Tracks how the process was asked to end.
#[derive(Debug, Default)]
struct Asked {
    times: u8,
    /// The signal that asked first; none if it was a reader that closed the pipe.
    by: Option<i32>,
    until: Option<Instant>,
}

impl Asked {
    /// Sends TERM, then KILL; returns true if there is nothing more to send. If the program has `ended`, no signal is
    /// sent, and only its last output is waited for.
    async fn again(&mut self, process: &Process, patient: bool, ended: bool) -> bool {
        if self.times > 1 || (ended && self.times > 0) {
            return true;
        }
        if ended {
            self.times = 1;
            self.hurry();
            return false;
        }
        // An error here is a connection error, which the wait for the process reports. The timeout keeps a server
        // that hangs from delaying the next signal.
        drop(tokio::time::timeout(LAST, process.signal(self.times == 1)).await);
        self.times += 1;
        let wait = match self.times {
            // A user at a terminal can press Ctrl-C again; otherwise the second signal is sent after [`PATIENCE`].
            1 => patient.then_some(PATIENCE),
            // The process is dead, but its output may wait forever for a reader that is blocked.
            _ => Some(LAST),
        };
        self.until = wait.map(|wait| Instant::now() + wait);
        false
    }

    /// Called when the program has ended: if it was asked to, processes that hold its output open get only [`LAST`].
    fn hurry(&mut self) {
        if self.times > 0 {
            let last = Instant::now() + LAST;
            self.until = Some(self.until.map_or(last, |until| until.min(last)));
        }
    }

    async fn impatient(&self) {
        match self.until {
            Some(until) => tokio::time::sleep_until(until).await,
            None => std::future::pending().await,
        }
    }
}

/// Passes streams, signals and window sizes between this program and the process, until the session ends.
///
/// # Errors
/// The connection broke.
pub async fn follow(
    mut process: Process,
    wanted: Wanted,
    keep: bool,
    left: oneshot::Receiver<()>,
    signals: &mut Signals,
) -> wardian_garden::Result<End> {
    // Without a terminal on standard input, raw mode is not needed.
    let raw = if wanted.tty && wanted.input { Raw::enter().ok() } else { None };
    let mut resized = heard(SignalKind::window_change())?;
    let (broken, gone, stuck) = (Notify::new(), Cell::new(None), [Cell::new(false), Cell::new(false)]);
    let (stdout, stderr) = (process.take_stdout(), process.take_stderr());
    let is_raw = raw.is_some();
    let resizes = async {
        while is_raw && resized.recv().await.is_some() {
            resize(&process).await;
        }
        std::future::pending::<()>().await;
    };
    let mut resizes = std::pin::pin!(resizes);
    let outputs = async {
        let told = |error: std::io::Error| {
            gone.set(Some(error.kind()));
            if error.kind() != Kind::BrokenPipe {
                print::note(&format!("output is lost: {error}"));
            }
            broken.notify_one();
        };
        let to = (
            Watched { to: tokio::io::stdout(), stuck: &stuck[0] },
            Watched { to: tokio::io::stderr(), stuck: &stuck[1] },
        );
        tokio::join!(pump(stdout, to.0, told), pump(stderr, to.1, told))
    };
    let mut outputs = std::pin::pin!(outputs);
    let left = async {
        if left.await.is_err() {
            // The end of the input is no request to detach.
            std::future::pending::<()>().await;
        }
    };
    let mut left = std::pin::pin!(left);
    let (mut asked, mut status, mut over, mut ended) = (Asked::default(), None, false, None);
    // Returns the exit status, if all output was delivered and no reader is blocked.
    let outlived = |ended: Option<i32>| {
        let stuck = stuck.iter().any(Cell::get);
        ended.filter(|_| !stuck && matches!(gone.get(), None | Some(Kind::BrokenPipe))).map(End::Exit)
    };
    while status.is_none() || !over {
        tokio::select! {
            ended = process.wait(), if status.is_none() => match ended {
                Err(error @ (Error::BinaryInput | Error::Input(_))) => {
                    // With truncated input the process could do anything, so it is killed.
                    drop(tokio::time::timeout(LAST, process.signal(true)).await);
                    return Err(error);
                }
                ended => status = Some(ended?),
            },
            status = process.ended(), if ended.is_none() => {
                ended = Some(status);
                asked.hurry();
            }
            _ = &mut outputs, if !over => over = true,
            // The reader of the output has closed the pipe, as in `| head`.
            () = broken.notified() => {
                if wanted.ours || asked.again(&process, true, ended.is_some()).await {
                    return Ok(unread(gone.get()));
                }
            }
            () = &mut left => return Ok(End::Detached),
            // A resize may be queued behind input that the process does not read.
            () = &mut resizes => {}
            () = asked.impatient() => {
                if asked.again(&process, false, ended.is_some()).await {
                    let left = || asked.by.map_or_else(|| unread(gone.get()), End::Left);
                    return Ok(outlived(ended).unwrap_or_else(left));
                }
            }
            number = signals.next() => {
                let deserted = number == HANGUP && wanted.tty && keep;
                if wanted.ours || deserted {
                    return Ok(End::Left(number));
                }
                if (UNUSUAL.contains(&number) || number == QUIT)
                    && ended.is_none()
                    && process.pass_on(&signal::name(number)).await
                {
                    continue;
                }
                if asked.again(&process, number != INTERRUPT, ended.is_some()).await {
                    return Ok(outlived(ended).unwrap_or(End::Left(number)));
                }
                asked.by.get_or_insert(number);
            }
        }
    }
    drop(raw);
    match gone.get() {
        // The reader has closed the pipe, and wants no more output.
        Some(Kind::BrokenPipe) => {}
        Some(_) => return Ok(End::Lost),
        None if process.lost() > 0 => {
            let lost = print::bytes(process.lost());
            print::note(&format!("{lost} of output were lost: the server did not wait until we took them"));
            return Ok(End::Lost);
        }
        None => {}
    }
    Ok(End::Exit(status.unwrap_or_default()))
}

/// Returns the end of a session whose output could not be passed on.
fn unread(gone: Option<Kind>) -> End {
    if gone == Some(Kind::BrokenPipe) { End::Left(PIPE) } else { End::Lost }
}

async fn resize(process: &Process) {
    if let Some(size) = terminal::size() {
        // An error here is a connection error, which the wait for the process reports.
        drop(process.resize(size.columns, size.rows).await);
    }
}

/// A writer that notes whether it is blocked.
struct Watched<'a, W> {
    to: W,
    stuck: &'a Cell<bool>,
}

impl<W> Watched<'_, W> {
    fn note<T>(&self, poll: Poll<T>) -> Poll<T> {
        self.stuck.set(poll.is_pending());
        poll
    }
}

impl<W: AsyncWrite + Unpin> AsyncWrite for Watched<'_, W> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        piece: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let poll = Pin::new(&mut self.to).poll_write(cx, piece);
        self.note(poll)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        let poll = Pin::new(&mut self.to).poll_flush(cx);
        self.note(poll)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.to).poll_shutdown(cx)
    }
}

/// Copies a stream until its end or a write error. Dropping the reader then tells the server.
async fn pump(from: Option<OutputReader>, mut to: impl AsyncWrite + Unpin, failed: impl Fn(std::io::Error)) {
    let Some(mut from) = from else { return };
    if let Err(error) = tokio::io::copy(&mut from, &mut to).await {
        failed(error);
    }
}

/// Prints a failure of run, exec or attach; returns its exit code, which is specific to these commands.
pub fn failed(error: &anyhow::Error) -> ExitCode {
    print::failure(error);
    if let Some(code) = exit::of(error) {
        return ExitCode::from(code);
    }
    let garden = error.chain().find_map(|cause| cause.downcast_ref::<Error>());
    let code = match garden {
        Some(error) if error.kind() == Some(ErrorKind::ExecutableNotFound) => NOT_FOUND,
        // Garden has no error kind for this.
        Some(Error::Garden(body)) if body.message.contains(": exec: ") => NOT_EXECUTABLE,
        _ => OWN,
    };
    ExitCode::from(code)
}

/// Prints how to attach again after detaching.
pub fn detached(handle: &str, process: &str) {
    let process = if process == MAIN { String::new() } else { format!(" {process}") };
    print::say("");
    print::note(&format!("detached; `wardian attach -it {handle}{process}` comes back"));
}
