//! Results of `wardian lab bisect` as files.

use super::Results;
use crate::bisect::Verdict;
use crate::bisect::figures::shown;
use crate::bisect::report::{Measured, Report};
use crate::report::bytes;
use crate::timelines;
use anyhow::{Context, Result};
use wardian_pictures::{Comparison, Entry, Look, Page, Part, Section, Table, Unit, comparison, timeline};

impl Results for Report {
    fn json(&self) -> Result<String> {
        serde_json::to_string_pretty(self).context("encode the report")
    }

    fn csv(&self) -> Result<Vec<u8>> {
        let rows = self.kernels.iter().flat_map(|kernel| {
            kernel.runs.iter().enumerate().flat_map(|(n, run)| {
                let release = kernel.release.clone().unwrap_or_default();
                let before = [kernel.kernel.clone(), release, (n + 1).to_string()];
                let row = move |(figure, value): (&String, &f64)| {
                    [&before[..], &[figure.clone(), value.to_string()]].concat()
                };
                run.figures.iter().map(row).collect::<Vec<_>>()
            })
        });
        super::csv(&["kernel", "release", "run", "figure", "value"], rows)
    }

    fn svg(&self) -> String {
        let figure = &self.options.figure;
        comparison(&kernels(self), &Look::wide().titled(format!("{figure} of each kernel")))
    }

    fn page(&self) -> Page {
        let drawn = kernels(self);
        let mut sections = vec![Section {
            heading: format!("{} of each kernel", self.options.figure),
            parts: vec![
                Part::Text("A bar is the median of the runs, a dot is a run.".to_owned()),
                Part::picture(|look| comparison(&drawn, look)),
                Part::Table(table(self)),
            ],
        }];
        // On both sides of the change, or of all kernels.
        let told: Vec<&Measured> = match self.verdict {
            Some(Verdict::Changed { before, after, .. }) => {
                [before, after].iter().filter_map(|at| self.kernels.get(*at)).collect()
            }
            _ => self.kernels.iter().collect(),
        };
        sections.extend(told.into_iter().filter_map(|kernel| run(self, kernel)));
        for kernel in self.kernels.iter().filter(|kernel| kernel.skipped.is_some()) {
            let reason = kernel.skipped.clone().unwrap_or_default();
            let mut parts = vec![Part::Text(reason)];
            if !kernel.log.is_empty() {
                parts.push(Part::Lines(kernel.log.join("\n")));
            }
            sections.push(Section { heading: format!("{} was skipped", kernel.name()), parts });
        }
        let mut lines = self.text.lines().map(str::to_owned);
        Page {
            title: "wardian lab bisect".to_owned(),
            verdict: lines.next().unwrap_or_default(),
            advice: lines.collect(),
            incomplete: self.error.clone(),
            machine: super::machine(&self.host),
            settings: settings(self),
            sections,
            ..Page::default()
        }
    }
}

/// The figure of each kernel.
fn kernels(report: &Report) -> Comparison {
    let figure = &report.options.figure;
    let entry = |kernel: &Measured| Entry {
        name: kernel.name().to_owned(),
        kind: "kernel".to_owned(),
        runs: kernel.runs.iter().filter_map(|run| run.figures.get(figure).copied()).collect(),
        ratio: kernel.recognised().join(", "),
        note: match (&kernel.skipped, kernel.runs.is_empty()) {
            (Some(reason), _) => format!("skipped: {reason}"),
            (None, true) if report.complete => "not measured: it was not needed".to_owned(),
            (None, true) => "not measured".to_owned(),
            (None, false) => String::new(),
        },
    };
    let unit = Unit::of(figure);
    Comparison { unit, entries: report.kernels.iter().map(entry).collect(), bound: report.options.bound }
}

fn table(report: &Report) -> Table {
    let figure = &report.options.figure;
    let row = |kernel: &Measured| {
        let spread = kernel.spread(figure);
        let show = |value: Option<f64>| value.map_or("–".to_owned(), |value| shown(figure, value));
        vec![
            kernel.kernel.clone(),
            kernel.release.clone().unwrap_or_default(),
            show(spread.map(|spread| spread.median)),
            show(spread.map(|spread| spread.least)),
            show(spread.map(|spread| spread.most)),
            kernel.runs.len().to_string(),
            kernel.recognised().join(", "),
        ]
    };
    let head = ["kernel", "release", "median", "least", "most", "runs", "recognised"];
    Table { head: head.map(str::to_owned).into(), rows: report.kernels.iter().map(row).collect() }
}

/// The run of a kernel that is in the middle of all.
fn run(report: &Report, kernel: &Measured) -> Option<Section> {
    let figure = |run: &crate::bisect::experiment::Run| {
        run.figures.get(&report.options.figure).copied().unwrap_or_default()
    };
    let mut runs: Vec<_> = kernel.runs.iter().collect();
    runs.sort_by(|a, b| figure(a).total_cmp(&figure(b)));
    let middle = runs.get(runs.len() / 2)?;
    let drawn = timelines::of_guest(&middle.report)?;
    let mut parts = vec![Part::picture(|look| timeline(&drawn, look))];
    if !middle.diagnosis.is_empty() {
        parts.insert(0, Part::Text(middle.diagnosis.clone()));
    }
    Some(Section { heading: format!("A run on {}", kernel.name()), parts })
}

fn settings(report: &Report) -> Vec<(String, String)> {
    let options = &report.options;
    let speed = options.disk_bps.map_or("not throttled".to_owned(), |bps| format!("{}/s", bytes(bps)));
    [
        ("experiment", options.experiment.words().join(" ")),
        ("slow above", options.bound.map_or("–".to_owned(), |bound| shown(&options.figure, bound))),
        ("runs on each kernel", options.runs.to_string()),
        ("memory of a guest", bytes(options.memory_mib << 20)),
        ("its processors", options.cpus.to_string()),
        ("its disk", format!("{}, {}, {speed}", options.fs.name(), bytes(options.disk_bytes))),
        ("QEMU", format!("{}, {}", report.qemu, options.acceleration.name())),
        ("duration", format!("{:.0} s", report.seconds)),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}
