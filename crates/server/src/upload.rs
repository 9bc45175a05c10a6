//! Uploads of tars of known length: from the socket to the container's pipe without passing through this
//! process.
//!
//! Bytes that hyper has read already are written; the rest is spliced (`splice(2)`), so that the only copy is
//! the one into the page cache, made inside the container and charged to it. The splice is driven by the
//! runtime's readiness: neither a client that sends nothing nor a container that takes nothing holds a
//! thread.

use crate::door::owed;
use crate::failpoints::Point;
use crate::patience::{Patience, Stall, Stalled};
use crate::reply::{Failure, date};
use crate::socket::Stream;
use crate::state::State;
use crate::taken::Taken;
use crate::transfer;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::SpliceFlags;
use std::future::poll_fn;
use std::io::ErrorKind;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use wardian_engine::Transfer;
use wardian_garden::{ErrorBody, encode};
use wardian_sys::failpoint;

/// An upload whose transfer has begun.
pub(crate) struct Upload {
    pub(crate) handle: String,
    pub(crate) transfer: Transfer<pipe::Sender>,
    /// The body, of which hyper may have read a part.
    pub(crate) body: Incoming,
    pub(crate) length: u64,
}

/// The most bytes of one splice: the capacity of the pipe.
const CHUNK: usize = 1 << 20;
/// The most bytes of one read of a connection that has to be decrypted.
const PIECE: usize = 64 << 10;
/// Bytes after which the task yields to other tasks of its thread.
const TURN: u64 = 4 << 20;
/// How often the upload checks, while the pipe is full, whether the client has hung up.
const LOOK: Duration = Duration::from_millis(200);
/// Delay after a splice that moved nothing although both ends were ready.
const AGAIN: Duration = Duration::from_millis(1);
const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
/// How long, and how many bytes of, an unwanted rest of a body is still read: a client whose connection is
/// closed while it sends may never see the answer.
const DRAIN_TIME: Duration = Duration::from_secs(5);
const DRAIN_BYTES: u64 = 64 << 20;

/// How a copy ended.
enum End {
    Whole,
    /// The client has disconnected.
    Gone,
    /// Nothing has moved for too long; this many bytes of the body are left.
    Stalled(Stalled, u64),
    /// The container's side has closed the pipe; this many bytes of the body are left.
    Refused(u64),
}

pub(crate) async fn run(state: &Arc<State>, taken: Taken, upload: Upload) {
    let work = state.working();
    let Taken { mut stream, early } = taken;
    let Upload { handle, mut transfer, mut body, length } = upload;
    let Some(mut pipe) = transfer.pipe.take() else { return };
    let mut ready = Vec::new();
    // hyper has stopped: all data that it had passed on is available now.
    while let Some(frame) = poll_fn(|cx| match pin!(body.frame()).poll(cx) {
        Poll::Ready(Some(Ok(frame))) => Poll::Ready(Some(frame)),
        _ => Poll::Ready(None),
    })
    .await
    {
        ready.extend(frame.into_data().ok());
    }
    ready.push(early);
    // However this ends, the transfer is dropped, and so cancelled, before its pipe: an incomplete tar must
    // not look finished to the container's side.
    let transfer = transfer;
    let copy = copy(&mut stream, &mut pipe, ready, length, state.patience);
    let end = tokio::select! {
        end = copy => end,
        () = state.stopping() => return,
    };
    let left = match end {
        End::Whole => 0,
        End::Refused(left) => left,
        End::Gone => {
            tracing::debug!(handle, "the client has gone in the middle of its tar");
            return;
        }
        End::Stalled(stalled, left) => {
            // The transfer is cancelled now, not after the answer.
            drop(transfer);
            drop(pipe);
            // From a client that sends nothing there is nothing to drain.
            let left = if stalled.stall == Stall::ClientSends { 0 } else { left };
            return answer(stream, &handle, left, Err(transfer::stuck(&stalled))).await;
        }
    };
    failpoint::reach(Point::StreamInFinishing);
    drop(pipe);
    let finished = state.patience.wait(Stall::ContainerEnds, transfer.finish()).await;
    let result = match finished {
        Ok(result) => result.map_err(Failure::Engine),
        Err(stalled) => Err(transfer::stuck(&stalled)),
    };
    answer(stream, &handle, left, result).await;
    drop(work);
}

