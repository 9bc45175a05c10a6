//! Series over time, as a picture.

use super::words;
use wardian_history::steps;
use wardian_history::{Point, Series};
use wardian_pictures::{self as pictures, Look, Unit};

/// The series of a picture.
#[derive(Debug, Default)]
pub struct Graph(Vec<(Series, pictures::Line, Vec<pictures::Step>)>);

impl Graph {
    /// Adds a series, with its runs and steps.
    pub fn add(&mut self, series: &Series, points: &[Point], found: &[steps::Step]) {
        let values = points.iter().filter(|point| point.complete).filter_map(|point| {
            Some(pictures::Point { id: point.id, at_ms: point.begun_ms, value: point.value? })
        });
        let line = pictures::Line { name: String::new(), points: values.collect() };
        let step = |step: &steps::Step| pictures::Step {
            line: String::new(),
            id: step.run,
            at_ms: step.begun_ms,
            before: step.median_before,
            after: step.median_after,
            what: words::changed(step),
        };
        self.0.push((series.clone(), line, found.iter().map(step).collect()));
    }

    /// Draws the series whose figure is that of the newest one: others have another axis.
    pub fn svg(self) -> String {
        let newest = self.0.iter().max_by_key(|(series, ..)| series.newest_ms);
        let headline = newest.map(|(series, ..)| series.headline.clone()).unwrap_or_default();
        let shown: Vec<_> = self.0.into_iter().filter(|(series, ..)| series.headline == headline).collect();
        // The shortest name that tells the lines apart.
        let differ =
            |of: &dyn Fn(&Series) -> &str| shown.iter().any(|(series, ..)| of(series) != of(&shown[0].0));
        let (by_mode, by_engine) = (differ(&|series| &series.mode), differ(&|series| &series.engine));
        let short = |series: &Series| {
            let parts = [(by_mode, &series.mode), (by_engine, &series.engine)];
            let named: Vec<&str> =
                parts.into_iter().filter(|(is, _)| *is).map(|(_, part)| part.as_str()).collect();
            if named.is_empty() { words::short(&series.experiment, &series.mode) } else { named.join(" ") }
        };
        let mut names: Vec<String> = shown.iter().map(|(series, ..)| short(series)).collect();
        let mut sorted = names.clone();
        sorted.sort();
        sorted.dedup();
        if sorted.len() < names.len() {
            names = shown.iter().map(|(series, ..)| series.name.clone()).collect();
        }
        let mut of = pictures::Series { unit: Unit::of(&headline), ..pictures::Series::default() };
        for ((_, mut line, mut steps), name) in shown.into_iter().zip(names) {
            steps.iter_mut().for_each(|step| step.line.clone_from(&name));
            line.name = name;
            of.lines.push(line);
            of.steps.append(&mut steps);
        }
        let title = words::headline(&headline);
        pictures::series(&of, &Look::wide().titled(title))
    }
}
