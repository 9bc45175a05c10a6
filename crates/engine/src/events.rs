//! What happens to containers, told to whoever listens.
//!
//! Nobody is waited for: each listener has a bounded queue, and one that is too slow is told how much it has missed.

use serde::Serialize;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::broadcast;

/// Events that wait for a listener: a scale-up of some hundred containers.
const QUEUE: usize = 4096;

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum What {
    /// A container was made.
    Create,
    /// It was destroyed.
    Destroy,
    /// A stop has ended its processes.
    Stop,
    /// It can only be destroyed from now on.
    Broken {
        /// Why.
        reason: String,
    },
    /// A process was started in it.
    ProcessStart {
        /// Its id.
        process: String,
    },
    /// One has ended.
    ProcessExit {
        /// Its id.
        process: String,
        /// Its exit status, 128 + signal when killed.
        status: i32,
    },
}

/// One of the things that happened.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Event {
    /// Seconds since 1970.
    pub time: f64,
    /// The container's.
    pub handle: String,
    /// Handles are used again, ids are not.
    pub id: String,
    /// What.
    #[serde(flatten)]
    pub what: What,
}

/// Where events come from.
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
        // An error says that nobody listens.
        let _ = self.0.send(Arc::new(Event { time, handle: handle.to_owned(), id: id.to_owned(), what }));
    }

    pub(crate) fn listen(&self) -> Listener {
        Listener(self.0.subscribe())
    }
}

/// What a listener hears.
#[derive(Debug, Clone, PartialEq)]
pub enum Heard {
    /// Something happened.
    Event(Arc<Event>),
    /// It was too slow for so many.
    Lost(u64),
}

/// Hears of everything that happens from its making on.
#[derive(Debug)]
pub struct Listener(broadcast::Receiver<Arc<Event>>);

impl Listener {
    /// The next one; `None` when the engine has gone.
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
