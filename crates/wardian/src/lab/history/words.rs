//! Figures and steps in words.

use crate::print;
use std::time::{Duration, UNIX_EPOCH};
use wardian_history::Series;
use wardian_history::steps::{Changed, Step};

fn clock(ms: i64) -> String {
    print::clock(UNIX_EPOCH + Duration::from_millis(ms.max(0).cast_unsigned()))
}

/// A time of UTC to the minute: `2026-11-24 12:47`.
pub fn minute(ms: i64) -> String {
    clock(ms).get(..16).unwrap_or_default().replace('T', " ")
}

/// The day.
fn day(ms: i64) -> String {
    clock(ms).get(..10).unwrap_or_default().to_owned()
}

/// Experiment and mode.
pub fn short(experiment: &str, mode: &str) -> String {
    print::tame(&if mode.is_empty() { experiment.to_owned() } else { format!("{experiment} {mode}") })
}

/// A figure with its unit, which the name ends with.
pub fn value(name: &str, value: f64) -> String {
    if name.ends_with("_ms") {
        return if value.abs() >= 10_000.0 {
            format!("{:.2} s", value / 1e3)
        } else {
            format!("{value:.1} ms")
        };
    }
    if name.ends_with("_bytes") {
        let sign = if value < 0.0 { "-" } else { "" };
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it saturates")]
        return sign.to_owned() + &print::bytes(value.abs() as u64);
    }
    if value.fract() == 0.0 { format!("{value}") } else { format!("{value:.3}") }
}

/// The name of a figure without its unit: `waiting`.
pub fn figure(name: &str) -> String {
    let name = name.strip_suffix("_ms").or(name.strip_suffix("_bytes")).unwrap_or(name);
    name.replace('_', " ")
}

/// The figure that stands for a series, at the begin of a sentence.
pub fn headline(name: &str) -> String {
    match name {
        "waiting_ms" => "Waiting time".to_owned(),
        "unmount_max_ms" => "The slowest unmount".to_owned(),
        other => other.strip_suffix("_ms").unwrap_or(other).replace('_', " "),
    }
}

/// How much it changed: `rose by 21 % (18–24 %)`, `fell by 20 % (17–23 %)`, `rose to 3.1 times (2.9–3.4)`.
pub fn change(step: &Step) -> String {
    let ratio = step.ratio;
    let percent = |ratio: f64| format!("{:.0}", (ratio - 1.0).abs() * 100.0);
    let (value, low, high) = (percent(ratio.value), percent(ratio.low), percent(ratio.high));
    match ratio.value {
        times if times >= 2.0 => format!("rose to {times:.1} times ({:.1}–{:.1})", ratio.low, ratio.high),
        times if times >= 1.0 => format!("rose by {value} % ({low}–{high} %)"),
        _ => format!("fell by {value} % ({high}–{low} %)"),
    }
}

/// What else changed with a step: `kernel 6.1 → 6.12, cpus 2 → 4 (run 33)`; empty if nothing did.
pub fn changed(step: &Step) -> String {
    let one = |changed: &Changed| {
        let [from, to] = [&changed.from, &changed.to].map(|text| if text.is_empty() { "none" } else { text });
        let at = if changed.run == step.run { String::new() } else { format!(" (run {})", changed.run) };
        format!("{} {from} → {to}{at}", changed.what.replace('_', " "))
    };
    step.changed.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// A step as a sentence: what, by how much, when, and what else changed.
pub fn step(series: &Series, step: &Step) -> String {
    let what = format!("{} of `{}`", headline(&series.headline), short(&series.experiment, &series.mode));
    let (day, change) = (day(step.begun_ms), change(step));
    let place = if step.gradual {
        format!("little by little around {day}, near run {}", step.run)
    } else {
        format!("on {day}, between run {} and {}", step.before, step.run)
    };
    let changed = match changed(step) {
        nothing if nothing.is_empty() => "nothing else that the history knows of changed there".to_owned(),
        changed => changed,
    };
    // Names and versions may come from a file of somebody else's: the sentence is one line.
    print::tame(&format!("{what} {change} {place}: {changed}."))
}

/// The medians on both sides, how sure it is, and the series.
pub fn details(series: &Series, step: &Step) -> String {
    // The confidence is rounded down: it is never certain.
    let confidence = (step.confidence * 1e4).floor() / 1e2;
    print::tame(&format!(
        "  median {} before, {} after; confidence {} %; series {}",
        value(&series.headline, step.median_before),
        value(&series.headline, step.median_after),
        confidence.min(99.99),
        series.name
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use wardian_history::Estimate;

    fn series() -> Series {
        Series {
            name: "h|scale|wardian|stream|to=10".into(),
            host: "h".into(),
            experiment: "scale".into(),
            engine: "wardian".into(),
            mode: "stream".into(),
            headline: "waiting_ms".into(),
            runs: 60,
            complete: 60,
            oldest_ms: 0,
            newest_ms: 1,
        }
    }

    #[test]
    fn steps_in_words() {
        let mut found = Step {
            index: 31,
            run: 32,
            before: 31,
            begun_ms: 1_794_441_600_000,
            median_before: 100.0,
            median_after: 121.0,
            ratio: Estimate { value: 1.21, low: 1.18, high: 1.24 },
            confidence: 0.999_999,
            gradual: false,
            changed: vec![Changed {
                what: "kernel".into(),
                from: "6.12.9".into(),
                to: "6.12.12".into(),
                run: 32,
            }],
        };
        assert_eq!(
            step(&series(), &found),
            "Waiting time of `scale stream` rose by 21 % (18–24 %) on 2026-11-12, between run 31 and 32: \
             kernel 6.12.9 → 6.12.12."
        );
        assert!(details(&series(), &found).contains("confidence 99.99 %"));
        found.ratio = Estimate { value: 0.8, low: 0.77, high: 0.83 };
        found.changed =
            vec![Changed { what: "mount_options".into(), from: String::new(), to: "rw".into(), run: 33 }];
        let said = step(&series(), &found);
        assert!(
            said.contains("fell by 20 % (17–23 %)") && said.contains("mount options none → rw (run 33)"),
            "{said}"
        );
        found.changed[0].to = "rw\nforged".into();
        assert!(step(&series(), &found).contains("rw\\nforged"), "{}", step(&series(), &found));
        (found.ratio.value, found.gradual, found.changed) = (3.0, true, Vec::new());
        let said = step(&series(), &found);
        assert!(
            said.contains("rose to 3.0 times") && said.contains("nothing else that the history knows"),
            "{said}"
        );
    }

    #[test]
    fn figures_in_words() {
        for (name, number, text) in [
            ("a_ms", 12.34, "12.3 ms"),
            ("a_ms", 12_340.0, "12.34 s"),
            ("a_bytes", -2e6, "-2.0 MB"),
            ("n", 3.0, "3"),
            ("ratio", 0.12345, "0.123"),
        ] {
            assert_eq!(value(name, number), text);
        }
        assert_eq!(minute(0), "1970-01-01 00:00");
    }
}
