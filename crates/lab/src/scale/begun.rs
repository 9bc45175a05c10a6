//! What is known of a story while it is told. It outlives a story that is cut off.

use super::Kind;
use super::report::{Report, Step};
use crate::host::{Host, Sample, Sampler, ms};
use crate::report::{Phase, Span};
use anyhow::Error;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use wardian_recorder::Mark;

/// A story that has begun, or will.
#[derive(Debug, Clone, Default)]
pub(super) struct Begun(Arc<Mutex<Option<State>>>);

/// A phase that is on: its name, its begin, and the instances that have passed it.
type Current = (&'static str, Instant, Vec<(usize, Span)>);

#[derive(Debug)]
struct State {
    since: Instant,
    host: Host,
    sampler: Option<Sampler>,
    marks: Vec<Mark>,
    begin: Option<Step>,
    steps: Vec<Step>,
    /// Phases that have ended of a step that has not.
    phases: Vec<Phase>,
    /// The phase that is on.
    current: Option<Current>,
}

impl Begun {
    /// Begins now. All times count from this moment.
    pub(super) fn begin(&self, host: Host) -> Instant {
        let since = Instant::now();
        let state = State {
            since,
            host,
            sampler: Some(Sampler::since(since)),
            marks: Vec::new(),
            begin: None,
            steps: Vec::new(),
            phases: Vec::new(),
            current: None,
        };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(state);
        since
    }

    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> Option<T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).as_mut().map(change)
    }

    /// Marks the begin of a part.
    pub(super) fn mark(&self, name: impl Into<String>) {
        let name = name.into();
        self.with(|state| state.marks.push(Mark { t_ms: ms(state.since.elapsed()), name }));
    }

    /// A phase begins.
    pub(super) fn phase(&self, name: &'static str) {
        self.with(|state| state.current = Some((name, Instant::now(), Vec::new())));
    }

    /// An instance has passed the phase that is on.
    pub(super) fn passed(&self, instance: usize, span: Span) {
        self.with(|state| {
            if let Some((.., passed)) = &mut state.current {
                passed.push((instance, span));
            }
        });
    }

    /// The phase has ended.
    pub(super) fn ended(&self) -> Option<Phase> {
        self.with(|state| {
            let phase = state.ended()?;
            state.phases.push(phase.clone());
            Some(phase)
        })
        .flatten()
    }

    /// All instances that were to run before the scaling do.
    pub(super) fn came_up(&self, begin: &Step) {
        self.with(|state| {
            state.begin = Some(begin.clone());
            state.phases.clear();
        });
    }

    /// A step of the scaling has ended.
    pub(super) fn scaled(&self, step: &Step) {
        self.with(|state| {
            state.steps.push(step.clone());
            state.phases.clear();
        });
    }

    /// The marks and the samples. No samples are taken from then on.
    pub(super) fn seen(&self) -> (Vec<Mark>, Vec<Sample>) {
        self.with(|state| (state.marks.clone(), state.samples())).unwrap_or_default()
    }

    /// The report of a story that was cut off; `None` if it was before its first create.
    pub(super) fn half(&self, (run, kind): (usize, Kind), why: &Error) -> Option<Report> {
        self.with(|state| {
            let (waiting_ms, half) = (state.steps.iter().map(|step| step.waiting_ms).sum(), state.ended());
            let mut phases: Vec<Phase> = state.steps.iter().flat_map(|step| step.phases.clone()).collect();
            phases.append(&mut state.phases);
            phases.extend(half.filter(|phase| !phase.each_ms.is_empty()));
            Report {
                run,
                kind,
                complete: false,
                error: Some(format!("{why:#}")),
                length_ms: ms(state.since.elapsed()),
                waiting_ms,
                story_ms: waiting_ms,
                slowest_destroy_ms: 0.0,
                slowest_pea_destroy_ms: 0.0,
                dirty_at_destroy_bytes: 0,
                written_bytes: 0,
                idle_written_bytes: 0,
                disk_written_bytes: None,
                idle_disk_written_bytes: None,
                fetches: 0,
                fetched_bytes: 0,
                droplet_bytes: 0,
                layer_bytes: 0,
                begin: state.begin.take(),
                steps: std::mem::take(&mut state.steps),
                phases,
                marks: std::mem::take(&mut state.marks),
                samples: state.samples(),
                host: state.host.clone(),
            }
        })
    }
}

impl State {
    fn samples(&mut self) -> Vec<Sample> {
        self.sampler.take().map(Sampler::finish).unwrap_or_default()
    }

    /// Ends the phase that is on.
    fn ended(&mut self) -> Option<Phase> {
        let (name, begin, mut passed) = self.current.take()?;
        passed.sort_by_key(|(instance, _)| *instance);
        Some(Phase::timed(name, self.since, Span::since(begin), &passed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scale::Mode;
    use std::time::Duration;

    const KIND: (usize, Kind) = (2, Kind { mode: Mode::Stream, disk_limit_bytes: None });

    #[test]
    fn a_story_that_is_cut_off_keeps_what_was_told() {
        let begun = Begun::default();
        assert!(begun.half(KIND, &anyhow::anyhow!("x")).is_none());
        begun.begin(Host::default());
        begun.mark("scale");
        begun.phase("create");
        begun.passed(1, Span::since(Instant::now()));
        let create = begun.ended().unwrap();
        begun.scaled(&Step::new(1, 2, Duration::from_millis(70), vec![create]));
        begun.phase("create");
        begun.passed(3, Span::since(Instant::now()));
        begun.passed(2, Span::since(Instant::now()));
        begun.ended();
        begun.phase("pea");
        begun.passed(3, Span::since(Instant::now()));
        let half = begun.half(KIND, &anyhow::anyhow!("interrupted")).unwrap();
        let phases: Vec<_> = half.phases.iter().map(|phase| (phase.name, phase.each_of.clone())).collect();
        assert_eq!(phases, [("create", vec![1]), ("create", vec![2, 3]), ("pea", vec![3])]);
        assert_eq!((half.complete, half.error.as_deref(), half.run), (false, Some("interrupted"), 2));
        assert_eq!((half.waiting_ms, half.marks.len(), half.steps.len()), (70.0, 1, 1));
    }
}
