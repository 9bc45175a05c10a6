//! Taken-over connections: the control connection of a process, and its output streams.

use crate::convert::window;
use crate::events::{self, Events};
use crate::kept;
use crate::patience::Patience;
use crate::reply::{Failure, date};
use crate::socket::ReadHalf;
use crate::state::State;
use crate::stream::{Entry, Found, Streams};
use crate::taken::{Taken, ended};
use crate::upload::{self, Upload};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use hyper::Request;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::Instant;
use wardian_engine::{Input, Process, Waits};
use wardian_garden::wire::{INPUT_HEADER, Payload, Tty, WAIT_HEADER, WAIT_STREAMS};
use wardian_garden::{Decoder, encode};

/// How long a closing connection is still read: unread bytes would make the kernel reset it, and the reset
/// can overtake the last bytes sent.
const LINGER: Duration = Duration::from_secs(1);

/// How often the connection is checked of a client whose input the process does not take.
const LOOK: Duration = Duration::from_secs(1);

/// A payload of which more than this has come without its end is a long one: those of Garden's client have 32
/// KiB of input …
const LONG: usize = 64 << 10;
/// … and its rest must arrive within this time.
const LONGEST: Duration = Duration::from_secs(60);

/// An accepted request, whose connection is taken over next.
pub(crate) enum Accepted {
    Process(Client, Greeting),
    Output { entry: Option<Arc<Entry>>, stderr: bool },
    Upload(Upload),
    Events(Events),
    Kept(kept::Output),
}

/// The client of a process. Dropping it ends the output stream and its hold on stdin.
pub(crate) struct Client {
    process: Process,
    streams: Streams,
    entry: Arc<Entry>,
    /// The writer handle for stdin until the connection is taken over; a client that has gone before that has
    /// closed nothing.
    input: Option<Input>,
    /// The client was told how the process has ended.
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

/// The options of a client's request for a process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Greeting {
    /// The request started the process.
    created: bool,
    /// The client asks whether input in base64 is accepted. Garden's clients do not ask, and get Garden's
    /// reply.
    binary: bool,
    /// The streams whose reader the process waits for.
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
    /// Accepts a control connection for a process of a container.
    pub(crate) fn process(state: &State, handle: &str, process: Process, greeting: Greeting) -> Self {
        let streams = state.streams.clone();
        let entry = streams.add(handle, &process, greeting.waits);
        let input = Some(process.input(greeting.created));
        Self::Process(Client { process, streams, entry, input, told: false }, greeting)
    }

    /// Accepts a connection that reads an output stream; one that does not exist reads as empty.
    ///
    /// # Errors
    /// The stream exists, and is another process's.
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

/// Returns the head of a reply that is taken over. It says `chunked`, but what follows is not: Go's server
/// writes it so, and Go's client takes a reply over only if the head's framing keeps the connection open.
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
        Accepted::Kept(output) => return kept::run(state, taken, output).await,
        other => other,
    };
    let Taken { stream, early } = taken;
    let place = stream.place().cloned();
    let (mut reader, mut writer) = stream.into_split();
    match accepted {
        Accepted::Upload(_) | Accepted::Events(_) | Accepted::Kept(_) => return,
        Accepted::Process(client, greeting) => {
            tokio::select! {
                () = control(state, &mut reader, &mut writer, early, client, greeting) => {}
                () = state.stopping() => {}
            }
        }
        Accepted::Output { entry, stderr } => {
            drop(early);
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
                // Nothing but the end is expected from the client.
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

/// A connection that reads an output stream. Dropping it reports its end to the stream.
struct Reader {
    entry: Arc<Entry>,
    stderr: bool,
    /// Bytes that were taken from the stream and are not sent yet.
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
    early: Bytes,
    mut client: Client,
    Greeting { created, binary, waits }: Greeting,
) {
    // At the end of the server the handle is dropped, which does not close stdin.
    let Some(mut input) = client.input.take() else { return };
    let (process, entry) = (&client.process, &client.entry);
    let id = process.id().to_owned();
    let mut start = head(if created { "201 Created" } else { "200 OK" }, true, binary);
    let first = Payload { process_id: id.clone(), stream_id: entry.id(), ..Payload::default() };
    start.extend(encode(&first));
    let greeted = writer.write_all(&start).await.is_ok();
    let ended = async {
        // A client that waits for all output may have been asked to end the process meanwhile, and cannot
        // know that nothing is left to be ended.
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
        tracing::info!(process = id, lost, "process.output-lost");
    }
    let last = match status {
        Some(Ok(status)) => Payload { exit_status: Some(status.into()), ..Payload::default() },
        Some(Err(error)) => Payload { error: Some(error.to_string()), ..Payload::default() },
        None => {
            // The client has disconnected: the process sees the end of its input, and lives on. Dropping the
            // client first makes sure that the process's reaction is not queued for it any more.
            drop(client);
            input.leave().await;
            return;
        }
    };
    client.told = writer.write_all(&encode(&Payload { process_id: id, lost, ..last })).await.is_ok();
    let _ = writer.shutdown().await;
}

/// Carries out the client's payloads until it disconnects.
async fn listen(state: &State, reader: &mut ReadHalf, early: Bytes, process: &Process, input: &mut Input) {
    let mut decoder = Decoder::default();
    decoder.push(&early);
    drop(early);
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
                        tracing::info!(process = process.id(), error, "process.refused");
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    tracing::info!(process = process.id(), %error, "process.nonsense-from-client");
                    return;
                }
            }
        }
        // Long payloads share a bounded room, and have a deadline.
        let read = if decoder.held() > LONG {
            if room.is_none() {
                room = Some((state.rooms(reader.is_local()).payload().await, Instant::now() + LONGEST));
            }
            let until = room.as_ref().map_or_else(Instant::now, |(_, until)| *until);
            match tokio::time::timeout_at(until, reader.read(&mut buffer)).await {
                Ok(read) => read,
                Err(_) => {
                    tracing::info!(process = process.id(), "process.payload-without-end");
                    return;
                }
            }
        } else {
            if room.take().is_some() {
                decoder.shrink();
            }
            reader.read(&mut buffer).await
        };
        match read {
            Ok(0) | Err(_) => return,
            Ok(n) => decoder.push(&buffer[..n]),
        }
    }
}

/// Ready when the client has disconnected, and the process has not taken its last input within the time that
/// tars have.
async fn gone(reader: &ReadHalf, Patience(patience): Patience) {
    while !reader.hung_up() {
        tokio::time::sleep(LOOK).await;
    }
    match patience {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}

/// Carries out one payload. Of several commands in it, the first of terminal, input and signal counts.
async fn obey(process: &Process, payload: Payload, input: &mut Input) -> Result<(), String> {
    match payload {
        Payload { tty: Some(Tty { window_size: Some(size) }), .. } => {
            process.resize(window(&size)).await.map_err(|error| error.to_string())
        }
        Payload { tty: Some(Tty { window_size: None }), .. } => Ok(()),
        Payload { source: Some(_), data: Some(data), .. } => {
            // Fails after the end of the process, or when the process has closed its stdin: signals still
            // count.
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
