//! Figures of an experiment, on which side of a bound they are, and whether that is sure.

use super::search::Side;
use crate::guest::disk::parse_bytes;
use crate::report::{bytes, median};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::collections::BTreeMap;

/// A median closer than this part of the bound to it is measured again.
const NEAR: f64 = 0.2;

/// The figures of a teardown's report: `unmount_max_ms`, `write_wall_ms`, `unmount_written_bytes`, ….
pub(super) fn of_teardown(report: &Value) -> BTreeMap<String, f64> {
    let mut figures = BTreeMap::new();
    for phase in report["phases"].as_array().into_iter().flatten() {
        let Some(name) = phase["name"].as_str() else { continue };
        for (what, value) in
            [("max_ms", &phase["max_ms"]), ("p50_ms", &phase["p50_ms"]), ("wall_ms", &phase["wall_ms"])]
        {
            figures.extend(value.as_f64().map(|value| (format!("{name}_{what}"), value)));
        }
    }
    for (phase, written) in report["written_bytes"].as_object().into_iter().flatten() {
        figures.extend(written.as_f64().map(|written| (format!("{phase}_written_bytes"), written)));
    }
    let dirty = report["dirty_at_unmount_bytes"].as_f64();
    figures.extend(dirty.map(|dirty| ("dirty_at_unmount_bytes".to_owned(), dirty)));
    figures
}

/// Whether a teardown can have a figure of this name.
pub(super) fn is_of_teardown(name: &str) -> bool {
    const PHASES: [&str; 5] = ["mount", "write", "age", "unmount", "remove"];
    const ENDS: [&str; 4] = ["_max_ms", "_p50_ms", "_wall_ms", "_written_bytes"];
    let phase = ENDS.iter().find_map(|end| name.strip_suffix(end));
    name == "dirty_at_unmount_bytes" || phase.is_some_and(|phase| PHASES.contains(&phase))
}

/// The figures of a recorded command: `duration_ms` and `written_bytes`.
pub(super) fn of_command(report: &Value) -> BTreeMap<String, f64> {
    let values = [
        ("duration_ms", &report["recording"]["length_ms"]),
        ("written_bytes", &report["diagnosis"]["written_bytes"]),
    ];
    values.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value.as_f64()?))).collect()
}

/// Parses a bound of a figure: a duration (`300ms`, `1.5s`) of one in ms, a size (`50M`) of one in bytes.
///
/// # Errors
/// It is neither.
pub fn parse_bound(text: &str, figure: &str) -> Result<f64> {
    if figure.ends_with("_bytes") {
        #[allow(clippy::cast_precision_loss)]
        return parse_bytes(text).map(|bytes| bytes as f64);
    }
    let wrong = || format!("{text:?} is no duration such as 300ms or 1.5s");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "ms" => 1.0,
        "s" => 1000.0,
        _ => bail!(wrong()),
    };
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let value: f64 =
        digits.parse().ok().filter(|value: &f64| plain && value.is_finite()).with_context(wrong)?;
    Ok(value * unit)
}

/// A figure with its unit.
pub(crate) fn shown(figure: &str, value: f64) -> String {
    if figure.ends_with("_bytes") {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        return bytes(value as u64);
    }
    match value {
        value if value >= 10_000.0 => format!("{:.1} s", value / 1000.0),
        value if value >= 100.0 => format!("{value:.0} ms"),
        value => format!("{value:.1} ms"),
    }
}

/// The values of one figure, in the runs on one kernel.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
}

impl Spread {
    pub(super) fn of(values: &[f64]) -> Option<Self> {
        let fold = |f: fn(f64, f64) -> f64| values.iter().copied().reduce(f);
        Some(Self { median: median(values), least: fold(f64::min)?, most: fold(f64::max)? })
    }

    pub(super) fn side(self, bound: f64) -> Side {
        if self.median > bound { Side::Above } else { Side::Below }
    }

