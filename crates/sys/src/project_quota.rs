//! Project quota of XFS and ext4: what the inodes of one project take on a file system, and the limits on that
//! (quotactl(2), xfs_quota(8)).
//!
//! An inode has the id of one project, 0 from the start. New inodes inherit it from a directory that is marked so
//! ([`assign`]); a hard link or a rename into such a directory from another project fails with EXDEV.

use std::os::fd::{AsFd, AsRawFd};

use rustix::io::{Errno, Result};

/// The state of a file system's project quota.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct State {
    /// Blocks and files are counted.
    pub counted: bool,
    /// Limits are enforced.
    pub enforced: bool,
}

/// What a project takes, and what it may take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Quota {
    /// Bytes, with those that are reserved for data in the page cache.
    pub bytes: u64,
    /// Inodes.
    pub inodes: u64,
    /// The hard limit of bytes; 0: none.
    pub most_bytes: u64,
    /// The hard limit of inodes; 0: none.
    pub most_inodes: u64,
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// linux/quota.h: `PRJQUOTA`, and `QCMD` shifts the command by 8.
const PROJECT: libc::c_uint = 2;

/// Calls `quotactl_fd(2)` (Linux 5.14) for the projects of the file system that the descriptor is open on.
///
/// # Safety
/// `argument` must be what the command takes: a pointer to memory that the kernel may read and write as that command
/// does.
unsafe fn quotactl<T>(file: impl AsFd, command: libc::c_uint, id: u32, argument: *mut T) -> Result<()> {
    let command = (command << 8) | PROJECT;
    // SAFETY: see above; the descriptor is open.
    let result =
        unsafe { libc::syscall(libc::SYS_quotactl_fd, file.as_fd().as_raw_fd(), command, id, argument) };
    if result < 0 { Err(last_errno()) } else { Ok(()) }
}

/// Queries the file system that the descriptor is open on (`Q_XGETQSTATV`).
///
/// # Errors
/// ENOSYS: the file system has no quota, or none is switched on. EINVAL: it has no project quota.
pub fn state(file: impl AsFd) -> Result<State> {
    // linux/dqblk_xfs.h: XQM_CMD(8).
    const GET_STATE: libc::c_uint = ((b'X' as libc::c_uint) << 8) + 8;
    /// `FS_QUOTA_PDQ_ACCT`, `FS_QUOTA_PDQ_ENFD`
    const COUNTED: u16 = 1 << 4;
    const ENFORCED: u16 = 1 << 5;
    /// `struct fs_quota_statv` up to its flags; it has 160 bytes in all.
    #[repr(C)]
    struct Statv {
        version: i8,
        pad: u8,
        flags: u16,
        rest: [u32; 63],
    }
    let mut state = Statv { version: 1, pad: 0, flags: 0, rest: [0; 63] };
    // SAFETY: the kernel reads the version and writes at most 160 bytes to `state`, which is larger and lives on.
    unsafe { quotactl(file, GET_STATE, 0, &raw mut state) }?;
    Ok(State { counted: state.flags & COUNTED != 0, enforced: state.flags & ENFORCED != 0 })
}

/// `struct if_dqblk` of linux/quota.h.
#[repr(C)]
#[derive(Default)]
struct Block {
    most_blocks: u64,
    soft_blocks: u64,
    bytes: u64,
    most_inodes: u64,
    soft_inodes: u64,
    inodes: u64,
    block_time: u64,
    inode_time: u64,
    valid: u32,
}

/// The unit of a limit of bytes (`QIF_DQBLKSIZE`).
const UNIT: u64 = 1024;

