//! CSV (RFC 4180).
//!
//! The columns of [`FIXED`], then one for each parameter (`parameter.NAME`) and each figure (`figure.NAME`) that a run
//! has. An empty cell is a parameter or figure that the run lacks; a parameter that is empty is written as `""""""`, two
//! quotes. A text that a spreadsheet would take for a formula is preceded by an apostrophe. Timelines are left out.

use crate::error::{Error, Result};
use crate::{Machine, Run};
use csv::{ReaderBuilder, StringRecord, WriterBuilder};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, Read, Write};

/// The columns that each file has.
const FIXED: [&str; 19] = [
    "id",
    "begun_ms",
    "experiment",
    "mode",
    "engine",
    "version",
    "revision",
    "host",
    "kernel",
    "cpus",
    "memory_bytes",
    "filesystem",
    "mount_options",
    "cgroups",
    "load",
    "headline",
    "complete",
    "error",
    "command",
];
const PARAMETER: &str = "parameter.";
const FIGURE: &str = "figure.";
/// What a text begins with that a spreadsheet would take for a formula, or that would be taken for a mark of this module's.
const FORMULA: [char; 8] = ['=', '+', '-', '@', '\t', '\r', '\'', '"'];
/// An empty text where an empty cell means that there is none.
const EMPTY: &str = "\"\"";
/// The largest number of columns.
const COLUMNS: usize = 4000;

pub fn write(runs: &[Run], to: &mut dyn Write) -> Result<()> {
    let names = |of: &dyn Fn(&Run) -> Vec<String>| runs.iter().flat_map(of).collect::<BTreeSet<String>>();
    let parameters = names(&|run| run.parameters.keys().cloned().collect());
    let figures = names(&|run| run.figures.keys().cloned().collect());
    let mut writer = WriterBuilder::new().from_writer(to);
    let head = FIXED.iter().map(|name| (*name).to_owned());
    let head = head
        .chain(parameters.iter().map(|name| format!("{PARAMETER}{name}")))
        .chain(figures.iter().map(|name| format!("{FIGURE}{name}")));
    writer.write_record(head).map_err(failed)?;
    for run in runs {
        let machine = &run.machine;
        let command = serde_json::to_string(&run.command).map_err(std::io::Error::from)?;
        let fixed = [
            run.id.to_string(),
            run.begun_ms.to_string(),
            defused(&run.experiment),
            defused(&run.mode),
            defused(&run.engine),
            defused(&run.version),
            optional(run.revision.as_deref()),
            defused(&machine.host),
            defused(&machine.kernel),
            machine.cpus.to_string(),
            machine.memory_bytes.to_string(),
            defused(&machine.filesystem),
            defused(&machine.mount_options),
            defused(&machine.cgroups),
            machine.load.to_string(),
            defused(&run.headline),
            run.complete.to_string(),
            optional(run.error.as_deref()),
            command,
        ];
        let parameters = parameters.iter().map(|name| optional(run.parameters.get(name).map(String::as_str)));
        let figures =
            figures.iter().map(|name| run.figures.get(name).map_or_else(String::new, ToString::to_string));
        writer.write_record(fixed.into_iter().chain(parameters).chain(figures)).map_err(failed)?;
    }
    writer.flush()?;
    Ok(())
}

fn optional(text: Option<&str>) -> String {
    match text {
        None => String::new(),
        Some("") => EMPTY.to_owned(),
        Some(text) => defused(text),
    }
}

/// A text that no spreadsheet runs. An apostrophe before it is what they take for the mark of a text.
pub fn defused(text: &str) -> String {
    if text.starts_with(FORMULA) { format!("'{text}") } else { text.to_owned() }
}

fn text_of(cell: &str) -> Option<String> {
    match cell {
        "" => None,
        EMPTY => Some(String::new()),
        text => Some(text.strip_prefix('\'').unwrap_or(text).to_owned()),
    }
}

fn failed(error: csv::Error) -> std::io::Error {
    match error.into_kind() {
        csv::ErrorKind::Io(error) => error,
        kind => std::io::Error::other(format!("{kind:?}")),
    }
}

/// Ends a file whose record is too long: the reader keeps a whole record in memory.
struct Bounded<'a> {
    from: &'a mut dyn BufRead,
    /// Bytes that the present record may still have.
    left: u64,
}

impl Read for Bounded<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.left == 0 {
            return Err(std::io::Error::other(format!("it is longer than {} bytes", super::LONGEST)));
        }
        let most = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let read = self.from.read(&mut buffer[..most])?;
        self.left -= read as u64;
        Ok(read)
    }
}

