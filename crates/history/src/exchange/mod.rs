//! Runs as text: CSV for spreadsheets, and JSON lines with everything.
//!
//! What is imported may have been written by anybody: line length and number of lines are bounded, a bad line is named by
//! its number, and then nothing is imported.

mod csv;
mod lines;

pub use csv::defused;

use crate::error::{Error, Result};
use crate::{Filter, Run, Store};
use std::io::{BufRead, Read, Write};

/// The longest line in bytes: a run with a timeline.
pub const LONGEST: u64 = 20 << 20;
/// The largest number of runs in a file.
pub const MOST: u64 = 1_000_000;

/// The form of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// A header, and a row for each run; without timelines.
    Csv,
    /// A JSON object for each run, with its timeline.
    Lines,
}

/// What an import did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Imported {
    /// Runs that were appended.
    pub new: u64,
    /// Runs that were in the history already.
    pub known: u64,
}

/// Writes the runs of a store. Returns how many there were.
///
/// # Errors
/// Those of the store, and of `to`.
pub fn export(store: &Store, filter: &Filter, form: Form, to: &mut dyn Write) -> Result<u64> {
    let runs = store.list(filter)?;
    match form {
        Form::Csv => csv::write(&runs, to)?,
        Form::Lines => {
            for run in &runs {
                // One after another: all timelines together may be large. A run may be deleted meanwhile.
                if let Some(run) = store.run(run.id)? {
                    lines::write(&run, to)?;
                }
            }
        }
    }
    to.flush()?;
    Ok(runs.len() as u64)
}

/// Appends the runs of a file, all or none; runs that are there already are left out. The runs get new numbers. The form
/// is told by the first byte: JSON lines begin with a brace.
///
/// # Errors
/// [`Error::Line`] for a bad line; those of the store.
pub fn import(store: &mut Store, from: &mut dyn BufRead) -> Result<Imported> {
    let form = match from.fill_buf()?.first() {
        None => return Err(Error::Line { line: 1, why: "the file is empty".to_owned() }),
        Some(b'{') => Form::Lines,
        Some(_) => Form::Csv,
    };
    let mut batch = store.batch()?;
    let mut imported = Imported::default();
    let mut append = |line: u64, run: &Run| -> Result<()> {
        if imported.new + imported.known >= MOST {
            return Err(Error::Line { line, why: format!("more than {MOST} runs: split the file") });
        }
        if batch.has(run)? {
            imported.known += 1;
            return Ok(());
        }
        imported.new += 1;
        match batch.append(run) {
            Err(Error::Run { why }) => Err(Error::Line { line, why }),
            other => other.map(drop),
        }
    };
    match form {
        Form::Csv => csv::read(from, &mut append)?,
        Form::Lines => lines::read(from, &mut append)?,
    }
    batch.commit()?;
    Ok(imported)
}

/// Reads a line without its end; `None` at the end of the file.
fn line(from: &mut dyn BufRead, number: u64) -> Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    from.take(LONGEST + 1).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Ok(None);
    }
    if line.last() == Some(&b'\n') {
        line.pop();
    } else if line.len() as u64 > LONGEST {
        return Err(Error::Line { line: number, why: format!("it is longer than {LONGEST} bytes") });
    }
    Ok(Some(line))
}

#[cfg(test)]
mod tests;
