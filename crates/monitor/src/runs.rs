//! The history as the page needs it: the series, the points of one, its steps, and one run.

mod lines;
mod stored;

pub use lines::Lines;
pub use stored::Stored;

use serde::Serialize;
use wardian_history::{Point, Run, steps};

/// A history of runs. Its calls may block.
pub trait Runs: Send + Sync + 'static {
    /// Returns a number that changes when there are other runs.
    ///
    /// # Errors
    /// The history cannot be read.
    fn version(&self) -> Result<u64, Error>;

    /// Returns all series.
    ///
    /// # Errors
    /// The history cannot be read.
    fn series(&self) -> Result<Vec<Series>, Error>;

    /// Returns the points and the steps of a series, in the order of time; `None`: there is no such series.
    ///
    /// # Errors
    /// The history cannot be read.
    fn points(&self, series: &str) -> Result<Option<Points>, Error>;

    /// Returns a run with its timeline; `None`: there is no such run.
    ///
    /// # Errors
    /// The history cannot be read.
    fn run(&self, id: i64) -> Result<Option<Run>, Error>;
}

/// Why the history cannot be read: a sentence for the person at the page.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Error(pub String);

/// A series: runs that can be compared.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Series {
    /// What [`Run::series`] returns for its runs.
    pub key: String,
    /// Host, experiment and parameters: the series that have these in common are lines of one graph.
    pub graph: String,
    /// The host.
    pub host: String,
    /// The experiment.
    pub experiment: String,
    /// The engine.
    pub engine: String,
    /// The mode.
    pub mode: String,
    /// The parameters, each as `name=value`, as they are in the key.
    pub parameters: String,
    /// The figure that stands for a run.
    pub headline: String,
    /// The number of runs.
    pub runs: usize,
    /// When the last one began, in ms since 1970.
    pub last_ms: i64,
}

impl Series {
    /// The series of a run, without any runs.
    pub fn of(run: &Run) -> Self {
        let parameters: Vec<String> =
            run.parameters.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let parameters = parameters.join(" ");
        Self {
            key: run.series(),
            graph: format!("{}|{}|{parameters}", run.machine.host, run.experiment),
            host: run.machine.host.clone(),
            experiment: run.experiment.clone(),
            engine: run.engine.clone(),
            mode: run.mode.clone(),
            parameters,
            headline: run.headline.clone(),
            runs: 0,
            last_ms: run.begun_ms,
        }
    }
}

/// The points of a series, as columns.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Points {
    /// Ids of the runs.
    pub id: Vec<i64>,
    /// When they began, in ms since 1970.
    pub at: Vec<i64>,
    /// Their headline figures; `None`: the run has none.
    pub value: Vec<Option<f64>>,
    /// The places in these columns of runs that did not end as planned.
    pub broken: Vec<usize>,
    /// The steps.
    pub steps: Vec<Step>,
}

impl Points {
    /// Those of a series, in the order of time, with its steps.
    pub fn of(points: &[Point]) -> Self {
        let broken = points.iter().enumerate().filter(|(_, point)| !point.complete);
        Self {
            broken: broken.map(|(at, _)| at).collect(),
            id: points.iter().map(|point| point.id).collect(),
            at: points.iter().map(|point| point.begun_ms).collect(),
            value: points.iter().map(|point| point.value.filter(|value| value.is_finite())).collect(),
            steps: steps::find(points).into_iter().map(Step::from).collect(),
        }
    }
}

/// A step: from one run on, the runs are slower or faster.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Step {
    /// The first run after it.
    pub id: i64,
    /// When that began, in ms since 1970.
    pub at: i64,
    /// The level before it, in the unit of the figure.
    pub before: f64,
    /// The level after it.
    pub after: f64,
    /// How sure it is that there is a step, from 0 to 1.
    pub confidence: f64,
    /// The ends of the interval of 95 % of the ratio of the two levels.
    pub low: f64,
    /// See `low`.
    pub high: f64,
    /// What is not as before: the kernel, the version.
    pub changed: Vec<Change>,
}

impl From<steps::Step> for Step {
    fn from(step: steps::Step) -> Self {
        let change =
            |changed: steps::Changed| Change { what: changed.what, from: changed.from, to: changed.to };
        Self {
            id: step.run,
            at: step.begun_ms,
            before: step.median_before,
            after: step.median_after,
            confidence: step.confidence,
            low: step.ratio.low,
            high: step.ratio.high,
            changed: step.changed.into_iter().map(change).collect(),
        }
    }
}

/// Something that changed with a step.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Change {
    /// What: `kernel`, `version`.
    pub what: String,
    /// What it was.
    pub from: String,
    /// What it is.
    pub to: String,
}
