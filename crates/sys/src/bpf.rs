//! eBPF programs of one type: they decide which devices the processes of a cgroup (v2) may open and make nodes of
//! (`BPF_PROG_TYPE_CGROUP_DEVICE`, Linux 4.15).
//!
//! Instructions are encoded as Documentation/bpf/standardization/instruction-set.rst says, calls are those of `bpf(2)`.

use rustix::io::Errno;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// An operation that the kernel refused.
#[derive(Debug, thiserror::Error)]
#[error("bpf: cannot {action}{}: {source}", said(.log))]
pub struct Error {
    action: &'static str,
    /// The verifier's log; empty when it wrote none.
    log: String,
    source: Errno,
}

fn said(log: &str) -> String {
    if log.is_empty() { String::new() } else { format!(" (verifier: {log})") }
}

impl Error {
    /// The kernel's error number: EPERM without `CAP_BPF` and `CAP_NET_ADMIN`, or with an ancestor cgroup whose program
    /// allows no others below; ENOSYS or EINVAL on a kernel without cgroup programs.
    pub fn errno(&self) -> Errno {
        self.source
    }
}

/// One of the eleven registers. R0 holds the return value, R1 the context at the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Reg {
    R0 = 0,
    R1 = 1,
    R2 = 2,
    R3 = 3,
    R4 = 4,
    R5 = 5,
}

/// One instruction of 8 bytes (`struct bpf_insn`, linux/bpf.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Insn {
    /// Class, source and operation.
    pub code: u8,
    /// Destination register in the low half, source register in the high one.
    pub registers: u8,
    /// Offset of a jump, in instructions from the next one, or of a memory access, in bytes.
    pub offset: i16,
    /// Immediate operand; it is extended with its sign to 64 bits.
    pub immediate: i32,
}

// linux/bpf_common.h and linux/bpf.h
/// `BPF_LDX | BPF_MEM | BPF_W`: load 32 bits, the upper half of the register becomes zero.
pub const LOAD_WORD: u8 = 0x61;
/// `BPF_ALU64 | BPF_MOV | BPF_K`
pub const MOV: u8 = 0xb7;
/// `BPF_ALU64 | BPF_MOV | BPF_X`
pub const MOV_REG: u8 = 0xbf;
/// `BPF_ALU64 | BPF_AND | BPF_K`
pub const AND: u8 = 0x57;
/// `BPF_ALU64 | BPF_RSH | BPF_K`
pub const SHIFT_RIGHT: u8 = 0x77;
/// `BPF_JMP | BPF_JNE | BPF_K`
pub const JUMP_UNLESS: u8 = 0x55;
/// `BPF_JMP | BPF_EXIT`
pub const EXIT: u8 = 0x95;

impl Insn {
    const fn new(code: u8, to: Reg, from: Reg, offset: i16, immediate: i32) -> Self {
        Self { code, registers: (to as u8) | ((from as u8) << 4), offset, immediate }
    }

    /// `to = *(u32 *)(from + offset)`
    pub const fn load_word(to: Reg, from: Reg, offset: i16) -> Self {
        Self::new(LOAD_WORD, to, from, offset, 0)
    }

    /// `to = value`
    pub const fn mov(to: Reg, value: i32) -> Self {
        Self::new(MOV, to, Reg::R0, 0, value)
    }

    /// `to = from`
    pub const fn mov_reg(to: Reg, from: Reg) -> Self {
        Self::new(MOV_REG, to, from, 0, 0)
    }

    /// `to &= value`
    pub const fn and(to: Reg, value: i32) -> Self {
        Self::new(AND, to, Reg::R0, 0, value)
    }

    /// `to >>= bits`
    pub const fn shift_right(to: Reg, bits: i32) -> Self {
        Self::new(SHIFT_RIGHT, to, Reg::R0, 0, bits)
    }

    /// `if reg != value`, skips `skip` instructions.
    pub const fn jump_unless(reg: Reg, value: i32, skip: i16) -> Self {
        Self::new(JUMP_UNLESS, reg, Reg::R0, skip, value)
    }

    /// Ends the program with the return value in R0.
    pub const fn exit() -> Self {
        Self::new(EXIT, Reg::R0, Reg::R0, 0, 0)
    }
}

