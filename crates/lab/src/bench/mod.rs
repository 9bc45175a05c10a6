//! Measures the figures that wardian promises, on servers of its own.

mod api;
mod containers;
mod floor;
mod network;

pub use api::run as api;
pub use containers::run as containers;
pub use network::{CROWD, run as network};

use crate::host::Host;
use anyhow::{Context, Result};
use serde::Serialize;
use std::fmt::Write as _;

/// One figure.
#[derive(Debug, Clone, Serialize)]
pub struct Figure {
    /// What was measured.
    pub name: &'static str,
    /// `ms`, `MB`, `MB/s`, `KiB`, `/s`, `ratio`, or empty for a number of things.
    pub unit: &'static str,
    /// The goal: an upper limit …
    pub goal: Option<f64>,
    /// … or, if this is set, a lower one.
    pub at_least: bool,
    /// Guardian's figure on the same kind of machine.
    pub guardian: Option<f64>,
    /// The measured value; `None` when it was skipped.
    pub measured: Option<f64>,
}

impl Figure {
    /// Whether it was measured and is beyond its goal.
    pub fn missed(&self) -> bool {
        matches!((self.goal, self.measured), (Some(goal), Some(is))
            if if self.at_least { is < goal } else { is > goal })
    }
}

/// All figures.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Figures {
    /// Whether everything was measured. If not, `error` has the reason, and the figures are those until then.
    pub complete: bool,
    /// Why not everything was.
    pub error: Option<String>,
    /// The figures, in the order of measurement.
    pub figures: Vec<Figure>,
    /// What was skipped and why, and other remarks.
    pub notes: Vec<String>,
    /// The machine.
    pub host: Host,
}

impl Figures {
    /// Notes how the measurement ended.
    pub fn ended(&mut self, how: &Result<()>) {
        self.complete = how.is_ok();
        self.error = how.as_ref().err().map(|error| format!("{error:#}"));
    }

    fn put(
        &mut self,
        name: &'static str,
        unit: &'static str,
        goal: impl Into<Option<f64>>,
        guardian: impl Into<Option<f64>>,
        measured: f64,
    ) {
        let (goal, guardian) = (goal.into(), guardian.into());
        wardian_sys::stderr::line(&format!("  {name}: {measured:.2} {unit}"));
        let measured = Some(measured);
        self.figures.push(Figure { name, unit, goal, at_least: false, guardian, measured });
    }

    /// Adds a figure that should be large.
    fn put_at_least(&mut self, name: &'static str, unit: &'static str, goal: f64, measured: f64) {
        self.put(name, unit, goal, None, measured);
        if let Some(figure) = self.figures.last_mut() {
            figure.at_least = true;
        }
    }

    /// The figures as a readable table.
    pub fn table(&self) -> String {
        let mut out = String::new();
        let _ = writeln!(out, "{:<52} {:>6} {:>9} {:>9} {:>10}", "", "", "goal", "guardian", "measured");
        for figure in &self.figures {
            let cell = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |v| format!("{v:.2}"));
            let _ = writeln!(
                out,
                "{:<52} {:>6} {:>9} {:>9} {:>10}{}",
                figure.name,
                figure.unit,
                cell(figure.goal),
                cell(figure.guardian),
                cell(figure.measured),
                if figure.missed() { "  missed" } else { "" }
            );
        }
        for note in &self.notes {
            let _ = writeln!(out, "{note}");
        }
        let host = &self.host;
        let _ = writeln!(
            out,
            "kernel {}, {} processors, store on {} ({}), cgroups {}, load {} at the begin",
            host.kernel, host.cpus, host.filesystem, host.mount_options, host.cgroups, host.load
        );
        out
    }
}

/// A field of smaps_rollup or status, which is in kB, in MB.
fn field(text: &str, name: &str) -> f64 {
    let value = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':')?.split_whitespace().next());
    value.and_then(|v| v.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
}

fn rss(pid: u32) -> Result<f64> {
    let status =
        std::fs::read_to_string(format!("/proc/{pid}/status")).context("read the server's status")?;
    Ok(field(&status, "VmRSS"))
}

/// The sum of these fields of a process's memory, in MB.
fn memory(pid: u32, names: &[&str]) -> Result<f64> {
    let text =
        std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).context("read a keeper's memory")?;
    Ok(names.iter().map(|name| field(&text, name)).sum())
}

/// Pids of the keepers that are children of this server.
fn keepers_of(server: u32) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").context("look at the processes")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let status = std::fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        let value = |name: &str| status.lines().find_map(|l| l.strip_prefix(name)).map(str::trim);
        if value("Name:") == Some("wardian-keeper") && value("PPid:") == Some(&server.to_string()) {
            found.push(pid);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missed_goal_is_marked() {
        let mut figures = Figures { notes: vec!["note".into()], ..Figures::default() };
        figures.put("good", "ms", 2.0, 9.0, 1.0);
        figures.put("bad", "ms", 2.0, None, 3.0);
        figures.put_at_least("fast", "MB/s", 2.0, 3.0);
        figures.put_at_least("slow", "MB/s", 2.0, 1.0);
        let table = figures.table();
        let line = |name: &str| table.lines().find(|l| l.starts_with(name)).unwrap().to_owned();
        assert!(line("bad").ends_with("missed") && !line("good").ends_with("missed"));
        assert!(line("slow").ends_with("missed") && !line("fast").ends_with("missed"));
        assert!(table.contains("note"));
    }

    #[test]
    fn fields_are_in_megabytes() {
        assert!((field("VmRSS:\t  2048 kB\n", "VmRSS") - 2.0).abs() < 1e-9);
        assert!(field("", "VmRSS").abs() < 1e-9);
    }
}
