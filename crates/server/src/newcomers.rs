//! Newcomers, from an address to a place.

use crate::door::{Door, Place};
use crate::listen::Listener;
use crate::socket::Arrival;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

/// Lets newcomers in, and gives each what is to be done with it; until that is nothing. It never stops accepting: behind those
/// who wait for a place there may be somebody for whom one is kept.
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
                // Out of file descriptors, mostly: give the others a moment to return some.
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}