/// `union bpf_attr` as one command reads it. The kernel takes any size as long as the bytes that it does not know are
/// zero; the tail is room for what a later kernel writes behind the fields defined here (`query.revision`).
#[repr(C)]
struct Attr<T> {
    of: T,
    tail: [u64; 16],
}

/// `BPF_PROG_LOAD`
#[repr(C)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; NAME],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

/// `BPF_PROG_ATTACH`, `BPF_PROG_DETACH`
#[repr(C)]
struct Attach {
    target_fd: RawFd,
    attach_bpf_fd: RawFd,
    attach_type: u32,
    attach_flags: u32,
    replace_bpf_fd: RawFd,
    zero: u32,
}

/// `BPF_PROG_QUERY`
#[repr(C)]
struct Query {
    target_fd: RawFd,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    zero: u32,
}

/// `BPF_PROG_GET_FD_BY_ID`
#[repr(C)]
struct ById {
    id: u32,
    next_id: u32,
    open_flags: u32,
    zero: u32,
}

/// `BPF_OBJ_GET_INFO_BY_FD`
#[repr(C)]
struct InfoByFd {
    bpf_fd: RawFd,
    info_len: u32,
    info: u64,
}

/// `struct bpf_prog_info` up to the name.
#[repr(C)]
#[derive(Default)]
struct Info {
    prog_type: u32,
    id: u32,
    tag: [u8; 8],
    jited_prog_len: u32,
    xlated_prog_len: u32,
    jited_prog_insns: u64,
    xlated_prog_insns: u64,
    load_time: u64,
    created_by_uid: u32,
    nr_map_ids: u32,
    map_ids: u64,
    name: [u8; NAME],
}

// linux/bpf.h
const PROG_LOAD: i32 = 5;
const PROG_ATTACH: i32 = 8;
const PROG_DETACH: i32 = 9;
const PROG_GET_FD_BY_ID: i32 = 13;
const OBJ_GET_INFO_BY_FD: i32 = 15;
const PROG_QUERY: i32 = 16;
const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_TYPE_CGROUP_DEVICE: u32 = 6;
/// Programs of the cgroups above run as well, and the cgroups below may have their own.
const ALLOW_MULTI: u32 = 1 << 1;
const REPLACE: u32 = 1 << 2;
/// `BPF_OBJ_NAME_LEN`, with the NUL.
const NAME: usize = 16;
/// `BPF_CGROUP_MAX_PROGS`: the limit of programs of one type on a cgroup.
const MAX_PROGRAMS: usize = 64;

