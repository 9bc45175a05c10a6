//! What is read of the store.

use super::{Store, row, told};
use crate::error::{Error, Result};
use crate::{Machine, Run, Timeline, bounds};
use rusqlite::{OptionalExtension as _, ToSql, params};
use serde::Serialize;
use std::io::Read as _;

/// Which runs are wanted. The default is all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// The whole name of the series, as [`Run::series`] returns it.
    pub series: Option<String>,
    /// The experiment.
    pub experiment: Option<String>,
    /// The mode.
    pub mode: Option<String>,
    /// The engine.
    pub engine: Option<String>,
    /// The kernel.
    pub kernel: Option<String>,
    /// Begun at this time or later, in ms since 1970.
    pub since_ms: Option<i64>,
    /// Begun before this time, in ms since 1970.
    pub until_ms: Option<i64>,
    /// Only runs that ended as planned.
    pub complete: bool,
    /// Only the newest so many.
    pub limit: Option<usize>,
}

/// A series of runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Series {
    /// Its name, as [`Run::series`] returns it.
    pub name: String,
    /// The host.
    pub host: String,
    /// The experiment.
    pub experiment: String,
    /// The engine.
    pub engine: String,
    /// The mode.
    pub mode: String,
    /// Name of the figure that is the series' value, in its newest run.
    pub headline: String,
    /// Number of runs.
    pub runs: u64,
    /// Number of those that ended as planned.
    pub complete: u64,
    /// When the first one began, in ms since 1970.
    pub oldest_ms: i64,
    /// When the last one began.
    pub newest_ms: i64,
}

/// A run in a graph of its series.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Point {
    /// Number of the run.
    pub id: i64,
    /// When it began, in ms since 1970.
    pub begun_ms: i64,
    /// Its headline figure; `None` of a half run that did not get so far.
    pub value: Option<f64>,
    /// Whether it ended as planned.
    pub complete: bool,
    /// Version of the engine.
    pub version: String,
    /// Git revision of wardian.
    pub revision: Option<String>,
    /// The machine.
    pub machine: Machine,
}

impl Store {
    /// The runs, oldest first, with their figures and without timelines.
    ///
    /// # Errors
    /// [`Error::Damaged`] and the like.
    pub fn list(&self, filter: &Filter) -> Result<Vec<Run>> {
        let (mut conditions, mut values) = (vec!["1"], Vec::<&dyn ToSql>::new());
        let texts = [
            ("series.name = ?", &filter.series),
            ("experiment = ?", &filter.experiment),
            ("mode = ?", &filter.mode),
            ("engine = ?", &filter.engine),
            ("kernel = ?", &filter.kernel),
        ];
        for (condition, value) in &texts {
            if let Some(value) = value {
                conditions.push(condition);
                values.push(value);
            }
        }
        for (condition, value) in [("begun_ms >= ?", &filter.since_ms), ("begun_ms < ?", &filter.until_ms)] {
            if let Some(value) = value {
                conditions.push(condition);
                values.push(value);
            }
        }
        if filter.complete {
            conditions.push("complete");
        }
        let limit = filter.limit.map_or(-1, |limit| i64::try_from(limit).unwrap_or(i64::MAX));
        values.push(&limit);
        let sql = format!(
            "SELECT {} FROM runs JOIN series ON series.id = series_id WHERE {}
             ORDER BY begun_ms DESC, runs.id DESC LIMIT ?",
            row::COLUMNS,
            conditions.join(" AND ")
        );
        let read = || -> rusqlite::Result<Vec<Run>> {
            let mut statement = self.db.prepare(&sql)?;
            let mut runs: Vec<Run> =
                statement.query_map(values.as_slice(), row::run)?.collect::<rusqlite::Result<_>>()?;
            runs.reverse();
            for run in &mut runs {
                self.figures(run)?;
            }
            Ok(runs)
        };
        // One state of the file: figures belong to the runs that were read.
        let transaction = self.db.unchecked_transaction().map_err(|error| told(&self.path, error))?;
        let runs = read().map_err(|error| told(&self.path, error));
        drop(transaction);
        runs
    }

    fn figures(&self, run: &mut Run) -> rusqlite::Result<()> {
        let mut statement = self.db.prepare_cached("SELECT name, value FROM figures WHERE run = ?1")?;
        let figures = statement.query_map(params![run.id], |row| Ok((row.get(0)?, row.get(1)?)))?;
        run.figures = figures.collect::<rusqlite::Result<_>>()?;
        Ok(())
    }

