//! The routes: the page with its files, the history as JSON, and the stream of events.

use crate::assets;
use crate::guard::{self, Hosts};
use crate::hub::{Hub, Listener};
use crate::live::Live;
use crate::runs::{Error, Runs};
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use hyper::header::{
    ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, HeaderName, HeaderValue,
    IF_NONE_MATCH, LOCATION, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use hyper::http::request::Parts;
use hyper::{Method, Response, StatusCode};
use percent_encoding::percent_decode_str;
use serde_json::json;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::sync::Semaphore;

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
    connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";
/// Requests that read the history at a time; the others wait.
const READERS: usize = 4;
/// How often the history is looked at for new runs, while somebody listens.
const LOOK: Duration = Duration::from_secs(2);
/// The width of a picture in px, if the page does not say how wide it is.
const WIDTH: u32 = 960;
/// The longest query.
const QUERY: usize = 4096;

/// The page: what it shows, and its answers.
pub struct Page {
    runs: Arc<dyn Runs>,
    live: Box<dyn Live>,
    hub: Arc<Hub>,
    readers: Semaphore,
}

impl std::fmt::Debug for Page {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        to.debug_struct("Page").field("hub", &self.hub).finish_non_exhaustive()
    }
}

/// The body of an answer: a whole, or messages without an end.
pub struct Body(Kind);

enum Kind {
    Whole(Bytes),
    Events(Next),
}

impl Body {
    /// Returns the whole body; `None`: it is a stream of events.
    pub fn known(&self) -> Option<Bytes> {
        match &self.0 {
            Kind::Whole(bytes) => Some(bytes.clone()),
            Kind::Events(_) => None,
        }
    }
}

impl std::fmt::Debug for Body {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        to.debug_tuple("Body").field(&self.known().map(|bytes| bytes.len())).finish()
    }
}

/// The next message of a listener, who comes back with it.
type Next = Pin<Box<dyn Future<Output = (Listener, Option<Bytes>)> + Send>>;

