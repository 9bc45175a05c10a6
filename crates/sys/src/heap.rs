//! Settings of the memory allocator.

/// Returns unused pages of the allocator to the kernel (malloc_trim(3)). It walks all arenas: for moments after which
/// much less memory is needed than before, not for hot paths.
pub fn trim() {
    // SAFETY: a call without pointers; the allocator takes its own locks.
    unsafe { libc::malloc_trim(0) };
}

/// Size in bytes from which a buffer is a mapping of its own.
const OWN_MAPPING: libc::c_int = 256 << 10;

/// Configures the allocator for a server with many threads (mallopt(3)); to be called at the start of a program. All
/// threads share two arenas (`M_ARENA_MAX`): each arena keeps what one of its threads once needed. Large buffers
/// never come from an arena (`M_MMAP_THRESHOLD`, which otherwise grows with what is freed): long-lived small objects
/// would lie between them and keep their pages.
pub fn set_up() {
    // SAFETY: calls without pointers.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
        libc::mallopt(libc::M_MMAP_THRESHOLD, OWN_MAPPING);
    }
}
