//! Queues for a process's output: one for each reader and stream.
//!
//! A reader that has asked to be waited for (a patient one) loses nothing: while its queue is full the
//! process is held up, as by a full pipe, until the reader goes or the container ends. For other readers the
//! process is held up as long as they keep taking; a reader that is slow, or has gone silently, soon loses
//! what it does not take (lost bytes are counted), and neither the process nor the other readers wait for it.
//!
//! The bytes in all queues are bounded for each process and for the whole server: see
//! [`crate::process::ledger`].

use crate::process::ledger::{self, Entry, Ledger};
use crate::process::leftover::Leftover;
use crate::process::pump::trim_soon;
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// The most bytes in one reader's queue. Guardian queues 4000 pieces of up to 32 KiB before it drops one; no
/// reader shall lose output sooner here.
const LIMIT: usize = 4000 * (32 << 10);
/// The most bytes in the queue of a patient reader: more would only use memory.
const PATIENT: usize = 1 << 20;
/// The most bytes that are kept for the first reader: as much as a pipe holds.
const BACKLOG: usize = 64 << 10;
/// The least that a piece is charged: thousands of short lines take memory too.
const PIECE: usize = 256;
/// How long in all a process is held up for a reader that is not patient. …
const PATIENCE: Duration = Duration::from_secs(1);
/// … The time starts anew whenever the reader has taken this many bytes: slower than that is too slow.
const TAKEN: usize = 4 << 20;
/// The most bytes of one read …
pub const CHUNK: usize = 128 << 10;
/// … and the fewest, when memory is so short that even a queue's first piece must be small: there may be a
/// thousand queues.
pub const SMALL: usize = 8 << 10;
/// A queue whose share of the memory is smaller than this cannot keep up: queues that nobody reads are
/// emptied for it.
const TIGHT: usize = 2 * CHUNK;
/// When a queue that held this many bytes is dropped, the heap is trimmed.
const MUCH: u64 = 1 << 20;

/// Standard output and error from the moment of subscription on.
#[derive(Debug)]
pub struct Output {
    /// Standard output; of a terminal both.
    pub stdout: Stream,
    /// Standard error.
    pub stderr: Stream,
}

impl Output {
    /// Ends both streams: no new output is queued, and queued output can still be read.
    pub fn close(&self) {
        self.stdout.close();
        self.stderr.close();
    }

    /// Whether both queues are empty.
    pub fn is_taken(&self) -> bool {
        self.stdout.is_empty() && self.stderr.is_empty()
    }

    /// Returns the bytes that were lost because they were not taken in time.
    pub fn lost(&self) -> u64 {
        self.stdout.lost() + self.stderr.lost()
    }
}

/// Whether the process is to be held up while a reader does not take its standard output, and its standard error.
pub type Waits = [bool; 2];

/// One of a reader's two queues. Two callers of [`Stream::next`] share the pieces between them. Dropping the
/// stream frees what is queued at once.
#[derive(Debug)]
pub struct Stream(Arc<Queue>);

impl Stream {
    /// Returns the next piece; `None` at the end.
    pub async fn next(&self) -> Option<Bytes> {
        let queue = &self.0;
        loop {
            let mut ready = std::pin::pin!(queue.ready.notified());
            ready.as_mut().enable();
            {
                let mut state = queue.state.lock();
                if let Some(piece) = state.pieces.pop_front() {
                    let cost = cost(&piece);
                    state.took(cost);
                    queue.released(cost);
                    queue.room.notify_one();
                    return Some(piece);
                }
                if state.ended {
                    // Wakes the next waiting caller: `notify_one` has woken this one alone.
                    queue.ready.notify_one();
                    return None;
                }
                // A reader whose queue is empty is not slow, whatever it took before.
                state.rest();
            }
            ready.await;
        }
    }

    /// Ends the stream: no new output is queued, and queued output can still be read.
    pub fn close(&self) {
        self.0.end();
    }

    /// Marks the reader as gone: queued and future output is lost.
    pub fn abandon(&self) {
        let mut state = self.0.state.lock();
        (state.patient, state.limit) = (false, 0);
        drop(state);
        self.0.empty();
        self.0.room.notify_one();
    }

    /// Counts bytes as lost that were taken from the queue and not sent.
    pub fn lose(&self, bytes: usize) {
        self.0.state.lock().lost += bytes as u64;
    }

    fn is_empty(&self) -> bool {
        self.0.state.lock().held == 0
    }

