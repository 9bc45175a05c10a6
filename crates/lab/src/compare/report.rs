//! Results of `wardian lab compare`: what came of it first, then a table for each experiment.

use super::engines::{Found, Missing};
use super::options::{Options, Series, command};
use super::stats::{FEWEST, Ratio};
use super::turn::Turn;
use crate::host::{Host, since_1970};
use crate::report::{bytes, median};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::SystemTime;

/// After so many failures in an experiment an engine has no more turns in it: the first one may be an accident.
const FAILURES: usize = 2;
/// Columns of the text.
const COLUMNS: usize = 80;

/// Everything that was found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Whether it ended as planned. Engines may have failed all the same, see `failures`.
    pub complete: bool,
    /// Why it did not.
    pub error: Option<String>,
    /// When it began, in ms since 1970.
    pub begun_ms: i64,
    /// The command that repeats it, as words.
    pub command: Vec<String>,
    /// What was compared.
    pub options: Options,
    /// The engines.
    pub engines: Vec<Found>,
    /// Engines that were not compared.
    pub missing: Vec<Missing>,
    /// Failures of engines. After two in an experiment an engine had no more turns in it.
    pub failures: Vec<Failure>,
    /// The machine.
    pub host: Host,
    /// The experiments, compared.
    pub comparisons: Vec<Comparison>,
    /// The turns, in order.
    pub turns: Vec<Turn>,
}

/// An engine's failure.
#[derive(Debug, Clone, Serialize)]
pub struct Failure {
    /// Name of the engine.
    pub engine: String,
    /// The experiment.
    #[serde(flatten)]
    pub series: Series,
    /// In which round.
    pub round: usize,
    /// What happened.
    pub error: String,
    /// Whether it did not answer in time. Such an engine has no more turns in any experiment.
    pub silent: bool,
}

/// One experiment, by all engines.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    /// The experiment.
    #[serde(flatten)]
    pub series: Series,
    /// The engine that the others are compared with.
    pub reference: String,
    /// A row for each measure and engine.
    pub rows: Vec<Row>,
}

/// A measure of an engine.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// `waiting`, the name of a phase, `slowest destroy`, `dirty at destroy`, `written`, or `to the disk`.
    pub measure: String,
    /// The engine.
    pub engine: String,
    /// The unit of `median`: `ms` or `bytes`.
    pub unit: &'static str,
    /// The median of the rounds.
    pub median: f64,
    /// Number of rounds.
    pub runs: usize,
    /// By what the median is that of the reference; `null` for the reference, and for bytes.
    pub ratio: Option<Ratio>,
    /// Phases of `waiting` that one of the two engines cannot do: they are in neither side of the ratio.
    pub without: Vec<&'static str>,
}

impl Report {
    pub(super) fn new(options: Options, engines: Vec<Found>, missing: Vec<Missing>) -> Self {
        let named: Vec<&str> = engines.iter().filter(|e| e.is_named()).map(|e| e.name.as_str()).collect();
        Self {
            complete: false,
            error: None,
            begun_ms: since_1970(SystemTime::now()),
            command: command(&options, &named),
            options,
            engines,
            missing,
            failures: Vec::new(),
            host: Host::default(),
            comparisons: Vec::new(),
            turns: Vec::new(),
        }
    }

    pub(super) fn fail(
        &mut self,
        engine: &str,
        series: Series,
        round: usize,
        error: &anyhow::Error,
        silent: bool,
    ) {
        let error = format!("{error:#}");
        self.failures.push(Failure { engine: engine.to_owned(), series, round, error, silent });
    }

    /// Whether an engine has no more turns.
    pub(super) fn has_failed(&self, engine: &str, series: Series) -> bool {
        let of = || self.failures.iter().filter(|failure| failure.engine == engine);
        of().any(|failure| failure.silent)
            || of().filter(|failure| failure.series == series).count() >= FAILURES
    }

    /// Evaluates the turns.
    pub(super) fn compare(&mut self) {
        let names: Vec<&str> = self.engines.iter().map(|engine| engine.name.as_str()).collect();
        let series = self.options.series.iter();
        self.comparisons = series.filter_map(|series| Comparison::of(*series, &names, &self.turns)).collect();
    }

