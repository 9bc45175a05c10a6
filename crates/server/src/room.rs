//! Bounds on memory that all connections share: whatever is large waits for room.
//!
//! Ordinary requests and replies are small, and never wait. With less than a gigabyte of memory the bounds
//! are lower.

use crate::cut::Cut;
use crate::reply::Failure;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use wardian_engine::Error;
use wardian_sys::memory::budget;

/// The most bytes of a small body or reply: a socket buffer of the kernel holds more.
pub(crate) const SMALL: usize = 32 << 10;
/// The most KiB of larger bodies, each from its request, which declares its length, until that is answered.
const BODIES: usize = 16 << 10;
/// The most larger replies under way.
const REPLIES: usize = 16;
/// The most payloads under way that are longer than clients usually make them.
const PAYLOADS: usize = 16;
/// The most tars on their way out. Each holds up to half a megabyte that its client has not taken yet.
const TARS: usize = 48;
/// A holder whose client has taken nothing, or sent less than [`PIECE`], for this long may be cut off for another one.
const IDLE: Duration = Duration::from_secs(1);
/// Bytes of a body that a client sends in [`IDLE`] at least while others wait.
pub(crate) const PIECE: usize = 16 << 10;
/// The poll interval of a request that waits for room.
const LOOK: Duration = Duration::from_millis(100);
/// How long a request waits for room.
const PATIENCE: Duration = Duration::from_secs(30);

/// A reservation, released on drop.
pub(crate) type Room = OwnedSemaphorePermit;

/// The bounds.
#[derive(Debug)]
pub(crate) struct Rooms {
    bodies: Arc<Semaphore>,
    replies: Arc<Semaphore>,
    payloads: Arc<Semaphore>,
    most_bodies: usize,
    most_tars: usize,
    tars: Holders,
    reading: Holders,
    /// Held by the request that looks for an idle holder on behalf of all that wait for the room of a body.
    looks: tokio::sync::Mutex<()>,
}

/// A holder of room that may have to wait for its client.
#[derive(Debug)]
struct Holder {
    cut: Cut,
    /// Since when the client has taken nothing, or sent too little; `None` while it has nothing to do.
    idle: Mutex<Option<Instant>>,
}

/// All holders of one kind of room.
type Holders = Arc<Mutex<Vec<Arc<Holder>>>>;

/// The room of a tar on its way out, or of a body on its way in, released on drop.
#[derive(Debug)]
pub(crate) struct Held {
    holder: Arc<Holder>,
    all: Holders,
    /// The permit, for a body.
    _room: Option<Room>,
}

impl Held {
    /// Awaits `taken`, and counts the time as one in which the client does nothing.
    pub(crate) async fn while_idle<T>(&self, taken: impl Future<Output = T>) -> T {
        self.owes();
        let taken = taken.await;
        self.is_whole();
        taken
    }

    /// The client has to send the body, or its next piece.
    pub(crate) fn owes(&self) {
        *self.holder.idle.lock() = Some(Instant::now());
    }

    /// The client has nothing to do any more.
    pub(crate) fn is_whole(&self) {
        *self.holder.idle.lock() = None;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.all.lock().retain(|holder| !Arc::ptr_eq(holder, &self.holder));
    }
}

/// Cuts off the holder whose client has done nothing for the longest time, if that is long enough. Returns
/// whether there was one.
fn cut_idle(all: &mut Vec<Arc<Holder>>) -> bool {
    let idle = |holder: &Arc<Holder>| holder.idle.lock().filter(|since| since.elapsed() >= IDLE);
    let longest = all.iter().enumerate().filter_map(|(at, holder)| Some((idle(holder)?, at))).min();
    let Some((_, at)) = longest else { return false };
    all.swap_remove(at).cut.cut();
    true
}

impl Default for Rooms {
    fn default() -> Self {
        let semaphore = |room: usize| Arc::new(Semaphore::new(room));
        let bodies = budget(BODIES << 10, 16) >> 10;
        let payloads = budget(PAYLOADS << 20, 32) >> 20;
        let tars = budget(TARS << 19, 16) >> 19;
        Self {
            bodies: semaphore(bodies.max(1)),
            replies: semaphore(REPLIES),
            payloads: semaphore(payloads.max(1)),
            most_bodies: bodies.max(1),
            most_tars: tars.max(1),
            tars: Arc::default(),
            reading: Arc::default(),
            looks: Default::default(),
        }
    }
}

impl Rooms {
    /// Reserves room for a body of `bytes`; a small one needs none. While there is no room, the connection
    /// whose client owes its body and has been too slow for the longest time is cut off.
    ///
    /// # Errors
    /// There is none in time.
    pub(crate) async fn body(&self, bytes: u64, cut: Cut) -> Result<Option<Held>, Failure> {
        if bytes <= SMALL as u64 {
            return Ok(None);
        }
        let kilobytes = usize::try_from(bytes.div_ceil(1024)).unwrap_or(BODIES).min(self.most_bodies);
        let look = async {
            let _looks = self.looks.lock().await;
            loop {
                let before = Instant::now();
                tokio::time::sleep(LOOK).await;
                let mut reading = self.reading.lock();
                if before.elapsed() < LOOK * 3 {
                    cut_idle(&mut reading);
                } else {
                    // This process was stopped, or had no processor: what clients have sent meanwhile is unread.
                    let waiting = reading.iter().filter_map(|holder| holder.idle.try_lock());
                    waiting.for_each(|mut idle| *idle = idle.map(|_| Instant::now()));
                }
            }
        };
        let room = tokio::select! {
            biased;
            room = enter(&self.bodies, kilobytes, "large request bodies") => room?,
            never = look => never,
        };
        let holder = Arc::new(Holder { cut, idle: Mutex::default() });
        self.reading.lock().push(holder.clone());
        let held = Held { holder, all: self.reading.clone(), _room: Some(room) };
        held.owes();
        Ok(Some(held))
    }