    /// One run, with its timeline; `None` if there is none of this number.
    ///
    /// # Errors
    /// [`Error::Damaged`] and the like.
    pub fn run(&self, id: i64) -> Result<Option<Run>> {
        let sql = format!("SELECT {} FROM runs WHERE id = ?1", row::COLUMNS);
        let read = || -> rusqlite::Result<_> {
            let Some(mut run) = self.db.query_row(&sql, params![id], row::run).optional()? else {
                return Ok(None);
            };
            self.figures(&mut run)?;
            let packed = "SELECT zlib FROM timelines WHERE run = ?1";
            let packed = self.db.query_row(packed, params![id], |row| row.get::<_, Vec<u8>>(0)).optional()?;
            Ok(Some((run, packed)))
        };
        let Some((mut run, packed)) = read().map_err(|error| told(&self.path, error))? else {
            return Ok(None);
        };
        run.timeline = packed.map(|packed| self.unpacked(id, &packed)).transpose()?;
        Ok(Some(run))
    }

    fn unpacked(&self, id: i64, packed: &[u8]) -> Result<Timeline> {
        let damaged = |why: String| Error::Damaged {
            path: self.path.clone(),
            why: format!("the timeline of run {id} cannot be read: {why}"),
        };
        let mut json = Vec::new();
        let unpacker = flate2::read::ZlibDecoder::new(packed);
        let most = bounds::TIMELINE as u64;
        unpacker.take(most + 1).read_to_end(&mut json).map_err(|error| damaged(error.to_string()))?;
        if json.len() as u64 > most {
            return Err(damaged("it is larger than any".to_owned()));
        }
        serde_json::from_slice(&json).map_err(|error| damaged(error.to_string()))
    }

    /// The series that exist, by name.
    ///
    /// # Errors
    /// [`Error::Damaged`] and the like.
    pub fn series(&self) -> Result<Vec<Series>> {
        // SQLite takes the bare columns from the row with the maximum.
        let sql =
            "SELECT name, host, experiment, engine, mode, headline, count(*), sum(complete), min(begun_ms),
                       max(begun_ms)
                   FROM runs JOIN series ON series.id = series_id GROUP BY series_id ORDER BY name";
        let read = || -> rusqlite::Result<Vec<Series>> {
            let mut statement = self.db.prepare(sql)?;
            let found = statement.query_map((), |row| {
                Ok(Series {
                    name: row.get(0)?,
                    host: row.get(1)?,
                    experiment: row.get(2)?,
                    engine: row.get(3)?,
                    mode: row.get(4)?,
                    headline: row.get(5)?,
                    runs: row.get::<_, i64>(6)?.cast_unsigned(),
                    complete: row.get::<_, i64>(7)?.cast_unsigned(),
                    oldest_ms: row.get(8)?,
                    newest_ms: row.get(9)?,
                })
            })?;
            found.collect()
        };
        read().map_err(|error| told(&self.path, error))
    }

    /// The points of a series, oldest first.
    ///
    /// # Errors
    /// [`Error::Damaged`] and the like.
    pub fn points(&self, series: &str) -> Result<Vec<Point>> {
        let sql = "SELECT runs.id, begun_ms, value, complete, version, revision, host, kernel, cpus, memory_bytes,
                       filesystem, mount_options, cgroups, load
                   FROM runs JOIN series ON series.id = series_id WHERE series.name = ?1 ORDER BY begun_ms, runs.id";
        let read = || -> rusqlite::Result<Vec<Point>> {
            let mut statement = self.db.prepare_cached(sql)?;
            let found = statement.query_map(params![series], |row| {
                Ok(Point {
                    id: row.get(0)?,
                    begun_ms: row.get(1)?,
                    value: row.get(2)?,
                    complete: row.get(3)?,
                    version: row.get(4)?,
                    revision: row.get(5)?,
                    machine: Machine {
                        host: row.get(6)?,
                        kernel: row.get(7)?,
                        cpus: row.get::<_, i64>(8)?.cast_unsigned(),
                        memory_bytes: row.get::<_, i64>(9)?.cast_unsigned(),
                        filesystem: row.get(10)?,
                        mount_options: row.get(11)?,
                        cgroups: row.get(12)?,
                        load: row.get(13)?,
                    },
                })
            })?;
            found.collect()
        };
        read().map_err(|error| told(&self.path, error))
    }

    /// The highest number of a run that was ever given; 0 without runs.
    ///
    /// # Errors
    /// [`Error::Damaged`] and the like.
    pub fn newest(&self) -> Result<i64> {
        let sql = "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'runs'";
        self.db.query_row(sql, (), |row| row.get(0)).map_err(|error| told(&self.path, error))
    }

    /// The series of runs with a higher number than this one.
    ///
    /// # Errors
    /// [`Error::Damaged`] and the like.
    pub fn series_since(&self, id: i64) -> Result<Vec<String>> {
        let sql =
            "SELECT DISTINCT series.name FROM runs JOIN series ON series.id = series_id WHERE runs.id > ?1
                   ORDER BY series.name";
        let read = || -> rusqlite::Result<Vec<String>> {
            self.db.prepare(sql)?.query_map(params![id], |row| row.get(0))?.collect()
        };
        read().map_err(|error| told(&self.path, error))
    }
}
