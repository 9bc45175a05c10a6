//! The output that is kept of a process, in the client.

use super::connection::Duplex;
use crate::error::{Error, Result};
use crate::wire::OutputNote;
use tokio::io::{AsyncReadExt, BufReader};

/// The most bytes of a piece: the server's are much shorter.
const MOST: usize = 1 << 20;

/// Output that was kept of a process, and what comes after it: [`crate::Client::kept_output`].
pub struct KeptOutput(BufReader<Box<dyn Duplex>>);

impl std::fmt::Debug for KeptOutput {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        to.write_str("KeptOutput")
    }
}

/// What is read of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Output that the server has read at once.
    Output {
        /// It is of standard error.
        stderr: bool,
        /// When the server has read it, in milliseconds since 1970.
        time_ms: u64,
        /// The bytes.
        data: Vec<u8>,
    },
    /// So many bytes of output are missing here.
    Dropped(u64),
    /// What follows was printed after the request.
    Now,
    /// Nothing follows.
    Over,
}

impl KeptOutput {
    pub(crate) fn new(stream: BufReader<Box<dyn Duplex>>) -> Self {
        Self(stream)
    }

    /// Returns the next piece.
    ///
    /// # Errors
    /// The connection broke, or what was received is no piece.
    pub async fn next(&mut self) -> Result<Piece> {
        let mut head = [0; 16];
        match self.0.read_exact(&mut head).await {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                return Err(Error::Disconnected);
            }
            read => read.map(drop)?,
        }
        let (time, rest) = head.split_at(8);
        let time_ms = u64::from_le_bytes(time.try_into().unwrap_or_default());
        let length = u32::from_le_bytes(rest[..4].try_into().unwrap_or_default()) as usize;
        if length > MOST {
            return Err(Error::Response(format!("a piece of output of {length} bytes")));
        }
        let mut data = vec![0; length];
        self.0.read_exact(&mut data).await.map_err(|_| Error::Disconnected)?;
        match rest[4] {
            stream @ 1..=2 => Ok(Piece::Output { stderr: stream == 2, time_ms, data }),
            0 => match crate::decode(&data).map_err(|error| Error::response(&error))? {
                OutputNote { over: true, .. } => Ok(Piece::Over),
                OutputNote { now: true, .. } => Ok(Piece::Now),
                OutputNote { dropped, .. } => Ok(Piece::Dropped(dropped)),
            },
            other => Err(Error::Response(format!("output of an unknown stream, {other}"))),
        }
    }
}