    fn lost(&self) -> u64 {
        self.0.state.lock().lost
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.end();
        if self.0.empty() >= MUCH {
            trim_soon();
        }
    }
}

/// The queue of one reader of one stream.
#[derive(Debug)]
pub struct Queue {
    state: Mutex<State>,
    ready: Notify,
    /// Notified of every piece that is taken. The pump waits on it for all readers of its stream.
    room: Arc<Notify>,
    /// The process's ledger and the server's.
    ledgers: [Arc<Ledger<Queue>>; 2],
}

#[derive(Debug)]
struct State {
    pieces: VecDeque<Bytes>,
    /// Sum of the pieces' costs.
    held: usize,
    limit: usize,
    ended: bool,
    /// The process is held up for the reader however long that takes.
    patient: bool,
    /// The process is not held up for the reader until its queue is empty.
    slow: bool,
    /// What is left of the time in which the process is held up, and the bytes taken since that time was last
    /// reset.
    patience: Duration,
    taken: usize,
    /// When a piece was last taken, or queued into the empty queue.
    read: Instant,
    lost: u64,
}

impl State {
    fn took(&mut self, cost: usize) {
        self.held -= cost;
        self.taken += cost;
        self.read = Instant::now();
        if self.held == 0 {
            self.rest();
        } else if self.taken >= TAKEN {
            (self.taken, self.patience) = (0, PATIENCE);
        }
    }

    /// The reader has emptied the queue: it is not slow, and has its whole patience again.
    fn rest(&mut self) {
        (self.taken, self.patience, self.slow) = (0, PATIENCE, false);
    }
}

/// The result of [`Queue::push`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pushed {
    Taken,
    Lost,
    /// The piece was not queued: the caller waits until the reader has taken something, and tries again.
    Full,
}

fn cost(piece: &Bytes) -> usize {
    piece.len().max(PIECE)
}

impl Queue {
    fn end(&self) {
        self.state.lock().ended = true;
        self.ready.notify_one();
        self.room.notify_one();
    }

    fn released(&self, cost: usize) {
        self.ledgers.iter().for_each(|ledger| ledger.release(cost));
    }

    /// Returns the queue's share of the memory, in bytes.
    fn share(&self) -> usize {
        self.ledgers.iter().map(|ledger| ledger.share()).min().unwrap_or(0)
    }

    /// Returns how many bytes the queue of a patient reader may hold. Patient readers get no more than half
    /// of the memory: what their queues do not hold the pipe holds, so they need little, and they are never
    /// emptied for others.
    fn patient_share(&self) -> usize {
        self.ledgers.iter().map(|ledger| ledger.half_share()).min().unwrap_or(0)
    }

    /// Returns how many bytes may be read for this reader now, a power of two; `None`: none before the reader
    /// takes something.
    fn wanted(&self) -> Option<usize> {
        let state = self.state.lock();
        let share = if state.patient { self.patient_share() } else { self.share() };
        let piece = 1 << (share / 4).clamp(SMALL, CHUNK).ilog2();
        let fits = state.held == 0 || state.held + piece <= state.limit.min(share);
        (fits || !state.patient || state.ended).then_some(piece)
    }

    /// Appends a piece, or counts it as lost.
    fn push(&self, piece: &Bytes) -> Pushed {
        let cost = cost(piece);
        loop {
            let mut state = self.state.lock();
            if state.ended {
                return Pushed::Lost;
            }
            let share = if state.patient { self.patient_share() } else { self.share() };
            // An empty queue takes one piece however little memory there is: the pump holds the piece's
            // memory anyway.
            let first = state.held == 0 && !state.slow;
            if first || state.held + cost <= state.limit.min(share) {
                if state.held == 0 {
                    state.read = Instant::now();
                }
                state.held += cost;
                state.pieces.push_back(piece.clone());
                self.ledgers.iter().for_each(|ledger| ledger.hold(cost));
                drop(state);
                self.ready.notify_one();
                return Pushed::Taken;
            }
            if state.slow {
                state.lost += piece.len() as u64;
                return Pushed::Lost;
            }
            drop(state);
            let tight = |ledger: &&Arc<Ledger<Self>>| ledger.share() < TIGHT;
            if !self.ledgers.iter().filter(tight).any(|ledger| ledger.relieve()) {
                return Pushed::Full;
            }
        }
    }

    fn relent(&self) {
        self.state.lock().patient = false;
        self.room.notify_one();
    }

    /// Returns how long the process is still held up for this reader; `None`: without a bound.
    fn patience(&self) -> Option<Duration> {
        let state = self.state.lock();
        (!state.patient).then_some(state.patience)
    }

