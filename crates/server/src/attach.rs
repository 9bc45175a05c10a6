//! Connections that have left HTTP: the control connection of a process, and its output.

use crate::convert::window;
use crate::events::{self, Events};
use crate::patience::Patience;
use crate::reply::{Failure, date};
use crate::socket::ReadHalf;
use crate::state::State;
use crate::stream::{Entry, Found, Streams};
use crate::taken::{Taken, ended};
use crate::upload::{self, Upload};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hyper::Request;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::Instant;
use wardian_engine::{Input, Process, Waits};
use wardian_garden::wire::{INPUT_HEADER, Payload, Tty, WAIT_HEADER, WAIT_STREAMS};
use wardian_garden::{Decoder, encode};

/// How long a closing connection still listens: bytes that arrive unread would reset it, and the reset can
/// overtake the last words.
const LINGER: Duration = Duration::from_secs(1);

/// How often a client whose input nobody takes is looked after.
const LOOK: Duration = Duration::from_secs(1);

/// A payload of which so much has come without its end is a long one: those of Garden's client have 32 KiB of input …
const LONG: usize = 64 << 10;
/// … and has so long for the rest.
const LONGEST: Duration = Duration::from_secs(60);

/// A request that has been granted; its connection comes next.
pub(crate) enum Accepted {
    Process(Client, Greeting),
    Output { entry: Option<Arc<Entry>>, stderr: bool },
    Upload(Upload),
    Events(Events),
}

/// The client of a process. Its output is received from here on, and its input held, until this is dropped.
pub(crate) struct Client {
    process: Process,
    streams: Streams,
    entry: Arc<Entry>,
    /// Until the connection is taken over: whoever has gone before that has gone without a word.
    input: Option<Input>,
    /// It knows how the process has ended.
    told: bool,
}

impl Drop for Client {
    fn drop(&mut self) {
        if self.told {
            self.streams.end(&self.entry);
        } else {
            self.streams.forget(&self.entry);
        }
        if let Some(mut input) = self.input.take() {
            tokio::spawn(async move { input.leave().await });
        }
    }
}

/// What the client of a process has asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Greeting {
    /// Its start.
    created: bool,
    /// To be told whether input in base64 is taken: Garden's clients do not ask, and get Garden's reply.
    binary: bool,
    /// To be waited for.
    waits: Waits,
}

impl Greeting {
    pub(crate) fn of<T>(request: &Request<T>, created: bool) -> Self {
        let waits =
            request.headers().get(WAIT_HEADER).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let waits = WAIT_STREAMS.map(|stream| waits.split(',').any(|name| name.trim() == stream));
        Self { created, binary: request.headers().contains_key(INPUT_HEADER.0), waits }
    }
}

impl Accepted {
    /// Control a process of a container.
    pub(crate) fn process(state: &State, handle: &str, process: Process, greeting: Greeting) -> Self {
        let streams = state.streams.clone();
        let entry = streams.add(handle, &process, greeting.waits);
        let input = Some(process.input(greeting.created));
        Self::Process(Client { process, streams, entry, input, told: false }, greeting)
    }

    /// Read the output of a stream; one that does not exist is empty.
    ///
    /// # Errors
    /// It exists, and is not that of this process.
    pub(crate) fn output(state: &State, path: [&str; 3], stderr: bool) -> Result<Self, Failure> {
        let [handle, process, stream] = path;
        match state.streams.find(handle, process, stream) {
            Found::Entry(entry) => {
                entry.fetch(stderr);
                Ok(Self::Output { entry: Some(entry), stderr })
            }
            Found::Nothing => Ok(Self::Output { entry: None, stderr }),
            Found::Others => Err(wardian_engine::Error::UnknownProcess(process.to_owned()).into()),
        }
    }
}

