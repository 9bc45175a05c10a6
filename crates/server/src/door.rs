//! Admission of connections: how many may be open at a time, and which one is evicted when there is no room
//! for another.
//!
//! A new connection is in the hall until its first request has been read, and takes no place from any other.
//! For its request it gets a place, and is answered. When all places are taken, the connection whose client
//! has been in debt longest is evicted. A connection is idle while its client owes something: the next
//! request, the rest of a body, or the reading of what it is sent. So clients that hold connections and do
//! nothing keep no others out. Each byte of a body that arrives, and each that the client takes, restarts a
//! debt; bytes of a request's head do not. While all places are working, requests wait, as many as the
//! waiting room holds and for a minute at most; beyond that their connections are closed. When the hall is
//! full, the connection that has owed its request longest is evicted for the next one: strangers who reach
//! the port and send no request can only displace each other. A connection that has been in debt for less
//! than 50 ms is not evicted.
//!
//! A request for the output of a process whose client already holds a place does not wait: if such requests
//! waited for the ends of each other's processes, no place would ever become free. It gets a place beside the
//! common ones. There are two of these, one for each stream, for each place from which a process can be
//! started. Those whose process has lost its client are evicted first when such places are wanted.
//!
//! | state of a connection | counts as | ends after |
//! |---|---|---|
//! | TLS handshake | idle | 10 s ([`crate::connection`]) |
//! | waiting for a request, or for the rest of its head | idle | `--read-header-timeout` |
//! | a JSON body is on its way | idle whenever nothing is there | 60 s for all of it |
//! | a tar is on its way in | idle whenever nothing is there | `--transfer-patience` without a byte |
//! | the request is being answered | working | when it is |
//! | an answer is sent | idle | 60 s without a byte taken |
//! | a tar is on its way out | idle while nothing is taken | `--transfer-patience` without progress |
//! | process, output, events: the client is there | working | with the process, or the client |
//! | process, output, events: it takes nothing | idle | never by itself |
//! | the rest of a tar that nobody wants | idle while nothing is there | 5 s or 64 MiB |
//! | last words after any of these | working | 1 s |
//!
//! For clients on a unix socket that run as root, or as the user of the server, [`RESERVE`] more places are
//! reserved, in which only another such client displaces one. Such a client in a common place is moved to the
//! reserve when it would be evicted.

use parking_lot::{Mutex, MutexGuard};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// The pool of places that a connection is counted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// The connection has sent no request yet, or its first one waits for a place.
    Hall,
    /// The hall for clients with reserved places.
    OwnHall,
    Common,
    /// The reserved places, for the administrator.
    Reserve,
    /// Places beside these, for the output of processes.
    Beside,
}

impl Part {
    fn hall(local: bool) -> Self {
        if local { Self::OwnHall } else { Self::Hall }
    }
}

/// The most bytes of memory that a connection without a request may take: that of a TLS handshake.
const NEWCOMER: usize = 96 << 10;
/// The number of reserved places, for the host's own administrator.
pub(crate) const RESERVE: usize = 16;
/// How long a request waits for a place, …
const WAITING_TIME: Duration = Duration::from_secs(60);
/// … and the poll interval at which one of the waiting requests looks for a connection that has become idle,
/// or due.
const LOOK: Duration = Duration::from_millis(2);
/// How long after an eviction the next connection is evicted if no place has become free: an evicted one may
/// need a while, as for the cancelling of a transfer.
const AGAIN: Duration = Duration::from_millis(500);
/// A connection that has been in debt for less than this is not evicted: what its client owes may have
/// arrived already, unread, while a burst of connections is being accepted; or it may come as soon as a
/// client on another host has received what this server sent.
const GRACE: Duration = Duration::from_millis(50);
/// The least time between two warnings that connections are closed because there are too many.
const WARNING: Duration = Duration::from_secs(10);

/// The door.
#[derive(Debug)]
pub(crate) struct Door {
    /// Connections that owe their first request: of ordinary clients, and of those with reserved places.
    halls: [Arc<Semaphore>; 2],
    /// Requests that wait for a place: of ordinary clients, and of those with reserved places.
    rooms: [Arc<Semaphore>; 2],
    common: Arc<Semaphore>,
    reserve: Arc<Semaphore>,
    beside: Arc<Semaphore>,
    /// Held by the request that polls on behalf of all waiting ones: for ordinary clients, and for those with
    /// reserved places.
    looks: [tokio::sync::Mutex<()>; 2],
    idle: Mutex<Idle>,
    warned: Mutex<Option<Instant>>,
}

