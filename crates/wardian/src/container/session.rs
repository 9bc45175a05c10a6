//! Between our standard streams and a process in a container, until one of the two ends it.

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
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;
use wardian_garden::wire::{ProcessSpec, Tty};
use wardian_garden::{Error, ErrorKind, Io, OutputReader, Process};
use wardian_lab::{Interrupted, signals};

/// How `run` and `exec` end, for their help.
pub const EXIT_CODES: &str = "Exit codes: the process's own (128 + signal if one ended it), 125: it was not started, or some \
    of its input or output is lost, 126: the program cannot be executed, 127: there is no such program, 2: the command line is wrong.";
/// The program cannot be executed, and it is not there.
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;
/// Who was asked to end by a signal that nobody may repeat gets so long. As long as a stop.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// The output of a process that was killed gets so long to be taken.
const LAST: Duration = Duration::from_secs(3);
const INTERRUPT: i32 = 2;
const HANGUP: i32 = 1;
pub const PIPE: i32 = 13;

/// Signals of kernel and programs that end whoever does not know them, and are taken for TERM: a process would be left behind
/// otherwise, by `run --rm` with its container. Garden's protocol has only TERM and KILL to pass on. Those that tell of a fault
/// (ABRT, SEGV …) are not among them, nor are real-time signals.
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

/// Signals that ask us to end. What we were told to ignore (nohup, a background job) stays ignored.
#[derive(Debug)]
pub struct Signals {
    all: signals::Signals,
    /// One that has come, and is for what comes next.
    kept: Option<i32>,
}

impl Signals {
    /// From now on.
    pub fn catch() -> Result<Self> {
        let unusual = UNUSUAL.into_iter().map(SignalKind::from_raw);
        let kinds: Vec<_> = signals::asking().into_iter().chain(unusual).collect();
        let all = signals::Signals::catch(&kinds).context("catch signals")?;
        Ok(Self { all, kept: None })
    }

    /// The number of the next one.
    pub async fn next(&mut self) -> i32 {
        match self.take_kept() {
            Some(kept) => kept,
            None => self.all.next().await,
        }
    }

    /// One that was kept, for whom heeds it otherwise than as what comes next.
    pub fn take_kept(&mut self) -> Option<i32> {
        self.kept.take()
    }

    /// An answer, or the signal that came before it.
    pub async fn until<T>(&mut self, answer: impl Future<Output = T>) -> Result<T, i32> {
        tokio::select! {
            answer = answer => Ok(answer),
            number = self.next() => Err(number),
        }
    }

    /// The same where something is begun that should not be left: a signal is kept for what has been begun, unless a second
    /// one comes or the answer does not come for as long as a stop may take. `note` says so.
    pub async fn begun<T>(&mut self, note: Option<&str>, answer: impl Future<Output = T>) -> Result<T, i32> {
        let mut answer = std::pin::pin!(answer);
        let number = tokio::select! {
            answer = &mut answer => return Ok(answer),
            number = self.next() => number,
        };
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

/// What somebody wants of a process's streams.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wanted {
    /// Our standard input is the process's.
    pub input: bool,
    /// It has a terminal.
    pub tty: bool,
    /// Ctrl-P Ctrl-Q detaches.
    pub detachable: bool,
    /// Signals are not for it: they end us alone.
    pub ours: bool,
}

impl Wanted {
    /// A terminal that nobody types at is a mistake.
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

    /// Waits for the terminal that is to be typed at. Before anything is begun: whoever reads what is typed while another job
    /// is in the foreground is stopped once more by the kernel, and would not hear the signal for which he was continued.
    ///
    /// # Errors
    /// A signal that asks us to end.
    pub async fn foreground(self, signals: &mut Signals) -> Result<()> {
        if self.tty
            && self.input
            && let Some(number) = terminal::foreground(signals).await
        {
            return Err(Interrupted(number).into());
        }
        Ok(())
    }

    /// What a terminal adds to a process.
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

/// Streams for a process, before it is started.
pub fn streams(wanted: Wanted) -> (Io, oneshot::Receiver<()>) {
    let (detached, left) = oneshot::channel();
    let stdin: Option<Box<dyn AsyncRead + Send + Unpin>> = if wanted.input {
        let keys = (wanted.tty && wanted.detachable).then(Keys::default);
        Some(Box::new(Input {
            stdin: tokio::io::stdin(),
            // One that has gone is none any more.
            terminal: terminal::is_input(),
            keys,
            detached: Some(detached),
        }))
    } else if wanted.tty {
        // The end of its input would be typed at it.
        None
    } else {
        Some(Box::new(tokio::io::empty()))
    };
    (Io { stdin, stdout: true, stderr: !wanted.tty, wait: true }, left)
}

/// Our standard input.
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
                // Nothing more comes, and it has not ended either.
                return Poll::Pending;
            }
            let mut keys_typed = [0; 4096];
            // One more byte may have been held back.
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

/// A terminal that has gone, or that is another job's for good, says EIO (tty(4)): nobody types any more. Of a file or a pipe it
/// is an error as any other.
fn typed(terminal: bool, read: Poll<std::io::Result<()>>) -> Poll<std::io::Result<()>> {
    const EIO: i32 = rustix::io::Errno::IO.raw_os_error();
    match read {
        Poll::Ready(Err(error)) if terminal && error.raw_os_error() == Some(EIO) => Poll::Ready(Ok(())),
        read => read,
    }
}

/// How it went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The process has ended with this status.
    Exit(i32),
    /// The keys were typed; it goes on.
    Detached,
    /// A signal of this number made us leave; the process may go on.
    Left(i32),
    /// Some of its output has not arrived where it should; what and why was said.
    Lost,
}

