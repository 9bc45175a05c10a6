//! Values of many runs over time.

use crate::curve::{median, running_median, thin};
use crate::look::Look;
use crate::palette::Colour;
use crate::scale::{Unit, bounded, date_ticks, moment};
use crate::svg::{Canvas, Key, N, empty, legend, line};
use crate::text;
use std::collections::BTreeSet;
use std::fmt::Write as _;

/// Limits of what is drawn of one series.
const DOTS_MAX: usize = 1_800;
const LINES_MAX: usize = 12;
const STEPS_MAX: usize = 60;
/// Height of the plot in px.
const PLOT: f64 = 300.0;

/// What a picture of a series shows.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Series {
    /// What the values are.
    pub unit: Unit,
    /// The axis of the values.
    pub axis: Axis,
    /// The lines.
    pub lines: Vec<Line>,
    /// Where a line changed.
    pub steps: Vec<Step>,
}

/// The axis of the values.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Axis {
    /// It begins at 0.
    #[default]
    Linear,
    /// Equal distances are equal ratios. Values that are not positive are drawn at its lower end.
    Log,
}

/// A line: runs that can be compared with each other.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Line {
    /// Its name: `stream`, `oci`.
    pub name: String,
    /// Its runs, in any order.
    pub points: Vec<Point>,
}

/// A run.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Point {
    /// Its number, which becomes `data-id` of its dot.
    pub id: i64,
    /// When it began, in ms since 1970.
    pub at_ms: i64,
    /// Its value.
    pub value: f64,
}

/// A step of a line.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Step {
    /// Name of the line.
    pub line: String,
    /// The first run after it; `data-id` of the mark.
    pub id: i64,
    /// When that run began, in ms since 1970.
    pub at_ms: i64,
    /// Level before.
    pub before: f64,
    /// Level after.
    pub after: f64,
    /// What changed: `kernel 6.1 → 6.12`; may be empty.
    pub what: String,
}

impl Step {
    /// The change, as a percentage or, if the value has at least doubled or halved, a factor.
    pub fn size(&self) -> String {
        let ratio = self.after / self.before;
        match ratio {
            r if !r.is_finite() || r <= 0.0 => "step".to_owned(),
            r if r >= 9.95 => format!("× {r:.0}"),
            r if r >= 2.0 => format!("× {r:.1}"),
            r if r <= 0.5 => format!("÷ {:.1}", 1.0 / r),
            r => format!("{:+.0} %", (r - 1.0) * 100.0),
        }
    }
}

/// Draws values over time: a dot for each run, the running median of each line between its steps, and the steps.
///
/// Of more than 1,800 runs those are drawn that are the largest, the smallest or a typical one of their time; the
/// picture stays below 500 kB. A dot has the run's number as `data-id`, a step also its place in [`Series::steps`] as
/// `data-step`.
pub fn series(of: &Series, look: &Look) -> String {
    let title = look.title().unwrap_or("Runs over time");
    let lines: Vec<Sorted> = of.lines.iter().take(LINES_MAX).map(Sorted::of).collect();
    if lines.iter().all(|line| line.points.is_empty()) {
        return empty(look, title, "There are no runs yet.");
    }
    Picture::new(of, lines, look).draw(title)
}

/// A line whose points can be drawn, by time.
struct Sorted<'a> {
    name: &'a str,
    points: Vec<Point>,
}

impl<'a> Sorted<'a> {
    fn of(line: &'a Line) -> Self {
        let mut points: Vec<Point> =
            line.points.iter().copied().filter(|point| point.value.is_finite()).collect();
        points.iter_mut().for_each(|point| point.at_ms = bounded(point.at_ms));
        points.sort_by_key(|point| point.at_ms);
        Self { name: &line.name, points }
    }

    /// The runs between the steps of this line, each with the running median.
    fn parts(&self, steps: &[Step]) -> Vec<Vec<(i64, f64)>> {
        let mut cuts: Vec<i64> =
            steps.iter().filter(|step| step.line == self.name).map(|step| bounded(step.at_ms)).collect();
        cuts.sort_unstable();
        let mut parts = Vec::new();
        let mut rest = &self.points[..];
        for cut in cuts.into_iter().map(Some).chain([None]) {
            let length = cut.map_or(rest.len(), |cut| rest.partition_point(|point| point.at_ms < cut));
            let (part, after) = rest.split_at(length);
            rest = after;
            let values: Vec<f64> = part.iter().map(|point| point.value).collect();
            let window = (values.len() / 8).clamp(5, 101) | 1;
            let medians = running_median(&values, window);
            parts.push(part.iter().map(|point| point.at_ms).zip(medians).collect());
        }
        parts.retain(|part: &Vec<_>| !part.is_empty());
        parts
    }

