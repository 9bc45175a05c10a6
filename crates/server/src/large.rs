//! Replies that may be large: those whose length depends on what clients have asked for.
//!
//! A small reply is written whole, as Go's server does it. A larger one is written a piece at a time, no
//! faster than its client takes it, and only a few may be under way: memory is bounded, however many clients
//! ask. Both have the same JSON.

use crate::cut::Cut;
use crate::reply::{ChannelBody, Failure, Piece, Reply, full};
use crate::room::SMALL;
use crate::state::State;
use bytes::Bytes;
use http_body_util::Either;
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use wardian_garden::write;

/// Bytes of a piece of a large reply.
const PIECE: usize = 64 << 10;
/// The most pieces that are queued for the client.
const QUEUE: usize = 1;
/// A client that takes no piece for this long is disconnected: other replies wait for its room.
const PATIENCE: Duration = Duration::from_secs(10);

/// Writes a reply's JSON. It may be called twice.
pub(crate) trait Say: Fn(&mut dyn Write) -> io::Result<()> + Send + 'static {}
impl<T: Fn(&mut dyn Write) -> io::Result<()> + Send + 'static> Say for T {}

/// Makes a reply that is usually small.
pub(crate) async fn reply(state: &Arc<State>, cut: Cut, say: impl Say) -> Result<Reply, Failure> {
    let mut small = Small::default();
    match say(&mut small).and_then(|()| small.write_all(b"\n")) {
        Err(_) if small.full => large(state, cut, say).await,
        Err(error) => Err(Failure::Refused(error.to_string())),
        Ok(()) => Ok(full(StatusCode::OK, JSON, small.bytes)),
    }
}

const JSON: &str = "application/json";

/// Makes a large reply. It is written on a thread that may block.
pub(crate) async fn large(state: &Arc<State>, cut: Cut, say: impl Say) -> Result<Reply, Failure> {
    let room = state.rooms(cut.local).reply().await?;
    let (send, pieces) = mpsc::channel(QUEUE);
    let (runtime, work) = (Handle::current(), state.working());
    tokio::task::spawn_blocking(move || {
        let mut out = Pieces { buffer: Vec::with_capacity(PIECE), send, runtime };
        let said = say(&mut out).and_then(|()| out.write_all(b"\n")).and_then(|()| out.end());
        if let Err(error) = said {
            tracing::info!(%error, "reply.broken-off");
            cut.cut();
        }
        drop((room, work));
    });
    let mut reply = Response::new(Either::Right(ChannelBody::new(pieces, None)));
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(JSON));
    // The connection does not keep its place for a next request.
    reply.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    Ok(reply)
}

/// Writes a JSON object of many entries, which are never all in memory at a time.
pub(crate) struct Entries<'a> {
    out: &'a mut dyn Write,
    begun: bool,
}

impl<'a> Entries<'a> {
    pub(crate) fn begin(out: &'a mut dyn Write) -> io::Result<Self> {
        out.write_all(b"{")?;
        Ok(Self { out, begun: false })
    }

    pub(crate) fn add(&mut self, key: &str, value: &impl serde::Serialize) -> io::Result<()> {
        if std::mem::replace(&mut self.begun, true) {
            self.out.write_all(b",")?;
        }
        write(&mut *self.out, key)?;
        self.out.write_all(b":")?;
        write(&mut *self.out, value)
    }

    pub(crate) fn end(self) -> io::Result<()> {
        self.out.write_all(b"}")
    }
}

/// Writes the reply to a list request.
pub(crate) fn handles<T: AsRef<str>>(out: &mut dyn Write, handles: &[T]) -> io::Result<()> {
    out.write_all(b"{\"Handles\":")?;
    list(out, handles.iter().map(AsRef::as_ref))?;
    out.write_all(b"}")
}

/// Writes a JSON array of many values, which are never all in memory at a time.
pub(crate) fn list(
    out: &mut dyn Write,
    values: impl Iterator<Item = impl serde::Serialize>,
) -> io::Result<()> {
    out.write_all(b"[")?;
    for (n, value) in values.enumerate() {
        if n > 0 {
            out.write_all(b",")?;
        }
        write(&mut *out, &value)?;
    }
    out.write_all(b"]")
}

#[derive(Default)]
struct Small {
    bytes: Vec<u8>,
    full: bool,
}

impl Write for Small {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.full |= self.bytes.len() + bytes.len() > SMALL;
        if self.full {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A writer that blocks its thread until the client has taken what is written.
struct Pieces {
    buffer: Vec<u8>,
    send: mpsc::Sender<Piece>,
    runtime: Handle,
}

impl Pieces {
    fn pass_on(&mut self, piece: Piece) -> io::Result<()> {
        let sent = async { tokio::time::timeout(PATIENCE, self.send.send(piece)).await };
        match self.runtime.block_on(sent) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(io::Error::other("the client has gone")),
            Err(_) => Err(io::Error::other("the client has taken nothing for too long")),
        }
    }

    fn end(mut self) -> io::Result<()> {
        let last = std::mem::take(&mut self.buffer);
        self.pass_on(Piece::Data(Bytes::from(last)))?;
        self.pass_on(Piece::End)?;
        // The last pieces take room until the client has taken them.
        let closed = async { tokio::time::timeout(PATIENCE, self.send.closed()).await };
        self.runtime.block_on(closed).map_err(|_| io::Error::other("the client does not take the end"))
    }
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(PIECE - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..taken]);
        if self.buffer.len() == PIECE {
            let piece = std::mem::replace(&mut self.buffer, Vec::with_capacity(PIECE));
            self.pass_on(Piece::Data(Bytes::from(piece)))?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
