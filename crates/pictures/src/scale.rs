//! Axes: where the ticks are and what they are called; values as text.

use time::{Date, Month, OffsetDateTime};

/// What values are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Unit {
    /// Durations in ms.
    #[default]
    Ms,
    /// Numbers of bytes.
    Bytes,
    /// Numbers of things, and ratios.
    Number,
}

const SECOND: f64 = 1_000.0;
const MINUTE: f64 = 60.0 * SECOND;
const HOUR: f64 = 60.0 * MINUTE;
const DAY: f64 = 24.0 * HOUR;

impl Unit {
    /// The unit that a figure's name ends with, as in `waiting_ms` and `written_bytes`.
    pub fn of(figure: &str) -> Self {
        match figure {
            _ if figure.ends_with("_ms") => Self::Ms,
            _ if figure.ends_with("_bytes") => Self::Bytes,
            _ => Self::Number,
        }
    }

    /// A value for people, with three digits.
    pub fn show(self, value: f64) -> String {
        let sign = if value < 0.0 { "-" } else { "" };
        let size = value.abs();
        let text = match self {
            _ if !size.is_finite() => "–".to_owned(),
            Self::Ms if size >= 99.5 * MINUTE => {
                format!("{:.0} h {:.0} min", (size / HOUR).floor(), (size % HOUR / MINUTE).floor())
            }
            Self::Ms if size >= 99.95 * SECOND => {
                let seconds = (size / SECOND).round();
                format!("{:.0} min {:02.0} s", (seconds / 60.0).floor(), seconds % 60.0)
            }
            Self::Ms if size >= 999.5 => format!("{} s", digits(size / SECOND)),
            Self::Ms => format!("{} ms", digits(size)),
            Self::Bytes => {
                let units = [(1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")];
                let unit = units.into_iter().find(|(unit, _)| size >= unit * 0.9995);
                unit.map_or_else(
                    || format!("{size:.0} B"),
                    |(unit, name)| format!("{} {name}", digits(size / unit)),
                )
            }
            Self::Number => digits(size),
        };
        format!("{sign}{text}")
    }

    /// Ticks from 0 to `top`, about `count` of them, with their labels.
    pub(crate) fn ticks(self, top: f64, count: usize) -> Vec<(f64, String)> {
        let step = match self {
            Self::Ms => duration_step(top / count.max(1) as f64),
            Self::Bytes | Self::Number => nice(top / count.max(1) as f64),
        };
        let (unit, name) = self.divisor(top);
        let places = places(step / unit);
        // A step that vanishes beside the top would never reach it.
        let last = (top / step + 1e-9).floor().min(200.0) as usize;
        let label = |value: f64| match name {
            "" => format!("{value:.places$}"),
            name => format!("{:.places$} {name}", value / unit),
        };
        (0..=last)
            .map(|n| n as f64 * step)
            .map(|value| (value, if value == 0.0 { "0".to_owned() } else { label(value) }))
            .collect()
    }

    /// Ticks of a logarithmic axis between two positive values.
    pub(crate) fn log_ticks(self, from: f64, to: f64) -> Vec<(f64, String)> {
        let decades = (to / from).log10();
        let per_decade: &[f64] = match decades {
            d if d > 4.0 => &[1.0],
            d if d > 1.5 => &[1.0, 3.0],
            d if d > 0.4 => &[1.0, 2.0, 5.0],
            _ => &[1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0],
        };
        let first = from.log10().floor() as i32;
        (first..=first + decades.ceil().min(40.0) as i32 + 1)
            .flat_map(|power| per_decade.iter().map(move |n| n * 10_f64.powi(power)))
            .filter(|value| (from * 0.999_999..=to * 1.000_001).contains(value))
            .map(|value| (value, round(&self.show(value))))
            .collect()
    }

    fn divisor(self, top: f64) -> (f64, &'static str) {
        match self {
            Self::Ms if top >= 3.0 * HOUR => (HOUR, "h"),
            Self::Ms if top >= 3.0 * MINUTE => (MINUTE, "min"),
            Self::Ms if top >= 2.0 * SECOND => (SECOND, "s"),
            Self::Ms => (1.0, "ms"),
            Self::Bytes => [(1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")]
                .into_iter()
                .find(|(unit, _)| top >= *unit)
                .unwrap_or((1.0, "B")),
            Self::Number => (1.0, ""),
        }
    }
}

/// The label of a round value: without zeros at the end of its fraction.
fn round(label: &str) -> String {
    match label.split_once(' ') {
        Some((number, unit)) if number.contains('.') => {
            format!("{} {unit}", number.trim_end_matches('0').trim_end_matches('.'))
        }
        None if label.contains('.') => label.trim_end_matches('0').trim_end_matches('.').to_owned(),
        _ => label.to_owned(),
    }
}

/// Three digits, without zeros at the end of the fraction of small whole numbers.
fn digits(value: f64) -> String {
    match value {
        0.0 => "0".to_owned(),
        v if v >= 1e6 => format!("{v:.2e}"),
        v if v >= 99.95 => format!("{v:.0}"),
        v if v >= 9.995 => format!("{v:.1}"),
        v if v >= 0.0995 => format!("{v:.2}"),
        v if v >= 0.000_995 => format!("{v:.4}"),
        v => format!("{v:.1e}"),
    }
}

/// Decimal places that tell multiples of a step apart.
fn places(step: f64) -> usize {
    (0..6)
        .find(|places| {
            let scaled = step * 10_f64.powi(*places);
            (scaled - scaled.round()).abs() < 1e-6 * scaled.max(1.0)
        })
        .map_or(6, |places| usize::try_from(places).unwrap_or(0))
}

/// The smallest of 1, 2 and 5 times a power of ten that is not below `least`.
pub(crate) fn nice(least: f64) -> f64 {
    if !least.is_finite() || least <= 0.0 {
        return 1.0;
    }
    let power = 10_f64.powf(least.log10().floor());
    [1.0, 2.0, 5.0]
        .map(|n| n * power)
        .into_iter()
        .find(|step| *step >= least * 0.999_999)
        .unwrap_or(10.0 * power)
}

fn duration_step(least: f64) -> f64 {
    const STEPS: [f64; 14] = [
        30.0 * SECOND,
        MINUTE,
        2.0 * MINUTE,
        5.0 * MINUTE,
        10.0 * MINUTE,
        15.0 * MINUTE,
        30.0 * MINUTE,
        HOUR,
        2.0 * HOUR,
        3.0 * HOUR,
        6.0 * HOUR,
        12.0 * HOUR,
        DAY,
        2.0 * DAY,
    ];
    if least <= 20.0 * SECOND {
        return nice(least);
    }
    STEPS.into_iter().find(|step| *step >= least).unwrap_or_else(|| DAY * nice(least / DAY))
}

/// A moment in ms since 1970, as `2026-03-01 12:30 UTC`.
pub fn moment(ms: i64) -> String {
    at(ms).map_or_else(|| "?".to_owned(), |t| format!("{} {:02}:{:02} UTC", t.date(), t.hour(), t.minute()))
}

/// The years 0 to 9999, in ms since 1970.
pub(crate) fn bounded(ms: i64) -> i64 {
    ms.clamp(-62_167_219_200_000, 253_402_300_799_000)
}

fn at(ms: i64) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp(ms.div_euclid(1000)).ok()
}

/// Ticks of a calendar, in UTC: at most `most` between two moments in ms since 1970.
pub(crate) fn date_ticks(from: i64, to: i64, most: usize) -> Vec<(i64, String)> {
    const CLOCK: [f64; 16] = [
        SECOND,
        5.0 * SECOND,
        15.0 * SECOND,
        30.0 * SECOND,
        MINUTE,
        5.0 * MINUTE,
        15.0 * MINUTE,
        30.0 * MINUTE,
        HOUR,
        3.0 * HOUR,
        6.0 * HOUR,
        12.0 * HOUR,
        DAY,
        2.0 * DAY,
        7.0 * DAY,
        14.0 * DAY,
    ];
    let (from, to) = (bounded(from), bounded(to));
    let span = to.saturating_sub(from) as f64;
    let fits = |step: f64| span / step <= most as f64;
    if let Some(step) = CLOCK.into_iter().find(|step| fits(*step)) {
        let step_ms = step as i64;
        // Weeks begin on Monday; 1970-01-01 was a Thursday.
        let origin = if step >= 7.0 * DAY { 4 * DAY as i64 } else { 0 };
        let first = (from - origin).div_euclid(step_ms) + i64::from((from - origin).rem_euclid(step_ms) > 0);
        let ticks = (first..).map(|n| origin + n * step_ms).take_while(|t| *t <= to).take(most + 1);
        let mut last_day = None;
        return ticks.map(|t| (t, clock_label(t, step, &mut last_day))).collect();
    }
    let months = [1, 3, 6, 12, 24, 60, 120, 240, 600, 1200];
    let step = months.into_iter().find(|n| fits(f64::from(*n) * 30.44 * DAY)).unwrap_or(6000);
    let Some(start) = at(from) else { return Vec::new() };
    let first = start.year() * 12 + i32::from(u8::from(start.month())) - 1;
    let first = first.div_euclid(step) * step;
    (0..=most as i32 + 1)
        .filter_map(|n| {
            let month = first + n * step;
            let (year, month) = (month.div_euclid(12), Month::try_from(month.rem_euclid(12) as u8 + 1).ok()?);
            let t = Date::from_calendar_date(year, month, 1).ok()?.midnight().assume_utc().unix_timestamp()
                * 1000;
            let label = if month == Month::January { year.to_string() } else { short(month).to_owned() };
            (from..=to).contains(&t).then_some((t, label))
        })
        .collect()
}

fn clock_label(t: i64, step: f64, last_day: &mut Option<Date>) -> String {
    let Some(t) = at(t) else { return String::new() };
    let day = format!("{} {}", t.day(), short(t.month()));
    let is_new = last_day.replace(t.date()) != Some(t.date());
    match step {
        s if s >= DAY => day,
        _ if is_new => format!("{day} {:02}:{:02}", t.hour(), t.minute()),
        s if s >= MINUTE => format!("{:02}:{:02}", t.hour(), t.minute()),
        _ => format!("{:02}:{:02}:{:02}", t.hour(), t.minute(), t.second()),
    }
}

fn short(month: Month) -> &'static str {
    const NAMES: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    NAMES[usize::from(u8::from(month)) - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_for_people() {
        for (unit, value, shown) in [
            (Unit::Ms, 0.0, "0 ms"),
            (Unit::Ms, 0.423, "0.42 ms"),
            (Unit::Ms, 8.44, "8.44 ms"),
            (Unit::Ms, 999.4, "999 ms"),
            (Unit::Ms, 999.6, "1.00 s"),
            (Unit::Ms, 1_495.2, "1.50 s"),
            (Unit::Ms, 250_000.0, "4 min 10 s"),
            (Unit::Ms, 9_000_000.0, "2 h 30 min"),
            (Unit::Ms, f64::NAN, "–"),
            (Unit::Bytes, 512.0, "512 B"),
            (Unit::Bytes, 1_100_000_000.0, "1.10 GB"),
            (Unit::Bytes, -4_100.0, "-4.10 kB"),
            (Unit::Number, 1234.0, "1234"),
            (Unit::Number, 0.5, "0.50"),
        ] {
            assert_eq!(unit.show(value), shown);
        }
        assert_eq!(
            (Unit::of("waiting_ms"), Unit::of("x_bytes"), Unit::of("ratio")),
            (Unit::Ms, Unit::Bytes, Unit::Number)
        );
    }

    #[test]
    fn ticks_are_round() {
        let labels = |unit: Unit, top, count| {
            unit.ticks(top, count).into_iter().map(|(_, label)| label).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(labels(Unit::Ms, 1_930.0, 8), "0 500 ms 1000 ms 1500 ms");
        assert_eq!(labels(Unit::Ms, 3_400.0, 8), "0 0.5 s 1.0 s 1.5 s 2.0 s 2.5 s 3.0 s");
        assert_eq!(labels(Unit::Ms, 600_000.0, 5), "0 2 min 4 min 6 min 8 min 10 min");
        assert_eq!(labels(Unit::Bytes, 1_100_000_000.0, 3), "0 0.5 GB 1.0 GB");
        assert_eq!(labels(Unit::Ms, 0.02, 4), "0 0.005 ms 0.010 ms 0.015 ms 0.020 ms");
        assert!(Unit::Ms.ticks(f64::MAX, 8).len() <= 201 && !Unit::Bytes.ticks(0.0, 4).is_empty());
    }

    #[test]
    fn logarithmic_ticks() {
        let labels: Vec<String> =
            Unit::Ms.log_ticks(8.0, 1_200.0).into_iter().map(|(_, label)| label).collect();
        assert_eq!(labels, ["10 ms", "30 ms", "100 ms", "300 ms", "1 s"]);
        assert!(Unit::Ms.log_ticks(1e-300, 1e300).len() < 60);
        assert!(Unit::Ms.log_ticks(99.0, 105.0).len() <= 3);
    }

    #[test]
    fn dates_fit_their_span() {
        let day = 86_400_000_i64;
        // 2026-11-30 11:00 UTC.
        let now = 1_796_036_400_000_i64;
        let labels = |from, to| {
            date_ticks(from, to, 6).into_iter().map(|(_, label)| label).collect::<Vec<_>>().join(" | ")
        };
        assert_eq!(labels(now, now + 3_600_000), "30 Nov 11:00 | 11:15 | 11:30 | 11:45 | 12:00");
        assert_eq!(labels(now - 4 * day, now), "27 Nov | 28 Nov | 29 Nov | 30 Nov");
        assert_eq!(labels(now - 120 * day, now), "Sep | Oct | Nov");
        assert_eq!(labels(now - 1500 * day, now), "2023 | 2024 | 2025 | 2026");
        assert_eq!(moment(now), "2026-11-30 11:00 UTC");
        for (from, to) in [(i64::MIN, i64::MAX), (i64::MAX - 1, i64::MAX), (0, 0)] {
            assert!(date_ticks(from, to, 6).len() <= 9);
        }
    }
}
