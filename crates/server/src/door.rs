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
    /// KiB for long heads, for others and for those for whom there is a reserve.
    heads: [Arc<Semaphore>; 2],
    /// Who may wait: others, and those for whom there is a reserve.
    rooms: [Arc<Semaphore>; 2],
    /// Who looks for places on behalf of all that wait: others, and those for whom there is a reserve.
    looks: [tokio::sync::Mutex<()>; 2],
    /// So many strangers go before those that have been served: in the common places, and in the reserve.
    quarters: [usize; 2],
    idle: Mutex<Idle>,
}

#[derive(Debug)]
struct Idle {
    /// In the common places, and in the reserve: strangers, and those that have brought a request.
    queues: [[Queue; 2]; 2],
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
    reserved: bool,
    /// It has brought a request, which of a TLS listener only those with a certificate can.
    known: bool,
    number: u64,
}

impl Idle {
    fn queue(&mut self, turn: Turn) -> &mut Queue {
        &mut self.queues[usize::from(turn.reserved)][usize::from(turn.known)]
    }

    /// Who has to go next of those in the common places, or in the reserve. A place that has been asked for is a stranger's
    /// already, or will be: without it a burst that asks many strangers to go would then find few, and go on with the others.
    fn next(&self, reserved: bool, quarter: usize) -> Option<Turn> {
        let [strangers, known] = &self.queues[usize::from(reserved)];
        let turn = |known, queue: &Queue| queue.keys().next().map(|&number| Turn { reserved, known, number });
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
}

#[derive(Debug, Default)]
struct SeatState {
    permit: Option<OwnedSemaphorePermit>,
    reserved: bool,
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
    door: Arc<Door>,
    local: bool,
    _room: OwnedSemaphorePermit,
}

impl Door {
    /// With so many places.
    pub(crate) fn new(places: usize) -> Arc<Self> {
        let semaphore = |n: usize| Arc::new(Semaphore::new(n.clamp(1, Semaphore::MAX_PERMITS)));
        let room = || semaphore((places / 4).clamp(64, 1024));
        let (common, reserve) = (semaphore(places), semaphore(RESERVE));
        let heads = || semaphore(wardian_sys::memory::budget(HEADS << 10, 64) >> 10);
        let heads = [heads(), heads()];
        let idle = Idle { queues: Default::default(), next: 0, waiting: 0, asked: 0, last: Instant::now() };
        let looks = Default::default();
        let quarters = [places, RESERVE].map(|places| places.div_ceil(4).max(1));
        Arc::new(Self { common, reserve, heads, rooms: [room(), room()], looks, quarters, idle: idle.into() })
    }

    fn lock(&self) -> MutexGuard<'_, Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for one more, idle at first.
    pub(crate) fn enter(self: &Arc<Self>, local: bool) -> Entry {
        if let Ok(permit) = self.common.clone().try_acquire_owned() {
            return Entry::Place(self.seat(permit, local, false));
        }
        if local && let Ok(permit) = self.reserve.clone().try_acquire_owned() {
            return Entry::Place(self.seat(permit, local, true));
        }
        match self.rooms[usize::from(local)].clone().try_acquire_owned() {
            Ok(room) => Entry::Wait(Waiting { door: self.clone(), local, _room: room }),
            Err(_) => Entry::Full,
        }
    }

    /// The same for one that is next in the kernel's queue. The administrator's own burst waits there; others are not waited
    /// for: whoever comes behind them would be.
    pub(crate) async fn admit(self: &Arc<Self>, local: bool) -> Entry {
        match self.enter(local) {
            Entry::Full if local => {
                let room = self.rooms[usize::from(local)].clone().acquire_owned();
                match tokio::time::timeout(WAITING_TIME, room).await {
                    Ok(Ok(room)) => Entry::Wait(Waiting { door: self.clone(), local, _room: room }),
                    _ => Entry::Full,
                }
            }
            entry => entry,
        }
    }

