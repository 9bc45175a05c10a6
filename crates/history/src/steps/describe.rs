//! What is told of a step.

use super::search::{Found, pieces};
use super::{Change, Changed, LEAST, SLACK, Step, scan};
use crate::{Point, ratio};

/// So many values on each side of a change decide whether it was gradual.
const NEAR: usize = 100;

/// Describes what was found, and leaves out what is small.
pub fn changes(values: &[f64], logs: &[f64], found: &[Found]) -> Vec<Change> {
    let resemblance = scan::resemblance(&pieces(logs, found));
    let block = resemblance.ceil() as usize;
    let parts = pieces(values, found);
    let log_parts = pieces(logs, found);
    let mut changes: Vec<Change> = Vec::new();
    for (n, step) in found.iter().enumerate() {
        let (before, after) = (parts[n], parts[n + 1]);
        let Ok(ratio) = ratio(before, after, block) else { continue };
        changes.push(Change {
            index: step.index,
            median_before: crate::median(before),
            median_after: crate::median(after),
            ratio,
            confidence: 1.0 - step.p,
            gradual: is_gradual(log_parts[n], log_parts[n + 1]),
        });
    }
    merge(values, &mut changes, block);
    changes.retain(|change| {
        let size = change.ratio.value.max(1.0 / change.ratio.value) - 1.0;
        size >= LEAST && (change.ratio.low > 1.0 || change.ratio.high < 1.0)
    });
    changes
}

/// Whether a line fits the values better than two levels. Its slope is the median of the slopes of all pairs (Theil and
/// Sen), so that outliers do not turn it.
fn is_gradual(before: &[f64], after: &[f64]) -> bool {
    let before = &before[before.len().saturating_sub(NEAR)..];
    let after = &after[..after.len().min(NEAR)];
    let values: Vec<f64> = before.iter().chain(after).copied().collect();
    let distance = |values: &[f64]| {
        let middle = crate::median(values);
        values.iter().map(|value| (value - middle).abs()).sum::<f64>()
    };
    let mut slopes = Vec::with_capacity(values.len() * values.len() / 2);
    for (n, value) in values.iter().enumerate() {
        slopes.extend(values[n + 1..].iter().enumerate().map(|(m, later)| (later - value) / (m + 1) as f64));
    }
    let slope = crate::median(&slopes);
    let level: Vec<f64> = values.iter().enumerate().map(|(n, value)| value - slope * n as f64).collect();
    distance(&level) < distance(before) + distance(after)
}

/// Makes one of gradual changes in the same direction that follow each other.
fn merge(values: &[f64], changes: &mut Vec<Change>, block: usize) {
    let mut n = 0;
    while n + 1 < changes.len() {
        let (this, next) = (&changes[n], &changes[n + 1]);
        let same_way = (this.ratio.value > 1.0) == (next.ratio.value > 1.0);
        if !(this.gradual && next.gradual && same_way) {
            n += 1;
            continue;
        }
        let begin = n.checked_sub(1).map_or(0, |before| changes[before].index);
        let end = changes.get(n + 2).map_or(values.len(), |after| after.index);
        let (before, after) = (&values[begin..this.index], &values[next.index..end]);
        if let Ok(ratio) = ratio(before, after, block) {
            changes[n] = Change {
                index: usize::midpoint(this.index, next.index),
                median_before: crate::median(before),
                median_after: crate::median(after),
                ratio,
                confidence: this.confidence.max(next.confidence),
                gradual: true,
            };
        }
        changes.remove(n + 1);
    }
}

/// The step of a change.
pub fn step(points: &[&Point], change: &Change) -> Step {
    let (first, last) = (points[change.index], points[change.index - 1]);
    Step {
        index: change.index,
        run: first.id,
        before: last.id,
        begun_ms: first.begun_ms,
        median_before: change.median_before,
        median_after: change.median_after,
        ratio: change.ratio,
        confidence: change.confidence,
        gradual: change.gradual,
        changed: changed(points, change.index),
    }
}

/// What a run was made with: what may explain a step.
fn circumstances(point: &Point) -> [(&'static str, String); 8] {
    let machine = &point.machine;
    [
        ("kernel", machine.kernel.clone()),
        ("version", point.version.clone()),
        ("revision", point.revision.clone().unwrap_or_default()),
        ("cpus", machine.cpus.to_string()),
        ("memory_bytes", machine.memory_bytes.to_string()),
        ("filesystem", machine.filesystem.clone()),
        ("mount_options", machine.mount_options.clone()),
        ("cgroups", machine.cgroups.clone()),
    ]
}

fn changed(points: &[&Point], index: usize) -> Vec<Changed> {
    let mut all: Vec<Changed> = Vec::new();
    let mut places: Vec<usize> =
        (index.saturating_sub(SLACK).max(1)..=(index + SLACK).min(points.len() - 1)).collect();
    // The nearest change of each kind.
    places.sort_by_key(|place| place.abs_diff(index));
    for place in places {
        let (before, after) = (circumstances(points[place - 1]), circumstances(points[place]));
        for ((what, from), (_, to)) in before.into_iter().zip(after) {
            if from != to && !all.iter().any(|changed| changed.what == what) {
                all.push(Changed { what: what.to_owned(), from, to, run: points[place].id });
            }
        }
    }
    all
}
