//! What the machine writes when nothing is asked of it.

use crate::host::written;
use crate::progress::Progress;
use anyhow::Result;
use std::time::{Duration, Instant};

/// How long the machine is watched before the story; a longer story is made up for after it.
const IDLE: Duration = Duration::from_secs(2);

/// Bytes that the machine writes when nothing is asked of it.
#[derive(Debug)]
pub(super) struct Idle {
    /// Bytes written, by time since the begin.
    seen: Vec<(Duration, u64)>,
}

impl Idle {
    pub(super) async fn watch(progress: &Progress) -> Result<Self> {
        progress.say(&format!("watching the idle machine for {} s", IDLE.as_secs()));
        let begin = Instant::now();
        let mut seen = vec![(Duration::ZERO, written()?)];
        while begin.elapsed() < IDLE {
            tokio::time::sleep(Duration::from_millis(50)).await;
            seen.push((begin.elapsed(), written()?));
        }
        Ok(Self { seen })
    }

    /// Bytes written in an idle interval of this length: the last part of what was seen before the story,
    /// and if the story was longer, the rest after it.
    pub(super) async fn written_in(&mut self, length: Duration, progress: &Progress) -> Result<u64> {
        let before = last(&self.seen, length);
        let Some(rest) = length.checked_sub(IDLE).filter(|rest| !rest.is_zero()) else { return Ok(before) };
        progress.say(&format!("watching the idle machine for another {:.1} s", rest.as_secs_f64()));
        let begin = written()?;
        tokio::time::sleep(rest).await;
        Ok(before + written()?.saturating_sub(begin))
    }
}

/// Growth of a counter over the last `length` of what was seen of it.
fn last(seen: &[(Duration, u64)], length: Duration) -> u64 {
    let Some((end, total)) = seen.last() else { return 0 };
    let since = end.saturating_sub(length);
    let begin = seen.iter().rev().find(|(at, _)| *at <= since).or(seen.first());
    begin.map_or(0, |(_, value)| total.saturating_sub(*value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_part_of_an_idle_interval_counts() {
        let at = |s: u64, v: u64| (Duration::from_secs(s), v);
        let seen = [at(0, 0), at(1, 10), at(2, 30), at(3, 60)];
        assert_eq!(last(&seen, Duration::from_secs(1)), 30);
        assert_eq!(last(&seen, Duration::from_millis(1500)), 50);
        assert_eq!(last(&seen, Duration::from_secs(10)), 60);
        assert_eq!(last(&[], Duration::from_secs(1)), 0);
    }
}
