//! One connection: HTTP until a handler takes it over.
//!
//! Garden replies to run and attach with 201 or 200 and then leaves HTTP. hyper lets go of a connection only
//! after a 101, so the takeover is done from outside: the handler tells the loop below which request has been
//! accepted and never answers hyper; the loop takes hyper apart ([`http1::Connection::into_parts`]), which
//! gives back the socket *and* the bytes that hyper has read ahead, and goes on with them alone.

use crate::door::Place;
use crate::{State, Stream, attach, handler};
use bytes::Bytes;
use http_body_util::Either;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep_until};
use tracing::Instrument as _;

/// How long a connection that has to go may take for what it was saying.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Ends a connection whose client does not take the body that it has asked for: an extension of its requests.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cut(Arc<Notify>);

impl Cut {
    /// What was not sent yet is lost, and with it the body's end.
    pub(crate) fn cut(&self) {
        self.0.notify_one();
    }
}

/// A connection that has left HTTP.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) stream: Stream,
    /// What the client sent early.
    pub(crate) early: Bytes,
}

pub(crate) async fn serve(stream: Stream, state: Arc<State>, place: Arc<Place>) {
    let (take, mut taken) = mpsc::channel::<handler::Taking>(1);
    let cut = Cut::default();
    let service = service_fn(|mut request: Request<Incoming>| {
        request.extensions_mut().insert(cut.clone());
        let (state, take, place) = (state.clone(), take.clone(), place.clone());
        Box::pin(async move {
            if !place.works() {
                return Err(std::io::ErrorKind::ConnectionAborted.into());
            }
            let reply = handler::handle(state, request, take).await?;
            // A body that is still being made is work; such a connection is not asked to go any more.
            if matches!(reply.body(), Either::Left(_)) {
                place.rests();
            }
            Ok::<_, std::io::Error>(reply)
        })
    });
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(state.head_timeout)
        // A client may close its side when it has said all, and still wants the answer.
        .half_close(true)
        // As Go writes them.
        .title_case_headers(true)
        .serve_connection(TokioIo::new(stream), service);
    let mut stopping = false;
    let mut until = None;
    let taking = loop {
        tokio::select! {
            biased;
            Some(taking) = taken.recv() => break taking,
            () = cut.0.notified() => return,
            () = place.evicted(), if until.is_none() => {
                tracing::debug!("an idle connection is closed: its place is needed");
                if !place.served() {
                    return;
                }
                // Its last answer may still be on its way.
                until = Some(Instant::now() + LAST_WORDS);
                std::pin::Pin::new(&mut connection).graceful_shutdown();
            }
            () = sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => return,
            () = state.stopping(), if !stopping => {
                stopping = true;
                std::pin::Pin::new(&mut connection).graceful_shutdown();
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
    let taken = Taken { stream: parts.io.into_inner(), early: parts.read_buf };
    attach::run(&state, taken, taking.accepted).instrument(taking.span).await;
    drop(taking.call);
}
