//! Transfers of tars into and out of containers, through HTTP bodies.

use crate::cut::Cut;
use crate::door::{Place, owed};
use crate::failpoints::Point;
use crate::patience::{Patience, Stall, Stalled};
use crate::reply::{Failure, Piece, Reply, done, tar, tar_failure};
use crate::room::Held;
use crate::route::query;
use crate::state::State;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::{HeaderName, HeaderValue, TE, TRAILER};
use hyper::{Request, Version};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::mpsc;
use wardian_engine::{Call, Engine, Transfer};
use wardian_garden::TAR_FAILURE;
use wardian_sys::failpoint;

/// The most bytes of a piece of a tar on its way out.
const CHUNK: usize = 64 << 10;
/// The most pieces that are queued for the client.
const QUEUE: usize = 2;
/// How long, and how many bytes of, an unwanted rest of a body is still read: a client whose connection is
/// closed while it sends may never see the answer.
const DRAIN_TIME: Duration = Duration::from_secs(5);
const DRAIN_BYTES: usize = 64 << 20;
const FAILURE: HeaderName = HeaderName::from_static(TAR_FAILURE);

fn field<'a>(fields: &'a BTreeMap<String, String>, name: &str) -> &'a str {
    fields.get(name).map_or("", String::as_str)
}

pub(crate) async fn stream_in(
    state: &State,
    handle: &str,
    request: Request<Incoming>,
) -> Result<Reply, Failure> {
    let fields = query(request.uri().query());
    let place = request.extensions().get::<Arc<Place>>().cloned();
    let mut body = request.into_body();
    let result = unpack(state, handle, &fields, &mut body, place.as_ref()).await;
    // A tar that was read to its end leaves nothing to drain.
    if !matches!(result, Err(Failure::Gone)) {
        let _ = tokio::time::timeout(DRAIN_TIME, owed(place.as_ref(), drain(&mut body))).await;
    }
    result.map(|()| done())
}

/// Begins a transfer of a tar into a container.
pub(crate) async fn begin(
    engine: &Engine,
    handle: &str,
    fields: &BTreeMap<String, String>,
) -> Result<Transfer<pipe::Sender>, Failure> {
    Ok(engine.stream_in(handle, field(fields, "user"), field(fields, "destination")).await?)
}

/// Returns the failure for a client's tar that stood still. Clients look for the first words.
pub(crate) fn stuck(stalled: &Stalled) -> Failure {
    Failure::Refused(format!("stream-in: error streaming in: {stalled}"))
}

/// Writes a piece of a client's tar into the container. The inner error means that the container's side has
/// closed the pipe; `finish` tells why.
pub(crate) async fn put(
    pipe: &mut pipe::Sender,
    mut data: &[u8],
    patience: Patience,
) -> Result<std::io::Result<()>, Stalled> {
    while !data.is_empty() {
        match patience.wait(Stall::ContainerTakes, pipe.write(data)).await? {
            Ok(n) => data = &data[n..],
            Err(error) => return Ok(Err(error)),
        }
    }
    Ok(Ok(()))
}

async fn unpack(
    state: &State,
    handle: &str,
    fields: &BTreeMap<String, String>,
    body: &mut Incoming,
    place: Option<&Arc<Place>>,
) -> Result<(), Failure> {
    let mut transfer = begin(&state.engine, handle, fields).await?;
    if let Some(mut pipe) = transfer.pipe.take()
        && let Err(failure) = pass_in(body, &mut pipe, state.patience, place).await
    {
        // The transfer is dropped, and so cancelled, before its pipe: an incomplete tar must not look
        // finished to the container's side.
        drop(transfer);
        drop(pipe);
        return Err(failure);
    }
    failpoint::reach(Point::StreamInFinishing);
    let finished = state.patience.wait(Stall::ContainerEnds, transfer.finish()).await;
    Ok(finished.map_err(|stalled| stuck(&stalled))??)
}

/// Copies the body until its end, or until the container's side closes the pipe.
async fn pass_in(
    body: &mut Incoming,
    pipe: &mut pipe::Sender,
    patience: Patience,
    place: Option<&Arc<Place>>,
) -> Result<(), Failure> {
    loop {
        let frame = patience.wait(Stall::ClientSends, owed(place, body.frame())).await;
        let frame = frame.map_err(|stalled| stuck(&stalled))?;
        let Some(frame) = frame else { return Ok(()) };
        let Ok(data) = frame.map_err(|_| Failure::Gone)?.into_data() else { continue };
        if put(pipe, &data, patience).await.map_err(|stalled| stuck(&stalled))?.is_err() {
            return Ok(());
        }
        failpoint::reach(Point::StreamInMiddle);
    }
}

async fn drain(body: &mut Incoming) {
    let mut left = DRAIN_BYTES;
    while let Some(Ok(frame)) = body.frame().await {
        left = match left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) {
            Some(left) => left,
            None => return,
        };
    }
}

