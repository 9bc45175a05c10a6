//! Probes of kernel features, by trying them, without lasting effects.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Whether the file's file system supports fs-verity, tested by asking for the digest of a file without one
/// (Documentation/filesystems/fsverity.rst).
///
/// # Errors
/// All errors except those that mean "not supported".
pub fn has_verity(file: impl AsFd) -> io::Result<bool> {
    /// `FS_IOC_MEASURE_VERITY`, `_IOWR('f', 134, struct fsverity_digest)`
    const MEASURE: libc::Ioctl = 0xc004_6686;
    /// `struct fsverity_digest` with room for the longest digest, SHA-512.
    #[repr(C)]
    struct Digest {
        algorithm: u16,
        size: u16,
        digest: [u8; 64],
    }
    let mut digest = Digest { algorithm: 0, size: 64, digest: [0; 64] };
    // SAFETY: the kernel writes at most `size` bytes behind the header, which `digest` has.
    let result = unsafe { libc::ioctl(file.as_fd().as_raw_fd(), MEASURE, &raw mut digest) };
    if result >= 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::ENODATA) => Ok(true),
        Some(libc::ENOTTY | libc::EOPNOTSUPP) => Ok(false),
        _ => Err(error),
    }
}

/// Clones a process into the cgroup (v2) whose directory the descriptor is open on (`CLONE_INTO_CGROUP`, Linux 5.7).
/// The process exits at once.
///
/// # Errors
/// The kernel's: ENOSYS and E2BIG mean that it does not support this.
pub fn clone_into_cgroup(group: impl AsFd) -> io::Result<()> {
    /// linux/sched.h; libc's constant of this name is too narrow.
    const INTO_CGROUP: u64 = 0x2_0000_0000;
    // SAFETY: all-zero is a valid `clone_args`.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = INTO_CGROUP;
    args.exit_signal = libc::SIGCHLD as u64;
    args.cgroup = u64::from(group.as_fd().as_raw_fd().unsigned_abs());
    // SAFETY: without CLONE_VM this is a fork: the child has its own copy of the stack and makes one system call,
    // which takes no lock. The parent reaps it by the pid that the call returned.
    unsafe {
        let pid = libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>());
        if pid == 0 {
            libc::_exit(0);
        }
        if pid < 0 {
            return Err(io::Error::last_os_error());
        }
        libc::waitpid(pid as libc::pid_t, std::ptr::null_mut(), 0);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn proc_has_no_verity() {
        let file = File::open("/proc/self/mountinfo").unwrap();
        assert!(!has_verity(&file).unwrap());
    }

    #[test]
    fn a_directory_of_another_kind_is_no_cgroup() {
        let error = clone_into_cgroup(File::open("/").unwrap()).unwrap_err();
        assert!(matches!(error.raw_os_error(), Some(libc::EBADF | libc::ENOSYS)), "{error}");
    }
}
