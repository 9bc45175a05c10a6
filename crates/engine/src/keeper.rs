//! The server's end of a keeper's socket: many requests at once, with events in between.

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

/// Why a request to a keeper failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The keeper is gone.
    #[error("the container's keeper is gone")]
    Gone,
    /// The keeper refused or failed.
    #[error("{message}")]
    Failed {
        /// The kind of failure.
        kind: Failure,
        /// What the keeper says.
        message: String,
    },
    /// A keeper of an earlier version does not know the request.
    #[error("the container was made by an earlier version of this server, whose keeper cannot do this")]
    Unsupported,
    /// The socket failed.
    #[error("talking to the keeper: {0}")]
    Io(#[from] io::Error),
    /// The answer has come without its descriptors, since this server had none left. The request was carried
    /// out.
    #[error(
        "no file descriptor is left for what the container's keeper has handed over: raise the limit (LimitNOFILE=, ulimit -n)"
    )]
    NoDescriptors,
    /// The answer lacks a descriptor, or is the answer to something else.
    #[error("the keeper's answer makes no sense: {0}")]
    Protocol(String),
}

/// An event that a keeper reports.
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
/// Reads the expected reply; an unexpected one is given back.
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
    /// The version of the keeper's protocol.
    version: AtomicU32,
    /// The keeper has hung up: no answer will come.
    over: AtomicBool,
}

impl Keeper {
    /// Starts a connection over `socket` to a keeper, which is taken for one of this server's version until
    /// it says another one ([`Self::hello`]). Events come out of the channel, `Gone` last.
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

    /// Whether the keeper is of a version that has this feature.
    pub fn has(&self, feature: Feature) -> bool {
        self.shared.version.load(Ordering::Relaxed) >= feature.since()
    }

    /// Asks for the keeper's version, its pid, the container's pid 1, and the processes.
    ///
    /// # Errors
    /// See [`Error`]; so for all requests below.
    pub async fn hello(&self) -> Answer<Hello<OwnedFd>> {
        let hello = self.ask(Op::Hello, |reply| match reply {
            Reply::Hello(hello) => Ok(hello),
            other => Err(other),
        });
        let hello = hello.await?;
        self.shared.version.store(hello.version, Ordering::Relaxed);
        Ok(hello)
    }

    /// Creates the container. Returns the pid that its pid 1 has on the host.
    pub async fn create(&self, create: Create<BorrowedFd<'_>>) -> Answer<i32> {
        let made = self.ask(Op::Create(create), |reply| match reply {
            Reply::Made { pid, .. } => Ok(pid),
            other => Err(other),
        });
        made.await
    }

    /// Starts a program. The descriptors have been sent when this returns.
    pub async fn run(&self, run: Run<BorrowedFd<'_>>) -> Answer<Asked<Started<OwnedFd>>> {
        self.begin(Op::Run(run), started).await
    }

    /// Returns the stdio of a process.
    pub async fn attach(&self, id: &str) -> Answer<Started<OwnedFd>> {
        self.ask(Op::Attach { id: id.to_owned() }, started).await
    }

    /// Packs or unpacks a tar. The descriptors have been sent when this returns.
    pub async fn transfer(&self, transfer: Transfer<BorrowedFd<'_>>) -> Answer<Asked<()>> {
        self.begin(Op::Transfer(transfer), done).await
    }

    /// Cancels a transfer of this connection, named by [`Asked::seq`].
    pub async fn cancel(&self, transfer: u64) -> Answer<()> {
        self.ask(Op::Cancel { transfer }, done).await
    }

    /// Closes a process's stdin.
    pub async fn close_stdin(&self, id: &str) -> Answer<()> {
        self.ask(Op::CloseStdin { id: id.to_owned() }, done).await
    }

    /// Resizes a process's terminal.
    pub async fn resize(&self, id: &str, window: Window) -> Answer<()> {
        self.ask(Op::Resize { id: id.to_owned(), window }, done).await
    }

    /// Sends a signal to a process.
    pub async fn signal(&self, id: &str, signal: i32) -> Answer<()> {
        self.ask(Op::Signal { id: id.to_owned(), signal }, done).await
    }

    /// Tells the keeper to close the descriptors of an ended process whose output has been read.
    pub async fn release(&self, id: &str) -> Answer<()> {
        self.ask(Op::Release { id: id.to_owned() }, done).await
    }

    /// Replaces the contents of the container's own files.
    pub async fn rewrite(&self, files: &[OwnedFd]) -> Answer<()> {
        self.ask(Op::Rewrite { files: files.iter().map(AsFd::as_fd).collect() }, done).await
    }

    /// Destroys the container. Keepers of the first version do not tell how long that took.
    pub async fn destroy(&self) -> Answer<Option<Destroyed>> {
        let destroyed = self.ask(Op::Destroy, |reply| match reply {
            Reply::Destroyed(times) => Ok(Some(times)),
            Reply::Done => Ok(None),
            other => Err(other),
        });
        destroyed.await
    }

    /// Waits until the root file system of an ended pea is closed, and returns how long closing it took, in
    /// microseconds.
    pub async fn unmounted(&self, id: &str) -> Answer<u64> {
        let unmounted = self.ask(Op::Unmounted { id: id.to_owned() }, |reply| match reply {
            Reply::Unmounted { us } => Ok(us),
            other => Err(other),
        });
        unmounted.await
    }

    /// Shuts the connection down. A keeper whose container is destroyed exits then.
    pub fn hang_up(&self) {
        // Fails if the connection has ended already.
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

/// A request under way.
#[derive(Debug)]
pub struct Asked<T> {
    /// The request's sequence number, as for [`Keeper::cancel`].
    pub seq: u64,
    answer: oneshot::Receiver<Answer<Reply<OwnedFd>>>,
    read: Read<T>,
}

impl<T> Asked<T> {
    /// Waits for the answer.
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
            // The keeper has exited with a request unread. What it had sent before is received next, and then
            // the end.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => continue,
            Err(_) => break,
        };
        let (seq, answer) = match wire::decode_reply(packet) {
            Ok(Message::Reply { seq, reply }) => (seq, Ok(reply)),
            // An answer that lacks a descriptor fails its own request alone.
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
            // Fails if the request was given up: then the answer, and its descriptors, are dropped.
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
            // Requests are unread: the kernel reports that (ECONNRESET) before it hands out what was sent.
            drop(theirs);
            assert!(matches!(answered.answer().await, Ok(Reply::Done)));
            assert!(matches!(unread.answer().await, Err(Error::Gone)));
            assert_eq!(events.recv().await, Some(Event::Gone));
        }
    }

    /// Sends a request to a keeper that reads it and answers with `reply`.
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
        let features = [Feature::Terminals, Feature::Confinement, Feature::Mounts, Feature::PeaEnds];
        for version in 1..=5 {
            keeper.shared.version.store(version, Ordering::Relaxed);
            let has = features.iter().filter(|feature| keeper.has(**feature)).count();
            assert_eq!(has, version as usize - 1);
        }
        keeper.shared.version.store(1, Ordering::Relaxed);
        let refused = keeper.resize("p", Window { columns: 1, rows: 1 }).await;
        assert!(matches!(refused, Err(Error::Unsupported)), "{refused:?}");
        assert!(packet::receive(&theirs, RecvFlags::DONTWAIT).is_err(), "it was asked");
    }
}
