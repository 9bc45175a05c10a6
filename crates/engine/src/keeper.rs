//! The server's end of a keeper's socket: many questions at once, events in between.

use parking_lot::Mutex;
use rustix::net::RecvFlags;
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use tokio::io::Interest;
use tokio::net::UnixDatagram;
use tokio::sync::{mpsc, oneshot};
use wardian_runtime::wire::{
    self, Create, Destroyed, Failure, Feature, Hello, Message, Op, Reply, Run, Started, Transfer, Unheard,
    Window,
};
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
    /// An earlier version started it.
    #[error("the container was made by an earlier version of this server, whose keeper cannot do this")]
    Unsupported,
    /// The socket failed.
    #[error("talking to the keeper: {0}")]
    Io(#[from] io::Error),
    /// The answer has come without its descriptors. What was asked for has been done.
    #[error(
        "no file descriptor is left for what the container's keeper has handed over: raise the limit (LimitNOFILE=, ulimit -n)"
    )]
    NoDescriptors,
    /// The answer lacks a descriptor, or is the answer to something else.
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

type Answer<T> = Result<T, Error>;
/// What the answer to a question says; an answer to something else is given back.
type Read<T> = fn(Reply<OwnedFd>) -> Result<T, Reply<OwnedFd>>;
type Waiting = Mutex<HashMap<u64, oneshot::Sender<Answer<Reply<OwnedFd>>>>>;

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
    /// Of its protocol.
    version: AtomicU32,
    /// The keeper has hung up: no answer will come.
    over: AtomicBool,
}

impl Keeper {
    /// Talk over `socket` to a keeper of this server's version, until it says another one ([`Self::hello`]); events come out
    /// of the channel, `Gone` last.
    ///
    /// # Errors
    /// When the socket cannot be registered with the runtime.
    pub fn new(socket: OwnedFd) -> Result<(Self, mpsc::UnboundedReceiver<Event>), Error> {
        rustix::io::ioctl_fionbio(&socket, true).map_err(io::Error::from)?;
        let shared = Arc::new(Shared {
            socket: UnixDatagram::from_std(socket.into())?,
            waiting: Waiting::default(),
            next: AtomicU64::new(1),
            version: AtomicU32::new(wire::VERSION),
            over: AtomicBool::new(false),
        });
        let (sender, events) = mpsc::unbounded_channel();
        tokio::spawn(listen(shared.clone(), sender));
        Ok((Self { shared }, events))
    }

    /// Whether it is of a version that has this.
    pub fn has(&self, feature: Feature) -> bool {
        self.shared.version.load(Ordering::Relaxed) >= feature.since()
    }

    /// Who it is.
    ///
    /// # Errors
    /// See [`Error`], as of all below.
    pub async fn hello(&self) -> Answer<Hello<OwnedFd>> {
        let hello = self.ask(Op::Hello, |reply| match reply {
            Reply::Hello(hello) => Ok(hello),
            other => Err(other),
        });
        let hello = hello.await?;
        self.shared.version.store(hello.version, Ordering::Relaxed);
        Ok(hello)
    }

    /// Make the container. Gives pid 1 as the host sees it.
    pub async fn create(&self, create: Create<BorrowedFd<'_>>) -> Answer<i32> {
        let made = self.ask(Op::Create(create), |reply| match reply {
            Reply::Made { pid, .. } => Ok(pid),
            other => Err(other),
        });
        made.await
    }

    /// Run a program; the descriptors have been handed over when this returns.
    pub async fn run(&self, run: Run<BorrowedFd<'_>>) -> Answer<Asked<Started<OwnedFd>>> {
        self.begin(Op::Run(run), started).await
    }

    /// The stdio of a process.
    pub async fn attach(&self, id: &str) -> Answer<Started<OwnedFd>> {
        self.ask(Op::Attach { id: id.to_owned() }, started).await
    }

    /// Pack or unpack a tar; the descriptors have been handed over when this returns.
    pub async fn transfer(&self, transfer: Transfer<BorrowedFd<'_>>) -> Answer<Asked<()>> {
        self.begin(Op::Transfer(transfer), done).await
    }

    /// End a transfer of this connection, by [`Asked::seq`].
    pub async fn cancel(&self, transfer: u64) -> Answer<()> {
        self.ask(Op::Cancel { transfer }, done).await
    }

