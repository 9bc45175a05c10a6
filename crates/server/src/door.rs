//! How many connections may be open at a time, and which one has to go when there is no room for another.
//!
//! A connection whose client owes something is idle: a request, the rest of one's head or body, or the taking of what it is
//! sent. When all places are taken the one whose client has been in debt longest is closed for the newcomer, so that clients
//! that hold connections and do nothing keep nobody out. It has been in debt for 50 ms at least; or for 20 ms if its socket
//! is empty and what it owes needs no round trip through a network. Each byte that comes, or goes, begins a debt anew.
//! Strangers, the connections that have not brought a whole request yet, go before all others, however long those are in
//! debt, while they hold a quarter of the places: whoever reaches the port can open as many as he likes, and who has been
//! served has something to lose. Where they hold fewer, the longest in debt of all goes: idle connections that have been
//! served would otherwise leave strangers so few places that none keeps his for as long as his request takes. Where all are
//! at work newcomers wait, as many as the waiting room holds and a minute at most; beyond that they are closed.
//!
//! Newcomers are read from while they wait, and are answered when they have a place. One that asks for the output of a process
//! whose client holds a place already does not wait: the place would never come free if each waited for another's end. It gets
//! one beside the common places, of which there are two for each place from which a process can be started, once for each
//! stream. Whose process has lost its client goes first when these are wanted. Newcomers wait in a hall until their request is
//! there, and in another room for their place, so that those who have to wait do not stand in the way of those who need not.
//!
//! | state of a connection | counts as | ends after |
//! |---|---|---|
//! | TLS handshake | idle | 10 s ([`crate::connection`]) |
//! | waiting for a request, or for the rest of its head | idle | `--read-header-timeout`; at once when heads of more than 16 KiB take more than 8 MiB together |
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

use crate::socket::Unread;
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Poll;
use std::time::Duration;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// The parts of the door that a place can be in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Common,
    /// For the administrator.
    Reserve,
    /// Beside these, for the output of processes.
    Beside,
}

/// Places beyond the others, for the host's own administrator.
pub(crate) const RESERVE: usize = 16;
/// Bytes of a request's head that every connection may have sent; …
const HEAD: usize = 16 << 10;
/// … and KiB that all may have sent beyond that, before their requests are complete.
const HEADS: usize = 8 << 10;
/// How long a newcomer waits for a place, …
const WAITING_TIME: Duration = Duration::from_secs(60);
/// … and how often one of those that wait looks whether somebody has become idle, or is due.
const LOOK: Duration = Duration::from_millis(2);
/// One that has to go may need a while for it, as a transfer does that has to be cancelled: after so long another one goes.
const AGAIN: Duration = Duration::from_millis(500);
/// Who has been in debt for less time is not closed for a newcomer: what it owes may be here already, unread, while a burst
/// of connections is being accepted; or it may come as soon as a client on another host has heard from here.
const GRACE: Duration = Duration::from_millis(50);
/// The same where nothing is in the socket, and the client is on this host or has not sent its first request, which needs no
/// word of the server's without TLS. A client that has connected may be without a processor for a while before it sends.
const SHORT_GRACE: Duration = Duration::from_millis(20);

/// The door.
#[derive(Debug)]
pub(crate) struct Door {
    common: Arc<Semaphore>,
    reserve: Arc<Semaphore>,
    beside: Arc<Semaphore>,
    /// KiB for long heads, for others and for those for whom there is a reserve.
    heads: [Arc<Semaphore>; 2],
    /// Who may wait for a place before its request has come: others, and those for whom there is a reserve; …
    halls: [Arc<Semaphore>; 2],
    /// … and after that.
    rooms: [Arc<Semaphore>; 2],
    /// Who looks for places on behalf of all that wait: others, and those for whom there is a reserve.
    looks: [tokio::sync::Mutex<()>; 2],
    /// So many strangers go before those that have been served: in the common places, and in the reserve.
    quarters: [usize; 2],
    idle: Mutex<Idle>,
}

#[derive(Debug)]
struct Idle {
    /// In each [`Part`]: strangers, and those that have brought a request. Beside the common places whose process has lost
    /// its client counts as a stranger.
    queues: [[Queue; 2]; 3],
    next: u64,
    /// Newcomers that wait for a place, and places that have been asked for and not been taken yet. They are counted for all
    /// together, because a place goes to whoever has waited longest, and not to who has asked for it.
    waiting: usize,
    asked: usize,
    /// When one was asked for last.
    last: Instant,
}

