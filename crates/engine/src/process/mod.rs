//! A process or pea as its callers see it: output, input, exit status.

pub mod about;
pub mod files;
pub mod kept;
mod ledger;
pub mod leftover;
pub mod output;
mod pump;

use crate::keeper::Keeper;
use crate::spec::Window;
use crate::{Error, Result};
use about::{About, Ending};
use kept::Kept;
use leftover::Leftover;
use output::{Output, Outputs, Waits};
use parking_lot::Mutex;
use pump::pump;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::net::unix::pipe;
use tokio::sync::watch;
use wardian_runtime::wire::{self, Stdio};

/// Output that stays open for longer than this after the end of its program is said to outlive it.
const OUTLIVED: Duration = Duration::from_millis(100);

/// A handle on a process; clones name the same process.
#[derive(Debug, Clone)]
pub struct Process {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    about: Arc<About>,
    /// The output that is kept of it.
    kept: Option<Arc<Kept>>,
    keeper: Keeper,
    /// The program runs, or has run.
    started: AtomicBool,
    terminal: AtomicBool,
    stdin: Mutex<Option<Arc<pipe::Sender>>>,
    /// Held while a payload is written, so that payloads do not mix. Closing stdin does not take this lock:
    /// the process decides how long a writer waits.
    turn: tokio::sync::Mutex<()>,
    /// Callers that hold stdin open.
    inputs: Mutex<usize>,
    outputs: Mutex<Outputs>,
    /// Set once the end of the process was reported.
    ended: watch::Sender<Option<Ending>>,
    /// The root file system is released: that of a pea; always true for other processes.
    cleaned: watch::Sender<bool>,
    /// Streams whose pump still runs.
    pumping: watch::Sender<usize>,
    /// The pumps end as soon as the pipes are empty.
    cut: watch::Sender<bool>,
}

/// What is kept of an ended process.
#[derive(Debug, Clone)]
pub(crate) struct Over {
    pub about: Arc<About>,
    pub kept: Option<Arc<Kept>>,
    pub ending: Ending,
    terminal: bool,
}

impl Process {
    pub(crate) fn new(about: Arc<About>, kept: Option<Arc<Kept>>, keeper: Keeper) -> Self {
        Self {
            shared: Arc::new(Shared {
                about,
                kept,
                keeper,
                started: AtomicBool::new(false),
                terminal: AtomicBool::new(false),
                stdin: Mutex::default(),
                turn: tokio::sync::Mutex::default(),
                inputs: Mutex::default(),
                outputs: Mutex::default(),
                ended: watch::Sender::new(None),
                cleaned: watch::Sender::new(true),
                pumping: watch::Sender::new(0),
                cut: watch::Sender::new(false),
            }),
        }
    }

    /// Makes an ended process without streams.
    pub(crate) fn over(keeper: Keeper, Over { about, kept, ending, terminal }: Over) -> Self {
        let process = Self::new(about, kept, keeper);
        process.shared.terminal.store(terminal, Ordering::Relaxed);
        process.shared.started.store(true, Ordering::Release);
        process.shared.ended.send_replace(Some(ending));
        process
    }

    /// Returns what is to be kept of the process if nobody could ask for anything else any more.
    pub(crate) fn is_over(&self) -> Option<Over> {
        let ending = self.ending()?;
        let is_over = self.is_started()
            && *self.shared.cleaned.borrow()
            && *self.shared.pumping.borrow() == 0
            && self.shared.outputs.lock().is_spent();
        is_over.then(|| Over {
            about: self.shared.about.clone(),
            kept: self.shared.kept.clone(),
            ending,
            terminal: self.shared.terminal.load(Ordering::Relaxed),
        })
    }

    /// Takes over the process's stdio.
    pub(crate) async fn connect(&self, stdio: Stdio<OwnedFd>) -> Result<()> {
        let failed = Error::system("standard input");
        let tty = matches!(stdio, Stdio::Terminal(_));
        let (input, pipes) = match stdio {
            Stdio::Pipes { stdin, output } => {
                (stdin, output.into_iter().flat_map(|(stdout, stderr)| [stdout, stderr]).collect())
            }
            Stdio::Terminal(master) => {
                let input = master.as_ref().map(OwnedFd::try_clone).transpose().map_err(failed)?;
                (input, Vec::from_iter(master))
            }
        };
        if let Some(input) = input {
            rustix::io::ioctl_fionbio(&input, true).map_err(|e| failed(e.into()))?;
            // Unchecked: it may be a terminal.
            let input = pipe::Sender::from_owned_fd_unchecked(input).map_err(failed)?;
            *self.shared.stdin.lock() = Some(Arc::new(input));
        }
        let mut outputs = self.shared.outputs.lock();
        outputs.pipes = pipes;
        // The end of the process may have been reported before its start.
        self.count(&mut outputs);
        drop(outputs);
        self.shared.terminal.store(tty, Ordering::Relaxed);
        self.shared.started.store(true, Ordering::Release);
        Ok(())
    }

    /// Whether the process has started. Before that nothing can attach to it.
    pub(crate) fn is_started(&self) -> bool {
        self.shared.started.load(Ordering::Acquire)
    }

