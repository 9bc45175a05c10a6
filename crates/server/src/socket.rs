//! A connection as bytes: through a unix socket, TCP, or TLS over TCP.
//!
//! While a client does not take what it is sent, its connection tells its [`Place`] so; one whose place is needed by
//! somebody else fails at its next read or write, as if the client had gone.

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

/// How long an HTTP reply may stand still because its client takes nothing of it.
const REPLY_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the end of what is sent may wait for a client that takes nothing. Of TLS alone: the kernel takes any end.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);
const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// A client that has connected, and has said nothing yet.
#[derive(Debug)]
pub(crate) struct Arrival {
    io: Io,
    tls: Option<Tls>,
    /// Hosts that its requests may name.
    pub(crate) hosts: Option<Arc<Hosts>>,
    /// It runs as root, or as the user of this server: places are kept for it.
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

    /// The connection, once it is known who the client is.
    ///
    /// # Errors
    /// It has shown no certificate that is good here, or has gone.
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

/// What comes from a connection.
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

/// What goes to a connection.
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

/// Both halves of a TLS connection: what is encrypted cannot be taken apart.
type Shared = Arc<Mutex<TlsStream<TcpStream>>>;

fn lock(shared: &Shared) -> MutexGuard<'_, TlsStream<TcpStream>> {
    shared.lock()
}

/// Bytes that TLS has taken of a write whose records are not all in the kernel's hands. The write is over when they are:
/// nobody would send the rest on its way, because those who write to sockets do not flush.
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

/// A question to a connection that is in the hands of HTTP: whether its client is still there. While a request is answered
/// nobody reads from it, because a client that has said all may close its side.
#[derive(Debug, Clone, Default)]
pub(crate) struct Look(Arc<AtomicBool>);

impl Look {
    /// The connection fails when it is next flushed, which HTTP does whenever its task is woken, if its client has gone.
    pub(crate) fn ask(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_asked(&self) -> bool {
        self.0.load(Ordering::Relaxed) && self.0.swap(false, Ordering::Relaxed)
    }
}

/// What the client of a connection owes, and for how long.
#[derive(Debug, Default)]
struct Watch {
    place: Option<Arc<Place>>,
    look: Look,
    /// It does not take what it is sent.
    owed: Option<Owed>,
    timeout: Option<Pin<Box<Sleep>>>,
}

impl Watch {
    /// What a write, or with a time the end of all writes, has come to.
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

/// An error once the connection is cut off.
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
    /// Whether the bytes in the socket are those that the client means.
    pub(crate) fn is_plain(&self) -> bool {
        !matches!(self.io, Io::Tls(..))
    }

    /// Of a server that counts its connections.
    pub(crate) fn place(&self) -> Option<&Arc<Place>> {
        self.watch.place.as_ref()
    }

    /// Until there may be something to read in the socket, or its end.
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

    /// Read from the socket in a way of one's own, which says [`io::ErrorKind::WouldBlock`] when there is nothing.
    pub(crate) fn try_read_with<R>(&self, read: impl FnOnce() -> io::Result<R>) -> io::Result<R> {
        match &self.io {
            Io::Unix(stream) => stream.try_io(Interest::READABLE, read),
            Io::Tcp(stream) => stream.try_io(Interest::READABLE, read),
            Io::Tls(stream, _) => stream.get_ref().0.try_io(Interest::READABLE, read),
        }
    }

    /// Whether the other side is closed in both directions. Of TCP that is known only after a reset.
    pub(crate) fn hung_up(&self) -> bool {
        hung_up(self)
    }

    /// Has whoever works for a client ask whether that is still there.
    pub(crate) fn look(&self) -> Look {
        self.watch.look.clone()
    }

    /// Its two directions. The outgoing one is closed when its half is dropped; that of TLS, when both are.
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
        let before = to.filled().len();
        let read = match &mut this.io {
            Io::Unix(stream) => Pin::new(stream).poll_read(cx, to),
            Io::Tcp(stream) => Pin::new(stream).poll_read(cx, to),
            Io::Tls(stream, _) => Pin::new(stream).poll_read(cx, to),
        };
        match &this.watch.place {
            Some(place) if !place.reads(to.filled().len() - before) => {
                Poll::Ready(Err(io::ErrorKind::OutOfMemory.into()))
            }
            _ => read,
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

/// What `Stream` and `WriteHalf` have in common: how bytes are sent in each of their kinds, and who is told of it.
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
                    // The kernel has it already.
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
        // Output, which is not cut off.
        let waited = tokio::time::timeout(10 * REPLY_TIMEOUT, stream.write_all(&answer)).await;
        assert!(waited.is_err());
        // Its place may be needed all the same.
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
