//! `grootfs clean`.

use wardian_store::Garbage;

use super::config::Config;
use super::error::Error;
use super::log::Log;
use super::metrics::Metrics;
use super::namespace::Mappings;
use super::place;
use crate::print;

/// Runs `clean`. It collects what no root file system uses and no name of an image keeps; a create that needs such a
/// layer at the same time keeps it, or fetches it again, so nobody waits for a lock.
///
/// # Errors
/// There is no store, or the collection fails.
pub fn run(config: &Config, log: &Log) -> Result<(), Error> {
    let Some(opened) = place::existing(config)? else { return Err(Error::NoStore(place::path(config))) };
    Mappings::read(&place::path(config))?;
    let metrics = Metrics::new(config, log);
    let log = log.session("groot-cleaning", &[]);
    let done = log.around(|| -> Result<bool, Error> {
        let threshold = u64::try_from(config.clean.threshold_bytes).unwrap_or(0);
        if threshold > 0 {
            let garbage = opened.store.find_garbage(Garbage::Unnamed)?;
            let committed: u64 =
                opened.store.published()?.iter().filter_map(|record| record.bound.bytes).sum();
            if committed + garbage.freed_bytes + garbage.kept_bytes < threshold {
                return Ok(false);
            }
        }
        opened.store.tidy_published()?;
        opened.store.collect_garbage(Garbage::Unnamed, None)?;
        Ok(true)
    });
    metrics.whole("ImageCleanTime");
    metrics.layers(&opened.store);
    opened.leave();
    let text = if done? { "clean completed\n" } else { "threshold not reached: skipping clean\n" };
    print::text(text).map_err(Error::Print)
}
