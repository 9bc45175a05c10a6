//! Points in time that survive a restart of the server: nanoseconds since the boot of the host, and milliseconds since 1970.

/// Returns nanoseconds since boot (CLOCK_BOOTTIME, which nobody can set).
pub fn since_boot() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}

/// Returns a file's last modification time in nanoseconds since boot.
pub fn changed_since_boot(file: &std::path::Path) -> u64 {
    let changed = std::fs::metadata(file).and_then(|metadata| metadata.modified()).ok();
    let ago = changed.and_then(|then| then.elapsed().ok()).unwrap_or_default();
    since_boot().saturating_sub(u64::try_from(ago.as_nanos()).unwrap_or(0))
}

/// Returns the time in milliseconds since 1970.
pub fn now_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}
