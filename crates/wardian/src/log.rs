//! The server's log: text on a terminal, otherwise one JSON object per line, in the format of the original server's
//! log:
//!
//! ```text
//! {"timestamp":"2026-01-02T03:04:05.000000000Z","level":"info","source":"wardian","message":"wardian.create.done","data":{"handle":"h","id":"…","ms":7.5}}
//! ```
//!
//! That format has no level between info and error. A warning is written as an `error`, because it needs attention.

use anyhow::{Context as _, Result};
use parking_lot::Mutex;
use serde::Serialize;
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write};
use std::time::{SystemTime, UNIX_EPOCH};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::field::MakeExt as _;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::{self, FormatFields, Writer};
use tracing_subscriber::layer::{Context, Filter as Sieve, SubscriberExt as _};
use tracing_subscriber::registry::{LookupSpan, Scope};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer, Registry, fmt, reload};
use wardian_sys::text::{Clipped, clip, tame, tame_json};

/// The maximum number of lines of one message per second; further ones are only counted. A burst of a few hundred
/// containers stays below.
const MOST: u64 = 1000;
/// The burst size of one message's token bucket, in bytes, and …
const BURST: u64 = 256 << 10;
/// … its refill per second. It is lower for failures, whatever their level: clients can cause them, with texts of any
/// length.
const RATE: u64 = 256 << 10;
const ERROR_RATE: u64 = 16 << 10;
/// The approximate size of a line without its values, in bytes.
const FRAME: u64 = 128;
/// The maximum number of messages that are counted: more than this program has. Messages of libraries may contain
/// numbers.
const MESSAGES: usize = 4096;
/// The maximum size of a value in bytes: clients can cause names, paths and errors of any length.
const VALUE: usize = 2048;

/// How lines look.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Text on a terminal, else JSON
    #[default]
    Auto,
    /// One JSON object a line
    Json,
    /// For people
    Text,
}

/// Changes what is logged while the server runs.
pub type Filter = reload::Handle<Targets, Registry>;

/// The variable that says what is logged.
pub const VARIABLE: &str = "WARDIAN_LOG";

/// Parses what is logged: a level, or levels by crate.
///
/// # Errors
/// What is expected.
pub fn levels(text: &str) -> Result<Targets, String> {
    text.parse().map_err(|_| {
        "expected a level (error, warn, info, debug, trace, off), or such as info,wardian_store=debug"
            .to_owned()
    })
}

/// Returns the log filter given by the environment.
pub fn wanted() -> Result<Option<Targets>> {
    let Some(value) = std::env::var_os(VARIABLE) else { return Ok(None) };
    let value = value.to_string_lossy();
    levels(&value).map(Some).map_err(|expected| anyhow::anyhow!("{VARIABLE}={value}: {expected}"))
}

/// Starts logging to standard error what is `wanted`.
pub fn start(format: Format, wanted: Targets) -> Result<Filter> {
    let (filter, handle) = reload::Layer::new(wanted);
    let terminal = std::io::stderr().is_terminal();
    let colour = terminal && crate::print::wants_colour();
    let json = format == Format::Json || (format == Format::Auto && !terminal);
    let lines = json.then(|| Lines::new("wardian", std::io::stderr(), MOST));
    let text = (!json).then(|| {
        let layer = fmt::layer().with_writer(std::io::stderr).with_ansi(colour).fmt_fields(fields());
        // Otherwise the layer reports an unwritable standard error to standard error, and panics.
        let layer = layer.log_internal_errors(false);
        layer.with_filter(Bounded(Mutex::new(Flood::new(MOST))))
    });
    let log = tracing_subscriber::registry().with(filter).with(lines).with(text);
    log.try_init().context("start the log")?;
    Ok(handle)
}

/// Formats a value for the log, cut to [`VALUE`].
fn cut(value: &dyn std::fmt::Debug) -> String {
    let mut text = Clipped::new(VALUE);
    // If the value's formatter fails, its output so far is logged.
    let _ = write!(text, "{value:?}");
    text.finish()
}

/// Formats the fields of a text line, escaped to one line and cut.
fn fields() -> impl for<'w> FormatFields<'w> + 'static {
    let format = |to: &mut Writer<'_>, field: &Field, value: &dyn std::fmt::Debug| {
        let text = cut(value);
        let text = tame(&text);
        if field.name() == "message" { write!(to, "{text}") } else { write!(to, "{}={text}", field.name()) }
    };
    format::debug_fn(format).delimited(" ")
}

