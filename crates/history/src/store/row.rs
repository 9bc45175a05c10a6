//! A run as a row of the table `runs`, and back.

use crate::Run;
use crate::error::{Error, Result};
use rusqlite::ToSql;
use serde_json::{Map, Value, json};

/// The columns that hold a field of a run each; `series_id`, `value` and `more` are besides.
pub const COLUMNS: &str = "runs.id, begun_ms, experiment, mode, engine, version, revision, parameters, host, kernel, cpus, \
     memory_bytes, filesystem, mount_options, cgroups, load, headline, complete, error, command, more";

/// Inserts a row.
pub const INSERT: &str = "INSERT INTO runs (begun_ms, experiment, mode, engine, version, revision, parameters, host, kernel, \
     cpus, memory_bytes, filesystem, mount_options, cgroups, load, headline, complete, error, command, more, value, \
     series_id) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, \
     ?22)";

/// Fields of a run that have a column, or a table, of their own.
const FIELDS: [&str; 15] = [
    "id",
    "begun_ms",
    "experiment",
    "mode",
    "engine",
    "version",
    "revision",
    "parameters",
    "headline",
    "figures",
    "complete",
    "error",
    "command",
    "timeline",
    "machine",
];
/// Fields of a machine that have a column.
const MACHINE: [&str; 8] =
    ["host", "kernel", "cpus", "memory_bytes", "filesystem", "mount_options", "cgroups", "load"];

/// The values of a row.
#[derive(Debug)]
pub struct Row<'a> {
    run: &'a Run,
    parameters: String,
    command: String,
    /// Fields without a column, as JSON: a field that is added to [`Run`] needs no new version of the tables.
    more: Option<String>,
    value: Option<f64>,
}

fn encode(value: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|error| Error::Run { why: error.to_string() })
}

impl<'a> Row<'a> {
    /// The row of a run.
    pub fn of(run: &'a Run) -> Result<Self> {
        // The timeline is large, and has a table of its own.
        let mut bare = run.clone();
        bare.timeline = None;
        let mut rest = match serde_json::to_value(&bare) {
            Ok(Value::Object(rest)) => rest,
            other => return Err(Error::Run { why: format!("it is no JSON object: {other:?}") }),
        };
        let mut machine =
            rest.remove("machine").and_then(|machine| machine.as_object().cloned()).unwrap_or_default();
        FIELDS.iter().for_each(|name| drop(rest.remove(*name)));
        MACHINE.iter().for_each(|name| drop(machine.remove(*name)));
        rest.retain(|_, value| !value.is_null());
        machine.retain(|_, value| !value.is_null());
        if !machine.is_empty() {
            rest.insert("machine".to_owned(), Value::Object(machine));
        }
        let more = if rest.is_empty() { None } else { Some(encode(&rest)?) };
        let (parameters, command) = (encode(&run.parameters)?, encode(&run.command)?);
        Ok(Self { run, parameters, command, more, value: run.value() })
    }

    /// The parameters of [`INSERT`].
    pub fn params(&self, series: i64) -> Vec<Box<dyn ToSql + '_>> {
        let (run, machine) = (self.run, &self.run.machine);
        vec![
            Box::new(run.begun_ms),
            Box::new(&run.experiment),
            Box::new(&run.mode),
            Box::new(&run.engine),
            Box::new(&run.version),
            Box::new(&run.revision),
            Box::new(&self.parameters),
            Box::new(&machine.host),
            Box::new(&machine.kernel),
            Box::new(machine.cpus.cast_signed()),
            Box::new(machine.memory_bytes.cast_signed()),
            Box::new(&machine.filesystem),
            Box::new(&machine.mount_options),
            Box::new(&machine.cgroups),
            Box::new(machine.load),
            Box::new(&run.headline),
            Box::new(run.complete),
            Box::new(&run.error),
            Box::new(&self.command),
            Box::new(&self.more),
            Box::new(self.value),
            Box::new(series),
        ]
    }
}

/// A run of the columns [`COLUMNS`], without figures and timeline.
pub fn run(row: &rusqlite::Row<'_>) -> rusqlite::Result<Run> {
    let text = |column: usize| row.get::<_, String>(column);
    let parse = |column: usize, text: &str| {
        serde_json::from_str::<Value>(text).map_err(|error| {
            rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(error))
        })
    };
    let mut run = match row.get::<_, Option<String>>(20)? {
        Some(more) => parse(20, &more)?.as_object().cloned().unwrap_or_default(),
        None => Map::new(),
    };
    let mut machine =
        run.remove("machine").and_then(|machine| machine.as_object().cloned()).unwrap_or_default();
    let known = json!({
        "host": text(8)?, "kernel": text(9)?, "cpus": row.get::<_, i64>(10)?, "memory_bytes": row.get::<_, i64>(11)?,
        "filesystem": text(12)?, "mount_options": text(13)?, "cgroups": text(14)?, "load": row.get::<_, f64>(15)?,
    });
    machine.extend(known.as_object().cloned().unwrap_or_default());
    let known = json!({
        "id": row.get::<_, i64>(0)?, "begun_ms": row.get::<_, i64>(1)?, "experiment": text(2)?, "mode": text(3)?,
        "engine": text(4)?, "version": text(5)?, "revision": row.get::<_, Option<String>>(6)?,
        "parameters": parse(7, &text(7)?)?, "machine": machine, "headline": text(16)?, "figures": {},
        "complete": row.get::<_, bool>(17)?, "error": row.get::<_, Option<String>>(18)?,
        "command": parse(19, &text(19)?)?,
    });
    run.extend(known.as_object().cloned().unwrap_or_default());
    serde_json::from_value(Value::Object(run)).map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, Box::new(error))
    })
}