    /// Starts the pumps and keeps the beginning of the output: perhaps nobody will ever subscribe, and the
    /// process must not block on a full pipe meanwhile.
    pub(crate) fn read_ahead(&self) {
        let mut outputs = self.shared.outputs.lock();
        outputs.keep_backlog();
        self.start_pumps(&mut outputs);
        if *self.shared.pumping.borrow() == 0 {
            self.finish_kept();
        }
    }

    /// Makes [`Process::wait`] wait for [`Process::cleaned`].
    pub(crate) fn needs_cleaning(&self) {
        self.shared.cleaned.send_replace(false);
    }

    /// Reports that the process has been cleaned up after.
    pub(crate) fn cleaned(&self) {
        self.shared.cleaned.send_replace(true);
    }

    /// Reports the end of the process. The first report counts.
    pub(crate) fn ended(&self, ending: Ending) {
        self.shared.ended.send_if_modified(|ended| {
            let first = ended.is_none();
            ended.get_or_insert(ending);
            first
        });
        self.count(&mut self.shared.outputs.lock());
    }

    /// Counts the output as left over if the program has exited and its stdio is still open: see
    /// [`leftover`].
    fn count(&self, outputs: &mut Outputs) {
        let is_open = !outputs.pipes.is_empty() || *self.shared.pumping.borrow() > 0;
        if is_open && self.status().is_some() {
            outputs.leftover.get_or_insert_with(Leftover::begin);
        }
    }

    /// Whether there may still be output, or the process is about to start.
    pub(crate) fn is_open(&self) -> bool {
        let outputs = self.shared.outputs.lock();
        !self.is_started() || !outputs.pipes.is_empty() || *self.shared.pumping.borrow() > 0
    }

    /// Whether a client receives the output.
    pub(crate) fn has_readers(&self) -> bool {
        self.shared.outputs.lock().has_readers()
    }

    /// Ends the output with what is in the pipes now: the process's descendants have been killed, or are not
    /// waited for.
    pub(crate) fn cut(&self) {
        let mut outputs = self.shared.outputs.lock();
        outputs.cut();
        if self.status().is_some() && !outputs.pipes.is_empty() {
            outputs.keep_backlog();
            self.start_pumps(&mut outputs);
        }
        drop(outputs);
        self.shared.cut.send_replace(true);
    }

    /// Returns the exit status, if the process has ended.
    pub(crate) fn status(&self) -> Option<i32> {
        self.ending().map(|ending| ending.status)
    }

    /// Returns how the process has ended, if it has.
    pub fn ending(&self) -> Option<Ending> {
        *self.shared.ended.borrow()
    }

    /// Returns the process's id, which is unique in its container.
    pub fn id(&self) -> &str {
        &self.shared.about.id
    }

    /// Returns what the process was started as.
    pub fn about(&self) -> &Arc<About> {
        &self.shared.about
    }

    /// Returns the output that is kept of the process; `None`: none is.
    pub fn kept(&self) -> Option<&Arc<Kept>> {
        self.shared.kept.as_ref()
    }

    /// Waits for the end of the process; its descendants may still print.
    pub async fn exited(&self) -> Result<Ending> {
        let gone = || Error::UnknownProcess(self.id().to_owned());
        let ended =
            self.shared.ended.subscribe().wait_for(Option::is_some).await.ok().and_then(|ended| *ended);
        ended.ok_or_else(gone)
    }

    /// Subscribes to the output from now on; the first subscriber also gets what was printed before. With
    /// `waits` the process is held up while the subscriber does not take its output.
    pub fn subscribe(&self, waits: Waits) -> Output {
        let mut outputs = self.shared.outputs.lock();
        let output = outputs.subscribe(waits);
        self.start_pumps(&mut outputs);
        if self.status().is_some() && *self.shared.pumping.borrow() == 0 {
            outputs.end_all();
        }
        output
    }

    fn start_pumps(&self, outputs: &mut Outputs) {
        let pipes = std::mem::take(&mut outputs.pipes);
        if pipes.is_empty() {
            return;
        }
        self.shared.pumping.send_replace(pipes.len());
        if pipes.len() == 1 {
            // A terminal has one stream for stdout and stderr.
            outputs.end(1);
        }
        for (stream, pipe) in pipes.into_iter().enumerate() {
            let process = self.clone();
            tokio::spawn(async move { process.pump(stream, pipe).await });
        }
    }

    /// Ends what is kept of the output: no more can come.
    pub(crate) fn finish_kept(&self) {
        self.shared.kept.iter().for_each(|kept| kept.finish());
    }

    async fn pump(self, stream: usize, pipe: OwnedFd) {
        let shared = &self.shared;
        let kept = shared.kept.as_deref();
        if let Err(error) = pump(pipe, stream, &shared.outputs, kept, shared.cut.subscribe()).await {
            tracing::error!(process = self.id(), %error, "process.output-lost");
        }
        let last = {
            let mut outputs = shared.outputs.lock();
            outputs.end(stream);
            shared.pumping.send_modify(|n| *n -= 1);
            let last = *shared.pumping.borrow() == 0;
            if last {
                outputs.end_all();
                outputs.leftover = None;
                self.finish_kept();
            }
            last
        };
        if last && shared.ended.subscribe().wait_for(Option::is_some).await.is_ok() {
            drop(shared.stdin.lock().take());
            // Fails if the keeper is gone by now, and with it all that it kept.
            drop(shared.keeper.release(self.id()).await);
        }
    }