    /// Whether the figure is too near to the bound, or on both sides of it: it should be measured again.
    pub(super) fn is_doubtful(self, bound: f64) -> bool {
        let crosses = self.least <= bound && self.most > bound;
        crosses || (self.median - bound).abs() < NEAR * bound
    }

    /// Whether the values of two kernels are further apart than each varies.
    pub(super) fn is_apart(self, other: Self) -> bool {
        self.most < other.least || other.most < self.least
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn reports_become_figures() {
        let report = json!({
            "phases": [{"name": "unmount", "wall_ms": 3.0, "p50_ms": 1.0, "max_ms": 2.0}, {"name": 7}, {}],
            "dirty_at_unmount_bytes": 5,
            "written_bytes": {"unmount": 9, "write": "x"},
        });
        let figures = of_teardown(&report);
        let expected = [
            ("dirty_at_unmount_bytes", 5.0),
            ("unmount_max_ms", 2.0),
            ("unmount_p50_ms", 1.0),
            ("unmount_wall_ms", 3.0),
            ("unmount_written_bytes", 9.0),
        ];
        assert_eq!(figures, expected.map(|(name, value)| (name.to_owned(), value)).into());
        assert!(figures.keys().all(|name| is_of_teardown(name)) && !is_of_teardown("nonsense_max_ms"));
        assert!(of_teardown(&Value::Null).is_empty() && of_command(&json!([])).is_empty());
        let recorded = json!({"recording": {"length_ms": 12.5}, "diagnosis": {"written_bytes": 7}});
        assert_eq!(of_command(&recorded).get("duration_ms"), Some(&12.5));
    }

    #[test]
    fn bounds() {
        for (text, figure, value) in [
            ("300ms", "unmount_max_ms", 300.0),
            ("1.5s", "unmount_max_ms", 1500.0),
            ("50M", "unmount_written_bytes", 5e7),
        ] {
            assert!((parse_bound(text, figure).unwrap() - value).abs() < 1e-9, "{text}");
        }
        for (text, figure) in [
            ("", "x_ms"),
            ("ms", "x_ms"),
            ("40", "x_ms"),
            ("-3ms", "x_ms"),
            ("3 ms", "x_ms"),
            ("inf", "x_ms"),
            ("1e3ms", "x_ms"),
            ("300ms", "x_bytes"),
            ("3min", "x_ms"),
        ] {
            assert!(parse_bound(text, figure).is_err(), "{text}");
        }
    }

    #[test]
    fn sides_and_doubts() {
        let spread = |values: &[f64]| Spread::of(values).unwrap();
        let (fast, slow) = (spread(&[10.0, 12.0, 11.0]), spread(&[4000.0, 4100.0]));
        assert_eq!((fast.side(300.0), slow.side(300.0)), (Side::Below, Side::Above));
        assert!(!fast.is_doubtful(300.0) && !slow.is_doubtful(300.0));
        assert!(fast.is_apart(slow) && slow.is_apart(fast));
        // One outlier, or all of them close to the bound.
        assert!(spread(&[10.0, 11.0, 900.0]).is_doubtful(300.0));
        assert!(spread(&[290.0, 295.0]).is_doubtful(300.0) && spread(&[310.0]).is_doubtful(300.0));
        assert_eq!(spread(&[300.0]).side(300.0), Side::Below);
        assert!(!spread(&[1.0, 5.0]).is_apart(spread(&[4.0, 9.0])));
        assert_eq!(Spread::of(&[]), None);
    }

    #[test]
    fn units() {
        for (figure, value, text) in [
            ("a_ms", 1.25, "1.2 ms"),
            ("a_ms", 412.4, "412 ms"),
            ("a_ms", 12_345.0, "12.3 s"),
            ("a_bytes", 2e6, "2.0 MB"),
        ] {
            assert_eq!(shown(figure, value), text);
        }
    }
}
