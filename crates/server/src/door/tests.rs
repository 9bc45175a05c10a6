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

/// A newcomer whose request is here already; and whether that may be answered.
fn asks(door: &Arc<Door>, local: bool, fetches: bool) -> (Arc<Place>, tokio::task::JoinHandle<bool>) {
    let Entry::Wait(waiting) = door.enter(local) else { panic!("it does not wait") };
    let place = waiting.early();
    let asks = place.clone();
    let admitted = tokio::spawn(async move {
        assert!(asks.works());
        tokio::select! {
            admitted = asks.admitted(|| fetches) => admitted,
            false = waiting.seated() => false,
            never = std::future::pending() => never,
        }
    });
    (place, admitted)
}

#[tokio::test(start_paused = true)]
async fn streams_of_processes_do_not_wait_for_the_common_places() {
    let door = Door::new(2);
    let processes = [(); 2].map(|()| in_at_once(&door, false));
    assert!(processes.iter().all(|place| place.works()));
    // Others wait before the streams come.
    let (other, waits) = asks(&door, false, false);
    let mut streams = Vec::new();
    for _ in 0..4 {
        let (place, admitted) = asks(&door, false, true);
        assert!(soon(admitted).await.unwrap().unwrap());
        // It is for one request.
        assert!(!place.admitted(|| true).await);
        streams.push(place);
    }
    assert!(!waits.is_finished() && other.part().is_none() && door.lock().waiting == 1);
    assert_eq!(door.beside.available_permits(), 2 * (2 + RESERVE) - 4);
    // Nobody of them goes for one who waits, not even where its client takes nothing.
    let _owed = streams[0].owes();
    tokio::time::sleep(10 * GRACE).await;
    assert!(streams.iter().all(|place| !place.is_gone()));
    streams.clear();
    drop(_owed);
    assert_eq!(door.beside.available_permits(), 2 * (2 + RESERVE));
    let [first, _second] = processes;
    drop(first);
    assert!(soon(waits).await.unwrap().unwrap() && other.part() == Some(Part::Common));
    drop(other);
}

#[tokio::test(start_paused = true)]
async fn streams_that_have_lost_their_process_go_for_those_that_have_one() {
    let door = Door::new(1);
    let process = in_at_once(&door, false);
    assert!(process.works());
    let mut held = Vec::new();
    for _ in 0..2 * (1 + RESERVE) {
        let (place, admitted) = asks(&door, false, true);
        assert!(soon(admitted).await.unwrap().unwrap());
        held.push(place);
    }
    let (_next, admitted) = asks(&door, false, true);
    tokio::time::sleep(10 * GRACE).await;
    assert!(!admitted.is_finished());
    assert!(process.orphaned().is_none());
    let _orphan = held[7].orphaned().unwrap();
    held[7].evicted().await;
    drop(_orphan);
    held.remove(7);
    assert!(soon(admitted).await.unwrap().unwrap());
    assert!(held.iter().all(|place| !place.is_gone()) && !process.is_gone());
}

/// Who has said what he wants and has to wait stands in nobody's way.
#[tokio::test(start_paused = true)]
async fn streams_get_in_past_as_many_as_may_wait() {
    let door = Door::new(1);
    let process = in_at_once(&door, false);
    assert!(process.works());
    let mut waiting = Vec::new();
    for n in 0..80 {
        let (place, admitted) = asks(&door, false, false);
        tokio::task::yield_now().await;
        tokio::time::sleep(LOOK).await;
        // Beyond the room they are closed.
        assert_eq!(admitted.is_finished(), n >= 64, "{n}");
        if n < 64 {
            waiting.push((place, admitted));
        } else {
            assert!(!admitted.await.unwrap());
        }
    }
    let (_stream, admitted) = asks(&door, false, true);
    assert!(soon(admitted).await.unwrap().unwrap());
    // Those without a request wait in the hall, which has an end as well.
    let mut silent: Vec<_> = (0..64).map(|_| Box::pin(waits(&door, false))).collect();
    assert!(matches!(door.enter(false), Entry::Full));
    assert!(silent.pop().unwrap().await.is_none());
    for (_, admitted) in waiting {
        assert!(!admitted.await.unwrap());
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_waits_keeps_the_room_of_its_head() {
    let door = Door::new(1);
    let process = in_at_once(&door, false);
    assert!(process.works());
    let Entry::Wait(waiting) = door.enter(false) else { panic!("a place") };
    let place = waiting.early();
    let before = door.heads[0].available_permits();
    assert!(place.reads(HEAD + (4 << 10)) && place.works());
    assert_eq!(door.heads[0].available_permits(), before - 4);
    drop(process);
    assert!(waiting.seated().await && place.admitted(|| false).await);
    assert_eq!(door.heads[0].available_permits(), before);
}
