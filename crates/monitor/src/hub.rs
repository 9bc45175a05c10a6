//! The stream of events of the page: what is live is looked at once, for all who listen.
//!
//! Who begins to listen is told everything; after that only what has changed. All listeners share the bytes of a message.
//! A listener that is [`QUEUE`] messages behind is dropped: nobody waits for it.

use crate::live::{Happening, Live, News, Row, Seen};
use bytes::Bytes;
use parking_lot::Mutex;
use serde::Serialize;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{broadcast, mpsc, watch};

/// Messages that a listener may be behind: as many seconds, more or less.
const QUEUE: usize = 16;
/// News that wait for the hub.
const NEWS: usize = 256;
/// Events that a new listener is told of.
const PAST: usize = 200;
/// Events in one message.
const BATCH: usize = 128;
/// How long the source goes on after the last listener: a page that is loaded again finds figures.
const LINGER: Duration = Duration::from_secs(5);

/// The hub.
#[derive(Debug)]
pub(crate) struct Hub {
    state: Mutex<State>,
    listeners: watch::Sender<usize>,
}

#[derive(Debug)]
struct State {
    sender: broadcast::Sender<Bytes>,
    seen: Seen,
    past: VecDeque<Happening>,
    /// The whole, as it is told to a new listener; `None`: it must be written anew.
    whole: Option<Bytes>,
    /// The number of the runs' version; changed when there are others.
    runs: u64,
}

/// Receives the messages of the hub, as the lines of server-sent events.
#[derive(Debug)]
pub(crate) struct Listener {
    first: Option<Bytes>,
    receiver: broadcast::Receiver<Bytes>,
    hub: Arc<Hub>,
}

impl Listener {
    /// Returns the next message; `None` once this listener is too slow.
    pub(crate) async fn next(&mut self) -> Option<Bytes> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        self.receiver.recv().await.ok()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.hub.listeners.send_modify(|count| *count -= 1);
    }
}

#[derive(Serialize)]
struct Whole<'a> {
    #[serde(flatten)]
    seen: &'a Seen,
    rows: &'a [Row],
    past: &'a VecDeque<Happening>,
    runs: u64,
}

#[derive(Serialize)]
struct Change<'a> {
    #[serde(flatten)]
    seen: &'a Seen,
    rows: Vec<&'a Row>,
    gone: Vec<&'a str>,
}

/// Writes a server-sent event. JSON has no line breaks.
fn message(event: &str, data: &impl Serialize) -> Bytes {
    let mut text = format!("event: {event}\ndata: ").into_bytes();
    // Only keys that are no strings, and failing writers, are errors of this.
    if serde_json::to_writer(&mut text, data).is_err() {
        tracing::error!(event, "monitor.message");
    }
    text.extend_from_slice(b"\n\n");
    text.into()
}

impl Hub {
    pub(crate) fn new() -> Arc<Self> {
        let state = State {
            sender: broadcast::Sender::new(QUEUE),
            seen: Seen::default(),
            past: VecDeque::new(),
            whole: None,
            runs: 0,
        };
        Arc::new(Self { state: Mutex::new(state), listeners: watch::Sender::new(0) })
    }

    /// Begins to listen.
    pub(crate) fn listen(self: &Arc<Self>) -> Listener {
        self.listeners.send_modify(|count| *count += 1);
        let mut state = self.state.lock();
        let State { seen, past, whole, runs, sender } = &mut *state;
        let first = whole
            .get_or_insert_with(|| message("whole", &Whole { seen, rows: &seen.rows, past, runs: *runs }));
        Listener { first: Some(first.clone()), receiver: sender.subscribe(), hub: self.clone() }
    }

    /// Whether anybody listens.
    pub(crate) fn is_heard(&self) -> bool {
        *self.listeners.borrow() > 0
    }

    /// Waits until somebody listens.
    pub(crate) async fn heard(&self) {
        // The sender is in this hub.
        let _ = self.listeners.subscribe().wait_for(|count| *count > 0).await;
    }

    /// Tells listeners that there are other runs than before.
    pub(crate) fn runs_changed(&self) {
        let mut state = self.state.lock();
        state.runs += 1;
        state.whole = None;
        let runs = state.runs;
        let _ = state.sender.send(message("runs", &runs));
    }

    fn seen(&self, seen: Seen) {
        let mut state = self.state.lock();
        state.whole = None;
        {
            let before: HashMap<&str, &Row> =
                state.seen.rows.iter().map(|row| (row.id.as_str(), row)).collect();
            let now: HashMap<&str, &Row> = seen.rows.iter().map(|row| (row.id.as_str(), row)).collect();
            let rows = seen.rows.iter().filter(|row| before.get(row.id.as_str()) != Some(row)).collect();
            let gone = before.keys().filter(|id| !now.contains_key(*id)).copied().collect();
            let _ = state.sender.send(message("change", &Change { seen: &seen, rows, gone }));
        }
        state.seen = seen;
    }

    fn happened(&self, happenings: &[Happening]) {
        let mut state = self.state.lock();
        state.whole = None;
        state.past.extend(happenings.iter().cloned());
        let excess = state.past.len().saturating_sub(PAST);
        state.past.drain(..excess);
        let _ = state.sender.send(message("happened", &happenings));
    }