/// A line of the JSON log.
#[derive(Serialize)]
struct Line<'a> {
    timestamp: String,
    level: &'a str,
    source: &'a str,
    message: String,
    data: Map<String, Value>,
}

/// The layer that writes the JSON log.
#[derive(Debug)]
pub struct Lines<W> {
    /// The program's name, with which each line's message begins.
    source: &'static str,
    out: Mutex<W>,
    flood: Mutex<Flood>,
}

impl<W: Write> Lines<W> {
    /// Returns the log of a program, which writes at most `most` lines of one message in a second.
    pub fn new(source: &'static str, out: W, most: u64) -> Self {
        Self { source, out: Mutex::new(out), flood: Mutex::new(Flood::new(most)) }
    }

    /// Writes a line of the event `path`.
    pub fn write(&self, now: SystemTime, level: &str, path: &str, data: Map<String, Value>) {
        let timestamp = humantime::format_rfc3339_nanos(now).to_string();
        let source = self.source;
        let line = Line { timestamp, level, source, message: format!("{source}.{path}"), data };
        let Ok(line) = serde_json::to_string(&line) else { return };
        // The log may be viewed on a terminal.
        let line = format!("{}\n", tame_json(&line));
        // A failure to write the log cannot be reported anywhere.
        let _ = self.out.lock().write_all(line.as_bytes());
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>, W: Write + Send + 'static> Layer<S> for Lines<W> {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(fields.data);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        // The fields of the request's spans come before those of the event.
        for span in context.event_scope(event).into_iter().flat_map(Scope::from_root) {
            if let Some(data) = span.extensions().get::<Map<String, Value>>() {
                fields.data.extend(data.clone());
            }
        }
        event.record(&mut fields);
        let metadata = event.metadata();
        let path = path(&fields.message, metadata.target());
        let level = match *metadata.level() {
            Level::ERROR | Level::WARN => "error",
            Level::INFO => "info",
            Level::DEBUG | Level::TRACE => "debug",
        };
        let now = SystemTime::now();
        let (admitted, over) = self.flood.lock().judge(&path, now, metadata, &fields);
        for (path, count) in over {
            let data = Map::from_iter([("count".to_owned(), count.into())]);
            self.write(now, "info", &format!("{path}.suppressed"), data);
        }
        if admitted {
            self.write(now, level, &path, fields.data);
        }
    }
}

/// Applies the same limits to the text log.
struct Bounded(Mutex<Flood>);

impl<S: Subscriber> Sieve<S> for Bounded {
    fn enabled(&self, _: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        true
    }

    fn event_enabled(&self, event: &Event<'_>, _: &Context<'_, S>) -> bool {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let metadata = event.metadata();
        let path = path(&fields.message, metadata.target());
        let mut flood = self.0.lock();
        let (admitted, over) = flood.judge(&path, SystemTime::now(), metadata, &fields);
        for (path, count) in over {
            // A failure to write the log cannot be reported anywhere.
            let _ = writeln!(std::io::stderr(), "{}: {count} more suppressed", tame(&path));
        }
        admitted
    }
}

/// Returns the event name: `create.done` is kept; a message with blanks gets the name of its crate, as
/// `server.request-failed`.
fn path(message: &str, target: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let text = message.trim();
    if text.contains('.') && text.chars().all(plain) {
        return text.to_owned();
    }
    let mut modules = target.split("::");
    let first = modules.next().unwrap_or_default();
    let place = first.strip_prefix("wardian_").or_else(|| modules.next()).unwrap_or(first);
    let words = text.split(|c| !plain(c)).filter(|word| !word.is_empty());
    format!("{place}.{}", words.collect::<Vec<_>>().join("-"))
}

#[derive(Debug, Default)]
struct Fields {
    message: String,
    data: Map<String, Value>,
}

impl Fields {
    fn put(&mut self, field: &Field, value: impl Into<Value>) {
        self.data.insert(field.name().to_owned(), value.into());
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value);
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value);
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value);
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value);
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        let value = clip(value, VALUE).into_owned();
        if field.name() == "message" { self.message = value } else { self.put(field, value) }
    }
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let value = cut(value);
        if field.name() == "message" { self.message = value } else { self.put(field, value) }
    }
}

