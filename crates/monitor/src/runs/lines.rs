//! Runs in memory, and in a file of JSON lines.

use super::{Error, Points, Runs, Series};
use parking_lot::{Mutex, RwLock};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use wardian_history::{Point, Run};

/// The most bytes of a file of runs. All of them are kept in memory.
const MOST: u64 = 256 << 20;

/// Runs in memory. Those of a file are read again when the file has changed.
#[derive(Debug, Default)]
pub struct Lines {
    file: Option<PathBuf>,
    known: RwLock<Known>,
    /// Points with their steps, of this version.
    points: Mutex<(u64, BTreeMap<String, Points>)>,
}

#[derive(Debug, Default)]
struct Known {
    runs: Vec<Run>,
    version: u64,
    /// Length and time of the file when it was read.
    stamp: Option<(u64, SystemTime)>,
}

impl Lines {
    /// The runs of a file with a [`Run`] as JSON in each line. It is read at the first call; it need not exist before.
    pub fn of_file(path: &Path) -> Self {
        Self { file: Some(path.to_owned()), ..Self::default() }
    }

    /// These runs. One without an id gets its place in the list, from 1.
    pub fn of(runs: Vec<Run>) -> Self {
        let lines = Self::default();
        lines.set(runs, None);
        lines
    }

    fn set(&self, mut runs: Vec<Run>, stamp: Option<(u64, SystemTime)>) {
        for (at, run) in runs.iter_mut().enumerate().filter(|(_, run)| run.id == 0) {
            run.id = i64::try_from(at + 1).unwrap_or(i64::MAX);
        }
        runs.sort_by_key(|run| (run.begun_ms, run.id));
        let mut known = self.known.write();
        let version = known.version + 1;
        *known = Known { runs, version, stamp };
    }

    /// Reads the file if it is another one than before.
    fn refresh(&self) -> Result<(), Error> {
        let Some(path) = &self.file else { return Ok(()) };
        let failed = |error: std::io::Error| Error(format!("{}: {error}", path.display()));
        let about = match std::fs::metadata(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            about => about.map_err(failed)?,
        };
        let stamp = (about.len(), about.modified().map_err(failed)?);
        if self.known.read().stamp == Some(stamp) {
            return Ok(());
        }
        if !about.is_file() || about.len() > MOST {
            let text = format!("{}: a file of at most {} MB is read", path.display(), MOST >> 20);
            return Err(Error(text));
        }
        let text = std::fs::read_to_string(path).map_err(failed)?;
        self.set(parse(&text).map_err(|error| Error(format!("{}: {error}", path.display())))?, Some(stamp));
        Ok(())
    }
}

fn point(run: &Run) -> Point {
    Point {
        id: run.id,
        begun_ms: run.begun_ms,
        value: run.value(),
        complete: run.complete,
        version: run.version.clone(),
        revision: run.revision.clone(),
        machine: run.machine.clone(),
    }
}

fn parse(text: &str) -> Result<Vec<Run>, String> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(at, line)| serde_json::from_str(line).map_err(|error| format!("line {}: {error}", at + 1)))
        .collect()
}

impl Runs for Lines {
    fn version(&self) -> Result<u64, Error> {
        self.refresh()?;
        Ok(self.known.read().version)
    }

    fn series(&self) -> Result<Vec<Series>, Error> {
        self.refresh()?;
        let mut all = BTreeMap::<String, Series>::new();
        for run in &self.known.read().runs {
            let series = all.entry(run.series()).or_insert_with(|| Series::of(run));
            series.runs += 1;
            series.last_ms = run.begun_ms;
            series.headline.clone_from(&run.headline);
        }
        Ok(all.into_values().collect())
    }

    fn points(&self, series: &str) -> Result<Option<Points>, Error> {
        self.refresh()?;
        let known = self.known.read();
        let mut steps = self.points.lock();
        let (version, points) = &mut *steps;
        if *version != known.version {
            (*version, *points) = (known.version, BTreeMap::new());
        }
        if let Some(points) = points.get(series) {
            return Ok(Some(points.clone()));
        }
        let runs: Vec<Point> = known.runs.iter().filter(|run| run.series() == series).map(point).collect();
        if runs.is_empty() {
            return Ok(None);
        }
        let found = Points::of(&runs);
        points.insert(series.to_owned(), found.clone());
        Ok(Some(found))
    }

    fn run(&self, id: i64) -> Result<Option<Run>, Error> {
        self.refresh()?;
        Ok(self.known.read().runs.iter().find(|run| run.id == id).cloned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(at: i64, mode: &str, value: f64) -> String {
        let run = Run {
            begun_ms: at,
            experiment: "scale".into(),
            mode: mode.into(),
            headline: "waiting_ms".into(),
            figures: [("waiting_ms".to_owned(), value)].into(),
            complete: at != 2,
            ..Run::default()
        };
        serde_json::to_string(&run).unwrap() + "\n"
    }

    #[test]
    fn a_file_is_read_again_when_it_has_changed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("runs.jsonl");
        let runs = Lines::of_file(&path);
        assert_eq!((runs.version(), runs.series()), (Ok(0), Ok(vec![])));
        std::fs::write(&path, line(2, "oci", 5.0) + "\n" + &line(1, "oci", 7.0)).unwrap();
        let series = runs.series().unwrap();
        assert_eq!((series.len(), series[0].runs, series[0].last_ms), (1, 2, 2));
        let points = runs.points(&series[0].key).unwrap().unwrap();
        assert_eq!((points.at, points.broken), (vec![1, 2], vec![1]));
        assert_eq!(points.value, [Some(7.0), Some(5.0)]);
        assert_eq!(runs.run(points.id[0]).unwrap().unwrap().value(), Some(7.0));
        assert_eq!((runs.run(9), runs.points("none")), (Ok(None), Ok(None)));
        let version = runs.version().unwrap();
        std::fs::write(&path, line(1, "oci", 7.0) + "{\n").unwrap();
        let error = runs.version().unwrap_err().to_string();
        assert!(error.contains("runs.jsonl: line 2: "), "{error}");
        std::fs::write(&path, line(1, "stream", 7.0)).unwrap();
        assert!(runs.version().unwrap() > version);
    }
}
