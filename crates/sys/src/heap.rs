//! The allocator's memory.

/// Give pages that the allocator keeps without need back to the kernel (malloc_trim(3)). It walks all arenas: for
/// moments after which much less is needed than before, not for hot paths.
pub fn trim() {
    // SAFETY: a call without pointers; the allocator takes its own locks.
    unsafe { libc::malloc_trim(0) };
}
