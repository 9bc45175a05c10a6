//! Connections as byte streams: over a unix socket, TCP, or TLS over TCP.
//!
//! While a client does not take what it is sent, the connection's [`Place`] counts a debt. An evicted
//! connection that is cut fails at its next read or write, as if the client had disconnected.

use crate::door::{Owed, Place};
use crate::host::Hosts;
use crate::tls::Tls;
use parking_lot::{Mutex, MutexGuard};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream, tcp, unix};
use tokio::time::Sleep;
use tokio_rustls::server::TlsStream;

/// How long an HTTP reply may wait for a client that takes nothing of it.
const REPLY_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the shutdown may wait for a client that takes nothing. Only TLS waits, to send its alert; the
/// kernel queues a FIN at once.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);
const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// An accepted connection on which nothing has been read.
#[derive(Debug)]
pub(crate) struct Arrival {
    io: Io,
    tls: Option<Tls>,
    /// The hosts that its requests may name; `None`: any.
    pub(crate) hosts: Option<Arc<Hosts>>,
    /// The client runs as root, or as the user of this server: places are reserved for it.
    pub(crate) local: bool,
}

impl Arrival {
    pub(crate) fn unix(stream: UnixStream) -> Self {
        let uid = stream.peer_cred().map(|peer| peer.uid());
        let local = uid.is_ok_and(|uid| uid == 0 || uid == rustix::process::geteuid().as_raw());
        Self { io: Io::Unix(stream), tls: None, hosts: None, local }
    }

    pub(crate) fn tcp(stream: TcpStream, tls: Option<Tls>, hosts: Arc<Hosts>) -> Self {
        Self { io: Io::Tcp(stream), tls, hosts: Some(hosts), local: false }
    }

    /// Opens the connection: with TLS, after the handshake, in which the client is authenticated.
    ///
    /// # Errors
    /// The client has shown no valid certificate, or has disconnected.
    pub(crate) async fn open(self, place: Arc<Place>) -> io::Result<Stream> {
        let io = match (self.io, self.tls) {
            (Io::Tcp(stream), Some(tls)) => {
                Io::Tls(Box::new(tls.acceptor().accept(stream).await?), Written::default())
            }
            (io, _) => io,
        };
        Ok(Stream { io, watch: Watch { place: Some(place), ..Watch::default() } })
    }
}

/// A connection.
#[derive(Debug)]
pub(crate) struct Stream {
    io: Io,
    watch: Watch,
}

#[derive(Debug)]
enum Io {
    Unix(UnixStream),
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>, Written),
}

/// The read half of a connection.
#[derive(Debug)]
pub(crate) struct ReadHalf {
    io: ReadIo,
    place: Option<Arc<Place>>,
}

#[derive(Debug)]
enum ReadIo {
    Unix(unix::OwnedReadHalf),
    Tcp(tcp::OwnedReadHalf),
    Tls(Shared),
}

/// The write half of a connection.
#[derive(Debug)]
pub(crate) struct WriteHalf {
    io: WriteIo,
    watch: Watch,
}

#[derive(Debug)]
enum WriteIo {
    Unix(unix::OwnedWriteHalf),
    Tcp(tcp::OwnedWriteHalf),
    Tls(Shared, Written),
}

/// A TLS connection that both halves share: its state cannot be split.
type Shared = Arc<Mutex<TlsStream<TcpStream>>>;

fn lock(shared: &Shared) -> MutexGuard<'_, TlsStream<TcpStream>> {
    shared.lock()
}

/// The bytes of a write that TLS has taken while not all of its records are written to the socket. The write
/// is complete only then: writers to sockets do not flush, so nothing else would send the rest.
#[derive(Debug, Default)]
struct Written(Option<usize>);

impl Written {
    fn poll_write(
        &mut self,
        tls: &mut TlsStream<TcpStream>,
        cx: &mut Context<'_>,
        from: &[u8],
    ) -> Poll<io::Result<usize>> {
        let taken = match self.0 {
            Some(taken) => taken,
            None => *self.0.insert(ready!(Pin::new(&mut *tls).poll_write(cx, from))?),
        };
        ready!(Pin::new(tls).poll_flush(cx))?;
        self.0 = None;
        Poll::Ready(Ok(taken.min(from.len())))
    }
}

/// A request to check whether the client of a connection that HTTP owns is still connected. While a request
/// is being answered the connection is not read, because a client that has sent everything may shut its side
/// down.
#[derive(Debug, Clone, Default)]
pub(crate) struct Look(Arc<AtomicBool>);

