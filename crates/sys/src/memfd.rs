//! Sealed memory files: a program in one cannot be modified by the process that runs it.

use rustix::fs::{MemfdFlags, SealFlags, fchmod, fcntl_add_seals, memfd_create};
use rustix::io::{Errno, write};
use std::os::fd::OwnedFd;

/// `MFD_EXEC` (kernel 6.3, `memfd_create(2)`): passed where the kernel knows it, so that `vm.memfd_noexec` has no
/// effect.
const MFD_EXEC: u32 = 0x10;

/// Makes a memory file with these contents and this mode, sealed against every change.
///
/// # Errors
/// The kernel's, from `memfd_create`, `write` or `fcntl`.
pub fn sealed(name: &str, contents: &[u8], mode: u32) -> rustix::io::Result<OwnedFd> {
    let base = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = match memfd_create(name, base | MemfdFlags::from_bits_retain(MFD_EXEC)) {
        Err(Errno::INVAL) => memfd_create(name, base)?,
        other => other?,
    };
    let mut rest = contents;
    while !rest.is_empty() {
        rest = &rest[write(&fd, rest)?..];
    }
    fchmod(&fd, rustix::fs::Mode::from_raw_mode(mode))?;
    seal(&fd)?;
    rustix::fs::seek(&fd, rustix::fs::SeekFrom::Start(0))?;
    Ok(fd)
}

/// Seals the file, with retries: the kernel fails with EBUSY while anything holds a reference to one of the pages,
/// even its own scan of memory (`memfd_wait_for_pins`, mm/memfd.c; it waits some 0.2 s itself).
fn seal(fd: &OwnedFd) -> rustix::io::Result<()> {
    const TRIES: u32 = 20;
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    for _ in 1..TRIES {
        match fcntl_add_seals(fd, seals) {
            Err(Errno::BUSY) => {}
            other => return other,
        }
    }
    fcntl_add_seals(fd, seals)
}
