//! Memory that all connections share: what is large has to have room, and waits for it.
//!
//! Ordinary requests and replies are small, and never wait.

use crate::reply::Failure;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use wardian_engine::Error;

/// A body, or a reply, up to here is small: a socket of the kernel holds more.
pub(crate) const SMALL: usize = 32 << 10;
/// KiB of larger bodies, from their first byte until the request has been answered.
const BODIES: usize = 16 << 10;
/// Larger replies under way.
const REPLIES: usize = 16;
/// Payloads that are longer than clients usually make them.
const PAYLOADS: usize = 16;
/// How long a request waits for room.
const PATIENCE: Duration = Duration::from_secs(30);

/// Held by what takes it.
pub(crate) type Room = OwnedSemaphorePermit;

/// How much there is.
#[derive(Debug)]
pub(crate) struct Rooms {
    bodies: Arc<Semaphore>,
    replies: Arc<Semaphore>,
    payloads: Arc<Semaphore>,
}

impl Default for Rooms {
    fn default() -> Self {
        let [bodies, replies, payloads] =
            [BODIES, REPLIES, PAYLOADS].map(|room| Arc::new(Semaphore::new(room)));
        Self { bodies, replies, payloads }
    }
}

impl Rooms {
    /// For a body of so many bytes; none for a small one.
    ///
    /// # Errors
    /// There is none in time.
    pub(crate) async fn body(&self, bytes: u64) -> Result<Option<Room>, Failure> {
        if bytes <= SMALL as u64 {
            return Ok(None);
        }
        let kilobytes = usize::try_from(bytes.div_ceil(1024)).unwrap_or(BODIES).min(BODIES);
        enter(&self.bodies, kilobytes, "large request bodies").await.map(Some)
    }

    /// For a reply that is not small.
    ///
    /// # Errors
    /// There is none in time.
    pub(crate) async fn reply(&self) -> Result<Room, Failure> {
        enter(&self.replies, 1, "large replies").await
    }

    /// For a long payload. Whoever has one has not for long.
    pub(crate) async fn payload(&self) -> Option<Room> {
        self.payloads.clone().acquire_owned().await.ok()
    }
}

async fn enter(rooms: &Arc<Semaphore>, count: usize, what: &str) -> Result<Room, Failure> {
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    match tokio::time::timeout(PATIENCE, rooms.clone().acquire_many_owned(count)).await {
        Ok(Ok(room)) => Ok(room),
        _ => Err(Error::Busy(format!(
            "too many {what} at a time: there was no room for another in {} s; try again in a moment",
            PATIENCE.as_secs()
        ))
        .into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_large_waits_and_what_is_small_does_not() {
        let rooms = Rooms::default();
        let mut held = Vec::new();
        for _ in 0..BODIES / 4096 {
            held.push(rooms.body(4 << 20).await.unwrap().unwrap());
        }
        assert!(rooms.body(SMALL as u64).await.unwrap().is_none());
        let error = rooms.body(SMALL as u64 + 1).await.unwrap_err().body();
        assert_eq!(error.kind(), wardian_garden::ErrorKind::ServiceUnavailable);
        held.pop();
        assert!(rooms.body(SMALL as u64 + 1).await.unwrap().is_some());
        // One that is larger than all there is gets all there is.
        held.clear();
        assert!(rooms.body(u64::MAX).await.unwrap().is_some());
    }
}
