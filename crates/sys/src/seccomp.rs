//! seccomp filters: a classic BPF program that the kernel runs before each system call of a thread and of all its
//! descendants (seccomp(2)). The kernel's `Documentation/userspace-api/seccomp_filter.rst` describes what a program
//! has to look like.

use std::io;

/// `struct sock_filter` of `<linux/filter.h>`: one instruction of classic BPF.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// Operation code.
    pub code: u16,
    /// Instructions to skip when the comparison is true.
    pub jt: u8,
    /// Instructions to skip when the comparison is false.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

/// The longest program that the kernel takes (`BPF_MAXINSNS`).
pub const MAX_INSTRUCTIONS: usize = 4096;
/// Logs every action but "allow" (`SECCOMP_FILTER_FLAG_LOG`).
pub const FLAG_LOG: u32 = 1 << 1;
/// Leaves the mitigation of speculative store bypass off (`SECCOMP_FILTER_FLAG_SPEC_ALLOW`).
pub const FLAG_SPEC_ALLOW: u32 = 1 << 2;

/// `struct sock_fprog`.
#[repr(C)]
struct Program {
    len: libc::c_ushort,
    filter: *const Instruction,
}

/// Installs a filter for the calling thread, on top of those that it has. A filter cannot be removed and stays over
/// an exec. It applies from the next system call on.
///
/// # Errors
/// `EACCES` when the thread has neither `no_new_privs` nor CAP_SYS_ADMIN in its user namespace; `EINVAL` when the
/// program is longer than [`MAX_INSTRUCTIONS`], or the kernel refuses it or one of the flags.
pub fn install(filter: &[Instruction], flags: u32) -> io::Result<()> {
    let program = Program {
        len: filter.len().try_into().map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?,
        filter: filter.as_ptr(),
    };
    // SAFETY: the program and its instructions have the kernel's layout and live until the call returns; the kernel
    // copies and checks them and writes nothing to our memory.
    let result =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instruction(code: u16, jt: u8, jf: u8, k: u32) -> Instruction {
        Instruction { code, jt, jf, k }
    }

    #[test]
    fn a_thread_obeys_its_filter_and_the_others_do_not() {
        let personality = || {
            // SAFETY: a number that only queries.
            let result = unsafe { libc::personality(0xffff_ffff) };
            if result < 0 { io::Error::last_os_error().raw_os_error() } else { None }
        };
        let filter = [
            instruction(0x20, 0, 0, 0),
            instruction(0x15, 0, 1, libc::SYS_personality as u32),
            instruction(0x06, 0, 0, 0x0005_0000 | libc::EXDEV as u32),
            instruction(0x06, 0, 0, 0x7fff_0000),
        ];
        let there = std::thread::spawn(move || {
            // SAFETY: a number.
            unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
            install(&filter, FLAG_SPEC_ALLOW).unwrap();
            personality()
        });
        assert_eq!(there.join().unwrap(), Some(libc::EXDEV));
        assert_eq!(personality(), None);
    }

    #[test]
    fn the_kernel_refuses_what_is_no_filter() {
        let endless = vec![instruction(0x06, 0, 0, 0x7fff_0000); MAX_INSTRUCTIONS + 1];
        let falling = [instruction(0x20, 0, 0, 0)];
        for bad in [&endless[..], &falling, &[]] {
            assert_eq!(install(bad, 0).unwrap_err().raw_os_error(), Some(libc::EINVAL));
        }
        assert!(install(&[instruction(0x06, 0, 0, 0x7fff_0000)], 1 << 31).is_err());
    }
}
