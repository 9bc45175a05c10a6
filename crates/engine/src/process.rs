//! A process or pea as its callers see it: output, input, exit status.

use crate::{Error, Result};
use bytes::Bytes;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, watch};
use wardian_runtime::client::Keeper;
use wardian_runtime::wire::Op;

/// Chunks of at most this size …
const CHUNK: usize = 32 * 1024;
/// … and so many of them wait for a reader (as the real server does).
const QUEUE: usize = 4000;

/// A handle on a process; clones name the same process.
#[derive(Debug, Clone)]
pub struct Process {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    id: String,
    keeper: Keeper,
    stdin: tokio::sync::Mutex<Option<pipe::Sender>>,
    outputs: Mutex<Outputs>,
    /// Set when the process has ended, by whoever hears of it.
    ended: watch::Sender<Option<i32>>,
    /// Its root file system is let go (a pea's; at once for others).
    cleaned: watch::Sender<bool>,
    /// Pumps at work.
    pumping: watch::Sender<usize>,
}

#[derive(Debug, Default)]
struct Outputs {
    /// Not pumped yet: the pipe holds what is printed until the first subscriber comes.
    pipes: Option<[OwnedFd; 2]>,
    readers: [Vec<mpsc::Sender<Bytes>>; 2],
    lost: u64,
}

/// Output from the moment of subscription on. A channel ends when the stream has ended.
/// Bounded: a reader that does not keep up loses chunks (counted), the process is never held up.
#[derive(Debug)]
pub struct Output {
    /// Chunks of standard output.
    pub stdout: mpsc::Receiver<Bytes>,
    /// Chunks of standard error.
    pub stderr: mpsc::Receiver<Bytes>,
}

impl Process {
    pub(crate) fn new(id: String, keeper: Keeper) -> Self {
        Self {
            shared: Arc::new(Shared {
                id,
                keeper,
                stdin: tokio::sync::Mutex::default(),
                outputs: Mutex::default(),
                ended: watch::Sender::new(None),
                cleaned: watch::Sender::new(true),
                pumping: watch::Sender::new(0),
            }),
        }
    }

    /// Take over its descriptors, as the keeper hands them out: stdin if open, stdout, stderr.
    pub(crate) async fn connect(&self, stdin: bool, fds: Vec<OwnedFd>) -> Result<()> {
        let mut fds = fds.into_iter();
        if stdin {
            let sender = fds.next().map(pipe::Sender::from_owned_fd).transpose();
            *self.shared.stdin.lock().await = sender.map_err(|e| Error::failed("stdin", e))?;
        }
        if let (Some(out), Some(err)) = (fds.next(), fds.next()) {
            self.outputs().pipes = Some([out, err]);
        }
        Ok(())
    }

    fn outputs(&self) -> MutexGuard<'_, Outputs> {
        self.shared.outputs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It has to be cleaned up after before its end is told.
    pub(crate) fn needs_cleaning(&self) {
        self.shared.cleaned.send_replace(false);
    }

    /// Its clean-up is over.
    pub(crate) fn cleaned(&self) {
        self.shared.cleaned.send_replace(true);
    }

    /// It ended; the first word counts.
    pub(crate) fn ended(&self, status: i32) {
        self.shared.ended.send_if_modified(|ended| {
            let first = ended.is_none();
            ended.get_or_insert(status);
            first
        });
    }

    /// Has it ended?
    pub(crate) fn status(&self) -> Option<i32> {
        *self.shared.ended.borrow()
    }

    /// Its id, unique in its container.
    pub fn id(&self) -> &str {
        &self.shared.id
    }

    /// Receive what it prints from now on; the first subscriber also gets what was printed before.
    pub fn subscribe(&self) -> Output {
        let (to_stdout, stdout) = mpsc::channel(QUEUE);
        let (to_stderr, stderr) = mpsc::channel(QUEUE);
        let mut outputs = self.outputs();
        let first = outputs.pipes.take();
        if first.is_some() || *self.shared.pumping.borrow() > 0 {
            outputs.readers[0].push(to_stdout);
            outputs.readers[1].push(to_stderr);
        }
        if let Some(pipes) = first {
            self.shared.pumping.send_replace(2);
            for (stream, pipe) in pipes.into_iter().enumerate() {
                let process = self.clone();
                tokio::spawn(async move { process.pump(stream, pipe).await });
            }
        }
        Output { stdout, stderr }
    }

