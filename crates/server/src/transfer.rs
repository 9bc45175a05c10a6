//! Tars into and out of containers.

use crate::State;
use crate::reply::{Failure, Reply, done, tar};
use crate::route::query;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::Request;
use hyper::body::Incoming;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::mpsc;
use wardian_engine::{Call, Engine, Transfer};
use wardian_sys::failpoint::{self, Point};

/// A piece of a tar on its way out.
const CHUNK: usize = 256 << 10;
/// Pieces that wait for the client.
const QUEUE: usize = 2;
/// How long, and how much, of a body that nobody wants is still read: a client that is cut off while it sends
/// may never see the answer.
const DRAIN_TIME: Duration = Duration::from_secs(5);
const DRAIN_BYTES: usize = 64 << 20;

fn field<'a>(fields: &'a BTreeMap<String, String>, name: &str) -> &'a str {
    fields.get(name).map_or("", String::as_str)
}

pub(crate) async fn stream_in(
    engine: &Engine,
    handle: &str,
    request: Request<Incoming>,
) -> Result<Reply, Failure> {
    let fields = query(request.uri().query());
    let mut body = request.into_body();
    let result = unpack(engine, handle, &fields, &mut body).await;
    // Nothing is left after a tar that was read to its end.
    if !matches!(result, Err(Failure::Gone)) {
        let _ = tokio::time::timeout(DRAIN_TIME, drain(&mut body)).await;
    }
    result.map(|()| done())
}

/// Ask the engine to wait for a tar.
pub(crate) async fn begin(
    engine: &Engine,
    handle: &str,
    fields: &BTreeMap<String, String>,
) -> Result<Transfer<pipe::Sender>, Failure> {
    Ok(engine.stream_in(handle, field(fields, "user"), field(fields, "destination")).await?)
}

async fn unpack(
    engine: &Engine,
    handle: &str,
    fields: &BTreeMap<String, String>,
    body: &mut Incoming,
) -> Result<(), Failure> {
    let mut transfer = begin(engine, handle, fields).await?;
    if let Some(mut pipe) = transfer.pipe.take() {
        while let Some(frame) = body.frame().await {
            // Without an end the tar must not look finished: the transfer is dropped, that is cancelled, before
            // its pipe.
            let Ok(frame) = frame else {
                drop(transfer);
                drop(pipe);
                return Err(Failure::Gone);
            };
            let Ok(data) = frame.into_data() else { continue };
            // The other end has closed: its reason comes from `finish`.
            if pipe.write_all(&data).await.is_err() {
                break;
            }
            failpoint::reach(Point::StreamInMiddle);
        }
    }
    failpoint::reach(Point::StreamInFinishing);
    Ok(transfer.finish().await?)
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
    fields: &BTreeMap<String, String>,
    call: Option<Call>,
) -> Result<Reply, Failure> {
    let engine = &state.engine;
    let mut transfer = engine.stream_out(handle, field(fields, "user"), field(fields, "source")).await?;
    let pipe = transfer.pipe.take();
    let (send, receive) = mpsc::channel(QUEUE);
    let Some(mut pipe) = pipe else {
        transfer.finish().await?;
        return Ok(tar(receive, call));
    };
    // Until the first byte there is still time for a proper error.
    let first = chunk(&mut pipe).await.map_err(|error| wardian_engine::Error::failed("stream-out", error))?;
    if first.is_empty() {
        transfer.finish().await?;
        return Ok(tar(receive, call));
    }
    let (work, handle) = (state.working(), handle.to_owned());
    tokio::spawn(async move {
        forward(transfer, pipe, first, send, &handle).await;
        drop(work);
    });
    Ok(tar(receive, call))
}

/// Pass the tar on. A client that goes cancels it.
async fn forward(
    transfer: Transfer<pipe::Receiver>,
    mut pipe: pipe::Receiver,
    first: Bytes,
    send: mpsc::Sender<std::io::Result<Bytes>>,
    handle: &str,
) {
    let mut next: std::io::Result<Bytes> = Ok(first);
    let failed = loop {
        match next {
            Ok(piece) if piece.is_empty() => {
                failpoint::reach(Point::StreamOutFinishing);
                break transfer.finish().await.err().map(|error| error.to_string());
            }
            Ok(piece) => {
                if send.send(Ok(piece)).await.is_err() {
                    return;
                }
                failpoint::reach(Point::StreamOutMiddle);
            }
            Err(error) => break Some(error.to_string()),
        }
        next = chunk(&mut pipe).await;
    };
    if let Some(error) = failed {
        tracing::error!(handle, error, "stream-out failed on the way");
        let _ = send.send(Err(std::io::Error::other(error))).await;
    }
}

/// Empty at the end.
async fn chunk(pipe: &mut pipe::Receiver) -> std::io::Result<Bytes> {
    let mut buffer = BytesMut::with_capacity(CHUNK);
    pipe.read_buf(&mut buffer).await?;
    Ok(buffer.freeze())
}