    /// At most about `most` runs. Of each stretch of time the extremes and a median one.
    fn some(&self, most: usize) -> Vec<Point> {
        if self.points.len() <= most {
            return self.points.clone();
        }
        let (Some(first), Some(last)) = (self.points.first(), self.points.last()) else { return Vec::new() };
        let (begin, span) = (first.at_ms, last.at_ms.saturating_sub(first.at_ms).max(1) as f64);
        let stretches = (most / 3).max(1) as f64;
        let stretch = |point: &Point| ((point.at_ms - begin) as f64 / span * (stretches - 0.001)) as usize;
        let mut some = Vec::new();
        for part in self.points.chunk_by(|a, b| stretch(a) == stretch(b)) {
            let mut order: Vec<usize> = (0..part.len()).collect();
            order.sort_by(|a, b| part[*a].value.total_cmp(&part[*b].value));
            let chosen: BTreeSet<usize> = [0, order.len() / 2, order.len() - 1].map(|n| order[n]).into();
            some.extend(chosen.into_iter().map(|n| part[n]));
        }
        some
    }
}

struct Picture<'a> {
    of: &'a Series,
    look: &'a Look,
    lines: Vec<Sorted<'a>>,
    colours: Vec<Colour>,
    canvas: Canvas,
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
    /// First and last moment.
    time: (i64, i64),
    /// Lower and upper end of the axis.
    range: (f64, f64),
    ticks: Vec<(f64, String)>,
}

impl<'a> Picture<'a> {
    fn new(of: &'a Series, lines: Vec<Sorted<'a>>, look: &'a Look) -> Self {
        let points = || lines.iter().flat_map(|line| &line.points);
        let (first, last) = (points().map(|p| p.at_ms).min(), points().map(|p| p.at_ms).max());
        let mut time = (first.unwrap_or_default(), last.unwrap_or_default());
        if time.1 - time.0 < 60_000 {
            time = (time.0 - 30_000, time.1 + 30_000);
        }
        let most = points().map(|point| point.value).fold(0.0, f64::max);
        let least =
            points().map(|point| point.value).filter(|value| *value > 0.0).fold(f64::INFINITY, f64::min);
        let (range, ticks) = match of.axis {
            Axis::Log if most > 0.0 => {
                let range = (least / 1.15, most * 1.15);
                (range, of.unit.log_ticks(range.0, range.1))
            }
            Axis::Linear | Axis::Log => {
                let most = if most > 0.0 { most } else { 1.0 };
                let ticks = of.unit.ticks(most * 1.05, 5);
                let step = ticks.get(1).map_or(most, |tick| tick.0);
                let ceiling = ((most * 1.02 / step).ceil() * step).max(step);
                ((0.0, ceiling), of.unit.ticks(ceiling, 5))
            }
        };
        let widest = ticks.iter().map(|(_, label)| text::width(label, 11.0)).fold(0.0, f64::max);
        let colours = Colour::of_all(lines.iter().map(|line| line.name));
        Self {
            of,
            look,
            lines,
            colours,
            canvas: Canvas::default(),
            left: look.padding() + widest + 10.0,
            right: look.width() - look.padding() - 8.0,
            top: 0.0,
            bottom: 0.0,
            time,
            range,
            ticks,
        }
    }

    fn x(&self, at_ms: i64) -> f64 {
        let share = (at_ms - self.time.0) as f64 / (self.time.1 - self.time.0).max(1) as f64;
        // The first and the last dot are whole.
        self.left + 6.0 + share * (self.right - self.left - 12.0)
    }

    fn y(&self, value: f64) -> f64 {
        let (low, high) = self.range;
        let share = match self.of.axis {
            Axis::Log if low > 0.0 => (value.max(low) / low).ln() / (high / low).ln(),
            Axis::Linear | Axis::Log => (value - low) / (high - low),
        };
        self.bottom - share.clamp(-0.02, 1.0) * (self.bottom - self.top)
    }

