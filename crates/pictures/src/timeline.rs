//! The timeline of one run.

use crate::curve::thin;
use crate::look::Look;
use crate::palette::Colour;
use crate::scale::Unit;
use crate::svg::{Canvas, Key, N, area, empty, legend, line};
use crate::text;
use std::collections::HashMap;
use std::fmt::Write as _;
use wardian_history::{Row, Timeline, Wait};

/// Limits of what is drawn of one timeline.
const ROWS_MAX: usize = 1_000;
const BARS_MAX: usize = 12_000;
const WAITS_MAX: usize = 3_000;
const MARKS_MAX: usize = 100;
/// So many samples at most are drawn as dots, besides the line.
const DOTS_MAX: usize = 60;
const SAMPLES_MAX: usize = 1_000_000;
/// Lanes for waits that belong to no row.
const LANES_MAX: usize = 6;
/// Rows up to which every bar says on its own what it is; beyond, the row does it for all of its bars.
const DETAILED: usize = 120;
/// Height of the curves in px.
const CURVES: f64 = 112.0;

/// Draws a timeline: instances as rows, phases as bars, hatched where a thread waited in the kernel, and below them
/// Dirty and Writeback as curves on the same time axis.
///
/// At most 1,000 rows are drawn, and a picture of them is smaller than 2 MB; what is left out is said below it.
pub fn timeline(of: &Timeline, look: &Look) -> String {
    let title = look.title().unwrap_or("Timeline of a run");
    if of.rows.is_empty() && of.samples.is_empty() && of.waits.is_empty() {
        return empty(look, title, "Nothing was recorded.");
    }
    Picture::new(of, look).draw(title)
}

/// A moment or duration that can be drawn.
fn sane(ms: f64) -> f64 {
    if ms.is_finite() { ms.max(0.0) } else { 0.0 }
}

/// The end of the last thing that happened, or the length that the timeline says.
fn length(of: &Timeline) -> f64 {
    let bars =
        of.rows.iter().take(ROWS_MAX).flat_map(|row| &row.bars).map(|bar| sane(bar.begin_ms) + sane(bar.ms));
    let waits = of.waits.iter().map(|wait| sane(wait.begin_ms) + sane(wait.ms));
    let samples = of.samples.iter().map(|sample| sane(sample.t_ms));
    let all = bars.chain(waits).chain(samples).chain([sane(of.length_ms)]);
    all.fold(0.0, f64::max).max(0.001)
}

struct Picture<'a> {
    of: &'a Timeline,
    look: &'a Look,
    canvas: Canvas,
    rows: &'a [Row],
    /// Waits by row; those of no row in lanes.
    waits: HashMap<usize, Vec<&'a Wait>>,
    lanes: Vec<Vec<&'a Wait>>,
    notes: Vec<String>,
    length: f64,
    left: f64,
    right: f64,
}

impl<'a> Picture<'a> {
    fn new(of: &'a Timeline, look: &'a Look) -> Self {
        let rows = &of.rows[..of.rows.len().min(ROWS_MAX)];
        let mut notes = Vec::new();
        if of.rows.len() > rows.len() {
            notes.push(format!("{} more rows are not drawn", of.rows.len() - rows.len()));
        }
        let mut picture = Self {
            of,
            look,
            canvas: Canvas::default(),
            rows,
            waits: HashMap::new(),
            lanes: Vec::new(),
            notes,
            length: length(of),
            left: 0.0,
            right: look.width() - look.padding() - 6.0,
        };
        picture.place_waits();
        let (least, most) = if look.is_narrow() { (50.0, 92.0) } else { (58.0, 190.0) };
        let names = rows.iter().map(|row| text::width(&row.name, 12.0));
        let others = if picture.lanes.is_empty() { 0.0 } else { text::width(OTHERS, 12.0) };
        picture.left = look.padding() + names.fold(others, f64::max).clamp(least, most) + 10.0;
        picture
    }

