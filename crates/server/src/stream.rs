//! Output on its way to the clients: found by a number, for a while also after its process has ended.

use bytes::Bytes;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;
use wardian_engine::Output;

/// How long late clients find the output of what has ended, …
const LINGER: Duration = Duration::from_secs(60);
/// … and of how many at most: for one more, the one that has ended first is forgotten. What they hold has bounds of its
/// own, in the engine.
const LINGERING: usize = 8192;

/// Output of one run or attach.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) id: u64,
    output: Output,
}

impl Entry {
    /// The next piece; `None` at the end. Two readers share the pieces between them.
    pub(crate) async fn next(&self, stderr: bool) -> Option<Bytes> {
        if stderr { &self.output.stderr } else { &self.output.stdout }.next().await
    }

    /// Bytes that nobody took in time.
    pub(crate) fn lost(&self) -> u64 {
        self.output.lost()
    }
}

/// All of them.
#[derive(Debug, Default, Clone)]
pub(crate) struct Streams {
    counter: Arc<AtomicU64>,
    table: Arc<std::sync::Mutex<Table>>,
}

#[derive(Debug, Default)]
struct Table {
    entries: HashMap<u64, Arc<Entry>>,
    /// Of processes that have ended, the oldest first, and until when.
    lingering: VecDeque<(Instant, u64)>,
    /// Somebody waits for the first one's time.
    swept: bool,
}

impl Table {
    /// Forget those whose time is over. When that of the next one is; `None`: there is none.
    fn sweep(&mut self, now: Instant) -> Option<Instant> {
        while let Some(&(until, id)) = self.lingering.front() {
            if until > now && self.lingering.len() <= LINGERING {
                return Some(until);
            }
            self.lingering.pop_front();
            self.entries.remove(&id);
        }
        None
    }
}

impl Streams {
    pub(crate) fn add(&self, output: Output) -> Arc<Entry> {
        let id = self.counter.fetch_add(1, Ordering::Relaxed) + 1;
        let entry = Arc::new(Entry { id, output });
        self.lock().entries.insert(id, entry.clone());
        entry
    }

    pub(crate) fn find(&self, id: &str) -> Option<Arc<Entry>> {
        self.lock().entries.get(&id.parse().ok()?).cloned()
    }

    /// The process has ended, and its client knows. Who reads its output may come late.
    pub(crate) fn end(&self, entry: &Arc<Entry>) {
        entry.output.close();
        let now = Instant::now();
        let mut table = self.lock();
        table.lingering.push_back((now + LINGER, entry.id));
        let next = table.sweep(now);
        if let Some(mut next) = next.filter(|_| !std::mem::replace(&mut table.swept, true)) {
            let streams = self.clone();
            tokio::spawn(async move {
                loop {
                    tokio::time::sleep_until(next).await;
                    let mut table = streams.lock();
                    match table.sweep(Instant::now()) {
                        Some(until) => next = until,
                        None => break table.swept = false,
                    }
                }
            });
        }
    }

    /// Its client has gone. Nobody else knows its number: only those that are reading already go on, to its end.
    pub(crate) fn forget(&self, entry: &Arc<Entry>) {
        entry.output.close();
        self.lock().entries.remove(&entry.id);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn those_that_have_ended_first_are_forgotten_first() {
        let mut table = Table::default();
        let begin = Instant::now();
        for id in 0..LINGERING as u64 + 10 {
            table.lingering.push_back((begin + LINGER, id));
            assert_eq!(table.sweep(begin), Some(begin + LINGER));
        }
        assert_eq!((table.lingering.len(), table.lingering[0].1), (LINGERING, 10));
        table.lingering.push_back((begin + 2 * LINGER, 0));
        assert_eq!(table.sweep(begin + LINGER), Some(begin + 2 * LINGER));
        assert_eq!((table.lingering.len(), table.sweep(begin + 2 * LINGER)), (1, None));
    }
}
