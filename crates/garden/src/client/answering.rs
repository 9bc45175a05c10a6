//! A connection on which a reply takes precedence over a failure to send the request; and the retry of
//! requests that were not answered at all.

use super::connection::Duplex;
use crate::error::{Error, Result};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncBufRead, AsyncRead, AsyncWrite, BufReader, ReadBuf};

/// The index of the class of a status in `HTTP/1.1 200`.
const CLASS: usize = 9;

/// Milliseconds before each retry.
const AGAIN: [u64; 4] = [20, 40, 80, 160];

/// The progress of a request: whether a part of it was sent, and whether a part of the reply has come.
#[derive(Debug, Default)]
pub(crate) struct Course {
    sent: AtomicBool,
    answered: AtomicBool,
}

impl Course {
    pub(crate) fn is_sent(&self) {
        self.sent.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_answered(&self) {
        self.answered.store(true, Ordering::Relaxed);
    }

    /// Whether the request may be retried: the connection was cut before the reply, and the request was not
    /// sent, or is `harmless`.
    fn may_come_again(&self, error: &Error, harmless: bool) -> bool {
        is_cut(error)
            && !self.answered.load(Ordering::Relaxed)
            && (harmless || !self.sent.load(Ordering::Relaxed))
    }
}

/// Makes a request, and retries it on a new connection while the server cuts the connection off without a
/// reply, because it has too many. `harmless`: the request is idempotent.
pub(crate) async fn again<T, F>(harmless: bool, ask: impl Fn(Arc<Course>) -> F) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    for pause in AGAIN {
        let course = Arc::<Course>::default();
        match ask(course.clone()).await {
            Err(error) if course.may_come_again(&error, harmless) => {
                tokio::time::sleep(Duration::from_millis(pause)).await;
            }
            done => return done,
        }
    }
    ask(Arc::default()).await
}

fn is_cut(error: &Error) -> bool {
    let is_end = |error: &io::Error| is_hang_up(error) || error.kind() == io::ErrorKind::UnexpectedEof;
    match error {
        Error::Disconnected => true,
        Error::Connect { source, .. } | Error::Io(source) => is_end(source),
        Error::Http(error) => {
            let source = std::error::Error::source(error).and_then(|source| source.downcast_ref());
            error.is_incomplete_message() || error.is_canceled() || source.is_some_and(is_end)
        }
        _ => false,
    }
}

/// Sends a request until all of it is sent, or the server replies or hangs up before. Returns the failure to
/// send, which counts only if there is no reply.
pub(crate) async fn send(
    stream: &mut BufReader<Box<dyn Duplex>>,
    mut request: &[u8],
    course: &Course,
) -> Option<io::Error> {
    std::future::poll_fn(move |cx| {
        loop {
            let sent = if request.is_empty() {
                Pin::new(&mut *stream).poll_flush(cx).map_ok(|()| 0)
            } else {
                Pin::new(&mut *stream).poll_write(cx, request)
            };
            match sent {
                Poll::Ready(Ok(_)) if request.is_empty() => return Poll::Ready(None),
                Poll::Ready(Ok(0)) => return Poll::Ready(Some(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(n)) => {
                    course.is_sent();
                    request = &request[n..];
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Some(error)),
                Poll::Pending => break,
            }
        }
        match ready!(Pin::new(&mut *stream).poll_fill_buf(cx)) {
            // An interim reply (1xx): the server still wants the request.
            Ok(answer) if answer.get(CLASS) == Some(&b'1') => Poll::Pending,
            Ok(_) => Poll::Ready(None),
            Err(error) => Poll::Ready(Some(error)),
        }
    })
    .await
}

/// A connection for hyper on which a failure to send is kept back. A server may reply, and hang up, before it
/// has read the whole request: then sending fails, but the reply can still be read. From the first failure
/// on, what is sent is dropped, and the failure is returned to the reader if there is no reply.
#[derive(Debug)]
pub(crate) struct Answering {
    stream: Box<dyn Duplex>,
    failure: Option<io::Error>,
    /// Once something was read it is the reply, and its end is no failure.
    course: Arc<Course>,
    deaf: bool,
}

impl Answering {
    pub(crate) fn new(stream: Box<dyn Duplex>, course: Arc<Course>) -> Self {
        Self { stream, failure: None, course, deaf: false }
    }

    /// Keeps a failure to send for later.
    fn keep<T>(&mut self, done: io::Result<T>, instead: T) -> io::Result<T> {
        match done {
            Err(error) if is_hang_up(&error) => {
                self.deaf = true;
                self.failure = Some(error);
                Ok(instead)
            }
            done => done,
        }
    }
}

/// Whether the error says that the server has hung up.
fn is_hang_up(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset)
}

