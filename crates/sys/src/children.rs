//! Children by pid, safely: a pid names a child of ours exactly from its start until it is reaped, so a process that
//! keeps pids must decide for each child when it is reaped.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

/// Read-locked by a caller that has just started a child and uses its pid; write-locked by [`reap_all`].
static NAMED: RwLock<()> = RwLock::new(());

/// Keeps [`reap_all`] from reaping, so that the pid of a child that is started while the guard is held stays the
/// child's, even if the child ends at once.
pub fn keep_numbers() -> RwLockReadGuard<'static, ()> {
    NAMED.read().unwrap_or_else(PoisonError::into_inner)
}

/// The pids of all [`Own`] children that are not reaped yet.
static OWNED: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());
/// Set in a process that calls [`reap_all`].
static REAPS: AtomicBool = AtomicBool::new(false);

fn owned() -> MutexGuard<'static, BTreeSet<i32>> {
    OWNED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reaps every child that has ended, but for [`Own`] ones. For a process that orphans are reparented to
/// (`PR_SET_CHILD_SUBREAPER`).
pub fn reap_all() {
    REAPS.store(true, Ordering::Relaxed);
    let _nobody_names_one = NAMED.write().unwrap_or_else(PoisonError::into_inner);
    while let Ok(Some(pid)) = peek_ended() {
        // An owned one hides those behind it, until its owner reaps it and calls this.
        if owned().contains(&pid) || reap(pid).is_none() {
            return;
        }
    }
}

/// A program with a process group of its own, whose exit status [`reap_all`] leaves to the owner. Dropping it kills
/// the group.
#[derive(Debug)]
pub struct Own {
    child: Child,
    /// Readable once the child has ended (`pidfd_open(2)`).
    ended: OwnedFd,
    status: Option<ExitStatus>,
}

impl Own {
    /// Starts a program. It inherits no descriptor but those that the command names.
    ///
    /// # Errors
    /// See [`Command::spawn`].
    pub fn start(command: &mut Command) -> io::Result<Self> {
        crate::spawn::close_on_exec()?;
        command.process_group(0);
        let _nothing_is_reaped = keep_numbers();
        let mut child = command.spawn()?;
        match pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
            Ok(ended) => {
                owned().extend(i32::try_from(child.id()));
                Ok(Self { child, ended, status: None })
            }
            Err(error) => {
                child.kill()?;
                child.wait()?;
                Err(error.into())
            }
        }
    }

    /// Returns a descriptor that is readable once the program has ended.
    pub fn ended(&self) -> BorrowedFd<'_> {
        self.ended.as_fd()
    }

    /// Returns the child, whose pipes may be taken.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Waits for the end of the program. Returns its exit status; `None` if it still runs at the deadline.
    ///
    /// # Errors
    /// The kernel's.
    pub fn wait_until(&mut self, deadline: Instant) -> io::Result<Option<ExitStatus>> {
        if self.status.is_none() {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec {
                tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            };
            match poll(&mut [PollFd::new(&self.ended, PollFlags::IN)], Some(&left)) {
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                Ok(_) => self.reap()?,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(self.status)
    }

    /// Waits for a child that has ended or been killed.
    fn reap(&mut self) -> io::Result<()> {
        self.status = Some(self.child.wait()?);
        owned().retain(|pid| u32::try_from(*pid) != Ok(self.child.id()));
        // Those that it hid.
        if REAPS.load(Ordering::Relaxed) {
            reap_all();
        }
        Ok(())
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        if self.status.is_none() {
            // The pid is that of the child, and of its group, until it is reaped.
            let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
            let _ = self.reap();
        }
    }
}

/// Returns what `waitid(2)` reports of one child, without reaping it.
fn look(kind: libc::idtype_t, id: libc::id_t) -> io::Result<Option<i32>> {
    // SAFETY: all-zero is a valid `siginfo_t`, which the kernel fills in; `si_pid` is read only after success, and is 0
    // where WNOHANG found nothing.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        // __WALL: children that were cloned without an exit signal count as well.
        let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL;
        if libc::waitid(kind, id, &raw mut info, flags) < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Some(info.si_pid()).filter(|pid| *pid > 0))
    }
}

/// Returns the pid of some child that has ended and is not reaped yet, without reaping it.
///
/// # Errors
/// ECHILD: there is no child at all.
pub fn peek_ended() -> io::Result<Option<i32>> {
    look(libc::P_ALL, 0)
}

/// Whether the pid is that of a child of this process, running or not reaped yet. A pid that another process reports
/// must pass this check before it is used.
pub fn is_child(pid: i32) -> bool {
    u32::try_from(pid).is_ok_and(|id| look(libc::P_PID, id).is_ok())
}

/// Whether the child of this pid has ended and is not reaped yet. Does not reap it.
pub fn has_ended(pid: i32) -> bool {
    u32::try_from(pid).is_ok_and(|id| look(libc::P_PID, id).is_ok_and(|ended| ended.is_some()))
}

/// Reaps the child of this pid if it has ended. Returns its exit status, 128 + the signal's number if one killed it;
/// `None` if it still runs, or is no child.
pub fn reap(pid: i32) -> Option<i32> {
    let pid = rustix::process::Pid::from_raw(pid)?;
    let (_, status) = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::NOHANG).ok()??;
    let killed = || status.terminating_signal().map(|signal| 128 + signal);
    Some(status.exit_status().or_else(killed).unwrap_or(255))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_stays_one_until_it_is_reaped() {
        let mut child = std::process::Command::new("/bin/sh").args(["-c", "exit 7"]).spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        assert!(is_child(pid));
        let status = loop {
            // Both calls report the same child: looking does not reap.
            if has_ended(pid) && peek_ended().unwrap().is_some() && is_child(pid) {
                break reap(pid);
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        };
        assert_eq!(status, Some(7));
        assert!(!is_child(pid) && !has_ended(pid) && reap(pid).is_none());
        assert!(!is_child(1) && !is_child(-1) && !is_child(0));
        assert!(child.wait().is_err());
    }

    #[test]
    fn the_owner_of_a_child_gets_its_status() {
        let soon = || Instant::now() + std::time::Duration::from_secs(10);
        let mut first = Own::start(Command::new("/bin/sh").args(["-c", "exit 3"])).unwrap();
        while !has_ended(first.child().id().cast_signed()) {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        assert!(owned().contains(&first.child().id().cast_signed()));
        assert_eq!(first.wait_until(soon()).unwrap().and_then(|status| status.code()), Some(3));
        assert_eq!(first.wait_until(soon()).unwrap().and_then(|status| status.code()), Some(3));
        let mut slow = Own::start(Command::new("/bin/sleep").arg("1000")).unwrap();
        let pid = slow.child().id().cast_signed();
        assert!(slow.wait_until(Instant::now()).unwrap().is_none());
        drop(slow);
        assert!(!is_child(pid) && !owned().contains(&pid));
    }
}
