//! The handlers of the routes.

use crate::cut::Cut;
use crate::door::{Place, owed};
use crate::large::Entries;
use crate::reply::{Failure, Reply, done, failure, full, json, text, wrong_method};
use crate::room::{Held, PIECE, SMALL};
use crate::route::{Found, Route, find, query};
use crate::socket::Look;
use crate::state::State;
use crate::upload::Upload;
use crate::{attach, convert, kept, large, seen, stream, trace, transfer};
use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Limited};
use hyper::body::{Body, Incoming};
use hyper::header::EXPECT;
use hyper::{Request, StatusCode};
use std::future::{Future, pending};
use std::io::Write;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tracing::{Instrument as _, Span};
use wardian_engine::{Call, shown};
use wardian_garden::{decode_exactly, encode, wire, write};

/// The longest JSON body.
const BODY_LIMIT: usize = 1 << 20;
/// The longest specification of a container or a process: environments can be long, and longer in JSON.
const SPEC_LIMIT: usize = 4 << 20;
/// The metrics of so many containers are a small reply.
const FEW: usize = 24;
/// The containers whose metrics are read at a time for a large reply.
const MANY: usize = 512;
/// How often a waiting request checks whether its client is still connected.
const LOOK: Duration = Duration::from_millis(250);
/// How long a JSON body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// The answer to a request.
pub(crate) enum Answer {
    Reply(Reply),
    /// The connection leaves HTTP; the call lasts as long as the connection.
    Accepted(attach::Accepted, Option<Call>),
}

/// What a connection continues with after it has left HTTP.
pub(crate) struct Taking {
    pub(crate) accepted: attach::Accepted,
    pub(crate) call: Option<Call>,
    /// The request's span.
    pub(crate) span: Span,
}

impl From<Reply> for Answer {
    fn from(reply: Reply) -> Self {
        Self::Reply(reply)
    }
}

/// Whether this is the first request for a stream of a process whose client knows the stream.
pub(crate) fn fetches<T>(state: &State, request: &Request<T>) -> bool {
    let Found::Route(route @ (Route::Stdout | Route::Stderr), segments) =
        find(request.method(), request.uri().path())
    else {
        return false;
    };
    let segment = |n: usize| segments.get(n).map_or("", String::as_str);
    match state.streams.find(segment(0), segment(1), segment(2)) {
        stream::Found::Entry(entry) => entry.fetch(route == Route::Stderr),
        _ => false,
    }
}

/// Answers one request. On an error the connection is closed without an answer.
pub(crate) async fn handle(
    state: Arc<State>,
    request: Request<Incoming>,
    take: mpsc::Sender<Taking>,
) -> std::io::Result<Reply> {
    let (route, segments) = match find(request.method(), request.uri().path()) {
        Found::Route(route, segments) => (route, segments),
        Found::WrongMethod(allowed) => return Ok(wrong_method(&allowed)),
        Found::Unknown => return Ok(text(StatusCode::NOT_FOUND, "404 page not found")),
        Found::Bad => return Ok(text(StatusCode::BAD_REQUEST, "400 Bad Request")),
    };
    let handle = segments.first().map(|handle| shown(handle).into_owned()).unwrap_or_default();
    // The request runs in a task of its own: it is finished even if the client disconnects, except for
    // fetches of images, which may take long.
    let work = state.working();
    let span = trace::span(request.headers());
    let look = request.extensions().get::<Cut>().map(|cut| cut.look.clone()).unwrap_or_default();
    // A request that waited in the socket while this server was stalled may be of a client that has
    // disconnected since: HTTP flushes, which checks that, before it polls this future again.
    if matches!(route, Route::Create | Route::Destroy | Route::Run) {
        look.ask();
        tokio::task::yield_now().await;
    }
    let (_here, stays) = watch::channel(());
    let answer = async move {
        let answer = answer(&state, route, &segments, request).await;
        drop(work);
        answer
    };
    let answer = tokio::spawn(wardian_engine::for_client(stays, answer.instrument(span.clone())));
    match looking(&look, answer).await {
        Ok(Ok(Answer::Reply(reply))) => Ok(reply),
        Ok(Ok(Answer::Accepted(accepted, call))) => {
            if take.send(Taking { accepted, call, span }).await.is_ok() {
                // The connection is being taken over; this future is dropped with hyper.
                pending::<()>().await;
            }
            Err(std::io::ErrorKind::BrokenPipe.into())
        }
        Ok(Err(error)) => span.in_scope(|| failed(&handle, route, &error)),
        Err(error) => {
            span.in_scope(|| tracing::error!(handle, ?route, %error, "request panicked"));
            Ok(failure(&Failure::Refused("internal error".into()).body()))
        }
    }
}

