//! Timelines of the lab's experiments: what happened when, as a picture needs it.

use crate::compare::Turn;
use crate::report::Phase;
use crate::{record, scale, teardown};
use serde_json::Value;
use std::collections::BTreeMap;
use wardian_history::{Bar, Mark, Row, Sample, Timeline, Wait};
use wardian_recorder::{CauseShare, Diagnosis, Task};

/// Limit of the rows of threads in a recording's timeline: those that waited the longest.
const THREADS_MAX: usize = 60;
/// Parts of names of kernel functions in which a thread waits for data to be written. A wait elsewhere, for a lock or
/// for other processors, is not explained by a write at the same time.
const WRITING: [&str; 8] =
    ["writeback", "wb_wait", "sync_", "_sync", "fsync", "jbd2_", "balance_dirty", "journal_commit"];

/// The timeline of a story: its instances with their phases, from the first create on.
pub fn of_scale(report: &scale::Report) -> Timeline {
    let mut rows = Rows::new("instance");
    let begin = report.begin.iter().flat_map(|step| &step.phases);
    begin.chain(&report.phases).for_each(|phase| rows.add(phase, 0.0));
    Timeline {
        length_ms: report.length_ms,
        rows: rows.finish(),
        samples: report.samples.iter().map(Sample::from).collect(),
        marks: report.marks.iter().map(|mark| Mark { t_ms: mark.t_ms, name: mark.name.clone() }).collect(),
        waits: Vec::new(),
    }
}

/// The timeline of a teardown: its mounts with their phases, and who waited in the kernel. A second round follows the
/// first.
pub fn of_teardown(report: &teardown::report::Report) -> Timeline {
    let (mut rows, mut timeline, mut offset) = (Rows::new("mount"), Timeline::default(), 0.0);
    let rounds = report.first_round.iter().chain([&report.round]);
    for (n, round) in rounds.enumerate() {
        round.phases.iter().for_each(|phase| rows.add(phase, offset));
        let mut samples: Vec<Sample> = round.samples.iter().map(|sample| at(sample, offset)).collect();
        if let Some(unmount) = round.phases.iter().find(|phase| phase.name == "unmount") {
            dirty_then(&mut samples, unmount.begin_ms + offset, round.dirty_at_unmount_bytes);
        }
        timeline.samples.extend(samples);
        timeline.marks.extend(round.marks.iter().map(|mark| Mark {
            t_ms: mark.t_ms + offset,
            name: if n == 0 { mark.name.clone() } else { format!("again: {}", mark.name) },
        }));
        for wait in &round.diagnosis.waited {
            let mut told = waited(wait, offset, None, on(wait, &round.diagnosis, &named));
            let mount = match teardown::mount_of(&wait.task.comm) {
                None if wait.task.comm == teardown::THREAD => rows.busy(&told),
                mount => mount,
            };
            told.row = mount.map(|mount| rows.name(mount));
            if let Some(bar) = mount.and_then(|mount| rows.unmount(mount, offset))
                && matches!(wait.task.syscall.as_deref(), Some("umount" | "task_work"))
            {
                within(&mut told, bar);
            }
            timeline.waits.push(told);
        }
        offset += round.length_ms;
    }
    timeline.length_ms = offset;
    timeline.waits.sort_by(|a, b| a.begin_ms.total_cmp(&b.begin_ms));
    Timeline { rows: rows.finish(), ..timeline }
}

/// The timeline of an engine's turn in a comparison: its instances with their phases. Those that ran before the scaling
/// have the last one only.
pub fn of_turn(turn: &Turn) -> Timeline {
    // The first instances are not waited for, and have no phases here.
    let begin = turn.phases.iter().map(|phase| phase.begin_ms).reduce(f64::min).unwrap_or_default();
    let mut rows = Rows::new("instance");
    turn.phases.iter().for_each(|phase| rows.add(phase, -begin));
    let mut samples: Vec<Sample> = turn.samples.iter().map(Sample::from).collect();
    if let Some(destroy) = turn.phases.last() {
        dirty_then(&mut samples, destroy.begin_ms, turn.dirty_at_destroy_bytes);
    }
    samples.retain(|sample| sample.t_ms >= begin);
    samples.iter_mut().for_each(|sample| sample.t_ms -= begin);
    let ends = turn.phases.iter().map(|phase| phase.begin_ms + phase.wall_ms - begin);
    Timeline {
        length_ms: ends.chain(samples.last().map(|sample| sample.t_ms)).fold(0.0, f64::max),
        rows: rows.finish(),
        samples,
        marks: turn
            .phases
            .iter()
            .map(|phase| Mark { t_ms: phase.begin_ms - begin, name: phase.name.to_owned() })
            .collect(),
        waits: Vec::new(),
    }
}

