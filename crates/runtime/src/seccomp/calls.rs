//! Numbers of system calls by architecture, in ascending order, with their names in the kernel's tables.

use syscalls::{aarch64, x86, x86_64};

/// The bit that distinguishes an x32 call from one of x86-64 (`__X32_SYSCALL_BIT`).
pub const X32_BIT: u32 = 0x4000_0000;

/// Calls with pointers or longs in memory, by their numbers on x86-64: x32 has numbers of its own for them, from 512
/// on in this order (`arch/x86/entry/syscalls/syscall_64.tbl`).
const X32_OWN: [u32; 36] = [
    13, 15, 16, 19, 20, 45, 46, 47, 59, 101, 127, 128, 129, 131, 222, 244, 246, 247, 273, 274, 278, 279, 295,
    296, 297, 299, 307, 310, 311, 54, 55, 206, 209, 322, 327, 328,
];
/// Calls of x86-64 that x32 lacks: `uselib`, `_sysctl`, those of old modules, `nfsservctl`, the thread area, the
/// first epoll calls, `vserver`, those of user-space probes and shadow stacks.
const NOT_X32: [u32; 15] = [134, 156, 174, 177, 178, 180, 205, 211, 214, 215, 236, 335, 336, 337, 453];

/// Derives the calls of x32 from those of x86-64.
pub fn x32<T: Copy>(x86_64: &[(u32, T)]) -> Vec<(u32, T)> {
    let shared = x86_64.iter().filter(|(number, _)| !X32_OWN.contains(number) && !NOT_X32.contains(number));
    let own = (512..).zip(X32_OWN).filter_map(|(number, on_x86_64)| {
        let at = x86_64.binary_search_by_key(&on_x86_64, |call| call.0).ok()?;
        Some((number, x86_64[at].1))
    });
    shared.copied().chain(own).map(|(number, call)| (number | X32_BIT, call)).collect()
}

macro_rules! table {
    ($arch:ident) => {
        (0..=$arch::Sysno::last().id() as u32)
            .filter_map(|number| Some((number, $arch::Sysno::new(number as usize)?.name())))
    };
}

/// The calls of x86-64.
pub fn x86_64() -> impl Iterator<Item = (u32, &'static str)> {
    table!(x86_64)
}

/// The calls of 32-bit x86.
pub fn x86() -> impl Iterator<Item = (u32, &'static str)> {
    table!(x86)
}

/// The calls of 64-bit ARM.
pub fn aarch64() -> impl Iterator<Item = (u32, &'static str)> {
    table!(aarch64)
}
