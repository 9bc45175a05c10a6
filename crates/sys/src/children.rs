//! Children by pid, safely: a pid names a child of ours exactly from its start until it is reaped, so a process that
//! keeps pids must decide for each child when it is reaped.

use std::io;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

/// Read-locked by a caller that has just started a child and uses its pid; write-locked by [`reap_all`].
static NAMED: RwLock<()> = RwLock::new(());

/// Keeps [`reap_all`] from reaping, so that the pid of a child that is started while the guard is held stays the
/// child's, even if the child ends at once.
pub fn keep_numbers() -> RwLockReadGuard<'static, ()> {
    NAMED.read().unwrap_or_else(PoisonError::into_inner)
}

/// Reaps every child that has ended. For a process that orphans are reparented to (`PR_SET_CHILD_SUBREAPER`).
pub fn reap_all() {
    let _nobody_names_one = NAMED.write().unwrap_or_else(PoisonError::into_inner);
    while let Ok(Some(_)) = rustix::process::wait(rustix::process::WaitOptions::NOHANG) {}
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
}
