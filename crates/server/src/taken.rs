//! Connections that have left HTTP, whatever they are for.

use crate::socket::Stream;
use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt};

/// A connection that has left HTTP.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) stream: Stream,
    /// What the client sent early.
    pub(crate) early: Bytes,
}

/// Read until the client has closed its side.
pub(crate) async fn ended(reader: &mut (impl AsyncRead + Unpin)) {
    let mut buffer = [0; 4096];
    while reader.read(&mut buffer).await.is_ok_and(|n| n > 0) {}
}