pub fn read(from: &mut dyn BufRead, each: &mut dyn FnMut(u64, &Run) -> Result<()>) -> Result<()> {
    let bounded = Bounded { from, left: super::LONGEST };
    let mut reader = ReaderBuilder::new().has_headers(false).from_reader(bounded);
    let mut record = StringRecord::new();
    let mut head: Option<Vec<String>> = None;
    loop {
        let line = reader.position().line();
        let bad = |why: String| Error::Line { line, why };
        match reader.read_record(&mut record) {
            Ok(true) => {}
            Ok(false) => return head.map_or_else(|| Err(bad("there is no header".to_owned())), |_| Ok(())),
            Err(error) => return Err(bad(refusal(error))),
        }
        reader.get_mut().left = super::LONGEST;
        match &head {
            None => head = Some(header(&record).map_err(bad)?),
            Some(head) => {
                let cells = head.iter().map(String::as_str).zip(record.iter()).collect();
                each(line, &run(&cells).map_err(bad)?)?;
            }
        }
    }
}

fn refusal(error: csv::Error) -> String {
    match error.into_kind() {
        csv::ErrorKind::Io(error) => error.to_string(),
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
            format!("it has {len} cells, and the header {expected_len}")
        }
        csv::ErrorKind::Utf8 { .. } => "this is not UTF-8 text".to_owned(),
        kind => format!("this is no CSV: {kind:?}"),
    }
}

fn header(record: &StringRecord) -> std::result::Result<Vec<String>, String> {
    if record.len() > COLUMNS {
        return Err(format!("it has more than {COLUMNS} columns"));
    }
    let names: Vec<String> = record.iter().map(str::to_owned).collect();
    if let Some(missing) = FIXED.iter().find(|name| !names.iter().any(|has| has == *name)) {
        return Err(format!(
            "the header has no column {missing}: is this an export of `wardian lab history`?"
        ));
    }
    let mut seen = BTreeSet::new();
    for name in &names {
        let known = FIXED.contains(&name.as_str()) || name.starts_with(PARAMETER) || name.starts_with(FIGURE);
        if !known {
            return Err(format!("the header has the unknown column {name:?}"));
        }
        if !seen.insert(name) {
            return Err(format!("the header has the column {name:?} twice"));
        }
    }
    Ok(names)
}

fn run(cells: &BTreeMap<&str, &str>) -> std::result::Result<Run, String> {
    let cell = |name: &str| cells.get(name).copied().unwrap_or_default();
    let text = |name: &str| text_of(cell(name)).unwrap_or_default();
    fn number<T: std::str::FromStr>(name: &str, cell: &str) -> std::result::Result<T, String> {
        cell.parse().map_err(|_| format!("{name} is {cell:?}, not a number"))
    }
    let below = |prefix: &'static str| {
        cells.iter().filter_map(move |(name, cell)| Some((name.strip_prefix(prefix)?, *cell)))
    };
    let mut figures = BTreeMap::new();
    for (name, cell) in below(FIGURE).filter(|(_, cell)| !cell.is_empty()) {
        figures.insert(name.to_owned(), number(name, cell)?);
    }
    let complete = match cell("complete") {
        "true" => true,
        "false" => false,
        other => return Err(format!("complete is {other:?}, neither true nor false")),
    };
    Ok(Run {
        id: 0,
        begun_ms: number("begun_ms", cell("begun_ms"))?,
        experiment: text("experiment"),
        mode: text("mode"),
        engine: text("engine"),
        version: text("version"),
        revision: text_of(cell("revision")),
        parameters: below(PARAMETER)
            .filter_map(|(name, cell)| Some((name.to_owned(), text_of(cell)?)))
            .collect(),
        machine: Machine {
            host: text("host"),
            kernel: text("kernel"),
            cpus: number("cpus", cell("cpus"))?,
            memory_bytes: number("memory_bytes", cell("memory_bytes"))?,
            filesystem: text("filesystem"),
            mount_options: text("mount_options"),
            cgroups: text("cgroups"),
            load: number("load", cell("load"))?,
        },
        headline: text("headline"),
        figures,
        complete,
        error: text_of(cell("error")),
        command: serde_json::from_str(cell("command"))
            .map_err(|_| format!("command is {:?}, not a JSON array of words", cell("command")))?,
        ..Run::default()
    })
}
