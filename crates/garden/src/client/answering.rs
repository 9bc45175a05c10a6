//! A connection on which the server's answer counts for more than a request that could not be sent.

use super::connection::Duplex;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncBufRead, AsyncRead, AsyncWrite, BufReader, ReadBuf};

/// Where the class of a status stands in `HTTP/1.1 200`.
const CLASS: usize = 9;

/// Send a request, unless the server answers before it has taken all of it, or hangs up: what it has said comes first. The
/// failure, for the case that it has said nothing.
pub(crate) async fn send(stream: &mut BufReader<Box<dyn Duplex>>, mut request: &[u8]) -> Option<io::Error> {
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
                Poll::Ready(Ok(n)) => request = &request[n..],
                Poll::Ready(Err(error)) => return Poll::Ready(Some(error)),
                Poll::Pending => break,
            }
        }
        match ready!(Pin::new(&mut *stream).poll_fill_buf(cx)) {
            // It only announces another one (1xx): the request is wanted.
            Ok(answer) if answer.get(CLASS) == Some(&b'1') => Poll::Pending,
            Ok(_) => Poll::Ready(None),
            Err(error) => Poll::Ready(Some(error)),
        }
    })
    .await
}

/// A server may answer, and hang up, before it has taken the whole request: then sending fails, but what it said can still
/// be read. From the first failure on, what is sent is dropped, and the failure is told to who reads if there is nothing
/// more to be read.
#[derive(Debug)]
pub(crate) struct Answering {
    stream: Box<dyn Duplex>,
    failure: Option<io::Error>,
    /// Something was read: that is the answer, and its end is no failure.
    answered: bool,
    deaf: bool,
}

impl Answering {
    pub(crate) fn new(stream: Box<dyn Duplex>) -> Self {
        Self { stream, failure: None, answered: false, deaf: false }
    }

    /// A failure to send that is kept for later.
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

/// Whether the other side has gone.
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
        this.answered |= !ended;
        match this.failure.take_if(|_| ended && !this.answered) {
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

    /// Every way of asking, each with more than a socket holds.
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
                done = tokio::time::timeout(std::time::Duration::from_secs(60), asked) => done.expect("it waits for ever"),
            }
        }
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
