//! Events of containers, broadcast to all listeners.
//!
//! No listener is waited for: each has a bounded queue, and one that is too slow is told how many events it
//! has missed.

use parking_lot::Mutex;
use serde::Serialize;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::broadcast;

/// The most events that are queued for a listener: a scale-up of some hundred containers.
const QUEUE: usize = 4096;

/// The events that are remembered for listeners that ask for earlier ones.
pub const REMEMBERED: usize = 4096;

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum What {
    /// A container was made.
    Create,
    /// A container was destroyed.
    Destroy,
    /// A stop has ended a container's processes.
    Stop,
    /// All processes of a container were frozen.
    Pause,
    /// They go on.
    Unpause,
    /// The kernel has killed a process of a container for want of memory.
    Oom,
    /// A container is broken: it can only be destroyed.
    Broken {
        /// Why.
        reason: String,
    },
    /// A process was started in a container.
    ProcessStart {
        /// Its id.
        process: String,
    },
    /// A process has ended.
    ProcessExit {
        /// Its id.
        process: String,
        /// Its exit status, 128 + signal when killed.
        status: i32,
    },
}

/// An event of a container.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Event {
    /// Milliseconds since 1970.
    pub time_ms: u64,
    /// The container's handle.
    pub handle: String,
    /// The container's id: ids are never reused, handles are.
    pub id: String,
    /// What happened.
    #[serde(flatten)]
    pub what: What,
}

/// The sender of events.
#[derive(Debug)]
pub(crate) struct Events {
    sender: broadcast::Sender<Arc<Event>>,
    past: Mutex<Past>,
}

/// The newest events, oldest first.
#[derive(Debug, Default)]
struct Past {
    events: VecDeque<Arc<Event>>,
    /// The time of the last one that was forgotten, in milliseconds since 1970.
    forgotten: Option<u64>,
}

impl Default for Events {
    fn default() -> Self {
        Self { sender: broadcast::Sender::new(QUEUE), past: Mutex::default() }
    }
}

impl Events {
    /// Notes that an earlier server has told events of these containers, which are not known any more.
    pub(crate) fn had_a_past(&self) {
        self.past.lock().forgotten = Some(now());
    }

    pub(crate) fn tell(&self, handle: &str, id: &str, what: What) {
        // The lock is held while it is sent, so that a new listener gets each event once.
        let mut past = self.past.lock();
        let time_ms = now();
        let event = Arc::new(Event { time_ms, handle: handle.to_owned(), id: id.to_owned(), what });
        if past.events.len() >= REMEMBERED {
            past.forgotten = past.events.pop_front().map(|event| event.time_ms);
        }
        past.events.push_back(event.clone());
        // Fails only if there is no listener.
        let _ = self.sender.send(event);
    }

    /// Returns a listener to all events from now on, and before that to those remembered since a time, in milliseconds
    /// since 1970.
    pub(crate) fn listen(&self, since: Option<u64>) -> Listener {
        let past = self.past.lock();
        let Some(since) = since else {
            return Listener { forgotten: false, past: VecDeque::new(), live: self.sender.subscribe() };
        };
        let remembered = past.events.iter().filter(|event| event.time_ms >= since).cloned().collect();
        let forgotten = past.forgotten.is_some_and(|time| time >= since);
        Listener { forgotten, past: remembered, live: self.sender.subscribe() }
    }
}

/// What a listener receives.
#[derive(Debug, Clone, PartialEq)]
pub enum Heard {
    /// An event.
    Event(Arc<Event>),
    /// The number of events that the listener was too slow for.
    Lost(u64),
    /// There were earlier events since the time that it asked for, which are not remembered.
    Forgotten,
}

/// The present, in milliseconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// Receives all events from its making on, or from a time before it.
#[derive(Debug)]
pub struct Listener {
    forgotten: bool,
    past: VecDeque<Arc<Event>>,
    live: broadcast::Receiver<Arc<Event>>,
}

impl Listener {
    /// Returns the next event; `None` once the engine is gone.
    pub async fn next(&mut self) -> Option<Heard> {
        if std::mem::take(&mut self.forgotten) {
            return Some(Heard::Forgotten);
        }
        if let Some(event) = self.past.pop_front() {
            return Some(Heard::Event(event));
        }
        match self.live.recv().await {
            Ok(event) => Some(Heard::Event(event)),
            Err(broadcast::error::RecvError::Lagged(lost)) => Some(Heard::Lost(lost)),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_slow_listener_is_told_what_it_has_missed_and_nobody_waits() {
        let events = Events::default();
        events.tell("h", "i", What::Create);
        let mut listener = events.listen(None);
        for _ in 0..QUEUE + 5 {
            events.tell("h", "i", What::Stop);
        }
        assert_eq!(listener.next().await, Some(Heard::Lost(5)));
        for _ in 0..QUEUE {
            let Some(Heard::Event(event)) = listener.next().await else { panic!("no event") };
            assert_eq!(event.what, What::Stop);
        }
        drop(events);
        assert_eq!(listener.next().await, None);
    }

    #[tokio::test]
    async fn the_newest_events_are_remembered() {
        let events = Events::default();
        events.tell("first", "i", What::Create);
        let mut all = events.listen(Some(0));
        let mut later = events.listen(Some(now() + 100_000));
        for _ in 0..REMEMBERED {
            events.tell("h", "i", What::Stop);
        }
        let Some(Heard::Event(first)) = all.next().await else { panic!("no event") };
        assert_eq!(first.handle, "first");
        let mut some = events.listen(Some(first.time_ms));
        assert_eq!(some.next().await, Some(Heard::Forgotten));
        drop(events);
        for listener in [&mut all, &mut some, &mut later] {
            let mut count = 0;
            while let Some(heard) = listener.next().await {
                assert!(matches!(heard, Heard::Event(event) if event.handle == "h"));
                count += 1;
            }
            assert_eq!(count, REMEMBERED);
        }
    }

    #[test]
    fn events_are_flat_objects() {
        let what = What::ProcessExit { process: "p".into(), status: 137 };
        let event = Event { time_ms: 1500, handle: "h".into(), id: "i".into(), what };
        assert_eq!(
            serde_json::to_string(&event).unwrap(),
            r#"{"time_ms":1500,"handle":"h","id":"i","event":"process-exit","process":"p","status":137}"#
        );
    }
}
