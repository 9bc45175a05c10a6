//! Making layers durable, off every request path: one thread, one layer at a time, in the idle I/O class.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use rustix::fs::{Dir, FileType, Mode, OFlags};
use wardian_sys::mount;

use crate::layer::Fresh;
use crate::layout;

/// How deep the write-back walks; a descriptor a level. What lies deeper is left to the final `syncfs`.
const MAX_DEPTH: usize = 64;

enum Job {
    Layer(Box<Fresh>),
    /// Let a write error that nobody has seen be reported, so that volatile mounts work again.
    Report(OwnedFd),
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    busy: bool,
    stop: bool,
}

/// The queue of the thread that makes layers durable.
#[derive(Default)]
pub(crate) struct Durability {
    state: Mutex<State>,
    changed: Condvar,
}

impl std::fmt::Debug for Durability {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Durability").finish_non_exhaustive()
    }
}

impl Durability {
    /// Starts the thread. It ends by itself some time after [`Durability::stop`]: a `syncfs` cannot be interrupted.
    pub(crate) fn start() -> std::io::Result<Arc<Self>> {
        let this = Arc::new(Self::default());
        let thread = Arc::clone(&this);
        std::thread::Builder::new().name("durability".into()).spawn(move || thread.run())?;
        Ok(this)
    }

    fn push(&self, job: Job) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).jobs.push_back(job);
        self.changed.notify_all();
    }

    pub(crate) fn layer(&self, fresh: Fresh) {
        self.push(Job::Layer(Box::new(fresh)));
    }

    pub(crate) fn report(&self, sync: OwnedFd) {
        self.push(Job::Report(sync));
    }

    pub(crate) fn stop(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).stop = true;
        self.changed.notify_all();
    }

    /// Whether nothing is left to do.
    #[cfg(test)]
    pub(crate) fn is_idle(&self) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.jobs.is_empty() && !state.busy
    }

    fn stopped(&self) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).stop
    }

    fn run(&self) {
        // Without it the write-back competes with containers, and is right all the same.
        let _ = mount::idle_io_class();
        loop {
            let job = {
                let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                state.busy = false;
                loop {
                    if state.stop {
                        return;
                    }
                    if let Some(job) = state.jobs.pop_front() {
                        state.busy = true;
                        break job;
                    }
                    state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
            };
            match job {
                Job::Layer(fresh) => self.make_durable(*fresh),
                Job::Report(sync) => {
                    let result = rustix::fs::syncfs(&sync);
                    tracing::warn!(?result, "the file system under the store had an unseen write error");
                }
            }
        }
    }

    fn make_durable(&self, mut fresh: Fresh) {
        let written = layout::open_dir(&fresh.dir, "fs")
            .map_err(std::io::Error::from)
            .and_then(|fs| self.write_back(fs.as_fd()))
            .and_then(|()| if self.stopped() { Ok(()) } else { Ok(rustix::fs::syncfs(&fresh.sync)?) });
        if self.stopped() {
            return;
        }
        let marked = written.and_then(|()| {
            fresh.record.durable = true;
            fresh.record.write(&fresh.dir)
        });
        if let Err(error) = marked {
            fresh.layer.mark_suspect();
            tracing::warn!(layer = fresh.layer.chain, %error, "the layer may not be on the disk");
        }
    }

    fn write_back(&self, fs: BorrowedFd<'_>) -> std::io::Result<()> {
        let mut stack = vec![(rustix::io::fcntl_dupfd_cloexec(fs, 3)?, Dir::read_from(fs)?)];
        while let Some((dir, entries)) = stack.last_mut() {
            if self.stopped() {
                return Ok(());
            }
            let Some(entry) = entries.next() else {
                stack.pop();
                continue;
            };
            let entry = entry?;
            if entry.file_name() == c"." || entry.file_name() == c".." {
                continue;
            }
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            match entry.file_type() {
                // Only a regular file: opening a device could do anything.
                FileType::RegularFile => {
                    let file = rustix::fs::openat(&*dir, entry.file_name(), flags, Mode::empty())?;
                    mount::write_back(&file)?;
                }
                FileType::Directory if stack.len() < MAX_DEPTH => {
                    let dir = &stack[stack.len() - 1].0;
                    let flags = flags | OFlags::DIRECTORY;
                    let child = rustix::fs::openat(dir, entry.file_name(), flags, Mode::empty())?;
                    let entries = Dir::read_from(&child)?;
                    stack.push((child, entries));
                }
                _ => {}
            }
        }
        Ok(())
    }
}
