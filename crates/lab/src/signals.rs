//! Signals that ask a command to end.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// One of them. What we were started to ignore, as `nohup` and the `&` of a script's shell do, stays ignored: it never comes.
#[derive(Debug)]
pub struct Asking(Option<Signal>);

impl Asking {
    /// From now on it does not end the process.
    ///
    /// # Errors
    /// Outside of a runtime, or when no handler can be installed.
    pub fn catch(kind: SignalKind) -> std::io::Result<Self> {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let ignored = is_ignored(&status, kind.as_raw_value());
        Ok(Self(if ignored { None } else { Some(signal(kind)?) }))
    }

    /// The next one.
    pub async fn recv(&mut self) {
        if let Some(signal) = &mut self.0
            && signal.recv().await.is_some()
        {
            return;
        }
        std::future::pending::<()>().await;
    }
}

/// Whether a process ignores a signal, from the text of its /proc/PID/status.
pub fn is_ignored(status: &str, number: i32) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default();
    mask & (1 << (number - 1)) != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_ignored_is_seen() {
        let status = "Name:\tx\nSigIgn:\t0000000000001001\nSigCgt:\t0000000000000002\n";
        assert!(is_ignored(status, 1) && is_ignored(status, 13));
        assert!(!is_ignored(status, 2) && !is_ignored("", 1));
    }
}