    /// Subtracts the time for which the process was held up from the reader's patience.
    fn waited(&self, time: Duration) {
        let mut state = self.state.lock();
        if !state.patient {
            state.patience = state.patience.saturating_sub(time);
            state.slow |= state.patience.is_zero();
        }
    }
}

impl Entry for Queue {
    fn unread_since(&self) -> Option<Instant> {
        let state = self.state.lock();
        (state.held > 0 && !state.patient).then_some(state.read)
    }

    fn empty(&self) -> u64 {
        let mut state = self.state.lock();
        let pieces = std::mem::take(&mut state.pieces);
        let lost = pieces.iter().map(|piece| piece.len() as u64).sum();
        self.released(std::mem::take(&mut state.held));
        state.lost += lost;
        // The next piece is queued only if it fits into the queue's share, like any other.
        state.slow = true;
        lost
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        let held = self.state.lock().held;
        self.released(held);
    }
}

/// Gives a piece to all readers, and waits for all those that keep taking at the same time. Returns whether
/// any reader got it.
pub async fn deliver(readers: &[Arc<Queue>], room: &Notify, piece: &Bytes) -> bool {
    let mut taken = false;
    let mut waits = |reader: &Queue| {
        let pushed = reader.push(piece);
        taken |= pushed == Pushed::Taken;
        pushed == Pushed::Full
    };
    let mut waiting: Vec<&Arc<Queue>> = readers.iter().filter(|reader| waits(reader)).collect();
    while !waiting.is_empty() {
        let begin = Instant::now();
        match waiting.iter().filter_map(|reader| reader.patience()).min() {
            Some(patience) => drop(tokio::time::timeout(patience, room.notified()).await),
            None => room.notified().await,
        }
        let time = begin.elapsed();
        waiting.retain(|reader| {
            reader.waited(time);
            waits(reader)
        });
    }
    taken
}

/// A process's output: its pipes, and the queues of its readers.
#[derive(Debug)]
pub struct Outputs {
    /// Pipes that no pump reads yet: they hold what is printed. A terminal has only the first one.
    pub pipes: Vec<OwnedFd>,
    readers: [Vec<Arc<Queue>>; 2],
    rooms: [Arc<Notify>; 2],
    /// Queues for output from before the first reader, which takes them over.
    backlog: [Option<Arc<Queue>>; 2],
    over: bool,
    /// New readers are not patient any more: the container ends.
    cut: bool,
    /// Counts the output while it is open after the end of the program.
    pub leftover: Option<Leftover>,
    ledgers: [Arc<Ledger<Queue>>; 2],
}

/// The ledger of the queues of all processes.
static SERVER: std::sync::LazyLock<Arc<Ledger<Queue>>> =
    std::sync::LazyLock::new(|| Arc::new(Ledger::new(ledger::SERVER)));

impl Default for Outputs {
    fn default() -> Self {
        Self::within(SERVER.clone())
    }
}

impl Outputs {
    fn within(server: Arc<Ledger<Queue>>) -> Self {
        Self {
            pipes: Vec::new(),
            readers: Default::default(),
            rooms: Default::default(),
            backlog: Default::default(),
            over: false,
            cut: false,
            leftover: None,
            ledgers: [Arc::new(Ledger::new(ledger::PROCESS)), server],
        }
    }

    fn queue(&self, stream: usize, limit: usize, slow: bool) -> Arc<Queue> {
        let state = State {
            pieces: VecDeque::new(),
            held: 0,
            limit,
            ended: false,
            patient: false,
            slow,
            patience: PATIENCE,
            taken: 0,
            read: Instant::now(),
            lost: 0,
        };
        let (room, ledgers) = (self.rooms[stream].clone(), self.ledgers.clone());
        let queue = Arc::new(Queue { state: Mutex::new(state), ready: Notify::new(), room, ledgers });
        self.ledgers.iter().for_each(|ledger| ledger.enter(&queue));
        queue
    }

    /// Adds a reader of all output from now on.
    pub fn subscribe(&mut self, waits: Waits) -> Output {
        let [stdout, stderr] = [0, 1].map(|stream| {
            let queue = self.backlog[stream].take().unwrap_or_else(|| {
                let queue = self.queue(stream, LIMIT, false);
                if self.over {
                    queue.end();
                } else {
                    self.readers[stream].push(queue.clone());
                }
                queue
            });
            let mut state = queue.state.lock();
            (state.patient, state.slow) = (waits[stream] && !self.cut, false);
            state.limit = if state.patient { PATIENT } else { LIMIT };
            drop(state);
            // Wakes a pump that pauses because it had no reader.
            self.rooms[stream].notify_one();
            Stream(queue)
        });
        Output { stdout, stderr }
    }