/// The idle ones of a kind by their numbers, the longest in debt first; and since when.
type Queue = BTreeMap<u64, (Instant, Arc<Seat>)>;

/// Where an idle connection stands.
#[derive(Debug, Clone, Copy)]
struct Turn {
    part: Part,
    /// It has brought a request, which of a TLS listener only those with a certificate can.
    known: bool,
    number: u64,
}

impl Idle {
    fn queue(&mut self, turn: Turn) -> &mut Queue {
        &mut self.queues[turn.part as usize][usize::from(turn.known)]
    }

    /// Who has to go next of those in the common places, or in the reserve. A place that has been asked for is a stranger's
    /// already, or will be: without it a burst that asks many strangers to go would then find few, and go on with the others.
    fn next(&self, part: Part, quarter: usize) -> Option<Turn> {
        let [strangers, known] = &self.queues[part as usize];
        let turn = |known, queue: &Queue| queue.keys().next().map(|&number| Turn { part, known, number });
        let all_go = strangers.len() + self.asked < quarter;
        let known = turn(true, known).filter(|_| all_go);
        turn(false, strangers).into_iter().chain(known).min_by_key(|turn| turn.number)
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
    /// Tells its request that it has a place, and who waits for one that there is another beside the common ones.
    seated: Notify,
    beside: Notify,
}

#[derive(Debug)]
struct SeatState {
    /// `None`: it waits for it.
    permit: Option<OwnedSemaphorePermit>,
    part: Part,
    /// Where it waits.
    room: Option<OwnedSemaphorePermit>,
    /// It waits for a request.
    resting: bool,
    /// What its client owes, in number.
    owing: usize,
    /// It has brought a whole request.
    known: bool,
    /// What the door may look into. It goes with the connection, which ends for its client when all descriptors are closed.
    unread: Weak<Unread>,
    /// Its turn while it is idle.
    turn: Option<Turn>,
    /// Bytes of a head that have come, and the room that they take.
    head: usize,
    long: Option<OwnedSemaphorePermit>,
}

impl Seat {
    /// How long its client may be in debt before it can have to go.
    fn grace(state: &SeatState) -> Duration {
        match state.unread.upgrade() {
            Some(unread) if !(unread.is_there() || unread.is_far() && state.known) => SHORT_GRACE,
            _ => GRACE,
        }
    }

    fn state(&self) -> MutexGuard<'_, SeatState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection's place. Its end makes room.
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

/// What becomes of a newcomer.
#[derive(Debug)]
pub(crate) enum Entry {
    Place(Arc<Place>),
    Wait(Waiting),
    /// Not even room to wait.
    Full,
}

/// A newcomer that waits for a place.
#[derive(Debug)]
pub(crate) struct Waiting {
    place: Arc<Place>,
}

impl Door {
    /// With so many places.
    pub(crate) fn new(places: usize) -> Arc<Self> {
        let semaphore = |n: usize| Arc::new(Semaphore::new(n.clamp(1, Semaphore::MAX_PERMITS)));
        let room = || semaphore((places / 4).clamp(64, 1024));
        let (common, reserve) = (semaphore(places), semaphore(RESERVE));
        let beside = semaphore(places.saturating_add(RESERVE).saturating_mul(2));
        let heads = || semaphore(wardian_sys::memory::budget(HEADS << 10, 64) >> 10);
        let heads = [heads(), heads()];
        let idle = Idle { queues: Default::default(), next: 0, waiting: 0, asked: 0, last: Instant::now() };
        let looks = Default::default();
        let quarters = [places, RESERVE].map(|places| places.div_ceil(4).max(1));
        let (halls, rooms) = ([room(), room()], [room(), room()]);
        Arc::new(Self { common, reserve, beside, heads, halls, rooms, looks, quarters, idle: idle.into() })
    }

    fn lock(&self) -> MutexGuard<'_, Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for one more, idle at first.
    pub(crate) fn enter(self: &Arc<Self>, local: bool) -> Entry {
        let seat = |permit, part| {
            let place = self.newcomer(local, None);
            place.sits(permit, part);
            Entry::Place(place)
        };
        if let Ok(permit) = self.common.clone().try_acquire_owned() {
            return seat(permit, Part::Common);
        }
        if local && let Ok(permit) = self.reserve.clone().try_acquire_owned() {
            return seat(permit, Part::Reserve);
        }
        match self.halls[usize::from(local)].clone().try_acquire_owned() {
            Ok(hall) => Entry::Wait(Waiting { place: self.newcomer(local, Some(hall)) }),
            Err(_) => Entry::Full,
        }
    }

