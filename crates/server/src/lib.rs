//! The Garden API over HTTP: routes, taken-over connections, errors to wire.
//!
//! [`serve`] drives one [`wardian_engine::Engine`] for all callers that come through its [`Listener`]s. Requests
//! are decoded and refused here; what they mean is the engine's business.

mod attach;
mod connection;
mod convert;
mod debug;
mod door;
mod error;
mod events;
mod handler;
mod host;
mod large;
mod listen;
mod patience;
mod reply;
mod room;
mod route;
mod socket;
mod stream;
mod tls;
mod trace;
mod transfer;
mod upload;

#[cfg(fuzzing)]
pub mod fuzzed;

pub use debug::{Debug, SetLevel};
pub use error::{Error, Result};
pub use listen::{ListenAddr, Listener, SocketOptions};
pub use tls::Tls;

use socket::Arrival;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use wardian_engine::Engine;

/// How long a shutdown waits for requests that are being answered.
const GRACE: Duration = Duration::from_secs(10);

/// Beside the API.
#[derive(Debug)]
pub struct Options {
    /// Connections at a time.
    pub max_connections: usize,
    /// A client that does not finish its request's head in this time is sent away; `None`: it may take for ever.
    pub head_timeout: Option<Duration>,
    /// A tar on its way into or out of a container that stands still for so long is cancelled, whoever is to blame;
    /// `None`: it may for ever.
    pub transfer_patience: Option<Duration>,
    /// The debug server, if there is to be one.
    pub debug: Option<Debug>,
}

/// What all connections share.
pub(crate) struct State {
    pub(crate) engine: Engine,
    pub(crate) streams: stream::Streams,
    /// For others, and for those for whom places are kept.
    rooms: [room::Rooms; 2],
    pub(crate) head_timeout: Option<Duration>,
    pub(crate) patience: patience::Patience,
    /// True once the server is to end.
    pub(crate) stop: watch::Receiver<bool>,
    /// Held by everything that is still at work.
    pub(crate) work: mpsc::WeakSender<()>,
}

impl State {
    /// Something begins that a shutdown waits for until it is dropped. `None`: too late.
    pub(crate) fn working(&self) -> Option<mpsc::Sender<()>> {
        self.work.upgrade()
    }

    /// Rooms for such a client.
    pub(crate) fn rooms(&self, local: bool) -> &room::Rooms {
        &self.rooms[usize::from(local)]
    }

    /// Ready when the server is to end.
    pub(crate) async fn stopping(&self) {
        let mut stop = self.stop.clone();
        // The sender lives in `serve`; without it the server has ended.
        let _ = stop.wait_for(|stop| *stop).await;
    }
}

/// Serve until `shutdown` is ready: then accept nothing more, close taken-over connections (their processes
/// live on), answer the requests that are under way for at most ten seconds, and return.
pub async fn serve(
    engine: Engine,
    listeners: Vec<Listener>,
    options: Options,
    shutdown: impl Future,
) -> Result<()> {
    let door = door::Door::new(options.max_connections);
    let debug = options.debug.map(|debug| tokio::spawn(debug::serve(debug, engine.clone())));
    let (stop, stopped) = watch::channel(false);
    let (work, mut idle) = mpsc::channel::<()>(1);
    let state = Arc::new(State {
        engine,
        streams: stream::Streams::default(),
        rooms: Default::default(),
        head_timeout: options.head_timeout,
        patience: patience::Patience(options.transfer_patience),
        stop: stopped,
        work: work.downgrade(),
    });
    let mut accepting = tokio::task::JoinSet::new();
    for listener in listeners {
        accepting.spawn(api(listener, state.clone(), door.clone()));
    }
    tokio::select! {
        _ = shutdown => {}
        () = async { while accepting.join_next().await.is_some() {} } => {}
    }
    accepting.shutdown().await;
    if let Some(debug) = debug {
        debug.abort();
    }
    stop.send_replace(true);
    drop(work);
    if tokio::time::timeout(GRACE, idle.recv()).await.is_err() {
        tracing::warn!("requests were still under way at shutdown");
    }
    Ok(())
}

/// Lets newcomers in, and gives each what is to be done with it; until that is nothing. It never stops accepting: behind those
/// who wait for a place there may be somebody for whom one is kept.
async fn accept<F>(
    listener: Listener,
    door: Arc<door::Door>,
    serve: impl Fn(Arrival, Arc<door::Place>) -> Option<F>,
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

/// Serves the API on an address.
async fn api(listener: Listener, state: Arc<State>, door: Arc<door::Door>) {
    let serve = |arrival, place| {
        let (work, state) = (state.working()?, state.clone());
        Some(async move {
            connection::serve(arrival, state, place).await;
            drop(work);
        })
    };
    accept(listener, door, serve).await;
}