/// Awaits `what`, and checks meanwhile whether the client is still connected: if not, this future is dropped
/// with its connection.
pub(crate) async fn looking<T>(look: &Look, what: impl Future<Output = T>) -> T {
    let mut what = pin!(what);
    loop {
        tokio::select! {
            biased;
            done = &mut what => return done,
            () = tokio::time::sleep(LOOK) => look.ask(),
        }
    }
}

fn failed(handle: &str, route: Route, error: &Failure) -> std::io::Result<Reply> {
    if matches!(error, Failure::Gone) {
        tracing::debug!(handle, ?route, "the client has gone in the middle of its request");
        return Err(std::io::ErrorKind::ConnectionAborted.into());
    }
    let body = error.body();
    // Clients find out in this way whether a file or directory exists, as `wardian cp` does with its
    // destination.
    let is_absent =
        ["No such file or directory", "Not a directory"].iter().any(|text| body.message.contains(text));
    if matches!(route, Route::StreamOut) && is_absent {
        tracing::debug!(handle, ?route, error = body.message, "server.request-failed");
    } else if error.is_the_clients() {
        tracing::info!(handle, ?route, error = body.message, "server.request-failed");
    } else {
        tracing::error!(handle, ?route, error = body.message, "server.request-failed");
    }
    Ok(full(error.status(&body), "application/json", encode(&body)))
}

