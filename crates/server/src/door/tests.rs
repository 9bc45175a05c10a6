use super::*;
use tokio::task::JoinHandle;

async fn soon<T>(future: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(4 * GRACE, future).await.ok()
}

/// Admits a connection that has sent nothing yet.
fn comes(door: &Arc<Door>, local: bool) -> Arc<Place> {
    door.enter(local).expect("the hall is full")
}

/// Admits a connection whose request is answered at once.
async fn in_at_once(door: &Arc<Door>, local: bool) -> Arc<Place> {
    let place = comes(door, local);
    assert!(soon(place.works(|| false)).await.expect("it waits"));
    place
}

/// Admits a connection that has been served, and holds its place until it is evicted.
async fn idles(door: &Arc<Door>, local: bool) {
    let place = in_at_once(door, local).await;
    place.rests();
    tokio::spawn(async move { place.evicted().await });
}

/// Admits a connection whose request has arrived. Also returns the task that tells whether it may be
/// answered.
fn asks(door: &Arc<Door>, local: bool, fetches: bool) -> (Arc<Place>, JoinHandle<bool>) {
    let place = comes(door, local);
    let asks = place.clone();
    (place, tokio::spawn(async move { asks.works(|| fetches).await }))
}

fn part(place: &Place) -> Part {
    place.seat.state().part
}

#[tokio::test(start_paused = true)]
async fn the_longest_idle_goes_for_a_request() {
    let door = Door::new(3);
    let [a, b, c] =
        [in_at_once(&door, false).await, in_at_once(&door, false).await, in_at_once(&door, false).await];
    b.rests();
    c.rests();
    // All places are taken; `b` has been idle longest.
    let (d, asked) = asks(&door, false, false);
    soon(b.evicted()).await.unwrap();
    assert!(soon(c.evicted()).await.is_none() && b.is_gone() && !c.is_gone());
    assert!(!asked.is_finished() && !b.works(|| false).await);
    drop(b);
    assert!(soon(asked).await.unwrap().unwrap());
    // No connection is idle: the next request waits for an end.
    assert!(c.works(|| false).await);
    let (e, asked) = asks(&door, false, false);
    assert!(soon(a.evicted()).await.is_none() && !asked.is_finished());
    drop(d);
    assert!(soon(asked).await.unwrap().unwrap());
    // After its request the connection can be evicted again.
    a.rests();
    let _next = asks(&door, false, false);
    assert!(soon(a.evicted()).await.is_some());
    drop(e);
}

#[tokio::test(start_paused = true)]
async fn who_has_sent_nothing_takes_nothing_from_others() {
    let door = Door::new(2);
    let idle = [in_at_once(&door, false).await, in_at_once(&door, false).await];
    idle.iter().for_each(|place| place.rests());
    // A client whose request is late.
    let slow = comes(&door, false);
    let _silent: Vec<_> = (0..60).map(|_| comes(&door, false)).collect();
    tokio::time::sleep(100 * GRACE).await;
    assert!(idle.iter().all(|place| !place.is_gone()) && !slow.is_gone());
    // Requests do not evict it either.
    let others = [asks(&door, false, false), asks(&door, false, false)];
    tokio::time::sleep(GRACE).await;
    assert!(idle.iter().all(|place| place.is_gone()) && !slow.is_gone());
    drop(idle);
    for (place, asked) in others {
        assert!(asked.await.unwrap());
        drop(place);
    }
    // In the hall it does not even count that the client does not take what the server sends, as in a
    // handshake.
    let _owed = slow.owes();
    assert!(slow.works(|| false).await && door.idle.lock().queue(Part::Hall).len() == 60);
}

#[tokio::test(start_paused = true)]
async fn a_full_hall_is_for_those_that_come_last() {
    let door = Door::new(2);
    let mut silent: Vec<_> = (0..128).map(|_| comes(&door, false)).collect();
    // A connection that was just accepted is not evicted for the next one: its request may be in the socket
    // already.
    assert!(door.enter(false).is_none() && silent.iter().all(|place| !place.is_gone()));
    // The administrator has a separate hall.
    let _local = comes(&door, true);
    tokio::time::sleep(GRACE).await;
    // A request prevents the eviction.
    assert!(silent[1].works(|| false).await);
    silent.push(comes(&door, false));
    assert!(silent.iter().all(|place| !place.is_gone()));
    silent.push(comes(&door, false));
    soon(silent[0].evicted()).await.unwrap();
    assert!(silent[1..].iter().all(|place| !place.is_gone()) && !silent[0].works(|| false).await);
    // Each evicted connection frees exactly one place.
    silent.extend((0..126).map(|_| comes(&door, false)));
    assert!(door.enter(false).is_none() && silent[2..128].iter().all(|place| place.is_gone()));
    assert!(silent[128..].iter().all(|place| !place.is_gone()));
    drop(silent);
    assert_eq!(door.halls[0].available_permits(), 128);
}

