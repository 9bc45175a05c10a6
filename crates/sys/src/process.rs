//! Processes that are not our children, known by their pid and start time: a pid alone is given to somebody else
//! sooner or later.

use std::io;

/// When a process started, in clock ticks since boot, from the text of `/proc/PID/stat` (field 22,
/// proc_pid_stat(5)). `None` when it is none, or of a process that has ended and is not reaped yet.
pub fn parse_start_time(stat: &str) -> Option<u64> {
    // The name is in brackets and may itself hold brackets, blanks and newlines.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X" | "x") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// When the process started, in clock ticks since boot; `None` when there is none with this pid, or it has ended.
///
/// # Errors
/// The kernel's, from reading `/proc/PID/stat`.
pub fn start_time(pid: i32) -> io::Result<Option<u64>> {
    match std::fs::read(format!("/proc/{pid}/stat")) {
        Ok(stat) => Ok(parse_start_time(&String::from_utf8_lossy(&stat))),
        // ESRCH: it ended between open and read.
        Err(error)
            if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Whether the process that had this pid and start time still runs.
///
/// # Errors
/// The kernel's, from reading `/proc/PID/stat`.
pub fn alive(pid: i32, start: u64) -> io::Result<bool> {
    Ok(start_time(pid)? == Some(start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_lines() {
        let tail = " 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20 21";
        for (text, start) in [
            (format!("7 (sh) S{tail}"), Some(4242)),
            (format!("7 (a) b) Z (\n) S{tail}"), Some(4242)),
            (format!("7 (sh) Z{tail}"), None),
            ("7 (sh) S 1 2".to_owned(), None),
            (String::new(), None),
        ] {
            assert_eq!(parse_start_time(&text), start, "{text}");
        }
    }

    #[test]
    fn a_process_lives_until_it_ends() {
        let own = i32::try_from(std::process::id()).unwrap();
        let start = start_time(own).unwrap().unwrap();
        assert!(alive(own, start).unwrap());
        assert!(!alive(own, start + 1).unwrap());
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let start = start_time(pid).unwrap().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!alive(pid, start).unwrap());
    }
}