impl Look {
    /// Makes the connection's next flush fail if its client has disconnected. HTTP flushes whenever its task
    /// is woken.
    pub(crate) fn ask(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_asked(&self) -> bool {
        self.0.load(Ordering::Relaxed) && self.0.swap(false, Ordering::Relaxed)
    }
}

/// Tracks the debt of a client that does not take what it is sent.
#[derive(Debug, Default)]
struct Watch {
    place: Option<Arc<Place>>,
    look: Look,
    /// The debt, while the client takes nothing.
    owed: Option<Owed>,
    timeout: Option<Pin<Box<Sleep>>>,
}

impl Watch {
    /// Passes the result of a write on, or with `time` that of a shutdown, and tracks the debt while it is
    /// pending.
    fn watch<T>(
        &mut self,
        cx: &mut Context<'_>,
        time: Option<Duration>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            (self.owed, self.timeout) = (None, None);
            return written;
        }
        if let (None, Some(place)) = (&self.owed, &self.place) {
            self.owed = Some(place.owes());
        }
        let replying = || self.place.as_ref().is_some_and(|place| place.replies());
        let time = time.or_else(|| replying().then_some(REPLY_TIMEOUT));
        let Some(time) = time else { return Poll::Pending };
        let timeout = self.timeout.get_or_insert_with(|| Box::pin(tokio::time::sleep(time)));
        ready!(timeout.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    fn there(&self) -> io::Result<()> {
        there(self.place.as_ref())
    }
}

/// Returns an error once the connection is cut.
fn there(place: Option<&Arc<Place>>) -> io::Result<()> {
    match place {
        Some(place) if place.is_cut() => Err(io::ErrorKind::ConnectionAborted.into()),
        _ => Ok(()),
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.io {
            Io::Unix(stream) => stream.as_fd(),
            Io::Tcp(stream) => stream.as_fd(),
            Io::Tls(stream, _) => stream.get_ref().0.as_fd(),
        }
    }
}

impl Stream {
    /// Whether the connection is not encrypted.
    pub(crate) fn is_plain(&self) -> bool {
        !matches!(self.io, Io::Tls(..))
    }

    /// Returns the connection's place, if the server counts its connections.
    pub(crate) fn place(&self) -> Option<&Arc<Place>> {
        self.watch.place.as_ref()
    }

    /// Ready when there may be something to read in the socket, or its end.
    pub(crate) async fn readable(&self) -> io::Result<()> {
        let readable = async {
            match &self.io {
                Io::Unix(stream) => stream.readable().await,
                Io::Tcp(stream) => stream.readable().await,
                Io::Tls(stream, _) => stream.get_ref().0.readable().await,
            }
        };
        let mut readable = pin!(readable);
        poll_fn(|cx| {
            self.watch.there()?;
            readable.as_mut().poll(cx)
        })
        .await
    }

    /// Reads from the socket by a closure that returns [`io::ErrorKind::WouldBlock`] when there is nothing.
    pub(crate) fn try_read_with<R>(&self, read: impl FnOnce() -> io::Result<R>) -> io::Result<R> {
        match &self.io {
            Io::Unix(stream) => stream.try_io(Interest::READABLE, read),
            Io::Tcp(stream) => stream.try_io(Interest::READABLE, read),
            Io::Tls(stream, _) => stream.get_ref().0.try_io(Interest::READABLE, read),
        }
    }

    /// Whether the client has closed the connection in both directions. With TCP that is known only after a
    /// reset.
    pub(crate) fn hung_up(&self) -> bool {
        hung_up(self)
    }

    /// Returns a handle by which a request's task checks whether the client is still connected.
    pub(crate) fn look(&self) -> Look {
        self.watch.look.clone()
    }

    /// Splits the connection. Dropping the write half closes the outgoing direction; with TLS it is closed
    /// when both halves are dropped.
    pub(crate) fn into_split(self) -> (ReadHalf, WriteHalf) {
        let Self { io, watch } = self;
        let (reader, writer) = match io {
            Io::Unix(stream) => {
                let (reader, writer) = stream.into_split();
                (ReadIo::Unix(reader), WriteIo::Unix(writer))
            }
            Io::Tcp(stream) => {
                let (reader, writer) = stream.into_split();
                (ReadIo::Tcp(reader), WriteIo::Tcp(writer))
            }
            Io::Tls(stream, written) => {
                let shared = Arc::new(Mutex::new(*stream));
                (ReadIo::Tls(shared.clone()), WriteIo::Tls(shared, written))
            }
        };
        (ReadHalf { io: reader, place: watch.place.clone() }, WriteHalf { io: writer, watch })
    }
}

impl ReadHalf {
    /// See [`Place::is_local`].
    pub(crate) fn is_local(&self) -> bool {
        self.place.as_ref().is_some_and(|place| place.is_local())
    }

