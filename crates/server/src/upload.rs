//! A tar of known length on its way in: from the socket to the container's pipe without passing through us.
//!
//! Bytes that hyper has read already are written; the rest is spliced (`splice(2)`), so that the only copy is
//! the one into the page cache, made inside the container and paid by it.

use crate::State;
use crate::connection::Taken;
use crate::listen::Stream;
use crate::reply::{Failure, date};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::SpliceFlags;
use std::future::poll_fn;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use wardian_engine::Transfer;
use wardian_garden::{ErrorBody, encode};
use wardian_sys::failpoint::{self, Point};

/// A tar that the engine waits for.
pub(crate) struct Upload {
    pub(crate) handle: String,
    pub(crate) transfer: Transfer<pipe::Sender>,
    /// What hyper may have begun to read.
    pub(crate) body: Incoming,
    pub(crate) length: u64,
}

/// Bytes asked of one splice: what the pipe holds.
const CHUNK: usize = 1 << 20;
/// How often a waiting splice looks whether it is still wanted.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
/// How long, and how much, of a body that nobody wants is still read: a client that is cut off while it sends
/// may never see the answer.
const DRAIN_TIME: Duration = Duration::from_secs(5);
const DRAIN_BYTES: u64 = 64 << 20;

/// How a copy ended.
enum End {
    Whole,
    /// The client has left, or we have to.
    Gone,
    /// The container's side wants no more; so much of the body is left.
    Refused(u64),
}

pub(crate) async fn run(state: &Arc<State>, taken: Taken, upload: Upload) {
    let work = state.working();
    let Taken { stream, early } = taken;
    let Upload { handle, mut transfer, mut body, length } = upload;
    let Some(mut pipe) = transfer.pipe.take() else { return };
    let mut ready = Vec::new();
    // hyper has stopped: what it had passed on is there now or never comes.
    while let Some(frame) = poll_fn(|cx| match pin!(body.frame()).poll(cx) {
        Poll::Ready(Some(Ok(frame))) => Poll::Ready(Some(frame)),
        _ => Poll::Ready(None),
    })
    .await
    {
        ready.extend(frame.into_data().ok());
    }
    ready.push(early);
    let mut left = length;
    let mut refused = false;
    for piece in ready {
        let piece = piece.slice(..piece.len().min(usize::try_from(left).unwrap_or(usize::MAX)));
        left -= piece.len() as u64;
        refused = refused || pipe.write_all(&piece).await.is_err();
    }
    if left < length {
        failpoint::reach(Point::StreamInMiddle);
    }
    let stop = Arc::new(AtomicBool::new(false));
    let (Ok(socket), Ok(pipe)) = (stream.as_fd().try_clone_to_owned(), pipe.into_nonblocking_fd()) else {
        return;
    };
    let copy = {
        let theirs = stop.clone();
        let task = tokio::task::spawn_blocking(move || {
            let end = if refused { End::Refused(left) } else { splice(&socket, &pipe, left, &theirs) };
            (end, pipe)
        });
        tokio::select! {
            ended = task => ended,
            () = async { state.stopping().await; stop.store(true, Ordering::Relaxed); std::future::pending().await } => return,
        }
    };
    let Ok((end, pipe)) = copy else { return };
    let left = match end {
        // Without an end the tar must not look finished: the transfer is cancelled before its pipe is closed.
        End::Gone => {
            drop(transfer);
            drop(pipe);
            tracing::info!(handle, "the client has gone in the middle of its tar");
            return;
        }
        End::Whole => 0,
        End::Refused(left) => left,
    };
    failpoint::reach(Point::StreamInFinishing);
    drop(pipe);
    let result = transfer.finish().await;
    answer(stream, &handle, left, result.map_err(Failure::Engine)).await;
    drop(work);
}

async fn answer(mut stream: Stream, handle: &str, mut left: u64, result: Result<(), Failure>) {
    let drain = async {
        let mut buffer = vec![0; 64 << 10];
        while left > 0 && left <= DRAIN_BYTES {
            match stream.read(&mut buffer).await {
                Ok(n) if n > 0 => left = left.saturating_sub(n as u64),
                _ => return,
            }
        }
    };
    // A client that sends slowly is cut off.
    drop(tokio::time::timeout(DRAIN_TIME, drain).await);
    let (status, body): (&str, Bytes) = match result {
        Ok(()) => ("200 OK", Bytes::from_static(b"{}\n")),
        Err(failure) => {
            let body: ErrorBody = failure.body();
            tracing::error!(handle, route = "StreamIn", error = body.message, "request failed");
            let missing = body.kind() == wardian_garden::ErrorKind::ContainerNotFound;
            (if missing { "404 Not Found" } else { "500 Internal Server Error" }, encode(&body).into())
        }
    };
    let date = date(std::time::SystemTime::now());
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nDate: {date}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    // A client that has left meanwhile does not want it.
    if stream.write_all(&[head.as_bytes(), &body].concat()).await.is_ok() {
        drop(stream.shutdown().await);
    }
}

/// Move `left` bytes; both ends are non-blocking.
fn splice(socket: &OwnedFd, pipe: &OwnedFd, mut left: u64, stop: &AtomicBool) -> End {
    while left > 0 {
        if stop.load(Ordering::Relaxed) {
            return End::Gone;
        }
        let wanted = CHUNK.min(usize::try_from(left).unwrap_or(CHUNK));
        match rustix::pipe::splice(
            socket,
            None,
            pipe,
            None,
            wanted,
            SpliceFlags::MOVE | SpliceFlags::NONBLOCK,
        ) {
            Ok(0) => return End::Gone,
            Ok(n) => {
                left -= n as u64;
                failpoint::reach(Point::StreamInMiddle);
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::PIPE) => return End::Refused(left),
            Err(rustix::io::Errno::AGAIN) => {
                if !wait(socket, pipe) {
                    return End::Gone;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "splice");
                return End::Gone;
            }
        }
    }
    End::Whole
}

/// Until there may be something to do; `false`: the client has hung up and left nothing.
fn wait(socket: &OwnedFd, pipe: &OwnedFd) -> bool {
    let mut source = [PollFd::new(socket, PollFlags::IN)];
    if poll(&mut source, Some(&LOOK)).is_err() || source[0].revents().is_empty() {
        return true;
    }
    let mut both = [PollFd::new(pipe, PollFlags::OUT), PollFd::new(socket, PollFlags::empty())];
    // The socket has data: it is the pipe that is full. A hang-up there means nobody waits for the rest.
    let polled = poll(&mut both, Some(&LOOK));
    polled.is_err() || !(both[0].revents().is_empty() && both[1].revents().contains(PollFlags::HUP))
}
