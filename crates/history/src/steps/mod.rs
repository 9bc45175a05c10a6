//! Finds the steps of a series: runs from which on the values are others than before.
//!
//! Times of experiments are skewed, have heavy tails, and resemble their neighbours, because whatever else happens on
//! the host lasts for several runs. So the search works on ranks ([`scan`]), takes account of how much neighbours
//! resemble each other, looks at windows of many lengths ([`search`]), and pays for each look. What is found is
//! then described ([`describe`]): the ratio of the medians with its confidence interval, and what else changed there.

mod describe;
mod scan;
mod search;

use crate::{Estimate, Point};
use serde::{Deserialize, Serialize};

/// The least number of runs on each side of a step. A single outlier, or a burst of three, is none.
pub const SHORTEST: usize = 6;
/// Smaller changes of the median are not reported: they are real perhaps, but nobody's worry.
pub const LEAST: f64 = 0.05;
/// The chance that a series without steps gets one, at one look at the whole series.
pub const ALARMS: f64 = 0.0005;

/// A step in a series.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Index of the first run after it, among the runs that [`counts`].
    pub index: usize,
    /// Number of the first run after it.
    pub run: i64,
    /// Number of the last run before it.
    pub before: i64,
    /// When the first run after it began, in ms since 1970.
    pub begun_ms: i64,
    /// Median of the runs before, back to the step before.
    pub median_before: f64,
    /// Median of the runs after, up to the next step.
    pub median_after: f64,
    /// `median_after` by `median_before`.
    pub ratio: Estimate,
    /// 1 less the chance that runs of the same thing have such a step somewhere.
    pub confidence: f64,
    /// Whether the values changed little by little rather than at once: then `index` is only the middle of it.
    pub gradual: bool,
    /// What else changed, at the step or at most [`SLACK`] runs beside it, because its place is not exact.
    pub changed: Vec<Changed>,
}

/// How many runs from a step something may have changed to be told with it.
pub const SLACK: usize = 3;

/// What changed from one run to the next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// `kernel`, `version`, `revision`, `cpus`, `memory_bytes`, `filesystem`, `mount_options` or `cgroups`.
    pub what: String,
    /// Before.
    pub from: String,
    /// After.
    pub to: String,
    /// Number of the first run with it.
    pub run: i64,
}

/// Whether a run counts in the search: it is complete and has a value.
pub fn counts(point: &Point) -> bool {
    point.complete && point.value.is_some_and(f64::is_finite)
}

/// Finds the steps of a series, oldest first. Runs that do not [`counts`] are left out. The result is the same for the
/// same runs.
pub fn find(points: &[Point]) -> Vec<Step> {
    let points: Vec<&Point> = points.iter().filter(|point| counts(point)).collect();
    let values: Vec<f64> = points.iter().filter_map(|point| point.value).collect();
    let found = in_values(&values);
    found.into_iter().map(|change| describe::step(&points, &change)).collect()
}

/// A change in a list of values.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// Index of the first value after it.
    pub index: usize,
    /// Median before.
    pub median_before: f64,
    /// Median after.
    pub median_after: f64,
    /// Their ratio.
    pub ratio: Estimate,
    /// See [`Step::confidence`].
    pub confidence: f64,
    /// See [`Step::gradual`].
    pub gradual: bool,
}

/// Finds the changes of a list of values. A value of 0 or below counts as the smallest positive one.
pub fn in_values(values: &[f64]) -> Vec<Change> {
    let positive = values.iter().copied().filter(|value| *value > 0.0);
    let Some(least) = positive.min_by(f64::total_cmp) else { return Vec::new() };
    let values: Vec<f64> = values.iter().map(|value| value.max(least)).collect();
    let logs: Vec<f64> = values.iter().map(|value| value.ln()).collect();
    describe::changes(&values, &logs, &search::search(&logs))
}

#[cfg(test)]
mod tests;