    /// From the pipe to all readers, until its end, or until the process has ended and the pipe is empty (a
    /// grandchild may hold it open for ever).
    async fn pump(self, stream: usize, pipe: OwnedFd) {
        if let Ok(pipe) = pipe::Receiver::from_owned_fd(pipe) {
            let mut ended = self.shared.ended.subscribe();
            let mut buffer = vec![0; CHUNK];
            let mut over = false;
            loop {
                // After the end nothing more may come, so the runtime must not be asked whether something did.
                let read = if over {
                    rustix::io::read(&pipe, &mut buffer).map_err(std::io::Error::from)
                } else {
                    pipe.try_read(&mut buffer)
                };
                match read {
                    Ok(0) => break,
                    Ok(n) => self.hand_out(stream, &Bytes::copy_from_slice(&buffer[..n])),
                    Err(e) if e.kind() == std::io::ErrorKind::WouldBlock && !over => {
                        tokio::select! {
                            ready = pipe.readable() => if ready.is_err() { break },
                            end = ended.wait_for(Option::is_some) => { drop(end); over = true }
                        }
                    }
                    Err(_) => break,
                }
            }
        }
        let last = {
            let mut outputs = self.outputs();
            outputs.readers[stream].clear();
            self.shared.pumping.send_modify(|n| *n -= 1);
            *self.shared.pumping.borrow() == 0
        };
        if last && self.status().is_some() {
            let id = self.shared.id.clone();
            // The keeper may be gone by now, with all it kept.
            drop(self.shared.keeper.ask(Op::Release { id }, &[]).await);
        }
    }

    fn hand_out(&self, stream: usize, bytes: &Bytes) {
        let mut outputs = self.outputs();
        let mut lost = 0;
        outputs.readers[stream].retain(|reader| match reader.try_send(bytes.clone()) {
            Ok(()) => true,
            Err(mpsc::error::TrySendError::Full(_)) => {
                lost += 1;
                true
            }
            Err(mpsc::error::TrySendError::Closed(_)) => false,
        });
        if lost > 0 {
            if outputs.lost == 0 {
                tracing::warn!(process = self.shared.id, "a slow reader loses output");
            }
            outputs.lost += lost;
        }
    }

    /// Write all of `data` to its standard input; waits while the pipe is full.
    pub async fn write_stdin(&self, data: &[u8]) -> Result<()> {
        match self.shared.stdin.lock().await.as_mut() {
            Some(stdin) => stdin.write_all(data).await.map_err(|e| Error::failed("stdin", e)),
            None => Err(Error::Invalid("stdin is closed".into())),
        }
    }

    /// End of file on its standard input.
    pub async fn close_stdin(&self) {
        drop(self.shared.stdin.lock().await.take());
        let id = self.shared.id.clone();
        // An ended process has no stdin to close.
        drop(self.shared.keeper.ask(Op::CloseStdin { id }, &[]).await);
    }

    /// Its exit status (128 + signal when killed), after all its output has been queued.
    pub async fn wait(&self) -> Result<i32> {
        let gone = |_| Error::UnknownProcess(self.shared.id.clone());
        let status =
            self.shared.ended.subscribe().wait_for(Option::is_some).await.map(|s| *s).map_err(gone)?;
        self.shared.pumping.subscribe().wait_for(|n| *n == 0).await.map_err(gone)?;
        self.shared.cleaned.subscribe().wait_for(|done| *done).await.map_err(gone)?;
        status.ok_or_else(|| Error::UnknownProcess(self.shared.id.clone()))
    }

    /// Send a signal (number).
    pub async fn signal(&self, signal: i32) -> Result<()> {
        let id = self.shared.id.clone();
        let answer = self.shared.keeper.ask(Op::Signal { id, signal }, &[]).await;
        answer.map(drop).map_err(|e| Error::failed("signal", e))
    }
}