    fn draw(mut self, title: &str) -> String {
        let (look, pad) = (self.look, self.look.padding());
        let mut y = self.canvas.head(look);
        let keys: Vec<Key> = self
            .lines
            .iter()
            .zip(&self.colours)
            .enumerate()
            .map(|(n, (line, colour))| key(n, line, *colour, self.of))
            .collect();
        y = legend(&mut self.canvas, &keys, pad, y, self.right) + 4.0;
        let flags = self.flags();
        let levels = flags.iter().map(|flag| flag.level + 1).max().unwrap_or(0);
        self.top = y + 8.0 + levels as f64 * FLAG;
        self.bottom = self.top + if look.is_narrow() { PLOT * 0.75 } else { PLOT };
        self.grid();
        self.draw_lines();
        self.draw_steps(&flags, y);
        let mut end = self.bottom + 22.0;
        let left_out = self.of.lines.len().saturating_sub(LINES_MAX);
        if left_out > 0 {
            end += 14.0;
            self.canvas.text(pad, end, "wp-soft wp-small", &format!("{left_out} more lines are not drawn."));
        }
        let about = self.about();
        self.canvas.finish(look, end + pad, title, &about, "")
    }

    fn grid(&mut self) {
        let mut d = String::new();
        for (value, label) in std::mem::take(&mut self.ticks) {
            let y = self.y(value);
            let _ = write!(d, "M{} {}H{}", N(self.left), N(y), N(self.right));
            self.canvas.text(self.left - 9.0, y + 4.0, "wp-end wp-soft wp-small", &label);
        }
        let mut free = f64::MIN;
        for (at, label) in date_ticks(self.time.0, self.time.1, if self.look.is_narrow() { 4 } else { 9 }) {
            let x = self.x(at);
            let _ = write!(d, "M{} {}v5", N(x), N(self.bottom));
            let half = text::width(&label, 11.0) / 2.0;
            if x - half >= free && x - half >= 0.0 && x + half <= self.look.width() {
                self.canvas.text(x, self.bottom + 18.0, "wp-mid wp-soft wp-small", &label);
                free = x + half + 8.0;
            }
        }
        self.canvas.path("wp-grid", &d);
        let axis = format!("M{} {}H{}", N(self.left), N(self.bottom), N(self.right));
        self.canvas.path("wp-axis", &axis);
    }

    fn draw_lines(&mut self) {
        let drawn = self.lines.iter().filter(|line| !line.points.is_empty()).count().max(1);
        let all: usize = self.lines.iter().map(|line| line.points.len()).sum();
        let radius = if all > 150 { 2.3 } else { 3.2 };
        for (n, line) in std::mem::take(&mut self.lines).iter().enumerate() {
            let colour = self.colours[n].number();
            let name = text::name(&text::clip(line.name, 60));
            self.canvas.put(format_args!("<g data-line=\"{name}\" class=\"wp-f{colour}\">"));
            for point in line.some(DOTS_MAX / drawn) {
                let (x, y) = (self.x(point.at_ms), self.y(point.value));
                self.canvas.put(format_args!(
                    "{} data-id=\"{}\"><title>{name} {}: {}</title></path>",
                    dot(n, x, y, radius),
                    point.id,
                    moment(point.at_ms),
                    self.of.unit.show(point.value)
                ));
            }
            self.canvas.put(format_args!("</g>"));
            for part in line.parts(&self.of.steps) {
                let points: Vec<(f64, f64)> =
                    part.iter().map(|(at, value)| (self.x(*at), self.y(*value))).collect();
                self.canvas.path(&format!("wp-median wp-s{colour}"), &self::line(&thin(&points)));
            }
            self.lines.push(Sorted { name: line.name, points: line.points.clone() });
        }
    }