/// The timeline of a teardown in a guest, from the report that it made there: dirty bytes and marks; `None` of another one.
pub fn of_guest(report: &Value) -> Option<Timeline> {
    let number = |value: &Value| value.as_f64();
    let samples: Vec<Sample> = report["samples"]
        .as_array()?
        .iter()
        .filter_map(|sample| {
            Some(Sample {
                t_ms: number(&sample["t_ms"])?,
                dirty_bytes: sample["dirty_bytes"].as_u64()?,
                writeback_bytes: sample["writeback_bytes"].as_u64()?,
            })
        })
        .collect();
    let marks = report["marks"].as_array().into_iter().flatten();
    let marks = marks.filter_map(|mark| {
        Some(Mark { t_ms: number(&mark["t_ms"])?, name: mark["name"].as_str()?.to_owned() })
    });
    let length_ms = samples.last()?.t_ms;
    Some(Timeline { length_ms, samples, marks: marks.collect(), ..Timeline::default() })
}

/// The timeline of a recording: a row for each cause of writes, and one for each thread that waited.
pub fn of_recording(report: &record::Report) -> Timeline {
    let recording = &report.recording;
    let mut causes: BTreeMap<String, Vec<Bar>> = BTreeMap::new();
    for burst in &recording.written {
        let (phase, ms) = (burst.cause.to_string(), burst.end_ms - burst.begin_ms);
        causes.entry(phase.clone()).or_default().push(Bar { phase, begin_ms: burst.begin_ms, ms });
    }
    let mut rows: Vec<Row> =
        causes.into_iter().map(|(name, bars)| Row { name: format!("written: {name}"), bars }).collect();
    let mut waits = Vec::new();
    let mut threads: Vec<String> = Vec::new();
    for wait in &report.diagnosis.waited {
        let name = wait.task.to_string();
        if !threads.contains(&name) {
            if threads.len() == THREADS_MAX {
                continue;
            }
            threads.push(name.clone());
        }
        let on = on(wait, &report.diagnosis, &|task| task.to_string());
        waits.push(waited(wait, 0.0, Some(name), on));
    }
    rows.extend(threads.into_iter().map(|name| Row { name, bars: Vec::new() }));
    Timeline {
        length_ms: recording.length_ms,
        rows,
        samples: recording.samples.iter().map(|sample| at(sample, 0.0)).collect(),
        marks: recording.marks.iter().map(|mark| Mark { t_ms: mark.t_ms, name: mark.name.clone() }).collect(),
        waits,
    }
}

/// Adds what was dirty at a moment to the samples, which are further apart than a short phase is long. What was being
/// written then is taken from the sample before.
fn dirty_then(samples: &mut Vec<Sample>, t_ms: f64, dirty_bytes: u64) {
    let place = samples.partition_point(|sample| sample.t_ms <= t_ms);
    let writeback_bytes = place.checked_sub(1).map_or(0, |before| samples[before].writeback_bytes);
    samples.insert(place, Sample { t_ms, dirty_bytes, writeback_bytes });
}

/// Rows by the numbers of their instances or mounts.
struct Rows {
    what: &'static str,
    rows: BTreeMap<usize, Vec<Bar>>,
}

impl Rows {
    fn new(what: &'static str) -> Self {
        Self { what, rows: BTreeMap::new() }
    }

    fn name(&self, number: usize) -> String {
        format!("{} {number}", self.what)
    }

    /// Adds a bar to the row of each instance that passed the phase.
    fn add(&mut self, phase: &Phase, offset: f64) {
        let each = phase.each_of.iter().zip(&phase.each_begin_ms).zip(&phase.each_ms);
        for ((number, begin), ms) in each {
            let bar = Bar { phase: phase.name.to_owned(), begin_ms: begin + offset, ms: *ms };
            self.rows.entry(*number).or_default().push(bar);
        }
    }

    /// The row that was in a phase for the largest part of a wait, if that is at least half of it.
    fn busy(&self, wait: &Wait) -> Option<usize> {
        let end = wait.begin_ms + wait.ms;
        let overlap = |bar: &Bar| (end.min(bar.begin_ms + bar.ms) - wait.begin_ms.max(bar.begin_ms)).max(0.0);
        let busy = self.rows.iter().map(|(n, bars)| (*n, bars.iter().map(overlap).sum::<f64>()));
        let (number, time) = busy.max_by(|a, b| a.1.total_cmp(&b.1))?;
        (time > 0.0 && time * 2.0 >= wait.ms).then_some(number)
    }

    /// The unmount of a mount in the round that begins then.
    fn unmount(&self, number: usize, round: f64) -> Option<&Bar> {
        self.rows.get(&number)?.iter().find(|bar| bar.phase == "unmount" && bar.begin_ms >= round)
    }