    /// End of file on a process's stdin.
    pub async fn close_stdin(&self, id: &str) -> Answer<()> {
        self.ask(Op::CloseStdin { id: id.to_owned() }, done).await
    }

    /// Another size of a process's terminal.
    pub async fn resize(&self, id: &str, window: Window) -> Answer<()> {
        self.ask(Op::Resize { id: id.to_owned(), window }, done).await
    }

    /// Signal a process.
    pub async fn signal(&self, id: &str, signal: i32) -> Answer<()> {
        self.ask(Op::Signal { id: id.to_owned(), signal }, done).await
    }

    /// The output of an ended process has been read.
    pub async fn release(&self, id: &str) -> Answer<()> {
        self.ask(Op::Release { id: id.to_owned() }, done).await
    }

    /// End everything. The first keepers do not tell how long it took.
    pub async fn destroy(&self) -> Answer<Option<Destroyed>> {
        let destroyed = self.ask(Op::Destroy, |reply| match reply {
            Reply::Destroyed(times) => Ok(Some(times)),
            Reply::Done => Ok(None),
            other => Err(other),
        });
        destroyed.await
    }

    /// End the connection. A keeper whose container is destroyed ends with it.
    pub fn hang_up(&self) {
        // One that has ended already is none any more.
        let _ = rustix::net::shutdown(&self.shared.socket, rustix::net::Shutdown::Both);
    }

    async fn ask<T>(&self, op: Op<BorrowedFd<'_>>, read: Read<T>) -> Answer<T> {
        self.begin(op, read).await?.answer().await
    }

    async fn begin<T>(&self, op: Op<BorrowedFd<'_>>, read: Read<T>) -> Answer<Asked<T>> {
        if op.needs().is_some_and(|feature| !self.has(feature)) {
            return Err(Error::Unsupported);
        }
        let seq = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let (bytes, fds) = wire::encode(seq, op)?;
        let (sender, answer) = oneshot::channel();
        self.shared.waiting.lock().insert(seq, sender);
        let send = || Ok(packet::send(self.shared.socket.as_fd(), &bytes, &fds)?);
        match self.shared.socket.async_io(Interest::WRITABLE, send).await {
            Ok(()) if self.shared.over.load(Ordering::Acquire) => Err(Error::Gone),
            Ok(()) => Ok(Asked { seq, answer, read }),
            Err(error) => {
                self.shared.waiting.lock().remove(&seq);
                Err(match error.kind() {
                    io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Error::Gone,
                    _ => Error::Io(error),
                })
            }
        }
    }
}

fn started(reply: Reply<OwnedFd>) -> Result<Started<OwnedFd>, Reply<OwnedFd>> {
    match reply {
        Reply::Started(started) => Ok(started),
        other => Err(other),
    }
}

fn done(reply: Reply<OwnedFd>) -> Result<(), Reply<OwnedFd>> {
    match reply {
        Reply::Done => Ok(()),
        other => Err(other),
    }
}

/// A question under way.
#[derive(Debug)]
pub struct Asked<T> {
    /// By which it can be named, as in [`Keeper::cancel`].
    pub seq: u64,
    answer: oneshot::Receiver<Answer<Reply<OwnedFd>>>,
    read: Read<T>,
}

impl<T> Asked<T> {
    /// Wait for the answer.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn answer(self) -> Answer<T> {
        match self.answer.await.map_err(|_| Error::Gone)?? {
            Reply::Failed { kind: Failure::Unsupported, .. } => Err(Error::Unsupported),
            Reply::Failed { kind, message } => Err(Error::Failed { kind, message }),
            other => (self.read)(other).map_err(|other| Error::Protocol(format!("{other:?}"))),
        }
    }
}