    /// Keeps the output from before the first reader, as much as [`BACKLOG`].
    pub fn keep_backlog(&mut self) {
        for stream in 0..2 {
            let queue = self.queue(stream, BACKLOG, true);
            self.readers[stream].push(queue.clone());
            self.backlog[stream] = Some(queue);
        }
    }

    /// Returns the present readers of a stream.
    pub fn readers(&mut self, stream: usize) -> Vec<Arc<Queue>> {
        self.readers[stream].retain(|queue| !queue.state.lock().ended);
        self.readers[stream].clone()
    }

    /// Returns how many bytes of a stream may be read now; `None`: none before a patient reader takes
    /// something.
    pub fn wanted(&self, stream: usize) -> Option<usize> {
        self.readers[stream].iter().try_fold(CHUNK, |least, reader| Some(least.min(reader.wanted()?)))
    }

    /// Returns what is notified of everything that is taken from a stream, and of new readers.
    pub fn room(&self, stream: usize) -> Arc<Notify> {
        self.rooms[stream].clone()
    }

    /// Whether the output has a reader. The backlog does not count as one.
    pub fn has_readers(&self) -> bool {
        let is_backlog =
            |stream: usize, queue| self.backlog[stream].as_ref().is_some_and(|b| Arc::ptr_eq(b, queue));
        (0..2).any(|stream| {
            self.readers[stream].iter().any(|queue| !is_backlog(stream, queue) && !queue.state.lock().ended)
        })
    }

    /// Whether a new reader could get nothing any more.
    pub fn is_spent(&self) -> bool {
        self.pipes.is_empty() && self.backlog.iter().flatten().all(|queue| queue.state.lock().held == 0)
    }

    /// Makes all present and later readers ordinary ones (not patient): the container ends.
    pub fn cut(&mut self) {
        self.cut = true;
        self.readers.iter().flatten().for_each(|queue| queue.relent());
    }

    /// Ends a stream for all its readers.
    pub fn end(&mut self, stream: usize) {
        for queue in self.readers[stream].drain(..) {
            queue.end();
        }
    }

