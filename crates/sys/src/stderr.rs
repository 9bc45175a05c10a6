//! Messages on standard error.
//!
//! `eprintln!` panics where standard error cannot be written (`2>/dev/full`), and waits for the standard library's
//! lock, which a thread holds for the duration of its own write: for ever, if nobody reads.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::stdio::stderr;

/// How long to wait for a non-blocking (`O_NONBLOCK`) standard error.
const PATIENCE: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// Writes a line in one write. A failure is ignored: it cannot be reported anywhere, and the operation that the
/// message is about must go on.
pub fn line(text: &str) {
    write(&format!("{text}\n"));
}

/// Writes text without a line end, as for a question.
pub fn write(text: &str) {
    let mut rest = text.as_bytes();
    while !rest.is_empty() {
        match rustix::io::write(stderr(), rest) {
            Ok(0) => return,
            Ok(written) => rest = &rest[written..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) if is_ready(&PATIENCE) => {}
            Err(_) => return,
        }
    }
}

/// Whether a short message (`PIPE_BUF`, 4096 bytes) can be written without waiting.
pub fn is_free() -> bool {
    is_ready(&Timespec { tv_sec: 0, tv_nsec: 0 })
}

fn is_ready(patience: &Timespec) -> bool {
    let stderr = stderr();
    poll(&mut [PollFd::new(&stderr, PollFlags::OUT)], Some(patience)) != Ok(0)
}
