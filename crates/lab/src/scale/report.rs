//! Results of `wardian lab scale`: one story with all its phases, or several side by side.

use super::{Kind, Mode};
use crate::host::{Host, Sample, ms};
use crate::report::{Phase, bytes, median, table};
use serde::{Serialize, Serializer};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;
use wardian_recorder::Mark;

/// A step of the scaling: instances that were created together.
#[derive(Debug, Clone, Serialize)]
pub struct Step {
    /// Instances before.
    pub from: usize,
    /// Instances after.
    pub to: usize,
    /// Time from the scale request to the last healthy instance, the peas' clean-up included.
    pub waiting_ms: f64,
    /// `waiting_ms` divided by the number of new instances.
    pub per_instance_ms: f64,
    /// The phases, in order.
    pub phases: Vec<Phase>,
}

impl Step {
    /// A step from its waiting time.
    pub(super) fn new(from: usize, to: usize, waiting: Duration, phases: Vec<Phase>) -> Self {
        let waiting_ms = ms(waiting);
        Self { from, to, waiting_ms, per_instance_ms: waiting_ms / (to - from) as f64, phases }
    }
}

/// The results of one story.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Number of the run within its mode, from 1.
    pub run: usize,
    /// How the code got into the instances, and what limit they had.
    #[serde(flatten)]
    pub kind: Kind,
    /// Whether the story was told to its end. If not, `error` has the reason, and the figures are those until then.
    pub complete: bool,
    /// Why it was not.
    pub error: Option<String>,
    /// Duration of the story, from the first create until nothing is left to delete. All times count from there.
    pub length_ms: f64,
    /// Sum of `waiting_ms` of all steps.
    pub waiting_ms: f64,
    /// `waiting_ms` plus the time for destroying all instances.
    pub story_ms: f64,
    /// The longest destroy of one instance.
    pub slowest_destroy_ms: f64,
    /// The longest end of a pea, see [`crate::scale`].
    pub slowest_pea_destroy_ms: f64,
    /// Dirty bytes on this machine when the destroys began.
    pub dirty_at_destroy_bytes: u64,
    /// Bytes that this machine wrote back from the first create until the trash was empty and the remaining dirty
    /// data was synced.
    pub written_bytes: u64,
    /// Bytes written back in an idle interval of equal length.
    pub idle_written_bytes: u64,
    /// Bytes written to the disk under the store in the story: pages of removed directories are written back without
    /// reaching the disk. `null` without a disk.
    pub disk_written_bytes: Option<u64>,
    /// Bytes written to the disk in the idle interval.
    pub idle_disk_written_bytes: Option<u64>,
    /// How often the server fetched the app's layer, or a part of it, in the whole story.
    pub fetches: u64,
    /// Bytes of the gzipped layer that were sent to the server.
    pub fetched_bytes: u64,
    /// Size of the gzipped layer; 0 without one.
    pub droplet_bytes: u64,
    /// Size of the files in the layer; 0 without one.
    pub layer_bytes: u64,
    /// Creation of the instances that run before the scaling; it is not part of the waiting. The image and the app's
    /// layer, which the first of them brings to the server, are there for all others.
    pub begin: Option<Step>,
    /// The steps of the scaling.
    pub steps: Vec<Step>,
    /// The phases of all steps, in order, and the destroys.
    pub phases: Vec<Phase>,
    /// Begin of each part of the story.
    pub marks: Vec<Mark>,
    /// Dirty and writeback bytes, about every 50 ms.
    pub samples: Vec<Sample>,
    /// The machine.
    pub host: Host,
}

impl Report {
    /// What came of it, in a sentence or two.
    pub fn verdict(&self) -> String {
        let mut out = String::new();
        let _ = write!(
            out,
            "The developer waited {:.2} s; the slowest destroy took {:.1} ms with {} dirty when it was called; \
             {} were ever written (an idle machine: {}){}.",
            self.waiting_ms / 1e3,
            self.slowest_destroy_ms,
            bytes(self.dirty_at_destroy_bytes),
            bytes(self.written_bytes),
            bytes(self.idle_written_bytes),
            self.disk_written_bytes
                .map(|disk| format!(", {} of it to the disk", bytes(disk)))
                .unwrap_or_default(),
        );
        if self.kind.mode == Mode::Oci {
            let _ = write!(
                out,
                "\nThe server fetched {} in {} for a layer of {} ({} gzipped)",
                bytes(self.fetched_bytes),
                times(self.fetches, "request"),
                bytes(self.layer_bytes),
                bytes(self.droplet_bytes)
            );
            // Without instances before the scaling the fetch is part of the waiting.
            let _ = match &self.begin {
                Some(Step { from, to, waiting_ms, .. }) => {
                    write!(out, ", while {} to begin with came up in {:.2} s.", to - from, waiting_ms / 1e3)
                }
                None => write!(out, "."),
            };
        }
        out
    }