    /// The same for one that is next in the kernel's queue. The administrator's own burst waits there; others are not waited
    /// for: whoever comes behind them would be.
    pub(crate) async fn admit(self: &Arc<Self>, local: bool) -> Entry {
        match self.enter(local) {
            Entry::Full if local => {
                let hall = self.halls[usize::from(local)].clone().acquire_owned();
                match tokio::time::timeout(WAITING_TIME, hall).await {
                    Ok(Ok(hall)) => Entry::Wait(Waiting { place: self.newcomer(local, Some(hall)) }),
                    _ => Entry::Full,
                }
            }
            entry => entry,
        }
    }

    /// One that has no place yet.
    fn newcomer(self: &Arc<Self>, local: bool, room: Option<OwnedSemaphorePermit>) -> Arc<Place> {
        let state = SeatState {
            permit: None,
            part: Part::Common,
            room,
            resting: true,
            owing: 0,
            known: false,
            unread: Weak::new(),
            turn: None,
            head: 0,
            long: None,
        };
        let seat = Seat {
            local,
            state: state.into(),
            gone: AtomicBool::new(false),
            evicted: Notify::new(),
            seated: Notify::new(),
            beside: Notify::new(),
        };
        Arc::new(Place {
            door: self.clone(),
            seat: seat.into(),
            replies: AtomicBool::new(false),
            cut: AtomicBool::new(false),
        })
    }

    /// Make room for all newcomers that wait, as far as there are idle ones who have to go.
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
        let [common, reserve] = self.quarters;
        let turn = match idle.next(Part::Common, common) {
            // Only when all others are at work.
            None if local && idle.queues[0].iter().all(BTreeMap::is_empty) => {
                idle.next(Part::Reserve, reserve)
            }
            turn => turn,
        };
        let Some(turn) = turn else { return false };
        let Some((since, seat)) = idle.queue(turn).get(&turn.number).cloned() else { return false };
        let mut state = seat.state();
        if seat.local
            && turn.part == Part::Common
            && let Ok(permit) = self.reserve.clone().try_acquire_owned()
        {
            let moved = Turn { part: Part::Reserve, ..turn };
            (state.permit, state.part, state.turn) = (Some(permit), moved.part, Some(moved));
            drop(state);
            idle.queue(turn).remove(&turn.number);
            idle.queue(moved).insert(turn.number, (since, seat));
            return true;
        }
        drop(state);
        Self::send_away(idle, turn, now)
    }

    /// Make room beside the common places: for all whose processes have clients there are enough.
    fn evict_orphan(&self) -> bool {
        let mut idle = self.lock();
        let first = idle.queues[Part::Beside as usize][0].keys().next().copied();
        first.is_some_and(|number| {
            let turn = Turn { part: Part::Beside, known: false, number };
            Self::send_away(&mut idle, turn, Instant::now())
        })
    }

    fn send_away(idle: &mut Idle, turn: Turn, now: Instant) -> bool {
        let Some((since, seat)) = idle.queue(turn).get(&turn.number).cloned() else { return false };
        let mut state = seat.state();
        // Who has come a moment ago is not due. Others do not go for the newcomers behind him.
        let idle_for = now.saturating_duration_since(since);
        if idle_for < SHORT_GRACE || idle_for < GRACE && idle_for < Seat::grace(&state) {
            return false;
        }
        idle.queue(turn).remove(&turn.number);
        state.turn = None;
        drop(state);
        seat.gone.store(true, Ordering::Relaxed);
        seat.evicted.notify_one();
        true
    }
}

impl Entry {
    /// Its place, as soon as there is one. `None`: there was none in time.
    pub(crate) async fn place(self) -> Option<Arc<Place>> {
        match self {
            Self::Place(place) => Some(place),
            Self::Wait(waiting) => waiting.place().await,
            Self::Full => None,
        }
    }
}

impl Waiting {
    /// Its place, which it does not have yet: it may be read from, and its request waits ([`Place::admitted`]).
    pub(crate) fn early(&self) -> Arc<Place> {
        self.place.clone()
    }

    /// Its place, once it has it. `None`: there was none in time.
    pub(crate) async fn place(self) -> Option<Arc<Place>> {
        self.seated().await.then_some(self.place)
    }