    /// Finds the row of each wait, and a free lane for those without one.
    fn place_waits(&mut self) {
        let numbers: HashMap<&str, usize> =
            self.rows.iter().enumerate().rev().map(|(n, row)| (row.name.as_str(), n)).collect();
        let mut order: Vec<&Wait> = self.of.waits.iter().collect();
        order.sort_by(|a, b| b.ms.total_cmp(&a.ms));
        let mut missing = order.len().saturating_sub(WAITS_MAX);
        order.truncate(WAITS_MAX);
        order.sort_by(|a, b| a.begin_ms.total_cmp(&b.begin_ms));
        for wait in order {
            let row = wait.row.as_deref().and_then(|row| numbers.get(row));
            if let Some(row) = row {
                self.waits.entry(*row).or_default().push(wait);
                continue;
            }
            let free = |lane: &Vec<&Wait>| {
                lane.last().is_none_or(|last| sane(last.begin_ms) + sane(last.ms) <= sane(wait.begin_ms))
            };
            match self.lanes.iter().position(free) {
                Some(lane) => self.lanes[lane].push(wait),
                None if self.lanes.len() < LANES_MAX => self.lanes.push(vec![wait]),
                None => missing += 1,
            }
        }
        if missing > 0 {
            self.notes.push(format!("{missing} more waits are not drawn"));
        }
    }

    fn x(&self, ms: f64) -> f64 {
        self.left + sane(ms) / self.length * (self.right - self.left)
    }

    fn draw(mut self, title: &str) -> String {
        let (look, pad) = (self.look, self.look.padding());
        let mut y = self.canvas.head(look);
        // The same picture in another width may be on the same page, hidden: nothing may refer to its pattern.
        let first = self.of.rows.first().map(|row| &row.bars);
        let hatch = self.canvas.id(&format!("{} {:?} {first:?}", look.width(), self.length));
        let keys = self.keys(&hatch);
        y = legend(&mut self.canvas, &keys, pad, y, self.right) + 6.0;
        let top = y;
        let (marks, marks_height) = self.mark_labels();
        y += marks_height;
        let rows_top = y;
        let pitch = self.pitch();
        let lanes = if self.lanes.is_empty() { 0.0 } else { 8.0 + self.lanes.len() as f64 * 20.0 };
        let rows_bottom = rows_top + pitch * self.rows.len() as f64 + lanes;
        let curves_top = rows_bottom + if self.of.samples.is_empty() { 0.0 } else { 26.0 };
        let bottom = curves_top + if self.of.samples.is_empty() { 4.0 } else { CURVES };

        self.grid(rows_top, bottom);
        self.draw_rows(rows_top, pitch, &hatch);
        self.draw_lanes(rows_bottom - lanes + 8.0, &hatch);
        if !self.of.samples.is_empty() {
            self.curves(curves_top, bottom);
        }
        self.marks(&marks, top, bottom);
        let mut y = bottom + 20.0;
        for note in std::mem::take(&mut self.notes) {
            y += 15.0;
            self.canvas.text(pad, y, "wp-soft wp-small", &format!("{note}."));
        }
        let defs = format!(
            "<defs><pattern id=\"{hatch}\" width=\"6\" height=\"6\" patternUnits=\"userSpaceOnUse\">\
             <path class=\"wp-hatch\" d=\"M-1 1L1 -1M-1 7L7 -1M5 7L7 5\"/></pattern></defs>\n"
        );
        let about = self.about();
        self.canvas.finish(look, y + pad, title, &about, &defs)
    }

    /// The phases in the order in which they begin, and what else needs an explanation.
    fn keys(&self, hatch: &str) -> Vec<Key> {
        const PHASES_MAX: usize = 24;
        let mut phases: Vec<&str> = Vec::new();
        let mut bars: Vec<&wardian_history::Bar> = self.rows.iter().flat_map(|row| &row.bars).collect();
        bars.sort_by(|a, b| a.begin_ms.total_cmp(&b.begin_ms));
        for bar in bars {
            if phases.len() < PHASES_MAX && !phases.contains(&bar.phase.as_str()) {
                phases.push(&bar.phase);
            }
        }
        let phase = |phase: &&str| Key {
            sign: format!(
                "<rect class=\"wp-f{}\" width=\"13\" height=\"10\" rx=\"2\"/>",
                Colour::of(phase).number()
            ),
            name: spoken(phase),
        };
        let mut keys: Vec<Key> = phases.iter().map(phase).collect();
        if !self.of.waits.is_empty() {
            keys.push(Key {
                sign: if self.pitch() < 10.0 {
                    "<rect class=\"wp-bare\" width=\"13\" height=\"10\" rx=\"2\"/><rect class=\"wp-wait-thin\" \
                     y=\"3\" width=\"13\" height=\"4\"/>"
                        .to_owned()
                } else { format!(
                    "<rect class=\"wp-bare\" width=\"13\" height=\"10\" rx=\"2\"/><rect class=\"wp-wait\" \
                     fill=\"url(#{hatch})\" width=\"13\" height=\"10\" rx=\"2\"/>"
                ) },
                name: "waited in the kernel".to_owned(),
            });
        }
        keys
    }

