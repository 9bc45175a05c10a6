//! Plays recordings of the original client and server: the client's bytes of each connection go to a server, and
//! what it answers is compared with what was recorded.
//!
//! In the recordings a block is `C> [+ms] n bytes` (client) or `S> …` (server), its bytes indented by two spaces
//! and escaped (`\r \n \t \\ \xNN`, `\z{N}`: N zeros); `-- FIN --` is a half-close. Blocks are played in the order of
//! their times, without the pauses between them.
//!
//! Bytes are handled as text whose characters are the bytes (Latin-1), so that tars survive.
//!
//! Not compared: the value of `Date`, the order of header lines, generated ids, the numbers of streams, the paths of
//! container directories, and the ids of networks, which are in the names of links.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long an answer may take, and how long a state that a client asks for again and again.
const PATIENCE: Duration = Duration::from_secs(20);

/// A difference that is meant.
#[derive(Debug)]
pub struct Accepted {
    /// Number of the scenario, and after a slash that of the connection if it is for one alone.
    pub place: &'static str,
    /// What was recorded; `…` is anything.
    pub recorded: &'static str,
    /// What is right here; `…` is anything.
    pub here: &'static str,
    pub why: &'static str,
}

/// Connections that are not played.
#[derive(Debug)]
pub struct Skipped {
    pub scenario: &'static str,
    pub connections: &'static [usize],
    pub why: &'static str,
}

/// How a connection is compared when not by every byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loose {
    /// Numbers in JSON are as good as any others.
    Numbers,
    /// How much of the output was there before the client came is chance: one is the end of the other.
    End,
    /// The client asks until the answer is the one that was recorded.
    Again,
    /// Times and sizes in a list of files are as good as any others.
    Files,
}

/// What a scenario needs to know.
#[derive(Debug, Default)]
pub struct Rules {
    pub accepted: &'static [Accepted],
    pub skipped: &'static [Skipped],
    /// Scenario, connections (none: all), how.
    pub loose: &'static [(&'static str, &'static [usize], Loose)],
    /// Paths and limits of the recording's host, and what they are here.
    pub host: Vec<(String, String)>,
}

/// A new server in the middle of a recording.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Restart {
    /// `SIGTERM` or `SIGKILL`.
    pub signal: String,
    pub flags: Vec<String>,
}

#[derive(Debug)]
enum What {
    Client(Vec<u8>),
    Server(Vec<u8>),
    ClientEnd,
    ServerEnd,
    /// The server gets a signal, and is started again with these flags.
    Restart(Restart),
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
    let time = |text: &str| text.trim_start_matches('+').parse::<f64>().unwrap();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("== conn ") {
            connection = rest.trim_end_matches(" ==").parse().unwrap();
        } else if connection == 0 {
            if let Some((at, signal)) = line.split_once("] --- server gets ") {
                let (signal, flags) = signal.split_once(" and is started again [").unwrap();
                let flags = flags.trim_end_matches(']').split_whitespace().map(str::to_owned).collect();
                let restart = Restart { signal: signal.to_owned(), flags };
                events.push(Event { at: time(&at[1..]), connection, what: What::Restart(restart) });
            }
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
            events.push(Event { at: time(at), connection, what });
        }
    }
    events.sort_by(|a, b| a.at.total_cmp(&b.at));
    events
}

fn latin(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| char::from(*byte)).collect()
}

fn bytes(latin: &str) -> Vec<u8> {
    latin.chars().map(|c| u8::try_from(u32::from(c)).unwrap()).collect()
}

/// The values of a JSON field in a text, where they are strings.
fn values<'a>(text: &'a str, name: &str) -> Vec<&'a str> {
    let start = format!("\"{name}\":\"");
    text.split(&start).skip(1).filter_map(|rest| rest.split_once('"').map(|(value, _)| value)).collect()
}

/// Replace what lies between the two halves of `from` (at its `…`), both included.
fn replace(text: &str, from: &str, to: &str) -> Option<String> {
    let (start, end) = from.split_once('…').unwrap_or((from, ""));
    let (before, rest) = text.split_once(start)?;
    let (_, after) = if end.is_empty() { ("", rest) } else { rest.split_once(end)? };
    Some(format!("{before}{to}{after}"))
}

