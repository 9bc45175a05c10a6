//! The turns of a comparison as runs of the lab's history.

use super::report::Report;
use super::turn::Turn;
use crate::runs::{begun, broken, machine};
use crate::timelines;
use std::collections::BTreeMap;
use wardian_history::{Machine, Run};

/// A run for each turn, of the experiment `compare scale` or `compare teardown`. Turns that were cut off are not among
/// them; what ended the comparison early is a run `compare` without figures.
pub fn runs(report: &Report) -> Vec<Run> {
    let mut all: Vec<Run> = report.turns.iter().map(|turn| run(report, turn)).collect();
    all.extend(report.error.as_ref().map(|error| {
        let cut = begun("compare", report.begun_ms);
        let cut = Run { machine: machine(&report.host), command: report.command.clone(), ..cut };
        broken(cut, &anyhow::anyhow!("{error}"))
    }));
    all
}

fn run(report: &Report, turn: &Turn) -> Run {
    let engine = report.engines.iter().find(|found| found.name == turn.engine);
    let options = &report.options;
    let mut parameters: BTreeMap<String, String> =
        [("to", options.to.to_string()), ("code-mb", options.code_mb.to_string())]
            .map(|(name, value)| (name.to_owned(), value))
            .into();
    if turn.waiting_ms.is_some() {
        parameters.insert("from".to_owned(), options.from.to_string());
        parameters.insert("pea".to_owned(), options.pea.to_string());
    }
    let mut figures: BTreeMap<String, f64> =
        turn.phases.iter().map(|phase| (format!("{}_ms", phase.name), phase.wall_ms)).collect();
    figures.extend(turn.waiting_ms.map(|ms| ("waiting_ms".to_owned(), ms)));
    figures.extend(turn.begin_ms.map(|ms| ("begin_ms".to_owned(), ms)));
    figures.extend(turn.disk_written_bytes.map(|bytes| ("disk_written_bytes".to_owned(), bytes as f64)));
    figures.insert("slowest_destroy_ms".to_owned(), turn.slowest_destroy_ms);
    figures.insert("dirty_at_destroy_bytes".to_owned(), turn.dirty_at_destroy_bytes as f64);
    figures.insert("written_bytes".to_owned(), turn.written_bytes as f64);
    Run {
        id: 0,
        begun_ms: turn.begun_ms,
        experiment: format!("compare {}", turn.series.experiment()),
        mode: turn.series.mode().to_owned(),
        engine: engine.map_or(&turn.engine, |found| &found.name).clone(),
        version: engine.map(|found| found.version.clone()).unwrap_or_default(),
        revision: None,
        parameters,
        machine: Machine { load: turn.load, ..machine(&report.host) },
        headline: if turn.waiting_ms.is_some() { "waiting_ms" } else { "slowest_destroy_ms" }.to_owned(),
        figures,
        complete: true,
        error: None,
        command: report.command.clone(),
        timeline: Some(timelines::of_turn(turn)),
    }
}
