//! One connection: HTTP until a handler takes the connection over.
//!
//! Garden replies to run and attach with 201 or 200, and then leaves HTTP. hyper gives a connection up only
//! after a 101, so it is taken over from outside: the handler tells the loop below which request has been
//! accepted, and never answers hyper; the loop takes hyper apart ([`http1::Connection::into_parts`]), which
//! gives back the socket *and* the bytes that hyper has read ahead, and continues with those.

use crate::cut::Cut;
use crate::door::Place;
use crate::host;
use crate::reply::{Reply, ReplyBody, text};
use crate::socket::Arrival;
use crate::state::State;
use crate::taken::Taken;
use crate::{attach, handler, page};
use bytes::Bytes;
use http_body_util::Either;
use hyper::Request;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tracing::Instrument as _;

/// How long the TLS handshake may take.
pub(crate) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// The least time between two failed handshakes that are logged at the level info.
const TELL: Duration = Duration::from_secs(1);
/// The most bytes of hyper's read buffer, and so of a request's head: the buffer keeps the capacity of the longest read
/// as long as the connection lasts.
const BUFFER: usize = 64 << 10;
/// How long an evicted connection may take to finish its answer.
pub(crate) const LAST_WORDS: Duration = Duration::from_secs(1);

/// The body of a reply. While it is being made the connection counts as working; after its end the connection
/// waits for the next request.
struct Made {
    body: ReplyBody,
    place: Option<Arc<Place>>,
}

impl Drop for Made {
    fn drop(&mut self) {
        if let Some(place) = &self.place {
            place.set_replies(true);
            place.rests();
        }
    }
}

impl Body for Made {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;
    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }
    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Answers one request.
async fn answer(
    mut request: Request<Incoming>,
    state: Arc<State>,
    hosts: Option<Arc<host::Hosts>>,
    cut: Cut,
    take: mpsc::Sender<handler::Taking>,
    place: Arc<Place>,
) -> io::Result<hyper::Response<Made>> {
    let page = state.page.clone().filter(|_| page::is_meant(request.uri().path()));
    let refusal = match page {
        // It looks at where a request is from by itself, because browsers are its clients.
        Some(_) => None,
        None => host::refusal(request.headers(), request.uri(), hosts.as_deref()),
    };
    let works = place.works(|| refusal.is_none() && handler::fetches(&state, &request));
    let works = tokio::select! {
        biased;
        works = handler::looking(&cut.look, works) => works,
        () = state.stopping() => false,
    };
    if !works {
        tracing::debug!("a connection is closed: there is no place for its request");
        return Err(io::ErrorKind::ConnectionAborted.into());
    }
    let reply: Reply = match (refusal, page) {
        (Some((status, why)), _) => text(status, why),
        (None, Some(page)) => page::reply(&state, &page, request, hosts.as_deref()).await,
        (None, None) => {
            request.extensions_mut().insert(cut);
            request.extensions_mut().insert(place.clone());
            handler::handle(state, request, take).await?
        }
    };
    // While a body is being made the connection is not evicted, unless its client takes nothing.
    let known = matches!(reply.body(), Either::Left(_));
    place.set_replies(known);
    if known {
        place.rests();
    }
    Ok(reply.map(|body| Made { body, place: (!known).then_some(place) }))
}

/// Whether a failed handshake is logged at the level info: one per [`TELL`] is, because any host that reaches
/// the port can cause as many as it likes.
fn is_handshake_told() -> bool {
    static TOLD: Mutex<Option<Instant>> = Mutex::new(None);
    let mut told = TOLD.lock();
    let now = Instant::now();
    let is_due = told.is_none_or(|told| now.duration_since(told) >= TELL);
    if is_due {
        *told = Some(now);
    }
    is_due
}

pub(crate) async fn serve(arrival: Arrival, state: Arc<State>, place: Arc<Place>) {
    let hosts = arrival.hosts.clone();
    let opened = tokio::select! {
        opened = tokio::time::timeout(HANDSHAKE_TIMEOUT, arrival.open(place.clone())) => opened,
        () = place.evicted() => return,
        () = state.stopping() => return,
    };
    let stream = match opened {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            if is_handshake_told() {
                tracing::info!(%error, "server.TLS-handshake-failed");
            } else {
                tracing::debug!(%error, "server.TLS-handshake-failed");
            }
            return;
        }
        Err(_) => return,
    };
    let (take, mut taken) = mpsc::channel::<handler::Taking>(1);
    let cut = Cut { local: place.is_local(), look: stream.look(), ..Cut::default() };
    let service = service_fn(|request: Request<Incoming>| {
        let (state, hosts, cut, take, place) =
            (state.clone(), hosts.clone(), cut.clone(), take.clone(), place.clone());
        Box::pin(answer(request, state, hosts, cut, take, place))
    });
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(state.head_timeout)
        .max_buf_size(BUFFER)
        // A client may shut its side down after the request, and still wants the answer.
        .half_close(true)
        // As Go writes header names.
        .title_case_headers(true)
        .serve_connection(TokioIo::new(stream), service);
    let mut stopping = false;
    let mut until = None;
    let taking = loop {
        tokio::select! {
            biased;
            Some(taking) = taken.recv() => break taking,
            () = cut.told.notified() => return,
            () = place.evicted(), if until.is_none() => {
                tracing::debug!("an idle connection is closed: its place is needed");
                // Only after an answer the connection is shut down gracefully: the answer may still be on its
                // way.
                if !place.replies() {
                    return;
                }
                until = Some(Instant::now() + LAST_WORDS);
                Pin::new(&mut connection).graceful_shutdown();
            }
            () = sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => return,
            () = state.stopping(), if !stopping => {
                stopping = true;
                Pin::new(&mut connection).graceful_shutdown();
            }
            ended = poll_fn(|cx| connection.poll_without_shutdown(cx)) => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "connection");
                    return;
                }
                let mut parts = connection.into_parts();
                let _ = tokio::io::AsyncWriteExt::shutdown(parts.io.inner_mut()).await;
                return;
            }
        }
    };
    let parts = connection.into_parts();
    place.set_replies(false);
    // The early bytes are copied: hyper's read buffer has the capacity of the longest read.
    let taken = Taken { stream: parts.io.into_inner(), early: Bytes::copy_from_slice(&parts.read_buf) };
    drop(parts.read_buf);
    let mut run = pin!(attach::run(&state, taken, taking.accepted).instrument(taking.span));
    tokio::select! {
        () = &mut run => {}
        () = place.evicted() => {
            tracing::debug!("a connection whose client does nothing is closed: its place is needed");
            // The connection's reads and writes fail from here on, as if the client had disconnected.
            place.cut();
            run.await;
        }
    }
    drop(taking.call);
}
