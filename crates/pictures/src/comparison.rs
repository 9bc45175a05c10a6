//! Rows side by side: engines, modes, steps.

use crate::curve::median;
use crate::look::Look;
use crate::palette::Colour;
use crate::scale::Unit;
use crate::svg::{Canvas, N, empty};
use crate::text;
use std::fmt::Write as _;

/// Limits of what is drawn of one comparison.
const ENTRIES_MAX: usize = 60;
const DOTS_MAX: usize = 60;

/// What a picture of a comparison shows.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Comparison {
    /// What the values are.
    pub unit: Unit,
    /// The rows.
    pub entries: Vec<Entry>,
    /// A value that separates the rows, such as the one above which a kernel is slow: a line across all of them.
    pub bound: Option<f64>,
}

/// A row of a comparison.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Entry {
    /// Its name: an engine, a mode.
    pub name: String,
    /// What determines its colour, such as the engine; empty: the name.
    pub kind: String,
    /// The value of each run.
    pub runs: Vec<f64>,
    /// How it compares with others: `3.2 × (2.9 – 3.6)`; may be empty.
    pub ratio: String,
    /// Why a part of it is missing, or how it was done; may be empty.
    pub note: String,
}

/// Draws a comparison: a bar as long as the median for each row, a dot for each run, and the ratio.
pub fn comparison(of: &Comparison, look: &Look) -> String {
    let title = look.title().unwrap_or("Comparison");
    if of.entries.is_empty() {
        return empty(look, title, "There is nothing to compare.");
    }
    let (pad, narrow) = (look.padding(), look.is_narrow());
    let entries = &of.entries[..of.entries.len().min(ENTRIES_MAX)];
    let mut canvas = Canvas::default();
    let mut y = canvas.head(look);
    // In a narrow picture the name is above its bar.
    let names = entries.iter().map(|entry| text::width(&entry.name, 12.0)).fold(0.0, f64::max);
    let left = if narrow { pad } else { pad + names.clamp(60.0, 220.0) + 12.0 };
    let widest = |texts: &dyn Fn(&Entry) -> String| {
        entries.iter().map(|entry| text::width(&texts(entry), 12.0)).fold(0.0, f64::max).min(240.0)
    };
    let (medians, ratios) =
        (widest(&|entry| shown(of.unit, entry)) + 6.0, widest(&|entry| entry.ratio.clone()));
    let labels = medians + if ratios > 0.0 { ratios + 16.0 } else { 0.0 };
    let right = if narrow { look.width() - pad - 6.0 } else { look.width() - pad - labels - 16.0 };
    let runs = |entry: &Entry| -> Vec<f64> {
        entry.runs.iter().copied().filter(|value| value.is_finite()).collect()
    };
    let bound = of.bound.filter(|bound| bound.is_finite() && *bound > 0.0);
    let most = entries.iter().flat_map(runs).chain(bound).fold(0.0, f64::max);
    let most = if most > 0.0 { most } else { 1.0 };
    let x = |value: f64| left + (value / most).clamp(0.0, 1.0) * (right - left - 4.0);
    if bound.is_some() {
        y += 16.0;
    }
    let top = y;
    let mut rows = Canvas::default();
    for entry in entries {
        let values = runs(entry);
        let kind = if entry.kind.is_empty() { &entry.name } else { &entry.kind };
        let colour = Colour::of(kind).number();
        rows.put(format_args!(
            "<g data-entry=\"{0}\"><title>{0}: {1}</title>",
            text::name(&entry.name),
            text::name(&label(of.unit, entry))
        ));
        if narrow {
            let half = (look.width() - 2.0 * pad) * 0.5;
            rows.text(pad, y + 12.0, "", &text::fit(&entry.name, 12.0, half));
            rows.text(
                right + 6.0,
                y + 12.0,
                "wp-end wp-strong",
                &text::fit(&label(of.unit, entry), 12.0, half),
            );
            y += 18.0;
        } else {
            rows.text(left - 10.0, y + 15.0, "wp-end", &text::fit(&entry.name, 12.0, left - pad - 10.0));
            rows.text(right + 14.0 + medians, y + 15.0, "wp-end wp-strong", &shown(of.unit, entry));
            if !entry.ratio.is_empty() {
                let x = right + 30.0 + medians;
                rows.text(x, y + 15.0, "wp-soft", &text::fit(&entry.ratio, 12.0, look.width() - x));
            }
        }
        if !values.is_empty() {
            let width = (x(median(&values)) - left).max(2.0);
            rows.put(format_args!(
                "<rect class=\"wp-f{colour}\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"18\" rx=\"3\"/>",
                N(left),
                N(y + 2.0),
                N(width)
            ));
        }
        for (n, value) in spread(&values).into_iter().enumerate() {
            // Runs of the same value are drawn beside each other.
            let offset = [0.0, -4.0, 4.0, -2.0, 2.0][n % 5];
            rows.put(format_args!(
                "<circle class=\"wp-run\" cx=\"{}\" cy=\"{}\" r=\"2.6\"><title>{}</title></circle>",
                N(x(value)),
                N(y + 11.0 + offset),
                of.unit.show(value)
            ));
        }
        y += if values.is_empty() && (narrow || !entry.note.is_empty()) { 4.0 } else { 24.0 };
        if !entry.note.is_empty() {
            let note = text::fit(&entry.note, 11.0, look.width() - left - pad);
            rows.text(left, y + 9.0, "wp-soft wp-small", &note);
            y += 15.0;
        }
        rows.put(format_args!("</g>"));
        y += 6.0;
    }
    let mut d = String::new();
    for (value, label) in of.unit.ticks(most, if narrow { 4 } else { 6 }) {
        let _ = write!(d, "M{} {}V{}", N(x(value)), N(top), N(y));
        canvas.text(
            x(value),
            y + 15.0,
            if value == 0.0 { "wp-soft wp-small" } else { "wp-mid wp-soft wp-small" },
            if value == 0.0 { "0" } else { &label },
        );
    }
    canvas.path("wp-grid", &d);
    canvas.append(&rows);
    if let Some(bound) = bound {
        let at = x(bound);
        canvas.path("wp-mark", &format!("M{} {}V{}", N(at), N(top - 2.0), N(y)));
        let label = format!("bound {}", of.unit.show(bound));
        let is_near_the_edge = at + text::width(&label, 11.0) > look.width() - pad;
        let class = if is_near_the_edge { "wp-end wp-soft wp-small" } else { "wp-soft wp-small" };
        canvas.text(at, top - 6.0, class, &label);
    }
    y += 22.0;
    if of.entries.len() > entries.len() {
        y += 14.0;
        let note = format!("{} more rows are not drawn.", of.entries.len() - entries.len());
        canvas.text(pad, y, "wp-soft wp-small", &note);
    }
    let about: Vec<String> =
        entries.iter().map(|entry| format!("{}: {}.", entry.name, label(of.unit, entry))).collect();
    canvas.finish(look, y + pad, title, &about.join(" "), "")
}

/// The median.
fn shown(unit: Unit, entry: &Entry) -> String {
    let values: Vec<f64> = entry.runs.iter().copied().filter(|value| value.is_finite()).collect();
    if values.is_empty() { "–".to_owned() } else { unit.show(median(&values)) }
}

/// Median and ratio.
fn label(unit: Unit, entry: &Entry) -> String {
    let median = shown(unit, entry);
    if entry.ratio.is_empty() { median } else { format!("{median}, {}", entry.ratio) }
}

/// Some of the values, the extremes among them.
fn spread(values: &[f64]) -> Vec<f64> {
    if values.len() <= DOTS_MAX {
        return values.to_vec();
    }
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len() - 1;
    (0..DOTS_MAX).map(|n| sorted[n * last / (DOTS_MAX - 1)]).collect()
}

#[cfg(test)]
mod tests;
