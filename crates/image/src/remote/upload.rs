//! Sending documents and blobs to a registry.

use std::io::{self, Read};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use reqwest::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap,
};
use reqwest::{Body, Method, Response, StatusCode};
use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::client::{Client, Waited};
use super::location::Location;
use super::request::{Refused, Sent};
use super::try_again::{Failure, Tries, failed};
use crate::bounds::stop::Stop;
use crate::error::Error;
use crate::format::stream::stream_error;

/// The size of a piece that is read and sent at once, in bytes, and how many of them wait.
const PIECE: usize = 64 << 10;
const WAITING: usize = 4;
/// The media type of a blob that is uploaded (OCI distribution spec, "Pushing blobs").
const BLOB: &str = "application/octet-stream";
/// How many times longer than for another answer a registry is waited for that stores what it has received.
const STORING: u32 = 10;

/// A request with a short body, which can be sent again.
#[derive(Debug)]
pub(crate) struct Put<'r> {
    pub(crate) method: Method,
    pub(crate) location: &'r Location,
    /// The media type of the body; `None` if it is empty.
    pub(crate) media_type: Option<&'r str>,
    pub(crate) body: Bytes,
}

/// A part of a blob that is sent while it is read.
pub(crate) struct Rest<'r> {
    pub(crate) location: &'r Location,
    /// What it is a part of, for errors.
    pub(crate) what: &'r str,
    /// The offset of its first byte in the blob, and its length.
    pub(crate) from: u64,
    pub(crate) length: u64,
    /// Its bytes; errors may hold an [`Error`].
    pub(crate) reader: Box<dyn Read + Send + 'r>,
    /// Ends the reader, which may be waiting for another server, once nobody takes its bytes.
    pub(crate) reading: &'r Stop<'r>,
    /// Counts the bytes sent.
    pub(crate) sent: &'r AtomicU64,
}

/// The outcome of sending a part of a blob.
pub(crate) enum Streamed {
    Done(HeaderMap),
    /// The registry has asked for other credentials, and has them now. How much it has taken is not known.
    Renewed,
}

/// What the sending of a body has come to.
#[derive(Debug, Default)]
struct Flow {
    /// Pieces taken by the connection.
    taken: AtomicU64,
    /// Whether the connection waits for the reader.
    starves: AtomicBool,
    /// Whether it has taken all, so that the registry stores it.
    whole: AtomicBool,
}

impl Flow {
    /// Returns once nothing was taken for `patience` although there was something, or all was taken and the registry was
    /// waited for so much longer as it may need to store it.
    async fn stalls(&self, patience: Duration) {
        let (mut before, mut waits) = (u64::MAX, 0);
        while waits < if self.whole.load(Ordering::Relaxed) { STORING } else { 1 } {
            tokio::time::sleep(patience).await;
            let taken = self.taken.load(Ordering::Relaxed);
            waits = match taken == before && !self.starves.load(Ordering::Relaxed) {
                true => waits + 1,
                false => 0,
            };
            before = taken;
        }
    }
}

/// The body of a request, whose pieces come from another thread.
struct Outgoing {
    pieces: Receiver<Bytes>,
    left: u64,
    flow: Arc<Flow>,
}

