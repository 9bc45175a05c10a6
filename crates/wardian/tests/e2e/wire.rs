//! Recordings of the original client and server, played again: the client's bytes of each connection go to a
//! server, and what it answers is compared with what was recorded.
//!
//! In the recordings a block is `C> [+ms] n bytes` (client) or `S> …` (server), its bytes indented by two spaces
//! and escaped (`\r \n \t \\ \xNN`, `\z{N}`: N zeros); `-- FIN --` is a half-close.
//!
//! Not compared: the value of `Date`, the order of header lines, generated ids, the numbers of streams.

use crate::support::Server;
use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use wardian_garden::wire::ContainerSpec;

/// Differences that are meant: scenario, what was recorded (`…`: anything), what is right here, why.
const ACCEPTED: &[(&str, &str, &str, &str)] = &[
    (
        "012",
        "\"garden.network.container-ip\":…\"garden.state\"",
        "\"garden.state\"",
        "containers have no outside network yet, so no properties of it",
    ),
    ("012", ",\"kawasaki.bridge-interface\":…\"new\":", ",\"new\":", "the same: these are its bookkeeping"),
    ("012", ",\"kawasaki.bridge-interface\":…}", "}", "the same: these are its bookkeeping"),
    ("020", "runc exec: exit status 255: exec failed: ", "", "there is no runc"),
    ("020", "unable to start container process: invalid env", "invalid env", "there is no runc"),
];

/// Connections that are not played, and why.
const SKIPPED: &[(&str, &[usize], &str)] = &[
    ("013", &[17, 18, 19, 20], "networks and grace times are not supported yet"),
    (
        "013",
        &[3, 10, 11, 13, 14, 15, 16, 21, 22],
        "an unknown handle is a ContainerNotFoundError here, not an error of runc, nor silence",
    ),
    ("020", &[5], "terminals are not supported yet"),
];

#[derive(Debug)]
enum What {
    Client(Vec<u8>),
    Server(Vec<u8>),
    ClientEnd,
    ServerEnd,
}

#[derive(Debug)]
struct Event {
    at: f64,
    connection: usize,
    what: What,
}

fn unescape(line: &str, to: &mut Vec<u8>) {
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            to.extend(c.encode_utf8(&mut [0; 4]).bytes());
            continue;
        }
        match chars.next() {
            Some('r') => to.push(b'\r'),
            Some('n') => to.push(b'\n'),
            Some('t') => to.push(b'\t'),
            Some('x') => {
                let digits: String = chars.by_ref().take(2).collect();
                to.push(u8::from_str_radix(&digits, 16).unwrap());
            }
            Some('z') => {
                let count: String = chars.by_ref().skip(1).take_while(|c| *c != '}').collect();
                to.resize(to.len() + count.parse::<usize>().unwrap(), 0);
            }
            Some('\\') => to.push(b'\\'),
            other => panic!("unknown escape {other:?}"),
        }
    }
}

fn parse(text: &str) -> Vec<Event> {
    let (mut events, mut connection): (Vec<Event>, usize) = (Vec::new(), 0);
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("== conn ") {
            connection = rest.trim_end_matches(" ==").parse().unwrap();
        } else if connection == 0 {
            continue;
        } else if let Some(rest) = line.strip_prefix("  ") {
            match &mut events.last_mut().unwrap().what {
                What::Client(bytes) | What::Server(bytes) => unescape(rest, bytes),
                end => panic!("bytes after {end:?}"),
            }
        } else if line.starts_with("C> ") || line.starts_with("S> ") {
            let (at, rest) = line[5..].split_once("] ").unwrap();
            let what = match (line.starts_with('C'), rest.starts_with("--")) {
                (true, true) => What::ClientEnd,
                (false, true) => What::ServerEnd,
                (true, false) => What::Client(Vec::new()),
                (false, false) => What::Server(Vec::new()),
            };
            events.push(Event { at: at.trim_start_matches('+').parse().unwrap(), connection, what });
        }
    }
    events.sort_by(|a, b| a.at.total_cmp(&b.at));
    events
}

/// The value of a JSON field in a text, where it is a string.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.split_once(&format!("\"{name}\":\""))?.1.split_once('"').map(|(value, _)| value)
}

/// Replace what lies between the two halves of `from` (at its `…`), both included.
fn replace(text: &str, from: &str, to: &str) -> Option<String> {
    let (start, end) = from.split_once('…').unwrap_or((from, ""));
    let (before, rest) = text.split_once(start)?;
    let (_, after) = if end.is_empty() { ("", rest) } else { rest.split_once(end)? };
    Some(format!("{before}{to}{after}"))
}

/// Header lines sorted, the date's value and, unless `length`, the length left out.
fn normal(text: &str, length: bool) -> String {
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return text.to_owned() };
    let mut lines: Vec<&str> = head.split("\r\n").collect();
    for line in &mut lines {
        if line.starts_with("Date: ") {
            *line = "Date:";
        }
    }
    lines.retain(|line| length || !line.starts_with("Content-Length: "));
    lines[1..].sort_unstable();
    format!("{}\r\n\r\n{body}", lines.join("\r\n"))
}

/// One connection, and what has come and should have come over it.
struct Connection {
    stream: UnixStream,
    got: Vec<u8>,
    expected: String,
    /// The recording was changed: its length says nothing.
    changed: bool,
    ended: bool,
}

struct Player {
    scenario: String,
    socket: PathBuf,
    connections: BTreeMap<usize, Connection>,
    /// Recorded ids and streams, and what they are here.
    ids: BTreeMap<String, String>,
    streams: BTreeMap<String, String>,
}

