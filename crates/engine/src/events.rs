//! Events of containers, broadcast to all listeners.
//!
//! No listener is waited for: each has a bounded queue, and one that is too slow is told how many events it
//! has missed.

use serde::Serialize;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::broadcast;

/// The most events that are queued for a listener: a scale-up of some hundred containers.
const QUEUE: usize = 4096;

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
    /// Seconds since 1970.
    pub time: f64,
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
pub(crate) struct Events(broadcast::Sender<Arc<Event>>);

impl Default for Events {
    fn default() -> Self {
        Self(broadcast::Sender::new(QUEUE))
    }
}

impl Events {
    pub(crate) fn tell(&self, handle: &str, id: &str, what: What) {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
        // Fails only if there is no listener.
        let _ = self.0.send(Arc::new(Event { time, handle: handle.to_owned(), id: id.to_owned(), what }));
    }

    pub(crate) fn listen(&self) -> Listener {
        Listener(self.0.subscribe())
    }
}

/// What a listener receives.
#[derive(Debug, Clone, PartialEq)]
pub enum Heard {
    /// An event.
    Event(Arc<Event>),
    /// The number of events that the listener was too slow for.
    Lost(u64),
}

/// Receives all events from its making on.
#[derive(Debug)]
pub struct Listener(broadcast::Receiver<Arc<Event>>);

impl Listener {
    /// Returns the next event; `None` once the engine is gone.
    pub async fn next(&mut self) -> Option<Heard> {
        match self.0.recv().await {
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
        let mut listener = events.listen();
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

    #[test]
    fn events_are_flat_objects() {
        let what = What::ProcessExit { process: "p".into(), status: 137 };
        let event = Event { time: 1.5, handle: "h".into(), id: "i".into(), what };
        assert_eq!(
            serde_json::to_string(&event).unwrap(),
            r#"{"time":1.5,"handle":"h","id":"i","event":"process-exit","process":"p","status":137}"#
        );
    }
}
