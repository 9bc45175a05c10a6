//! The store of runs that the lab writes.

use super::{Error, Points, Runs, Series};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use wardian_history::{Run, Store};

/// The store of runs at a path. It need not exist yet: it is opened at the first call after it does.
#[derive(Debug)]
pub struct Stored {
    path: PathBuf,
    open: Mutex<Option<Open>>,
}

#[derive(Debug)]
struct Open {
    store: Store,
    /// The store's generation when `known` was read.
    generation: i64,
    /// Points with their steps, by series. To search for steps takes longer than to read points.
    known: HashMap<String, Points>,
}

/// Returns the sentence of an error, with its causes.
fn told(error: &wardian_history::Error) -> Error {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(why) = cause {
        let why_text = why.to_string();
        if !text.contains(&why_text) {
            text += &format!(": {why_text}");
        }
        cause = why.source();
    }
    Error(text)
}

impl Stored {
    /// The store at this path.
    pub fn at(path: &Path) -> Self {
        Self { path: path.to_owned(), open: Mutex::default() }
    }

    /// Reads something of the store; `None`: there is none.
    fn read<T>(
        &self,
        read: impl FnOnce(&mut Open) -> wardian_history::Result<T>,
    ) -> Result<Option<T>, Error> {
        let mut open = self.open.lock();
        let look = || {
            if open.is_none() {
                let Some(store) = Store::readable(&self.path)? else { return Ok(None) };
                *open = Some(Open { generation: store.generation()?, store, known: HashMap::new() });
            }
            let Some(open) = open.as_mut() else { return Ok(None) };
            let generation = open.store.generation()?;
            if generation != open.generation {
                (open.generation, open.known) = (generation, HashMap::new());
            }
            read(open).map(Some)
        };
        let looked = look().map_err(|error| told(&error));
        if looked.is_err() {
            // The file may be replaced by another one; the next call opens it again.
            *open = None;
        }
        looked
    }
}

impl Runs for Stored {
    fn version(&self) -> Result<u64, Error> {
        // The generation is of this connection, which may be another one than before.
        let known = self.read(|open| Ok((open.store.newest()?, open.generation)))?;
        Ok(known
            .map_or(0, |(newest, generation)| (newest.cast_unsigned() << 20) ^ generation.cast_unsigned()))
    }

    fn series(&self) -> Result<Vec<Series>, Error> {
        let all = self.read(|open| open.store.series())?.unwrap_or_default();
        Ok(all.into_iter().map(of_store).collect())
    }

    fn points(&self, series: &str) -> Result<Option<Points>, Error> {
        let points = self.read(|open| {
            if let Some(known) = open.known.get(series) {
                return Ok(known.clone());
            }
            let points = Points::of(&open.store.points(series)?);
            // Anybody may ask for a series that does not exist.
            if !points.id.is_empty() {
                open.known.insert(series.to_owned(), points.clone());
            }
            Ok(points)
        });
        Ok(points?.filter(|points| !points.id.is_empty()))
    }

    fn run(&self, id: i64) -> Result<Option<Run>, Error> {
        self.read(|open| open.store.run(id)).map(Option::flatten)
    }
}

/// Converts a series. Its parameters are what its name has beside the other fields ([`Run::series`]).
fn of_store(series: wardian_history::Series) -> Series {
    let before = [&series.host, &series.experiment, &series.engine, &series.mode];
    let before: usize = before.into_iter().map(|field| field.len() + 1).sum();
    let parameters = series.name.get(before..).unwrap_or_default();
    Series {
        graph: format!("{}|{}|{parameters}", series.host, series.experiment),
        parameters: parameters.to_owned(),
        key: series.name,
        host: series.host,
        experiment: series.experiment,
        engine: series.engine,
        mode: series.mode,
        headline: series.headline,
        runs: usize::try_from(series.runs).unwrap_or(usize::MAX),
        last_ms: series.newest_ms,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(at: i64, value: f64, kernel: &str) -> Run {
        let mut run = Run {
            begun_ms: at,
            experiment: "scale".into(),
            mode: "stream".into(),
            engine: "wardian".into(),
            version: "1".into(),
            parameters: [("to".to_owned(), "3".to_owned()), ("code-mb".to_owned(), "1".to_owned())].into(),
            headline: "waiting_ms".into(),
            figures: [("waiting_ms".to_owned(), value)].into(),
            complete: true,
            ..Run::default()
        };
        run.machine.host = "h".into();
        run.machine.kernel = kernel.into();
        run
    }

    /// A directory in which only root may change something: the store takes no other.
    fn folder() -> tempfile::TempDir {
        tempfile::Builder::new()
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o700))
            .tempdir()
            .unwrap()
    }

    #[test]
    fn what_the_lab_writes_is_shown_with_its_steps() {
        wardian_needs::needs!(Root);
        let folder = folder();
        let path = folder.path().join("history.sqlite");
        let stored = Stored::at(&path);
        assert_eq!((stored.version(), stored.series(), stored.points("x")), (Ok(0), Ok(vec![]), Ok(None)));
        let mut store = Store::open(&path).unwrap();
        for at in 0..40 {
            let (level, kernel) = if at < 20 { (100.0, "6.1") } else { (200.0, "6.12") };
            store.append(&run(at, level + (at * 7 % 5) as f64, kernel)).unwrap();
        }
        let version = stored.version().unwrap();
        let series = stored.series().unwrap();
        assert_eq!((series.len(), series[0].runs, series[0].last_ms), (1, 40, 39));
        assert_eq!(series[0].parameters, "code-mb=1 to=3");
        assert_eq!(series[0].graph, Series::of(&run(1, 1.0, "")).graph);
        let points = stored.points(&series[0].key).unwrap().unwrap();
        assert_eq!((points.id.len(), points.steps.len()), (40, 1));
        let step = &points.steps[0];
        assert_eq!(
            (step.at, step.changed[0].what.as_str(), step.changed[0].to.as_str()),
            (20, "kernel", "6.12")
        );
        assert_eq!(stored.run(step.id).unwrap().unwrap().machine.kernel, "6.12");
        store.append(&run(40, 200.0, "6.12")).unwrap();
        assert_ne!(stored.version().unwrap(), version);
        assert_eq!(stored.points(&series[0].key).unwrap().unwrap().id.len(), 41);
        assert_eq!((stored.points("none"), stored.run(999)), (Ok(None), Ok(None)));
    }

    #[test]
    fn a_damaged_history_is_told() {
        wardian_needs::needs!(Root);
        let folder = folder();
        let path = folder.path().join("history.sqlite");
        std::fs::write(&path, "no database at all, and longer than its header would be").unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let told = Stored::at(&path).version().unwrap_err().to_string();
        assert!(told.contains("history.sqlite"), "{told}");
    }
}
