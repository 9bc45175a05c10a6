//! Which steps were reported already, so that each is reported once, however often a series is looked at.

use super::{Store, told};
use crate::error::Result;
use crate::steps::{self, Step};
use rusqlite::{OptionalExtension as _, params};
use std::time::{SystemTime, UNIX_EPOCH};

/// The place of a step moves by a few runs as more of them come.
const NEAR: usize = 5;

impl Store {
    /// Returns the steps of a series that [`Store::remember`] was not told of. The first look at a series returns none,
    /// because what it finds is old, and remembers it.
    ///
    /// # Errors
    /// [`crate::Error::Full`], [`crate::Error::Busy`] and the like.
    pub fn new_steps(&mut self, series: &str) -> Result<Vec<Step>> {
        let points = self.points(series)?;
        let found = steps::find(&points);
        let (watched, reported) = self.reported(series)?;
        if !watched {
            found.iter().try_for_each(|step| self.remember(series, step))?;
            let path = self.path.clone();
            let watch = "UPDATE series SET watched = 1 WHERE name = ?1";
            self.db.execute(watch, params![series]).map_err(|error| told(&path, error))?;
            return Ok(Vec::new());
        }
        // Places in the series, among the runs that count, as the steps' are.
        let ids: Vec<i64> =
            points.iter().filter(|point| steps::counts(point)).map(|point| point.id).collect();
        let is_known = |step: &Step| {
            reported.iter().any(|(run, ratio)| {
                let place = ids.iter().position(|id| id == run);
                let near = place.is_some_and(|place| place.abs_diff(step.index) <= NEAR);
                near && (*ratio > 1.0) == (step.ratio.value > 1.0)
            })
        };
        Ok(found.into_iter().filter(|step| !is_known(step)).collect())
    }

    /// Notes that a step was reported.
    ///
    /// # Errors
    /// [`crate::Error::Full`], [`crate::Error::Busy`] and the like.
    pub fn remember(&mut self, series: &str, step: &Step) -> Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let now = i64::try_from(now).unwrap_or(i64::MAX);
        let note = "INSERT OR REPLACE INTO reported_steps (series_id, run, ratio, reported_ms)
                    SELECT id, ?2, ?3, ?4 FROM series WHERE name = ?1";
        let done = self.db.execute(note, params![series, step.run, step.ratio.value, now]);
        done.map(drop).map_err(|error| told(&self.path, error))
    }

    fn reported(&self, series: &str) -> Result<(bool, Vec<(i64, f64)>)> {
        let read = || -> rusqlite::Result<_> {
            let watched = "SELECT watched FROM series WHERE name = ?1";
            let watched = self.db.query_row(watched, params![series], |row| row.get(0)).optional()?;
            let mut statement = self.db.prepare(
                "SELECT run, ratio FROM reported_steps JOIN series ON series.id = series_id WHERE name = ?1",
            )?;
            let steps = statement.query_map(params![series], |row| Ok((row.get(0)?, row.get(1)?)))?;
            Ok((watched.unwrap_or(false), steps.collect::<rusqlite::Result<_>>()?))
        };
        read().map_err(|error| told(&self.path, error))
    }
}