    /// Has the source tell while somebody listens. It does not return.
    pub(crate) async fn run(&self, live: &dyn Live) {
        loop {
            self.heard().await;
            let (to, mut news) = mpsc::channel(NEWS);
            tokio::select! {
                () = live.tell(to) => {
                    // It has given up; it is asked again, but not at once.
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                () = self.pass_on(&mut news) => {}
                () = self.left() => self.forget(),
            }
        }
    }

    async fn pass_on(&self, news: &mut mpsc::Receiver<News>) {
        let mut all = Vec::new();
        while news.recv_many(&mut all, BATCH).await > 0 {
            let mut happenings = Vec::new();
            for one in all.drain(..) {
                match one {
                    News::Seen(seen) => self.seen(*seen),
                    News::Happened(happening) => happenings.push(happening),
                }
            }
            if !happenings.is_empty() {
                self.happened(&happenings);
            }
        }
    }

    /// Waits until nobody has listened for a while.
    async fn left(&self) {
        let mut listeners = self.listeners.subscribe();
        loop {
            let _ = listeners.wait_for(|count| *count == 0).await;
            let back = listeners.wait_for(|count| *count > 0);
            if tokio::time::timeout(LINGER, back).await.is_err() {
                return;
            }
        }
    }

    /// What was seen is old by the time somebody listens again.
    fn forget(&self) {
        let mut state = self.state.lock();
        // A listener is counted before it takes the lock to be told everything.
        if self.is_heard() {
            return;
        }
        (state.seen, state.whole) = (Seen::default(), None);
        state.past.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::pin::Pin;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn row(id: &str, memory: u64) -> Row {
        Row { id: id.to_owned(), memory, ..Row::default() }
    }

    fn seen(rows: Vec<Row>) -> Seen {
        Seen { rows, ..Seen::default() }
    }

    fn data(message: &Bytes) -> (String, serde_json::Value) {
        let text = std::str::from_utf8(message).unwrap();
        let (event, data) = text.strip_prefix("event: ").unwrap().split_once("\ndata: ").unwrap();
        (event.to_owned(), serde_json::from_str(data.trim()).unwrap())
    }

    #[tokio::test]
    async fn a_listener_is_told_everything_and_then_what_changes() {
        let hub = Hub::new();
        hub.seen(seen(vec![row("a", 1), row("b", 1)]));
        let mut listener = hub.listen();
        let (event, whole) = data(&listener.next().await.unwrap());
        assert_eq!((event.as_str(), whole["rows"].as_array().unwrap().len()), ("whole", 2));
        hub.seen(seen(vec![row("b", 2), row("c", 1), row("d", 1)]));
        hub.seen(seen(vec![row("b", 2), row("c", 1)]));
        let (event, change) = data(&listener.next().await.unwrap());
        let ids: Vec<_> = change["rows"].as_array().unwrap().iter().map(|row| &row["id"]).collect();
        assert_eq!((event.as_str(), &change["gone"][0]), ("change", &"a".into()));
        assert!(ids.into_iter().eq(["b", "c", "d"]));
        let (_, change) = data(&listener.next().await.unwrap());
        assert_eq!((change["rows"].as_array().unwrap().len(), &change["gone"][0]), (0, &"d".into()));
        hub.happened(&[Happening { what: "oom\n".into(), ..Happening::default() }]);
        let (event, happened) = data(&listener.next().await.unwrap());
        assert_eq!((event.as_str(), &happened[0]["what"]), ("happened", &"oom\n".into()));
        hub.runs_changed();
        assert_eq!(data(&listener.next().await.unwrap()), ("runs".into(), 1.into()));
        let (_, whole) = data(&hub.listen().next().await.unwrap());
        assert_eq!((&whole["runs"], &whole["past"][0]["what"]), (&1.into(), &"oom\n".into()));
    }

    #[tokio::test]
    async fn a_listener_that_does_not_read_is_dropped_and_the_others_go_on() {
        let hub = Hub::new();
        let (mut slow, mut quick) = (hub.listen(), hub.listen());
        assert!(slow.next().await.is_some() && quick.next().await.is_some());
        for at in 0..=QUEUE {
            hub.seen(seen(vec![row("a", at as u64)]));
            assert!(quick.next().await.is_some());
        }
        assert!(slow.next().await.is_none() && hub.is_heard());
        drop((slow, quick));
        assert!(!hub.is_heard());
    }

    struct Counted(AtomicUsize);

    impl Live for Counted {
        fn tell<'a>(&'a self, to: mpsc::Sender<News>) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>> {
            Box::pin(async move {
                loop {
                    let looks = self.0.fetch_add(1, Ordering::Relaxed);
                    let seen = Seen { at_ms: looks as u64, ..Seen::default() };
                    if to.send(News::Seen(Box::new(seen))).await.is_err() {
                        return;
                    }
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_looked_at_while_nobody_listens() {
        let (hub, live) = (Hub::new(), Counted(AtomicUsize::new(0)));
        let (ours, theirs) = (hub.clone(), hub.clone());
        let run = async { ours.run(&live).await };
        let test = async {
            tokio::time::sleep(Duration::from_secs(60)).await;
            assert_eq!(live.0.load(Ordering::Relaxed), 0);
            let mut listener = theirs.listen();
            for _ in 0..10 {
                listener.next().await.unwrap();
            }
            drop(listener);
            tokio::time::sleep(Duration::from_secs(60)).await;
            let looks = live.0.load(Ordering::Relaxed);
            assert!((9..20).contains(&looks), "{looks}");
            assert_eq!(theirs.state.lock().seen, Seen::default());
        };
        tokio::select! { () = run => {}, () = test => {} }
    }
}