/// # Safety
/// Every address in `attr` must point to memory that outlives the call and is as large as the command takes it to be.
unsafe fn bpf<T>(command: i32, attr: T) -> Result<(libc::c_long, T), Errno> {
    // Otherwise there would be uninitialised padding before the tail, which the kernel requires to be zero.
    const { assert!(size_of::<T>().is_multiple_of(8)) };
    let mut attr = Attr { of: attr, tail: [0; 16] };
    // SAFETY: `attr` is larger than what the kernel reads and writes of it; the caller guarantees its addresses.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut attr, size_of::<Attr<T>>()) };
    if result >= 0 { Ok((result, attr.of)) } else { Err(last_errno()) }
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

fn fd(result: libc::c_long) -> Result<OwnedFd, Errno> {
    let raw = RawFd::try_from(result).map_err(|_| Errno::BADF)?;
    // SAFETY: the kernel has just made this descriptor for us, close-on-exec, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// A program in the kernel. It lives as long as a descriptor of it or its attachment to a cgroup.
#[derive(Debug)]
pub struct DeviceProgram {
    fd: OwnedFd,
    info: Identity,
}

/// Name and hash of a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// At most 15 bytes.
    pub name: String,
    /// The kernel's hash of its instructions: two programs with the same instructions have the same.
    pub tag: [u8; 8],
}

impl DeviceProgram {
    /// Verifies and loads a program. The name may have up to 15 letters, digits and `_`.
    ///
    /// # Errors
    /// See [`Error::errno`]. The error text includes what the verifier says of a program that it refuses.
    pub fn load(name: &str, program: &[Insn]) -> Result<Self, Error> {
        let mut log = Vec::new();
        let loaded = match load(name, program, &mut log) {
            Err(Errno::PERM) => Err(Errno::PERM),
            // The load is repeated to get the reason: a log costs time, and its buffer could be too small.
            Err(error) => {
                log = vec![0; 1 << 16];
                load(name, program, &mut log).map_err(|_| error)
            }
            loaded => loaded,
        };
        let fd = loaded.map_err(|source| {
            let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
            let log = String::from_utf8_lossy(&log[..end]).trim_end().to_owned();
            Error { action: "load a program for devices", log, source }
        })?;
        let info = identity(fd.as_fd())?;
        Ok(Self { fd, info })
    }

    /// Name and hash of this program.
    pub fn identity(&self) -> &Identity {
        &self.info
    }

    /// Attaches the program to the cgroup whose directory the descriptor is open on, and detaches `replace` in the
    /// same step. It applies to later opens of devices only: a descriptor that is open already stays usable.
    ///
    /// # Errors
    /// See [`Error::errno`]; ENOENT when `replace` is not attached there.
    pub fn attach(&self, cgroup: impl AsFd, replace: Option<&Self>) -> Result<(), Error> {
        let attach = Attach {
            target_fd: cgroup.as_fd().as_raw_fd(),
            attach_bpf_fd: self.fd.as_raw_fd(),
            attach_type: ATTACH_TYPE_CGROUP_DEVICE,
            attach_flags: ALLOW_MULTI | if replace.is_some() { REPLACE } else { 0 },
            replace_bpf_fd: replace.map_or(0, |program| program.fd.as_raw_fd()),
            zero: 0,
        };
        // SAFETY: the command takes no addresses.
        let attached = unsafe { bpf(PROG_ATTACH, attach) };
        attached.map(drop).map_err(failed("attach a program to the cgroup"))
    }

    /// Detaches the program from a cgroup.
    ///
    /// # Errors
    /// ENOENT when it is not attached there.
    pub fn detach(&self, cgroup: impl AsFd) -> Result<(), Error> {
        let detach = Attach {
            target_fd: cgroup.as_fd().as_raw_fd(),
            attach_bpf_fd: self.fd.as_raw_fd(),
            attach_type: ATTACH_TYPE_CGROUP_DEVICE,
            attach_flags: 0,
            replace_bpf_fd: 0,
            zero: 0,
        };
        // SAFETY: the command takes no addresses.
        let detached = unsafe { bpf(PROG_DETACH, detach) };
        detached.map(drop).map_err(failed("detach a program from the cgroup"))
    }

    /// Returns the device programs that are attached to this cgroup itself.
    ///
    /// # Errors
    /// See [`Error::errno`]. A program that is detached meanwhile is left out.
    pub fn attached(cgroup: impl AsFd) -> Result<Vec<Self>, Error> {
        let mut ids = [0_u32; MAX_PROGRAMS];
        let query = Query {
            target_fd: cgroup.as_fd().as_raw_fd(),
            attach_type: ATTACH_TYPE_CGROUP_DEVICE,
            query_flags: 0,
            attach_flags: 0,
            prog_ids: ids.as_mut_ptr().addr() as u64,
            prog_cnt: MAX_PROGRAMS as u32,
            zero: 0,
        };
        // SAFETY: `ids` has room for as many numbers as the query says, and lives on.
        let answer = unsafe { bpf(PROG_QUERY, query) };
        let (_, answer) = answer.map_err(failed("ask for the programs of the cgroup"))?;
        let count = ids.len().min(answer.prog_cnt as usize);
        let mut found = Vec::new();
        for id in &ids[..count] {
            // SAFETY: the command takes no addresses.
            let opened =
                unsafe { bpf(PROG_GET_FD_BY_ID, ById { id: *id, next_id: 0, open_flags: 0, zero: 0 }) };
            match opened.and_then(|(result, _)| fd(result)) {
                Ok(fd) => found.push(Self { info: identity(fd.as_fd())?, fd }),
                Err(Errno::NOENT) => {}
                Err(error) => return Err(failed("open a program of the cgroup")(error)),
            }
        }
        Ok(found)
    }
}

fn failed(action: &'static str) -> impl FnOnce(Errno) -> Error {
    move |source| Error { action, log: String::new(), source }
}

fn load(name: &str, program: &[Insn], log: &mut [u8]) -> Result<OwnedFd, Errno> {
    let mut prog_name = [0; NAME];
    if name.len() >= NAME {
        return Err(Errno::NAMETOOLONG);
    }
    prog_name[..name.len()].copy_from_slice(name.as_bytes());
    // No function is called that is reserved for GPL programs.
    let license = c"MIT OR Apache-2.0";
    let load = Load {
        prog_type: PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: u32::try_from(program.len()).map_err(|_| Errno::TOOBIG)?,
        insns: program.as_ptr().addr() as u64,
        license: license.as_ptr().addr() as u64,
        log_level: u32::from(!log.is_empty()),
        log_size: u32::try_from(log.len()).map_err(|_| Errno::TOOBIG)?,
        log_buf: if log.is_empty() { 0 } else { log.as_mut_ptr().addr() as u64 },
        kern_version: 0,
        prog_flags: 0,
        prog_name,
        prog_ifindex: 0,
        expected_attach_type: ATTACH_TYPE_CGROUP_DEVICE,
    };
    // SAFETY: instructions, license (with its NUL) and log are as large as is said, and live on.
    let (result, _) = unsafe { bpf(PROG_LOAD, load) }?;
    fd(result)
}

fn identity(program: BorrowedFd<'_>) -> Result<Identity, Error> {
    let mut info = Info::default();
    let ask = InfoByFd {
        bpf_fd: program.as_raw_fd(),
        info_len: size_of::<Info>() as u32,
        info: (&raw mut info).addr() as u64,
    };
    // SAFETY: `info` has as many bytes as is said, and lives on; its own addresses and lengths are zero: the kernel
    // copies no instructions.
    let asked = unsafe { bpf(OBJ_GET_INFO_BY_FD, ask) };
    asked.map_err(failed("ask what a program is"))?;
    let end = info.name.iter().position(|byte| *byte == 0).unwrap_or(NAME);
    Ok(Identity { name: String::from_utf8_lossy(&info.name[..end]).into_owned(), tag: info.tag })
}

#[cfg(test)]
mod tests {
    use super::*;
    use wardian_needs::needs;

    fn answer(value: i32) -> Vec<Insn> {
        vec![Insn::mov(Reg::R0, value), Insn::exit()]
    }

    /// The encoding is the kernel's own, as `bpftool prog dump` shows it.
    #[test]
    fn instructions_are_encoded_as_the_kernel_reads_them() {
        let bytes = |insn: Insn| {
            let mut all = vec![insn.code, insn.registers];
            all.extend(insn.offset.to_le_bytes());
            all.extend(insn.immediate.to_le_bytes());
            all
        };
        assert_eq!(size_of::<Insn>(), 8);
        assert_eq!(bytes(Insn::load_word(Reg::R2, Reg::R1, 4)), [0x61, 0x12, 4, 0, 0, 0, 0, 0]);
        assert_eq!(bytes(Insn::mov(Reg::R0, 1)), [0xb7, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(bytes(Insn::mov_reg(Reg::R3, Reg::R2)), [0xbf, 0x23, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes(Insn::and(Reg::R3, -2)), [0x57, 3, 0, 0, 0xfe, 0xff, 0xff, 0xff]);
        assert_eq!(bytes(Insn::shift_right(Reg::R3, 16)), [0x77, 3, 0, 0, 16, 0, 0, 0]);
        assert_eq!(bytes(Insn::jump_unless(Reg::R4, 10, 3)), [0x55, 4, 3, 0, 10, 0, 0, 0]);
        assert_eq!(bytes(Insn::exit()), [0x95, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn a_program_is_known_by_its_instructions_and_a_bad_one_by_the_verifiers_words() {
        needs!(Bpf);
        let program = DeviceProgram::load("wardian_test", &answer(1)).unwrap();
        assert_eq!(program.identity().name, "wardian_test");
        assert_eq!(program.identity(), DeviceProgram::load("wardian_test", &answer(1)).unwrap().identity());
        let other = DeviceProgram::load("wardian_test", &answer(0)).unwrap();
        assert_ne!(program.identity().tag, other.identity().tag);
        // R0 is never set.
        let error = DeviceProgram::load("wardian_test", &[Insn::exit()]).unwrap_err().to_string();
        assert!(error.contains("R0 !read_ok"), "{error}");
        assert!(DeviceProgram::load("a_name_that_is_too_long", &answer(1)).is_err());
        assert!(DeviceProgram::attached(std::fs::File::open("/").unwrap()).is_err());
    }
}
