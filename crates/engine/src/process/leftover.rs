//! Pipes of exited programs that another process still holds open.
//!
//! Each such program takes two descriptors in the server and two in its keeper, and no limit of the container
//! counts them: one process can hold the pipes of thousands of programs (`SCM_RIGHTS`, unix(7)). So each
//! container gets a share of the free descriptors of the server, as queues get one of its memory in
//! [`crate::process::ledger`]; beyond that share the oldest pipes are drained and closed.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The most such programs of one container; …
const MOST: usize = 256;
/// … the most of them whose output no client reads; …
const UNREAD: usize = 32;
/// … and the number that every container may have, however many others have.
const LEAST: usize = 4;
/// One in this many of the server's descriptors is for them, with two for each program.
const PART: u64 = 8;

static ALL: AtomicUsize = AtomicUsize::new(0);

/// Counts one exited program whose output is still open, until dropped.
#[derive(Debug)]
pub struct Leftover(());

impl Leftover {
    /// Counts a program that has exited and whose output is still open.
    pub fn begin() -> Self {
        ALL.fetch_add(1, Ordering::Relaxed);
        Self(())
    }
}

impl Drop for Leftover {
    fn drop(&mut self) {
        ALL.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Returns how many a container may have at present, and how many of them without a client.
pub fn allowed() -> [usize; 2] {
    static FOR_ALL: LazyLock<usize> = LazyLock::new(|| {
        let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        files.map_or(usize::MAX, |files| usize::try_from(files / PART / 2).unwrap_or(usize::MAX))
    });
    share(FOR_ALL.saturating_sub(ALL.load(Ordering::Relaxed)))
}

fn share(free: usize) -> [usize; 2] {
    [(free / 2).clamp(LEAST, MOST), (free / 4).clamp(LEAST, UNREAD)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_become_smaller_and_never_nothing() {
        assert_eq!(share(1250), [MOST, UNREAD]);
        assert_eq!(share(100), [50, 25]);
        assert_eq!(share(0), [LEAST, LEAST]);
    }
}
