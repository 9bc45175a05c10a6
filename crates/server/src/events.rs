//! The stream of events: one JSON object a line, until the client disconnects or the server stops.

use crate::reply::date;
use crate::state::State;
use crate::taken::{Taken, ended};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use wardian_engine::{Heard, Listener};
use wardian_garden::encode;

/// A listener for a client's event stream.
pub(crate) struct Events {
    pub(crate) listener: Listener,
    /// The container whose events are wanted; `None`: all.
    pub(crate) handle: Option<String>,
    /// The stream ends at this time, in milliseconds since 1970; `None`: with the client or the server.
    pub(crate) until: Option<u64>,
}

/// Writes events to the raw connection: only there a client that hangs up is noticed while no event is due.
pub(crate) async fn run(state: &Arc<State>, taken: Taken, events: Events) {
    drop(taken.early);
    let (mut reader, mut writer) = tokio::io::split(taken.stream);
    tokio::select! {
        _ = tell(&mut writer, events) => {}
        () = ended(&mut reader) => {}
        () = state.stopping() => {}
    }
    // The end of the body is the end of the connection.
    drop(writer.shutdown().await);
}

async fn tell(writer: &mut (impl AsyncWrite + Unpin), mut events: Events) -> std::io::Result<()> {
    let date = date(std::time::SystemTime::now());
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nDate: {date}\r\nConnection: close\r\n\r\n"
    );
    writer.write_all(head.as_bytes()).await?;
    let mut over = std::pin::pin!(until(events.until));
    loop {
        let heard = tokio::select! {
            // What has happened before the end is told, also if the end is in the past.
            biased;
            heard = events.listener.next() => heard,
            () = &mut over => return Ok(()),
        };
        let Some(heard) = heard else { return Ok(()) };
        let line = match heard {
            Heard::Event(event) if events.until.is_some_and(|until| event.time_ms > until) => return Ok(()),
            Heard::Event(event) if events.handle.as_ref().is_some_and(|handle| *handle != event.handle) => {
                continue;
            }
            Heard::Event(event) => encode(&*event),
            Heard::Lost(lost) => {
                tracing::info!(lost, "a slow listener loses events");
                encode(&serde_json::json!({"event": "lost", "lost": lost}))
            }
            Heard::Forgotten => encode(&serde_json::json!({"event": "forgotten"})),
        };
        writer.write_all(&line).await?;
    }
}

/// Waits for a time, in milliseconds since 1970; for ever without one.
async fn until(time: Option<u64>) {
    let Some(time) = time else { return std::future::pending().await };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    tokio::time::sleep(Duration::from_millis(time).saturating_sub(now)).await;
}
