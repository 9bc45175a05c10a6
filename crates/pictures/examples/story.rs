//! Draws runs of the lab over time: JSON lines of runs (`wardian_history::Run`) on standard input, SVG on standard
//! output, a line for each mode.
//!
//! ```console
//! $ cargo run -p wardian-pictures --example story -- 'Waiting for 1 → 10 instances' < runs.jsonl > story.svg
//! ```

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use wardian_history::Run;
use wardian_pictures::{Line, Look, Point, Series, Unit, series};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    let mut lines: BTreeMap<String, Vec<Point>> = BTreeMap::new();
    let mut unit = Unit::default();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let run: Run = serde_json::from_str(line)?;
        if let Some(value) = run.value().filter(|_| run.complete) {
            unit = Unit::of(&run.headline);
            lines.entry(run.mode.clone()).or_default().push(Point { id: run.id, at_ms: run.begun_ms, value });
        }
    }
    let lines = lines.into_iter().rev().map(|(name, points)| Line { name, points }).collect();
    let title = std::env::args().nth(1).unwrap_or_else(|| "Runs over time".to_owned());
    let picture = series(&Series { unit, lines, ..Series::default() }, &Look::wide().titled(title));
    std::io::stdout().write_all(picture.as_bytes())?;
    Ok(())
}
