//! Signals that ask a command to end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Whether any of these signals was ever caught. It stays true: the handlers stay installed.
static CAUGHT: AtomicBool = AtomicBool::new(false);

/// Whether signals that ask a command to end are, or were, caught by [`Asking`] or [`Signals`].
pub fn are_caught() -> bool {
    CAUGHT.load(Ordering::Acquire)
}

/// All signals that ask a command to end and can be caught.
pub fn asking() -> [SignalKind; 4] {
    [SignalKind::hangup(), SignalKind::interrupt(), SignalKind::quit(), SignalKind::terminate()]
}

/// Several such signals. Those that the process was started to ignore stay ignored.
#[derive(Debug)]
pub struct Signals(Vec<(i32, Signal)>);

impl Signals {
    /// Catches the signals: from now on they do not end the process.
    ///
    /// # Errors
    /// Called outside of a runtime, or a handler cannot be installed.
    pub fn catch(kinds: &[SignalKind]) -> std::io::Result<Self> {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let heard = kinds.iter().filter(|kind| !is_ignored(&status, kind.as_raw_value()));
        let all =
            heard.map(|kind| Ok((kind.as_raw_value(), signal(*kind)?))).collect::<std::io::Result<_>>()?;
        CAUGHT.store(true, Ordering::Release);
        Ok(Self(all))
    }

    /// Waits for the next signal. Returns its number.
    pub async fn next(&mut self) -> i32 {
        std::future::poll_fn(|cx| {
            let arrived = self
                .0
                .iter_mut()
                .find_map(|(number, signal)| signal.poll_recv(cx).is_ready().then_some(*number));
            arrived.map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }
}

/// One such signal. If the process was started to ignore it, as by `nohup` and by the `&` of a script's shell, it
/// stays ignored and never arrives.
#[derive(Debug)]
pub struct Asking(Option<Signal>);

impl Asking {
    /// Catches the signal: from now on it does not end the process.
    ///
    /// # Errors
    /// Called outside of a runtime, or the handler cannot be installed.
    pub fn catch(kind: SignalKind) -> std::io::Result<Self> {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let ignored = is_ignored(&status, kind.as_raw_value());
        let caught = if ignored { None } else { Some(signal(kind)?) };
        CAUGHT.store(true, Ordering::Release);
        Ok(Self(caught))
    }

    /// Waits for the next signal of this kind.
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
