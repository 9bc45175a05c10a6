//! Subvolumes of btrfs and their quota groups (linux/btrfs.h, btrfs-subvolume(8), btrfs-quota(8)).
//!
//! With quota switched on each subvolume has a quota group of level 0 whose number is the subvolume's. The kernel shows
//! the groups in /sys/fs/btrfs/FSID/qgroups.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use rustix::io::{Errno, Result};

/// `BTRFS_FIRST_FREE_OBJECTID`: the inode of a subvolume's root.
const ROOT: u64 = 256;

/// What the quota group of a subvolume counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Group {
    /// Bytes, with those of data in the page cache.
    pub bytes: u64,
}

/// Calls an ioctl of btrfs.
///
/// # Safety
/// `argument` must be what the request takes, and live until the call returns.
unsafe fn call<T>(file: impl AsFd, request: libc::Ioctl, argument: *mut T) -> Result<()> {
    // SAFETY: see above; the descriptor is open.
    let result = unsafe { libc::ioctl(file.as_fd().as_raw_fd(), request, argument) };
    if result < 0 {
        return Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO));
    }
    Ok(())
}

/// `struct btrfs_ioctl_vol_args`.
#[repr(C)]
struct Named {
    fd: i64,
    name: [u8; 4088],
}

fn named(name: &CStr) -> Result<Box<Named>> {
    let bytes = name.to_bytes();
    let mut named = Box::new(Named { fd: 0, name: [0; 4088] });
    // One byte is for the end of the string.
    named.name[..4087].get_mut(..bytes.len()).ok_or(Errno::NAMETOOLONG)?.copy_from_slice(bytes);
    Ok(named)
}

/// Makes an empty subvolume in a directory, owned by the caller, with mode 0755 less the umask.
///
/// # Errors
/// ENOTTY: the file system is no btrfs. EEXIST.
pub fn create(dir: impl AsFd, name: &CStr) -> Result<()> {
    const CREATE: libc::Ioctl = 0x5000_940e;
    let mut named = named(name)?;
    // SAFETY: the kernel reads a `struct btrfs_ioctl_vol_args`.
    unsafe { call(dir, CREATE, &raw mut *named) }
}

/// Removes a subvolume with everything in it. The call does not wait: a thread of the kernel frees the space, once
/// nothing in it is open.
///
/// # Errors
/// EINVAL: it is no subvolume. ENOTEMPTY: it has subvolumes of its own.
pub fn destroy(dir: impl AsFd, name: &CStr) -> Result<()> {
    const DESTROY: libc::Ioctl = 0x5000_940f;
    let mut named = named(name)?;
    // SAFETY: the kernel reads a `struct btrfs_ioctl_vol_args`.
    unsafe { call(dir, DESTROY, &raw mut *named) }
}

/// Whether a directory is the root of a subvolume; its file system must be btrfs.
///
/// # Errors
/// The kernel's.
pub fn is_subvolume(dir: impl AsFd) -> Result<bool> {
    Ok(rustix::fs::fstat(dir)?.st_ino == ROOT)
}

/// Returns the number of the subvolume that a directory is in.
///
/// # Errors
/// ENOTTY: the file system is no btrfs.
pub fn subvolume(dir: impl AsFd) -> Result<u64> {
    const LOOKUP: libc::Ioctl = 0xd000_9412;
    /// `struct btrfs_ioctl_ino_lookup_args`.
    #[repr(C)]
    struct Lookup {
        tree: u64,
        object: u64,
        name: [u8; 4080],
    }
    let mut lookup = Box::new(Lookup { tree: 0, object: ROOT, name: [0; 4080] });
    // SAFETY: the kernel reads and writes a `struct btrfs_ioctl_ino_lookup_args`.
    unsafe { call(dir, LOOKUP, &raw mut *lookup) }?;
    Ok(lookup.tree)
}