    /// Reserves room for a large reply.
    ///
    /// # Errors
    /// There is none in time.
    pub(crate) async fn reply(&self) -> Result<Room, Failure> {
        enter(&self.replies, 1, "large replies").await
    }

    /// Reserves room for a tar on its way out. If there are too many, the one whose client has taken nothing
    /// for the longest time is cut off.
    ///
    /// # Errors
    /// All clients take what they get.
    pub(crate) async fn tar(&self, cut: Cut) -> Result<Held, Failure> {
        let begun = Instant::now();
        let holder = Arc::new(Holder { cut, idle: Mutex::default() });
        while !self.make_room(&holder) {
            if begun.elapsed() > PATIENCE {
                return Err(busy("tars on their way out").into());
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(Held { holder, all: self.tars.clone(), _room: None })
    }

    fn make_room(&self, tar: &Arc<Holder>) -> bool {
        let mut all = self.tars.lock();
        if all.len() >= self.most_tars && !cut_idle(&mut all) {
            return false;
        }
        all.push(tar.clone());
        true
    }

    /// Reserves room for a long payload, which is held for a short time only.
    pub(crate) async fn payload(&self) -> Option<Room> {
        self.payloads.clone().acquire_owned().await.ok()
    }
}

async fn enter(rooms: &Arc<Semaphore>, count: usize, what: &str) -> Result<Room, Failure> {
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    match tokio::time::timeout(PATIENCE, rooms.clone().acquire_many_owned(count)).await {
        Ok(Ok(room)) => Ok(room),
        _ => Err(busy(what).into()),
    }
}

fn busy(what: &str) -> Error {
    Error::Busy(format!(
        "too many {what} at a time: there was no room for another in {} s; try again in a moment",
        PATIENCE.as_secs()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_large_waits_and_what_is_small_does_not() {
        let rooms = Rooms::default();
        let mut held = Vec::new();
        for _ in 0..BODIES / 4096 {
            held.push(rooms.body(4 << 20, Cut::default()).await.unwrap().unwrap());
        }
        assert!(rooms.body(SMALL as u64, Cut::default()).await.unwrap().is_none());
        let error = rooms.body(SMALL as u64 + 1, Cut::default()).await.unwrap_err().body();
        assert_eq!(error.kind(), wardian_garden::ErrorKind::ServiceUnavailable);
        held.pop();
        assert!(rooms.body(SMALL as u64 + 1, Cut::default()).await.unwrap().is_some());
        // One that is larger than all there is gets all there is.
        held.clear();
        assert!(rooms.body(u64::MAX, Cut::default()).await.unwrap().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn who_owes_a_body_and_sends_nothing_makes_room_for_another() {
        let rooms = Rooms::default();
        let silent = Cut::default();
        let mut held = vec![rooms.body(u64::MAX, silent.clone()).await.unwrap().unwrap()];
        let silence = async {
            // Its connection ends when it is told to.
            let held = held.pop().unwrap();
            tokio::select! {
                () = held.while_idle(silent.told.notified()) => {}
                () = tokio::time::sleep(PATIENCE) => panic!("it is never told"),
            }
        };
        let begun = Instant::now();
        let (room, ()) = tokio::join!(rooms.body(SMALL as u64 + 1, Cut::default()), silence);
        assert!(room.unwrap().is_some());
        assert!(begun.elapsed() >= IDLE && begun.elapsed() < IDLE * 2, "{:?}", begun.elapsed());
        assert_eq!(rooms.reading.lock().len(), 0, "the room was dropped at once");
    }

    #[tokio::test(start_paused = true)]
    async fn a_tar_that_nobody_takes_makes_room_for_another() {
        let rooms = Rooms::default();
        let mut held = Vec::new();
        for _ in 0..TARS {
            held.push(rooms.tar(Cut::default()).await.unwrap());
        }
        // All clients take what they get.
        let error = rooms.tar(Cut::default()).await.unwrap_err().body();
        assert_eq!(error.kind(), wardian_garden::ErrorKind::ServiceUnavailable);
        let stuck = |room: &Held, ago| *room.holder.idle.lock() = Some(Instant::now() - ago);
        stuck(&held[5], Duration::from_secs(3));
        stuck(&held[7], Duration::from_secs(9));
        stuck(&held[8], Duration::ZERO);
        held.push(rooms.tar(Cut::default()).await.unwrap());
        assert!(!rooms.tars.lock().iter().any(|tar| Arc::ptr_eq(tar, &held[7].holder)));
        drop(held);
        assert!(rooms.tars.lock().is_empty());
    }
}
