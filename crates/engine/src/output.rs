//! Output of a process on its way to those who read it.
//!
//! Every reader has a queue of its own. A reader that keeps up loses nothing: while its queue is full the process is
//! held up, as a pipe would do it. But only for a reader that keeps taking; one that is slow, or has gone silently,
//! soon loses what it does not take (counted), and neither the process nor the other readers wait for it.

use bytes::Bytes;
use std::collections::VecDeque;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::net::unix::pipe;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use wardian_sys::heap;

/// Bytes that wait for a reader at most.
const LIMIT: usize = 8 << 20;
/// Of what nobody has asked for yet: as much as pipes hold.
const BACKLOG: usize = 64 << 10;
/// A piece counts as this much at least: thousands of short lines take memory too.
const PIECE: usize = 256;
/// A process is held up for a reader for so long in all …
const PATIENCE: Duration = Duration::from_secs(1);
/// … each time anew after the reader has taken this much: slower than that is too slow.
const TAKEN: usize = 4 << 20;
/// Read at once.
const CHUNK: usize = 128 << 10;
/// After a flood memory is given back so much later.
const SOON: Duration = Duration::from_secs(1);
/// What the pipe of a process that prints much is made to hold.
const PIPE: usize = 1 << 20;

/// Standard output and error from the moment of subscription on.
#[derive(Debug)]
pub struct Output {
    /// Standard output; of a terminal both.
    pub stdout: Stream,
    /// Standard error.
    pub stderr: Stream,
}

impl Output {
    /// Nothing new is taken; what waits can still be read.
    pub fn close(&self) {
        self.stdout.close();
        self.stderr.close();
    }

    /// Bytes that were lost because nobody took them in time.
    pub fn lost(&self) -> u64 {
        self.stdout.lost() + self.stderr.lost()
    }
}

/// One of a reader's two queues. Two that read it share the pieces between them.
#[derive(Debug)]
pub struct Stream(Arc<Queue>);

impl Stream {
    /// The next piece; `None` at the end.
    pub async fn next(&self) -> Option<Bytes> {
        let queue = &self.0;
        loop {
            let mut ready = std::pin::pin!(queue.ready.notified());
            ready.as_mut().enable();
            {
                let mut state = queue.lock();
                if let Some(piece) = state.pieces.pop_front() {
                    state.took(cost(&piece));
                    queue.room.notify_one();
                    return Some(piece);
                }
                if state.ended {
                    // Whoever else waits.
                    queue.ready.notify_one();
                    return None;
                }
            }
            ready.await;
        }
    }

    /// Nothing new is taken; what waits can still be read.
    pub fn close(&self) {
        self.0.end();
    }

    fn lost(&self) -> u64 {
        self.0.lock().lost
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.end();
    }
}

#[derive(Debug)]
struct Queue {
    state: Mutex<State>,
    ready: Notify,
    room: Notify,
}

#[derive(Debug)]
struct State {
    pieces: VecDeque<Bytes>,
    /// Sum of the pieces' costs.
    held: usize,
    limit: usize,
    ended: bool,
    /// Nobody waits for it until its queue is empty.
    slow: bool,
    /// What is left of the patience with it, and what it has taken since that was full.
    patience: Duration,
    taken: usize,
    lost: u64,
}

impl State {
    fn took(&mut self, cost: usize) {
        self.held -= cost;
        self.taken += cost;
        if self.taken >= TAKEN || self.held == 0 {
            (self.taken, self.patience) = (0, PATIENCE);
        }
        self.slow &= self.held > 0;
    }
}

fn cost(piece: &Bytes) -> usize {
    piece.len().max(PIECE)
}