impl AsyncRead for Answering {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let done = ready!(Pin::new(&mut this.stream).poll_read(cx, buffer));
        let ended = done.is_err() || buffer.filled().len() == before;
        if !ended {
            this.course.is_answered();
        }
        let is_answered = this.course.answered.load(Ordering::Relaxed);
        match this.failure.take_if(|_| ended && !is_answered) {
            Some(failure) => Poll::Ready(Err(failure)),
            None => Poll::Ready(done),
        }
    }
}

impl AsyncWrite for Answering {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.deaf {
            return Poll::Ready(Ok(bytes.len()));
        }
        let done = ready!(Pin::new(&mut this.stream).poll_write(cx, bytes));
        let done = done.inspect(|_| this.course.is_sent());
        Poll::Ready(this.keep(done, bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.deaf {
            return Poll::Ready(Ok(()));
        }
        let done = ready!(Pin::new(&mut this.stream).poll_flush(cx));
        Poll::Ready(this.keep(done, ()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.deaf {
            return Poll::Ready(Ok(()));
        }
        let done = ready!(Pin::new(&mut this.stream).poll_shutdown(cx));
        Poll::Ready(this.keep(done, ()))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let length = bytes.iter().map(|slice| slice.len()).sum();
        if this.deaf {
            return Poll::Ready(Ok(length));
        }
        let done = ready!(Pin::new(&mut this.stream).poll_write_vectored(cx, bytes));
        let done = done.inspect(|_| this.course.is_sent());
        Poll::Ready(this.keep(done, length))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Client, Error, Io};
    use std::collections::BTreeMap;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, UnixListener};

    const REFUSED: &str = r#"{"Type":"","Message":"too much","Handle":"","ProcessID":"","Binary":""}"#;

    /// Answers after the first bytes of a request, and hangs up with the rest of it unread; or, with `stays`, takes no more
    /// and waits for the client to go.
    async fn refuse(mut stream: impl Duplex, stays: bool) {
        let mut begin = [0; 64];
        stream.read_exact(&mut begin).await.unwrap();
        let length = REFUSED.len();
        let head = format!("HTTP/1.1 413 Too Large\r\nContent-Length: {length}\r\n\r\n");
        stream.write_all((head + REFUSED).as_bytes()).await.unwrap();
        if stays {
            std::future::pending::<()>().await;
        }
    }

    /// Makes every kind of request, each with more bytes than a socket buffer holds.
    async fn ask(client: &Client) {
        let long = "x".repeat(4 << 20);
        let spec = crate::wire::ProcessSpec { args: vec![long.clone()], ..Default::default() };
        let tar = || std::io::Cursor::new(vec![0; 4 << 20]);
        let said = [
            client.run("h", &spec, Io::default()).await.map(drop),
            client.set_property("h", "k", &long).await,
            client.stream_in("h", "", "/", tar(), Some(4 << 20)).await,
            client.stream_in("h", "", "/", tar(), None).await,
            // An address is at most 64 KiB long.
            client.list(&BTreeMap::from([("k".to_owned(), long[..60_000].to_owned())])).await.map(drop),
            client.stream_out("h", "", &long[..60_000]).await.map(drop),
            client.attach("h", &long, Io::default()).await.map(drop),
        ];
        for (n, said) in said.into_iter().enumerate() {
            assert_eq!(said.unwrap_err().to_string(), "too much", "request {n}");
        }
    }

    #[tokio::test]
    async fn what_the_server_says_is_heard_though_it_does_not_take_the_request() {
        for stays in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("sock");
            let unix = UnixListener::bind(&path).unwrap();
            let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let port = tcp.local_addr().unwrap().port();
            let (by_path, by_port) = (format!("unix:{}", path.display()), format!("tcp:127.0.0.1:{port}"));
            let serve = async {
                loop {
                    tokio::select! {
                        accepted = unix.accept() => drop(tokio::spawn(refuse(accepted.unwrap().0, stays))),
                        accepted = tcp.accept() => drop(tokio::spawn(refuse(accepted.unwrap().0, stays))),
                    }
                }
            };
            let asked = async {
                for address in [by_path, by_port] {
                    ask(&Client::new(&address).unwrap()).await;
                }
            };
            tokio::select! {
                () = serve => {}
                done = tokio::time::timeout(Duration::from_secs(60), asked) => done.expect("it waits for ever"),
            }
        }
    }

    /// Runs a server that has too many connections, and cuts off the first ones: before or after it has read
    /// from them, or in the middle of the reply. Returns how often it was asked, and whether the last request
    /// was answered.
    async fn asked(cut: Cut, ask: impl AsyncFn(Client) -> bool) -> (usize, bool) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sock");
        let listener = UnixListener::bind(&path).unwrap();
        let client = Client::new(&format!("unix:{}", path.display())).unwrap();
        let mut times = 0;
        let serve = async {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                times += 1;
                match cut {
                    Cut::Unread if times <= 2 => continue,
                    _ => assert!(stream.read(&mut [0; 4096]).await.unwrap() > 0),
                }
                match cut {
                    Cut::Unanswered if times <= 2 => {}
                    Cut::Half => stream.write_all(b"HTTP").await.unwrap(),
                    _ => {
                        stream
                            .write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{\"Handles\":[]}")
                            .await
                            .unwrap();
                    }
                }
            }
        };
        let asked = tokio::time::timeout(Duration::from_secs(60), ask(client));
        let done = tokio::select! {
            () = serve => unreachable!(),
            done = asked => done.expect("it waits for ever"),
        };
        (times, done)
    }

    #[derive(Clone, Copy)]
    enum Cut {
        Unread,
        Unanswered,
        Half,
    }

    #[tokio::test]
    async fn who_was_not_heard_comes_again_unless_something_would_be_done_twice() {
        let list = async |client: Client| client.list(&BTreeMap::new()).await.is_ok();
        let set = async |client: Client| client.set_property("h", "k", "v").await.is_ok();
        let events = async |client: Client| client.events(None, None, None).await.is_ok();
        let destroy = async |client: Client| client.destroy("h").await.is_ok();
        let run = async |client: Client| client.run("h", &Default::default(), Io::default()).await.is_ok();
        assert_eq!(asked(Cut::Unanswered, list).await, (3, true));
        assert_eq!(asked(Cut::Unanswered, set).await, (3, true));
        assert_eq!(asked(Cut::Unanswered, events).await, (3, true));
        assert_eq!(asked(Cut::Unanswered, destroy).await, (1, false));
        assert_eq!(asked(Cut::Unanswered, run).await, (1, false));
        assert_eq!(asked(Cut::Half, list).await, (1, false));
        assert_eq!(asked(Cut::Half, events).await, (1, false));
        // Whether anything was sent depends on a race.
        assert_eq!(asked(Cut::Unread, list).await, (3, true));
        assert_eq!(asked(Cut::Unread, events).await, (3, true));
    }

    #[tokio::test]
    async fn a_server_that_says_nothing_is_a_failure() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sock");
        let listener = UnixListener::bind(&path).unwrap();
        let serve = async {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                stream.read_exact(&mut [0; 64]).await.unwrap();
            }
        };
        let client = Client::new(&format!("unix:{}", path.display())).unwrap();
        let long = "x".repeat(4 << 20);
        let spec = crate::wire::ProcessSpec { args: vec![long.clone()], ..Default::default() };
        let ask = async {
            let run = client.run("h", &spec, Io::default()).await.unwrap_err();
            assert!(matches!(&run, Error::Io(_)), "{run:?}");
            let set = client.set_property("h", "k", &long).await.unwrap_err();
            assert!(matches!(&set, Error::Http(_) | Error::Io(_)), "{set:?}");
        };
        tokio::select! {
            () = serve => {}
            () = ask => {}
        }
    }
}
