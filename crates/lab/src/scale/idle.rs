//! Measures what the machine writes when it is idle.

use crate::host::{Counter, Written};
use crate::progress::Progress;
use anyhow::Result;
use std::time::{Duration, Instant};

/// How long the machine is watched before the story; for a longer story the rest is watched afterwards.
const IDLE: Duration = Duration::from_secs(2);

/// Bytes written by the idle machine.
#[derive(Debug)]
pub(super) struct Idle {
    counter: Counter,
    /// Bytes written, by time since the beginning.
    seen: Vec<(Duration, Written)>,
}

impl Idle {
    pub(super) async fn watch(counter: Counter, progress: &Progress) -> Result<Self> {
        progress.say(&format!("watching the idle machine for {} s", IDLE.as_secs()));
        let begin = Instant::now();
        let mut seen = vec![(Duration::ZERO, counter.read()?)];
        while begin.elapsed() < IDLE {
            tokio::time::sleep(Duration::from_millis(50)).await;
            seen.push((begin.elapsed(), counter.read()?));
        }
        Ok(Self { counter, seen })
    }

    /// Bytes written in an idle interval of this length: the last part of the interval before the story, and if the
    /// story was longer, the rest measured after it.
    pub(super) async fn written_in(&mut self, length: Duration, progress: &Progress) -> Result<Written> {
        let before = last(&self.seen, length);
        let Some(rest) = length.checked_sub(IDLE).filter(|rest| !rest.is_zero()) else { return Ok(before) };
        progress.say(&format!("watching the idle machine for another {:.1} s", rest.as_secs_f64()));
        let begin = self.counter.read()?;
        tokio::time::sleep(rest).await;
        Ok(before.and(self.counter.read()?.since(begin)))
    }
}

/// Bytes written in the last `length` of the watched interval.
fn last(seen: &[(Duration, Written)], length: Duration) -> Written {
    let Some((end, total)) = seen.last() else { return Written::default() };
    let since = end.saturating_sub(length);
    let begin = seen.iter().rev().find(|(at, _)| *at <= since).or(seen.first());
    begin.map_or_else(Written::default, |(_, value)| total.since(*value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_part_of_an_idle_interval_counts() {
        let written = |bytes| Written { bytes, disk: Some(bytes / 2) };
        let at = |s: u64, v: u64| (Duration::from_secs(s), written(v));
        let seen = [at(0, 0), at(1, 10), at(2, 30), at(3, 60)];
        assert_eq!(last(&seen, Duration::from_secs(1)), written(30));
        assert_eq!(last(&seen, Duration::from_millis(1500)), written(50));
        assert_eq!(last(&seen, Duration::from_secs(10)), written(60));
        assert_eq!(last(&[], Duration::from_secs(1)), Written::default());
    }
}
