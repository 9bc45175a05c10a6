//! Results of experiments as files: JSON, CSV, a picture and a report.

mod bench;
mod bisect;
mod compare;
mod files;
mod record;
mod scale;
mod teardown;

pub use files::{Files, repeats};

use crate::host::{Host, since_1970};
use crate::report::Phase;
use anyhow::{Context, Result};
use std::time::SystemTime;
use wardian_history::exchange::defused;
use wardian_pictures::{Page, Table, Unit, moment};

/// Results that can be written to files.
pub trait Results {
    /// The results as JSON.
    ///
    /// # Errors
    /// They cannot be encoded.
    fn json(&self) -> Result<String>;

    /// The results as CSV (RFC 4180), with a header.
    ///
    /// # Errors
    /// They cannot be encoded.
    fn csv(&self) -> Result<Vec<u8>>;

    /// The picture that says the most, as SVG with a style sheet of its own.
    fn svg(&self) -> String;

    /// The report, without the command and the data.
    fn page(&self) -> Page;
}

/// Which program made a report, and when.
fn made() -> String {
    let now = moment(since_1970(SystemTime::now()));
    format!("Made by wardian {} on {now}.", env!("CARGO_PKG_VERSION"))
}

/// The machine, for a report.
fn machine(host: &Host) -> Vec<(String, String)> {
    let mut facts = vec![
        ("kernel".to_owned(), host.kernel.clone()),
        ("processors".to_owned(), host.cpus.to_string()),
        ("memory".to_owned(), Unit::Bytes.show(host.memory_bytes as f64)),
        ("cgroups".to_owned(), host.cgroups.to_owned()),
        ("load".to_owned(), host.load.to_string()),
    ];
    if !host.filesystem.is_empty() {
        facts.push(("file system".to_owned(), host.filesystem.clone()));
        facts.push(("mounted with".to_owned(), host.mount_options.replace(',', ", ")));
    }
    facts
}

/// Phases as a table.
fn phases<'a>(phases: impl Iterator<Item = &'a Phase>) -> Table {
    let row = |phase: &Phase| {
        let times = [phase.wall_ms, phase.p50_ms, phase.max_ms].map(|ms| Unit::Ms.show(ms));
        // Such as the ageing of the data.
        let [wall, median, most] =
            if phase.each_ms.is_empty() { [times[0].clone(), "–".into(), "–".into()] } else { times };
        vec![phase.name.replace('_', " "), phase.each_ms.len().to_string(), wall, median, most]
    };
    let head = ["phase", "how many", "together", "median", "slowest"].map(str::to_owned).into();
    Table { head, rows: phases.map(row).collect() }
}

/// Rows of CSV.
fn csv(head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> Result<Vec<u8>> {
    let mut to = csv::Writer::from_writer(Vec::new());
    to.write_record(head).context("write CSV")?;
    for row in rows {
        to.write_record(row.iter().map(|text| cell(text))).context("write CSV")?;
    }
    to.into_inner().context("write CSV")
}

/// A cell that no spreadsheet takes for a formula. Numbers stay as they are.
fn cell(text: &str) -> String {
    if text.parse::<f64>().is_ok() { text.to_owned() } else { defused(text) }
}

/// A row of CSV for each instance of each phase: these cells, then the phase, the instance, begin and duration in ms.
fn instances(before: &[String], phase: &Phase) -> Vec<Vec<String>> {
    let begins = phase.each_begin_ms.iter().map(ToString::to_string).chain(std::iter::repeat(String::new()));
    let numbers = phase.each_of.iter().map(ToString::to_string).chain(std::iter::repeat(String::new()));
    let each = phase.each_ms.iter().zip(begins).zip(numbers);
    let row = |((ms, begin), number): ((&f64, String), String)| {
        [before, &[phase.name.to_owned(), number, begin, ms.to_string()]].concat()
    };
    each.map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spreadsheets_get_no_formulas() {
        let rows = [vec!["=1+1".to_owned(), "-1.5".into(), "a \"b\", c".into()]];
        let text = String::from_utf8(csv(&["a", "b", "c"], rows).unwrap()).unwrap();
        assert_eq!(text, "a,b,c\n'=1+1,-1.5,\"a \"\"b\"\", c\"\n");
    }
}
