//! The search for all steps of a series.
//!
//! One test of the whole series does not see a rise that is followed by a fall. So windows of many lengths are looked at,
//! each half covered by the next one (seeded binary segmentation: Kovács and others, 2023). The most certain step of
//! all windows divides the series, and both parts are searched in the same way.

use super::scan::{self, Peak};
use super::{ALARMS, SHORTEST};

/// A step that was found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Found {
    /// Index of the first value after it.
    pub index: usize,
    /// The chance of such a step in a series without steps.
    pub p: f64,
}

/// Each length of windows is this part of the one before.
const SHRINK: f64 = 0.6;
/// How often the places are improved.
const ROUNDS: usize = 3;

/// Finds the steps, in their order.
pub fn search(values: &[f64]) -> Vec<Found> {
    // Neighbours resemble each other as much as they do between the steps. Those are first looked for as if they did not:
    // what is too much is dropped below.
    let first = divided(values, 1.0);
    let resemblance = scan::resemblance(&pieces(values, &first));
    let mut found = if resemblance > 1.0 { divided(values, resemblance) } else { first };
    for _ in 0..ROUNDS {
        let before = found.clone();
        settle(values, &mut found, resemblance);
        if found == before {
            break;
        }
    }
    found
}

/// The parts of a series between its steps.
pub fn pieces<'a>(values: &'a [f64], steps: &[Found]) -> Vec<&'a [f64]> {
    let ends = steps.iter().map(|step| step.index).chain([values.len()]);
    let begins = [0].into_iter().chain(steps.iter().map(|step| step.index));
    begins.zip(ends).map(|(begin, end)| &values[begin..end]).collect()
}

fn divided(values: &[f64], resemblance: f64) -> Vec<Found> {
    let mut found = Vec::new();
    let mut todo = vec![(0, values.len(), ALARMS)];
    while let Some((begin, end, most)) = todo.pop() {
        let Some(best) = best(&values[begin..end], resemblance).filter(|best| best.p <= most) else {
            continue;
        };
        let index = begin + best.place;
        found.push(Found { index, p: best.p });
        // Two more searches: each has half of the chance for a false alarm.
        todo.push((begin, index, most / 2.0));
        todo.push((index, end, most / 2.0));
    }
    found.sort_by_key(|step| step.index);
    found
}

/// The most certain step of all windows of a part. Its chance is corrected for the number of windows.
fn best(values: &[f64], resemblance: f64) -> Option<Peak> {
    let n = values.len();
    let mut lengths = vec![n];
    while let Some(next) = lengths.last().map(|last| (*last as f64 * SHRINK) as usize)
        && next >= 4 * SHORTEST
    {
        lengths.push(next);
    }
    let mut best: Option<Peak> = None;
    for length in &lengths {
        if *length < 2 * SHORTEST {
            continue;
        }
        // As many windows as cover the part, each half of the next one.
        let windows = if *length == n { 1 } else { (2 * (n - length)).div_ceil(*length) + 1 };
        for window in 0..windows {
            let begin = if windows == 1 { 0 } else { window * (n - length) / (windows - 1) };
            let Some(peak) = scan::peak(&values[begin..begin + length], SHORTEST, resemblance) else {
                continue;
            };
            let p = (peak.p * (windows * lengths.len()) as f64).min(1.0);
            if best.is_none_or(|best| p < best.p) {
                best = Some(Peak { place: begin + peak.place, p });
            }
        }
    }
    best
}

/// Puts each step at the place where the values between its neighbours lie closest to two medians, and drops those that
/// are not certain between their neighbours.
fn settle(values: &[f64], steps: &mut Vec<Found>, resemblance: f64) {
    let mut n = 0;
    while n < steps.len() {
        let begin = n.checked_sub(1).map_or(0, |before| steps[before].index);
        let end = steps.get(n + 1).map_or(values.len(), |next| next.index);
        let part = &values[begin..end];
        match scan::peak(part, SHORTEST, resemblance) {
            Some(peak) if peak.p <= ALARMS => {
                steps[n].index = begin + closest(part, peak.place);
                n += 1;
            }
            _ => drop(steps.remove(n)),
        }
    }
}

/// How far from the peak of the ranks the place is looked for.
const REACH: usize = 10;

/// The place near the peak where the sum of the distances from the medians on both sides is least.
fn closest(values: &[f64], peak: usize) -> usize {
    let cost = |part: &[f64]| {
        let middle = crate::median(part);
        part.iter().map(|value| (value - middle).abs()).sum::<f64>()
    };
    let (first, last) =
        (peak.saturating_sub(REACH).max(SHORTEST), (peak + REACH).min(values.len() - SHORTEST));
    let places = (first..=last).map(|place| (place, cost(&values[..place]) + cost(&values[place..])));
    places.min_by(|a, b| a.1.total_cmp(&b.1)).map_or(peak, |(place, _)| place)
}
