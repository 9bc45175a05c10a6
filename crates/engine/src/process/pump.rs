//! The pump of a stream: it reads the pipe of a process's output and passes each piece on to the stream's readers.

use crate::process::kept::Kept;
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

/// Bytes after which a pump yields to other tasks: a pipe that is never empty would otherwise occupy its
/// thread for ever. Each piece counts as at least [`SMALL`].
const TURN: usize = 2 * CHUNK;
/// Bytes that no reader takes, after which a pump pauses, …
const NOWHERE: usize = 1 << 20;
/// … for this long times the number of pumps that do the same: together they discard 1 GB/s, which takes an
/// eighth of a processor …
const PAUSE: Duration = Duration::from_millis(1);
/// … and for at most this long.
const LONGEST_PAUSE: Duration = Duration::from_millis(100);
/// Delay after a flood of output until the heap is trimmed.
const SOON: Duration = Duration::from_secs(1);
/// Capacity, in bytes, that the pipe of a process with much output is given.
const PIPE: usize = 1 << 20;

/// Copies from the pipe to all readers, and to what is kept, until end of file, which comes only when the program's descendants
/// have closed the pipe too. Once `cut` is true, it stops as soon as the pipe is empty.
pub async fn pump(
    pipe: OwnedFd,
    stream: usize,
    outputs: &Mutex<Outputs>,
    kept: Option<&Kept>,
    cut: watch::Receiver<bool>,
) -> std::io::Result<()> {
    let mut much = false;
    let pumped = pass_on(pipe, stream, outputs, kept, cut, &mut much).await;
    if much {
        // Tens of megabytes may be queued for readers, who are about to take them.
        trim_soon();
    }
    pumped
}

/// Schedules a trim of the heap in [`SOON`], for the memory of all queues that become empty until then.
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

/// Counts a pump that discards what it reads, until dropped.
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
    kept: Option<&Kept>,
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
        // Unread output stays in the pipe, whose memory is charged to the container.
        let Some(size) = lock().wanted(stream) else {
            buffer = Vec::new();
            room.notified().await;
            continue;
        };
        if buffer.capacity() != size {
            buffer = Vec::with_capacity(size);
        }
        // After the cut no more readiness events may come, so the pipe is read directly.
        let read = if over {
            rustix::io::read(&pipe, rustix::buffer::spare_capacity(&mut buffer)).map_err(std::io::Error::from)
        } else {
            pipe.try_read_buf(&mut (&mut buffer).limit(size))
        };
        let read = match read {
            Err(error) if error.kind() == ErrorKind::WouldBlock && !over => {
                // A process that prints nothing holds no buffer.
                buffer = Vec::new();
                nowhere = None;
                tokio::select! {
                    ready = pipe.readable() => ready?,
                    cut = cut.wait_for(|cut| *cut) => { drop(cut); over = true }
                }
                continue;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            // Reading a terminal that no process has open any more fails with EIO.
            Ok(0) | Err(_) => return Ok(()),
            Ok(n) => n,
        };
        if read >= CHUNK / 2 && !*much {
            *much = true;
            // Fails above the host's limit (/proc/sys/fs/pipe-max-size): the smaller pipe is slower, not
            // wrong.
            let _ = rustix::pipe::fcntl_setpipe_size(&pipe, PIPE);
        }
        kept.into_iter().for_each(|kept| kept.append(stream, &buffer));
        // A queued piece is charged by its length: a small one must not keep a large buffer alive.
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
                // A reader has subscribed.
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
            pumped = pump(ours, 0, &outputs, None, cut) => pumped.unwrap(),
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
        pump(ours, 0, &outputs, None, cut).await.unwrap();
        let time = begin.elapsed();
        assert!(time >= 19 * PAUSE && time <= 20 * LONGEST_PAUSE, "{time:?}");
        printing.join().unwrap();
    }
}
