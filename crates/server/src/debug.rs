//! The debug server, on an address of its own: figures of the process, and the log level.

use crate::connection::{HANDSHAKE_TIMEOUT, LAST_WORDS};
use crate::door::{self, Door, Place};
use crate::host;
use crate::listen::Listener;
use crate::newcomers::accept;
use crate::reply::text;
use crate::socket::Arrival;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use std::{fmt, io};
use wardian_engine::Engine;

/// The most connections at a time, beside those reserved for root: one person, and a monitor or two.
const CONNECTIONS: usize = 32;
/// How long a client may take to send a request's head, or its body.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest duration of a connection.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);
/// The most bytes of a request's body, which is the name of a level.
const BODY_LIMIT: usize = 64;

/// Changes what is logged, given a level's name: `debug`, `info`, `warn`, `error` or `off`.
pub type SetLevel = Box<dyn Fn(&'static str) -> Result<(), String> + Send + Sync>;

/// The debug server.
pub struct Debug {
    /// The socket that it listens on.
    pub listener: Listener,
    /// Changes the log level.
    pub set_level: SetLevel,
}

impl fmt::Debug for Debug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Debug").field("listener", &self.listener).finish_non_exhaustive()
    }
}

type Reply = Response<Full<Bytes>>;

/// Serves for ever.
pub(crate) async fn serve(debug: Debug, engine: Engine) {
    let Debug { listener, set_level } = debug;
    let set_level = Arc::new(set_level);
    let serve = |arrival, place| Some(connection(arrival, engine.clone(), set_level.clone(), place));
    accept(listener, Door::new(CONNECTIONS), serve).await;
}

async fn connection(arrival: Arrival, engine: Engine, set_level: Arc<SetLevel>, place: Arc<Place>) {
    let hosts = arrival.hosts.clone();
    let opened = tokio::select! {
        opened = tokio::time::timeout(HANDSHAKE_TIMEOUT, arrival.open(place.clone())) => opened,
        () = place.evicted() => return,
    };
    let Ok(Ok(stream)) = opened else { return };
    let service = service_fn(|request| {
        let (engine, set_level, hosts) = (engine.clone(), set_level.clone(), hosts.clone());
        let place = place.clone();
        async move {
            if !place.works(|| false).await {
                return Err(io::Error::from(io::ErrorKind::ConnectionAborted));
            }
            let reply = answer(request, &engine, &set_level, hosts.as_deref(), &place).await;
            // The client owes the reading of the reply, and then the next request.
            place.set_replies(true);
            place.rests();
            Ok(reply)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .title_case_headers(true)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = tokio::time::timeout(CONNECTION_TIMEOUT, connection.as_mut()) => ended,
        () = place.evicted() => {
            tracing::debug!("debug: an idle connection is closed: its place is needed");
            // Only after an answer the connection is shut down gracefully: the answer may still be on its
            // way.
            if !place.replies() {
                return;
            }
            connection.as_mut().graceful_shutdown();
            tokio::time::timeout(LAST_WORDS, connection).await
        }
    };
    match ended {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "debug: connection"),
        Err(_) => tracing::debug!("debug: a connection has had its time"),
    }
}

async fn answer(
    request: Request<Incoming>,
    engine: &Engine,
    set_level: &SetLevel,
    hosts: Option<&host::Hosts>,
    place: &Arc<Place>,
) -> Reply {
    if let Some((status, why)) = host::refusal(request.headers(), request.uri(), hosts) {
        return plain(status, why);
    }
    let path = request.uri().path().to_owned();
    match path.as_str() {
        "/debug/vars" if request.method() == Method::GET => vars(engine),
        "/debug/vars" => plain(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed"),
        "/log-level" if request.method() == Method::POST => log_level(request, set_level, place).await,
        "/log-level" => plain(StatusCode::BAD_REQUEST, "the log level is set with POST"),
        "/block-profile-rate" | "/mutex-profile-fraction" => no_profiler(),
        _ if path == "/debug/pprof" || path.starts_with("/debug/pprof/") => no_profiler(),
        _ => plain(StatusCode::NOT_FOUND, "404 page not found"),
    }
}

fn plain(status: StatusCode, message: &str) -> Reply {
    text(status, message).map(|body| match body {
        http_body_util::Either::Left(full) => full,
        http_body_util::Either::Right(_) => Full::default(),
    })
}

fn no_profiler() -> Reply {
    let message = "this server is not written in Go, so Go's profiler is not there; use perf(1) on its pid";
    plain(StatusCode::NOT_FOUND, message)
}

async fn log_level(request: Request<Incoming>, set_level: &SetLevel, place: &Arc<Place>) -> Reply {
    let body = Limited::new(request.into_body(), BODY_LIMIT).collect();
    let body = match tokio::time::timeout(HEAD_TIMEOUT, door::owed(Some(place), body)).await {
        Ok(Ok(body)) => body.to_bytes(),
        _ => return plain(StatusCode::BAD_REQUEST, "no level has come"),
    };
    let given = String::from_utf8_lossy(&body).trim().to_lowercase();
    let Some(level) = level(&given) else {
        let message =
            format!("{given:?} is no level: debug, info, warn, error, fatal, their first letters or 0 to 4");
        return plain(StatusCode::BAD_REQUEST, &message);
    };
    match set_level(level) {
        Ok(()) => {
            tracing::info!(level, "log-level.changed");
            plain(StatusCode::OK, &format!("the log level is now {level}"))
        }
        Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, &error),
    }
}

/// Finds a level by its name, first letter or number, as Garden's server names them. Nothing is logged at
/// `fatal`.
fn level(given: &str) -> Option<&'static str> {
    let levels =
        [("debug", "debug"), ("info", "info"), ("warn", "warn"), ("error", "error"), ("fatal", "off")];
    let mut numbered = levels.into_iter().enumerate();
    let found =
        numbered.find(|(n, (name, _))| given == *name || given == &name[..1] || given == n.to_string());
    found.map(|(_, (_, level))| level)
}

