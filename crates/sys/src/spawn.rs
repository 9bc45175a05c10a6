//! Starts a program from a descriptor, with given descriptors at given numbers.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

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
