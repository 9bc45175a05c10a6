//! A history of the last creates, destroys and ends of peas: the name and duration of each of their phases.
//!
//! The history is in memory and bounded. The next server knows those of the last hour from the [`journal`], and the
//! create of a living container, however old it is, from the container's record.

mod journal;

use journal::Journal;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use wardian_recorder::Diagnosis;
use wardian_sys::text::clip;

/// The most creates and destroys that are kept: some hundreds of bytes each.
const KEPT: usize = 4096;
/// The most ends of peas that are kept: a health check that is restarted often must not crowd out the others.
const KEPT_PEAS: usize = 1024;
/// The ends of peas that are told of a handle.
const TOLD_PEAS: usize = 5;
/// The most diagnoses that are kept, the newest: each takes up to tens of kilobytes.
const DIAGNOSES: usize = 128;
/// The most waits, and owners of written data, that are kept of a diagnosis.
const LISTED: usize = 30;
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
    /// The end of a pea: what the server and the container's keeper do once its process has ended.
    Pea,
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

/// One create, one destroy, or one end of a pea.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Operation {
    /// What was done.
    pub kind: Kind,
    /// The container's handle.
    pub handle: String,
    /// The container's id: ids are never reused, handles are.
    pub id: String,
    /// Of the end of a pea: the id of the pea's process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<String>,
    /// When it began, in milliseconds since 1970.
    #[serde(default)]
    pub began_ms: f64,
    /// How long it took, in milliseconds.
    pub ms: f64,
    /// Its phases. Those of a create or destroy follow each other. In the end of a pea the keeper unmounts the root
    /// file system while the server does the rest.
    pub steps: Vec<Step>,
    /// Why it failed.
    pub error: Option<String>,
    /// What the kernel did during a slow operation; it is added shortly after the end of the operation.
    #[serde(default)]
    pub diagnosis: Option<Diagnosis>,
}

impl Operation {
    /// Whether `other` is the same operation, told at another time.
    fn is(&self, other: &Self) -> bool {
        self.of(other.kind, &other.id, other.process.as_deref())
            && self.began_ms.to_bits() == other.began_ms.to_bits()
    }

    /// Whether it is one of this kind, of this container, and of this process of it.
    fn of(&self, kind: Kind, id: &str, process: Option<&str>) -> bool {
        self.kind == kind && self.id == id && self.process.as_deref() == process
    }
}

/// The last create and destroy of a handle, and the last ends of peas in it.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Life {
    /// The create; `None`: not known any more.
    pub create: Option<Operation>,
    /// The destroy; `None`: there was none, or it is not known any more.
    pub destroy: Option<Operation>,
    /// The last ends of peas, the newest last.
    pub peas: Vec<Operation>,
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

    /// Adds a phase of a known duration that began with the operation, beside the others.
    pub fn beside(&self, name: &str, ms: f64) {
        self.steps.lock().push(Step { name: name.to_owned(), begin_ms: 0.0, ms });
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
        let steps = self.steps.lock().clone();
        // A phase that somebody else has measured may have begun a moment before the operation.
        let ms = steps.iter().map(|step| step.begin_ms + step.ms).fold(self.ms(), f64::max);
        Operation {
            kind,
            handle: handle.to_owned(),
            id: id.to_owned(),
            process: None,
            began_ms: self.began.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64() * 1e3),
            ms,
            steps,
            error: error.map(|error| clip(&error, ERROR).into_owned()),
            diagnosis: None,
        }
    }
}

#[derive(Debug, Default)]
struct Kept {
    lives: VecDeque<Operation>,
    peas: VecDeque<Operation>,
}

impl Kept {
    fn row(&mut self, kind: Kind) -> (&mut VecDeque<Operation>, usize) {
        match kind {
            Kind::Create | Kind::Destroy => (&mut self.lives, KEPT),
            Kind::Pea => (&mut self.peas, KEPT_PEAS),
        }
    }

    fn add(&mut self, operation: Operation) {
        let (row, most) = self.row(operation.kind);
        while row.len() >= most {
            row.pop_front();
        }
        row.push_back(operation);
    }

    /// Adds an operation of an earlier server in the order of time, or what is newly known of it.
    fn put(&mut self, operation: Operation) {
        let row = self.row(operation.kind).0;
        match row.iter_mut().find(|known| known.is(&operation)) {
            Some(known) => known.diagnosis = operation.diagnosis.or(known.diagnosis.take()),
            None => {
                let at = row.partition_point(|other| other.began_ms <= operation.began_ms);
                row.insert(at, operation);
            }
        }
    }

    /// Drops the oldest diagnoses above the bound.
    fn shed(&mut self) {
        let mut room = DIAGNOSES;
        for operation in self.lives.iter_mut().rev().chain(self.peas.iter_mut().rev()) {
            if operation.diagnosis.is_some() {
                match room.checked_sub(1) {
                    Some(left) => room = left,
                    None => operation.diagnosis = None,
                }
            }
        }
    }
}

