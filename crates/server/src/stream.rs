//! Output on its way to the clients: found by a number, for a while also after its process has ended.

use bytes::Bytes;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use wardian_engine::Output;

/// How long late clients find the output of what has ended.
const LINGER: Duration = Duration::from_secs(60);

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
    entries: Arc<std::sync::Mutex<HashMap<u64, Arc<Entry>>>>,
}

impl Streams {
    pub(crate) fn add(&self, output: Output) -> Arc<Entry> {
        let id = self.counter.fetch_add(1, Ordering::Relaxed) + 1;
        let entry = Arc::new(Entry { id, output });
        self.lock().insert(id, entry.clone());
        entry
    }

    pub(crate) fn find(&self, id: &str) -> Option<Arc<Entry>> {
        self.lock().get(&id.parse().ok()?).cloned()
    }

    /// The process or its client has gone.
    pub(crate) fn end(&self, entry: &Arc<Entry>) {
        entry.output.close();
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