pub(crate) async fn stream_out(
    state: &Arc<State>,
    handle: &str,
    request: &Request<Incoming>,
    call: Option<Call>,
) -> Result<Reply, Failure> {
    let fields = query(request.uri().query());
    let (engine, patience) = (&state.engine, state.patience);
    let cut = request.extensions().get::<Cut>().cloned().unwrap_or_default();
    let room = state.rooms(cut.local).tar(cut.clone()).await?;
    let tell = is_told(request);
    let mut transfer = engine.stream_out(handle, field(&fields, "user"), field(&fields, "source")).await?;
    let pipe = transfer.pipe.take();
    let (send, receive) = mpsc::channel(QUEUE);
    // Before the first byte an error can still be a proper reply.
    let first = match pipe {
        Some(mut pipe) => {
            let first = patience.wait(Stall::ContainerSends, chunk(&mut pipe)).await;
            let failed = wardian_engine::Error::system("stream-out");
            let first = first.map_err(|stalled| broken(&stalled))?.map_err(failed)?;
            (!first.is_empty()).then_some((first, pipe))
        }
        None => None,
    };
    let Some((first, pipe)) = first else {
        let finished = patience.wait(Stall::ContainerEnds, transfer.finish()).await;
        finished.map_err(|stalled| broken(&stalled))??;
        drop(send.try_send(Piece::End));
        return Ok(tar(receive, call));
    };
    let (work, handle) = (state.working(), handle.to_owned());
    tokio::spawn(async move {
        if let Err(error) = forward(transfer, pipe, first, &send, patience, room).await {
            if error.is_the_clients() {
                tracing::info!(handle, %error, "server.stream-out-failed-on-the-way");
            } else {
                tracing::error!(handle, %error, "server.stream-out-failed-on-the-way");
            }
            // The body is broken off without its end. A client that takes nothing cannot be told why.
            let deaf = matches!(error, Broken::Stalled(Stalled { stall: Stall::ClientTakes, .. }));
            if tell && !deaf {
                let told = send.send(Piece::Failed(tar_failure(&error.to_string())));
                if matches!(patience.wait(Stall::ClientTakes, told).await, Ok(Ok(()))) {
                    // Earlier pieces may still be queued for the client.
                    drop(patience.wait(Stall::ClientTakes, send.closed()).await);
                    return;
                }
            }
            drop((send, work));
            if !deaf && let Some(time) = patience.0 {
                tokio::time::sleep(time).await;
            }
            cut.cut();
        }
    });
    let mut reply = tar(receive, call);
    if tell {
        reply.headers_mut().insert(TRAILER, HeaderValue::from_static(TAR_FAILURE));
    }
    Ok(reply)
}

/// Whether the client asks for a trailer that tells why a tar is incomplete. For other clients the body is
/// broken off, which every client notices; a part of what was sent last may then be lost.
fn is_told(request: &Request<Incoming>) -> bool {
    let headers = request.headers();
    // Without TE, or in HTTP/1.0, the trailer would be dropped, and the body would look complete.
    headers.contains_key(FAILURE)
        && headers.get(TE).is_some_and(|te| te == "trailers")
        && request.version() == Version::HTTP_11
}

/// Returns the failure for a tar on its way out that stood still before its first byte.
fn broken(stalled: &Stalled) -> Failure {
    Failure::Refused(format!("stream-out: {stalled}"))
}

/// Why a tar on its way out is incomplete.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("stream-out: {0}")]
    Stalled(#[from] Stalled),
    #[error(transparent)]
    Engine(#[from] wardian_engine::Error),
    #[error("stream-out: {0}")]
    Io(#[from] std::io::Error),
}

impl Broken {
    /// Whether the client or its container stood still, or its container failed: the operator has nothing to do.
    fn is_the_clients(&self) -> bool {
        match self {
            Self::Stalled(_) => true,
            Self::Engine(error) => error.is_the_clients(),
            Self::Io(_) => false,
        }
    }
}

/// Copies the tar to the client. It is cancelled if the client disconnects.
async fn forward(
    transfer: Transfer<pipe::Receiver>,
    mut pipe: pipe::Receiver,
    mut piece: Bytes,
    send: &mpsc::Sender<Piece>,
    patience: Patience,
    room: Held,
) -> Result<(), Broken> {
    while !piece.is_empty() {
        let sent = room.while_idle(send.send(Piece::Data(piece)));
        if patience.wait(Stall::ClientTakes, sent).await?.is_err() {
            return Ok(());
        }
        failpoint::reach(Point::StreamOutMiddle);
        piece = patience.wait(Stall::ContainerSends, chunk(&mut pipe)).await??;
    }
    failpoint::reach(Point::StreamOutFinishing);
    patience.wait(Stall::ContainerEnds, transfer.finish()).await??;
    // Earlier pieces may still be queued for the client.
    if patience.wait(Stall::ClientTakes, send.send(Piece::End)).await?.is_ok() {
        patience.wait(Stall::ClientTakes, send.closed()).await?;
    }
    Ok(())
}

/// Reads the next piece; empty at the end.
async fn chunk(pipe: &mut pipe::Receiver) -> std::io::Result<Bytes> {
    let mut buffer = BytesMut::with_capacity(CHUNK);
    pipe.read_buf(&mut buffer).await?;
    Ok(buffer.freeze())
}
