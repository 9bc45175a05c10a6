//! How many connections may be open at a time, and which one has to go when there is no room for another.
//!
//! A newcomer is in the hall until its first request has come: it is read from there, and takes no place from anybody. With
//! its request it gets a place, and is answered. When all places are taken the one whose client has been in debt longest is
//! closed for it: a connection whose client owes something is idle, be it the next request, the rest of one's body, or the
//! taking of what it is sent. So clients that hold connections and do nothing keep nobody out. Each byte that comes, or goes,
//! begins a debt anew. Where all are at work requests wait, as many as the waiting room holds and a minute at most; beyond
//! that their connections are closed. When the hall is full the one that has owed its request longest is closed for the next
//! newcomer: strangers, who reach the port and bring no request, have only each other to take something from. Nobody is closed
//! who has been in debt for less than 50 ms.
//!
//! A request for the output of a process whose client holds a place already does not wait: the place would never come free if
//! each waited for another's end. It gets one beside the common places, of which there are two for each place from which a
//! process can be started, once for each stream. Those whose process has lost its client go first when these are wanted.
//!
//! | state of a connection | counts as | ends after |
//! |---|---|---|
//! | TLS handshake | idle | 10 s ([`crate::connection`]) |
//! | waiting for a request, or for the rest of its head | idle | `--read-header-timeout`; at once when heads of more than 16 KiB take more than 8 MiB together; with the answer after such a head |
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
//! Clients that run as root, or as the user of the server, on a unix socket find [`RESERVE`] places more, which nobody
//! else gets and where only another of them takes a place away. One that sits in a common place is moved there when it
//! would have to go.

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

/// Where a connection is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// It has brought no request yet, or waits with its first one.
    Hall,
    /// The same for those for whom there is a reserve.
    OwnHall,
    Common,
    /// For the administrator.
    Reserve,
    /// Beside these, for the output of processes.
    Beside,
}

impl Part {
    fn hall(local: bool) -> Self {
        if local { Self::OwnHall } else { Self::Hall }
    }
}

/// Bytes that a connection without a request may cost: a TLS handshake is that long.
const NEWCOMER: usize = 80 << 10;
/// Places beyond the others, for the host's own administrator.
pub(crate) const RESERVE: usize = 16;
/// Bytes of a request's head that every connection may have sent; …
const HEAD: usize = 16 << 10;
/// … and KiB that all may have sent beyond that: the buffer of a connection keeps its longest head until the connection ends.
const HEADS: usize = 8 << 10;
/// How long a request waits for a place, …
const WAITING_TIME: Duration = Duration::from_secs(60);
/// … and how often one of those that wait looks whether somebody has become idle, or is due.
const LOOK: Duration = Duration::from_millis(2);
/// One that has to go may need a while for it, as a transfer does that has to be cancelled: after so long another one goes.
const AGAIN: Duration = Duration::from_millis(500);
/// Who has been in debt for less time is not closed for another: what it owes may be here already, unread, while a burst of
/// connections is being accepted; or it may come as soon as a client on another host has heard from here.
const GRACE: Duration = Duration::from_millis(50);
/// Between two warnings that connections are closed because there are too many.
const WARNING: Duration = Duration::from_secs(10);

/// The door.
#[derive(Debug)]
pub(crate) struct Door {
    /// Who may owe its first request: others, and those for whom there is a reserve.
    halls: [Arc<Semaphore>; 2],
    /// Whose request may wait for a place: others, and those for whom there is a reserve.
    rooms: [Arc<Semaphore>; 2],
    common: Arc<Semaphore>,
    reserve: Arc<Semaphore>,
    beside: Arc<Semaphore>,
    /// KiB for long heads, for others and for those for whom there is a reserve.
    heads: [Arc<Semaphore>; 2],
    /// Who looks for places on behalf of all that wait: others, and those for whom there is a reserve.
    looks: [tokio::sync::Mutex<()>; 2],
    idle: Mutex<Idle>,
    warned: Mutex<Option<Instant>>,
}

#[derive(Debug)]
struct Idle {
    /// In each [`Part`].
    queues: [Queue; 5],
    next: u64,
    /// Requests that wait for a place, and places that have been asked for and not been taken yet. They are counted for all
    /// together, because a place goes to whoever has waited longest, and not to who has asked for it.
    waiting: usize,
    asked: usize,
    /// When one was asked for last.
    last: Instant,
}

/// The idle ones of a part by their numbers, the longest in debt first; and since when.
type Queue = BTreeMap<u64, (Instant, Arc<Seat>)>;

/// Where an idle connection stands.
#[derive(Debug, Clone, Copy)]
struct Turn {
    part: Part,
    number: u64,
}

