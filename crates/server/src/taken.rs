//! Connections that were taken over from HTTP, for any purpose.

use crate::socket::Stream;
use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt};

/// A connection that was taken over from HTTP.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) stream: Stream,
    /// Bytes that HTTP had read ahead.
    pub(crate) early: Bytes,
}

/// Reads until the client has shut its side down.
pub(crate) async fn ended(reader: &mut (impl AsyncRead + Unpin)) {
    let mut buffer = [0; 4096];
    while reader.read(&mut buffer).await.is_ok_and(|n| n > 0) {}
}
