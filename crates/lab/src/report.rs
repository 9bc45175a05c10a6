//! Phases and numbers, as JSON and as a table.

use crate::host::ms;
use serde::Serialize;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

/// One phase of a story: the same step of all instances, or of all mounts.
#[derive(Debug, Clone, Serialize)]
pub struct Phase {
    /// `create`, `stream_in`, `start_app`, `pea` or `destroy`; of a teardown `mount`, `write`, `age`, `unmount` or
    /// `remove`.
    pub name: &'static str,
    /// When it began, in ms by the clock of the samples; 0 if that was not measured.
    pub begin_ms: f64,
    /// Time from the first request to the last answer.
    pub wall_ms: f64,
    /// Median of the instances.
    pub p50_ms: f64,
    /// Maximum of the instances.
    pub max_ms: f64,
    /// The values of all instances.
    pub each_ms: Vec<f64>,
    /// When each of them began, by the same clock as `begin_ms`; empty if that was not measured.
    pub each_begin_ms: Vec<f64>,
    /// The number of the instance, or of the mount, of each of them; empty if that was not measured.
    pub each_of: Vec<usize>,
}

/// When something began and how long it took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Its begin.
    pub begin: Instant,
    /// Its duration.
    pub took: Duration,
}

impl Span {
    /// What began then and has ended now.
    pub fn since(begin: Instant) -> Self {
        Self { begin, took: begin.elapsed() }
    }
}

impl Phase {
    /// A phase from its durations.
    pub fn new(name: &'static str, wall: Duration, each: &[Duration]) -> Self {
        let each_ms: Vec<f64> = each.iter().map(|d| ms(*d)).collect();
        let max_ms = each_ms.iter().copied().fold(0.0, f64::max);
        let (each_begin_ms, each_of) = (Vec::new(), Vec::new());
        let p50_ms = median(&each_ms);
        Self { name, begin_ms: 0.0, wall_ms: ms(wall), p50_ms, max_ms, each_ms, each_begin_ms, each_of }
    }

    /// A phase of a run that began at `since`: the phase as a whole, and the spans of the instances with their
    /// numbers.
    pub fn timed(name: &'static str, since: Instant, whole: Span, each: &[(usize, Span)]) -> Self {
        let at = |begin: Instant| ms(begin.saturating_duration_since(since));
        let durations: Vec<Duration> = each.iter().map(|(_, span)| span.took).collect();
        Self {
            begin_ms: at(whole.begin),
            each_begin_ms: each.iter().map(|(_, span)| at(span.begin)).collect(),
            each_of: each.iter().map(|(n, _)| *n).collect(),
            ..Self::new(name, whole.took, &durations)
        }
    }
}

/// The phases as a table, one line each.
pub fn table(phases: &[Phase]) -> String {
    let mut out = format!("{:<10} {:>12} {:>12} {:>12}\n", "phase", "wall ms", "p50 ms", "max ms");
    for Phase { name, wall_ms, p50_ms, max_ms, .. } in phases {
        let _ = writeln!(out, "{name:<10} {wall_ms:>12.1} {p50_ms:>12.1} {max_ms:>12.1}");
    }
    out
}

/// The median; 0 of no values.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

/// The value that this percentage of the values does not exceed (nearest rank); 0 of no values.
pub fn percentile(values: &[f64], percent: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (percent / 100.0 * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
}

/// A number of bytes, readable.
pub fn bytes(n: u64) -> String {
    #[allow(clippy::cast_precision_loss)]
    let n = n as f64;
    match n {
        n if n >= 1e9 => format!("{:.2} GB", n / 1e9),
        n if n >= 1e6 => format!("{:.1} MB", n / 1e6),
        n if n >= 1e3 => format!("{:.1} kB", n / 1e3),
        n => format!("{n} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert!((median(&[]) - 0.0).abs() < 1e-9);
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median(&[4.0, 1.0]) - 2.5).abs() < 1e-9);
    }

    #[test]
    fn phases_know_when_their_instances_began() {
        let since = Instant::now();
        let at = |begin: u64, took: u64| Span {
            begin: since + Duration::from_millis(begin),
            took: Duration::from_millis(took),
        };
        let phase = Phase::timed("create", since, at(5, 40), &[(3, at(5, 30)), (4, at(15, 10))]);
        assert_eq!((phase.begin_ms, phase.wall_ms, phase.max_ms), (5.0, 40.0, 30.0));
        assert_eq!((phase.each_begin_ms, phase.each_of), (vec![5.0, 15.0], vec![3, 4]));
        assert!(Phase::new("destroy", Duration::ZERO, &[Duration::ZERO]).each_begin_ms.is_empty());
    }

    #[test]
    fn percentiles() {
        let values: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        for (percent, expected) in [(0.0, 1.0), (25.0, 50.0), (99.0, 198.0), (100.0, 200.0)] {
            assert!((percentile(&values, percent) - expected).abs() < 1e-9);
        }
        assert!(percentile(&[], 99.0).abs() < 1e-9);
    }
}
