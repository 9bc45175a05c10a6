//! The stream of events in the client.

use super::connection::Duplex;
use crate::error::{Error, Result};
use crate::json::Decoder;
use crate::wire::Event;
use tokio::io::{AsyncReadExt, BufReader};

/// All events since [`crate::Client::events`].
pub struct Events {
    stream: BufReader<Box<dyn Duplex>>,
    decoder: Decoder,
    buffer: Vec<u8>,
}

impl std::fmt::Debug for Events {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        to.write_str("Events")
    }
}

impl Events {
    pub(crate) fn new(stream: BufReader<Box<dyn Duplex>>) -> Self {
        Self { stream, decoder: Decoder::default(), buffer: vec![0; 16 << 10] }
    }

    /// Returns the next event; `None` when the server has ended.
    ///
    /// # Errors
    /// The connection broke, or what was received is not an event.
    pub async fn next(&mut self) -> Result<Option<Event>> {
        loop {
            if let Some(event) = self.decoder.next_value().map_err(|error| Error::response(&error))? {
                return Ok(Some(event));
            }
            match self.stream.read(&mut self.buffer).await? {
                0 => return Ok(None),
                n => self.decoder.push(&self.buffer[..n]),
            }
        }
    }
}