    /// Holds stdin open for as long as the process lives, whoever attaches and leaves.
    pub(crate) fn hold_input(&self) {
        *self.shared.inputs.lock() += 1;
    }

    /// Returns a writer handle for stdin. That of the `starter` holds stdin open from now on, any other from
    /// its first write on: its client may only want to listen.
    pub fn input(&self, starter: bool) -> Input {
        let mut input = Input { process: self.clone(), open: true, holds: false };
        if starter {
            input.hold();
        }
        input
    }

    /// Changes the size of the process's terminal.
    ///
    /// # Errors
    /// The process has no terminal.
    pub async fn resize(&self, window: Window) -> Result<()> {
        // Keepers of the first version, which have no terminals, close the connection at an unknown request;
        // the living container would then be marked broken.
        if !self.shared.terminal.load(Ordering::Relaxed) {
            return Err(Error::Invalid("it has no terminal".into()));
        }
        let resized = self.shared.keeper.resize(self.id(), wire::Window::from(window)).await;
        resized.map_err(Error::keeper("resize"))
    }

    /// Waits for the end of the process and of both its streams, as guardian does: the process's descendants
    /// may still print. Returns the exit status, 128 + signal when killed.
    pub async fn wait(&self) -> Result<i32> {
        let gone = |_| Error::UnknownProcess(self.id().to_owned());
        let ending = self.exited().await?;
        self.shared.pumping.subscribe().wait_for(|n| *n == 0).await.map_err(gone)?;
        self.shared.cleaned.subscribe().wait_for(|done| *done).await.map_err(gone)?;
        Ok(ending.status)
    }

    /// Waits for the end of the program. Returns its exit status if one of its descendants still holds the
    /// output open.
    pub async fn outlived(&self) -> Option<i32> {
        let status = self.exited().await.ok()?.status;
        // The output of most programs ends with them, and is read to its end within a moment.
        let mut pumping = self.shared.pumping.subscribe();
        let over = tokio::time::timeout(OUTLIVED, pumping.wait_for(|n| *n == 0)).await;
        over.is_err().then_some(status)
    }

    /// Sends a signal, given by its number.
    pub async fn signal(&self, signal: i32) -> Result<()> {
        let signalled = self.shared.keeper.signal(self.id(), signal).await;
        signalled.map_err(Error::keeper("signal"))
    }
}

/// One caller's writer handle for a process's stdin. The process sees end of file when every caller that held
/// stdin open has left. The caller that started the process holds it from the start, others from their first
/// write or close on. Dropping the handle, as at the end of the server, does not close stdin.
#[derive(Debug)]
pub struct Input {
    process: Process,
    open: bool,
    holds: bool,
}

impl Input {
    /// Writes all of `data`; waits while the pipe is full.
    ///
    /// # Errors
    /// Stdin is closed, by the server or by the process.
    pub async fn write(&mut self, data: &[u8]) -> Result<()> {
        self.hold();
        let shared = &self.process.shared;
        let _turn = shared.turn.lock().await;
        let failed = Error::system("standard input");
        let mut rest = data;
        loop {
            let stdin = shared.stdin.lock().clone().filter(|_| self.open);
            let stdin = stdin.ok_or_else(|| Error::Invalid("standard input is closed".into()))?;
            match stdin.try_write(rest) {
                Ok(n) => rest = &rest[n..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    stdin.writable().await.map_err(failed)?;
                }
                Err(error) => return Err(failed(error)),
            }
            if rest.is_empty() {
                return Ok(());
            }
        }
    }

    /// Ends this caller's input.
    pub async fn close(&mut self) {
        self.hold();
        self.leave().await;
    }

    /// Ends the input of a caller that has disconnected. Closes stdin if no other caller holds it, but not
    /// that of a terminal: there only a typed character ends the input (`VEOF`, termios(3)), and others may
    /// type later.
    pub async fn leave(&mut self) {
        self.open = false;
        let shared = self.process.shared.clone();
        if self.let_go() && !shared.terminal.load(Ordering::Relaxed) {
            drop(shared.stdin.lock().take());
            // An ended process has no input to close.
            drop(shared.keeper.close_stdin(&shared.about.id).await);
        }
    }

    fn hold(&mut self) {
        if self.open && !self.holds {
            self.holds = true;
            *self.process.shared.inputs.lock() += 1;
        }
    }

    /// Stops holding stdin open. Returns whether this was the last holder.
    fn let_go(&mut self) -> bool {
        let held = std::mem::replace(&mut self.holds, false);
        let mut inputs = self.process.shared.inputs.lock();
        *inputs -= usize::from(held);
        held && *inputs == 0
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        self.let_go();
    }
}
