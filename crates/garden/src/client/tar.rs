//! Tars in the client: bodies of requests and of replies.

use bytes::{Buf, Bytes, BytesMut};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::HeaderMap;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, ReadBuf};

/// The most bytes of a piece of a tar.
const CHUNK: usize = 256 << 10;

/// A reader as the body of a request.
pub(super) struct ReaderBody<R> {
    pub(super) reader: R,
    pub(super) left: Option<u64>,
    pub(super) ended: bool,
}

impl<R: AsyncRead + Unpin> Body for ReaderBody<R> {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<std::io::Result<Frame<Bytes>>>> {
        if self.is_end_stream() {
            return Poll::Ready(None);
        }
        let size = self.left.map_or(CHUNK, |left| usize::try_from(left).unwrap_or(CHUNK).min(CHUNK));
        let mut chunk = BytesMut::zeroed(size);
        let mut buffer = ReadBuf::new(&mut chunk);
        if let Err(error) = ready!(Pin::new(&mut self.reader).poll_read(cx, &mut buffer)) {
            return Poll::Ready(Some(Err(error)));
        }
        let n = buffer.filled().len();
        if n == 0 {
            self.ended = true;
            return Poll::Ready(self.left.map(|_| Err(std::io::ErrorKind::UnexpectedEof.into())));
        }
        self.left = self.left.map(|left| left - n as u64);
        chunk.truncate(n);
        Poll::Ready(Some(Ok(Frame::data(chunk.freeze()))))
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.left == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// The header by which a client of stream-out asks for the reason of an incomplete tar, and the trailer that
/// carries the reason: a JSON string.
pub const TAR_FAILURE: &str = "wardian-failure";

/// The most bytes of a reason that are shown.
const MAX_FAILURE: usize = 8 << 10;

/// Why the container's side of a stream-out has failed. All that it had written has been read before.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct TarFailure(pub String);

impl TarFailure {
    /// Reads the reason from trailers.
    #[must_use]
    pub fn of(trailers: &HeaderMap) -> Option<Self> {
        let value = trailers.get(TAR_FAILURE)?;
        let mut why: String = serde_json::from_slice(value.as_bytes()).unwrap_or_default();
        if why.is_empty() {
            "the server does not say why".clone_into(&mut why);
        }
        while why.len() > MAX_FAILURE {
            why.pop();
        }
        Some(Self(why))
    }
}

/// Reads a tar from [`Client::stream_out`](crate::Client::stream_out). An incomplete tar ends with an error.
#[derive(Debug)]
pub struct TarReader {
    pub(super) body: Incoming,
    pub(super) chunk: Bytes,
}

impl AsyncRead for TarReader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        to: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        while self.chunk.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                None => return Poll::Ready(Ok(())),
                Some(Err(error)) => return Poll::Ready(Err(std::io::Error::other(error))),
                Some(Ok(frame)) => {
                    if let Some(failure) = frame.trailers_ref().and_then(TarFailure::of) {
                        return Poll::Ready(Err(std::io::Error::other(failure)));
                    }
                    self.chunk = frame.into_data().unwrap_or_default();
                }
            }
        }
        let n = self.chunk.len().min(to.remaining());
        to.put_slice(&self.chunk[..n]);
        self.chunk.advance(n);
        Poll::Ready(Ok(()))
    }
}