    fn pitch(&self) -> f64 {
        match self.rows.len() {
            0..=24 => 23.0,
            25..=60 => 14.0,
            61..=120 => 8.0,
            121..=300 => 4.0,
            _ => 2.0,
        }
    }

    fn grid(&mut self, top: f64, bottom: f64) {
        let narrow = self.look.is_narrow();
        let ticks = Unit::Ms.ticks(self.length, if narrow { 4 } else { 9 });
        let (mut d, mut free) = (String::new(), f64::MIN);
        for (ms, label) in &ticks {
            let x = self.x(*ms);
            let _ = write!(d, "M{} {}V{}", N(x), N(top), N(bottom));
            let half = text::width(label, 11.0) / 2.0;
            if x - half >= free && x + half <= self.look.width() - 1.0 {
                self.canvas.text(x, bottom + 16.0, "wp-mid wp-soft wp-small", label);
                free = x + half + 6.0;
            }
        }
        self.canvas.path("wp-grid", &d);
        let axis = format!("M{} {}H{}", N(self.left), N(bottom), N(self.right));
        self.canvas.path("wp-axis", &axis);
    }

    fn draw_rows(&mut self, top: f64, pitch: f64, hatch: &str) {
        let thin = pitch < 10.0;
        let height = if thin { (pitch * 0.8).max(1.6) } else { pitch - 5.0 };
        // Names only where they do not overlap.
        let every = if thin { (22.0 / pitch).ceil() as usize } else { 1 };
        let mut left = BARS_MAX;
        for (n, row) in self.rows.iter().enumerate() {
            let y = top + n as f64 * pitch;
            if n % every == 0 {
                let shown = text::fit(&row.name, 12.0, self.left - self.look.padding() - 8.0).into_owned();
                let small = if pitch < 16.0 { " wp-small" } else { "" };
                let middle = y + if thin { 4.0 } else { height / 2.0 } + 4.2;
                self.canvas.text(self.left - 9.0, middle, &format!("wp-end{small}"), &shown);
            }
            let bars = &row.bars[..row.bars.len().min(left)];
            left -= bars.len();
            let mut all = String::new();
            for bar in bars {
                let _ = write!(
                    all,
                    "{}{} {}",
                    if all.is_empty() { ": " } else { ", " },
                    spoken(&bar.phase),
                    Unit::Ms.show(bar.ms)
                );
            }
            let name = text::name(&row.name);
            self.canvas.put(format_args!("<g data-row=\"{name}\"><title>{name}{}</title>", text::name(&all)));
            for bar in bars {
                let x = self.x(bar.begin_ms);
                let width = (self.x(sane(bar.begin_ms) + sane(bar.ms)) - x).max(1.0);
                let colour = Colour::of(&bar.phase).number();
                let (x, y, w, h) = (N(x), N(y), N(width), N(height));
                if self.rows.len() > DETAILED {
                    self.canvas
                        .put(format_args!("<path class=\"wp-f{colour}\" d=\"M{x} {y}h{w}v{h}h-{w}z\"/>"));
                    continue;
                }
                let radius = if thin || width < 4.0 { "" } else { " rx=\"2\"" };
                self.canvas.put(format_args!(
                    "<rect class=\"wp-f{colour}\" x=\"{x}\" y=\"{y}\" width=\"{w}\" height=\"{h}\"{radius}><title>{}: {} {}, \
                     from {}</title></rect>",
                    name,
                    text::name(&spoken(&bar.phase)),
                    Unit::Ms.show(bar.ms),
                    Unit::Ms.show(bar.begin_ms)
                ));
            }
            let waits = self.waits.remove(&n).unwrap_or_default();
            for wait in &waits {
                self.wait(wait, y, height, hatch, thin);
            }
            if !thin {
                self.bar_labels(row, bars.len(), y, height, !waits.is_empty());
            }
            self.canvas.put(format_args!("</g>"));
        }
        let missing: usize = self.rows.iter().map(|row| row.bars.len()).sum::<usize>();
        let drawn = BARS_MAX - left;
        if missing > drawn {
            self.notes.push(format!("{} more bars are not drawn", missing - drawn));
        }
    }

