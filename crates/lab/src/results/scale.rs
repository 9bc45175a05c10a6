//! Results of `wardian lab scale` as files.

use super::Results;
use crate::report::bytes;
use crate::scale::{Kind, Report, Stories, Summary};
use crate::timelines;
use anyhow::{Context, Result};
use wardian_pictures::{Comparison, Entry, Look, Page, Part, Section, Table, Unit, comparison, timeline};

/// Limit of the stories whose timelines are in a report. The data have the others.
const TIMELINES_MAX: usize = 8;

impl Results for Stories {
    fn json(&self) -> Result<String> {
        serde_json::to_string_pretty(self).context("encode the report")
    }

    fn csv(&self) -> Result<Vec<u8>> {
        let rows = self.0.iter().flat_map(|story| {
            let limit = story.kind.disk_limit_bytes.map(|bytes| bytes.to_string()).unwrap_or_default();
            let before = [story.run.to_string(), story.kind.mode.to_string(), limit];
            let begin = story.begin.iter().flat_map(|step| &step.phases);
            let phases = begin.chain(&story.phases);
            phases.flat_map(|phase| super::instances(&before, phase)).collect::<Vec<_>>()
        });
        let head = ["run", "mode", "disk_limit_bytes", "phase", "instance", "begin_ms", "ms"];
        super::csv(&head, rows)
    }

    /// The timeline of a single story; of several the waiting times side by side.
    fn svg(&self) -> String {
        match &self.0[..] {
            [one] => timeline(&timelines::of_scale(one), &Look::wide().titled(title(one))),
            several => comparison(&waiting(several), &Look::wide().titled("Waiting time")),
        }
    }

    fn page(&self) -> Page {
        let complete: Vec<&Report> = self.0.iter().filter(|story| story.complete).collect();
        let conclusions = Summary::of(&self.0).conclusions();
        let verdict = match (&self.0[..], conclusions.is_empty()) {
            ([], _) => "No story was told.".to_owned(),
            ([one], _) if one.complete => one.verdict(),
            (_, false) => conclusions,
            _ => format!("{} of {} stories were told to their end.", complete.len(), self.0.len()),
        };
        let mut sections = Vec::new();
        if let [_, _, ..] = self.0[..] {
            let drawn = waiting(&self.0);
            sections.push(Section {
                heading: "Waiting time".to_owned(),
                parts: vec![
                    Part::Text("A bar is the median of the runs, a dot is a run.".to_owned()),
                    Part::picture(|look| comparison(&drawn, look)),
                    Part::Table(table(&self.0)),
                ],
            });
        }
        for story in self.0.iter().take(TIMELINES_MAX) {
            let drawn = timelines::of_scale(story);
            let phases = story.begin.iter().flat_map(|step| &step.phases).chain(&story.phases);
            sections.push(Section {
                heading: title(story),
                parts: vec![
                    Part::Text(EXPLAINED.to_owned()),
                    Part::picture(|look| timeline(&drawn, look)),
                    Part::Table(super::phases(phases)),
                ],
            });
        }
        if self.0.len() > TIMELINES_MAX {
            let more = format!("The data have {} more stories.", self.0.len() - TIMELINES_MAX);
            sections.push(Section { heading: "Other stories".to_owned(), parts: vec![Part::Text(more)] });
        }
        let error = self.0.iter().find_map(|story| story.error.clone());
        Page {
            title: "wardian lab scale".to_owned(),
            verdict,
            incomplete: error,
            machine: self.0.first().map(|story| super::machine(&story.host)).unwrap_or_default(),
            settings: self.0.first().map(settings).unwrap_or_default(),
            sections,
            ..Page::default()
        }
    }
}

const EXPLAINED: &str = "Each row is an instance, each bar a phase, from the first create on. Below are the pages of the \
                         host that are not on disk yet, on the same axis.";

fn title(story: &Report) -> String {
    let steps: Vec<String> = story.steps.iter().map(|step| step.to.to_string()).collect();
    let from = story.steps.first().map(|step| step.from.to_string());
    let scaled = from.into_iter().chain(steps).collect::<Vec<_>>().join(" → ");
    let scaled = if scaled.is_empty() { String::new() } else { format!(" {scaled}") };
    format!("Scaling{scaled}, {}, run {}", told(story.kind), story.run)
}

fn told(kind: Kind) -> String {
    let code = kind.mode.to_string();
    kind.disk_limit_bytes
        .map_or_else(|| code.clone(), |limit| format!("{code} with a limit of {}", bytes(limit)))
}

/// The waiting time of each kind of stories and step.
fn waiting(stories: &[Report]) -> Comparison {
    let summary = Summary::of(stories);
    let entry = |row: &crate::scale::Row| {
        let same = stories.iter().filter(|story| story.complete && story.kind == row.kind);
        let steps =
            same.flat_map(|story| &story.steps).filter(|step| (step.from, step.to) == (row.from, row.to));
        let by = summary.oci_by_stream.iter().find(|ratio| {
            row.kind.mode == crate::scale::Mode::Oci
                && (ratio.from, ratio.to, ratio.disk_limit_bytes)
                    == (row.from, row.to, row.kind.disk_limit_bytes)
        });
        Entry {
            name: format!("{}, {} → {}", told(row.kind), row.from, row.to),
            kind: row.kind.mode.to_string(),
            runs: steps.map(|step| step.waiting_ms).collect(),
            ratio: by.map(|ratio| format!("{:.2} × streamed", ratio.median)).unwrap_or_default(),
            note: String::new(),
        }
    };
    Comparison { unit: Unit::Ms, entries: summary.rows.iter().map(entry).collect(), bound: None }
}

/// A row for each story.
fn table(stories: &[Report]) -> Table {
    let row = |story: &Report| {
        vec![
            told(story.kind),
            story.run.to_string(),
            Unit::Ms.show(story.waiting_ms),
            Unit::Ms.show(story.story_ms),
            Unit::Ms.show(story.slowest_destroy_ms),
            bytes(story.dirty_at_destroy_bytes),
            bytes(story.written_bytes),
            if story.complete { String::new() } else { "incomplete".to_owned() },
        ]
    };
    let head = ["code", "run", "waiting", "story", "slowest destroy", "dirty then", "written", ""];
    Table { head: head.map(str::to_owned).into(), rows: stories.iter().map(row).collect() }
}

fn settings(story: &Report) -> Vec<(String, String)> {
    let mut all = vec![("code".to_owned(), told(story.kind))];
    all.extend(story.steps.iter().map(|step| ("step".to_owned(), format!("{} → {}", step.from, step.to))));
    if story.layer_bytes > 0 {
        all.push(("layer".to_owned(), bytes(story.layer_bytes)));
    }
    all
}
