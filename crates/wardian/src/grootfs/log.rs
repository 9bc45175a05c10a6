//! The log of a command: lines of JSON on standard error or in a file, in sessions as GrootFS has them. A session
//! has a number within the one above it, and the message of its lines begins with the names of all of them.
//!
//! What the store logs is in it too, under `grootfs.`, as it is in the log of a server.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Map, Value};
use tracing::Level;
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use super::config::Config;
use super::error::{Error, go_error};
use crate::log::Lines;

/// More lines of one message in a second than a command writes.
const MOST: u64 = 100_000;

type Sink = Box<dyn Write + Send>;

/// A session of the log.
#[derive(Clone)]
pub struct Log {
    /// `None` if nothing is logged.
    lines: Option<Arc<Lines<Sink>>>,
    level: LevelFilter,
    /// The names of the sessions.
    path: String,
    /// Their numbers.
    session: String,
    children: Arc<AtomicU32>,
    data: Map<String, Value>,
}

/// What a level's name means: an unknown one is `fatal`.
fn filter(level: &str) -> LevelFilter {
    match level.to_ascii_lowercase().as_str() {
        "debug" => LevelFilter::DEBUG,
        "info" => LevelFilter::INFO,
        "error" => LevelFilter::ERROR,
        _ => LevelFilter::OFF,
    }
}

impl Log {
    /// Starts the log of a command.
    ///
    /// # Errors
    /// Its file cannot be opened.
    pub fn start(config: &Config, command: &str) -> Result<Self, Error> {
        let level = filter(&config.log_level);
        let file = match config.log_file.as_str() {
            "" => None,
            path => {
                use std::os::unix::fs::OpenOptionsExt as _;
                let file = std::fs::OpenOptions::new().append(true).create(true).mode(0o644).open(path);
                Some(file.map_err(|error| Error::Log(go_error("open", path, &error)))?)
            }
        };
        let sink = || -> Result<Sink, Error> {
            Ok(match &file {
                None => Box::new(std::io::stderr()),
                Some(file) => {
                    let failed = |error| Error::Log(go_error("dup", &config.log_file, &error));
                    Box::new(file.try_clone().map_err(failed)?)
                }
            })
        };
        let mut lines = None;
        if level != LevelFilter::OFF {
            lines = Some(Arc::new(Lines::new("grootfs", sink()?, MOST)));
            let layer = Lines::new("grootfs", sink()?, MOST).with_filter(level);
            // The process has one log.
            let _ = tracing_subscriber::registry().with(layer).try_init();
        }
        let path = command.to_owned();
        Ok(Self { lines, level, path, session: "1".into(), children: Arc::default(), data: Map::new() })
    }

    /// Begins a session in this one, whose lines have this data too.
    #[must_use]
    pub fn session(&self, name: &str, data: &[(&str, Value)]) -> Self {
        let number = self.children.fetch_add(1, Ordering::Relaxed) + 1;
        let mut log = self.clone();
        log.path = format!("{}.{name}", self.path);
        log.session = format!("{}.{number}", self.session);
        log.children = Arc::default();
        log.data.extend(data.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
        log
    }

    fn line(&self, level: Level, event: &str, data: &[(&str, Value)]) {
        let Some(lines) = self.lines.as_ref().filter(|_| self.level >= level) else { return };
        let mut all = self.data.clone();
        all.insert("session".into(), self.session.as_str().into());
        all.extend(data.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
        let name = level.as_str().to_ascii_lowercase();
        lines.write(std::time::SystemTime::now(), &name, &format!("{}.{event}", self.path), all);
    }

    /// Logs an event for those who look for a mistake.
    pub fn debug(&self, event: &str, data: &[(&str, Value)]) {
        self.line(Level::DEBUG, event, data);
    }

    /// Logs an event.
    pub fn info(&self, event: &str, data: &[(&str, Value)]) {
        self.line(Level::INFO, event, data);
    }

    /// Logs an error.
    pub fn error(&self, event: &str, error: &dyn std::fmt::Display) {
        self.line(Level::ERROR, event, &[("error", error.to_string().into())]);
    }

    /// Logs the beginning and the end of what `act` does.
    pub fn around<T>(&self, act: impl FnOnce() -> T) -> T {
        self.info("starting", &[]);
        let done = act();
        self.info("ending", &[]);
        done
    }
}
