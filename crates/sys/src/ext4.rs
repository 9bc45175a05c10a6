//! What ext4 can do beyond the calls that all file systems have (Documentation/filesystems/ext4).

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// `EXT4_IOC_SHUTDOWN`, `_IOR('X', 125, __u32)` (linux/ext4.h)
const SHUTDOWN: libc::Ioctl = 0x8004_587d;
/// `EXT4_GOING_FLAGS_NOLOGFLUSH` (linux/ext4.h)
const NO_LOG_FLUSH: u32 = 2;

fn result(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Shuts the file system down that the descriptor is open on: from then on each access fails with EIO, and what is
/// still to be written is discarded, also by the unmount. The descriptor may not be an `O_PATH` one.
///
/// # Errors
/// ENOTTY: this is no ext4. EPERM without CAP_SYS_ADMIN.
pub fn shut_down(file: impl AsFd) -> io::Result<()> {
    // SAFETY: the kernel reads one number, which lives on during the call.
    result(unsafe { libc::ioctl(file.as_fd().as_raw_fd(), SHUTDOWN, std::ptr::from_ref(&NO_LOG_FLUSH)) })
}

fn attribute(device: &str, name: &str) -> String {
    format!("/sys/fs/ext4/{device}/{name}")
}

/// Sets how many of a mounted file system's free blocks nobody can allocate, root included
/// (`ext4_has_free_clusters`, fs/ext4/balloc.c; Documentation/ABI/testing/sysfs-fs-ext4): the kernel takes some of
/// them only for the block maps of data that was accepted before. `device` is the name of its block device.
///
/// # Errors
/// EINVAL: more than the file system has. ENOENT: none is mounted from the device. EROFS: sysfs is read-only.
pub fn reserve(device: &str, blocks: u64) -> io::Result<()> {
    std::fs::write(attribute(device, "reserved_clusters"), blocks.to_string())
}

/// Keeps a mounted file system from writing what is no error of it to the kernel's log
/// (Documentation/ABI/testing/sysfs-fs-ext4): a shutdown would be an alert on the console, which takes a millisecond if
/// that is a serial one.
///
/// # Errors
/// ENOENT: none is mounted from the device. EROFS: sysfs is read-only.
pub fn silence(device: &str) -> io::Result<()> {
    std::fs::write(attribute(device, "msg_ratelimit_burst"), "0")
}

/// Returns how many errors and warnings a mounted file system has had since it was mounted
/// (Documentation/ABI/testing/sysfs-fs-ext4): data that could not be written back is a warning (`ext4_end_bio`,
/// fs/ext4/page-io.c).
///
/// # Errors
/// ENOENT: none is mounted from the device.
pub fn complaints(device: &str) -> io::Result<u64> {
    let read = |name: &str| {
        let text = std::fs::read_to_string(attribute(device, name))?;
        text.trim().parse::<u64>().map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
    };
    Ok(read("errors_count")?.saturating_add(read("warning_count")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_file_systems_are_told_apart() {
        let proc = std::fs::File::open("/proc/self").unwrap();
        assert_eq!(shut_down(&proc).unwrap_err().raw_os_error(), Some(libc::ENOTTY));
        assert_eq!(reserve("none", 1).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(silence("none").unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(complaints("none").unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
