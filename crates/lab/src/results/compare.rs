//! Results of `wardian lab compare` as files.

use super::Results;
use crate::compare::{Comparison, Report, Row, Turn};
use crate::timelines;
use anyhow::{Context, Result};
use wardian_pictures::{self as pictures, Entry, Look, Page, Part, Section, Table, Unit, timeline};

impl Results for Report {
    fn json(&self) -> Result<String> {
        serde_json::to_string_pretty(self).context("encode the report")
    }

    fn csv(&self) -> Result<Vec<u8>> {
        let rows = self.turns.iter().flat_map(|turn| {
            let series = turn.series;
            let before = [
                turn.round.to_string(),
                turn.engine.clone(),
                series.experiment().into(),
                series.mode().into(),
            ];
            turn.phases.iter().flat_map(|phase| super::instances(&before, phase)).collect::<Vec<_>>()
        });
        super::csv(&["round", "engine", "experiment", "mode", "phase", "instance", "begin_ms", "ms"], rows)
    }

    /// The headlines of all experiments.
    fn svg(&self) -> String {
        let entries = self.comparisons.iter().flat_map(|comparison| {
            let what = format!("{} {}", comparison.series.experiment(), comparison.series.mode());
            entries(self, comparison, |engine| format!("{}, {engine}", what.trim_end()))
        });
        let all = pictures::Comparison { unit: Unit::Ms, entries: entries.collect(), bound: None };
        pictures::comparison(&all, &Look::wide().titled("Engines side by side"))
    }

    fn page(&self) -> Page {
        let mut sections: Vec<Section> = self.comparisons.iter().map(|of| section(self, of)).collect();
        let remarks: Vec<Part> = self.remarks().into_iter().map(Part::Text).collect();
        if !remarks.is_empty() {
            sections.push(Section { heading: "Remarks".to_owned(), parts: remarks });
        }
        let how = Part::Lines(self.engines().join("\n"));
        sections.push(Section { heading: "How the engines were run".to_owned(), parts: vec![how] });
        let verdict = self.comparisons.first().map(|of| of.verdict(&self.options));
        Page {
            title: "wardian lab compare".to_owned(),
            verdict: verdict.unwrap_or_else(|| "Nothing was compared.".to_owned()),
            incomplete: self.error.clone(),
            command: self.command.clone(),
            machine: super::machine(&self.host),
            settings: settings(self),
            sections,
            ..Page::default()
        }
    }
}

/// The headline of an experiment, an entry for each engine; `name` makes one of the engine's.
fn entries(report: &Report, of: &Comparison, name: impl Fn(&str) -> String) -> Vec<Entry> {
    let entry = |row: &Row| {
        let (ratio, interval) = row.ratio();
        let is_known = row.ratio.is_some_and(|ratio| ratio.known().is_some());
        let without = (!row.without.is_empty())
            .then(|| format!("{} left out on both sides", row.without.join(" and ")));
        Entry {
            name: name(&row.engine),
            // All engines have one colour: that of an engine would be taken for that of a phase in the pictures below.
            kind: "engine".to_owned(),
            runs: report.values(of.series, row),
            ratio: if is_known { format!("{ratio} × ({interval})") } else { ratio },
            note: without.unwrap_or_default(),
        }
    };
    of.rows_of(of.headline()).map(entry).collect()
}

fn section(report: &Report, of: &Comparison) -> Section {
    let entries = entries(report, of, str::to_owned);
    let drawn = pictures::Comparison { unit: Unit::Ms, entries, bound: None };
    let reference = &of.reference;
    let mut parts = vec![
        Part::Text(of.verdict(&report.options)),
        Part::Text(format!(
            "A bar is the median of the rounds, a dot is a round. A factor says by what a duration is that of \
             {reference} in the same round, with its interval of 95 %."
        )),
        Part::picture(|look| pictures::comparison(&drawn, look)),
        Part::Table(table(of)),
    ];
    for engine in &report.engines {
        if let Some(turn) = middle(report, of, &engine.name) {
            let drawn = timelines::of_turn(turn);
            parts.push(Part::Text(format!("{}, round {}", engine.name, turn.round)));
            parts.push(Part::picture(|look| timeline(&drawn, look)));
        }
    }
    Section { heading: of.heading(&report.options), parts }
}

/// The turn of an engine that is in the middle of all by the headline.
fn middle<'a>(report: &'a Report, of: &Comparison, engine: &str) -> Option<&'a Turn> {
    let row = of.rows_of(of.headline()).find(|row| row.engine == engine)?;
    let turns = report.turns.iter().filter(|turn| turn.series == of.series && turn.engine == engine);
    let mut turns: Vec<(&Turn, f64)> = turns.zip(report.values(of.series, row)).collect();
    turns.sort_by(|a, b| a.1.total_cmp(&b.1));
    turns.get(turns.len() / 2).map(|(turn, _)| *turn)
}

fn table(of: &Comparison) -> Table {
    let row = |row: &Row| {
        let (ratio, interval) = row.ratio();
        vec![row.measure.clone(), row.engine.clone(), row.value(), ratio, interval, row.runs.to_string()]
    };
    let times = format!("by {}", of.reference);
    let head = ["measure", "engine", "median", &times, "95 % interval", "rounds"].map(str::to_owned).into();
    Table { head, rows: of.rows.iter().map(row).collect() }
}

fn settings(report: &Report) -> Vec<(String, String)> {
    let options = &report.options;
    [
        ("engines", report.engines.iter().map(|e| e.name.as_str()).collect::<Vec<_>>().join(", ")),
        ("instances", format!("{} → {}", options.from, options.to)),
        ("MB in each", options.code_mb.to_string()),
        ("rounds", options.runs.to_string()),
        ("health checks", if options.pea { "yes" } else { "no" }.to_owned()),
        ("order of the turns", format!("seed {}", options.seed)),
        ("directory", options.fs.display().to_string()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}