/// Returns what a project takes and may take; a project that nothing has been counted for takes nothing.
///
/// # Errors
/// ESRCH: project quota is switched off. EPERM: the caller lacks CAP_SYS_ADMIN.
pub fn get(file: impl AsFd, project: u32) -> Result<Quota> {
    const GET: libc::c_uint = 0x80_0007;
    let mut block = Block::default();
    // SAFETY: the kernel writes a `struct if_dqblk` to `block`, which lives on.
    match unsafe { quotactl(file, GET, project, &raw mut block) } {
        // XFS has no record of it.
        Err(Errno::NOENT) => return Ok(Quota::default()),
        other => other?,
    }
    Ok(Quota {
        bytes: block.bytes,
        inodes: block.inodes,
        most_bytes: block.most_blocks.saturating_mul(UNIT),
        most_inodes: block.most_inodes,
    })
}

/// Sets the hard limits of a project; 0: none. Bytes are rounded up to 1024.
///
/// # Errors
/// ESRCH: project quota is switched off. EPERM: the caller lacks CAP_SYS_ADMIN. ERANGE: the file system cannot count
/// so far.
pub fn set(file: impl AsFd, project: u32, most_bytes: u64, most_inodes: u64) -> Result<()> {
    const SET: libc::c_uint = 0x80_0008;
    /// `QIF_LIMITS`
    const LIMITS: u32 = 1 | 4;
    let mut block =
        Block { most_blocks: most_bytes.div_ceil(UNIT), most_inodes, valid: LIMITS, ..Block::default() };
    // SAFETY: the kernel reads a `struct if_dqblk` from `block`, which lives on.
    unsafe { quotactl(file, SET, project, &raw mut block) }
}

/// `struct fsxattr` of linux/fs.h.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    flags: u32,
    extent: u32,
    extents: u32,
    project: u32,
    cow_extent: u32,
    pad: [u8; 8],
}

/// `FS_IOC_FSGETXATTR` and `FS_IOC_FSSETXATTR`.
const GET_ATTRIBUTES: libc::Ioctl = 0x801c_581f;
const SET_ATTRIBUTES: libc::Ioctl = 0x401c_5820;

fn attributes(file: impl AsFd) -> Result<Attributes> {
    let mut attributes = Attributes::default();
    // SAFETY: the kernel writes a `struct fsxattr` to `attributes`, which lives on.
    let result = unsafe { libc::ioctl(file.as_fd().as_raw_fd(), GET_ATTRIBUTES, &raw mut attributes) };
    if result < 0 { Err(last_errno()) } else { Ok(attributes) }
}

/// Returns the project of an inode.
///
/// # Errors
/// ENOTTY, EOPNOTSUPP: its file system has no projects.
pub fn project(file: impl AsFd) -> Result<u32> {
    attributes(file).map(|attributes| attributes.project)
}

/// Gives a directory to a project, with all inodes that will be made in it. Those that it has keep theirs.
///
/// # Errors
/// ENOTTY, EOPNOTSUPP: its file system has no projects. EDQUOT: the project's limit is reached.
pub fn assign(dir: impl AsFd, project: u32) -> Result<()> {
    /// `FS_XFLAG_PROJINHERIT`
    const INHERIT: u32 = 0x200;
    let mut attributes = attributes(&dir)?;
    attributes.project = project;
    attributes.flags |= INHERIT;
    // SAFETY: the kernel reads a `struct fsxattr` from `attributes`, which lives on.
    let result = unsafe { libc::ioctl(dir.as_fd().as_raw_fd(), SET_ATTRIBUTES, &raw const attributes) };
    if result < 0 { Err(last_errno()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn the_kernels_structures_have_their_size() {
        assert_eq!((size_of::<Block>(), size_of::<Attributes>()), (72, 28));
    }

    #[test]
    fn proc_has_no_quota_and_no_projects() {
        let file = File::open("/proc/self/mountinfo").unwrap();
        let quota = state(&file).unwrap_err();
        assert!(matches!(quota, Errno::NOSYS | Errno::INVAL), "{quota}");
        let error = project(&file).unwrap_err();
        assert!(matches!(error, Errno::NOTTY | Errno::OPNOTSUPP), "{error}");
    }
}