#[derive(Debug)]
struct Idle {
    /// The idle connections of each [`Part`].
    queues: [Queue; 5],
    next: u64,
    /// The requests that wait for a place, and the evictions whose places have not been taken yet. Both are
    /// counted for all requests together, because a place goes to the request that has waited longest, not to
    /// the one that caused the eviction.
    waiting: usize,
    asked: usize,
    /// When a connection was last evicted.
    last: Instant,
}

/// The idle connections of a part by their numbers, the longest in debt first, each with the beginning of its
/// debt.
type Queue = BTreeMap<u64, (Instant, Arc<Seat>)>;

/// The position of an idle connection in its queue.
#[derive(Debug, Clone, Copy)]
struct Turn {
    part: Part,
    number: u64,
}

impl Idle {
    fn queue(&mut self, part: Part) -> &mut Queue {
        &mut self.queues[part as usize]
    }

    /// Returns the next connection of this part to evict. One that is not due yet is not evicted, and neither
    /// is any behind it.
    fn next(&mut self, part: Part, now: Instant) -> Option<(Turn, Instant, Arc<Seat>)> {
        let (&number, (since, seat)) = self.queue(part).first_key_value()?;
        let is_due = now.saturating_duration_since(*since) >= GRACE;
        is_due.then(|| (Turn { part, number }, *since, seat.clone()))
    }

    fn send_away(&mut self, turn: Turn, seat: &Seat, state: &mut SeatState) {
        self.queue(turn.part).remove(&turn.number);
        state.turn = None;
        seat.gone.store(true, Ordering::Relaxed);
        seat.evicted.notify_one();
    }
}

/// The state that the door keeps of a connection.
#[derive(Debug)]
struct Seat {
    local: bool,
    /// Locked after [`Door::idle`] where both are held.
    state: Mutex<SeatState>,
    gone: AtomicBool,
    evicted: Notify,
}

#[derive(Debug)]
struct SeatState {
    /// The permit of its part, or of the waiting room.
    permit: Option<OwnedSemaphorePermit>,
    part: Part,
    /// The connection waits for a request.
    resting: bool,
    /// The number of debts of its client.
    owing: usize,
    /// Its position in the queue while it is idle.
    turn: Option<Turn>,
}

impl Seat {
    fn state(&self) -> MutexGuard<'_, SeatState> {
        self.state.lock()
    }
}

/// A connection's place. Dropping it frees the place.
#[derive(Debug)]
pub(crate) struct Place {
    door: Arc<Door>,
    seat: Arc<Seat>,
    replies: AtomicBool,
    cut: AtomicBool,
}

/// A debt of a connection's client: something that the client owes, until this is dropped.
#[derive(Debug)]
pub(crate) struct Owed(Arc<Place>);

impl Door {
    /// Makes a door with `places` common places.
    pub(crate) fn new(places: usize) -> Arc<Self> {
        let semaphore = |n: usize| Arc::new(Semaphore::new(n.clamp(1, Semaphore::MAX_PERMITS)));
        let hall = || {
            let fit = wardian_sys::memory::budget(2048 * NEWCOMER, 16) / NEWCOMER;
            semaphore(places.clamp(128, 2048).min(fit.max(64)))
        };
        let idle = Idle { queues: Default::default(), next: 0, waiting: 0, asked: 0, last: Instant::now() };
        Arc::new(Self {
            halls: [hall(), hall()],
            // Bursts of the administrator's own requests wait.
            rooms: [semaphore((places / 4).clamp(64, 1024)), semaphore(1024)],
            common: semaphore(places),
            reserve: semaphore(RESERVE),
            beside: semaphore(places.saturating_add(RESERVE).saturating_mul(2)),
            looks: Default::default(),
            idle: idle.into(),
            warned: None.into(),
        })
    }

    /// Admits a connection that has sent no request yet. `None`: the hall is full, and no connection in it is
    /// due for eviction.
    pub(crate) fn enter(self: &Arc<Self>, local: bool) -> Option<Arc<Place>> {
        let part = Part::hall(local);
        let permit = self.halls[usize::from(local)].clone().try_acquire_owned().ok();
        let permit = permit.or_else(|| self.take_from(part))?;
        let state = SeatState { permit: Some(permit), part, resting: false, owing: 0, turn: None };
        let seat = Seat { local, state: state.into(), gone: AtomicBool::new(false), evicted: Notify::new() };
        let place = Place {
            door: self.clone(),
            seat: seat.into(),
            replies: AtomicBool::new(false),
            cut: AtomicBool::new(false),
        };
        place.rests();
        Some(Arc::new(place))
    }

