//! The endpoints of images that were silent just now.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// How long an endpoint that was silent is tried after the others.
const REMEMBERED: Duration = Duration::from_secs(60);

/// Endpoints that could not be connected to, or did not answer, by their hosts: each new pull would wait for them again.
#[derive(Debug, Default)]
pub(crate) struct Failing(Mutex<HashMap<String, Instant>>);

impl Failing {
    pub(crate) fn add(&self, host: &str) {
        let mut all = self.0.lock();
        all.retain(|_, then| then.elapsed() < REMEMBERED);
        all.insert(host.to_owned(), Instant::now());
    }

    /// It has answered.
    pub(crate) fn remove(&self, host: &str) {
        self.0.lock().remove(host);
    }

    pub(crate) fn has(&self, host: &str) -> bool {
        self.0.lock().get(host).is_some_and(|then| then.elapsed() < REMEMBERED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn for_a_minute() {
        let failing = Failing::default();
        failing.add("a:1");
        assert!(failing.has("a:1") && !failing.has("a:2"));
        failing.remove("a:1");
        assert!(!failing.has("a:1"));
        failing.add("a:1");
        *failing.0.lock().get_mut("a:1").unwrap() = Instant::now().checked_sub(REMEMBERED).unwrap();
        assert!(!failing.has("a:1"));
        failing.add("a:2");
        assert_eq!(failing.0.lock().len(), 1);
    }
}
