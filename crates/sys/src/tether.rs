//! Children that do not outlive the thread that has started them.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// Has the kernel kill the command (SIGKILL) as soon as the thread that starts it has ended, even by `kill -9` of the
/// whole process (`PR_SET_PDEATHSIG`, prctl(2)). The thread must live as long as the command is to run: the main thread
/// or a worker of an asynchronous runtime, not one of a pool that ends its idle threads.
pub fn tie(command: &mut Command) {
    let parent = std::process::id();
    let before_exec = move || {
        // SAFETY: both calls are async-signal-safe and touch no memory.
        let (tied, now) =
            unsafe { (libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0), libc::getppid()) };
        if tied != 0 {
            return Err(io::Error::last_os_error());
        }
        // A parent that had died before the prctl would not be noticed.
        if u32::try_from(now) != Ok(parent) {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure calls nothing but async-signal-safe functions and allocates nothing:
    // errors of a number hold no memory.
    unsafe { command.pre_exec(before_exec) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::Stdio;

    #[test]
    fn a_tied_child_ends_with_its_thread() {
        let start = || {
            let mut command = Command::new("sleep");
            command.arg("600").stdin(Stdio::null());
            tie(&mut command);
            command.spawn().unwrap()
        };
        let mut child = std::thread::spawn(start).join().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
        let mut child = start();
        assert!(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