/// The last operations of this server, and of earlier ones.
#[derive(Debug, Default)]
pub struct History {
    kept: Mutex<Kept>,
    /// `None`: nothing is kept for the next server.
    journal: Option<Journal>,
}

impl History {
    /// Opens the history in a run directory, with what earlier servers of this boot have left there. If there can be
    /// no journal, that is logged, and this server's own operations are known all the same.
    pub fn open(run: &Path, boot_id: &str) -> Self {
        match Journal::open(run, boot_id) {
            Ok((journal, operations)) => {
                let mut kept = Kept::default();
                for operation in operations {
                    kept.put(operation);
                }
                for kind in [Kind::Create, Kind::Pea] {
                    let (row, most) = kept.row(kind);
                    row.drain(..row.len().saturating_sub(most));
                }
                kept.shed();
                Self { kept: Mutex::new(kept), journal: Some(journal) }
            }
            Err(error) => {
                tracing::warn!(%error, "history.no-journal");
                Self::default()
            }
        }
    }

    /// Adds an operation; above the bound the oldest one is dropped.
    pub fn add(&self, operation: Operation) {
        self.write(&operation);
        self.kept.lock().add(operation);
    }

    /// Adds the create of a living container, as its record tells it.
    pub fn restore(&self, operation: Operation) {
        self.kept.lock().put(operation);
    }

    /// Adds the diagnosis of a slow operation to the last one of this kind, id and process.
    pub fn explain(&self, kind: Kind, id: &str, process: Option<&str>, mut diagnosis: Diagnosis) {
        diagnosis.cut(LISTED);
        let mut kept = self.kept.lock();
        let (row, _) = kept.row(kind);
        if let Some(operation) = row.iter_mut().rev().find(|o| o.of(kind, id, process)) {
            operation.diagnosis = Some(diagnosis);
            self.write(operation);
            kept.shed();
        }
    }

    /// Returns the last create and destroy of a handle, and the last ends of peas in it; `None` if none is known.
    pub fn life(&self, handle: &str) -> Option<Life> {
        let kept = self.kept.lock();
        let last = |kind| kept.lives.iter().rev().find(|o| o.kind == kind && o.handle == handle).cloned();
        let peas = kept.peas.iter().rev().filter(|o| o.handle == handle).take(TOLD_PEAS).cloned();
        let mut peas: Vec<Operation> = peas.collect();
        peas.reverse();
        let life = Life { create: last(Kind::Create), destroy: last(Kind::Destroy), peas };
        (life != Life::default()).then_some(life)
    }

    /// Ends the journal: what was added until now is written when this returns.
    pub fn close(&self) {
        self.journal.iter().for_each(Journal::close);
    }

    fn write(&self, operation: &Operation) {
        self.journal.iter().for_each(|journal| journal.write(operation.clone()));
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
        assert_eq!(history.kept.lock().lives.len(), KEPT);
    }

    fn pea(process: &str) -> Operation {
        let made = Timeline::begin().operation(Kind::Pea, "h", "1", None);
        Operation { process: Some(process.to_owned()), ..made }
    }

    #[test]
    fn peas_crowd_out_each_other_alone() {
        let history = History::default();
        history.add(Timeline::begin().operation(Kind::Create, "h", "1", None));
        (0..=KEPT_PEAS).for_each(|n| history.add(pea(&n.to_string())));
        let life = history.life("h").unwrap();
        assert!(life.create.is_some());
        let last: Vec<String> = life.peas.iter().filter_map(|pea| pea.process.clone()).collect();
        assert_eq!(last, ["1020", "1021", "1022", "1023", "1024"]);
        assert_eq!(history.kept.lock().peas.len(), KEPT_PEAS);
        // Each is explained for itself.
        history.explain(Kind::Pea, "1", Some("1023"), Diagnosis::default());
        let explained: Vec<bool> =
            history.life("h").unwrap().peas.iter().map(|pea| pea.diagnosis.is_some()).collect();
        assert_eq!(explained, [false, false, false, true, false]);
    }

    #[test]
    fn diagnoses_are_bounded() {
        let history = History::default();
        for n in 0..=DIAGNOSES {
            let id = n.to_string();
            history.add(Timeline::begin().operation(Kind::Destroy, &id, &id, None));
            history.explain(Kind::Destroy, &id, None, Diagnosis::default());
        }
        let explained = |handle: &str| history.life(handle).unwrap().destroy.unwrap().diagnosis.is_some();
        assert!(!explained("0") && explained("1") && explained(&DIAGNOSES.to_string()));
    }

    #[test]
    fn a_restored_create_takes_its_place_in_time() {
        let history = History::default();
        let old = Timeline::begin().operation(Kind::Create, "h", "1", None);
        std::thread::sleep(std::time::Duration::from_millis(2));
        history.add(Timeline::begin().operation(Kind::Create, "h", "2", Some("taken".to_owned())));
        history.restore(old.clone());
        history.restore(old);
        assert_eq!(history.life("h").unwrap().create.unwrap().id, "2");
        assert_eq!(history.kept.lock().lives.len(), 2);
    }
}