/// A row's text as [`latin`] has it; `…` stays.
fn pattern(text: &str) -> String {
    text.split('…').map(|part| latin(part.as_bytes())).collect::<Vec<_>>().join("…")
}

/// Whether a text is as it should be, or if it has not ended begins so; `…` is anything.
pub fn matches(got: &str, expected: &str, whole: bool) -> bool {
    let Some((start, rest)) = expected.split_once('…') else {
        return if whole { got == expected } else { got.starts_with(expected) };
    };
    let Some(got) = got.strip_prefix(start) else { return false };
    let next = rest.split('…').next().unwrap_or_default();
    if whole && !rest.contains('…') {
        return got.ends_with(rest);
    }
    got.match_indices(next).any(|(at, _)| matches(&got[at..], rest, whole))
}

/// Every JSON number 0.
fn unnumbered(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("\":") {
        out.push_str(before);
        out.push_str("\":");
        let value = after.trim_start_matches(|c: char| c.is_ascii_digit());
        if value.len() < after.len() {
            out.push('0');
        }
        rest = value;
    }
    out + rest
}

/// A list of files (`ls -l`) without what depends on the file system and the clock: sizes of directories, dates, and
/// the totals of blocks.
fn undated(text: &str) -> String {
    let line = |line: &str| {
        if line.starts_with("total ") {
            return "total".to_owned();
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        if words.len() < 9 || !line.starts_with(['-', 'd', 'l']) {
            return line.to_owned();
        }
        let size = if line.starts_with('d') { "" } else { words[4] };
        [words[0], words[2], words[3], size, &words[8..].join(" ")].join(" ")
    };
    text.split('\n').map(line).collect::<Vec<_>>().join("\n")
}

/// What is in a chunked tar; `None` while it is not whole.
fn listing(chunked: &str) -> Option<String> {
    let (mut tar, mut rest) = (Vec::new(), chunked);
    loop {
        let (size, after) = rest.split_once("\r\n")?;
        let size = usize::from_str_radix(size, 16).ok()?;
        let data: String = after.chars().take(size).collect();
        if data.chars().count() < size {
            return None;
        }
        rest = after.get(data.len()..)?.strip_prefix("\r\n")?;
        if size == 0 {
            break;
        }
        tar.extend(bytes(&data));
    }
    let mut lines = Vec::new();
    for entry in tar::Archive::new(&tar[..]).entries().ok()? {
        let mut entry = entry.ok()?;
        let mut data = Vec::new();
        entry.read_to_end(&mut data).ok()?;
        let header = entry.header();
        lines.push(format!(
            "{:?} {} {:o} {}:{} {:?}",
            header.entry_type(),
            latin(&entry.path_bytes()),
            header.mode().ok()?,
            header.uid().ok()?,
            header.gid().ok()?,
            latin(&data)
        ));
    }
    Some(lines.join("\n"))
}

/// One connection, and what has come and should have come over it.
struct Connection {
    stream: UnixStream,
    sent: Vec<u8>,
    got: Vec<u8>,
    expected: String,
    /// The recording was changed: its length says nothing.
    changed: bool,
    /// Which accepted differences have been made out.
    seen: BTreeSet<usize>,
    ended: bool,
}

/// Plays one recording.
pub struct Player {
    scenario: String,
    socket: PathBuf,
    rules: Rules,
    connections: BTreeMap<usize, Connection>,
    /// Recorded ids and streams, and what they are here.
    ids: BTreeMap<String, String>,
    streams: BTreeMap<String, String>,
    events: std::vec::IntoIter<Event>,
    /// Connections on which something else came, and what.
    given_up: BTreeSet<usize>,
    differences: Vec<String>,
}

impl Player {
    pub fn new(scenario: &str, recording: &str, socket: PathBuf, rules: Rules) -> Self {
        let events = parse(recording).into_iter();
        let (connections, ids, streams) = Default::default();
        let (given_up, differences) = Default::default();
        let scenario = scenario.to_owned();
        Self { scenario, socket, rules, connections, ids, streams, events, given_up, differences }
    }

    fn is_loose(&self, connection: usize, how: Loose) -> bool {
        self.rules.loose.iter().any(|(scenario, connections, kind)| {
            self.scenario.starts_with(scenario)
                && *kind == how
                && (connections.is_empty() || connections.contains(&connection))
        })
    }

    /// A request with the ids and paths of here.
    fn translate(&self, recorded: &[u8]) -> Vec<u8> {
        let mut text = latin(recorded);
        let here = self.ids.iter().chain(self.rules.host.iter().map(|(a, b)| (a, b)));
        for (recorded, here) in here.filter(|(recorded, _)| !recorded.is_empty()) {
            text = text.replace(recorded, here);
        }
        for (recorded, here) in &self.streams {
            text = text.replace(&format!("/attaches/{recorded}/"), &format!("/attaches/{here}/"));
        }
        // What was made longer or shorter says so.
        if let (Some((head, body)), Some((_, before))) =
            (text.split_once("\r\n\r\n"), latin(recorded).split_once("\r\n\r\n"))
            && body.chars().count() != before.chars().count()
        {
            let line = |count: usize| format!("Content-Length: {count}\r\n");
            let head =
                format!("{head}\r\n").replace(&line(before.chars().count()), &line(body.chars().count()));
            text = format!("{head}\r\n{body}");
        }
        bytes(&text)
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        stream
    }

    fn send(&mut self, number: usize, recorded: &[u8]) {
        let bytes = self.translate(recorded);
        if !self.connections.contains_key(&number) {
            // What the one before has asked is begun first.
            std::thread::sleep(Duration::from_millis(20));
            let stream = self.connect();
            let (sent, got, expected, seen) = Default::default();
            let new = Connection { stream, sent, got, expected, seen, changed: false, ended: false };
            self.connections.insert(number, new);
        }
        let to = self.connections.get_mut(&number).unwrap();
        to.sent.extend(&bytes);
        // It may have been closed already: then what should have come tells.
        let _ = to.stream.write_all(&bytes);
    }

    /// What has come, in the words of the recording.
    fn got(&mut self, number: usize) -> String {
        let connection = &self.connections[&number];
        let mut text = latin(&connection.got);
        let expected = connection.expected.clone();
        for name in ["process_id", "Handle", "stream_id", "ContainerPath", "kawasaki.iptable-inst"] {
            let map = if name == "stream_id" { &mut self.streams } else { &mut self.ids };
            for (recorded, here) in values(&expected, name).into_iter().zip(values(&text, name)) {
                map.entry(recorded.to_owned()).or_insert_with(|| here.to_owned());
            }
        }
        let here = self.ids.iter().chain(self.rules.host.iter().map(|(a, b)| (a, b)));
        for (recorded, here) in here.filter(|(_, here)| !here.is_empty()) {
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

    /// Header lines sorted, the date's value and, unless `length`, the length left out; then what is loose.
    fn normal(&self, number: usize, text: &str, length: bool) -> String {
        let Some((head, body)) = text.split_once("\r\n\r\n") else { return text.to_owned() };
        // Another reply behind it?
        let (body, next) = body.find("HTTP/1.1 ").map_or((body, ""), |at| body.split_at(at));
        let mut lines: Vec<&str> = head.split("\r\n").collect();
        for line in &mut lines {
            if line.starts_with("Date: ") {
                *line = "Date:";
            }
        }
        lines.retain(|line| length || !line.starts_with("Content-Length: "));
        lines[1..].sort_unstable();
        let tar = lines.contains(&"Content-Type: application/octet-stream");
        let mut body = if tar { listing(body).unwrap_or_default() } else { body.to_owned() };
        if self.is_loose(number, Loose::Numbers) {
            body = unnumbered(&body);
        }
        if self.is_loose(number, Loose::Files) {
            body = undated(&body);
        }
        format!("{}\r\n\r\n{body}{}", lines.join("\r\n"), self.normal(number, next, length))
    }

    /// What should come next is `more`, changed where that is accepted.
    fn expect(&mut self, number: usize, more: &[u8]) {
        let connection = self.connections.get_mut(&number).unwrap();
        connection.expected.push_str(&latin(more));
        let place = format!("{}/{number}", &self.scenario[..3]);
        for (index, row) in self.rules.accepted.iter().enumerate() {
            if (row.place != place && row.place != &place[..3]) || connection.seen.contains(&index) {
                continue;
            }
            if let Some(changed) = replace(&connection.expected, &pattern(row.recorded), &pattern(row.here)) {
                (connection.expected, connection.changed) = (changed, true);
                connection.seen.insert(index);
            }
        }
        let expected = &connection.expected;
        connection.changed |= self.rules.host.iter().any(|(recorded, _)| expected.contains(recorded))
            || expected.contains("\"ContainerPath\"");
    }

    /// Whether what has come is what should have, or at least its beginning.
    fn fits(&mut self, number: usize, end: bool) -> Result<(), (String, String)> {
        let got = self.got(number);
        let loose = self.is_loose(number, Loose::End);
        let numbers = self.is_loose(number, Loose::Numbers) || self.is_loose(number, Loose::Files);
        let connection = &self.connections[&number];
        let (ended, length) = (connection.ended, !connection.changed && !numbers);
        let expected = self.normal(number, &connection.expected, length);
        let got = self.normal(number, &got, length);
        let body =
            |text: &str| text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
        let fits = match (loose, end) {
            (true, false) => true,
            (true, true) => {
                let (got, expected) = (body(&got), body(&expected));
                ended && !got.is_empty() && (got.ends_with(&expected) || expected.ends_with(&got))
            }
            (false, true) => ended && matches(&got, &expected, true),
            (false, false) => {
                matches(&got, &expected, false) || expected.contains("application/octet-stream")
            }
        };
        if fits { Ok(()) } else { Err((expected, got)) }
    }

    /// Read until everything that should have come has; `end`: and the connection's end.
    fn receive(&mut self, number: usize, more: &[u8], end: bool) {
        self.expect(number, more);
        let started = Instant::now();
        while let Err((expected, got)) = self.fits(number, end) {
            let again = self.is_loose(number, Loose::Again);
            let (elapsed, ended) = (started.elapsed(), self.connections[&number].ended);
            if elapsed > PATIENCE || (ended && !again && elapsed.as_millis() > 100) {
                self.differences
                    .push(format!("connection {number}:\n  recorded {expected:?}\n  here     {got:?}"));
                self.given_up.insert(number);
                return;
            }
            if ended && again {
                std::thread::sleep(Duration::from_millis(20));
                let stream = self.connect();
                let connection = self.connections.get_mut(&number).unwrap();
                connection.stream = stream;
                connection.stream.write_all(&connection.sent).unwrap();
                (connection.got, connection.ended) = (Vec::new(), false);
            }
            let connection = self.connections.get_mut(&number).unwrap();
            let mut buffer = [0; 65536];
            match connection.stream.read(&mut buffer) {
                Ok(0) => connection.ended = true,
                Ok(n) => connection.got.extend(&buffer[..n]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => connection.ended = true,
                Err(_) => {}
            }
        }
    }

    /// Play on. At a restart it stops and says which; `None`: the recording has ended. Panics then if anything was
    /// different.
    pub fn play(&mut self) -> Option<Restart> {
        while let Some(Event { connection, what, .. }) = self.events.next() {
            let scenario = &self.scenario;
            let skipped =
                |row: &Skipped| scenario.starts_with(row.scenario) && row.connections.contains(&connection);
            if self.rules.skipped.iter().any(skipped) || self.given_up.contains(&connection) {
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
                What::Restart(restart) => return Some(restart),
            }
        }
        assert!(self.differences.is_empty(), "{}\n{}", self.scenario, self.differences.join("\n"));
        None
    }
}

#[test]
fn anything() {
    assert!(matches("abcd", "a…d", true) && matches("abcd", "a…c", false) && matches("abcd", "a…b…d", true));
    assert!(!matches("abcd", "a…c", true) && !matches("abcd", "a…x", false) && !matches("abcd", "abc", true));
}

#[test]
fn numbers_and_dates_are_left_out() {
    assert_eq!(unnumbered(r#"{"a":12,"b":{"c":3},"d":"5"}"#), r#"{"a":0,"b":{"c":0},"d":"5"}"#);
    assert_eq!(undated("total 4\n-rw-r--r-- 1 0 0 3 Nov 2 07:00 f\n"), "total\n-rw-r--r-- 0 0 3 f\n");
}
