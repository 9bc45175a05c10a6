//! The server's end of a keeper's socket: many questions at once, events in between.

use crate::wire::{Failure, Message, Op, Reply, Request};
use rustix::net::RecvFlags;
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::Interest;
use tokio::net::UnixDatagram;
use tokio::sync::{mpsc, oneshot};
use wardian_sys::packet;

/// Why a question has no good answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The keeper is gone.
    #[error("the container's keeper is gone")]
    Gone,
    /// The keeper says no.
    #[error("{message}")]
    Failed {
        /// Kind.
        kind: Failure,
        /// Words.
        message: String,
    },
    /// The socket failed.
    #[error("talking to the keeper: {0}")]
    Io(#[from] io::Error),
    /// The answer has come without its descriptors. What was asked for has been done.
    #[error(
        "no file descriptor is left for what the container's keeper has handed over: raise the limit (LimitNOFILE=, ulimit -n)"
    )]
    NoDescriptors,
    /// An answer of the wrong kind.
    #[error("the keeper's answer makes no sense: {0}")]
    Protocol(String),
}

/// Something that happened inside.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// A process ended.
    Exited {
        /// Its id.
        id: String,
        /// Its status.
        status: i32,
    },
    /// Pid 1 ended, or the keeper is gone.
    Gone,
}

type Answer = Result<(Reply, Vec<OwnedFd>), Error>;
type Waiting = Mutex<HashMap<u64, oneshot::Sender<Answer>>>;

/// A connection to a keeper; clones share it.
#[derive(Debug, Clone)]
pub struct Keeper {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// A `SOCK_SEQPACKET` socket: the runtime only needs to know when it is ready.
    socket: UnixDatagram,
    waiting: Waiting,
    next: AtomicU64,
    /// The keeper has hung up: no answer will come.
    over: AtomicBool,
}

impl Keeper {
    /// Talk over `socket`; events come out of the channel, `Gone` last.
    ///
    /// # Errors
    /// When the socket cannot be registered with the runtime.
    pub fn new(socket: OwnedFd) -> Result<(Self, mpsc::UnboundedReceiver<Event>), Error> {
        rustix::io::ioctl_fionbio(&socket, true).map_err(io::Error::from)?;
        let shared = Arc::new(Shared {
            socket: UnixDatagram::from_std(socket.into())?,
            waiting: Waiting::default(),
            next: AtomicU64::new(1),
            over: AtomicBool::new(false),
        });
        let (sender, events) = mpsc::unbounded_channel();
        tokio::spawn(listen(shared.clone(), sender));
        Ok((Self { shared }, events))
    }

    /// Ask, and wait for the answer.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn ask(&self, op: Op, fds: &[BorrowedFd<'_>]) -> Answer {
        self.begin(op, fds).await?.answer().await
    }

    /// End the connection. A keeper whose container is destroyed ends with it.
    pub fn hang_up(&self) {
        // One that has ended already is none any more.
        let _ = rustix::net::shutdown(&self.shared.socket, rustix::net::Shutdown::Both);
    }

    /// Ask; the descriptors have been handed over when this returns.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn begin(&self, op: Op, fds: &[BorrowedFd<'_>]) -> Result<Asked, Error> {
        let seq = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let bytes = serde_json::to_vec(&Request { seq, op }).map_err(|e| Error::Protocol(e.to_string()))?;
        let (sender, answer) = oneshot::channel();
        lock(&self.shared.waiting).insert(seq, sender);
        let send = || Ok(packet::send(self.shared.socket.as_fd(), &bytes, fds)?);
        match self.shared.socket.async_io(Interest::WRITABLE, send).await {
            Ok(()) if self.shared.over.load(Ordering::Acquire) => Err(Error::Gone),
            Ok(()) => Ok(Asked { seq, answer }),
            Err(error) => {
                lock(&self.shared.waiting).remove(&seq);
                Err(match error.kind() {
                    io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Error::Gone,
                    _ => Error::Io(error),
                })
            }
        }
    }
}

/// A question under way.
#[derive(Debug)]
pub struct Asked {
    /// By which it can be named, as in [`Op::Cancel`].
    pub seq: u64,
    answer: oneshot::Receiver<Answer>,
}

impl Asked {
    /// Wait for the answer.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn answer(self) -> Answer {
        match self.answer.await.map_err(|_| Error::Gone)?? {
            (Reply::Failed { kind, message }, _) => Err(Error::Failed { kind, message }),
            other => Ok(other),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn listen(shared: Arc<Shared>, events: mpsc::UnboundedSender<Event>) {
    loop {
        let received = shared
            .socket
            .async_io(Interest::READABLE, || Ok(packet::receive(shared.socket.as_fd(), RecvFlags::DONTWAIT)?))
            .await;
        let packet::Message { bytes, fds, whole } = match received {
            Ok(message) if message.bytes.is_empty() => break,
            Ok(message) => message,
            // It has ended with a question of ours unread. What it had said before comes next, and then the end.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => continue,
            Err(_) => break,
        };
        match serde_json::from_slice(&bytes) {
            Ok(Message::Reply { seq, reply }) => {
                if let Some(sender) = lock(&shared.waiting).remove(&seq) {
                    // Nobody waits any more: the answer, and its descriptors, are dropped. One that lacks some is the failure
                    // of its own question alone.
                    drop(sender.send(if whole { Ok((reply, fds)) } else { Err(Error::NoDescriptors) }));
                }
            }
            Ok(Message::Exited { id, status }) => drop(events.send(Event::Exited { id, status })),
            Ok(Message::Gone { .. }) => drop(events.send(Event::Gone)),
            Err(_) => break,
        }
    }
    shared.over.store(true, Ordering::Release);
    lock(&shared.waiting).clear();
    drop(events.send(Event::Gone));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_last_answer_of_a_keeper_that_ends_is_heard() {
        for _ in 0..20 {
            let (ours, theirs) = packet::pair().unwrap();
            let (keeper, mut events) = Keeper::new(ours).unwrap();
            let answered = keeper.begin(Op::Destroy, &[]).await.unwrap();
            let unread = keeper.begin(Op::Hello, &[]).await.unwrap();
            let last = Message::Reply { seq: 1, reply: Reply::Done };
            packet::send(&theirs, &serde_json::to_vec(&last).unwrap(), &[]).unwrap();
            // With questions unread: the kernel tells us so before it hands out what was said.
            drop(theirs);
            assert!(matches!(answered.answer().await, Ok((Reply::Done, _))));
            assert!(matches!(unread.answer().await, Err(Error::Gone)));
            assert_eq!(events.recv().await, Some(Event::Gone));
        }
    }
}