/// Makes the reply of `/debug/vars` in the format of Go's expvar, with the keys of Garden's server.
fn vars(engine: &Engine) -> Reply {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kilobytes = |name: &str| field(&status, name) * 1024;
    let tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks() as u64;
    let vars = serde_json::json!({
        "backingStores": 0,
        "cmdline": std::env::args_os().map(|a| a.to_string_lossy().into_owned()).collect::<Vec<_>>(),
        "depotDirs": engine.count(),
        "loopDevices": 0,
        "memstats": {
            // Resident memory, its peak, and the address space; there is no garbage collector.
            "Alloc": kilobytes("VmRSS:"),
            "TotalAlloc": kilobytes("VmHWM:"),
            "Sys": kilobytes("VmSize:"),
            "HeapAlloc": kilobytes("RssAnon:"),
        },
        "numCPUS": std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        "numGoRoutines": tasks + field(&status, "Threads:"),
    });
    let mut reply = Response::new(Full::new(Bytes::from(format!("{vars:#}\n"))));
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json; charset=utf-8"));
    reply
}

/// Finds a number in the text of `/proc/PID/status`.
fn field(status: &str, name: &str) -> u64 {
    let value =
        status.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok());
    value.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels() {
        for (given, wanted) in
            [("debug", "debug"), ("i", "info"), ("2", "warn"), ("error", "error"), ("4", "off")]
        {
            assert_eq!(level(given), Some(wanted), "{given}");
        }
        for bad in ["", "5", "x", "trace", "-1", "in"] {
            assert_eq!(level(bad), None, "{bad}");
        }
    }

    #[test]
    fn numbers_of_the_process() {
        let status = "Name:\tx\nVmRSS:\t    7 kB\nThreads:\t3\n";
        assert_eq!((field(status, "VmRSS:"), field(status, "Threads:"), field(status, "VmHWM:")), (7, 3, 0));
    }
}
