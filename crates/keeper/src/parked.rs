//! A second thread that lives in the container's cgroups and does nothing but clone.
//!
//! cgroup v1 has no CLONE_INTO_CGROUP, and moving a process by `cgroup.procs` waits for an RCU grace period in every
//! launch (4 ms and more on an idle host). In a v1 hierarchy the threads of a process can be in different cgroups,
//! though, and a child starts in the cgroup of the thread that clones it. So one thread is moved ahead, while no
//! client waits; the first thread, and with it the keeper's memory, stays outside the container's limits.
//!
//! While this thread clones, the first thread sleeps: no lock is held and no allocation is under way, so the child
//! may run ordinary code, as after a fork of a single-threaded program.
#![allow(unsafe_code)]

use std::cell::UnsafeCell;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, JoinHandle, Thread};

const IDLE: u32 = 0;
const ASKED: u32 = 1;
const DONE: u32 = 2;
const OVER: u32 = 3;

type Job = *mut (dyn FnMut() -> io::Result<i32> + 'static);

struct Desk {
    state: AtomicU32,
    job: UnsafeCell<Option<Job>>,
    answer: UnsafeCell<io::Result<i32>>,
    owner: Thread,
}

// SAFETY: `job` and `answer` are touched by the owner while the state is IDLE or DONE and by the parked
// thread while it is ASKED; the state's release and acquire order these.
unsafe impl Send for Desk {}
// SAFETY: as above.
unsafe impl Sync for Desk {}

/// Handle of the thread.
pub struct Parked {
    desk: Arc<Desk>,
    thread: Thread,
    /// Taken when the thread is to end.
    handle: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Parked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parked").finish_non_exhaustive()
    }
}

impl Parked {
    /// Starts the thread and moves it into the cgroups whose `tasks` files are given.
    ///
    /// # Errors
    /// A thread cannot be created, or a cgroup refuses it.
    pub fn start(tasks: &[OwnedFd]) -> io::Result<Self> {
        let desk = Arc::new(Desk {
            state: AtomicU32::new(IDLE),
            job: UnsafeCell::new(None),
            answer: UnsafeCell::new(Ok(0)),
            owner: thread::current(),
        });
        let theirs = desk.clone();
        let handle = thread::Builder::new().stack_size(256 * 1024).spawn(move || wait(&theirs))?;
        let parked = Self { desk, thread: handle.thread().clone(), handle: Some(handle) };
        parked.call(&mut || {
            for file in tasks {
                rustix::io::write(file, b"0")?;
            }
            Ok(0)
        })?;
        Ok(parked)
    }

    /// Runs `job` in the thread, and waits for its result.
    pub fn call(&self, job: &mut dyn FnMut() -> io::Result<i32>) -> io::Result<i32> {
        // SAFETY: only the lifetime is changed; this function does not return, and so the borrow does not end,
        // before the thread has finished with the job.
        let job: Job = unsafe { std::mem::transmute(std::ptr::from_mut(job)) };
        // SAFETY: the state is IDLE: the cell is ours.
        unsafe { *self.desk.job.get() = Some(job) };
        self.desk.state.store(ASKED, Ordering::Release);
        self.thread.unpark();
        while self.desk.state.load(Ordering::Acquire) != DONE {
            thread::park();
        }
        self.desk.state.store(IDLE, Ordering::Relaxed);
        // SAFETY: the state was DONE: the cell is ours again.
        unsafe { std::mem::replace(&mut *self.desk.answer.get(), Ok(0)) }
    }
}

impl Drop for Parked {
    /// Ends the thread before the process does: if the first thread of a process ends while another one still has its
    /// memory, the kernel looks for a new owner of that memory among all processes (`mm_update_next_owner` in
    /// kernel/exit.c).
    fn drop(&mut self) {
        self.desk.state.store(OVER, Ordering::Release);
        self.thread.unpark();
        // Fails if the thread has panicked, and then it has ended as well.
        self.handle.take().map(JoinHandle::join);
    }
}

fn wait(desk: &Desk) {
    loop {
        loop {
            match desk.state.load(Ordering::Acquire) {
                ASKED => break,
                OVER => return,
                _ => thread::park(),
            }
        }
        // SAFETY: the state is ASKED: the cells are ours, and the job's borrow lasts until the state becomes DONE.
        unsafe {
            if let Some(job) = (*desk.job.get()).take() {
                *desk.answer.get() = (*job)();
            }
        }
        desk.state.store(DONE, Ordering::Release);
        desk.owner.unpark();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_runs_on_the_other_thread_and_its_answer_comes_back() {
        let parked = Parked::start(&[]).unwrap();
        let here = thread::current().id();
        for round in 0..1000 {
            let mut there = None;
            let answer = parked.call(&mut || {
                there = Some(thread::current().id());
                Ok(round)
            });
            assert_eq!(answer.unwrap(), round);
            assert_ne!(there, Some(here));
        }
        assert!(parked.call(&mut || Err(io::ErrorKind::Other.into())).is_err());
    }
}