    /// What came of it, and the tables of phases.
    fn table(&self) -> String {
        let mut out = self.verdict() + "\n\n";
        if let [_] = self.steps[..] {
            out.push_str(&table(&self.phases));
        } else {
            for Step { from, to, waiting_ms, per_instance_ms, phases } in &self.steps {
                let (waiting, phases) = (waiting_ms / 1e3, table(phases));
                let _ = writeln!(
                    out,
                    "{from} → {to}: {waiting:.2} s, {per_instance_ms:.1} ms for each of {}\n{phases}",
                    to - from
                );
            }
            out.push_str(&table(self.phases.last().map(std::slice::from_ref).unwrap_or_default()));
        }
        out
    }

    fn written_less_idle(&self) -> f64 {
        self.written_bytes as f64 - self.idle_written_bytes as f64
    }

    fn disk_written_less_idle(&self) -> Option<f64> {
        Some(self.disk_written_bytes? as f64 - self.idle_disk_written_bytes? as f64)
    }
}

fn times(n: u64, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// All stories, in order. As JSON the one story, or `{"stories": [...], "summary": ...}`.
#[derive(Debug, Clone)]
pub struct Stories(pub Vec<Report>);

impl Serialize for Stories {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Several<'a> {
            stories: &'a [Report],
            summary: Summary,
        }
        match &self.0[..] {
            [one] => one.serialize(to),
            stories => Several { stories, summary: Summary::of(stories) }.serialize(to),
        }
    }
}

impl Stories {
    /// For one story its phases; for several a summary.
    pub fn table(&self) -> String {
        match &self.0[..] {
            [one] => one.table(),
            several => Summary::of(several).table(),
        }
    }
}

/// Median and range of several values.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// The median.
    pub median: f64,
    /// The smallest.
    pub least: f64,
    /// The largest.
    pub most: f64,
}

impl Spread {
    /// The spread of values; all 0 of none.
    fn of(values: &[f64]) -> Self {
        let most = values.iter().copied().reduce(f64::max).unwrap_or_default();
        let least = values.iter().copied().reduce(f64::min).unwrap_or_default();
        Self { median: median(values), least, most }
    }

    /// `median (least – most)`, or only the median when all are displayed alike.
    fn tell(self, one: impl Fn(f64) -> String) -> String {
        let (median, least, most) = (one(self.median), one(self.least), one(self.most));
        if least == most { median } else { format!("{median} ({least} – {most})") }
    }
}

/// One step of a kind of stories, over all runs.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// How the code got into the instances, and what limit they had.
    #[serde(flatten)]
    pub kind: Kind,
    /// Instances before the step.
    pub from: usize,
    /// Instances after it.
    pub to: usize,
    /// Number of runs.
    pub runs: usize,
    /// [`Step::waiting_ms`].
    pub waiting_ms: Spread,
    /// [`Step::per_instance_ms`].
    pub per_instance_ms: Spread,
    /// Values of the whole story; only in the row of its last step.
    #[serde(flatten)]
    pub story: Option<Whole>,
}

/// Values of whole stories of a kind, over all runs.
#[derive(Debug, Clone, Serialize)]
pub struct Whole {
    /// [`Report::story_ms`].
    pub story_ms: Spread,
    /// [`Report::slowest_destroy_ms`].
    pub slowest_destroy_ms: Spread,
    /// [`Report::fetches`].
    pub fetches: Spread,
    /// [`Report::fetched_bytes`].
    pub fetched_bytes: Spread,
    /// [`Report::written_bytes`] less [`Report::idle_written_bytes`]; may be negative.
    pub written_less_idle_bytes: Spread,
    /// [`Report::disk_written_bytes`] less [`Report::idle_disk_written_bytes`]; `null` without a disk.
    pub disk_written_less_idle_bytes: Option<Spread>,
}

/// Ratio of a step's waiting time with the code as a layer to that with the code streamed in.
#[derive(Debug, Clone, Serialize)]
pub struct Ratio {
    /// The disk limit of each instance in bytes, in both; `null`: none.
    pub disk_limit_bytes: Option<u64>,
    /// Instances before the step.
    pub from: usize,
    /// Instances after it.
    pub to: usize,
    /// The ratio of each pair of runs.
    pub each: Vec<f64>,
    /// The median of the ratios.
    pub median: f64,
}