    /// Ready when it has its place, in the order of arrival. `false`: there was none in time.
    pub(crate) async fn seated(&self) -> bool {
        let place = &self.place;
        let (door, local) = (&place.door, place.is_local());
        let until = Instant::now() + WAITING_TIME;
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
            () = place.seat.beside.notified() => return true,
            permit = &mut common => (permit, Part::Common),
            permit = &mut reserve, if local => (permit, Part::Reserve),
            never = look => never,
            () = tokio::time::sleep_until(until) => return false,
        };
        permit.is_ok_and(|permit| {
            place.sits(permit, part);
            true
        })
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
        let is_idle = (state.resting || state.owing > 0) && state.permit.is_some() && !self.is_gone();
        if (anew || !is_idle)
            && let Some(turn) = state.turn.take()
        {
            idle.queue(turn).remove(&turn.number);
        }
        if is_idle && state.turn.is_none() {
            idle.next += 1;
            let turn = Turn { part: state.part, known: state.known, number: idle.next };
            state.turn = Some(turn);
            idle.queue(turn).insert(turn.number, (Instant::now(), self.seat.clone()));
        }
    }

    /// The door may look into its socket, for as long as what is returned is kept.
    #[must_use]
    pub(crate) fn may_look(&self, into: Option<Unread>) -> Option<Arc<Unread>> {
        let unread = Arc::new(into?);
        self.seat.state().unread = Arc::downgrade(&unread);
        Some(unread)
    }

    /// It waits for a request.
    pub(crate) fn rests(&self) {
        self.settle(true, |state| state.resting = true);
    }

    /// A request has come. `false`: too late, its place is promised to somebody else.
    pub(crate) fn works(&self) -> bool {
        self.settle(false, |state| {
            (state.resting, state.known, state.head) = (false, true, 0);
            // One that waits keeps its head meanwhile.
            state.long.take_if(|_| state.permit.is_some());
        });
        !self.is_gone()
    }

    /// It has a place, unless it has one already.
    fn sits(&self, permit: OwnedSemaphorePermit, part: Part) {
        self.settle(true, |state| {
            if state.permit.is_none() {
                (state.permit, state.part, state.room) = (Some(permit), part, None);
                state.long.take_if(|_| !state.resting);
            }
        });
        self.seat.seated.notify_one();
    }

    fn part(&self) -> Option<Part> {
        let state = self.seat.state();
        state.permit.is_some().then_some(state.part)
    }

    /// Ready when the request that has come may be answered. `fetches`: whether it is the first one for a stream of a process,
    /// which does not wait. `false`: too many wait; or it is one more on a connection that was let in for a stream.
    pub(crate) async fn admitted(&self, fetches: impl FnOnce() -> bool) -> bool {
        if let Some(part) = self.part() {
            return part != Part::Beside;
        }
        if fetches() {
            return self.sits_beside().await;
        }
        let rooms = self.door.rooms[usize::from(self.seat.local)].clone();
        let room = async {
            // The administrator's own burst waits in the hall.
            if self.seat.local { rooms.acquire_owned().await.ok() } else { rooms.try_acquire_owned().ok() }
        };
        tokio::select! {
            biased;
            () = self.seat.seated.notified() => return true,
            room = room => {
                let mut state = self.seat.state();
                if state.permit.is_some() {
                    return true;
                }
                if room.is_none() {
                    return false;
                }
                state.room = room;
            }
        }
        self.seat.seated.notified().await;
        true
    }

    async fn sits_beside(&self) -> bool {
        let mut permit = pin!(self.door.beside.clone().acquire_owned());
        let mut asked: Option<Instant> = None;
        loop {
            tokio::select! {
                biased;
                () = self.seat.seated.notified() => return true,
                permit = &mut permit => {
                    let Ok(permit) = permit else { return false };
                    self.sits(permit, Part::Beside);
                    self.seat.beside.notify_one();
                    return true;
                }
                () = tokio::time::sleep(LOOK) => {
                    if asked.is_none_or(|asked| asked.elapsed() >= AGAIN) && self.door.evict_orphan() {
                        asked = Some(Instant::now());
                    }
                }
            }
        }
    }

    /// The process that it reads the output of has no client any more. Beside the common places it may have to go from now on.
    pub(crate) fn orphaned(self: &Arc<Self>) -> Option<Owed> {
        if self.part() != Some(Part::Beside) {
            return None;
        }
        self.settle(true, |state| (state.known, state.owing) = (false, state.owing + 1));
        Some(Owed(self.clone()))
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
