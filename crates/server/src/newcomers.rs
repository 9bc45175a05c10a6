//! The accept loop: from a listening socket to a place at the door.

use crate::door::{Door, Place};
use crate::listen::Listener;
use crate::socket::Arrival;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

/// Accepts connections and spawns what `serve` returns for each, until that is `None`. Accepting never
/// pauses: behind connections that wait for a place there may be one for which a place is reserved.
pub(crate) async fn accept<F>(
    listener: Listener,
    door: Arc<Door>,
    serve: impl Fn(Arrival, Arc<Place>) -> Option<F>,
) where
    F: Future<Output = ()> + Send + 'static,
{
    loop {
        match listener.accept().await {
            Ok(arrival) => {
                let Some(place) = door.admit(arrival.local).await else { continue };
                match serve(arrival, place) {
                    Some(served) => drop(tokio::spawn(served)),
                    None => return,
                }
            }
            Err(error) => {
                // Mostly EMFILE: other connections get a moment to return descriptors.
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}