/// Ratio of the duration of a story ([`Report::story_ms`]) with a disk limit to that of the one without.
#[derive(Debug, Clone, Serialize)]
pub struct LimitRatio {
    /// The story with the limit.
    #[serde(flatten)]
    pub kind: Kind,
    /// The ratio of each pair of runs.
    pub each: Vec<f64>,
    /// The median of the ratios.
    pub median: f64,
}

/// Ratio of the waiting time per instance in a step to that in the step before.
#[derive(Debug, Clone, Serialize)]
pub struct Growth {
    /// How the code got into the instances, and what limit they had.
    #[serde(flatten)]
    pub kind: Kind,
    /// Instances before and after the step.
    pub step: (usize, usize),
    /// Instances before and after the previous step.
    pub before: (usize, usize),
    /// The ratio of each run.
    pub each: Vec<f64>,
    /// The median of the ratios.
    pub median: f64,
}

/// Summary of several stories.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// A row for each kind of stories and step.
    pub rows: Vec<Row>,
    /// Waiting time with the code as a layer by that with the code streamed in; empty unless both were run.
    pub oci_by_stream: Vec<Ratio>,
    /// Duration of stories with a disk limit by that of stories without; empty unless both were run.
    pub limited_by_unlimited: Vec<LimitRatio>,
    /// Growth of the waiting time per instance, from step to step.
    pub growth: Vec<Growth>,
}

impl Summary {
    /// Summarises stories, which all have the same steps; those that were not told to their end are left out.
    pub(crate) fn of(stories: &[Report]) -> Self {
        let stories: Vec<&Report> = stories.iter().filter(|story| story.complete).collect();
        let mut kinds: Vec<Kind> = Vec::new();
        for story in &stories {
            if !kinds.contains(&story.kind) {
                kinds.push(story.kind);
            }
        }
        let of = |kind| stories.iter().copied().filter(|story| story.kind == kind).collect::<Vec<_>>();
        let steps = stories.first().map_or(0, |story| story.steps.len());

        let (mut rows, mut growth) = (Vec::new(), Vec::new());
        for &kind in &kinds {
            let stories = of(kind);
            let spread = |value: &dyn Fn(&Report) -> f64| {
                Spread::of(&stories.iter().map(|s| value(s)).collect::<Vec<_>>())
            };
            for n in 0..steps {
                let Step { from, to, .. } = stories[0].steps[n];
                rows.push(Row {
                    kind,
                    from,
                    to,
                    runs: stories.len(),
                    waiting_ms: spread(&|story| story.steps[n].waiting_ms),
                    per_instance_ms: spread(&|story| story.steps[n].per_instance_ms),
                    story: (n + 1 == steps).then(|| Whole {
                        story_ms: spread(&|story| story.story_ms),
                        slowest_destroy_ms: spread(&|story| story.slowest_destroy_ms),
                        fetches: spread(&|story| story.fetches as f64),
                        fetched_bytes: spread(&|story| story.fetched_bytes as f64),
                        written_less_idle_bytes: spread(&Report::written_less_idle),
                        disk_written_less_idle_bytes: stories
                            .iter()
                            .map(|story| story.disk_written_less_idle())
                            .collect::<Option<Vec<_>>>()
                            .map(|all| Spread::of(&all)),
                    }),
                });
            }
            for n in 1..steps {
                let ratio =
                    |story: &&Report| story.steps[n].per_instance_ms / story.steps[n - 1].per_instance_ms;
                let each: Vec<f64> = stories.iter().map(ratio).collect();
                let step = |n: usize| (stories[0].steps[n].from, stories[0].steps[n].to);
                growth.push(Growth { kind, step: step(n), before: step(n - 1), median: median(&each), each });
            }
        }

        let (mut oci_by_stream, mut limited_by_unlimited) = (Vec::new(), Vec::new());
        for kind in kinds {
            if kind.mode == Mode::Oci {
                let pairs = pairs(of(kind), of(Kind { mode: Mode::Stream, ..kind }));
                for n in 0..if pairs.is_empty() { 0 } else { steps } {
                    let ratio = |(oci, stream): &(&Report, &Report)| {
                        oci.steps[n].waiting_ms / stream.steps[n].waiting_ms
                    };
                    let each: Vec<f64> = pairs.iter().map(ratio).collect();
                    let Step { from, to, .. } = pairs[0].0.steps[n];
                    let disk_limit_bytes = kind.disk_limit_bytes;
                    oci_by_stream.push(Ratio { disk_limit_bytes, from, to, median: median(&each), each });
                }
            }
            if kind.disk_limit_bytes.is_some() {
                let pairs = pairs(of(kind), of(Kind { disk_limit_bytes: None, ..kind }));
                let each: Vec<f64> =
                    pairs.iter().map(|(limited, free)| limited.story_ms / free.story_ms).collect();
                if !each.is_empty() {
                    limited_by_unlimited.push(LimitRatio { kind, median: median(&each), each });
                }
            }
        }
        Self { rows, oci_by_stream, limited_by_unlimited, growth }
    }