/// It says `chunked` and what follows is not: Go's server writes it so, and Go's client takes a reply over only
/// if its head has a framing that keeps the connection open.
fn head(status: &str, json: bool, binary: bool) -> Vec<u8> {
    let kind = if json { "Content-Type: application/json\r\n" } else { "" };
    let (ours, base64) = INPUT_HEADER;
    let input = if binary { format!("{ours}: {base64}\r\n") } else { String::new() };
    let date = date(std::time::SystemTime::now());
    format!("HTTP/1.1 {status}\r\n{kind}{input}Date: {date}\r\nTransfer-Encoding: chunked\r\n\r\n")
        .into_bytes()
}

pub(crate) async fn run(state: &Arc<State>, taken: Taken, accepted: Accepted) {
    let accepted = match accepted {
        Accepted::Upload(upload) => return upload::run(state, taken, upload).await,
        Accepted::Events(events) => return events::run(state, taken, events).await,
        other => other,
    };
    let Taken { stream, early } = taken;
    let place = stream.place().cloned();
    let (mut reader, mut writer) = stream.into_split();
    match accepted {
        Accepted::Upload(_) | Accepted::Events(_) => return,
        Accepted::Process(client, greeting) => {
            tokio::select! {
                () = control(state, &mut reader, &mut writer, &early, client, greeting) => {}
                () = state.stopping() => {}
            }
        }
        Accepted::Output { entry, stderr } => {
            let theirs = entry.clone();
            let orphaned = async {
                if let Some(entry) = theirs {
                    entry.left().await;
                }
                if let Some(place) = place {
                    place.orphaned();
                }
                std::future::pending::<()>().await;
            };
            tokio::select! {
                () = orphaned => {}
                () = output(&mut writer, entry, stderr) => {}
                // Nothing is to come from there but its end.
                () = ended(&mut reader) => return,
                () = state.stopping() => {}
            }
        }
    }
    let _ = writer.shutdown().await;
    tokio::select! {
        _ = tokio::time::timeout(LINGER, ended(&mut reader)) => {}
        () = state.stopping() => {}
    }
}

/// A connection that reads a stream of somebody. Its end is the stream's.
struct Reader {
    entry: Arc<Entry>,
    stderr: bool,
    /// Bytes that are taken and not sent.
    taken: usize,
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.entry.was_read(self.stderr, self.taken);
    }
}

async fn output(writer: &mut (impl AsyncWrite + Unpin), entry: Option<Arc<Entry>>, stderr: bool) {
    let mut reader = entry.map(|entry| Reader { entry, stderr, taken: 0 });
    if writer.write_all(&head("200 OK", false, false)).await.is_err() {
        return;
    }
    let Some(reader) = &mut reader else { return };
    while let Some(piece) = reader.entry.next(stderr).await {
        reader.taken = piece.len();
        if writer.write_all(&piece).await.is_err() {
            return;
        }
        reader.taken = 0;
    }
}

async fn control(
    state: &State,
    reader: &mut ReadHalf,
    writer: &mut (impl AsyncWrite + Unpin),
    early: &[u8],
    mut client: Client,
    Greeting { created, binary, waits }: Greeting,
) {
    // A server that ends drops it, and closes nothing.
    let Some(mut input) = client.input.take() else { return };
    let (process, entry) = (&client.process, &client.entry);
    let id = process.id().to_owned();
    let mut start = head(if created { "201 Created" } else { "200 OK" }, true, binary);
    let first = Payload { process_id: id.clone(), stream_id: entry.id(), ..Payload::default() };
    start.extend(encode(&first));
    let greeted = writer.write_all(&start).await.is_ok();
    let ended = async {
        // Who waits for all output may have been asked to end meanwhile, and cannot know that nothing is left to be ended.
        if waits.contains(&true)
            && let Some(status) = process.outlived().await
        {
            let payload =
                Payload { process_id: id.clone(), ended: Some(status.into()), ..Payload::default() };
            drop(writer.write_all(&encode(&payload)).await);
        }
        let status = process.wait().await;
        entry.delivered().await;
        status
    };
    let status = tokio::select! {
        status = ended, if greeted => Some(status),
        () = listen(state, reader, early, process, &mut input), if greeted => None,
        else => None,
    };
    let lost = entry.lost();
    if lost > 0 {
        tracing::warn!(process = id, lost, "process.output-lost");
    }
    let last = match status {
        Some(Ok(status)) => Payload { exit_status: Some(status.into()), ..Payload::default() },
        Some(Err(error)) => Payload { error: Some(error.to_string()), ..Payload::default() },
        None => {
            // The client has gone: the process sees the end of its input, and lives. What it says to that is not for the
            // client any more.
            drop(client);
            input.leave().await;
            return;
        }
    };
    client.told = writer.write_all(&encode(&Payload { process_id: id, lost, ..last })).await.is_ok();
    let _ = writer.shutdown().await;
}

