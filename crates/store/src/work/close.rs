//! Closes a store in this process: stops its threads and releases its lock, with a bounded wait for the disk.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::store::Inner;

/// How long a close waits for threads that wait for the disk.
const CLOSING: Duration = Duration::from_secs(2);
/// How long it waits for new layers to be on the disk: the next process distrusts those that are not, and fetches them
/// again.
const WRITTEN: Duration = Duration::from_secs(1);

impl Inner {
    pub(crate) fn close(&self) {
        if !self.closed.swap(true, Ordering::AcqRel) {
            self.durability.drain(WRITTEN, &|| false);
            let until = Instant::now() + CLOSING;
            self.durability.stop();
            let stopped = [self.door.stop(until), self.reaper.stop(until), self.measurer.stop(until)];
            let spares = self.ready.close();
            if stopped == [true; 3] {
                self.save_used();
                drop(spares);
                self.remove_spares(until);
            } else {
                // The spares are left to the next server: their unmount could wait for the same slow disk.
                tracing::warn!("the disk is slow: what the store was deleting is left to the next server");
                std::mem::forget(spares);
            }
            // An open reference would keep an overlay mounted beyond the end of its container, which outlives this
            // process.
            self.honest.lock().clear();
            self.upper.let_go();
            *self.lock.lock() = None;
        }
    }

    /// Removes pairs and spares. If that fails, the next server finds them.
    fn remove_spares(&self, until: Instant) {
        let Ok(records) = self.layout.records.all() else { return };
        self.pool.close();
        for name in self.names.disown_all() {
            let spare = !records.iter().any(|record| record.dir == name);
            if let Some(name) = std::ffi::CString::new(name).ok().filter(|_| spare) {
                let _ = self.upper.remove(&name, &|| Instant::now() >= until);
            }
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.close();
    }
}