async fn listen(shared: Arc<Shared>, events: mpsc::UnboundedSender<Event>) {
    loop {
        let received = shared
            .socket
            .async_io(Interest::READABLE, || Ok(packet::receive(shared.socket.as_fd(), RecvFlags::DONTWAIT)?))
            .await;
        let packet = match received {
            Ok(packet) if packet.bytes.is_empty() => break,
            Ok(packet) => packet,
            // It has ended with a question of ours unread. What it had said before comes next, and then the end.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => continue,
            Err(_) => break,
        };
        let (seq, answer) = match wire::decode_reply(packet) {
            Ok(Message::Reply { seq, reply }) => (seq, Ok(reply)),
            // An answer that lacks a descriptor is the failure of its own question alone.
            Err(Unheard::NoDescriptors { seq }) => (seq, Err(Error::NoDescriptors)),
            Err(Unheard::Incomplete { seq, what }) => {
                (seq, Err(Error::Protocol(format!("{what} is missing"))))
            }
            Ok(Message::Exited { id, status }) => {
                drop(events.send(Event::Exited { id, status }));
                continue;
            }
            Ok(Message::Gone { .. }) => {
                drop(events.send(Event::Gone));
                continue;
            }
            Err(Unheard::Unreadable) => break,
        };
        if let Some(sender) = shared.waiting.lock().remove(&seq) {
            // Nobody waits any more: the answer, and its descriptors, are dropped.
            drop(sender.send(answer));
        }
    }
    shared.over.store(true, Ordering::Release);
    shared.waiting.lock().clear();
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
            let answered = keeper.begin(Op::Destroy, Ok).await.unwrap();
            let unread = keeper.begin(Op::Hello, Ok).await.unwrap();
            let (last, fds) = wire::encode_reply(Message::Reply { seq: 1, reply: Reply::Done }).unwrap();
            packet::send(&theirs, &last, &fds).unwrap();
            // With questions unread: the kernel tells us so before it hands out what was said.
            drop(theirs);
            assert!(matches!(answered.answer().await, Ok(Reply::Done)));
            assert!(matches!(unread.answer().await, Err(Error::Gone)));
            assert_eq!(events.recv().await, Some(Event::Gone));
        }
    }

    /// A keeper that reads and answers with `reply`.
    async fn asked(keeper: &Keeper, theirs: &OwnedFd, reply: Reply<BorrowedFd<'_>>) -> Answer<()> {
        let answer = async {
            let question = async {
                loop {
                    match packet::receive(theirs, RecvFlags::DONTWAIT) {
                        Ok(packet) => return wire::decode(packet).unwrap(),
                        Err(_) => tokio::task::yield_now().await,
                    }
                }
            };
            let (seq, _) = question.await;
            let (bytes, fds) = wire::encode_reply(Message::Reply { seq, reply }).unwrap();
            packet::send(theirs, &bytes, &fds).unwrap();
        };
        tokio::join!(keeper.resize("p", Window { columns: 1, rows: 1 }), answer).0
    }

    #[tokio::test]
    async fn what_a_keeper_does_not_know_is_one_questions_failure() {
        let (ours, theirs) = packet::pair().unwrap();
        let (keeper, _events) = Keeper::new(ours).unwrap();
        let kind = Failure::Unsupported;
        let unknown = asked(&keeper, &theirs, Reply::Failed { kind, message: "?".to_owned() }).await;
        assert!(matches!(unknown, Err(Error::Unsupported)), "{unknown:?}");
        let odd =
            asked(&keeper, &theirs, Reply::Destroyed(Destroyed { killed_us: 0, unmounted_us: 0 })).await;
        assert!(matches!(odd, Err(Error::Protocol(_))), "{odd:?}");
        assert!(asked(&keeper, &theirs, Reply::Done).await.is_ok());
    }

    #[tokio::test]
    async fn an_earlier_keeper_is_not_asked_for_what_it_does_not_know() {
        let (ours, theirs) = packet::pair().unwrap();
        let (keeper, _events) = Keeper::new(ours).unwrap();
        for (version, terminals, confinement) in [(1, false, false), (2, true, false), (3, true, true)] {
            keeper.shared.version.store(version, Ordering::Relaxed);
            assert_eq!(keeper.has(Feature::Terminals), terminals);
            assert_eq!(keeper.has(Feature::Confinement), confinement);
        }
        keeper.shared.version.store(1, Ordering::Relaxed);
        let refused = keeper.resize("p", Window { columns: 1, rows: 1 }).await;
        assert!(matches!(refused, Err(Error::Unsupported)), "{refused:?}");
        assert!(packet::receive(&theirs, RecvFlags::DONTWAIT).is_err(), "it was asked");
    }
}