impl Player {
    fn send(&mut self, connection: usize, bytes: &[u8]) {
        let mut text = String::from_utf8(bytes.to_vec()).unwrap();
        for (recorded, here) in &self.ids {
            text = text.replace(recorded, here);
        }
        for (recorded, here) in &self.streams {
            text = text.replace(&format!("/attaches/{recorded}/"), &format!("/attaches/{here}/"));
        }
        let socket = &self.socket;
        let to = self.connections.entry(connection).or_insert_with(|| {
            let stream = UnixStream::connect(socket).unwrap();
            stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
            Connection { stream, got: Vec::new(), expected: String::new(), changed: false, ended: false }
        });
        to.stream.write_all(text.as_bytes()).unwrap();
    }

    /// What has come, in the words of the recording.
    fn got(&mut self, number: usize) -> String {
        let connection = &self.connections[&number];
        let mut text = String::from_utf8_lossy(&connection.got).into_owned();
        let expected = connection.expected.clone();
        for name in ["process_id", "Handle", "stream_id"] {
            if let (Some(recorded), Some(here)) = (field(&expected, name), field(&text, name)) {
                let map = if name == "stream_id" { &mut self.streams } else { &mut self.ids };
                map.entry(recorded.to_owned()).or_insert_with(|| here.to_owned());
            }
        }
        for (recorded, here) in self.ids.iter().filter(|(_, here)| !here.is_empty()) {
            text = text.replace(here, recorded);
        }
        for (recorded, here) in &self.streams {
            let name = |value: &str| format!("\"stream_id\":\"{value}\"");
            if expected.contains(&name(recorded)) {
                text = text.replace(&name(here), &name(recorded));
            }
        }
        text
    }

    /// Read until everything that should have come has; `end`: and the connection's end.
    fn receive(&mut self, number: usize, more: &[u8], end: bool) {
        let mut more = String::from_utf8_lossy(more).into_owned();
        let connection = self.connections.get_mut(&number).unwrap();
        for (_, from, to, _) in ACCEPTED.iter().filter(|row| self.scenario.starts_with(row.0)) {
            if let Some(changed) = replace(&more, from, to) {
                (more, connection.changed) = (changed, true);
            }
        }
        connection.expected.push_str(&more);
        let started = Instant::now();
        loop {
            let (got, connection) = (self.got(number), self.connections.get_mut(&number).unwrap());
            let expected = normal(&connection.expected, !connection.changed);
            let got = normal(&got, !connection.changed);
            if got.starts_with(&expected) && (!end || (connection.ended && got == expected)) {
                return;
            }
            let late = started.elapsed() > Duration::from_secs(5)
                || (connection.ended && started.elapsed().as_millis() > 100);
            assert!(
                !late,
                "{}, connection {number}:\n  recorded {expected:?}\n  here     {got:?}",
                self.scenario
            );
            let mut buffer = [0; 65536];
            match connection.stream.read(&mut buffer) {
                Ok(0) => connection.ended = true,
                Ok(n) => connection.got.extend(&buffer[..n]),
                Err(_) => {}
            }
        }
    }

    fn play(&mut self, recording: &str) {
        for Event { connection, what, .. } in parse(recording) {
            let skips = |row: &&(&str, &[usize], &str)| {
                self.scenario.starts_with(row.0) && row.1.contains(&connection)
            };
            if SKIPPED.iter().any(|row| skips(&row)) {
                continue;
            }
            match what {
                What::Client(bytes) => self.send(connection, &bytes),
                What::Server(bytes) => self.receive(connection, &bytes, false),
                What::ServerEnd => self.receive(connection, b"", true),
                What::ClientEnd => {
                    // The other side may have closed already.
                    let _ = self.connections[&connection].stream.shutdown(Shutdown::Write);
                }
            }
        }
    }
}

async fn scenario(name: &str, containers: &[(&str, &[(&str, &str)])]) {
    let server = Server::start().await;
    let alice = "root:x:0:0:root:/root:/bin/sh\nalice:x:1001:1010::/home/alice:/bin/sh\n";
    let image = server.image_with("etc/passwd", alice);
    for (handle, properties) in containers {
        let properties = properties.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let handle = (*handle).to_owned();
        let spec = ContainerSpec { handle, rootfs: image.clone(), properties, ..Default::default() };
        server.client().create(&spec).await.unwrap();
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/wire").join(format!("{name}.txt"));
    let mut player = Player {
        scenario: name.to_owned(),
        socket: server.socket(),
        connections: BTreeMap::new(),
        ids: BTreeMap::new(),
        streams: BTreeMap::new(),
    };
    player.play(&std::fs::read_to_string(path).unwrap());
    drop(player);
    server.finish().await;
}

macro_rules! scenarios {
    ($($function:ident $name:literal $containers:expr;)*) => {
        $(#[tokio::test] async fn $function() { scenario($name, $containers).await; })*
    };
}

scenarios! {
    ping "001-ping" &[];
    create_minimal "003-create-minimal" &[];
    list "007-list" &[("fx-l1", &[("color", "red"), ("n", "1")]), ("fx-l2", &[("color", "red"), ("n", "2")])];
    properties "012-properties" &[("fx-properties", &[("k", "v")])];
    unknown_handle "013-unknown-handle" &[];
    run_echo "014-run-echo" &[("fx-run-echo", &[])];
    run_stdin "015-run-stdin-cat" &[("fx-run-stdin-cat", &[])];
    attach_unknown "019-attach-unknown" &[("fx-attach-unknown", &[])];
    missing_executable "020-run-missing-executable" &[("fx-run-missing-executable", &[])];
    destroy "036-destroy" &[("fx-destroy", &[])];
}