/// Do what the client says, until it goes.
async fn listen(state: &State, reader: &mut ReadHalf, early: &[u8], process: &Process, input: &mut Input) {
    let mut decoder = Decoder::default();
    decoder.push(early);
    let mut buffer = vec![0; 16 << 10];
    let mut room = None;
    loop {
        loop {
            match decoder.next_value::<Payload>() {
                Ok(Some(payload)) => {
                    let obeyed = tokio::select! {
                        biased;
                        obeyed = obey(process, payload, input) => obeyed,
                        () = gone(reader, state.patience) => return,
                    };
                    if let Err(error) = obeyed {
                        tracing::warn!(process = process.id(), error, "process.refused");
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    tracing::error!(process = process.id(), %error, "process.nonsense-from-client");
                    return;
                }
            }
        }
        // A long payload has room among few, and not for ever.
        let read = if decoder.held() > LONG {
            if room.is_none() {
                room = Some((state.rooms(reader.is_local()).payload().await, Instant::now() + LONGEST));
            }
            let until = room.as_ref().map_or_else(Instant::now, |(_, until)| *until);
            match tokio::time::timeout_at(until, reader.read(&mut buffer)).await {
                Ok(read) => read,
                Err(_) => {
                    tracing::warn!(process = process.id(), "process.payload-without-end");
                    return;
                }
            }
        } else {
            room = None;
            reader.read(&mut buffer).await
        };
        match read {
            Ok(0) | Err(_) => return,
            Ok(n) => decoder.push(&buffer[..n]),
        }
    }
}

/// The client is gone, and what it has sent last is still in nobody's hands after the time that a tar has.
async fn gone(reader: &ReadHalf, Patience(patience): Patience) {
    while !reader.hung_up() {
        tokio::time::sleep(LOOK).await;
    }
    match patience {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}

/// Of several wishes in one payload the first of terminal, input, signal counts.
async fn obey(process: &Process, payload: Payload, input: &mut Input) -> Result<(), String> {
    match payload {
        Payload { tty: Some(Tty { window_size: Some(size) }), .. } => {
            process.resize(window(&size)).await.map_err(|error| error.to_string())
        }
        Payload { tty: Some(Tty { window_size: None }), .. } => Ok(()),
        Payload { source: Some(_), data: Some(data), .. } => {
            // After its end, or when the process has closed its side: signals still count.
            drop(input.write(data.as_bytes()).await);
            Ok(())
        }
        Payload { source: Some(_), base64: Some(text), .. } => {
            let data = BASE64.decode(text).map_err(|error| format!("bad input: {error}"))?;
            drop(input.write(&data).await);
            Ok(())
        }
        Payload { source: Some(_), data: None, .. } => {
            input.close().await;
            Ok(())
        }
        Payload { signal: Some(signal @ 0..=1), .. } => {
            let number = if signal == 0 { 15 } else { 9 };
            process.signal(number).await.map_err(|error| error.to_string())
        }
        Payload { signal, .. } => {
            input.close().await;
            Err(signal.map_or("neither input nor signal".to_owned(), |n| format!("unknown signal {n}")))
        }
    }
}
