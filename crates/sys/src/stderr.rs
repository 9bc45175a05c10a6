//! Messages on standard error.
//!
//! `eprintln!` panics where standard error cannot be written (`2>/dev/full`), and waits for whoever holds the standard
//! library's lock, which a thread keeps as long as its own write takes: for ever, if nobody reads.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::stdio::stderr;

/// How long a descriptor that does not wait by itself (`O_NONBLOCK`) is waited for.
const PATIENCE: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// A line, in one write. That it cannot be written is ignored: nobody is left who could be told, and what the message is about
/// must go on.
pub fn line(text: &str) {
    write(&format!("{text}\n"));
}

/// The same without the end of the line, as for a question.
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

/// Whether a short message (`PIPE_BUF`, 4096 bytes) is taken at once.
pub fn is_free() -> bool {
    is_ready(&Timespec { tv_sec: 0, tv_nsec: 0 })
}

fn is_ready(patience: &Timespec) -> bool {
    let stderr = stderr();
    poll(&mut [PollFd::new(&stderr, PollFlags::OUT)], Some(patience)) != Ok(0)
}