impl Idle {
    fn queue(&mut self, part: Part) -> &mut Queue {
        &mut self.queues[part as usize]
    }

    /// Who has to go next in this part. One who is not due yet goes for nobody, and neither does anybody behind him.
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

/// What the door knows of a connection.
#[derive(Debug)]
struct Seat {
    local: bool,
    /// Locked by who holds the lock of [`Door::idle`].
    state: Mutex<SeatState>,
    gone: AtomicBool,
    evicted: Notify,
}

#[derive(Debug)]
struct SeatState {
    /// Of its part, or of the waiting room.
    permit: Option<OwnedSemaphorePermit>,
    part: Part,
    /// It waits for a request.
    resting: bool,
    /// What its client owes, in number.
    owing: usize,
    /// Its turn while it is idle.
    turn: Option<Turn>,
    /// Bytes of a head that have come, and the room that they take.
    head: usize,
    long: Option<OwnedSemaphorePermit>,
}

impl Seat {
    fn state(&self) -> MutexGuard<'_, SeatState> {
        self.state.lock()
    }
}

/// What a connection holds of the door. Its end makes room.
#[derive(Debug)]
pub(crate) struct Place {
    door: Arc<Door>,
    seat: Arc<Seat>,
    replies: AtomicBool,
    cut: AtomicBool,
}

/// A debt of a connection's client, until it is dropped.
#[derive(Debug)]
pub(crate) struct Owed(Arc<Place>);