/// Copies the body: what hyper has read, then what is in the socket.
async fn copy(
    stream: &mut Stream,
    pipe: &mut pipe::Sender,
    ready: Vec<Bytes>,
    length: u64,
    patience: Patience,
) -> End {
    let mut left = length;
    for piece in ready {
        let piece = piece.slice(..piece.len().min(usize::try_from(left).unwrap_or(usize::MAX)));
        match transfer::put(pipe, &piece, patience).await {
            Err(stalled) => return End::Stalled(stalled, left),
            Ok(Err(_)) => return End::Refused(left - piece.len() as u64),
            Ok(Ok(())) => left -= piece.len() as u64,
        }
    }
    if left < length {
        failpoint::reach(Point::StreamInMiddle);
    }
    if stream.is_plain() {
        splice(stream, pipe, left, patience).await
    } else {
        pass(stream, pipe, left, patience).await
    }
}

/// Moves `left` bytes that have to be decrypted on their way.
async fn pass(stream: &mut Stream, pipe: &pipe::Sender, mut left: u64, patience: Patience) -> End {
    let place = stream.place().cloned();
    let mut buffer = vec![0; PIECE];
    while left > 0 {
        let wanted = PIECE.min(usize::try_from(left).unwrap_or(PIECE));
        let read = owed(place.as_ref(), stream.read(&mut buffer[..wanted]));
        let mut piece = match patience.wait(Stall::ClientSends, read).await {
            Ok(Ok(n)) if n > 0 => &buffer[..n],
            Ok(_) => return End::Gone,
            Err(stalled) => return End::Stalled(stalled, left),
        };
        left -= piece.len() as u64;
        failpoint::reach(Point::StreamInMiddle);
        while !piece.is_empty() {
            match pipe.try_write(piece) {
                Ok(n) => piece = &piece[n..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    match patience.wait(Stall::ContainerTakes, room(stream, pipe)).await {
                        Ok(true) => {}
                        Ok(false) => return End::Gone,
                        Err(stalled) => return End::Stalled(stalled, left),
                    }
                }
                Err(_) => return End::Refused(left),
            }
        }
    }
    End::Whole
}

async fn answer(mut stream: Stream, handle: &str, mut left: u64, result: Result<(), Failure>) {
    let place = stream.place().cloned();
    let drain = async {
        let mut buffer = vec![0; PIECE];
        while left > 0 && left <= DRAIN_BYTES {
            match owed(place.as_ref(), stream.read(&mut buffer)).await {
                Ok(n) if n > 0 => left = left.saturating_sub(n as u64),
                _ => return,
            }
        }
    };
    // The drain of a slow client is cut off.
    drop(tokio::time::timeout(DRAIN_TIME, drain).await);
    let (status, body): (&str, Bytes) = match result {
        Ok(()) => ("200 OK", Bytes::from_static(b"{}\n")),
        Err(failure) => {
            let body: ErrorBody = failure.body();
            if failure.is_the_clients() {
                tracing::info!(handle, route = "StreamIn", error = body.message, "server.request-failed");
            } else {
                tracing::error!(handle, route = "StreamIn", error = body.message, "server.request-failed");
            }
            let missing = body.kind() == wardian_garden::ErrorKind::ContainerNotFound;
            (if missing { "404 Not Found" } else { "500 Internal Server Error" }, encode(&body).into())
        }
    };
    let date = date(std::time::SystemTime::now());
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nDate: {date}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    // Fails if the client has disconnected meanwhile.
    if stream.write_all(&[head.as_bytes(), &body].concat()).await.is_ok() {
        drop(stream.shutdown().await);
    }
}

