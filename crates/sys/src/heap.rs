//! The allocator's memory.

/// Give pages that the allocator keeps without need back to the kernel (malloc_trim(3)). It walks all arenas: for
/// moments after which much less is needed than before, not for hot paths.
pub fn trim() {
    // SAFETY: a call without pointers; the allocator takes its own locks.
    unsafe { libc::malloc_trim(0) };
}

/// Let all threads share two arenas (mallopt(3), `M_ARENA_MAX`). Each keeps what one of its threads once needed: with one
/// for every thread a server of many threads holds many times what it uses. For the start of a program.
pub fn share_arenas() {
    // SAFETY: a call without pointers.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 2) };
}