    /// What a reader of the figures must know besides: failures, engines that were not compared, a busy machine.
    pub(crate) fn remarks(&self) -> Vec<String> {
        let failed = self.failures.iter().map(|failure| {
            let Failure { engine, series, round, error, silent } = failure;
            let more = if *silent { ", and had no more turns" } else { "" };
            let (experiment, mode) = (series.experiment(), series.mode());
            format!("{engine} failed in round {round}, {experiment} {mode}{more}: {error}")
        });
        let missing =
            self.missing.iter().map(|Missing { name, why }| format!("Not compared: {name}: {why}."));
        // Later turns have the load of those before them.
        let before = self.turns.first().map_or(0.0, |turn| turn.load);
        let busy = (before > self.host.cpus as f64).then(|| {
            format!(
                "Warning: the load average was {before:.1} on {} processors before the first turn, so other programs ran \
                 too: trust the ratios, whose turns were next to each other, rather than the durations.",
                self.host.cpus
            )
        });
        failed.chain(missing).chain(busy).collect()
    }

    /// How each engine was run, and what it cannot do, a line each.
    pub(crate) fn engines(&self) -> Vec<String> {
        let lines = self.engines.iter().flat_map(|Found { name, version, how, cannot, .. }| {
            let cannot = cannot.iter().map(|(phase, why)| format!("  no {phase}: {why}"));
            [format!("{name} {version}: {how}")].into_iter().chain(cannot)
        });
        lines.collect()
    }

    /// The value of each round of a measure of an engine, in order.
    pub(crate) fn values(&self, series: Series, row: &Row) -> Vec<f64> {
        let turns = self.turns.iter().filter(|turn| turn.series == series && turn.engine == row.engine);
        turns.filter_map(|turn| value(turn, &row.measure, &row.without)).collect()
    }

    /// The report for people.
    pub fn text(&self) -> String {
        let verdicts = self.comparisons.iter().map(|comparison| comparison.verdict(&self.options));
        let mut out: String = verdicts.chain(self.remarks()).map(|sentence| fold(&sentence)).collect();
        for comparison in &self.comparisons {
            out.push('\n');
            out.push_str(&comparison.table(&self.options));
        }
        out.push('\n');
        self.engines().iter().for_each(|line| out.push_str(&fold(line)));
        let Host { kernel, cpus, filesystem, cgroups, .. } = &self.host;
        out.push_str(&fold(&format!(
            "Kernel {kernel}, {cpus} processors, cgroup {cgroups}, {filesystem} in {}; seed {}.",
            self.options.fs.display(),
            self.options.seed
        )));
        out
    }
}

impl Comparison {
    /// Compares all with the first engine that has turns; `None` if there is none.
    fn of(series: Series, engines: &[&str], turns: &[Turn]) -> Option<Self> {
        let of = |engine: &str| {
            turns.iter().filter(|t| t.series == series && t.engine == engine).collect::<Vec<_>>()
        };
        let all: Vec<(&str, Vec<&Turn>)> = engines
            .iter()
            .map(|engine| (*engine, of(engine)))
            .filter(|(_, turns)| !turns.is_empty())
            .collect();
        let (reference, base) = all.first()?;
        let mut measures: Vec<&str> = Vec::new();
        if series != Series::Teardown {
            measures.push("waiting");
        }
        // The phases in the order of the engine that has most.
        let most = all.iter().max_by_key(|(_, turns)| turns[0].phases.len())?;
        measures.extend(most.1[0].phases.iter().map(|phase| phase.name));
        measures.extend(["slowest destroy", "dirty at destroy", "written", "to the disk"]);
        let mut rows = Vec::new();
        for measure in measures {
            for (engine, turns) in &all {
                let without = if measure == "waiting" { differing(turns[0], base[0]) } else { Vec::new() };
                let values: BTreeMap<usize, f64> = turns
                    .iter()
                    .filter_map(|turn| Some((turn.round, value(turn, measure, &without)?)))
                    .collect();
                if values.is_empty() {
                    continue;
                }
                let unit = if BYTES.contains(&measure) { "bytes" } else { "ms" };
                let pairs: Vec<(f64, f64)> = base
                    .iter()
                    .filter_map(|turn| Some((*values.get(&turn.round)?, value(turn, measure, &without)?)))
                    .collect();
                let has_ratio = engine != reference
                    && unit == "ms"
                    && base.iter().any(|t| value(t, measure, &without).is_some());
                rows.push(Row {
                    measure: measure.to_owned(),
                    engine: (*engine).to_owned(),
                    unit,
                    median: median(&values.values().copied().collect::<Vec<_>>()),
                    runs: values.len(),
                    ratio: has_ratio.then(|| Ratio::of(&pairs)),
                    without,
                });
            }
        }
        Some(Self { series, reference: (*reference).to_owned(), rows })
    }