    /// The steps with their labels, in as many levels as are needed for none to overlap.
    fn flags(&self) -> Vec<Flag> {
        let mut flags: Vec<Flag> = Vec::new();
        let several = self.lines.len() > 1;
        for (n, step) in self.of.steps.iter().enumerate().take(STEPS_MAX) {
            let at = bounded(step.at_ms);
            if !(self.time.0..=self.time.1).contains(&at) {
                continue;
            }
            let line = text::clip(&step.line, 16);
            let label =
                if several && !line.is_empty() { format!("{line} {}", step.size()) } else { step.size() };
            // Bold letters are wider.
            let width = text::width(&label, 11.0) * 1.1 + 14.0;
            let x = self.x(at);
            let left =
                (x - width / 2.0).clamp(self.look.padding(), (self.right - width).max(self.look.padding()));
            let overlaps = |level: usize| {
                flags
                    .iter()
                    .any(|f| f.level == level && left < f.left + f.width + 4.0 && f.left < left + width + 4.0)
            };
            let level = (0..STEPS_MAX).find(|level| !overlaps(*level)).unwrap_or(0);
            flags.push(Flag { step: n, x, left, width, level, label });
        }
        flags
    }

    fn draw_steps(&mut self, flags: &[Flag], top: f64) {
        for flag in flags {
            let step = &self.of.steps[flag.step];
            let y = top + flag.level as f64 * FLAG;
            let what = if step.what.is_empty() { String::new() } else { format!("; {}", step.what) };
            let title = format!(
                "{} {}: from {} to {} ({}){what}",
                text::clip(&step.line, 60),
                moment(step.at_ms),
                self.of.unit.show(step.before),
                self.of.unit.show(step.after),
                step.size()
            );
            self.canvas.put(format_args!(
                "<g data-step=\"{}\" data-id=\"{}\"><title>{}</title><path class=\"wp-step\" d=\"M{} {}V{}\"/>\
                 <rect class=\"wp-hit\" x=\"{}\" y=\"{}\" width=\"12\" height=\"{}\"/>\
                 <rect class=\"wp-flag\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"17\" rx=\"8.5\"/>",
                flag.step,
                step.id,
                text::name(&title),
                N(flag.x),
                N(y + 17.0),
                N(self.bottom),
                N(flag.x - 6.0),
                N(y),
                N(self.bottom - y),
                N(flag.left),
                N(y),
                N(flag.width)
            ));
            self.canvas.text(flag.left + flag.width / 2.0, y + 12.4, "wp-mid wp-flag-text", &flag.label);
            self.canvas.put(format_args!("</g>"));
        }
    }

    fn about(&self) -> String {
        let mut about = String::new();
        for line in &self.lines {
            let values: Vec<f64> = line.points.iter().map(|point| point.value).collect();
            let _ = write!(
                about,
                "{}: {} runs, median {}. ",
                line.name,
                values.len(),
                self.of.unit.show(median(&values))
            );
        }
        for step in self.of.steps.iter().take(STEPS_MAX) {
            let _ = write!(about, "Step of {} on {}: {}. ", step.line, moment(step.at_ms), step.size());
        }
        about
    }
}

/// Height of a level of labels.
const FLAG: f64 = 21.0;

struct Flag {
    step: usize,
    x: f64,
    left: f64,
    width: f64,
    level: usize,
    label: String,
}

/// The begin of a dot's element. Lines differ also in the shape of their dots.
fn dot(line: usize, x: f64, y: f64, r: f64) -> String {
    let (x, y, d) = (N(x), N(y), N(2.0 * r));
    let shape = match line % 3 {
        0 => format!("m-{r} 0a{r} {r} 0 1 0 {d} 0a{r} {r} 0 1 0 -{d} 0z", r = N(r)),
        1 => format!("m-{r} -{r}h{d}v{d}h-{d}z", r = N(r * 0.9), d = N(r * 1.8)),
        _ => format!("m0 -{r}l{r} {r}l-{r} {r}l-{r} -{r}z", r = N(r * 1.25)),
    };
    format!("<path class=\"wp-dot\" d=\"M{x} {y}{shape}\"")
}

fn key(n: usize, line: &Sorted<'_>, colour: Colour, of: &Series) -> Key {
    let last = line.parts(&of.steps).last().and_then(|part| part.last().map(|(_, value)| *value));
    let now = last.map_or_else(|| ": no runs".to_owned(), |value| format!(": {}", of.unit.show(value)));
    let colour = colour.number();
    Key {
        sign: format!(
            "<path class=\"wp-median wp-s{colour}\" d=\"M0 5H14\"/><g class=\"wp-f{colour}\">{}/></g>",
            dot(n, 7.0, 5.0, 3.4).replace("wp-dot", "wp-sign")
        ),
        name: text::clip(line.name, 40).into_owned() + &now,
    }
}

#[cfg(test)]
mod tests;
