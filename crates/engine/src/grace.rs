//! Grace times: a container without a call for as long as its grace time is destroyed.
//!
//! The grace time is kept in the property `garden.grace-time`, in nanoseconds, and so in the record: the next
//! server continues with it, and starts the whole time anew. During a call (for a process: while a client is
//! connected to it) the timer does not run; at the end of the last call the whole time starts anew.

use crate::container::Container;
use crate::container::clock::Clock;
use crate::container::lifecycle::Event;
use crate::container::record::Record;
use crate::{Engine, Error, Result};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// The property's name, which is Garden's.
pub const PROPERTY: &str = "garden.grace-time";

/// A call of a container: its grace-time timer does not run until this is dropped.
#[derive(Debug)]
pub struct Call(Option<(Engine, Arc<Container>)>);

impl Drop for Call {
    fn drop(&mut self) {
        let Some((engine, container)) = self.0.take() else { return };
        let mut clock = container.clock();
        clock.calls -= 1;
        if clock.calls == 0 {
            engine.start_clock(&container, &mut clock);
        }
    }
}

/// Returns the grace time in the record; zero (none) if it is not a number.
fn time(record: &Record) -> Duration {
    let nanoseconds = record.properties.get(PROPERTY).and_then(|text| text.parse().ok());
    Duration::from_nanos(nanoseconds.unwrap_or(0))
}

impl Engine {
    /// Begins a call. Does nothing for an unknown handle.
    pub fn call(&self, handle: &str) -> Call {
        let Ok(container) = self.find(handle) else { return Call(None) };
        {
            let mut clock = container.clock();
            clock.calls += 1;
            clock.stop();
        }
        Call(Some((self.clone(), container)))
    }

    /// Sets a container's grace time. With no call under way it counts from now, and zero is over at once;
    /// otherwise it counts from the end of the last call, and zero means none. Unknown handles are ignored,
    /// as by Garden's server.
    ///
    /// # Errors
    /// The record cannot be written.
    pub fn set_grace_time(&self, handle: &str, grace: Duration) -> Result<()> {
        let found = self.find(handle).ok().filter(|container| container.look().is_ok());
        let Some(container) = found else { return Ok(()) };
        let set = |record: &mut Record| {
            drop(record.properties.insert(PROPERTY.to_owned(), grace.as_nanos().to_string()));
        };
        match container.update(set, |record| self.shared.records.save(record)) {
            // The container is being destroyed.
            Err(Error::UnknownHandle(_)) => return Ok(()),
            other => other?,
        }
        let mut clock = container.clock();
        if clock.stop() || clock.calls == 0 {
            self.run_clock(&container, &mut clock, grace);
        }
        Ok(())
    }

    /// Starts the grace-time timer of a container that was created, or found at the start.
    pub(crate) fn strap(&self, container: &Arc<Container>) {
        let mut clock = container.clock();
        if clock.calls == 0 {
            clock.stop();
            self.start_clock(container, &mut clock);
        }
    }

    /// Stops the grace-time timer of a container that is gone.
    pub(crate) fn defuse(container: &Container) {
        container.clock().stop();
    }

    fn start_clock(&self, container: &Arc<Container>, clock: &mut Clock) {
        let grace = time(&container.record());
        if !grace.is_zero() && container.permits(Event::Destroy).is_ok() {
            self.run_clock(container, clock, grace);
        }
    }

    fn run_clock(&self, container: &Arc<Container>, clock: &mut Clock, grace: Duration) {
        // Without a runtime the server is at its very end, and no timer would run.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        // Both are held weakly: a timer keeps neither a container nor an engine alive.
        let (engine, container, round) =
            (Arc::downgrade(&self.shared), Arc::downgrade(container), clock.round);
        let timer = runtime.spawn(async move {
            tokio::time::sleep(grace).await;
            expired(&engine, &container, round, grace).await;
        });
        clock.timer = Some(timer.abort_handle());
    }
}

async fn expired(engine: &Weak<crate::Shared>, container: &Weak<Container>, round: u64, grace: Duration) {
    let (Some(shared), Some(container)) = (engine.upgrade(), container.upgrade()) else { return };
    let engine = Engine { shared };
    {
        let mut clock = container.clock();
        if clock.round != round || clock.calls > 0 || engine.shared.closing.load(Ordering::Acquire) {
            return;
        }
        // From here on a new call does not stop the teardown.
        clock.timer = None;
        // Fails if a teardown is under way already.
        if container.begin_teardown(Event::Destroy).is_err() {
            return;
        }
    }
    let (handle, id) = (container.handle.clone(), container.id.clone());
    if let Err(error) = engine.end(container, Some(grace)).await {
        tracing::error!(handle, id, %error, "grace-time.destroy-failed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_is_a_property() {
        let mut record: Record = serde_json::from_value(serde_json::json!({
            "version": 1, "id": "i", "handle": "h", "phase": "created", "boot_id": "b", "privileged": false,
            "env": [], "properties": {}, "stopped": false,
        }))
        .unwrap();
        assert_eq!(time(&record), Duration::ZERO);
        record.properties.insert(PROPERTY.into(), "1500000000".into());
        assert_eq!(time(&record), Duration::from_millis(1500));
        for nonsense in ["-5", "5m", ""] {
            record.properties.insert(PROPERTY.into(), nonsense.into());
            assert_eq!(time(&record), Duration::ZERO);
        }
    }
}
