//! The Garden API over HTTP: routes, taken-over connections, errors to wire.
//!
//! [`serve`] drives one [`wardian_engine::Engine`] for the clients of its [`Listener`]s. Requests are
//! decoded, and malformed ones refused, here; the engine carries them out.

mod attach;
mod connection;
mod convert;
mod cut;
mod debug;
mod door;
mod error;
mod events;
mod failpoints;
mod handler;
mod host;
mod kept;
mod large;
mod listen;
mod newcomers;
mod page;
mod patience;
mod reply;
mod room;
mod route;
mod seen;
mod socket;
mod state;
mod stream;
mod taken;
mod tls;
mod trace;
mod transfer;
mod upload;

#[cfg(fuzzing)]
pub mod fuzzed;

pub use debug::{Debug, SetLevel};
pub use error::{Error, Result};
pub use failpoints::NAMES as FAILPOINTS;
pub use listen::{ListenAddr, Listener, SocketOptions};
pub use tls::Tls;

use newcomers::accept;
use state::State;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use wardian_engine::Engine;
use wardian_monitor::Page;

/// How long a shutdown waits for requests that are being answered.
const GRACE: Duration = Duration::from_secs(10);

/// Options of the server.
#[derive(Debug)]
pub struct Options {
    /// The most connections at a time, beside the reserved ones.
    pub max_connections: usize,
    /// How long a client may take to send a request's head before it is disconnected; `None`: without a
    /// bound.
    pub head_timeout: Option<Duration>,
    /// How long a tar on its way into or out of a container may stand still before it is cancelled, whichever
    /// side is at fault; `None`: without a bound.
    pub transfer_patience: Option<Duration>,
    /// The monitor, which is served at `/monitor`; `None`: there is none.
    pub page: Option<Arc<Page>>,
    /// The debug server; `None`: there is none.
    pub debug: Option<Debug>,
}

/// Serves until `shutdown` is ready: then accepts no more connections, closes taken-over connections (their
/// processes live on), finishes the requests that are under way within at most ten seconds, except those that bring images into the store,
/// and returns.
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
        page: options.page.clone(),
        head_timeout: options.head_timeout,
        patience: patience::Patience(options.transfer_patience),
        stop: stopped,
        work: work.downgrade(),
    });
    let watching = options.page.map(|page| tokio::spawn(async move { page.run().await }));
    let mut accepting = tokio::task::JoinSet::new();
    for listener in listeners {
        accepting.spawn(api(listener, state.clone(), door.clone()));
    }
    tokio::select! {
        _ = shutdown => {}
        () = async { while accepting.join_next().await.is_some() {} } => {}
    }
    accepting.shutdown().await;
    for task in debug.into_iter().chain(watching) {
        task.abort();
    }
    stop.send_replace(true);
    state.engine.give_up_images().await;
    drop(work);
    if tokio::time::timeout(GRACE, idle.recv()).await.is_err() {
        tracing::warn!("requests were still under way at shutdown");
    }
    Ok(())
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
