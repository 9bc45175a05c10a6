//! Output on its way to the clients: found by a number, for a while also after its process has ended.

use bytes::Bytes;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{Mutex, mpsc, watch};
use wardian_engine::Output;

/// How long late clients find the output of what has ended.
const LINGER: Duration = Duration::from_secs(60);

/// Output of one run or attach.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) id: u64,
    stdout: Mutex<mpsc::Receiver<Bytes>>,
    stderr: Mutex<mpsc::Receiver<Bytes>>,
    done: watch::Sender<bool>,
}

impl Entry {
    /// The next piece; `None` at the end. Two readers share the pieces between them.
    pub(crate) async fn next(&self, stderr: bool) -> Option<Bytes> {
        let mut queue = if stderr { &self.stderr } else { &self.stdout }.lock().await;
        let mut done = self.done.subscribe();
        tokio::select! {
            biased;
            piece = queue.recv() => return piece,
            // The sender is in `self`.
            _ = done.wait_for(|done| *done) => {}
        }
        // What is queued is still read, nothing new comes.
        queue.close();
        queue.recv().await
    }
}

/// All of them.
#[derive(Debug, Default, Clone)]
pub(crate) struct Streams {
    counter: Arc<AtomicU64>,
    entries: Arc<std::sync::Mutex<HashMap<u64, Arc<Entry>>>>,
}

impl Streams {
    pub(crate) fn add(&self, output: Output) -> Arc<Entry> {
        let id = self.counter.fetch_add(1, Ordering::Relaxed) + 1;
        let (stdout, stderr) = (Mutex::new(output.stdout), Mutex::new(output.stderr));
        let entry = Arc::new(Entry { id, stdout, stderr, done: watch::Sender::new(false) });
        self.lock().insert(id, entry.clone());
        entry
    }

    pub(crate) fn find(&self, id: &str) -> Option<Arc<Entry>> {
        self.lock().get(&id.parse().ok()?).cloned()
    }

    /// The process or its client has gone.
    pub(crate) fn end(&self, entry: &Arc<Entry>) {
        entry.done.send_replace(true);
        for queue in [&entry.stdout, &entry.stderr] {
            // A reader that holds it closes it itself.
            if let Ok(mut queue) = queue.try_lock() {
                queue.close();
            }
        }
        let (streams, id) = (self.clone(), entry.id);
        tokio::spawn(async move {
            tokio::time::sleep(LINGER).await;
            streams.lock().remove(&id);
        });
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Arc<Entry>>> {
        self.entries.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_queued_outlives_the_end() {
        let streams = Streams::default();
        let (out, stdout) = mpsc::channel(4);
        let (_err, stderr) = mpsc::channel(4);
        let entry = streams.add(Output { stdout, stderr });
        assert_eq!(entry.id, 1);
        out.try_send(Bytes::from("a")).unwrap();
        streams.end(&entry);
        assert!(out.try_send(Bytes::from("b")).is_err());
        let late = streams.find("1").unwrap();
        assert_eq!(late.next(false).await.as_deref(), Some(&b"a"[..]));
        assert_eq!(late.next(false).await, None);
        assert_eq!(late.next(true).await, None);
        assert!(streams.find("abc").is_none());
    }

    #[tokio::test]
    async fn a_waiting_reader_sees_the_end() {
        let streams = Streams::default();
        let (_out, stdout) = mpsc::channel(4);
        let (_err, stderr) = mpsc::channel(4);
        let entry = streams.add(Output { stdout, stderr });
        let waiting = tokio::spawn({
            let entry = entry.clone();
            async move { entry.next(false).await }
        });
        tokio::task::yield_now().await;
        streams.end(&entry);
        assert_eq!(waiting.await.unwrap(), None);
    }
}