fn next(mut listener: Listener) -> Next {
    Box::pin(async move {
        let message = listener.next().await;
        (listener, message)
    })
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match &mut self.0 {
            Kind::Whole(bytes) => {
                let bytes = std::mem::take(bytes);
                Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
            }
            Kind::Events(coming) => {
                let (listener, message) = ready!(coming.as_mut().poll(cx));
                *coming = next(listener);
                Poll::Ready(message.map(|message| Ok(Frame::data(message))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(&self.0, Kind::Whole(bytes) if bytes.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Events(_) => SizeHint::default(),
        }
    }
}

type Answer = Response<Body>;

/// What a request asks for.
#[derive(Debug, PartialEq, Eq)]
enum Route<'a> {
    /// The place of the page.
    Elsewhere,
    Asset(&'a str),
    Series,
    Points,
    Run,
    Events,
}

fn route(path: &str) -> Option<Route<'_>> {
    if matches!(path, "/" | "/monitor") {
        return Some(Route::Elsewhere);
    }
    Some(match path.strip_prefix("/monitor/")? {
        "series" => Route::Series,
        "points" => Route::Points,
        "run" => Route::Run,
        "events" => Route::Events,
        name => Route::Asset(name),
    })
}

/// Returns the value of a field of a query.
fn field(query: Option<&str>, name: &str) -> Option<String> {
    let query = query.filter(|query| query.len() <= QUERY)?;
    let value = query.split('&').find_map(|field| field.strip_prefix(name)?.strip_prefix('='))?;
    percent_decode_str(value).decode_utf8().ok().map(std::borrow::Cow::into_owned)
}

fn plain(status: StatusCode, kind: &'static str, content: Bytes) -> Answer {
    let mut answer = Response::new(Body(Kind::Whole(content)));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    for (name, value) in [
        (CONTENT_TYPE, kind),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        (CACHE_CONTROL, "no-cache"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    answer
}

fn failure(status: StatusCode, text: &str) -> Answer {
    plain(status, JSON, serde_json::to_vec(&json!({ "error": text })).unwrap_or_default().into())
}

/// Answers with a content, unless the client has it.
fn tagged(parts: &Parts, kind: &'static str, tag: &str, content: impl Into<Bytes>) -> Answer {
    let known = parts.headers.get_all(IF_NONE_MATCH).iter();
    let has = known.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(',')).any(|one| {
        let one = one.trim();
        one == "*" || one.strip_prefix("W/").unwrap_or(one) == tag
    });
    let mut answer = if has {
        plain(StatusCode::NOT_MODIFIED, kind, Bytes::new())
    } else {
        plain(StatusCode::OK, kind, content.into())
    };
    if let Ok(tag) = HeaderValue::from_str(tag) {
        answer.headers_mut().insert(ETAG, tag);
    }
    answer
}

impl Page {
    /// Makes a page of a history and a live source.
    pub fn new(runs: Arc<dyn Runs>, live: impl Live) -> Arc<Self> {
        Arc::new(Self { runs, live: Box::new(live), hub: Hub::new(), readers: Semaphore::new(READERS) })
    }

    /// Does what listeners wait for: looks at what is live, and for new runs. It does not return.
    pub async fn run(&self) {
        tokio::join!(self.hub.run(&*self.live), self.look_for_runs());
    }

    async fn look_for_runs(&self) {
        let mut known = None;
        loop {
            self.hub.heard().await;
            let version = self.read(super::runs::Runs::version).await;
            if known.as_ref().is_some_and(|known| *known != version) {
                self.hub.runs_changed();
            }
            known = Some(version);
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Reads the history on a thread that may block.
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&dyn Runs) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        // It is never closed.
        let _turn = self.readers.acquire().await;
        let runs = self.runs.clone();
        let read = tokio::task::spawn_blocking(move || read(&*runs)).await;
        read.map_err(|error| Error(format!("the history was not read: {error}")))?
    }

    /// Answers a request. Its body, if there is one, is not read. Without `hosts` a request may name any host: its client is no
    /// browser.
    pub async fn answer(&self, parts: &Parts, hosts: Option<&Hosts>) -> Answer {
        let route = route(parts.uri.path());
        let is_page = matches!(route, Some(Route::Elsewhere | Route::Asset("")));
        if let Some((status, text)) = guard::refusal(&parts.headers, &parts.uri, hosts, is_page) {
            return plain(status, TEXT, format!("{text}\n").into());
        }
        if parts.method != Method::GET && parts.method != Method::HEAD {
            let mut answer = failure(StatusCode::METHOD_NOT_ALLOWED, "the monitor only shows: GET and HEAD");
            answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return answer;
        }
        let query = parts.uri.query();
        let unknown = || failure(StatusCode::NOT_FOUND, "there is no such thing here");
        let known = match route {
            None => return unknown(),
            Some(Route::Elsewhere) => {
                let mut answer = plain(StatusCode::FOUND, TEXT, Bytes::new());
                answer.headers_mut().insert(LOCATION, HeaderValue::from_static("/monitor/"));
                return answer;
            }
            Some(Route::Asset(name)) => {
                return assets::find(name)
                    .map_or_else(unknown, |asset| tagged(parts, asset.kind, &asset.tag, asset.content));
            }
            Some(Route::Events) => return self.events(parts),
            Some(Route::Series) => self.read(|runs| runs.series().map(|all| to_json(&all))).await.map(Some),
            Some(Route::Points) => {
                let Some(series) = field(query, "series") else { return unknown() };
                self.read(move |runs| {
                    runs.points(&series).map(|points| points.map(|points| to_json(&points)))
                })
                .await
            }
            Some(Route::Run) => {
                let Some(id) = field(query, "id").and_then(|id| id.parse().ok()) else { return unknown() };
                let width = field(query, "width").and_then(|width| width.parse().ok()).unwrap_or(WIDTH);
                self.read(move |runs| runs.run(id).map(|run| run.map(|run| described(run, width)))).await
            }
        };
        match known {
            Ok(Some(content)) => tagged(parts, JSON, &assets::tag(&content), content),
            Ok(None) => unknown(),
            Err(error) => failure(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
        }
    }

    fn events(&self, parts: &Parts) -> Answer {
        let mut answer = plain(StatusCode::OK, "text/event-stream", Bytes::new());
        answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        // nginx, in front of it, would collect the events.
        answer.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
        if parts.method == Method::GET {
            *answer.body_mut() = Body(Kind::Events(next(self.hub.listen())));
        }
        answer
    }
}

fn to_json(value: &impl serde::Serialize) -> Vec<u8> {
    // Fails only for maps whose keys are no strings.
    serde_json::to_vec(value).unwrap_or_default()
}

/// Writes a run with the picture of its timeline, so many px wide.
fn described(mut run: wardian_history::Run, width: u32) -> Vec<u8> {
    let timeline = run.timeline.take();
    let look = wardian_pictures::Look::new(width).inline();
    let picture = timeline.as_ref().map(|timeline| wardian_pictures::timeline(timeline, &look));
    let rows = timeline.as_ref().map_or(0, |timeline| timeline.rows.len());
    let waits = timeline.map(|timeline| timeline.waits).unwrap_or_default();
    to_json(&json!({ "run": run, "series": run.series(), "rows": rows, "waits": waits, "picture": picture }))
}

#[cfg(test)]
mod tests;