impl http_body::Body for Outgoing {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let piece = self.pieces.poll_recv(context);
        self.flow.starves.store(piece.is_pending(), Ordering::Relaxed);
        match piece {
            Poll::Pending => Poll::Pending,
            // The reader has failed, and its error is reported.
            Poll::Ready(None) => Poll::Ready(Some(Err(io::ErrorKind::UnexpectedEof.into()))),
            Poll::Ready(Some(piece)) => {
                self.left = self.left.saturating_sub(piece.len() as u64);
                self.flow.whole.store(self.left == 0, Ordering::Relaxed);
                self.flow.taken.fetch_add(1, Ordering::Relaxed);
                Poll::Ready(Some(Ok(Frame::data(piece))))
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

/// Reads what is to be sent, until nobody takes it any more.
fn feed(rest: &mut Rest<'_>, client: &Client, pieces: &Sender<Bytes>) -> Result<(), Error> {
    let mut left = rest.length;
    while left > 0 {
        let mut piece = vec![0; PIECE.min(usize::try_from(left).unwrap_or(PIECE))];
        let n = match rest.reader.read(&mut piece) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            n => n.map_err(|e| stream_error(rest.what, e))?,
        };
        if n == 0 {
            let (expected, actual) = (rest.from + rest.length, rest.from + rest.length - left);
            return Err(Error::SizeMismatch { what: rest.what.to_owned(), expected, actual });
        }
        piece.truncate(n);
        left -= n as u64;
        // A connection that is stuck may keep the other end of the channel after its request was dropped.
        match client.wait(rest.reading, Duration::MAX, pieces.send(piece.into())) {
            Waited::Done(Ok(())) => {}
            Waited::Done(Err(_)) | Waited::Stopped | Waited::TooLong => return Ok(()),
        }
        rest.sent.fetch_add(n as u64, Ordering::Relaxed);
    }
    Ok(())
}

impl Tries<'_> {
    /// Sends a request with a short body, and receives the head of its response, which is a success. It is not
    /// redirected: a body is not for another server than the one that was named.
    pub(crate) fn put(&self, put: &Put<'_>) -> Result<(StatusCode, HeaderMap), Failure> {
        let mut renewed = false;
        loop {
            let headers = self.credentials(put.location)?;
            let sent = headers.get(AUTHORIZATION).cloned();
            let client = self.client(put.location)?;
            let mut request = client
                .http
                .request(put.method.clone(), put.location.url().clone())
                .headers(headers)
                .header(ACCEPT_ENCODING, "identity")
                .header(CONTENT_LENGTH, put.body.len())
                .body(put.body.clone());
            if let Some(media_type) = put.media_type {
                request = request.header(CONTENT_TYPE, media_type);
            }
            let patience = self.remote.settings().patience.saturating_mul(STORING);
            let limit = self.limit(put.location)?.saturating_add(patience).min(self.left(put.location)?);
            let waited = client.wait(self.stop, limit, request.send());
            let (client, response) = self.received(
                Sent { client, location: put.location, at: put.location, forgets: true },
                waited,
                limit,
            )?;
            if response.status().is_success() {
                return Ok((response.status(), response.headers().clone()));
            }
            let request = Refused { location: put.location, sent, renewed, head: false, strayed: false };
            self.refused(&request, &client, response)?;
            renewed = true;
        }
    }

    /// Sends a part of a blob (OCI distribution spec, "Pushing a blob in chunks"). `renewed` says that the registry has
    /// just got other credentials.
    pub(crate) fn stream(&self, mut rest: Rest<'_>, renewed: bool) -> Result<Streamed, Failure> {
        let location = rest.location;
        let headers = self.credentials(location)?;
        let sent = headers.get(AUTHORIZATION).cloned();
        let client = self.client(location)?;
        let (pieces, taken) = channel(WAITING);
        let flow = Arc::new(Flow::default());
        let body = Outgoing { pieces: taken, left: rest.length, flow: Arc::clone(&flow) };
        let mut request = client
            .http
            .patch(location.url().clone())
            .headers(headers)
            .header(ACCEPT_ENCODING, "identity")
            .header(CONTENT_TYPE, BLOB)
            .header(CONTENT_LENGTH, rest.length)
            .body(Body::wrap(body));
        // Some registries know an upload in one piece alone, without this header, and that is the usual case.
        if rest.from > 0 {
            let last = rest.from + rest.length - 1;
            request = request.header(CONTENT_RANGE, format!("{}-{last}", rest.from));
        }
        let (limit, reading) = (self.left(location)?, rest.reading);
        let patience = self.remote.settings().patience;
        let what = rest.what.to_owned();
        let feeding = &*client;
        let (waited, fed) = thread::scope(|scope| {
            let builder = thread::Builder::new().name("layer-send".into());
            let feeder = builder
                .spawn_scoped(scope, move || feed(&mut rest, feeding, &pieces))
                .map_err(|e| Error::Thread { what: what.clone(), why: e.to_string() })?;
            let waited = client.wait_for_flow(self.stop, limit, flow.stalls(patience), request.send());
            reading.give_up();
            let fed = feeder.join().map_err(|_| Error::Thread { what, why: "it panicked".into() })?;
            Ok::<_, Error>((waited, fed))
        })?;
        if matches!(waited, Waited::TooLong | Waited::Stopped) {
            // Its connection would go on with what it has.
            self.remote.forget(&client);
        }
        let whole = flow.whole.load(Ordering::Relaxed);
        let response = match waited {
            Waited::TooLong if !whole => {
                let why = format!("the server hangs: it took nothing more in {patience:?}");
                Err(Failure::Again { error: failed(location, why), pause: None })
            }
            waited => {
                let sent = Sent { client, location, at: location, forgets: true };
                self.received(sent, waited, patience.saturating_mul(STORING))
            }
        };
        let answered = response.as_ref().is_ok_and(|(_, response): &(_, Response)| {
            response.status().is_success() || response.status().is_client_error()
        });
        // Whatever has become of the request, its reader's error is the cause, unless it was told to end.
        if let Err(error) = fed
            && !answered
            && !self.stop.is_set()
            && !matches!(error, Error::Cancelled { .. })
        {
            return Err(Failure::Final(error));
        }
        let (client, response) = response?;
        if response.status().is_success() {
            return Ok(Streamed::Done(response.headers().clone()));
        }
        self.refused(&Refused { location, sent, renewed, head: false, strayed: false }, &client, response)?;
        Ok(Streamed::Renewed)
    }
}