    /// The durations, in the bars that have room for them.
    fn bar_labels(&mut self, row: &Row, count: usize, y: f64, height: f64, waited: bool) {
        for bar in &row.bars[..count] {
            let label = Unit::Ms.show(bar.ms);
            let (from, to) = (self.x(bar.begin_ms), self.x(sane(bar.begin_ms) + sane(bar.ms)));
            if height >= 13.0 && to - from >= text::width(&label, 11.0) + 10.0 {
                let colour = Colour::of(&bar.phase).number();
                let class = format!("wp-in wp-mid wp-t{colour}");
                if waited {
                    // Hatching would cross the letters.
                    let width = text::width(&label, 11.0) + 6.0;
                    self.canvas.put(format_args!(
                        "<rect class=\"wp-f{colour}\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\"/>",
                        N(f64::midpoint(from, to) - width / 2.0),
                        N(y + 1.5),
                        N(width),
                        N(height - 3.0)
                    ));
                }
                self.canvas.text(f64::midpoint(from, to), y + height / 2.0 + 4.0, &class, &label);
            }
        }
    }

    fn wait(&mut self, wait: &Wait, y: f64, height: f64, hatch: &str, thin: bool) {
        let x = self.x(wait.begin_ms);
        let width = (self.x(sane(wait.begin_ms) + sane(wait.ms)) - x).max(1.5);
        let on = wait.on.as_ref().map_or_else(String::new, |on| format!(" for {on}"));
        let title = format!("{} waited {}{on}, in {}", wait.who, Unit::Ms.show(wait.ms), wait.place);
        // Hatching needs room: in a thin row a dark line stands for it.
        let (class, fill, y, height) = if thin {
            ("wp-wait-thin", String::new(), y + height * 0.25, height * 0.5)
        } else {
            ("wp-wait", format!(" fill=\"url(#{hatch})\""), y, height)
        };
        self.canvas.put(format_args!(
            "<rect class=\"{class}\" data-wait=\"{}\"{fill} x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\"><title>{}</title></rect>",
            text::name(&wait.who),
            N(x),
            N(y),
            N(width),
            N(height),
            text::name(&title)
        ));
    }

    fn draw_lanes(&mut self, top: f64, hatch: &str) {
        for (n, lane) in std::mem::take(&mut self.lanes).into_iter().enumerate() {
            let y = top + n as f64 * 20.0;
            if n == 0 {
                self.canvas.text(self.left - 9.0, y + 12.0, "wp-end wp-soft", OTHERS);
            }
            for wait in lane {
                let (from, to) = (self.x(wait.begin_ms), self.x(sane(wait.begin_ms) + sane(wait.ms)));
                self.canvas.put(format_args!(
                    "<rect class=\"wp-bare\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"16\"/>",
                    N(from),
                    N(y),
                    N((to - from).max(1.5))
                ));
                self.wait(wait, y, 16.0, hatch, false);
            }
        }
    }

