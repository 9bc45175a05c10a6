//! Output on its way to the clients: found by an id, for a while also after its process has ended.
//!
//! Who reads a stream takes its pieces from everybody else who reads it. So its id is 128 random bits, which only the client
//! is told that has started the process or attached to it, and it counts below the path of its own process alone.

use bytes::Bytes;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use wardian_engine::{Output, Process, Stream, Waits};

/// How long late clients find the output of what has ended, …
const LINGER: Duration = Duration::from_secs(60);
/// … and of how many at most: for one more, the one that has ended first is forgotten. What they hold has bounds of its
/// own, in the engine.
const LINGERING: usize = 8192;

/// Output of one run or attach.
#[derive(Debug)]
pub(crate) struct Entry {
    id: u128,
    /// Of the container.
    handle: String,
    process: String,
    output: Output,
    /// Streams whose reader the process does not wait for, or that have been read to their ends.
    read: watch::Sender<Waits>,
    /// Streams that somebody has asked for.
    fetched: [AtomicBool; 2],
    /// Its client has gone, or knows the end.
    left: watch::Sender<bool>,
}

impl Entry {
    /// As clients know it.
    pub(crate) fn id(&self) -> String {
        format!("{:032x}", self.id)
    }

    /// The next piece; `None` at the end. Two readers share the pieces between them.
    pub(crate) async fn next(&self, stderr: bool) -> Option<Bytes> {
        self.stream(stderr).next().await
    }

    /// Somebody asks for a stream. Whether nobody has before.
    pub(crate) fn fetch(&self, stderr: bool) -> bool {
        !self.fetched[usize::from(stderr)].swap(true, Ordering::Relaxed)
    }

    /// Ready when nobody holds the process's own connection any more.
    pub(crate) async fn left(&self) {
        drop(self.left.subscribe().wait_for(|left| *left).await);
    }

    fn stream(&self, stderr: bool) -> &Stream {
        if stderr { &self.output.stderr } else { &self.output.stdout }
    }

    /// A connection that has read a stream has ended; `lost` bytes that it has taken were not sent. If the process waits
    /// for it, nobody else reads the rest.
    pub(crate) fn was_read(&self, stderr: bool, lost: usize) {
        self.stream(stderr).lose(lost);
        self.read.send_if_modified(|read| {
            let first = !std::mem::replace(&mut read[usize::from(stderr)], true);
            if first {
                self.stream(stderr).abandon();
            }
            first
        });
    }

    /// Ready when all that the process has printed is with those that it waits for.
    pub(crate) async fn delivered(&self) {
        drop(self.read.subscribe().wait_for(|read| *read == [true; 2]).await);
    }

    /// Bytes that nobody took in time.
    pub(crate) fn lost(&self) -> u64 {
        self.output.lost()
    }
}

/// What is found by an id.
#[derive(Debug)]
pub(crate) enum Found {
    Entry(Arc<Entry>),
    /// Nothing, or nothing any more.
    Nothing,
    /// It is another process's.
    Others,
}

/// 128 random bits. A UUID has six that are not: here those of one fall on random ones of another.
fn random() -> u128 {
    let bits = || uuid::Uuid::new_v4().as_u128();
    bits() ^ bits().rotate_left(64)
}

/// All of them.
#[derive(Debug, Default, Clone)]
pub(crate) struct Streams {
    table: Arc<parking_lot::Mutex<Table>>,
}

#[derive(Debug, Default)]
struct Table {
    entries: HashMap<u128, Arc<Entry>>,
    /// Of processes that have ended, the oldest first, and until when.
    lingering: VecDeque<(Instant, u128)>,
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
    /// What a process of a container prints from now on.
    pub(crate) fn add(&self, handle: &str, process: &Process, waits: Waits) -> Arc<Entry> {
        let (handle, id) = (handle.to_owned(), process.id().to_owned());
        let (output, read) = (process.subscribe(waits), watch::Sender::new(waits.map(|waits| !waits)));
        let entry = Arc::new(Entry {
            id: random(),
            handle,
            process: id,
            output,
            read,
            fetched: Default::default(),
            left: watch::Sender::new(false),
        });
        self.lock().entries.insert(entry.id, entry.clone());
        entry
    }

    pub(crate) fn find(&self, handle: &str, process: &str, id: &str) -> Found {
        let id = u128::from_str_radix(id, 16).ok().filter(|_| id.len() == 32);
        match id.and_then(|id| self.lock().entries.get(&id).cloned()) {
            Some(entry) if entry.handle == handle && entry.process == process => Found::Entry(entry),
            Some(_) => Found::Others,
            None => Found::Nothing,
        }
    }

    /// The process has ended, and its client knows. Who reads its output may come late.
    pub(crate) fn end(&self, entry: &Arc<Entry>) {
        entry.output.close();
        entry.left.send_replace(true);
        let now = Instant::now();
        let mut table = self.lock();
        if entry.output.is_taken() {
            // What is not found is empty as well.
            table.entries.remove(&entry.id);
            return;
        }
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

    /// Its client has gone. Nobody else knows its id: only those that are reading already go on, to its end.
    pub(crate) fn forget(&self, entry: &Arc<Entry>) {
        entry.output.close();
        entry.left.send_replace(true);
        self.lock().entries.remove(&entry.id);
    }

    fn lock(&self) -> parking_lot::MutexGuard<'_, Table> {
        self.table.lock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bit_of_an_id_is_random() {
        let (mut ones, mut zeros) = (0, 0);
        for _ in 0..200 {
            let id = random();
            (ones, zeros) = (ones | id, zeros | !id);
        }
        assert_eq!((ones, zeros), (u128::MAX, u128::MAX));
    }

    #[tokio::test(start_paused = true)]
    async fn those_that_have_ended_first_are_forgotten_first() {
        let mut table = Table::default();
        let begin = Instant::now();
        for id in 0..LINGERING as u128 + 10 {
            table.lingering.push_back((begin + LINGER, id));
            assert_eq!(table.sweep(begin), Some(begin + LINGER));
        }
        assert_eq!((table.lingering.len(), table.lingering[0].1), (LINGERING, 10));
        table.lingering.push_back((begin + 2 * LINGER, 0));
        assert_eq!(table.sweep(begin + LINGER), Some(begin + 2 * LINGER));
        assert_eq!((table.lingering.len(), table.sweep(begin + 2 * LINGER)), (1, None));
    }
}
