//! Our own terminal: how large it is, and passing every key on untouched.

use anyhow::{Context as _, Result};
use rustix::stdio::{stdin, stdout};
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};
use wardian_garden::wire::WindowSize;

/// Is standard input one?
pub fn is_input() -> bool {
    isatty(stdin())
}

/// Its size, if we have one.
pub fn size() -> Option<WindowSize> {
    let size = tcgetwinsize(stdout()).or_else(|_| tcgetwinsize(stdin())).ok()?;
    // One that has none says 0.
    (size.ws_col > 0 && size.ws_row > 0).then_some(WindowSize { columns: size.ws_col, rows: size.ws_row })
}

/// As long as this lives, keys reach whoever reads standard input as they are: nothing is echoed, Ctrl-C is a byte. Dropping
/// it, on whatever way, puts the terminal back.
#[derive(Debug)]
pub struct Raw(Termios);

impl Raw {
    /// From now on.
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
        // The terminal may have gone. Its output is not waited for: it may be held up (Ctrl-S).
        let _ = tcsetattr(stdin(), OptionalActions::Now, &self.0);
    }
}

/// Ctrl-P Ctrl-Q, in what is typed.
#[derive(Debug, Default)]
pub struct Keys {
    /// The last byte was a Ctrl-P that is not passed on yet.
    held: bool,
}

const CTRL_P: u8 = 0x10;
const CTRL_Q: u8 = 0x11;

impl Keys {
    /// Appends to `out` what is for the process. `true`: the keys were typed, and what follows them is for nobody.
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

    /// What is still held at the end of the input.
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