    /// A row for each step of each mode, and the conclusions as text.
    fn table(&self) -> String {
        let seconds = |ms: f64| format!("{:.2}", ms / 1e3);
        let tenths = |value: f64| format!("{value:.1}");
        let head = [
            "mode",
            "step",
            "runs",
            "waiting s",
            "per instance ms",
            "story s",
            "slowest destroy ms",
            "fetched",
        ];
        let head = head.into_iter().chain(["written less idle", "to the disk"]).map(str::to_owned).collect();
        let rows = self.rows.iter().map(|row| {
            let mut cells = vec![row.kind.to_string(), step((row.from, row.to)), row.runs.to_string()];
            cells.push(row.waiting_ms.tell(seconds));
            cells.push(row.per_instance_ms.tell(tenths));
            if let Some(story) = &row.story {
                cells.push(story.story_ms.tell(seconds));
                cells.push(story.slowest_destroy_ms.tell(tenths));
                cells.push(story.fetched_bytes.tell(signed_bytes));
                cells.push(story.written_less_idle_bytes.tell(signed_bytes));
                let disk = story.disk_written_less_idle_bytes.as_ref();
                cells.push(disk.map_or_else(|| "–".to_owned(), |disk| disk.tell(signed_bytes)));
            }
            cells
        });
        let out = grid(&std::iter::once(head).chain(rows).collect::<Vec<_>>());
        out + "Of all runs: the median (the least – the most).\n\n" + &self.conclusions()
    }

    /// How the stories compare, a line each.
    pub(crate) fn conclusions(&self) -> String {
        let mut out = String::new();
        for ratio in &self.oci_by_stream {
            let spread = Spread::of(&ratio.each);
            let _ = writeln!(
                out,
                "{}{}: with the code as a layer the developer waited {:.2} × as long as with the code streamed in \
                 ({:.2} – {:.2} in {}).",
                step((ratio.from, ratio.to)),
                if ratio.disk_limit_bytes.is_some() { ", limited" } else { "" },
                ratio.median,
                spread.least,
                spread.most,
                times(ratio.each.len() as u64, "pair") + " of runs"
            );
        }
        for ratio in &self.limited_by_unlimited {
            let spread = Spread::of(&ratio.each);
            let _ = writeln!(
                out,
                "{}: with a disk limit of {} for each instance the story took {:.2} × as long as without \
                 ({:.2} – {:.2} in {} of runs).",
                ratio.kind.mode,
                bytes(ratio.kind.disk_limit_bytes.unwrap_or_default()),
                ratio.median,
                spread.least,
                spread.most,
                times(ratio.each.len() as u64, "pair")
            );
        }
        for growth in &self.growth {
            let spread = Spread::of(&growth.each);
            let _ = writeln!(
                out,
                "{}, {}: an instance took {:.2} × as long as one of {} ({:.2} – {:.2} in {}).",
                growth.kind,
                step(growth.step),
                growth.median,
                step(growth.before),
                spread.least,
                spread.most,
                times(growth.each.len() as u64, "run")
            );
        }
        out
    }
}

/// Stories with those of the same runs beside them.
fn pairs<'a>(of: Vec<&'a Report>, beside: Vec<&'a Report>) -> Vec<(&'a Report, &'a Report)> {
    let beside: BTreeMap<usize, &Report> = beside.into_iter().map(|story| (story.run, story)).collect();
    of.into_iter().filter_map(|story| Some((story, *beside.get(&story.run)?))).collect()
}

fn step((from, to): (usize, usize)) -> String {
    format!("{from} → {to}")
}

fn signed_bytes(n: f64) -> String {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let size = bytes(n.abs() as u64);
    if n < 0.0 { format!("-{size}") } else { size }
}

/// Formats rows of cells as columns, names left-aligned and figures right-aligned; the first row is the header.
fn grid(rows: &[Vec<String>]) -> String {
    const NAMES: usize = 2;
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let mut widths = vec![0; columns];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (n, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let width = *width;
            let _ =
                if n < NAMES { write!(line, "{cell:<width$}  ") } else { write!(line, "{cell:>width$}  ") };
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests;