/// Each connection of a burst gets a place, since each idle one goes when it is evicted.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_burst_of_newcomers_gets_the_places_of_a_burst_of_idle_ones() {
    for round in 0..20 {
        let door = Door::new(200);
        for _ in 0..216 {
            idles(&door, true).await;
        }
        let newcomers: Vec<_> = (0..64).map(|_| asks(&door, true, false)).collect();
        let mut seated = Vec::new();
        for (place, asked) in newcomers {
            let asked = tokio::time::timeout(AGAIN, asked).await;
            let asked = asked.unwrap_or_else(|_| panic!("round {round}: {} are seated", seated.len()));
            assert!(asked.unwrap());
            seated.push(place);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn strangers_take_no_place_from_those_that_have_been_served() {
    let door = Door::new(16);
    let mut stalled = Vec::new();
    for _ in 0..16 {
        let place = in_at_once(&door, false).await;
        stalled.push((place.owes(), place));
    }
    for _ in 0..60 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        for _ in 0..60 {
            let stranger = comes(&door, false);
            tokio::spawn(async move { stranger.evicted().await });
        }
    }
    assert!(stalled.iter().all(|(_, place)| !place.is_gone()));
    // Served connections can only be displaced by requests.
    let _next = asks(&door, false, false);
    tokio::time::sleep(GRACE).await;
    assert!(stalled.iter().map(|(_, place)| place.is_gone()).eq((0..16).map(|n| n == 0)));
}

/// Returns how many of 100 connections that come every 75 ms, and send their request 30 ms after they were
/// admitted, are not served while strangers connect and send nothing.
async fn not_served_beside(door: &Arc<Door>, strangers: usize, every: Duration) -> usize {
    let flood = {
        let door = door.clone();
        tokio::spawn(async move {
            loop {
                for place in (0..strangers).filter_map(|_| door.enter(false)) {
                    tokio::spawn(async move { place.evicted().await });
                }
                tokio::time::sleep(every).await;
            }
        })
    };
    let mut newcomers = Vec::new();
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(75)).await;
        let place = door.enter(false);
        newcomers.push(tokio::spawn(async {
            let Some(place) = place else { return false };
            tokio::time::sleep(Duration::from_millis(30)).await;
            place.works(|| false).await
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
        idles(&door, false).await;
    }
    assert_eq!(not_served_beside(&door, 1, Duration::from_millis(4)).await, 0);
}

#[tokio::test(start_paused = true)]
async fn newcomers_are_served_beside_a_flood_of_strangers() {
    assert_eq!(not_served_beside(&Door::new(200), 2, Duration::from_millis(1)).await, 0);
}

#[tokio::test(start_paused = true)]
async fn who_owes_goes_in_the_order_of_the_last_byte() {
    let door = Door::new(2);
    let [a, b] = [in_at_once(&door, false).await, in_at_once(&door, false).await];
    let first = a.owes();
    let second = b.owes();
    // Arriving data restarts the debt.
    drop(first);
    let _first = a.owes();
    let (c, asked) = asks(&door, false, false);
    tokio::time::sleep(2 * GRACE).await;
    assert!(!asked.is_finished() && b.is_gone() && !a.is_gone());
    drop((second, b));
    assert!(soon(asked).await.unwrap().unwrap());
    let _next = asks(&door, false, false);
    tokio::time::sleep(2 * GRACE).await;
    assert!(a.is_gone() && !c.is_gone());
}

#[tokio::test(start_paused = true)]
async fn who_becomes_idle_later_goes_for_those_that_wait() {
    let door = Door::new(1);
    let a = in_at_once(&door, false).await;
    let (_b, asked) = asks(&door, false, false);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(!a.is_gone());
    a.rests();
    a.evicted().await;
    drop(a);
    assert!(asked.await.unwrap());
    // The wait is bounded.
    let (_c, asked) = asks(&door, false, false);
    assert!(!asked.await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn the_reserve_is_for_local_clients_alone() {
    let door = Door::new(2);
    let _working = [in_at_once(&door, false).await, in_at_once(&door, false).await];
    let mut locals = Vec::new();
    for _ in 0..RESERVE {
        locals.push(in_at_once(&door, true).await);
    }
    locals.iter().for_each(|place| place.rests());
    // Other clients get no reserved place, although all of them are idle.
    let (_other, other) = asks(&door, false, false);
    tokio::time::sleep(2 * GRACE).await;
    assert!(!other.is_finished() && locals.iter().all(|place| !place.is_gone()));
    other.abort();
    assert!(other.await.is_err());
    // A local client gets one.
    let _own = asks(&door, true, false);
    tokio::time::sleep(2 * GRACE).await;
    assert!(locals[0].is_gone() && !locals[1].is_gone());
}

#[tokio::test(start_paused = true)]
async fn a_local_client_is_moved_and_not_sent_away() {
    let door = Door::new(2);
    let local = in_at_once(&door, true).await;
    let other = in_at_once(&door, false).await;
    local.rests();
    other.rests();
    let (next, asked) = asks(&door, false, false);
    assert!(soon(asked).await.unwrap().unwrap());
    assert!(!local.is_gone() && !other.is_gone() && local.works(|| false).await);
    assert_eq!(door.reserve.available_permits(), RESERVE - 1);
    drop((local, other, next));
    assert_eq!((door.common.available_permits(), door.reserve.available_permits()), (2, RESERVE));
    assert!(door.idle.lock().queues.iter().all(BTreeMap::is_empty));
}

#[tokio::test(start_paused = true)]
async fn streams_of_processes_do_not_wait_for_the_common_places() {
    let door = Door::new(2);
    let processes = [in_at_once(&door, false).await, in_at_once(&door, false).await];
    // Another request waits before the requests for streams come.
    let (other, waits) = asks(&door, false, false);
    tokio::time::sleep(LOOK).await;
    let mut streams = Vec::new();
    for _ in 0..4 {
        let (place, asked) = asks(&door, false, true);
        assert!(soon(asked).await.unwrap().unwrap());
        streams.push(place);
    }
    assert!(!waits.is_finished() && part(&other) == Part::Hall && door.idle.lock().waiting == 1);
    assert_eq!(door.beside.available_permits(), 2 * (2 + RESERVE) - 4);
    // None of them is evicted for the waiting request, not even one whose client takes nothing.
    let owed = streams[0].owes();
    tokio::time::sleep(10 * GRACE).await;
    assert!(streams.iter().all(|place| !place.is_gone()));
    drop(owed);
    // Each place is for one request.
    assert!(!streams[0].works(|| true).await);
    streams.clear();
    assert_eq!(door.beside.available_permits(), 2 * (2 + RESERVE));
    let [first, _second] = processes;
    drop(first);
    assert!(soon(waits).await.unwrap().unwrap() && part(&other) == Part::Common);
}

#[tokio::test(start_paused = true)]
async fn streams_that_have_lost_their_process_go_for_those_that_have_one() {
    let door = Door::new(1);
    let process = in_at_once(&door, false).await;
    let mut held = Vec::new();
    for _ in 0..2 * (1 + RESERVE) {
        let (place, asked) = asks(&door, false, true);
        assert!(soon(asked).await.unwrap().unwrap());
        held.push(place);
    }
    let (_next, asked) = asks(&door, false, true);
    tokio::time::sleep(10 * GRACE).await;
    assert!(!asked.is_finished());
    process.orphaned();
    held[7].orphaned();
    held[7].evicted().await;
    held.remove(7);
    assert!(soon(asked).await.unwrap().unwrap());
    assert!(held.iter().all(|place| !place.is_gone()) && !process.is_gone());
}

/// Waiting requests do not block those for streams.
#[tokio::test(start_paused = true)]
async fn streams_get_in_past_as_many_as_may_wait() {
    for (local, places, room) in [(false, 1, 64), (true, 1 + RESERVE, 1024)] {
        let door = Door::new(1);
        let mut processes = Vec::new();
        for _ in 0..places {
            processes.push(in_at_once(&door, local).await);
        }
        let mut waiting = Vec::new();
        for n in 0..room + 16 {
            let (place, asked) = asks(&door, local, false);
            tokio::time::sleep(Duration::from_millis(1)).await;
            // Requests beyond the waiting room are closed.
            assert_eq!(asked.is_finished(), n >= room, "{n}");
            if n < room {
                waiting.push((place, asked));
            } else {
                assert!(!asked.await.unwrap());
            }
        }
        let (_stream, asked) = asks(&door, local, true);
        assert!(soon(asked).await.unwrap().unwrap());
        assert!(soon(async { door.admit(local).await.is_some() }).await.unwrap());
    }
}
