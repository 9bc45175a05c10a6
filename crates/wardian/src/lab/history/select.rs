//! Which runs are meant.

use anyhow::{Result, bail};
use std::time::{SystemTime, UNIX_EPOCH};
use wardian_history::{Filter, Run, Series, Store};

/// Flags that choose runs.
#[derive(Debug, clap::Args)]
pub struct Select {
    /// Only series whose name contains this: HOST|EXPERIMENT|ENGINE|MODE|PARAMETERS
    #[arg(long, value_name = "TEXT", help_heading = "Which runs")]
    series: Option<String>,
    /// Only this experiment: scale, teardown, "bench api"
    #[arg(long, value_name = "NAME", help_heading = "Which runs")]
    experiment: Option<String>,
    /// Only this mode: stream, oci, durable
    #[arg(long, value_name = "MODE", help_heading = "Which runs")]
    mode: Option<String>,
    /// Only of this engine
    #[arg(long, value_name = "ENGINE", help_heading = "Which runs")]
    engine: Option<String>,
    /// Only runs since then: how long ago (30d), a day (2026-11-24), a time
    #[arg(long, value_name = "TIME", value_parser = crate::container::logs::time, help_heading = "Which runs")]
    since: Option<SystemTime>,
    /// Only runs before then
    #[arg(long, value_name = "TIME", value_parser = crate::container::logs::time, help_heading = "Which runs")]
    until: Option<SystemTime>,
}

fn ms(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

impl Select {
    fn fits(&self, series: &Series) -> bool {
        let is = |wanted: &Option<String>, has: &str| wanted.as_ref().is_none_or(|wanted| wanted == has);
        self.series.as_ref().is_none_or(|part| series.name.contains(part.as_str()))
            && is(&self.experiment, &series.experiment)
            && is(&self.mode, &series.mode)
            && is(&self.engine, &series.engine)
    }

    /// The series that are meant. It is an error if there are others and none is meant: a name was misspelt.
    pub fn series(&self, store: &Store) -> Result<Vec<Series>> {
        let all = store.series()?;
        let found: Vec<Series> = all.iter().filter(|series| self.fits(series)).cloned().collect();
        if found.is_empty() && !all.is_empty() {
            let names: Vec<&str> = all.iter().take(10).map(|series| series.name.as_str()).collect();
            bail!("no series is meant by these flags; there are:\n  {}", names.join("\n  "));
        }
        Ok(found)
    }

    /// Whether a run that began then is meant.
    pub fn holds(&self, begun_ms: i64) -> bool {
        self.since.is_none_or(|since| ms(since) <= begun_ms)
            && self.until.is_none_or(|until| begun_ms < ms(until))
    }

    /// The runs that are meant, oldest first, of them the newest `limit`.
    pub fn runs(&self, store: &Store, complete: bool, limit: Option<usize>) -> Result<Vec<Run>> {
        let mut filter = Filter {
            experiment: self.experiment.clone(),
            mode: self.mode.clone(),
            engine: self.engine.clone(),
            since_ms: self.since.map(ms),
            until_ms: self.until.map(ms),
            complete,
            limit,
            ..Filter::default()
        };
        let series = self.series(store)?;
        if self.series.is_none() {
            return Ok(store.list(&filter)?);
        }
        let mut runs = Vec::new();
        for series in series {
            filter.series = Some(series.name);
            runs.extend(store.list(&filter)?);
        }
        runs.sort_by_key(|run| (run.begun_ms, run.id));
        let more = runs.len().saturating_sub(limit.unwrap_or(usize::MAX));
        Ok(runs.split_off(more))
    }
}
