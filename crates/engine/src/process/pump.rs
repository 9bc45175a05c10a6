//! The pump of a stream: it reads the pipe of a process's output and passes each piece on to the stream's readers.

use crate::process::output::{CHUNK, Outputs, SMALL, deliver};
use bytes::{BufMut as _, Bytes};
use parking_lot::Mutex;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::net::unix::pipe;
use tokio::sync::watch;
use wardian_sys::heap;

/// After so much, of which each piece counts as [`SMALL`] at least, a pump lets other tasks have their turn: a pipe that is
/// never empty would keep its thread for ever.
const TURN: usize = 2 * CHUNK;
/// After so much that nobody takes a pump pauses, …
const NOWHERE: usize = 1 << 20;
/// … for so long for each pump that does the same: all together they throw 1 GB/s away, which takes an eighth of a processor …
const PAUSE: Duration = Duration::from_millis(1);
/// … and for so long at most.
const LONGEST_PAUSE: Duration = Duration::from_millis(100);
/// After a flood memory is given back so much later.
const SOON: Duration = Duration::from_secs(1);
/// What the pipe of a process that prints much is made to hold.
const PIPE: usize = 1 << 20;

/// From the descriptor to all readers, until its end: what the program has started prints there too. When it is `cut`, until
/// nothing is left in it.
pub async fn pump(
    pipe: OwnedFd,
    stream: usize,
    outputs: &Mutex<Outputs>,
    cut: watch::Receiver<bool>,
) -> std::io::Result<()> {
    let mut much = false;
    let pumped = pass_on(pipe, stream, outputs, cut, &mut much).await;
    if much {
        // What waits for readers may be tens of megabytes. They are about to take it.
        trim_soon();
    }
    pumped
}

/// Gives memory back that queues have held, once for all that become empty until then.
pub fn trim_soon() {
    static PLANNED: AtomicBool = AtomicBool::new(false);
    if let Ok(runtime) = tokio::runtime::Handle::try_current()
        && !PLANNED.swap(true, Ordering::Relaxed)
    {
        runtime.spawn(async {
            tokio::time::sleep(SOON).await;
            PLANNED.store(false, Ordering::Relaxed);
            drop(tokio::task::spawn_blocking(heap::trim).await);
        });
    }
}

/// One that throws away what it reads, as long as it does.
struct Nowhere;

static NOWHERE_NOW: AtomicUsize = AtomicUsize::new(0);

impl Nowhere {
    fn begin() -> Self {
        NOWHERE_NOW.fetch_add(1, Ordering::Relaxed);
        Self
    }

    fn pause() -> Duration {
        let pumps = u32::try_from(NOWHERE_NOW.load(Ordering::Relaxed)).unwrap_or(u32::MAX);
        PAUSE.saturating_mul(pumps).min(LONGEST_PAUSE)
    }
}

impl Drop for Nowhere {
    fn drop(&mut self) {
        NOWHERE_NOW.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn pass_on(
    pipe: OwnedFd,
    stream: usize,
    outputs: &Mutex<Outputs>,
    mut cut: watch::Receiver<bool>,
    much: &mut bool,
) -> std::io::Result<()> {
    rustix::io::ioctl_fionbio(&pipe, true)?;
    // Unchecked: it may be a terminal.
    let pipe = pipe::Receiver::from_owned_fd_unchecked(pipe)?;
    let lock = || outputs.lock();
    let room = lock().room(stream);
    let mut buffer: Vec<u8> = Vec::new();
    let mut over = false;
    let (mut turn, mut lost, mut nowhere) = (0, 0, None);
    loop {
        // What is not read yet is held by the pipe, whose memory is the container's.
        let Some(size) = lock().wanted(stream) else {
            buffer = Vec::new();
            room.notified().await;
            continue;
        };
        if buffer.capacity() != size {
            buffer = Vec::with_capacity(size);
        }
        // Then nothing more may come, so the runtime must not be asked whether something did.
        let read = if over {
            rustix::io::read(&pipe, rustix::buffer::spare_capacity(&mut buffer)).map_err(std::io::Error::from)
        } else {
            pipe.try_read_buf(&mut (&mut buffer).limit(size))
        };
        let read = match read {
            Err(error) if error.kind() == ErrorKind::WouldBlock && !over => {
                // No memory is held for a process that prints nothing.
                buffer = Vec::new();
                nowhere = None;
                tokio::select! {
                    ready = pipe.readable() => ready?,
                    cut = cut.wait_for(|cut| *cut) => { drop(cut); over = true }
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
        // A piece that is kept is charged by its length: one that is small must not keep a large buffer.
        let piece = if read < size / 2 {
            let piece = Bytes::copy_from_slice(&buffer);
            buffer.clear();
            piece
        } else {
            Bytes::from(std::mem::take(&mut buffer))
        };
        let readers = lock().readers(stream);
        if deliver(&readers, &room, &piece).await {
            (lost, nowhere) = (0, None);
        } else {
            lost += read;
        }
        turn += read.max(SMALL);
        if lost >= NOWHERE {
            (turn, lost) = (0, 0);
            nowhere.get_or_insert_with(Nowhere::begin);
            tokio::select! {
                () = tokio::time::sleep(Nowhere::pause()) => {}
                // A reader has come.
                () = room.notified() => {}
                cut = cut.wait_for(|cut| *cut), if !over => { drop(cut); over = true }
            }
        } else if turn >= TURN {
            turn = 0;
            tokio::task::yield_now().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::pipe::{PipeFlags, pipe_with};

    #[tokio::test]
    async fn a_pipe_that_is_never_empty_leaves_others_their_turn() {
        // Each byte is read by itself.
        let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::DIRECT).unwrap();
        rustix::pipe::fcntl_setpipe_size(&theirs, 1 << 20).unwrap();
        for _ in 0..256 {
            rustix::io::write(&theirs, b"x").unwrap();
        }
        drop(theirs);
        let outputs = Mutex::new(Outputs::default());
        let reader = outputs.lock().subscribe([false; 2]);
        let (_stop, cut) = watch::channel(false);
        let mut turns = 0;
        tokio::select! {
            biased;
            pumped = pump(ours, 0, &outputs, cut) => pumped.unwrap(),
            () = async { loop { turns += 1; tokio::task::yield_now().await } } => {}
        }
        assert!(turns >= 256 * SMALL / TURN, "{turns}");
        drop(outputs);
        let mut sum = 0;
        reader.close();
        while let Some(piece) = reader.stdout.next().await {
            sum += piece.len();
        }
        assert_eq!(sum, 256);
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_takes_is_read_at_leisure() {
        let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let printing = std::thread::spawn(move || {
            let data = vec![7; 1 << 20];
            (0..20).for_each(|_| {
                rustix::io::write(&theirs, &data).map(|n| assert_eq!(n, data.len())).unwrap();
            });
        });
        let outputs = Mutex::new(Outputs::default());
        let (_stop, cut) = watch::channel(false);
        let begin = tokio::time::Instant::now();
        pump(ours, 0, &outputs, cut).await.unwrap();
        let time = begin.elapsed();
        assert!(time >= 19 * PAUSE && time <= 20 * LONGEST_PAUSE, "{time:?}");
        printing.join().unwrap();
    }
}