async fn answer(
    state: &Arc<State>,
    route: Route,
    segments: &[String],
    request: Request<Incoming>,
) -> Result<Answer, Failure> {
    let engine = &state.engine;
    let segment = |n: usize| segments.get(n).map_or("", String::as_str);
    let handle = segment(0);
    let call = route.is_call().then(|| engine.call(handle));
    let cut = request.extensions().get::<Cut>().cloned().unwrap_or_default();
    // The room of the request's body, held until the request is answered.
    let room = match route {
        Route::Create | Route::Run | Route::BulkNetOut => {
            state.rooms(cut.local).body(length(&request, SPEC_LIMIT), cut.clone()).await?
        }
        Route::SetProperty | Route::NetOut => {
            state.rooms(cut.local).body(length(&request, BODY_LIMIT), cut.clone()).await?
        }
        _ => None,
    };
    let reply = match route {
        Route::Ping => done(),
        Route::Capacity => {
            let capacity = engine.capacity()?;
            json(&wire::Capacity {
                memory_in_bytes: capacity.memory_bytes,
                disk_in_bytes: capacity.disk_bytes,
                schedulable_disk_in_bytes: capacity.disk_bytes,
                max_containers: capacity.max_containers,
            })
        }
        Route::List => {
            let (engine, filter) = (engine.clone(), query(request.uri().query()));
            large::reply(state, cut, move |out| large::handles(out, &engine.list(&filter))).await?
        }
        Route::Create => {
            let spec = convert::container(read(request, SPEC_LIMIT, room.as_ref()).await?)
                .map_err(Failure::Refused)?;
            let (handle, warnings) = engine.create(spec).await?;
            json(&wire::Created { handle, warnings })
        }
        Route::Destroy => {
            engine.destroy(handle).await?;
            done()
        }
        Route::Info => {
            let info = engine.info(handle)?;
            large::reply(state, cut, move |out| write(out, &convert::info(&info))).await?
        }
        Route::BulkInfo => bulk_info(state, cut, request.uri().query()).await?,
        Route::Metrics => json(&convert::metrics(&engine.metrics(handle).await?)),
        Route::BulkMetrics => bulk_metrics(state, cut, request.uri().query()).await?,
        // Garden servers leave these two empty, whether the container exists or not.
        Route::DiskLimits => {
            let limits = engine.limits(handle).map(|limits| convert::disk_limits(&limits.disk));
            json(&limits.unwrap_or_default())
        }
        Route::SetDiskLimits => {
            // It replaces the whole limit: with a misspelt field it would take the limit away.
            let body = read_bytes(request, SMALL, None).await?;
            let limits = decode_exactly(&body, &wire::DiskLimits::FIELDS);
            let limits = limits.map_err(|error| Failure::Malformed(error.to_string()))?;
            let limit = convert::disk_limit(&limits).map_err(Failure::Malformed)?;
            engine.limit_disk(handle, limit).await?;
            done()
        }
        Route::BandwidthLimits => {
            let limits = engine.info(handle).ok().and_then(|info| info.network?.bandwidth());
            let limits =
                limits.map(|limits| wire::BandwidthLimits { rate: limits.rate, burst: limits.burst.into() });
            json(&limits.unwrap_or_default())
        }
        Route::CpuLimits => {
            json(&wire::CpuLimits { limit_in_shares: engine.limits(handle)?.cpu_shares, weight: 0 })
        }
        Route::MemoryLimits => {
            json(&wire::MemoryLimits { limit_in_bytes: engine.limits(handle)?.memory_bytes })
        }
        Route::Stop => {
            let stop: wire::Stop = read(request, SMALL, None).await?;
            engine.stop(handle, convert::stop(&stop).map_err(Failure::Refused)?).await?;
            done()
        }
        Route::Properties => {
            let properties = engine.properties(handle);
            large::reply(state, cut, move |out| write(out, &properties.as_deref())).await?
        }
        Route::Property => {
            let property = engine.property(handle, segment(1))?;
            let say = move |out: &mut dyn Write| {
                let mut entries = Entries::begin(out)?;
                entries.add("value", &property.as_ref())?;
                entries.end()
            };
            large::reply(state, cut, say).await?
        }
        Route::SetProperty => {
            let property: wire::PropertyValue = read(request, BODY_LIMIT, room.as_ref()).await?;
            engine.set_property(handle, segment(1), &property.value)?;
            done()
        }
        Route::RemoveProperty => {
            engine.remove_property(handle, segment(1))?;
            done()
        }
        Route::StreamIn => match request.body().size_hint().exact() {
            Some(length) if length > 0 && !request.headers().contains_key(EXPECT) => {
                let fields = query(request.uri().query());
                let transfer = transfer::begin(engine, handle, &fields).await?;
                let body = request.into_body();
                let upload = Upload { handle: handle.to_owned(), transfer, body, length };
                return Ok(Answer::Accepted(attach::Accepted::Upload(upload), call));
            }
            _ => transfer::stream_in(state, handle, request).await?,
        },
        Route::StreamOut => transfer::stream_out(state, handle, &request, call).await?,
        Route::Run => {
            let greeting = attach::Greeting::of(&request, true);
            let spec = convert::process(read(request, SPEC_LIMIT, room.as_ref()).await?)
                .map_err(Failure::Refused)?;
            let process = engine.run(handle, spec).await?;
            return Ok(Answer::Accepted(attach::Accepted::process(state, handle, process, greeting), call));
        }
        Route::Attach => {
            let process = engine.attach(handle, segment(1)).await?;
            let greeting = attach::Greeting::of(&request, false);
            return Ok(Answer::Accepted(attach::Accepted::process(state, handle, process, greeting), call));
        }
        Route::Stdout => {
            let path = [handle, segment(1), segment(2)];
            return Ok(Answer::Accepted(attach::Accepted::output(state, path, false)?, call));
        }
        Route::Stderr => {
            let path = [handle, segment(1), segment(2)];
            return Ok(Answer::Accepted(attach::Accepted::output(state, path, true)?, call));
        }
        Route::Pause => {
            engine.pause(handle).await?;
            done()
        }
        Route::Unpause => {
            engine.unpause(handle).await?;
            done()
        }
        Route::Signal => {
            let body: wire::Signal = read(request, SMALL, None).await?;
            let number = convert::signal("signal", &body.signal).map_err(Failure::Malformed)?;
            engine.signal(handle, segment(1), number).await?;
            done()
        }
        Route::Top => {
            let top = convert::top(engine.top(handle).await?);
            large::reply(state, cut, move |out| write(out, &top)).await?
        }
        Route::Changes => {
            let changes = engine.changes(handle).await?;
            large::large(state, cut, move |out| write(out, &convert::changes(&changes))).await?
        }
        Route::History => {
            let life = engine.history(handle)?;
            large::reply(state, cut, move |out| write(out, &life)).await?
        }
        Route::EgressRules => {
            let rules = engine.egress(handle).await?;
            let say = move |out: &mut dyn Write| large::list(out, rules.iter().map(convert::egress));
            large::reply(state, cut, say).await?
        }
        Route::Overall => {
            let about = engine.overall().await?;
            large::reply(state, cut, move |out| write(out, &convert::overall(&about))).await?
        }
        Route::ImagesUnderWay => {
            let images = engine.images_under_way();
            let say = move |out: &mut dyn Write| large::list(out, images.iter().map(convert::under_way));
            large::reply(state, cut, say).await?
        }
        Route::SetGraceTime => {
            // A time of null is refused: Go would read it as zero, and zero destroys the container.
            let nanoseconds: i64 = read(request, SMALL, None).await?;
            engine.set_grace_time(handle, convert::grace(nanoseconds).map_err(Failure::Refused)?)?;
            done()
        }
        Route::Events => {
            let mut fields = query(request.uri().query());
            let handle = fields.remove("handle");
            let mut time =
                |name: &str| fields.remove(name).map(|text| convert::time(name, &text)).transpose();
            let since = time("since_ms").map_err(Failure::Malformed)?;
            let until = time("until_ms").map_err(Failure::Malformed)?;
            // The handle is kept as long as the listener.
            if let Some(long) = handle.as_ref().filter(|handle| handle.len() > 255) {
                return Err(wardian_engine::Error::UnknownHandle(long.clone()).into());
            }
            let events = crate::events::Events { listener: engine.listen(since), handle, until };
            return Ok(Answer::Accepted(attach::Accepted::Events(events), call));
        }
        Route::Overviews => {
            let engine = engine.clone();
            let filter = query(request.uri().query());
            let say = move |out: &mut dyn Write| {
                large::list(out, engine.overviews(&filter).iter().map(seen::container))
            };
            large::reply(state, cut, say).await?
        }
        Route::Usages => {
            let engine = engine.clone();
            let say =
                move |out: &mut dyn Write| large::list(out, engine.usages().map(|usage| seen::usage(&usage)));
            large::large(state, cut, say).await?
        }
        Route::Details => {
            let with_env = query(request.uri().query()).contains_key("env");
            let (theirs, handle) = (engine.clone(), handle.to_owned());
            let details =
                tokio::task::spawn_blocking(move || seen::details(&theirs, &handle, with_env)).await;
            let details = details.map_err(|error| Failure::Refused(error.to_string()))??;
            large::reply(state, cut, move |out| write(out, &details)).await?
        }
        Route::Named => json(&wire::Handle { handle: engine.named(handle)? }),
        Route::Wait => {
            let process = engine.process(handle, segment(1))?;
            tokio::select! {
                ended = process.exited() => drop(ended?),
                // The process lives on.
                () = state.stopping() => return Err(Failure::Gone),
            }
            json(&seen::process(&process))
        }
        Route::Kept => {
            let process = engine.process(handle, segment(1))?;
            let follow = query(request.uri().query()).contains_key("follow");
            if process.ending().is_some() {
                // The last of it may still be in the pipe.
                process.outlived().await;
            }
            let output = kept::Output::of(&process, follow)?;
            return Ok(Answer::Accepted(attach::Accepted::Kept(output), call));
        }
        Route::Volumes => {
            let (volumes, engine) = (engine.volumes().await?, engine.clone());
            let say = move |out: &mut dyn Write| {
                large::list(out, volumes.iter().map(|used| convert::volume(&engine, used)))
            };
            large::reply(state, cut, say).await?
        }
        Route::MakeVolume => {
            let volume: wire::VolumeSpec = read(request, SMALL, None).await?;
            engine.make_volume(&volume.name).await?;
            done()
        }
        Route::PruneVolumes => json(&engine.prune_volumes().await?),
        Route::Volume => json(&convert::volume(engine, &engine.volume(segment(0)).await?)),
        Route::RemoveVolume => {
            engine.remove_volume(segment(0)).await?;
            done()
        }
        Route::NetIn => {
            let wanted = read(request, SMALL, None).await?;
            let wanted = convert::net_in(&wanted).map_err(Failure::Refused)?;
            json(&convert::mapped(engine.map_port(handle, wanted).await?))
        }
        Route::NetOut => {
            let rule = read(request, BODY_LIMIT, room.as_ref()).await?;
            let rule = convert::net_out(rule).map_err(Failure::Refused)?;
            engine.allow(handle, vec![rule], false).await?;
            done()
        }
        Route::BulkNetOut => {
            let body = read_bytes(request, SPEC_LIMIT, room.as_ref()).await?;
            let rules = wardian_garden::decode_list::<wire::NetOutRule>(&body);
            let rules = rules.map_err(|error| Failure::Refused(error.to_string()))?;
            let rules: Result<_, _> = rules.into_iter().map(convert::net_out).collect();
            engine.allow(handle, rules.map_err(Failure::Refused)?, true).await?;
            done()
        }
    };
    drop(room);
    Ok(reply.into())
}

