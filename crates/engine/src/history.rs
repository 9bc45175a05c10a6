//! A history of the last creates and destroys: the name and duration of each of their phases.
//!
//! The history is in memory and bounded. The create of a living container is also in its record, so that the
//! next server knows it; destroys are forgotten with the server that did them.

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use wardian_recorder::Diagnosis;
use wardian_sys::text::clip;

/// The most operations that are kept: some hundreds of bytes each.
const KEPT: usize = 1000;
/// The most bytes that are kept of an error: it may quote a request.
const ERROR: usize = 4096;

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The create of a container, whether it succeeded or failed.
    Create,
    /// The destroy of a container, whether it succeeded or failed.
    Destroy,
}

/// One phase of an operation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// What was done in it.
    pub name: String,
    /// Milliseconds since the operation began.
    pub begin_ms: f64,
    /// How long it took, in milliseconds.
    pub ms: f64,
}

/// One create or destroy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Operation {
    /// Whether this is a create or a destroy.
    pub kind: Kind,
    /// The container's handle.
    pub handle: String,
    /// The container's id: ids are never reused, handles are.
    pub id: String,
    /// When it began, in milliseconds since 1970.
    #[serde(default)]
    pub began_ms: f64,
    /// How long it took, in milliseconds.
    pub ms: f64,
    /// Its phases, one after the other.
    pub steps: Vec<Step>,
    /// Why it failed.
    pub error: Option<String>,
    /// What the kernel did during a slow operation; it is added shortly after the end of the operation.
    #[serde(default)]
    pub diagnosis: Option<Diagnosis>,
}

/// The last create and the last destroy of a handle.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Life {
    /// The create; `None`: not known any more.
    pub create: Option<Operation>,
    /// The destroy; `None`: there was none, or it is not known any more.
    pub destroy: Option<Operation>,
}

/// An operation under way; clones are the same one.
#[derive(Debug, Clone)]
pub struct Timeline {
    begin: Instant,
    began: SystemTime,
    steps: Arc<Mutex<Vec<Step>>>,
}

impl Timeline {
    /// Begins an operation now.
    pub fn begin() -> Self {
        Self { begin: Instant::now(), began: SystemTime::now(), steps: Arc::default() }
    }

    /// Ends the phase of this name, which began when the one before it ended.
    pub fn ended(&self, name: &str) {
        let now = self.ms();
        let mut steps = self.steps.lock();
        let begin_ms = steps.last().map_or(0.0, |step| step.begin_ms + step.ms);
        steps.push(Step { name: name.to_owned(), begin_ms, ms: now - begin_ms });
    }

    /// Adds the phases since the last one by their known durations; the first one also gets the time that is
    /// missing until now.
    pub fn ended_as(&self, phases: &[(&str, f64)]) {
        let now = self.ms();
        let mut steps = self.steps.lock();
        let mut begin_ms = steps.last().map_or(0.0, |step| step.begin_ms + step.ms);
        let mut missing = (now - begin_ms - phases.iter().map(|(_, ms)| ms).sum::<f64>()).max(0.0);
        for (name, ms) in phases {
            let ms = ms + std::mem::take(&mut missing);
            steps.push(Step { name: (*name).to_owned(), begin_ms, ms });
            begin_ms += ms;
        }
    }

    /// Milliseconds since it began.
    pub fn ms(&self) -> f64 {
        self.begin.elapsed().as_secs_f64() * 1e3
    }

    /// Returns the operation as it was until now.
    pub fn operation(&self, kind: Kind, handle: &str, id: &str, error: Option<String>) -> Operation {
        Operation {
            kind,
            handle: handle.to_owned(),
            id: id.to_owned(),
            began_ms: self.began.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64() * 1e3),
            ms: self.ms(),
            steps: self.steps.lock().clone(),
            error: error.map(|error| clip(&error, ERROR).into_owned()),
            diagnosis: None,
        }
    }
}

/// The last operations of this server.
#[derive(Debug, Default)]
pub struct History {
    operations: Mutex<VecDeque<Operation>>,
}

impl History {
    /// Adds an operation; above the bound the oldest one is dropped.
    pub fn add(&self, operation: Operation) {
        let mut operations = self.operations.lock();
        if operations.len() == KEPT {
            operations.pop_front();
        }
        operations.push_back(operation);
    }

    /// Adds the diagnosis of a slow operation to the last one of this kind and id.
    pub fn explain(&self, kind: Kind, id: &str, diagnosis: Diagnosis) {
        let mut operations = self.operations.lock();
        if let Some(operation) = operations.iter_mut().rev().find(|o| o.kind == kind && o.id == id) {
            operation.diagnosis = Some(diagnosis);
        }
    }

    /// Returns the last create and destroy of a handle; `None` if neither is known.
    pub fn life(&self, handle: &str) -> Option<Life> {
        let operations = self.operations.lock();
        let last = |kind| operations.iter().rev().find(|o| o.kind == kind && o.handle == handle).cloned();
        let life = Life { create: last(Kind::Create), destroy: last(Kind::Destroy) };
        (life != Life::default()).then_some(life)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_follow_each_other_without_a_gap() {
        let timeline = Timeline::begin();
        timeline.ended("a");
        std::thread::sleep(std::time::Duration::from_millis(12));
        timeline.ended_as(&[("b", 1.0), ("c", 2.0)]);
        timeline.clone().ended("d");
        let operation = timeline.operation(Kind::Create, "h", "i", None);
        let names: Vec<&str> = operation.steps.iter().map(|s| s.name.as_str()).collect();
        assert_eq!(names, ["a", "b", "c", "d"]);
        for pair in operation.steps.windows(2) {
            assert!((pair[0].begin_ms + pair[0].ms - pair[1].begin_ms).abs() < 1e-6, "{operation:?}");
        }
        assert!(operation.steps[1].ms >= 10.0 && (operation.steps[2].ms - 2.0).abs() < 1e-9, "{operation:?}");
        assert!(operation.steps.iter().map(|s| s.ms).sum::<f64>() <= operation.ms);
    }

    #[test]
    fn the_last_of_each_kind_is_found_and_the_oldest_are_forgotten() {
        let history = History::default();
        assert_eq!(history.life("h"), None);
        let made = |kind, id: &str| Timeline::begin().operation(kind, "h", id, None);
        history.add(made(Kind::Create, "1"));
        history.add(made(Kind::Destroy, "1"));
        history.add(made(Kind::Create, "2"));
        let life = history.life("h").unwrap();
        assert_eq!((life.create.unwrap().id, life.destroy.unwrap().id), ("2".to_owned(), "1".to_owned()));
        for _ in 0..KEPT {
            history.add(Timeline::begin().operation(Kind::Create, "other", "3", None));
        }
        assert_eq!(history.life("h"), None);
        assert_eq!(history.operations.lock().len(), KEPT);
    }
}