    fn finish(self) -> Vec<Row> {
        let name = |number: usize| format!("{} {number}", self.what);
        let row = |(number, mut bars): (usize, Vec<Bar>)| {
            bars.sort_by(|a, b| a.begin_ms.total_cmp(&b.begin_ms));
            Row { name: name(number), bars }
        };
        self.rows.into_iter().map(row).collect()
    }
}

fn at(sample: &wardian_recorder::Sample, offset: f64) -> Sample {
    Sample {
        t_ms: sample.t_ms + offset,
        dirty_bytes: sample.dirty_bytes,
        writeback_bytes: sample.writeback_bytes,
    }
}

/// Moves a wait into the call that it is a part of: a recorder may have seen a thread late, the clock of the experiment
/// is exact.
fn within(wait: &mut Wait, call: &Bar) {
    wait.ms = wait.ms.min(call.ms);
    wait.begin_ms = wait.begin_ms.min(call.begin_ms + call.ms - wait.ms).max(call.begin_ms);
}

fn waited(wait: &wardian_recorder::Wait, offset: f64, row: Option<String>, on: Option<String>) -> Wait {
    let place = match (&wait.task.syscall, &wait.kernel_function) {
        (Some(call), Some(function)) => format!("{call} in {function}"),
        (Some(one), None) | (None, Some(one)) => one.clone(),
        (None, None) => "the kernel".to_owned(),
    };
    let (who, begin_ms) = (wait.task.to_string(), wait.begin_ms + offset);
    Wait { row, who, begin_ms, ms: wait.ms, place, on }
}

/// Whom a thread waited for: whoever asked for the write that was done for most of the time.
fn on(
    wait: &wardian_recorder::Wait,
    diagnosis: &Diagnosis,
    name: &dyn Fn(&Task) -> String,
) -> Option<String> {
    let functions = wait.kernel_function.iter().chain(&wait.stack);
    if !functions.into_iter().any(|function| WRITING.iter().any(|part| function.contains(part))) {
        return None;
    }
    let end = wait.begin_ms + wait.ms;
    let overlap = |cause: &&CauseShare| (end.min(cause.end_ms) - wait.begin_ms.max(cause.begin_ms)).max(0.0);
    let during = diagnosis.causes.iter().filter(|cause| overlap(cause) * 2.0 >= wait.ms);
    let cause = during.max_by_key(|cause| cause.bytes)?;
    Some(match &cause.asked_by {
        Some(task) if task.pid == wait.task.pid => format!("{}, which it asked for itself", cause.cause),
        Some(task) => format!("{}, asked for by {}", cause.cause, name(task)),
        None => cause.cause.to_string(),
    })
}

