//! Output streams of processes for clients: found by an id, for a while also after the end of the process.
//!
//! A reader of a stream takes its pieces from all other readers. So the id is 128 random bits, which are told
//! only to the client that has started the process or attached to it, and it is valid only below the path of
//! its own process.

use bytes::Bytes;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use wardian_engine::{Output, Process, Stream, Waits};

/// How long the output of an ended process can still be found, …
const LINGER: Duration = Duration::from_secs(60);
/// … and the most such outputs: beyond that the oldest is forgotten. The engine bounds the memory that they
/// hold.
const LINGERING: usize = 8192;

/// The output of one run or attach.
#[derive(Debug)]
pub(crate) struct Entry {
    id: u128,
    /// The container's handle.
    handle: String,
    process: String,
    output: Output,
    /// Per stream: the process does not wait for its reader, or the stream has been read to its end.
    read: watch::Sender<Waits>,
    /// Per stream: it has been requested.
    fetched: [AtomicBool; 2],
    /// The client of the process has disconnected, or was told of the end.
    left: watch::Sender<bool>,
}

impl Entry {
    /// Returns the id as clients know it.
    pub(crate) fn id(&self) -> String {
        format!("{:032x}", self.id)
    }

    /// Returns the next piece; `None` at the end. Two readers share the pieces between them.
    pub(crate) async fn next(&self, stderr: bool) -> Option<Bytes> {
        self.stream(stderr).next().await
    }

    /// Marks a stream as requested. Returns whether it was not before.
    pub(crate) fn fetch(&self, stderr: bool) -> bool {
        !self.fetched[usize::from(stderr)].swap(true, Ordering::Relaxed)
    }

    /// Ready when the process's own connection has ended.
    pub(crate) async fn left(&self) {
        drop(self.left.subscribe().wait_for(|left| *left).await);
    }

    fn stream(&self, stderr: bool) -> &Stream {
        if stderr { &self.output.stderr } else { &self.output.stdout }
    }

    /// Reports the end of a connection that has read a stream; `lost` bytes that it took were not sent. If
    /// the process waits for this reader, the rest of the stream is lost.
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

    /// Ready when all output has been delivered to the readers that the process waits for.
    pub(crate) async fn delivered(&self) {
        drop(self.read.subscribe().wait_for(|read| *read == [true; 2]).await);
    }

    /// Returns the bytes that were not taken in time.
    pub(crate) fn lost(&self) -> u64 {
        self.output.lost()
    }
}

/// The result of a search by id.
#[derive(Debug)]
pub(crate) enum Found {
    Entry(Arc<Entry>),
    /// There is no such stream, or none any more.
    Nothing,
    /// The stream is another process's.
    Others,
}

/// Returns 128 random bits. A UUID has six fixed bits: two UUIDs are combined so that these fall on random
/// ones.
fn random() -> u128 {
    let bits = || uuid::Uuid::new_v4().as_u128();
    bits() ^ bits().rotate_left(64)
}

/// All streams.
#[derive(Debug, Default, Clone)]
pub(crate) struct Streams {
    table: Arc<parking_lot::Mutex<Table>>,
}

#[derive(Debug, Default)]
struct Table {
    entries: HashMap<u128, Arc<Entry>>,
    /// The ids of streams of ended processes, the oldest first, and until when each is kept.
    lingering: VecDeque<(Instant, u128)>,
    /// A task waits until the first one expires.
    swept: bool,
}

impl Table {
    /// Forgets the expired streams. Returns when the next one expires; `None`: there is none.
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
    /// Adds the output of a process of a container from now on.
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
        self.table.lock().entries.insert(entry.id, entry.clone());
        entry
    }

    pub(crate) fn find(&self, handle: &str, process: &str, id: &str) -> Found {
        let id = u128::from_str_radix(id, 16).ok().filter(|_| id.len() == 32);
        match id.and_then(|id| self.table.lock().entries.get(&id).cloned()) {
            Some(entry) if entry.handle == handle && entry.process == process => Found::Entry(entry),
            Some(_) => Found::Others,
            None => Found::Nothing,
        }
    }

    /// Ends the output of a process whose client was told of the end. Its readers may still come for a while.
    pub(crate) fn end(&self, entry: &Arc<Entry>) {
        entry.output.close();
        entry.left.send_replace(true);
        let now = Instant::now();
        let mut table = self.table.lock();
        if entry.output.is_taken() {
            // A stream that is not found reads as empty anyway.
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
                    let mut table = streams.table.lock();
                    match table.sweep(Instant::now()) {
                        Some(until) => next = until,
                        None => break table.swept = false,
                    }
                }
            });
        }
    }

    /// Ends the output of a process whose client has disconnected. No other client knows the id: only
    /// connections that are reading already go on, to the end.
    pub(crate) fn forget(&self, entry: &Arc<Entry>) {
        entry.output.close();
        entry.left.send_replace(true);
        self.table.lock().entries.remove(&entry.id);
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