    fn curves(&mut self, top: f64, bottom: f64) {
        let mut samples: Vec<_> = self.of.samples.iter().take(SAMPLES_MAX).collect();
        if !samples.is_sorted_by(|a, b| a.t_ms <= b.t_ms) {
            samples.sort_by(|a, b| a.t_ms.total_cmp(&b.t_ms));
        }
        let most =
            samples.iter().map(|s| s.dirty_bytes.max(s.writeback_bytes)).max().unwrap_or(0).max(1) as f64;
        let ticks = Unit::Bytes.ticks(most, 3);
        let step = ticks.get(1).map_or(most, |tick| tick.0);
        // The axis ends at a tick, unless that would leave half of it empty.
        let ceiling = (most / step).ceil().max(1.0) * step;
        let y = |bytes: f64| bottom - bytes / ceiling * (bottom - top);
        let mut d = String::new();
        for (bytes, label) in Unit::Bytes.ticks(ceiling, 3) {
            let _ = write!(d, "M{} {}H{}", N(self.left), N(y(bytes)), N(self.right));
            self.canvas.text(self.left - 9.0, y(bytes) + 4.0, "wp-end wp-soft wp-small", &label);
        }
        self.canvas.path("wp-grid", &d);
        for (class, sum) in [("wp-dirty", false), ("wp-wback", true)] {
            let bytes = |sample: &&wardian_history::Sample| {
                let value = if sum { sample.writeback_bytes } else { sample.dirty_bytes };
                (self.x(sample.t_ms), y(value as f64))
            };
            let points = thin(&samples.iter().map(bytes).collect::<Vec<_>>());
            self.canvas.path(&format!("{class}-area"), &area(&points, bottom));
            self.canvas.path(class, &line(&points));
            // Between few samples nothing is known: they are shown themselves.
            if points.len() <= DOTS_MAX {
                for (x, y) in points {
                    self.canvas.put(format_args!(
                        "<circle class=\"{class}-dot\" cx=\"{}\" cy=\"{}\" r=\"2.2\"/>",
                        N(x),
                        N(y)
                    ));
                }
            }
        }
        let keys =
            [("wp-dirty", "Dirty pages of the host"), ("wp-wback", "Writeback")].map(|(class, name)| Key {
                sign: format!("<path class=\"{class}\" d=\"M0 5H14\"/>"),
                name: name.to_owned(),
            });
        legend(&mut self.canvas, &keys, self.left + 6.0, top - 21.0, self.right);
    }

    /// The marks whose labels fit, with the room that they need.
    fn mark_labels(&self) -> (Vec<(f64, Option<String>)>, f64) {
        let mut marks: Vec<_> =
            self.of.marks.iter().take(MARKS_MAX).filter(|mark| mark.t_ms.is_finite()).collect();
        marks.sort_by(|a, b| a.t_ms.total_cmp(&b.t_ms));
        let xs: Vec<f64> = marks.iter().map(|mark| self.x(mark.t_ms.min(self.length))).collect();
        let labelled = marks.iter().enumerate().map(|(n, mark)| {
            let next = xs.get(n + 1).copied().unwrap_or(self.right);
            let shown = text::fit(&mark.name, 11.0, next - xs[n] - 6.0);
            // A word of which only the begin fits is worse than none.
            let whole = shown.len() == mark.name.len() || shown.chars().count() >= 8;
            (xs[n], whole.then(|| spoken(&shown)))
        });
        let labelled: Vec<_> = labelled.collect();
        let height = if labelled.is_empty() { 0.0 } else { 20.0 };
        (labelled, height)
    }

    fn marks(&mut self, marks: &[(f64, Option<String>)], top: f64, bottom: f64) {
        let mut d = String::new();
        for (x, label) in marks {
            let _ = write!(d, "M{} {}V{}", N(*x), N(top + 2.0), N(bottom));
            if let Some(label) = label {
                self.canvas.text(x + 4.0, top + 11.0, "wp-soft wp-small", label);
            }
        }
        self.canvas.path("wp-mark", &d);
    }

    /// The picture in a few sentences.
    fn about(&self) -> String {
        let mut about = format!("{} rows over {}.", self.of.rows.len(), Unit::Ms.show(self.length));
        let bars = self.rows.iter().flat_map(|row| row.bars.iter().map(move |bar| (row, bar)));
        if let Some((row, bar)) = bars.max_by(|a, b| a.1.ms.total_cmp(&b.1.ms)) {
            let _ = write!(
                about,
                " The longest phase is {} of {}: {}.",
                spoken(&bar.phase),
                row.name,
                Unit::Ms.show(bar.ms)
            );
        }
        if let Some(wait) = self.of.waits.iter().max_by(|a, b| a.ms.total_cmp(&b.ms)) {
            let _ = write!(
                about,
                " {} waits; the longest is {} of {}.",
                self.of.waits.len(),
                Unit::Ms.show(wait.ms),
                wait.who
            );
        }
        if let Some(most) = self.of.samples.iter().map(|sample| sample.dirty_bytes).max() {
            let _ = write!(about, " At most {} were dirty.", Unit::Bytes.show(most as f64));
        }
        about
    }
}

/// Label of the lanes of waits that belong to no row.
const OTHERS: &str = "others";

/// The name of a phase as words.
fn spoken(phase: &str) -> String {
    text::clip(phase, 60).replace('_', " ")
}

#[cfg(test)]
mod tests;
