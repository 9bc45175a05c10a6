//! Output of programs that have ended, which something that they have left behind keeps open.
//!
//! Each takes two descriptors here and two in the keeper, and no limit of the container counts them: one process can hold the
//! pipes of thousands of programs (`SCM_RIGHTS`, unix(7)). So a container has a share of those that are left for the server,
//! as queues have of its memory in [`crate::process::ledger`]; above that its oldest are read to what they hold and closed.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Of one container at most, in programs; …
const MOST: usize = 256;
/// … of which so many may have no client that reads them, …
const UNREAD: usize = 32;
/// … and at least, however many others have.
const LEAST: usize = 4;
/// Of all descriptors of the server one in so many is for them, with two for each program.
const PART: u64 = 8;

static ALL: AtomicUsize = AtomicUsize::new(0);

/// One of them, while it is open.
#[derive(Debug)]
pub struct Leftover(());

impl Leftover {
    /// A program has ended, and its output has not.
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

/// How many a container may have at present, and how many of them without a client.
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
