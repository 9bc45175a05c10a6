//! The terminal of this program: its size, raw mode, and the detach keys.

use super::session::Signals;
use anyhow::{Context as _, Result};
use rustix::process::{Signal, getpgrp, getpid, kill_process};
use rustix::stdio::{stdin, stdout};
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetpgrp, tcgetwinsize, tcsetattr};
use std::time::Duration;
use wardian_garden::wire::WindowSize;

/// How often the foreground job is checked, …
const TRIES: u32 = 100;
/// … and how long a signal may take to be delivered after SIGCONT.
const LOOK: Duration = Duration::from_millis(50);

/// Whether standard input is a terminal.
pub fn is_input() -> bool {
    isatty(stdin())
}

/// Returns the terminal's size, if there is a terminal.
pub fn size() -> Option<WindowSize> {
    let size = tcgetwinsize(stdout()).or_else(|_| tcgetwinsize(stdin())).ok()?;
    // A terminal without a size reports 0.
    (size.ws_col > 0 && size.ws_row > 0).then_some(WindowSize { columns: size.ws_col, rows: size.ws_row })
}

/// Waits until this job is the terminal's foreground job: until then it stops itself, as the kernel stops a
/// background job that reads from the terminal (SIGTTIN, termios(3)). Setting the terminal's mode in the background
/// would stop it as well, and again after each SIGCONT, before a signal could be handled, such as that of timeout(1),
/// which runs its command in the background for good. Returns the number of a signal that asks this process to end.
pub async fn foreground(signals: &mut Signals) -> Option<i32> {
    for _ in 0..TRIES {
        if tcgetpgrp(stdin()).is_ok_and(|group| group == getpgrp()) {
            break;
        }
        let _ = kill_process(getpid(), Signal::TTIN);
        // The process continues here after SIGCONT, or at once in an orphaned process group, where nobody could send
        // one.
        if let Ok(Some(number)) = tokio::time::timeout(LOOK, async { Some(signals.next().await) }).await {
            return Some(number);
        }
    }
    None
}

/// While this lives, the terminal is in raw mode: keys are read unchanged, nothing is echoed, Ctrl-C is a byte.
/// Dropping it restores the terminal.
#[derive(Debug)]
pub struct Raw(Termios);

impl Raw {
    /// Enters raw mode.
    pub fn enter() -> Result<Self> {
        let before = tcgetattr(stdin()).context("ask the terminal for its mode")?;
        let mut raw = before.clone();
        raw.make_raw();
        let guard = Self(before);
        tcsetattr(stdin(), OptionalActions::Now, &raw).context("set the terminal's mode")?;
        Ok(guard)
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // The terminal may have hung up. Its output is not drained first, since it may be stopped (Ctrl-S).
        let _ = tcsetattr(stdin(), OptionalActions::Now, &self.0);
    }
}

/// Detects Ctrl-P Ctrl-Q in the input.
#[derive(Debug, Default)]
pub struct Keys {
    /// Whether the last byte was a Ctrl-P that is not passed on yet.
    held: bool,
}

const CTRL_P: u8 = 0x10;
const CTRL_Q: u8 = 0x11;

impl Keys {
    /// Appends the input for the process to `out`; returns true if the keys were typed, and drops the bytes after
    /// them.
    pub fn take(&mut self, typed: &[u8], out: &mut Vec<u8>) -> bool {
        for byte in typed {
            match (std::mem::take(&mut self.held), *byte) {
                (true, CTRL_Q) => return true,
                (held, CTRL_P) => {
                    out.extend(held.then_some(CTRL_P));
                    self.held = true;
                }
                (held, byte) => {
                    out.extend(held.then_some(CTRL_P));
                    out.push(byte);
                }
            }
        }
        false
    }

    /// Returns the Ctrl-P still held back at the end of the input.
    pub fn rest(&mut self) -> Option<u8> {
        std::mem::take(&mut self.held).then_some(CTRL_P)
    }
}

#[cfg(test)]
mod tests {
    use super::Keys;

    #[test]
    fn only_both_keys_in_a_row_detach() {
        let typed = |pieces: &[&[u8]]| {
            let (mut keys, mut out) = (Keys::default(), Vec::new());
            let detached = pieces.iter().any(|piece| keys.take(piece, &mut out));
            out.extend(keys.rest());
            (detached, out)
        };
        assert_eq!(typed(&[b"ab"]), (false, b"ab".to_vec()));
        assert_eq!(typed(&[b"a\x10\x11b"]), (true, b"a".to_vec()));
        assert_eq!(typed(&[b"a\x10", b"\x11"]), (true, b"a".to_vec()));
        assert_eq!(typed(&[b"\x10", b"\x10", b"\x11"]), (true, b"\x10".to_vec()));
        assert_eq!(typed(&[b"\x10x\x11"]), (false, b"\x10x\x11".to_vec()));
        assert_eq!(typed(&[b"\x11", b"\x10"]), (false, b"\x11\x10".to_vec()));
    }
}
