//! The memory budget of all unpacks of this process together.
//!
//! An unpack takes a share of the room when it has data to work on. It returns the share at its end, or earlier if it
//! waits for a server while others wait for room, so that a slow server delays nobody. Only the window of a zstd
//! decoder cannot be freed in between: a blob that is still being received gets such a firm share only while half of
//! the room stays free; otherwise the blob is received completely first.

use parking_lot::{Condvar, Mutex, MutexGuard};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

/// The size of the room in bytes, or this part (1/N) of the process's memory limit if that is less.
const MOST: usize = 256 << 20;
const PART: usize = 16;
/// The interval at which a waiting thread checks whether it was cancelled.
const LOOK: Duration = Duration::from_millis(50);
/// Bytes of one buffer.
pub(crate) const PIECE: usize = 256 << 10;

#[derive(Debug)]
struct State {
    free: usize,
    /// The tickets of waiting threads, in order of arrival: a large share must not starve behind small ones.
    waiting: VecDeque<u64>,
    tickets: u64,
}

/// A number of bytes of memory, granted in order of arrival.
#[derive(Debug)]
pub(crate) struct Room {
    size: usize,
    state: Mutex<State>,
    changed: Condvar,
}

impl Room {
    pub(crate) fn new(size: usize) -> Self {
        let state = State { free: size, waiting: VecDeque::new(), tickets: 0 };
        Self { size, state: Mutex::new(state), changed: Condvar::new() }
    }

    /// The room for unpacks in this process.
    pub(crate) fn of_all() -> &'static Self {
        static ROOM: LazyLock<Room> = LazyLock::new(|| Room::new(wardian_sys::memory::budget(MOST, PART)));
        &ROOM
    }

    /// The room for directory trees that are scanned or read. It is separate, because the reader of a tree unpacks it
    /// at the same time, and must not wait for memory that it holds itself.
    pub(crate) fn of_trees() -> &'static Self {
        static ROOM: LazyLock<Room> = LazyLock::new(|| Room::new(wardian_sys::memory::budget(MOST, PART)));
        &ROOM
    }

    /// Takes this many bytes, or the whole room if it is smaller; returns how many. `None` if `stop` returns true
    /// first.
    fn take(&self, bytes: usize, stop: &dyn Fn() -> bool) -> Option<usize> {
        let bytes = bytes.min(self.size);
        let mut state = self.state.lock();
        let ticket = state.tickets;
        state.tickets += 1;
        state.waiting.push_back(ticket);
        let taken = loop {
            if state.waiting.front() == Some(&ticket) && state.free >= bytes {
                state.free -= bytes;
                break Some(bytes);
            }
            if stop() {
                break None;
            }
            self.changed.wait_for(&mut state, LOOK);
        };
        state.waiting.retain(|other| *other != ticket);
        self.changed.notify_all();
        taken
    }

    /// Takes this many bytes if nobody waits and half of the room stays free.
    fn take_of_plenty(&self, bytes: usize) -> bool {
        let mut state = self.state.lock();
        let plenty = state.waiting.is_empty() && state.free >= bytes + self.size / 2;
        if plenty {
            state.free -= bytes;
        }
        plenty
    }

    fn give(&self, bytes: usize) {
        self.state.lock().free += bytes;
        self.changed.notify_all();
    }

    #[cfg(test)]
    pub(crate) fn free(&self) -> usize {
        self.state.lock().free
    }

    pub(crate) fn is_wanted(&self) -> bool {
        !self.state.lock().waiting.is_empty()
    }
}

/// Bytes taken from a room; they are returned when this is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    room: &'static Room,
    bytes: usize,
}

impl Held {
    /// Waits for this many bytes, or for the whole room if it is smaller; `None` if `stop` returns true first.
    pub(crate) fn of(room: &'static Room, bytes: usize, stop: &dyn Fn() -> bool) -> Option<Self> {
        let bytes = room.take(bytes, stop)?;
        Some(Self { room, bytes })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.room.give(self.bytes);
    }
}

#[derive(Debug, Default)]
struct Buffers {
    /// Free buffers.
    spare: Vec<Vec<u8>>,
    /// The number of buffers in use.
    out: usize,
}

/// The bytes that one unpack holds of the room, and its buffers.
#[derive(Debug)]
pub(crate) struct Share<'a> {
    room: &'a Room,
    held: Mutex<usize>,
    /// Whether the share is held until the end of the unpack.
    firm: AtomicBool,
    buffers: Mutex<Buffers>,
}

impl<'a> Share<'a> {
    pub(crate) fn of(room: &'a Room) -> Self {
        Self { room, held: Mutex::default(), firm: AtomicBool::new(false), buffers: Mutex::default() }
    }