    /// Ends both streams, also for later readers.
    pub fn end_all(&mut self) {
        self.over = true;
        (0..2).for_each(|stream| self.end(stream));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::pump::pump;
    use tokio::sync::watch;

    /// Returns a piece of memory that all pieces share.
    fn piece(size: usize) -> Bytes {
        static PIECE: std::sync::LazyLock<Bytes> = std::sync::LazyLock::new(|| vec![7; CHUNK].into());
        PIECE.slice(..size)
    }

    async fn print(outputs: &mut Outputs, stream: usize, piece: Bytes) {
        let readers = outputs.readers(stream);
        deliver(&readers, &outputs.rooms[stream], &piece).await;
    }

    /// Returns a server's ledger that no other test uses.
    fn server() -> Arc<Ledger<Queue>> {
        Arc::new(Ledger::new(ledger::SERVER))
    }

    /// Takes everything. Returns the bytes that came, and those that were lost.
    fn read(output: Output) -> tokio::task::JoinHandle<(usize, u64)> {
        tokio::spawn(async move {
            let mut sum = 0;
            while let Some(piece) = output.stdout.next().await {
                sum += piece.len();
            }
            (sum, output.lost())
        })
    }

    #[tokio::test]
    async fn what_waits_outlives_the_end() {
        let mut outputs = Outputs::default();
        let output = outputs.subscribe([false; 2]);
        print(&mut outputs, 0, Bytes::from("a")).await;
        output.close();
        assert!(outputs.readers(0).is_empty());
        assert_eq!(output.stdout.next().await.as_deref(), Some(&b"a"[..]));
        assert_eq!(output.stdout.next().await, None);
        assert_eq!(output.stderr.next().await, None);
        outputs.end_all();
        assert_eq!(outputs.subscribe([false; 2]).stdout.next().await, None);
    }

    #[tokio::test]
    async fn everybody_who_waits_hears_of_the_end() {
        let mut outputs = Outputs::default();
        let output = Arc::new(outputs.subscribe([false; 2]));
        let waiting: Vec<_> = (0..3)
            .map(|_| {
                let output = output.clone();
                tokio::spawn(async move { output.stdout.next().await })
            })
            .collect();
        tokio::task::yield_now().await;
        outputs.end(0);
        for each in waiting {
            assert_eq!(each.await.unwrap(), None);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_takes_loses_nothing_and_one_that_does_not_loses_all_but_its_queue() {
        let mut outputs = Outputs::default();
        let (fast, dead) = (outputs.subscribe([false; 2]), outputs.subscribe([false; 2]));
        let total = 100 * (LIMIT / CHUNK);
        let taking = tokio::spawn(async move {
            let mut sum = 0;
            while let Some(piece) = fast.stdout.next().await {
                sum += piece.len();
            }
            (sum, fast.lost())
        });
        let begin = Instant::now();
        for _ in 0..total {
            print(&mut outputs, 0, piece(CHUNK)).await;
        }
        assert!(begin.elapsed() < 2 * PATIENCE, "{:?}", begin.elapsed());
        outputs.end_all();
        assert_eq!(taking.await.unwrap(), (total * CHUNK, 0));
        assert_eq!(dead.lost() as usize, total * CHUNK - LIMIT);
        let mut left = 0;
        while let Some(piece) = dead.stdout.next().await {
            left += piece.len();
        }
        assert_eq!(left, LIMIT);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_reader_does_not_hold_the_process_up_for_long() {
        let mut outputs = Outputs::default();
        let slow = outputs.subscribe([false; 2]);
        let taking = tokio::spawn(async move {
            while slow.stdout.next().await.is_some() {
                tokio::time::sleep(PATIENCE / 2).await;
            }
            slow.lost()
        });
        let begin = Instant::now();
        for _ in 0..4 * (LIMIT / CHUNK) {
            print(&mut outputs, 0, piece(CHUNK)).await;
        }
        assert!(begin.elapsed() < 2 * PATIENCE, "{:?}", begin.elapsed());
        outputs.end_all();
        assert!(taking.await.unwrap() > 0);
    }

    #[tokio::test]
    async fn the_first_reader_gets_what_came_before_it() {
        let mut outputs = Outputs::default();
        outputs.keep_backlog();
        print(&mut outputs, 1, Bytes::from("early")).await;
        let (first, second) = (outputs.subscribe([false; 2]), outputs.subscribe([false; 2]));
        print(&mut outputs, 1, Bytes::from("late")).await;
        assert_eq!(first.stderr.next().await.as_deref(), Some(&b"early"[..]));
        assert_eq!(first.stderr.next().await.as_deref(), Some(&b"late"[..]));
        outputs.end_all();
        assert_eq!(second.stderr.next().await.as_deref(), Some(&b"late"[..]));
        assert_eq!(second.stderr.next().await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn many_that_do_not_read_hold_the_process_up_together() {
        let mut outputs = Outputs::within(server());
        let dead: Vec<Output> = (0..20).map(|_| outputs.subscribe([false; 2])).collect();
        let begin = Instant::now();
        for _ in 0..2 * (LIMIT / CHUNK) {
            print(&mut outputs, 0, piece(CHUNK)).await;
        }
        // Not all of their queues are full at the same piece.
        assert!(begin.elapsed() < 4 * PATIENCE, "{:?}", begin.elapsed());
        assert!(dead.iter().all(|dead| dead.lost() > 0));
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_for_a_process_and_for_all_is_bounded_and_who_reads_loses_nothing() {
        let server = server();
        let mut processes: Vec<Outputs> = (0..20).map(|_| Outputs::within(server.clone())).collect();
        let dead: Vec<Output> = processes
            .iter_mut()
            .flat_map(|outputs| [(); 20].map(|()| outputs.subscribe([false; 2])))
            .collect();
        let total = 2 * (LIMIT / CHUNK);
        for outputs in &mut processes {
            for _ in 0..total {
                print(outputs, 0, piece(CHUNK)).await;
            }
            assert!(outputs.ledgers[0].held() <= 256 << 20, "{}", outputs.ledgers[0].held());
        }
        assert!(server.held() <= 384 << 20, "{}", server.held());
        // Processes and readers that come when the memory is short.
        for _ in 0..10 {
            let mut late = Outputs::within(server.clone());
            let reading = read(late.subscribe([false; 2]));
            let begin = Instant::now();
            for _ in 0..total {
                print(&mut late, 0, piece(CHUNK)).await;
            }
            assert!(begin.elapsed() < PATIENCE, "{:?}", begin.elapsed());
            late.end_all();
            assert_eq!(reading.await.unwrap(), (total * CHUNK, 0));
        }
        drop(dead);
        assert_eq!(server.held(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_longest_unread_makes_room_for_one_that_reads() {
        let server = server();
        let mut outputs = Outputs::within(server.clone());
        let dead: Vec<Output> = (0..400).map(|_| outputs.subscribe([false; 2])).collect();
        for _ in 0..LIMIT / CHUNK {
            print(&mut outputs, 0, piece(CHUNK)).await;
        }
        tokio::time::sleep(2 * PATIENCE).await;
        let lost: u64 = dead.iter().map(Output::lost).sum();
        let reading = read(outputs.subscribe([false; 2]));
        for _ in 0..4 * (LIMIT / CHUNK) {
            print(&mut outputs, 0, piece(CHUNK)).await;
        }
        assert!(dead.iter().map(Output::lost).sum::<u64>() > lost);
        outputs.end_all();
        assert_eq!(reading.await.unwrap(), (4 * LIMIT, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_waited_for_loses_nothing_however_long_it_takes() {
        let outputs = Arc::new(Mutex::new(Outputs::within(server())));
        let (patient, fast, deaf) = {
            let mut outputs = outputs.lock();
            (outputs.subscribe([true, false]), outputs.subscribe([true; 2]), outputs.subscribe([false; 2]))
        };
        let (ours, theirs) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let total = 2 * LIMIT;
        let printing = std::thread::spawn(move || {
            let data = vec![7; 1 << 20];
            (0..total >> 20).for_each(|_| {
                rustix::io::write(&theirs, &data).map(|n| assert_eq!(n, data.len())).unwrap();
            });
        });
        let (stop, cut) = watch::channel(false);
        let pumped = {
            let outputs = outputs.clone();
            tokio::spawn(async move {
                pump(ours, 0, &outputs, None, cut).await.unwrap();
                outputs.lock().end_all();
            })
        };
        let reading = read(fast);
        let mut sum = 0;
        while let Some(piece) = patient.stdout.next().await {
            // An hour in which nothing is taken.
            if sum < 2 << 20 {
                tokio::time::sleep(Duration::from_secs(3600)).await;
            }
            sum += piece.len();
            assert!(patient.stdout.0.state.lock().held <= PATIENT + CHUNK);
        }
        assert_eq!((sum, patient.lost()), (total >> 20 << 20, 0));
        assert_eq!(reading.await.unwrap(), (sum, 0));
        assert!(deaf.lost() > 0);
        pumped.await.unwrap();
        printing.join().unwrap();
        drop(stop);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_one_that_has_gone_or_for_a_container_that_has_ended() {
        let mut outputs = Outputs::within(server());
        let (gone, there) = (outputs.subscribe([true; 2]), outputs.subscribe([true; 2]));
        let begin = Instant::now();
        let waiting = async {
            for _ in 0..2 * (PATIENT / CHUNK) {
                print(&mut outputs, 0, piece(CHUNK)).await;
            }
        };
        let leaving = async {
            tokio::time::sleep(Duration::from_secs(60)).await;
            gone.stdout.abandon();
            let mut sum = 0;
            while sum < 2 * PATIENT {
                sum += there.stdout.next().await.unwrap().len();
            }
        };
        tokio::join!(waiting, leaving);
        assert_eq!(begin.elapsed().as_secs(), 60);
        // All output since then, and what was queued before.
        assert_eq!((gone.lost(), there.lost()), (2 * PATIENT as u64, 0));
        // A reader that is not patient any more is waited for like any other.
        outputs.cut();
        for _ in 0..2 * (PATIENT / CHUNK) {
            print(&mut outputs, 0, piece(CHUNK)).await;
        }
        assert!(begin.elapsed() <= Duration::from_secs(60) + PATIENCE, "{:?}", begin.elapsed());
        assert_eq!(there.lost(), PATIENT as u64);
    }

    #[tokio::test]
    async fn who_goes_leaves_nothing_though_the_process_says_nothing_more() {
        let server = server();
        let mut outputs = Outputs::within(server.clone());
        let (gone, there) = (outputs.subscribe([false; 2]), outputs.subscribe([false; 2]));
        print(&mut outputs, 0, piece(CHUNK)).await;
        assert_eq!(server.held(), 2 * CHUNK);
        drop(gone);
        assert_eq!(server.held(), CHUNK);
        drop(outputs);
        assert_eq!(there.stdout.next().await.map(|piece| piece.len()), Some(CHUNK));
        assert_eq!(server.held(), 0);
    }
}