/// Returns the directory of a file system's quota groups in /sys; it is missing while quota is switched off.
///
/// # Errors
/// ENOTTY: the file system is no btrfs.
pub fn groups(dir: impl AsFd) -> Result<PathBuf> {
    const INFO: libc::Ioctl = 0x8400_941f;
    /// `struct btrfs_ioctl_fs_info_args`, 1024 bytes.
    #[repr(C)]
    struct Info {
        numbers: [u64; 2],
        id: [u8; 16],
        rest: [u64; 124],
    }
    let mut info = Box::new(Info { numbers: [0; 2], id: [0; 16], rest: [0; 124] });
    // SAFETY: the kernel reads and writes a `struct btrfs_ioctl_fs_info_args`.
    unsafe { call(dir, INFO, &raw mut *info) }?;
    let hex: String = info.id.iter().map(|byte| format!("{byte:02x}")).collect();
    let id = format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]);
    Ok(Path::new("/sys/fs/btrfs").join(id).join("qgroups"))
}

/// Returns what a subvolume's group counts, from the directory of all [`groups`].
///
/// # Errors
/// There is no such group, or a figure is none.
pub fn group(groups: &Path, subvolume: u64) -> std::io::Result<Group> {
    let group = groups.join(format!("0_{subvolume}"));
    let read = |name: &str| {
        let text = std::fs::read_to_string(group.join(name))?;
        text.trim().parse::<u64>().map_err(std::io::Error::other)
    };
    // What is reserved becomes what is referenced when it is written. More metadata is reserved than will be written, by
    // a megabyte, so that counts when it has been.
    Ok(Group { bytes: read("referenced")? + read("rsv_data")? })
}

/// Limits the bytes that a subvolume references; `None`: no limit.
///
/// # Errors
/// ENOTCONN: quota is switched off. ENOENT: there is no such group.
pub fn limit(dir: impl AsFd, subvolume: u64, bytes: Option<u64>) -> Result<()> {
    const LIMIT: libc::Ioctl = 0x8030_942b;
    /// `BTRFS_QGROUP_LIMIT_MAX_RFER`; the largest number takes the limit away.
    const REFERENCED: u64 = 1;
    /// `struct btrfs_ioctl_qgroup_limit_args`.
    #[repr(C)]
    struct Limit {
        group: u64,
        flags: u64,
        referenced: u64,
        exclusive: u64,
        reserved: [u64; 2],
    }
    let referenced = bytes.unwrap_or(u64::MAX);
    let mut limit = Limit { group: subvolume, flags: REFERENCED, referenced, exclusive: 0, reserved: [0; 2] };
    // SAFETY: the kernel reads a `struct btrfs_ioctl_qgroup_limit_args`.
    unsafe { call(dir, LIMIT, &raw mut limit) }
}

/// Removes the group of a subvolume that is gone.
///
/// # Errors
/// EBUSY: the subvolume is still being removed. ENOENT: the kernel has removed it (since Linux 6.12). ENOTCONN: quota
/// is switched off.
pub fn remove_group(dir: impl AsFd, subvolume: u64) -> Result<()> {
    const CREATE: libc::Ioctl = 0x4010_942a;
    /// `struct btrfs_ioctl_qgroup_create_args`.
    #[repr(C)]
    struct Create {
        create: u64,
        group: u64,
    }
    let mut remove = Create { create: 0, group: subvolume };
    // SAFETY: the kernel reads a `struct btrfs_ioctl_qgroup_create_args`.
    unsafe { call(dir, CREATE, &raw mut remove) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_file_system_is_told() {
        let proc = std::fs::File::open("/proc").unwrap();
        for error in [
            subvolume(&proc).unwrap_err(),
            groups(&proc).unwrap_err(),
            create(&proc, c"a").unwrap_err(),
            limit(&proc, 5, None).unwrap_err(),
        ] {
            assert_eq!(error, Errno::NOTTY);
        }
        assert!(!is_subvolume(&proc).unwrap());
    }
}