impl End {
    /// What a shell sees.
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

/// How far the process was asked to end.
#[derive(Debug, Default)]
struct Asked {
    times: u8,
    /// The signal that was the first to ask; none if it was a reader that has gone.
    by: Option<i32>,
    until: Option<Instant>,
}

impl Asked {
    /// TERM, then KILL. `true`: it was asked often enough. Of a program that has `ended` there is nothing to be ended: only the
    /// last of its output is waited for.
    async fn again(&mut self, process: &Process, patient: bool, ended: bool) -> bool {
        if self.times > 1 || (ended && self.times > 0) {
            return true;
        }
        if ended {
            self.times = 1;
            self.hurry();
            return false;
        }
        // An error is one of the connection: whoever waits for the process hears of it.
        // A server that does not take it does not hold up the next one.
        drop(tokio::time::timeout(LAST, process.signal(self.times == 1)).await);
        self.times += 1;
        let wait = match self.times {
            // Whom Ctrl-C has asked for patience presses it again; others cannot.
            1 => patient.then_some(PATIENCE),
            // It is dead. What it has written may be for a reader that stands still, and keeps us for ever.
            _ => Some(LAST),
        };
        self.until = wait.map(|wait| Instant::now() + wait);
        false
    }

    /// It has ended: if it was asked to, what it has left behind gets no more time than its last output.
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

/// Passes everything on, both ways, until the end.
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
    // Where there is no terminal of ours there is nothing to be made raw.
    let raw = if wanted.tty && wanted.input { Raw::enter().ok() } else { None };
    let mut resized = signal(SignalKind::window_change())?;
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
            // The end of the input is no wish to leave.
            std::future::pending::<()>().await;
        }
    };
    let mut left = std::pin::pin!(left);
    let (mut asked, mut status, mut over, mut ended) = (Asked::default(), None, false, None);
    // What it has printed has arrived, if nobody who reads from us stands still.
    let outlived = |ended: Option<i32>| {
        let stuck = stuck.iter().any(Cell::get);
        ended.filter(|_| !stuck && matches!(gone.get(), None | Some(Kind::BrokenPipe))).map(End::Exit)
    };
    while status.is_none() || !over {
        tokio::select! {
            ended = process.wait(), if status.is_none() => match ended {
                Err(error @ (Error::BinaryInput | Error::Input(_))) => {
                    // With half its input it might do anything.
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
            // Nobody reads what it prints any more, as in `| head`.
            () = broken.notified() => {
                if wanted.ours || asked.again(&process, true, ended.is_some()).await {
                    return Ok(unread(gone.get()));
                }
            }
            () = &mut left => return Ok(End::Detached),
            // It waits behind input that the process does not take.
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
                if asked.again(&process, number != INTERRUPT, ended.is_some()).await {
                    return Ok(outlived(ended).unwrap_or(End::Left(number)));
                }
                asked.by.get_or_insert(number);
            }
        }
    }
    drop(raw);
    match gone.get() {
        // What was lost then nobody wanted.
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

/// The end where output could not be passed on.
fn unread(gone: Option<Kind>) -> End {
    if gone == Some(Kind::BrokenPipe) { End::Left(PIPE) } else { End::Lost }
}

async fn resize(process: &Process) {
    if let Some(size) = terminal::size() {
        // An error is one of the connection: whoever waits for the process hears of it.
        drop(process.resize(size.columns, size.rows).await);
    }
}

/// Where output goes, and whether that stands still.
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

/// To the end of the stream, or until it cannot be passed on: the server hears of that when ours is dropped.
async fn pump(from: Option<OutputReader>, mut to: impl AsyncWrite + Unpin, failed: impl Fn(std::io::Error)) {
    let Some(mut from) = from else { return };
    if let Err(error) = tokio::io::copy(&mut from, &mut to).await {
        failed(error);
    }
}

/// A failure of run, exec or attach: it is shown here, for it has an exit code of its own.
pub fn failed(error: &anyhow::Error) -> ExitCode {
    print::failure(error);
    if let Some(code) = exit::of(error) {
        return ExitCode::from(code);
    }
    let garden = error.chain().find_map(|cause| cause.downcast_ref::<Error>());
    let code = match garden {
        Some(error) if error.kind() == Some(ErrorKind::ExecutableNotFound) => NOT_FOUND,
        // Garden has no kind for it.
        Some(Error::Garden(body)) if body.message.contains(": exec: ") => NOT_EXECUTABLE,
        _ => OWN,
    };
    ExitCode::from(code)
}

/// After the keys: how to come back.
pub fn detached(handle: &str, process: &str) {
    let process = if process == MAIN { String::new() } else { format!(" {process}") };
    print::say("");
    print::note(&format!("detached; `wardian attach -it {handle}{process}` comes back"));
}