/// The rate limit of messages, by number and by bytes.
#[derive(Debug)]
struct Flood {
    most: u64,
    said: HashMap<String, Said>,
}

/// The counters of one message.
#[derive(Debug)]
struct Said {
    /// The second in which it was last logged.
    second: u64,
    /// How often it was logged in that second.
    count: u64,
    /// The bytes left in its token bucket.
    room: u64,
    /// How often it was dropped since the last report.
    dropped: u64,
}

impl Flood {
    fn new(most: u64) -> Self {
        Self { most, said: HashMap::new() }
    }

    /// [`Flood::admit`] for an event.
    fn judge(
        &mut self,
        path: &str,
        now: SystemTime,
        metadata: &Metadata<'_>,
        fields: &Fields,
    ) -> (bool, Vec<(String, u64)>) {
        let second = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let is_failure = *metadata.level() <= Level::WARN || fields.data.contains_key("error");
        let rate = if is_failure { ERROR_RATE } else { RATE };
        let size = |(name, value): (&String, &Value)| name.len() + value.as_str().map_or(8, str::len);
        let values: usize = fields.data.iter().map(size).sum();
        self.admit(path, second, FRAME + values as u64, rate)
    }

    /// Returns whether a message of this many bytes may be written, with `rate` as its refill per second, and the
    /// messages dropped in earlier seconds with their numbers.
    fn admit(&mut self, path: &str, second: u64, bytes: u64, rate: u64) -> (bool, Vec<(String, u64)>) {
        let mut over = Vec::new();
        for (path, said) in &mut self.said {
            if said.dropped > 0 && said.second != second {
                over.push((path.clone(), std::mem::take(&mut said.dropped)));
            }
        }
        if !self.said.contains_key(path) && self.said.len() >= MESSAGES {
            self.said.clear();
        }
        let new = || Said { second, count: 0, room: BURST, dropped: 0 };
        let said = self.said.entry(path.to_owned()).or_insert_with(new);
        if said.second != second {
            let gained = rate.saturating_mul(second.saturating_sub(said.second));
            said.room = said.room.saturating_add(gained).min(BURST);
            (said.second, said.count) = (second, 0);
        }
        said.count += 1;
        let admitted = said.count <= self.most && said.room > 0;
        if admitted {
            said.room = said.room.saturating_sub(bytes);
        } else {
            said.dropped += 1;
        }
        (admitted, over)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().extend(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(most: u64, say: impl FnOnce()) -> Vec<Value> {
        let buffer = Buffer::default();
        let log = tracing_subscriber::registry().with(Lines::new("wardian", buffer.clone(), most));
        tracing::subscriber::with_default(log, say);
        let bytes = buffer.0.lock().clone();
        String::from_utf8(bytes).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn a_line_has_the_known_shape() {
        let lines = logged(10, || {
            let error = std::io::Error::other("it \"broke\"\n");
            tracing::info!(handle = "h", ms = 7.5, count = 3_u64, yes = true, "create.done");
            tracing::warn!(%error, "accept failed");
        });
        let first = &lines[0];
        assert_eq!(first["level"], "info");
        assert_eq!(first["source"], "wardian");
        assert_eq!(first["message"], "wardian.create.done");
        assert_eq!(first["data"], serde_json::json!({"handle": "h", "ms": 7.5, "count": 3, "yes": true}));
        let timestamp = first["timestamp"].as_str().unwrap();
        assert!(timestamp.len() == 30 && timestamp.as_bytes()[19] == b'.' && timestamp.ends_with('Z'));
        assert_eq!(lines[1]["level"], "error");
        assert_eq!(lines[1]["message"], "wardian.log.accept-failed");
        assert_eq!(lines[1]["data"]["error"], "it \"broke\"\n");
        let fields: Vec<&String> = first.as_object().unwrap().keys().collect();
        assert_eq!(fields.len(), 5, "{fields:?}");
    }

    #[test]
    fn what_clients_say_is_cut_and_cannot_turn_a_line_around() {
        let name = format!("a\u{202e}b\u{9b}\n{}", "x".repeat(60_000));
        let say = || {
            let span = tracing::error_span!("request", "trace-id" = name);
            span.in_scope(
                || tracing::error!(handle = name, error = %name, what = ?name, "request failed: {name}"),
            );
        };
        let buffer = Buffer::default();
        let log = tracing_subscriber::registry().with(Lines::new("wardian", buffer.clone(), 10));
        tracing::subscriber::with_default(log, say);
        let json = String::from_utf8(buffer.0.lock().clone()).unwrap();
        let line: Value = serde_json::from_str(&json).unwrap();
        // The bytes are escaped, and the parsed value is unchanged.
        assert!(line["data"]["handle"].as_str().unwrap().starts_with("a\u{202e}b\u{9b}\nxxx"), "{json}");
        let buffer = Buffer::default();
        let writer = buffer.clone();
        let layer = fmt::layer().with_writer(move || writer.clone()).with_ansi(false).fmt_fields(fields());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), say);
        let text = String::from_utf8(buffer.0.lock().clone()).unwrap();
        for line in [json, text] {
            assert!(line.len() < 6 * VALUE && line.lines().count() == 1, "{line}");
            assert!(line.trim_end().chars().all(wardian_sys::text::is_plain), "{line}");
            assert!(line.contains("(60"), "{line}");
        }
    }

    #[test]
    fn a_request_names_its_trace_in_every_line() {
        let lines = logged(10, || {
            let span = tracing::error_span!("request", "trace-id" = "5be2", "span-id" = "77");
            span.in_scope(|| tracing::info!(handle = "h", "create.done"));
            tracing::info!("create.done");
        });
        assert_eq!(lines[0]["data"], serde_json::json!({"trace-id": "5be2", "span-id": "77", "handle": "h"}));
        assert_eq!(lines[1]["data"], serde_json::json!({}));
    }

    #[test]
    fn messages_become_paths() {
        for (message, target, expected) in [
            ("create.done", "wardian_engine::create", "create.done"),
            ("request failed", "wardian_server::handler", "server.request-failed"),
            ("listening", "wardian::serve", "serve.listening"),
            ("slow", "wardian_engine::slow", "engine.slow"),
            ("it is. not so", "hyper", "hyper.it-is.-not-so"),
        ] {
            assert_eq!(path(message, target), expected);
        }
    }

    #[test]
    fn long_lines_have_less_room_than_short_ones() {
        let mut flood = Flood::new(MOST);
        let mut admit = |path: &str, second: u64, bytes: u64| flood.admit(path, second, bytes, ERROR_RATE).0;
        let first = (0..MOST).filter(|_| admit("long", 1, 4096)).count();
        assert_eq!(first as u64, BURST / 4096);
        // A second later there is room for a few more; another message has a bucket of its own.
        assert_eq!((0..MOST).filter(|_| admit("long", 2, 4096)).count() as u64, ERROR_RATE / 4096);
        assert_eq!((0..MOST).filter(|_| admit("short", 2, 200)).count() as u64, MOST);
        let text = "x".repeat(60_000);
        let lines = logged(MOST, || (0..500).for_each(|_| tracing::error!(error = %text, "request failed")));
        let bytes: usize = lines.iter().map(|line| line.to_string().len()).sum();
        assert!(lines.len() > 50 && bytes < 2 * BURST as usize, "{} lines, {bytes} bytes", lines.len());
    }

    #[test]
    fn a_flood_is_cut_and_counted() {
        let mut flood = Flood::new(2);
        let mut admit = |path: &str, second: u64| flood.admit(path, second, 1, RATE);
        assert_eq!(admit("a", 1), (true, vec![]));
        assert_eq!(admit("a", 1), (true, vec![]));
        for _ in 0..5 {
            assert_eq!(admit("a", 1), (false, vec![]));
        }
        assert_eq!(admit("b", 1), (true, vec![]));
        // Reported with the next message, once.
        assert_eq!(admit("b", 2), (true, vec![("a".to_owned(), 5)]));
        assert_eq!(admit("a", 2), (true, vec![]));
        assert_eq!(admit("a", 4), (true, vec![]));
        // A message that is dropped continuously is reported each second.
        let mut flood = Flood::new(0);
        let mut admit = |second| flood.admit("a", second, 1, RATE);
        assert_eq!(admit(1), (false, vec![]));
        assert_eq!(admit(2), (false, vec![("a".to_owned(), 1)]));
        assert_eq!(admit(3), (false, vec![("a".to_owned(), 1)]));
        let lines = logged(1, || (0..50).for_each(|n| tracing::info!(n, "x.y")));
        assert!(lines.len() < 10, "{lines:?}");
    }
}
