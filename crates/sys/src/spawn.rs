//! Starts a program from a descriptor, with given descriptors at given numbers.

use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// Marks all descriptors from 3 on close-on-exec, also those that our own parent has leaked: a child that outlives us
/// must not hold them (`close_range(2)`, `CLOSE_RANGE_CLOEXEC`, Linux 5.11).
///
/// # Errors
/// The kernel's.
pub fn close_on_exec() -> io::Result<()> {
    // SAFETY: no descriptor is closed now, and no memory is touched.
    match unsafe { libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC as libc::c_int) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Takes ownership of a descriptor that our parent has left open under this number, and marks it close-on-exec. The
/// number must not be in use by this program already.
///
/// # Errors
/// The number is standard input, output or error, or is not open.
pub fn inherited(number: i32) -> io::Result<OwnedFd> {
    if number < 3 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: fcntl on a number; a closed one is an error.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open, and the caller guarantees that nothing here owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Starts a program that outlives this process, in a session of its own, in the directory `/`, with /dev/null as
/// descriptors 0 to 2 and no other ones; it keeps the environment. `argv` begins with the name under which it is started.
///
/// The call does not wait until the program is executed, as `posix_spawn(3)` does: on a busy host that takes as long as
/// it takes until the child gets a processor, some 10 ms. So an error of the exec is told to nobody. With
/// `until_session` it waits until the child has its session: before that a hangup of the terminal would end it.
///
/// # Errors
/// The kernel's, or there is a NUL in a text.
pub fn leave_behind(program: &Path, argv: &[OsString], until_session: bool) -> io::Result<()> {
    let program = CString::new(program.as_os_str().as_bytes())?;
    let args = argv.iter().map(|arg| CString::new(arg.as_bytes())).collect::<Result<Vec<_>, _>>()?;
    let pointers: Vec<_> = args.iter().map(|arg| arg.as_ptr()).chain([std::ptr::null()]).collect();
    let (ours, theirs) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    // SAFETY: the child calls nothing but async-signal-safe functions (signal-safety(7)) on memory that was made before,
    // and ends by exec or _exit, so locks that other threads held at the fork are never taken.
    match unsafe { libc::fork() } {
        -1 => return Err(io::Error::last_os_error()),
        // SAFETY: see above.
        0 => unsafe {
            let mut none: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
            libc::setsid();
            let null = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR);
            if null < 0 || libc::chdir(c"/".as_ptr()) < 0 {
                libc::_exit(127);
            }
            for number in 0..3 {
                if libc::dup2(null, number) < 0 {
                    libc::_exit(127);
                }
            }
            // Among them the pipe.
            if libc::close_range(3, libc::c_uint::MAX, 0) < 0 {
                libc::_exit(127);
            }
            libc::execv(program.as_ptr(), pointers.as_ptr());
            libc::_exit(127);
        },
        _ => {}
    }
    drop(theirs);
    if until_session {
        while rustix::io::retry_on_intr(|| rustix::io::read(&ours, &mut [0; 1]))? > 0 {}
    }
    Ok(())
}

/// A child of ours: its pid and its pidfd.
#[derive(Debug)]
pub struct Child {
    /// Process id.
    pub pid: i32,
    /// `pidfd_open(2)`.
    pub pidfd: OwnedFd,
}

/// Starts the program in `program` with `argv`; the child has `fds[i]` as descriptor `3 + i`, /dev/null as
/// descriptors 0 to 2, and no environment but `env`. `posix_spawn` shares our memory until the exec, so the cost does
/// not grow with our size.
///
/// # Errors
/// The kernel's, from `posix_spawn(3)` or `pidfd_open(2)`.
pub fn from_memfd(
    program: BorrowedFd<'_>,
    argv: &[&str],
    env: &[String],
    fds: &[BorrowedFd<'_>],
) -> io::Result<Child> {
    let path = CString::new(format!("/proc/self/fd/{}", program.as_raw_fd()))?;
    let args = argv.iter().map(|a| CString::new(*a)).collect::<Result<Vec<_>, _>>()?;
    let env = env.iter().map(|e| CString::new(e.as_str())).collect::<Result<Vec<_>, _>>()?;
    let pointers = |strings: &[CString]| -> Vec<*mut libc::c_char> {
        strings.iter().map(|s| s.as_ptr().cast_mut()).chain([std::ptr::null_mut()]).collect()
    };
    let (arg_ptrs, env_ptrs) = (pointers(&args), pointers(&env));
    // A source whose number is a target of another one would be overwritten before it is copied: all are moved above
    // the targets.
    let base = 3 + i32::try_from(fds.len()).map_err(io::Error::other)?;
    let lifted = fds
        .iter()
        .map(|fd| {
            // SAFETY: fcntl on a borrowed, live descriptor; the result is a new one that we own.
            let raw = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, base) };
            if raw < 0 {
                return Err(io::Error::last_os_error());
            }
            // SAFETY: `raw` was just made by fcntl and belongs to nobody else.
            Ok(unsafe { OwnedFd::from_raw_fd(raw) })
        })
        .collect::<io::Result<Vec<_>>>()?;
    let null = CString::new("/dev/null")?;
    let mut pid = 0;
    let check = |code: i32| if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code)) };
    // SAFETY: the two structures are initialised before use and destroyed after; every pointer handed over
    // (strings, arrays ending in null) outlives the call.
    unsafe {
        let mut actions: libc::posix_spawn_file_actions_t = std::mem::zeroed();
        let mut attributes: libc::posix_spawnattr_t = std::mem::zeroed();
        check(libc::posix_spawn_file_actions_init(&raw mut actions))?;
        check(libc::posix_spawnattr_init(&raw mut attributes))?;
        let run = || -> io::Result<()> {
            for (target, mode) in [(0, libc::O_RDONLY), (1, libc::O_WRONLY), (2, libc::O_WRONLY)] {
                check(libc::posix_spawn_file_actions_addopen(
                    &raw mut actions,
                    target,
                    null.as_ptr(),
                    mode,
                    0,
                ))?;
            }
            for (fd, target) in lifted.iter().zip(3..) {
                check(libc::posix_spawn_file_actions_adddup2(&raw mut actions, fd.as_raw_fd(), target))?;
            }
            // The server may block or ignore signals: the child starts with the defaults.
            let mut none: libc::sigset_t = std::mem::zeroed();
            let mut all: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut none);
            libc::sigfillset(&raw mut all);
            check(libc::posix_spawnattr_setsigmask(&raw mut attributes, &raw const none))?;
            check(libc::posix_spawnattr_setsigdefault(&raw mut attributes, &raw const all))?;
            let flags = libc::POSIX_SPAWN_SETSIGMASK | libc::POSIX_SPAWN_SETSIGDEF;
            check(libc::posix_spawnattr_setflags(&raw mut attributes, flags as libc::c_short))?;
            check(libc::posix_spawn(
                &raw mut pid,
                path.as_ptr(),
                &raw const actions,
                &raw const attributes,
                arg_ptrs.as_ptr(),
                env_ptrs.as_ptr(),
            ))
        };
        let mut run = run;
        let result = run();
        libc::posix_spawn_file_actions_destroy(&raw mut actions);
        libc::posix_spawnattr_destroy(&raw mut attributes);
        result?;
    }
    let raw = rustix::process::Pid::from_raw(pid).ok_or_else(|| io::Error::other("no pid"))?;
    let pidfd = rustix::process::pidfd_open(raw, rustix::process::PidfdFlags::empty())?;
    Ok(Child { pid, pidfd })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn what_is_left_behind_has_nothing_of_ours() {
        let dir = tempfile::tempdir().unwrap();
        let told = dir.path().join("told");
        // A descriptor that is not close-on-exec would be in the list.
        let leaked = std::fs::File::open("/dev/zero").unwrap();
        rustix::io::fcntl_setfd(&leaked, rustix::io::FdFlags::empty()).unwrap();
        let script = "cd /proc/self/fd && for fd in 0 1 2; do readlink $fd; done; ls -l /proc/$$/fd; cut -d' ' -f6 /proc/$$/stat; echo $$";
        let script =
            format!("cwd=$(pwd); {{ echo $cwd; {script}; }} > {0}.new; mv {0}.new {0}", told.display());
        let argv = ["sh", "-c", &script].map(OsString::from);
        leave_behind(Path::new("/bin/sh"), &argv, true).unwrap();
        let started = Instant::now();
        while !told.exists() {
            assert!(started.elapsed() < Duration::from_secs(60));
            std::thread::sleep(Duration::from_millis(2));
        }
        let text = std::fs::read_to_string(&told).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        // The script's own output is a file.
        assert_eq!((lines[0], lines[1], lines[3]), ("/", "/dev/null", "/dev/null"), "{text}");
        assert!(!text.contains("/dev/zero"), "{text}");
        let [.., session, pid] = lines[..] else { panic!("{text}") };
        assert_eq!(session, pid, "{text}");
        let bad = leave_behind(Path::new("/bin/sh"), &[OsString::from("a\0b")], false).unwrap_err();
        assert_eq!(bad.kind(), io::ErrorKind::InvalidInput);
    }
}