    /// Admits the next connection of the kernel's accept queue. A local one waits for room; others do not,
    /// since they would delay those behind them.
    pub(crate) async fn admit(self: &Arc<Self>, local: bool) -> Option<Arc<Place>> {
        let until = Instant::now() + WAITING_TIME;
        loop {
            let place = self.enter(local);
            if place.is_some() {
                return place;
            }
            if !local || Instant::now() >= until {
                self.warn("more come than can be heard");
                return None;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Warns that connections are closed, at most once per [`WARNING`].
    fn warn(&self, why: &str) {
        let mut warned = self.warned.lock();
        if warned.is_none_or(|warned| warned.elapsed() > WARNING) {
            tracing::warn!("connections are closed: {why}");
            *warned = Some(Instant::now());
        }
    }

    /// Evicts the next connection of a part and takes its permit at once, without waiting for its end:
    /// connections in these parts end as soon as they are told.
    fn take_from(&self, part: Part) -> Option<OwnedSemaphorePermit> {
        let mut idle = self.idle.lock();
        let (turn, _, seat) = idle.next(part, Instant::now())?;
        let mut state = seat.state();
        idle.send_away(turn, &seat, &mut state);
        state.permit.take()
    }

    /// Evicts idle connections that are due, at most one for each waiting request.
    fn evict(&self, local: bool) {
        let mut idle = self.idle.lock();
        let now = Instant::now();
        if now.saturating_duration_since(idle.last) >= AGAIN {
            idle.asked = 0;
        }
        while idle.asked < idle.waiting && self.evict_one(&mut idle, local, now) {
            (idle.asked, idle.last) = (idle.asked + 1, now);
        }
    }

    fn evict_one(&self, idle: &mut Idle, local: bool, now: Instant) -> bool {
        // In the reserve a connection is evicted only while no common one is idle.
        let part = if local && idle.queue(Part::Common).is_empty() { Part::Reserve } else { Part::Common };
        let Some((turn, since, seat)) = idle.next(part, now) else { return false };
        let mut state = seat.state();
        if seat.local
            && part == Part::Common
            && let Ok(permit) = self.reserve.clone().try_acquire_owned()
        {
            let moved = Turn { part: Part::Reserve, ..turn };
            (state.permit, state.part, state.turn) = (Some(permit), moved.part, Some(moved));
            drop(state);
            idle.queue(part).remove(&turn.number);
            idle.queue(moved.part).insert(turn.number, (since, seat));
        } else {
            idle.send_away(turn, &seat, &mut state);
        }
        true
    }
}

/// Counts a waiting request, until dropped.
struct Counted<'a>(&'a Door);

impl<'a> Counted<'a> {
    fn new(door: &'a Door) -> Self {
        door.idle.lock().waiting += 1;
        Self(door)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        let mut idle = self.0.idle.lock();
        idle.waiting = idle.waiting.saturating_sub(1);
        idle.asked = idle.asked.saturating_sub(1);
    }
}

impl Place {
    /// Whether this is the connection of a client with reserved places.
    pub(crate) fn is_local(&self) -> bool {
        self.seat.local
    }

    /// Applies a change, and updates the connection's position in the idle queue. With `anew` an idle
    /// connection's debt starts anew.
    fn settle(&self, anew: bool, change: impl FnOnce(&mut SeatState)) {
        let mut idle = self.door.idle.lock();
        let mut state = self.seat.state();
        change(&mut state);
        // In the hall only a missing request counts as idle. Beside the common places there is enough room
        // for all connections whose processes have clients, whatever they owe.
        let owes = state.owing > 0 && matches!(state.part, Part::Common | Part::Reserve);
        let is_idle = (state.resting || owes) && !self.is_gone();
        if (anew || !is_idle)
            && let Some(turn) = state.turn.take()
        {
            idle.queue(turn.part).remove(&turn.number);
        }
        if is_idle && state.turn.is_none() {
            idle.next += 1;
            let turn = Turn { part: state.part, number: idle.next };
            state.turn = Some(turn);
            idle.queue(turn.part).insert(turn.number, (Instant::now(), self.seat.clone()));
        }
    }

    /// Marks the connection as waiting for a request.
    pub(crate) fn rests(&self) {
        self.settle(true, |state| state.resting = true);
    }

    /// Waits until a request that has arrived may be answered. `fetches`: whether it is the first request for
    /// a stream of a process, which does not wait. Returns false if the connection has been evicted, if there
    /// is no place in time or too many requests wait for one, or if this is a further request on a connection
    /// that was admitted for a stream.
    pub(crate) async fn works(&self, fetches: impl FnOnce() -> bool) -> bool {
        self.settle(false, |state| state.resting = false);
        if self.is_gone() {
            return false;
        }
        let part = self.seat.state().part;
        if part != Part::hall(self.is_local()) {
            return part != Part::Beside;
        }
        if let Ok(permit) = self.door.common.clone().try_acquire_owned() {
            self.sits(permit, Part::Common);
            return true;
        }
        let waits = async { if fetches() { self.waits_beside().await } else { self.waits().await } };
        tokio::time::timeout(WAITING_TIME, waits).await.unwrap_or(false)
    }

    /// Gives the connection its place, and releases the permit that it held before.
    fn sits(&self, permit: OwnedSemaphorePermit, part: Part) {
        let mut state = self.seat.state();
        (state.permit, state.part) = (Some(permit), part);
    }

    /// Waits until the request has a place, in the order of arrival. Returns false if too many wait.
    async fn waits(&self) -> bool {
        let (door, local) = (&self.door, self.is_local());
        if local && let Ok(permit) = door.reserve.clone().try_acquire_owned() {
            self.sits(permit, Part::Reserve);
            return true;
        }
        let Ok(room) = door.rooms[usize::from(local)].clone().try_acquire_owned() else {
            door.warn("all places are at work, and as many requests wait as may");
            return false;
        };
        self.seat.state().permit = Some(room);
        let mut common = pin!(door.common.clone().acquire_owned());
        let mut reserve = pin!(door.reserve.clone().acquire_owned());
        let _counted = Counted::new(door);
        door.evict(local);
        // One of the waiting requests polls for all of them.
        let look = async {
            let _looks = door.looks[usize::from(local)].lock().await;
            loop {
                tokio::time::sleep(LOOK).await;
                door.evict(local);
            }
        };
        let (permit, part) = tokio::select! {
            biased;
            permit = &mut common => (permit, Part::Common),
            permit = &mut reserve, if local => (permit, Part::Reserve),
            never = look => never,
        };
        permit.is_ok_and(|permit| {
            self.sits(permit, part);
            true
        })
    }

    async fn waits_beside(&self) -> bool {
        let mut permit = pin!(self.door.beside.clone().acquire_owned());
        let permit = loop {
            tokio::select! {
                biased;
                permit = &mut permit => break permit.ok(),
                () = std::future::ready(()) => {}
            }
            if let permit @ Some(_) = self.door.take_from(Part::Beside) {
                break permit;
            }
            tokio::time::sleep(GRACE).await;
        };
        permit.is_some_and(|permit| {
            self.sits(permit, Part::Beside);
            true
        })
    }

    /// Tells that the process whose output the connection reads has no client any more: a connection beside
    /// the common places may be evicted from now on.
    pub(crate) fn orphaned(&self) {
        if self.seat.state().part == Part::Beside {
            self.rests();
        }
    }

    /// Begins a debt of the connection's client.
    pub(crate) fn owes(self: &Arc<Self>) -> Owed {
        self.settle(true, |state| state.owing += 1);
        Owed(self.clone())
    }

    /// Sets whether an answer is being sent that the client has to take in time.
    pub(crate) fn set_replies(&self, replies: bool) {
        self.replies.store(replies, Ordering::Relaxed);
    }

    pub(crate) fn replies(&self) -> bool {
        self.replies.load(Ordering::Relaxed)
    }

    /// Makes all further reads and writes of the connection fail.
    pub(crate) fn cut(&self) {
        self.cut.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_cut(&self) -> bool {
        self.cut.load(Ordering::Relaxed)
    }

    /// Whether the connection is evicted.
    pub(crate) fn is_gone(&self) -> bool {
        self.seat.gone.load(Ordering::Relaxed)
    }

    /// Ready when the connection is evicted. Only one task may wait for this.
    pub(crate) async fn evicted(&self) {
        self.seat.evicted.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.settle(false, |state| {
            (state.resting, state.owing) = (false, 0);
        });
        // A move to the reserve may just have replaced the permit; its lock is released by now.
        drop(self.seat.state().permit.take());
    }
}

impl Drop for Owed {
    fn drop(&mut self) {
        self.0.settle(false, |state| state.owing = state.owing.saturating_sub(1));
    }
}

/// Waits for something that the client of a connection owes; the debt begins unless it is there already.
pub(crate) async fn owed<T>(place: Option<&Arc<Place>>, what: impl Future<Output = T>) -> T {
    let mut what = pin!(what);
    let ready = poll_fn(|cx| Poll::Ready(what.as_mut().poll(cx))).await;
    if let Poll::Ready(done) = ready {
        return done;
    }
    let _owed = place.map(Place::owes);
    what.await
}

#[cfg(test)]
mod tests;