/// The result of one splice.
enum Step {
    Moved(u64),
    /// The socket is empty.
    NoData,
    NoRoom,
    /// Both ends were ready, and yet nothing was moved.
    Again,
    /// The client has shut its side down.
    End,
    Failed(rustix::io::Errno),
}

/// Splices `left` bytes.
async fn splice(stream: &Stream, pipe: &pipe::Sender, mut left: u64, patience: Patience) -> End {
    let mut turn = TURN;
    while left > 0 {
        let waited = match step(stream, pipe, left) {
            Step::Moved(n) => {
                left -= n;
                failpoint::reach(Point::StreamInMiddle);
                match turn.checked_sub(n) {
                    Some(rest) => turn = rest,
                    None => {
                        turn = TURN;
                        tokio::task::yield_now().await;
                    }
                }
                continue;
            }
            Step::NoData => {
                let readable = owed(stream.place(), stream.readable());
                patience.wait(Stall::ClientSends, readable).await.map(|readable| readable.is_ok())
            }
            Step::NoRoom => patience.wait(Stall::ContainerTakes, room(stream, pipe)).await,
            Step::Again => {
                tokio::time::sleep(AGAIN).await;
                Ok(true)
            }
            Step::Failed(rustix::io::Errno::PIPE) => return End::Refused(left),
            Step::End => Ok(false),
            Step::Failed(error) => {
                tracing::info!(%error, "splice");
                Ok(false)
            }
        };
        match waited {
            Ok(true) => {}
            Ok(false) => return End::Gone,
            Err(stalled) => return End::Stalled(stalled, left),
        }
    }
    End::Whole
}

/// Splices what is available, at most `left` bytes. For an end that was not ready the runtime's readiness is
/// cleared, so that it waits for that end.
fn step(stream: &Stream, pipe: &pipe::Sender, left: u64) -> Step {
    let wanted = CHUNK.min(usize::try_from(left).unwrap_or(CHUNK));
    let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
    let both = || match rustix::pipe::splice(stream, None, pipe, None, wanted, flags) {
        Ok(0) => Step::End,
        Ok(n) => Step::Moved(n as u64),
        Err(rustix::io::Errno::INTR) => Step::Again,
        // EAGAIN does not tell which end was not ready.
        Err(rustix::io::Errno::AGAIN) => {
            let mut ends = [PollFd::new(stream, PollFlags::IN), PollFd::new(pipe, PollFlags::OUT)];
            match poll(&mut ends, Some(&NOW)) {
                Ok(_) if ends[0].revents().is_empty() => Step::NoData,
                Ok(_) if ends[1].revents().is_empty() => Step::NoRoom,
                _ => Step::Again,
            }
        }
        Err(error) => Step::Failed(error),
    };
    // While the runtime's readiness of an end is cleared, `try_read_with` and `try_io` do not even call the
    // closure. Only the end that was not ready may report "would block": the runtime would wait for the other
    // one's next event, perhaps for ever.
    let ready = |ready| if ready { Ok(()) } else { Err(std::io::Error::from(ErrorKind::WouldBlock)) };
    let mut step = Step::NoData;
    drop(stream.try_read_with(|| {
        step = Step::NoRoom;
        drop(pipe.try_io(|| {
            step = both();
            ready(!matches!(step, Step::NoRoom))
        }));
        ready(!matches!(step, Step::NoData))
    }));
    step
}

/// Waits for room in the pipe. Returns false if the client has hung up.
async fn room(stream: &Stream, pipe: &pipe::Sender) -> bool {
    while tokio::time::timeout(LOOK, pipe.writable()).await.is_err() {
        if stream.hung_up() {
            return false;
        }
    }
    true
}