    pub(crate) fn rows_of<'a>(&'a self, measure: &'a str) -> impl Iterator<Item = &'a Row> {
        self.rows.iter().filter(move |row| row.measure == measure)
    }

    /// What came of it, in a sentence.
    pub(crate) fn verdict(&self, options: &Options) -> String {
        let Options { from, to, code_mb, .. } = options;
        let begin = match self.series {
            Series::Stream => format!("An app scaled from {from} to {to} waits"),
            Series::Layer => format!("With its {code_mb} MB of code as a layer it waits"),
            Series::Teardown => {
                format!("{to} containers, each with {code_mb} MB of new data, are destroyed in")
            }
        };
        let each = self.rows_of(self.headline()).map(|row| {
            let without = match &row.without[..] {
                [] => String::new(),
                phases => format!(", {} left out on both sides", phases.join(" and ")),
            };
            let ratio = row.ratio.map(|ratio| format!(" ({}{without})", told(&ratio, row.runs)));
            format!("{} with {}{}", seconds(row.median), row.engine, ratio.unwrap_or_default())
        });
        format!("{begin} {}.", each.collect::<Vec<_>>().join(", "))
    }

    /// What was done how often.
    pub(crate) fn heading(&self, options: &Options) -> String {
        let Options { from, to, code_mb, runs, .. } = options;
        let what = match self.series {
            Series::Stream => format!("scale, code streamed in: {from} → {to} instances, {code_mb} MB each"),
            Series::Layer => format!("scale, code as a layer: {from} → {to} instances, {code_mb} MB"),
            Series::Teardown => format!("teardown: {to} containers with {code_mb} MB of dirty data each"),
        };
        let rounds = if *runs == 1 { "1 round".to_owned() } else { format!("{runs} rounds") };
        format!("{what}; {rounds}")
    }

    /// The measure that the comparison is about.
    pub(crate) fn headline(&self) -> &'static str {
        if self.series == Series::Teardown { "destroy" } else { "waiting" }
    }

    fn table(&self, options: &Options) -> String {
        let mut out = format!("{}\n", self.heading(options));
        let times = format!("by {}", self.reference);
        let _ =
            writeln!(out, "{:<17} {:<11} {:>10}  {:>14}  {:>19}", "", "", "median", times, "95 % interval");
        let mut last = "";
        for row in &self.rows {
            let measure = if row.measure == last { "" } else { &row.measure };
            last = &row.measure;
            let (value, (ratio, interval)) = (row.value(), row.ratio());
            let fewer = if row.runs < options.runs { format!("  {} runs", row.runs) } else { String::new() };
            let line =
                format!("{measure:<17} {:<11} {value:>10}  {ratio:>14}  {interval:>12}{fewer}", row.engine);
            let _ = writeln!(out, "{}", line.trim_end());
        }
        out
    }
}

impl Row {
    /// The median with its unit.
    pub(crate) fn value(&self) -> String {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        if self.unit == "ms" { format!("{:.1} ms", self.median) } else { bytes(self.median as u64) }
    }