    fn held(&self) -> MutexGuard<'_, usize> {
        self.held.lock()
    }

    fn buffers(&self) -> MutexGuard<'_, Buffers> {
        self.buffers.lock()
    }

    /// Takes this many bytes of the room, unless the share holds some already; false if `stop` returns true first.
    pub(crate) fn take(&self, bytes: usize, stop: &dyn Fn() -> bool) -> bool {
        let mut held = self.held();
        if *held == 0 {
            let Some(taken) = self.room.take(bytes, stop) else { return false };
            *held = taken;
        }
        true
    }

    /// Takes this many bytes for the whole unpack, however slow its server is; false if too little room is free for
    /// that.
    pub(crate) fn take_firm(&self, bytes: usize) -> bool {
        let mut held = self.held();
        let firm = *held == 0 && self.room.take_of_plenty(bytes);
        if firm {
            *held = bytes;
            self.firm.store(true, Ordering::Relaxed);
        }
        firm
    }

    /// Called while waiting for a server: returns the whole share if others wait for room and no data is queued. The
    /// reader and its decoder use one buffer each, so two may be in use.
    pub(crate) fn idle(&self) {
        let mut held = self.held();
        if *held > 0 && !self.firm.load(Ordering::Relaxed) && self.room.is_wanted() {
            let mut buffers = self.buffers();
            if buffers.out <= 2 {
                buffers.spare = Vec::new();
                self.room.give(std::mem::take(&mut *held));
            }
        }
    }

    /// Returns a buffer of [`PIECE`] bytes with arbitrary content.
    pub(crate) fn buffer(&self) -> Vec<u8> {
        let mut buffers = self.buffers();
        buffers.out += 1;
        let mut buffer = buffers.spare.pop().unwrap_or_default();
        drop(buffers);
        buffer.resize(PIECE, 0);
        buffer
    }

    /// Takes the buffer back, unless it is still referenced elsewhere.
    pub(crate) fn give(&self, piece: Arc<Vec<u8>>) {
        if let Some(buffer) = Arc::into_inner(piece).filter(|buffer| buffer.capacity() >= PIECE) {
            let mut buffers = self.buffers();
            buffers.out = buffers.out.saturating_sub(1);
            buffers.spare.push(buffer);
        }
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        let held = std::mem::take(&mut *self.held());
        if held > 0 {
            self.room.give(held);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait_for(room: &Room, waiting: usize) {
        while room.state.lock().waiting.len() != waiting {
            std::thread::yield_now();
        }
    }

    #[test]
    fn who_came_first_goes_first_and_who_has_gone_holds_nobody_up() {
        let room = Room::new(10);
        let first = Share::of(&room);
        assert!(first.take(6, &|| false));
        // A share that holds bytes takes no more; a request for more than the room has gets the whole room.
        assert!(first.take(100, &|| true));
        let order = Mutex::new(Vec::new());
        let gone = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let large = Share::of(&room);
                assert!(!large.take(9, &|| gone.load(Ordering::Relaxed)));
            });
            wait_for(&room, 1);
            for (n, bytes) in [(2, 100), (3, 1)] {
                let (order, room) = (&order, &room);
                scope.spawn(move || {
                    let share = Share::of(room);
                    assert!(share.take(bytes, &|| false));
                    order.lock().push(n);
                });
                wait_for(room, n);
            }
            // There is room for the small one, but it is not its turn.
            assert!(order.lock().is_empty());
            gone.store(true, Ordering::Relaxed);
            wait_for(&room, 2);
            assert!(order.lock().is_empty());
            drop(first);
        });
        assert_eq!(*order.lock(), [2, 3]);
        assert_eq!(room.state.lock().free, 10);
    }

    #[test]
    fn who_cannot_give_way_leaves_half_of_the_room() {
        let room = Room::new(10);
        let (first, second) = (Share::of(&room), Share::of(&room));
        assert!(first.take_firm(4) && !second.take_firm(4) && room.state.lock().free == 6);
        std::thread::scope(|scope| {
            let other = scope.spawn(|| Share::of(&room).take(7, &|| false));
            wait_for(&room, 1);
            first.idle();
            assert!(*first.held() == 4 && !second.take_firm(1), "somebody waits");
            drop(first);
            assert!(other.join().unwrap());
        });
        assert!(second.take_firm(5) && room.state.lock().free == 5);
    }

    #[test]
    fn who_waits_for_a_server_gives_way_but_not_with_data_under_way() {
        let room = Room::new(10);
        let slow = Share::of(&room);
        assert!(slow.take(10, &|| false));
        let buffers = [slow.buffer(), slow.buffer(), slow.buffer()];
        slow.idle();
        assert_eq!(*slow.held(), 10, "nobody wants it");
        std::thread::scope(|scope| {
            let other = scope.spawn(|| Share::of(&room).take(4, &|| false));
            wait_for(&room, 1);
            slow.idle();
            assert_eq!(*slow.held(), 10, "three buffers are in somebody's hands");
            for buffer in buffers {
                slow.give(Arc::new(buffer));
            }
            slow.idle();
            assert!(other.join().unwrap());
        });
        assert_eq!((*slow.held(), slow.buffers().spare.len()), (0, 0));
        assert!(slow.take(10, &|| false));
        drop(slow);
        assert_eq!(room.state.lock().free, 10);
    }
}