    /// See [`Stream::hung_up`].
    pub(crate) fn hung_up(&self) -> bool {
        match &self.io {
            ReadIo::Unix(half) => hung_up(half.as_ref()),
            ReadIo::Tcp(half) => hung_up(half.as_ref()),
            ReadIo::Tls(shared) => hung_up(lock(shared).get_ref().0),
        }
    }
}

impl WriteHalf {
    fn hung_up(&self) -> bool {
        match &self.io {
            WriteIo::Unix(half) => hung_up(half.as_ref()),
            WriteIo::Tcp(half) => hung_up(half.as_ref()),
            WriteIo::Tls(shared, _) => hung_up(lock(shared).get_ref().0),
        }
    }
}

fn hung_up(socket: impl AsFd) -> bool {
    let mut ends = [PollFd::new(&socket, PollFlags::empty())];
    poll(&mut ends, Some(&NOW)).is_ok() && ends[0].revents().contains(PollFlags::HUP)
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.watch.there()?;
        match &mut this.io {
            Io::Unix(stream) => Pin::new(stream).poll_read(cx, to),
            Io::Tcp(stream) => Pin::new(stream).poll_read(cx, to),
            Io::Tls(stream, _) => Pin::new(stream).poll_read(cx, to),
        }
    }
}

impl AsyncRead for ReadHalf {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        there(this.place.as_ref())?;
        match &mut this.io {
            ReadIo::Unix(half) => Pin::new(half).poll_read(cx, to),
            ReadIo::Tcp(half) => Pin::new(half).poll_read(cx, to),
            ReadIo::Tls(shared) => Pin::new(&mut *lock(shared)).poll_read(cx, to),
        }
    }
}

/// Implements `AsyncWrite` for `Stream` and `WriteHalf`.
macro_rules! writes {
    ($type:ident, $kind:ident, |$tls:ident| $open:expr) => {
        impl AsyncWrite for $type {
            fn poll_write(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                from: &[u8],
            ) -> Poll<io::Result<usize>> {
                let this = self.get_mut();
                this.watch.there()?;
                let written = match &mut this.io {
                    $kind::Unix(stream) => Pin::new(stream).poll_write(cx, from),
                    $kind::Tcp(stream) => Pin::new(stream).poll_write(cx, from),
                    $kind::Tls($tls, written) => written.poll_write($open, cx, from),
                };
                this.watch.watch(cx, None, written)
            }
            fn poll_write_vectored(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                from: &[io::IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                let this = self.get_mut();
                this.watch.there()?;
                let written = match &mut this.io {
                    $kind::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, from),
                    $kind::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, from),
                    $kind::Tls($tls, written) => {
                        let first =
                            from.iter().find(|slice| !slice.is_empty()).map_or(&[][..], |slice| slice);
                        written.poll_write($open, cx, first)
                    }
                };
                this.watch.watch(cx, None, written)
            }
            fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                let this = self.get_mut();
                this.watch.there()?;
                if this.watch.look.is_asked() && this.hung_up() {
                    tracing::debug!("the client has gone before its answer");
                    return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
                }
                let flushed = match &mut this.io {
                    // Nothing is buffered in this process.
                    $kind::Unix(_) | $kind::Tcp(_) => return Poll::Ready(Ok(())),
                    $kind::Tls($tls, _) => Pin::new($open).poll_flush(cx),
                };
                this.watch.watch(cx, None, flushed)
            }
            fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                let this = self.get_mut();
                this.watch.there()?;
                let closed = match &mut this.io {
                    $kind::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
                    $kind::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
                    $kind::Tls($tls, _) => Pin::new($open).poll_shutdown(cx),
                };
                this.watch.watch(cx, Some(SHUTDOWN_TIMEOUT), closed)
            }
            fn is_write_vectored(&self) -> bool {
                !matches!(self.io, $kind::Tls(..))
            }
        }
    };
}

writes!(Stream, Io, |stream| stream);
writes!(WriteHalf, WriteIo, |shared| &mut *lock(shared));

#[cfg(test)]
mod tests {
    use super::*;
    use crate::door::Door;
    use tokio::io::AsyncWriteExt as _;

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_nobody_takes_ends_and_output_waits() {
        let door = Door::new(1);
        let place = door.enter(false).unwrap();
        assert!(place.works(|| false).await);
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut stream = Arrival::unix(ours).open(place.clone()).await.unwrap();
        let answer = vec![0; 16 << 20];
        // Output of a process has no timeout.
        let waited = tokio::time::timeout(10 * REPLY_TIMEOUT, stream.write_all(&answer)).await;
        assert!(waited.is_err());
        // But its place can be taken.
        let newcomer = door.enter(false).unwrap();
        assert!(tokio::time::timeout(Duration::from_secs(1), newcomer.works(|| false)).await.is_err());
        assert!(place.is_gone());
        place.set_replies(true);
        let mut stream =
            Stream { io: stream.io, watch: Watch { place: Some(place.clone()), ..Watch::default() } };
        let cut = tokio::time::timeout(2 * REPLY_TIMEOUT, stream.write_all(&answer)).await;
        assert_eq!(cut.unwrap().unwrap_err().kind(), io::ErrorKind::TimedOut);
        place.cut();
        assert_eq!(stream.write_all(&answer).await.unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
        drop(theirs);
    }
}