/// Returns the length of a body: the declared one, or, without one, the limit.
fn length(request: &Request<Incoming>, limit: usize) -> u64 {
    request.body().size_hint().exact().unwrap_or(u64::MAX).min(limit as u64)
}

async fn bulk_info(state: &Arc<State>, cut: Cut, text: Option<&str>) -> Result<Reply, Failure> {
    let handles = convert::handles(&query(text)).map_err(Failure::Refused)?;
    let engine = state.engine.clone();
    let say = move |out: &mut dyn Write| {
        let mut entries = Entries::begin(out)?;
        for handle in &handles {
            entries.add(handle, &convert::bulk_info(&engine.info(handle)))?;
        }
        entries.end()
    };
    large::reply(state, cut, say).await
}

async fn bulk_metrics(state: &Arc<State>, cut: Cut, text: Option<&str>) -> Result<Reply, Failure> {
    let handles = convert::handles(&query(text)).map_err(Failure::Refused)?;
    let engine = state.engine.clone();
    if handles.len() <= FEW {
        let metrics = engine.bulk_metrics(&handles).await;
        let say = move |out: &mut dyn Write| {
            let mut entries = Entries::begin(out)?;
            for (handle, metrics) in &metrics {
                entries.add(handle, &convert::bulk_metrics(metrics))?;
            }
            entries.end()
        };
        return large::reply(state, cut, say).await;
    }
    let runtime = tokio::runtime::Handle::current();
    let say = move |out: &mut dyn Write| {
        let mut entries = Entries::begin(out)?;
        for handles in handles.chunks(MANY) {
            for (handle, metrics) in &runtime.block_on(engine.bulk_metrics(handles)) {
                entries.add(handle, &convert::bulk_metrics(metrics))?;
            }
        }
        entries.end()
    };
    large::large(state, cut, say).await
}