    /// The ratio, or why there is none, and its interval; empty where nothing is compared.
    pub(crate) fn ratio(&self) -> (String, String) {
        match self.ratio {
            None => (String::new(), String::new()),
            Some(Ratio::Known(known)) => {
                (short(known.ratio), format!("{}–{}", short(known.low), short(known.high)))
            }
            Some(Ratio::TooNoisy(noisy)) => {
                ("too noisy".to_owned(), format!("{}–{}", short(noisy.low), short(noisy.high)))
            }
            Some(Ratio::TooFew { pairs }) => (format!("{pairs} of {FEWEST} rounds"), String::new()),
            Some(Ratio::NotMeasurable) => ("too short".to_owned(), String::new()),
        }
    }
}

/// Measures in bytes.
const BYTES: [&str; 3] = ["dirty at destroy", "written", "to the disk"];

/// Phases of the waiting that only one of two turns has.
fn differing(this: &Turn, that: &Turn) -> Vec<&'static str> {
    let names = |turn: &Turn| turn.phases.iter().map(|phase| phase.name).collect::<Vec<_>>();
    let (this, that) = (names(this), names(that));
    let only = |a: &[&'static str], b: &[&'static str]| {
        a.iter().filter(|n| !b.contains(n)).copied().collect::<Vec<_>>()
    };
    [only(&this, &that), only(&that, &this)].concat()
}

/// A measure of a turn; `without` is not in a waiting time.
fn value(turn: &Turn, measure: &str, without: &[&str]) -> Option<f64> {
    let phase = |name: &str| turn.phases.iter().find(|phase| phase.name == name).map(|phase| phase.wall_ms);
    match measure {
        "waiting" => Some(turn.waiting_ms? - without.iter().filter_map(|name| phase(name)).sum::<f64>()),
        "slowest destroy" => Some(turn.slowest_destroy_ms),
        "dirty at destroy" => Some(turn.dirty_at_destroy_bytes as f64),
        "written" => Some(turn.written_bytes as f64),
        "to the disk" => Some(turn.disk_written_bytes? as f64),
        name => phase(name),
    }
}

/// What is said of a ratio in a sentence.
fn told(ratio: &Ratio, runs: usize) -> String {
    let more = (4 * runs).max(20);
    match ratio {
        Ratio::Known(known) => {
            let unsure =
                if known.low <= 1.0 && known.high >= 1.0 { ", so no difference is certain" } else { "" };
            format!("{} times, {}–{}{unsure}", short(known.ratio), short(known.low), short(known.high))
        }
        Ratio::TooNoisy(noisy) => {
            let (low, high) = (short(noisy.low), short(noisy.high));
            // Of a wide interval the lower end says something all the same.
            let least = if noisy.low > 1.0 { format!("at least {low} times, and ") } else { String::new() };
            format!("{least}too noisy: {low}–{high}; run more (`--runs {more}`) or on a quieter machine")
        }
        Ratio::TooFew { pairs: 1 } => format!("1 round; a ratio needs {FEWEST}"),
        Ratio::TooFew { pairs } => format!("{pairs} rounds; a ratio needs {FEWEST}"),
        Ratio::NotMeasurable => "no ratio: too short to be measured".to_owned(),
    }
}

/// A ratio with as many digits as it is good for.
fn short(ratio: f64) -> String {
    match ratio {
        r if r >= 99.95 => format!("{r:.0}"),
        r if r >= 9.995 => format!("{r:.1}"),
        r => format!("{r:.2}"),
    }
}

fn seconds(ms: f64) -> String {
    if ms < 100.0 { format!("{ms:.1} ms") } else { format!("{:.2} s", ms / 1e3) }
}

/// Breaks a line at spaces; what follows is indented.
fn fold(text: &str) -> String {
    let indent = text.len() - text.trim_start().len();
    let (mut out, mut line) = (String::new(), " ".repeat(indent));
    let mut is_empty = true;
    for word in text.split_whitespace() {
        if !is_empty && line.chars().count() + 1 + word.chars().count() > COLUMNS {
            out.push_str(&line);
            out.push('\n');
            line = " ".repeat(indent + 2);
            is_empty = true;
        }
        if !is_empty {
            line.push(' ');
        }
        line.push_str(word);
        is_empty = false;
    }
    out + &line + "\n"
}

#[cfg(test)]
mod tests;