/// The threads of a teardown by what they do.
fn named(task: &Task) -> String {
    match teardown::mount_of(&task.comm) {
        Some(mount) => format!("the unmount of mount {mount}"),
        None if task.comm == teardown::THREAD => "the writer".to_owned(),
        None => task.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Span;
    use std::time::{Duration, Instant};
    use wardian_recorder::{Cause, Recording};

    fn phase(name: &'static str, since: Instant, each: &[(usize, u64, u64)]) -> Phase {
        let span = |begin: u64, took: u64| Span {
            begin: since + Duration::from_millis(begin),
            took: Duration::from_millis(took),
        };
        let spans: Vec<_> = each.iter().map(|(n, begin, took)| (*n, span(*begin, *took))).collect();
        Phase::timed(name, since, span(each[0].1, 1), &spans)
    }

    fn wait(comm: &str, begin_ms: f64, ms: f64, function: &str) -> wardian_recorder::Wait {
        wardian_recorder::Wait {
            task: Task { pid: 7, comm: comm.into(), syscall: Some("umount".into()) },
            begin_ms,
            ms,
            kernel_function: Some(function.into()),
            ..Default::default()
        }
    }

    fn sync(asked_by: &str, pid: u32) -> CauseShare {
        CauseShare {
            cause: Cause::Sync,
            bytes: 1_000,
            share: 1.0,
            begin_ms: 100.0,
            end_ms: 400.0,
            asked_by: Some(Task { pid, comm: asked_by.into(), syscall: None }),
            data_of: Vec::new(),
        }
    }

    fn round(waited: Vec<wardian_recorder::Wait>) -> teardown::report::Round {
        let since = Instant::now();
        teardown::report::Round {
            length_ms: 500.0,
            dirty_at_unmount_bytes: 7,
            phases: vec![
                phase("write", since, &[(0, 0, 50), (1, 50, 50)]),
                phase("unmount", since, &[(0, 100, 300), (1, 400, 5)]),
            ],
            marks: vec![wardian_recorder::Mark { t_ms: 100.0, name: "unmount".into() }],
            samples: vec![wardian_recorder::Sample { t_ms: 20.0, dirty_bytes: 5, ..Default::default() }],
            diagnosis: Diagnosis { causes: vec![sync("unmount-1", 9)], waited, ..Diagnosis::default() },
            ..Default::default()
        }
    }

    #[test]
    fn waits_of_a_teardown_are_in_the_rows_of_their_mounts() {
        let waits = vec![
            wait("unmount-1", 110.0, 280.0, "wb_wait_for_completion"),
            wait(teardown::THREAD, 120.0, 280.0, "exp_funnel_lock"),
            wait(teardown::THREAD, 460.0, 40.0, "wb_wait_for_completion"),
            wait("jbd2/loop0", 110.0, 20.0, "jbd2_x"),
        ];
        let again = round(vec![wait("unmount-0", 110.0, 280.0, "sync_inodes_sb")]);
        let report = teardown::report::Report {
            complete: true,
            error: None,
            options: teardown::options::Options::default(),
            first_round: Some(round(waits)),
            round: again,
            host: crate::host::Host::default(),
        };
        let timeline = of_teardown(&report);
        let rows: Vec<_> = timeline.rows.iter().map(|row| (row.name.as_str(), row.bars.len())).collect();
        assert_eq!(rows, [("mount 0", 4), ("mount 1", 4)]);
        let begins: Vec<f64> = timeline.rows[1].bars.iter().map(|bar| bar.begin_ms).collect();
        assert_eq!(begins, [50.0, 400.0, 550.0, 900.0]);
        // What was dirty at the unmounts is a sample as well.
        let samples: Vec<(f64, u64)> = timeline.samples.iter().map(|s| (s.t_ms, s.dirty_bytes)).collect();
        assert_eq!(samples, [(20.0, 5), (100.0, 7), (520.0, 5), (600.0, 7)]);
        assert!((timeline.length_ms - 1000.0).abs() < 1e-9);
        assert_eq!(timeline.marks[1], Mark { t_ms: 600.0, name: "again: unmount".into() });
        let of = |who: &str, at: f64| {
            let wait = timeline.waits.iter().find(|w| w.who.starts_with(who) && w.begin_ms == at).unwrap();
            (wait.row.as_deref(), wait.on.as_deref())
        };
        // The recorder saw the unmount of mount 1 before its call began, for longer than it lasted.
        let of_one = timeline.waits.iter().find(|wait| wait.row.as_deref() == Some("mount 1")).unwrap();
        assert_eq!((of_one.begin_ms, of_one.ms), (400.0, 5.0));
        let sync = Some("a sync, asked for by the unmount of mount 1");
        assert_eq!(of("unmount-1", 400.0), (Some("mount 1"), sync));
        assert_eq!(of("unmount-0", 610.0), (Some("mount 0"), sync));
        // A lock has nothing to do with a write; a time with no phase belongs to no mount.
        assert_eq!(of("teardown", 120.0), (Some("mount 0"), None));
        assert_eq!(of("teardown", 460.0), (None, None));
        assert_eq!(of("jbd2", 110.0), (None, sync));
        assert_eq!(of_one.place, "umount in wb_wait_for_completion");
    }

    #[test]
    fn who_waits_for_a_sync_of_its_own_is_told_so() {
        let wait = wait("dd", 110.0, 280.0, "wb_wait_for_completion");
        let diagnosis = Diagnosis { causes: vec![sync("dd", 7)], ..Diagnosis::default() };
        let told = on(&wait, &diagnosis, &|task| task.to_string());
        assert_eq!(told.as_deref(), Some("a sync, which it asked for itself"));
    }

    #[test]
    fn a_recording_has_rows_for_causes_and_threads() {
        let burst = wardian_recorder::Written {
            begin_ms: 100.0,
            end_ms: 400.0,
            cause: Cause::Sync,
            how: String::new(),
            bytes: 1,
            metadata_bytes: 0,
            writes: 1,
            by: Task::default(),
            asked_by: None,
            stack: Vec::new(),
            inodes: BTreeMap::new(),
            dirtied_by: BTreeMap::new(),
        };
        let waited: Vec<_> = (0..200).map(|n| wait(&format!("t{n}"), 110.0, 280.0, "x")).collect();
        let report = record::Report {
            command: Vec::new(),
            exit_code: None,
            diagnosis: Diagnosis { waited, ..Diagnosis::default() },
            recording: Recording { written: vec![burst], length_ms: 900.0, ..Recording::default() },
            interrupted: None,
        };
        let timeline = of_recording(&report);
        assert_eq!((timeline.rows.len(), timeline.waits.len()), (1 + THREADS_MAX, THREADS_MAX));
        assert_eq!(timeline.rows[0].name, "written: a sync");
        assert_eq!(timeline.rows[0].bars, [Bar { phase: "a sync".into(), begin_ms: 100.0, ms: 300.0 }]);
        assert_eq!(timeline.waits[0].row.as_deref(), Some("t0[7]"));
    }
}