impl Door {
    /// With so many places.
    pub(crate) fn new(places: usize) -> Arc<Self> {
        let semaphore = |n: usize| Arc::new(Semaphore::new(n.clamp(1, Semaphore::MAX_PERMITS)));
        let hall = || {
            let fit = wardian_sys::memory::budget(2048 * NEWCOMER, 16) / NEWCOMER;
            semaphore(places.clamp(128, 2048).min(fit.max(64)))
        };
        let heads = || semaphore(wardian_sys::memory::budget(HEADS << 10, 64) >> 10);
        let idle = Idle { queues: Default::default(), next: 0, waiting: 0, asked: 0, last: Instant::now() };
        Arc::new(Self {
            halls: [hall(), hall()],
            // The administrator's own burst waits.
            rooms: [semaphore((places / 4).clamp(64, 1024)), semaphore(1024)],
            common: semaphore(places),
            reserve: semaphore(RESERVE),
            beside: semaphore(places.saturating_add(RESERVE).saturating_mul(2)),
            heads: [heads(), heads()],
            looks: Default::default(),
            idle: idle.into(),
            warned: None.into(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Idle> {
        self.idle.lock()
    }

    /// Admits a connection that has sent no request yet. `None`: the hall is full, and nobody in it has been idle long enough to be
    /// closed.
    pub(crate) fn enter(self: &Arc<Self>, local: bool) -> Option<Arc<Place>> {
        let part = Part::hall(local);
        let permit = self.halls[usize::from(local)].clone().try_acquire_owned().ok();
        let permit = permit.or_else(|| self.take_from(part))?;
        let state = SeatState {
            permit: Some(permit),
            part,
            resting: false,
            owing: 0,
            turn: None,
            head: 0,
            long: None,
        };
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

    /// The same for one that is next in the kernel's queue. The administrator's own burst waits there; others are not waited
    /// for: whoever comes behind them would be.
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

    /// Connections are closed that have not done anything.
    fn warn(&self, why: &str) {
        let mut warned = self.warned.lock();
        if warned.is_none_or(|warned| warned.elapsed() > WARNING) {
            tracing::warn!("connections are closed: {why}");
            *warned = Some(Instant::now());
        }
    }

    /// What one held that has to go, for somebody else at once: it is where connections end as soon as they are told.
    fn take_from(&self, part: Part) -> Option<OwnedSemaphorePermit> {
        let mut idle = self.lock();
        let (turn, _, seat) = idle.next(part, Instant::now())?;
        let mut state = seat.state();
        idle.send_away(turn, &seat, &mut state);
        state.permit.take()
    }

    /// Make room for all requests that wait, as far as there are idle ones who have to go.
    fn evict(&self, local: bool) {
        let mut idle = self.lock();
        let now = Instant::now();
        if now.saturating_duration_since(idle.last) >= AGAIN {
            idle.asked = 0;
        }
        while idle.asked < idle.waiting && self.evict_one(&mut idle, local, now) {
            (idle.asked, idle.last) = (idle.asked + 1, now);
        }
    }

    fn evict_one(&self, idle: &mut Idle, local: bool, now: Instant) -> bool {
        // In the reserve only when all others are at work.
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

/// One that waits.
struct Counted<'a>(&'a Door);

impl<'a> Counted<'a> {
    fn new(door: &'a Door) -> Self {
        door.lock().waiting += 1;
        Self(door)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        let mut idle = self.0.lock();
        idle.waiting = idle.waiting.saturating_sub(1);
        idle.asked = idle.asked.saturating_sub(1);
    }
}

impl Place {
    /// Whether it is one for which places are kept.
    pub(crate) fn is_local(&self) -> bool {
        self.seat.local
    }

    /// Something has changed: is it idle now? `anew`: if so, from now on.
    fn settle(&self, anew: bool, change: impl FnOnce(&mut SeatState)) {
        let mut idle = self.door.lock();
        let mut state = self.seat.state();
        change(&mut state);
        // In the hall only who owes a request is in the way, and beside the common places there is enough for all that owe as
        // long as their processes have clients.
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

    /// It waits for a request.
    pub(crate) fn rests(&self) {
        self.settle(true, |state| state.resting = true);
    }

    /// A request has come, and may be answered. `fetches`: whether it is the first one for a stream of a process, which does
    /// not wait. `false`: too late, what its connection held is promised to somebody else; there is no place for it in time,
    /// or too many wait for one; or it is one more on a connection that was let in for a stream.
    pub(crate) async fn works(&self, fetches: impl FnOnce() -> bool) -> bool {
        self.settle(false, |state| (state.resting, state.head) = (false, 0));
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

    /// It has a place from now on. What it held before is for others.
    fn sits(&self, permit: OwnedSemaphorePermit, part: Part) {
        let mut state = self.seat.state();
        (state.permit, state.part) = (Some(permit), part);
    }

    /// Whether one of its requests had a long head, which its buffer keeps the room of.
    pub(crate) fn is_long(&self) -> bool {
        self.seat.state().long.is_some()
    }

    /// The buffer of its heads is gone.
    pub(crate) fn left_http(&self) {
        self.seat.state().long = None;
    }

    /// Ready when its request has a place, in the order of arrival. `false`: too many wait.
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
        // Of many that wait one looks for all.
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

    /// The process that it reads the output of has no client any more. Beside the common places it may have to go from now on.
    pub(crate) fn orphaned(&self) {
        if self.seat.state().part == Part::Beside {
            self.rests();
        }
    }

    /// So many bytes have come. `false`: they belong to the head of a request, and there is no room for more of it.
    pub(crate) fn reads(&self, bytes: usize) -> bool {
        let mut state = self.seat.state();
        if !state.resting {
            return true;
        }
        state.head += bytes;
        let held = state.long.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let wanted = state.head.saturating_sub(HEAD).div_ceil(1 << 10);
        let more = u32::try_from(wanted.saturating_sub(held)).unwrap_or(u32::MAX);
        if more == 0 {
            return true;
        }
        let heads = self.door.heads[usize::from(self.seat.local)].clone();
        match (heads.try_acquire_many_owned(more), &mut state.long) {
            (Ok(more), Some(long)) => long.merge(more),
            (Ok(more), none) => *none = Some(more),
            (Err(_), _) => return false,
        }
        true
    }

    /// Its client owes something from now on.
    pub(crate) fn owes(self: &Arc<Self>) -> Owed {
        self.settle(true, |state| state.owing += 1);
        Owed(self.clone())
    }

    /// An answer is on its way that has to be taken in time; or, with `false`, none.
    pub(crate) fn set_replies(&self, replies: bool) {
        self.replies.store(replies, Ordering::Relaxed);
    }

    pub(crate) fn replies(&self) -> bool {
        self.replies.load(Ordering::Relaxed)
    }

    /// From now on nothing is read from its connection or written to it.
    pub(crate) fn cut(&self) {
        self.cut.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_cut(&self) -> bool {
        self.cut.load(Ordering::Relaxed)
    }

    /// Whether it has to go.
    pub(crate) fn is_gone(&self) -> bool {
        self.seat.gone.load(Ordering::Relaxed)
    }

    /// Ready when it has to go. For one to wait.
    pub(crate) async fn evicted(&self) {
        self.seat.evicted.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.settle(false, |state| {
            (state.resting, state.owing, state.long) = (false, 0, None);
        });
        // Whoever has moved it meanwhile has let go of the lock.
        drop(self.seat.state().permit.take());
    }
}

impl Drop for Owed {
    fn drop(&mut self) {
        self.0.settle(false, |state| state.owing = state.owing.saturating_sub(1));
    }
}

/// Wait for something that the client of a connection owes, if it is not there already.
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