impl Queue {
    fn new(limit: usize, slow: bool) -> Arc<Self> {
        let state = State {
            pieces: VecDeque::new(),
            held: 0,
            limit,
            ended: false,
            slow,
            patience: PATIENCE,
            taken: 0,
            lost: 0,
        };
        Arc::new(Self { state: Mutex::new(state), ready: Notify::new(), room: Notify::new() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self) {
        self.lock().ended = true;
        self.ready.notify_one();
        self.room.notify_one();
    }

    /// Append a piece, or lose it. `false`: its reader is to be waited for.
    fn push(&self, piece: &Bytes) -> bool {
        let mut state = self.lock();
        if state.ended {
            return true;
        }
        if state.held > 0 && state.held + cost(piece) > state.limit {
            if state.slow {
                state.lost += piece.len() as u64;
            }
            return state.slow;
        }
        state.held += cost(piece);
        state.pieces.push_back(piece.clone());
        drop(state);
        self.ready.notify_one();
        true
    }

    /// Append a piece; waits for a reader that keeps taking.
    async fn deliver(&self, piece: &Bytes) {
        while !self.push(piece) {
            let patience = self.lock().patience;
            let begin = Instant::now();
            let in_time = tokio::time::timeout(patience, self.room.notified()).await.is_ok();
            let mut state = self.lock();
            state.patience = state.patience.saturating_sub(begin.elapsed());
            state.slow |= !in_time || state.patience.is_zero();
        }
    }
}

/// Where a process's output goes.
#[derive(Debug, Default)]
pub struct Outputs {
    /// Not pumped yet: the pipes hold what is printed. A terminal has the first one only.
    pub pipes: Vec<OwnedFd>,
    readers: [Vec<Arc<Queue>>; 2],
    /// What came before the first reader, for it.
    backlog: [Option<Arc<Queue>>; 2],
    over: bool,
}

impl Outputs {
    /// A reader from now on.
    pub fn subscribe(&mut self) -> Output {
        let [stdout, stderr] = [0, 1].map(|stream| {
            let queue = self.backlog[stream].take().unwrap_or_else(|| {
                let queue = Queue::new(LIMIT, false);
                if self.over {
                    queue.end();
                } else {
                    self.readers[stream].push(queue.clone());
                }
                queue
            });
            let mut state = queue.lock();
            (state.limit, state.slow) = (LIMIT, false);
            drop(state);
            Stream(queue)
        });
        Output { stdout, stderr }
    }

    /// Keep what comes before the first reader.
    pub fn keep_backlog(&mut self) {
        for (readers, backlog) in self.readers.iter_mut().zip(&mut self.backlog) {
            let queue = Queue::new(BACKLOG, true);
            readers.push(queue.clone());
            *backlog = Some(queue);
        }
    }

    fn readers(&mut self, stream: usize) -> Vec<Arc<Queue>> {
        self.readers[stream].retain(|queue| !queue.lock().ended);
        self.readers[stream].clone()
    }

    /// Nothing more comes on this stream.
    pub fn end(&mut self, stream: usize) {
        for queue in self.readers[stream].drain(..) {
            queue.end();
        }
    }

    /// Nothing more comes at all.
    pub fn end_all(&mut self) {
        self.over = true;
        (0..2).for_each(|stream| self.end(stream));
    }
}

/// From the descriptor to all readers, until its end, or until the process has ended and nothing is left in it (a
/// grandchild may hold it open for ever).
pub async fn pump(
    pipe: OwnedFd,
    stream: usize,
    outputs: &Mutex<Outputs>,
    ended: watch::Receiver<Option<i32>>,
) -> std::io::Result<()> {
    let mut much = false;
    let pumped = pass_on(pipe, stream, outputs, ended, &mut much).await;
    if much {
        // What waits for readers may be tens of megabytes. They are about to take it.
        tokio::spawn(async {
            tokio::time::sleep(SOON).await;
            drop(tokio::task::spawn_blocking(heap::trim).await);
        });
    }
    pumped
}

async fn pass_on(
    pipe: OwnedFd,
    stream: usize,
    outputs: &Mutex<Outputs>,
    mut ended: watch::Receiver<Option<i32>>,
    much: &mut bool,
) -> std::io::Result<()> {
    rustix::io::ioctl_fionbio(&pipe, true)?;
    // Unchecked: it may be a terminal.
    let pipe = pipe::Receiver::from_owned_fd_unchecked(pipe)?;
    let mut buffer: Vec<u8> = Vec::new();
    let mut over = false;
    loop {
        buffer.reserve(CHUNK);
        // After the end nothing more may come, so the runtime must not be asked whether something did.
        let read = if over {
            rustix::io::read(&pipe, rustix::buffer::spare_capacity(&mut buffer)).map_err(std::io::Error::from)
        } else {
            pipe.try_read_buf(&mut buffer)
        };
        let read = match read {
            Err(error) if error.kind() == ErrorKind::WouldBlock && !over => {
                // No memory is held for a process that prints nothing.
                buffer = Vec::new();
                tokio::select! {
                    ready = pipe.readable() => ready?,
                    end = ended.wait_for(Option::is_some) => { drop(end); over = true }
                }
                continue;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            // A terminal that no process has open any more says EIO.
            Ok(0) | Err(_) => return Ok(()),
            Ok(n) => n,
        };
        if read >= CHUNK / 2 && !*much {
            *much = true;
            // Above the host's limit for pipes it stays as it is: slower, not wrong.
            let _ = rustix::pipe::fcntl_setpipe_size(&pipe, PIPE);
        }
        let piece = if read < CHUNK / 4 {
            let piece = Bytes::copy_from_slice(&buffer);
            buffer.clear();
            piece
        } else {
            Bytes::from(std::mem::take(&mut buffer))
        };
        let readers = outputs.lock().unwrap_or_else(PoisonError::into_inner).readers(stream);
        for reader in readers {
            reader.deliver(&piece).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(size: usize) -> Bytes {
        Bytes::from(vec![7; size])
    }

    #[tokio::test]
    async fn what_waits_outlives_the_end() {
        let mut outputs = Outputs::default();
        let output = outputs.subscribe();
        outputs.readers(0)[0].deliver(&Bytes::from("a")).await;
        output.close();
        assert!(outputs.readers(0).is_empty());
        assert_eq!(output.stdout.next().await.as_deref(), Some(&b"a"[..]));
        assert_eq!(output.stdout.next().await, None);
        assert_eq!(output.stderr.next().await, None);
        outputs.end_all();
        assert_eq!(outputs.subscribe().stdout.next().await, None);
    }

    #[tokio::test]
    async fn everybody_who_waits_hears_of_the_end() {
        let mut outputs = Outputs::default();
        let output = Arc::new(outputs.subscribe());
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
        let (fast, dead) = (outputs.subscribe(), outputs.subscribe());
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
            for reader in outputs.readers(0) {
                reader.deliver(&piece(CHUNK)).await;
            }
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
        let slow = outputs.subscribe();
        let taking = tokio::spawn(async move {
            while slow.stdout.next().await.is_some() {
                tokio::time::sleep(PATIENCE / 2).await;
            }
            slow.lost()
        });
        let begin = Instant::now();
        for _ in 0..4 * (LIMIT / CHUNK) {
            for reader in outputs.readers(0) {
                reader.deliver(&piece(CHUNK)).await;
            }
        }
        assert!(begin.elapsed() < 2 * PATIENCE, "{:?}", begin.elapsed());
        outputs.end_all();
        assert!(taking.await.unwrap() > 0);
    }

    #[tokio::test]
    async fn the_first_reader_gets_what_came_before_it() {
        let mut outputs = Outputs::default();
        outputs.keep_backlog();
        outputs.readers(1)[0].deliver(&Bytes::from("early")).await;
        let (first, second) = (outputs.subscribe(), outputs.subscribe());
        outputs.readers(1)[0].deliver(&Bytes::from("late")).await;
        assert_eq!(first.stderr.next().await.as_deref(), Some(&b"early"[..]));
        assert_eq!(first.stderr.next().await.as_deref(), Some(&b"late"[..]));
        outputs.end_all();
        assert_eq!(second.stderr.next().await, None);
    }
}