/// Reads a JSON body.
async fn read<T: serde::de::DeserializeOwned>(
    request: Request<Incoming>,
    limit: usize,
    room: Option<&Held>,
) -> Result<T, Failure> {
    let body = read_bytes(request, limit, room).await?;
    wardian_garden::decode(&body).map_err(|error| Failure::Refused(error.to_string()))
}

/// Reads a body.
async fn read_bytes(request: Request<Incoming>, limit: usize, room: Option<&Held>) -> Result<Bytes, Failure> {
    let place = request.extensions().get::<Arc<Place>>().cloned();
    let collect = async {
        let mut body = Limited::new(request.into_body(), limit);
        let mut whole = BytesMut::new();
        let mut told = 0;
        while let Some(frame) = owed(place.as_ref(), body.frame()).await.transpose()? {
            whole.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
            if let Some(room) = room.filter(|_| whole.len() - told >= PIECE) {
                told = whole.len();
                room.owes();
            }
        }
        if let Some(room) = room {
            room.is_whole();
        }
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(whole.freeze())
    };
    let body: Bytes = match tokio::time::timeout(BODY_TIMEOUT, collect).await {
        Ok(Ok(body)) => body,
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            return Err(Failure::Refused("request body too large".into()));
        }
        Ok(Err(_)) => return Err(Failure::Gone),
        Err(_) => return Err(Failure::Refused("the request body did not arrive in time".into())),
    };
    if place.is_some_and(|place| place.is_gone()) {
        return Err(Failure::Gone);
    }
    Ok(body)
}
