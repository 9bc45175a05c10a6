//! Settings of the memory allocator.

/// Returns unused pages of the allocator to the kernel (malloc_trim(3)). It walks all arenas: for moments after which
/// much less memory is needed than before, not for hot paths.
pub fn trim() {
    // SAFETY: a call without pointers; the allocator takes its own locks.
    unsafe { libc::malloc_trim(0) };
}

/// Bytes of this process's memory (`RssAnon` of proc_pid_status(5)) that the
/// allocator has not given to anybody, but not returned to the kernel either. 0 where the kernel does not say.
pub fn kept() -> u64 {
    // SAFETY: a call without pointers; the allocator takes its own locks (mallinfo2(3)).
    let used = unsafe { libc::mallinfo2() };
    let used = (used.uordblks + used.hblkhd) as u64;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kilobytes: u64 = field.and_then(|text| text.trim().strip_suffix(" kB")?.parse().ok()).unwrap_or(0);
    (kilobytes << 10).saturating_sub(used)
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

#[cfg(test)]
mod tests {
    #[test]
    fn what_is_freed_is_kept_until_it_is_returned() {
        // Smaller than what has a mapping of its own, and the last one keeps the heap from shrinking by itself.
        let mut blocks: Vec<Vec<u8>> = (0..2000).map(|_| vec![1; 32 << 10]).collect();
        let last = blocks.pop();
        let before = super::kept();
        drop(blocks);
        let freed = super::kept();
        super::trim();
        let after = super::kept();
        assert!(freed > before + (32 << 20) && after < before + (8 << 20), "{before} {freed} {after}");
        drop(last);
    }
}