    fn seat(self: &Arc<Self>, permit: OwnedSemaphorePermit, local: bool, reserved: bool) -> Arc<Place> {
        let state = SeatState { permit: Some(permit), reserved, ..SeatState::default() };
        let seat = Seat { local, state: state.into(), gone: AtomicBool::new(false), evicted: Notify::new() };
        let place = Place {
            door: self.clone(),
            seat: seat.into(),
            replies: AtomicBool::new(false),
            cut: AtomicBool::new(false),
        };
        place.rests();
        Arc::new(place)
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
        let turn = match idle.next(false, common) {
            // Only when all others are at work.
            None if local && idle.queues[0].iter().all(BTreeMap::is_empty) => idle.next(true, reserve),
            turn => turn,
        };
        let Some(turn) = turn else { return false };
        let Some((since, seat)) = idle.queue(turn).get(&turn.number).cloned() else { return false };
        let mut state = seat.state();
        if seat.local
            && !turn.reserved
            && let Ok(permit) = self.reserve.clone().try_acquire_owned()
        {
            let moved = Turn { reserved: true, ..turn };
            (state.permit, state.reserved, state.turn) = (Some(permit), true, Some(moved));
            drop(state);
            idle.queue(turn).remove(&turn.number);
            idle.queue(moved).insert(turn.number, (since, seat));
            return true;
        }
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
    /// Its place, in the order of arrival. `None`: there was none in time.
    pub(crate) async fn place(self) -> Option<Arc<Place>> {
        let Self { door, local, _room } = self;
        let until = Instant::now() + WAITING_TIME;
        let mut common = pin!(door.common.clone().acquire_owned());
        let mut reserve = pin!(door.reserve.clone().acquire_owned());
        let _counted = Counted::new(&door);
        door.evict(local);
        // Of many that wait one looks for all.
        let look = async {
            let _looks = door.looks[usize::from(local)].lock().await;
            loop {
                tokio::time::sleep(LOOK).await;
                door.evict(local);
            }
        };
        tokio::select! {
            biased;
            permit = &mut common => Some(door.seat(permit.ok()?, local, false)),
            permit = &mut reserve, if local => Some(door.seat(permit.ok()?, local, true)),
            never = look => never,
            () = tokio::time::sleep_until(until) => None,
        }
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
        let is_idle = (state.resting || state.owing > 0) && !self.is_gone();
        if (anew || !is_idle)
            && let Some(turn) = state.turn.take()
        {
            idle.queue(turn).remove(&turn.number);
        }
        if is_idle && state.turn.is_none() {
            idle.next += 1;
            let turn = Turn { reserved: state.reserved, known: state.known, number: idle.next };
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
            (state.resting, state.known, state.head, state.long) = (false, true, 0, None);
        });
        !self.is_gone()
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
mod tests {
    use super::*;

    async fn soon<T>(future: impl Future<Output = T>) -> Option<T> {
        tokio::time::timeout(4 * GRACE, future).await.ok()
    }

    fn in_at_once(door: &Arc<Door>, local: bool) -> Arc<Place> {
        match door.enter(local) {
            Entry::Place(place) => place,
            other => panic!("{other:?}"),
        }
    }

    fn waits(door: &Arc<Door>, local: bool) -> impl Future<Output = Option<Arc<Place>>> + use<> {
        match door.enter(local) {
            Entry::Wait(waiting) => waiting.place(),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn long_heads_have_room_together() {
        let door = Door::new(1000);
        let enter = |local| match door.enter(local) {
            Entry::Place(place) => place,
            other => panic!("{other:?}"),
        };
        let all: Vec<_> = (0..600).map(|_| enter(false)).collect();
        // Each has 16 KiB of its own.
        assert!(all.iter().all(|place| place.reads(HEAD)));
        let long = all.iter().take_while(|place| place.reads(16 << 10)).count();
        assert_eq!(long, HEADS / 16);
        // Those of the administrator are counted apart, and a body is no head.
        let local = enter(true);
        assert!(local.reads(100 << 10) && local.reads(100 << 10));
        assert!(all[599].works() && all[599].reads(1 << 30));
        // A request that is complete makes room, and so does the end of a connection.
        assert!(all[0].works() && all[550].reads(0) && !enter(false).reads(64 << 10));
        drop(all);
        assert!(enter(false).reads(1 << 20));
    }

    #[tokio::test]
    async fn the_longest_idle_goes_for_a_newcomer() {
        let door = Door::new(3);
        let [a, b, c] = [(); 3].map(|()| in_at_once(&door, false));
        assert!(a.works());
        // All places are taken; `b` has been idle longest.
        let mut newcomer = pin!(waits(&door, false));
        assert!(soon(&mut newcomer).await.is_none());
        soon(b.evicted()).await.unwrap();
        assert!(soon(c.evicted()).await.is_none() && !b.works() && b.is_gone() && !c.is_gone());
        drop(b);
        let d = soon(&mut newcomer).await.unwrap().unwrap();
        // Nobody is idle: the next one waits for an end.
        assert!(c.works() && d.works() && c.works());
        let mut last = pin!(waits(&door, false));
        assert!(soon(&mut last).await.is_none() && soon(a.evicted()).await.is_none());
        drop(d);
        let e = soon(last).await.unwrap().unwrap();
        assert!(e.works());
        // After its request it can be asked to go again.
        a.rests();
        assert!(soon(waits(&door, false)).await.is_none() && soon(a.evicted()).await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_just_come_is_not_closed_for_the_next_one() {
        let door = Door::new(2);
        let [first, second] = [(); 2].map(|()| in_at_once(&door, false));
        let mut burst: Vec<_> = (0..50).map(|_| Box::pin(waits(&door, false))).collect();
        for newcomer in &mut burst {
            assert!(tokio::time::timeout(Duration::ZERO, newcomer).await.is_err());
        }
        // Its request was in the connection all the time.
        assert!(first.works() && !second.is_gone());
        tokio::time::sleep(2 * GRACE).await;
        assert!(soon(&mut burst[0]).await.is_none() && second.is_gone() && !first.is_gone());
    }

    /// Each of a burst gets a place, for each of those who hold them and do nothing goes when it is told.
    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn a_burst_of_newcomers_gets_the_places_of_a_burst_of_idle_ones() {
        for round in 0..20 {
            let door = Door::new(200);
            let hold = |place: Arc<Place>| tokio::spawn(async move { place.evicted().await });
            let idle: Vec<_> = (0..216).map(|_| hold(in_at_once(&door, true))).collect();
            let newcomers: Vec<_> = (0..64).map(|_| tokio::spawn(waits(&door, true))).collect();
            let mut seated = Vec::new();
            for newcomer in newcomers {
                let place = tokio::time::timeout(AGAIN, newcomer).await;
                let place = place.unwrap_or_else(|_| panic!("round {round}: {} are seated", seated.len()));
                seated.push(place.unwrap().unwrap());
            }
            idle.iter().for_each(tokio::task::JoinHandle::abort);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn strangers_go_before_those_that_have_been_served() {
        let door = Door::new(3);
        let stalled = in_at_once(&door, false);
        assert!(stalled.works());
        let _owed = stalled.owes();
        tokio::time::sleep(Duration::from_secs(3600)).await;
        let mut strangers: Vec<_> = (0..2).map(|_| in_at_once(&door, false)).collect();
        for _ in 0..60 {
            let mut newcomer = pin!(waits(&door, false));
            assert!(tokio::time::timeout(2 * GRACE, &mut newcomer).await.is_err());
            strangers.retain(|stranger| !stranger.is_gone());
            assert_eq!(strangers.len(), 1);
            strangers.push(newcomer.await.unwrap());
            assert!(!stalled.is_gone());
        }
        // Those that are served have only each other.
        assert!(strangers.iter().all(|served| served.works()));
        assert!(tokio::time::timeout(2 * GRACE, waits(&door, false)).await.is_err() && stalled.is_gone());
    }

    /// How long they stay when newcomers wait.
    #[tokio::test(start_paused = true)]
    async fn who_has_sent_something_has_more_time_than_who_has_not() {
        use crate::host::Hosts;
        use crate::socket::Arrival;
        use tokio::io::AsyncWriteExt as _;
        use tokio::net::{TcpListener, TcpStream, UnixStream};
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = listener.local_addr().unwrap();
        let stays = async |arrival: &Arrival, known: bool| {
            let door = Door::new(1);
            let place = in_at_once(&door, false);
            let _unread = place.may_look(arrival.unread());
            if known {
                assert!(place.works());
                place.rests();
            }
            let came = Instant::now();
            let _newcomer = tokio::spawn(waits(&door, false));
            place.evicted().await;
            came.elapsed()
        };
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let unix = Arrival::unix(ours);
        let near = TcpStream::connect(to).await.unwrap();
        let tcp = Arrival::tcp(near, None, Arc::new(Hosts::new(&[], 1)));
        let (mut far, _) = listener.accept().await.unwrap();
        for (arrival, known) in [(&unix, false), (&unix, true), (&tcp, false)] {
            let stays = stays(arrival, known).await;
            assert!(stays >= SHORT_GRACE && stays < GRACE, "{arrival:?} {known}: {stays:?}");
        }
        // The next request of a client on another host may be on its way for longer.
        assert!(stays(&tcp, true).await >= GRACE);
        theirs.write_all(b"G").await.unwrap();
        far.write_all(b"G").await.unwrap();
        for arrival in [&unix, &tcp] {
            assert!(stays(arrival, false).await >= GRACE, "{arrival:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_of_strangers_takes_the_places_of_strangers_alone() {
        let door = Door::new(16);
        let served = [(); 3].map(|()| in_at_once(&door, false));
        let _stalled = served.each_ref().map(|place| (place.works(), place.owes()));
        let hold = async |place: Arc<Place>| place.evicted().await;
        (0..13).for_each(|_| drop(tokio::spawn(hold(in_at_once(&door, false)))));
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            // All come before the first of those that are asked can go.
            for newcomer in (0..60).map(|_| waits(&door, false)) {
                tokio::spawn(async move { newcomer.await.unwrap().evicted().await });
            }
            tokio::time::sleep(10 * GRACE).await;
            assert!(served.iter().all(|place| !place.is_gone()));
        }
    }

    /// Of newcomers that come every 75 ms and send their request 5 ms after they have been let in, those that are not served
    /// while so many strangers come at a time and send nothing.
    async fn not_served_beside(door: &Arc<Door>, strangers: usize, every: Duration) -> usize {
        let comes = |door: &Arc<Door>| door.enter(false).place();
        let flood = {
            let door = door.clone();
            tokio::spawn(async move {
                loop {
                    for place in (0..strangers).map(|_| comes(&door)) {
                        tokio::spawn(async move {
                            if let Some(place) = place.await {
                                place.evicted().await;
                            }
                        });
                    }
                    tokio::time::sleep(every).await;
                }
            })
        };
        let mut newcomers = Vec::new();
        for _ in 0..100 {
            tokio::time::sleep(Duration::from_millis(75)).await;
            let place = comes(door);
            newcomers.push(tokio::spawn(async {
                let Some(place) = place.await else { return false };
                tokio::time::sleep(Duration::from_millis(5)).await;
                place.works()
            }));
        }
        let mut failed = 0;
        for newcomer in newcomers {
            failed += usize::from(!newcomer.await.unwrap());
        }
        flood.abort();
        failed
    }

    #[tokio::test(start_paused = true)]
    async fn newcomers_are_served_beside_strangers_and_idle_ones_that_fill_the_places() {
        let door = Door::new(200);
        for _ in 0..200 {
            let place = in_at_once(&door, false);
            assert!(place.works());
            place.rests();
            tokio::spawn(async move { place.evicted().await });
        }
        assert_eq!(not_served_beside(&door, 1, Duration::from_millis(4)).await, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn newcomers_are_served_beside_a_flood_of_strangers() {
        assert_eq!(not_served_beside(&Door::new(200), 2, Duration::from_millis(1)).await, 0);
    }

    #[tokio::test]
    async fn who_owes_goes_in_the_order_of_the_last_byte() {
        let door = Door::new(2);
        let [a, b] = [(); 2].map(|()| in_at_once(&door, false));
        assert!(a.works() && b.works());
        let first = a.owes();
        let second = b.owes();
        // What comes begins the debt anew.
        drop(first);
        let _first = a.owes();
        let mut newcomer = pin!(waits(&door, false));
        assert!(soon(&mut newcomer).await.is_none() && b.is_gone() && !a.is_gone());
        drop((second, b));
        let c = soon(newcomer).await.unwrap().unwrap();
        assert!(c.works());
        let mut newcomer = pin!(waits(&door, false));
        assert!(soon(&mut newcomer).await.is_none() && a.is_gone());
    }

    #[tokio::test(start_paused = true)]
    async fn who_becomes_idle_later_goes_for_those_that_wait() {
        let door = Door::new(1);
        let a = in_at_once(&door, false);
        assert!(a.works());
        let newcomer = tokio::spawn(waits(&door, false));
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!(!a.is_gone());
        a.rests();
        a.evicted().await;
        drop(a);
        let b = newcomer.await.unwrap().unwrap();
        assert!(b.works());
        // Nobody waits for ever, and not everybody may wait.
        let mut waiting: Vec<_> = (0..64).map(|_| Box::pin(waits(&door, false))).collect();
        assert!(matches!(door.enter(false), Entry::Full));
        assert!(waiting.pop().unwrap().await.is_none());
        assert!(matches!(door.enter(false), Entry::Wait(_)));
    }

    #[tokio::test]
    async fn the_reserve_is_for_local_clients_alone() {
        let door = Door::new(2);
        let working: Vec<_> = (0..2).map(|_| in_at_once(&door, false)).collect();
        assert!(working.iter().all(|place| place.works()));
        let locals: Vec<_> = (0..RESERVE).map(|_| in_at_once(&door, true)).collect();
        // Others get none of it, although all of them are idle.
        assert!(soon(waits(&door, false)).await.is_none());
        assert!(locals.iter().all(|place| !place.is_gone()));
        // One of their own does.
        assert!(soon(waits(&door, true)).await.is_none());
        assert!(locals[0].is_gone() && !locals[1].is_gone());
    }

    #[tokio::test]
    async fn a_local_client_is_moved_and_not_sent_away() {
        let door = Door::new(2);
        let local = in_at_once(&door, true);
        let other = in_at_once(&door, false);
        let next = soon(waits(&door, false)).await.unwrap().unwrap();
        assert!(!local.is_gone() && !other.is_gone() && local.works());
        assert_eq!(door.reserve.available_permits(), RESERVE - 1);
        drop((local, other, next));
        assert_eq!((door.common.available_permits(), door.reserve.available_permits()), (2, RESERVE));
        assert!(door.lock().queues.iter().flatten().all(BTreeMap::is_empty));
    }
}
