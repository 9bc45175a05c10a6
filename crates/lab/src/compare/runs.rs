//! The turns of a comparison as runs of the lab's history.

use super::options::command;
use super::report::Report;
use super::turn::Turn;
use crate::runs::machine;
use std::collections::BTreeMap;
use wardian_history::{Bar, Machine, Mark, Row, Run, Sample, Timeline};

/// A run for each turn, of the experiment `compare scale` or `compare teardown`. Turns that were cut off are not among
/// them; what ended the comparison early is noted on none, because the turns before are whole.
pub fn runs(report: &Report) -> Vec<Run> {
    report.turns.iter().map(|turn| run(report, turn)).collect()
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
        command: command(
            options,
            &report.engines.iter().filter(|e| e.is_named()).map(|e| e.name.as_str()).collect::<Vec<_>>(),
        ),
        timeline: Some(timeline(turn)),
    }
}

/// The instances with their phases, those of the scaling being numbered from the first new one.
fn timeline(turn: &Turn) -> Timeline {
    let most = turn.began_ms.iter().map(Vec::len).max().unwrap_or_default();
    let mut rows: Vec<Row> =
        (0..most).map(|n| Row { name: format!("instance {n}"), bars: Vec::new() }).collect();
    let mut marks = Vec::new();
    for (phase, began) in turn.phases.iter().zip(&turn.began_ms) {
        let first = began.iter().copied().reduce(f64::min).unwrap_or_default();
        marks.push(Mark { t_ms: first, name: phase.name.to_owned() });
        // Only the new instances have all phases, and they are the last ones.
        let skipped = most - began.len();
        for (row, (begin_ms, ms)) in rows[skipped..].iter_mut().zip(began.iter().zip(&phase.each_ms)) {
            row.bars.push(Bar { phase: phase.name.to_owned(), begin_ms: *begin_ms, ms: *ms });
        }
    }
    let ends = rows.iter().flat_map(|row| &row.bars).map(|bar| bar.begin_ms + bar.ms);
    let samples: Vec<Sample> = turn.samples.iter().map(Sample::from).collect();
    let length_ms = ends.chain(samples.last().map(|sample| sample.t_ms)).fold(0.0, f64::max);
    Timeline { length_ms, rows, samples, marks, waits: Vec::new() }
}
