//! The end of a store in this process: its threads are stopped, and another server may have it. Nobody waits longer than a
//! moment for the disk.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::disk::remove;
use crate::store::Inner;

/// How long a close waits for threads that wait for the disk.
const CLOSING: Duration = Duration::from_secs(2);

impl Inner {
    pub(crate) fn close(&self) {
        if !self.closed.swap(true, Ordering::AcqRel) {
            let until = Instant::now() + CLOSING;
            self.durability.stop();
            let stopped = [self.door.stop(until), self.reaper.stop(until), self.measurer.stop(until)];
            let spares = self.ready.close();
            if stopped == [true; 3] {
                self.save_used();
                drop(spares);
                self.remove_spares(until);
            } else {
                // The next server finds what was made ahead. To unmount it could take as long as what is waited for.
                tracing::warn!("the disk is slow: what the store was deleting is left to the next server");
                std::mem::forget(spares);
            }
            // An open reference would keep the overlay of a container that lives on from ending with it.
            self.honest.lock().clear();
            *self.lock.lock() = None;
        }
    }

    /// Removes what was made ahead. If that fails, the next server finds it.
    fn remove_spares(&self, until: Instant) {
        let Ok(records) = self.layout.records.all() else { return };
        for name in self.pool.close() {
            let spare = !records.iter().any(|record| record.dir == name);
            if let Some(name) = std::ffi::CString::new(name).ok().filter(|_| spare) {
                let _ = remove::tree(&self.layout.rootfs, &name, &|| Instant::now() >= until);
            }
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.close();
    }
}
