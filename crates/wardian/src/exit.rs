//! Exit codes that commands have in common.

use wardian_lab::Interrupted;
use wardian_lab::record::NotRun;

/// The command line is wrong. The parser exits with the same code.
pub const WRONG: u8 = 2;
/// A process cannot be started or attached to, or output is lost. Docker uses the same code.
pub const OWN: u8 = 125;

/// An error with an exit code of its own. It is displayed as the wrapped error.
#[derive(Debug)]
struct Coded(u8, anyhow::Error);

/// Returns an error in the command line that the parser cannot detect.
pub fn mistake(error: impl Into<anyhow::Error>) -> anyhow::Error {
    anyhow::Error::new(Coded(WRONG, error.into()))
}

/// Returns an error for lost output of a container.
pub fn lost(error: impl Into<anyhow::Error>) -> anyhow::Error {
    anyhow::Error::new(Coded(OWN, error.into()))
}

/// Returns an error for work that a signal has interrupted; `state` tells the user its outcome.
pub fn interrupted(signal: i32, state: &str) -> anyhow::Error {
    anyhow::Error::new(Coded(after(signal), anyhow::Error::msg(state.to_owned())))
}

/// Returns the exit code that a shell reports for a process killed by a signal.
fn after(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(130)
}

impl std::fmt::Display for Coded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.1.fmt(f)
    }
}

impl std::error::Error for Coded {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.1.source()
    }
}

/// Returns the exit code of an error that has the same one in all commands.
pub fn of(error: &anyhow::Error) -> Option<u8> {
    error.chain().find_map(|cause| {
        if let Some(Interrupted(signal)) = cause.downcast_ref() {
            return Some(after(*signal));
        }
        if let Some(Coded(code, _)) = cause.downcast_ref() {
            return Some(*code);
        }
        cause.downcast_ref::<NotRun>().map(NotRun::exit_code)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context as _;

    #[test]
    fn codes() {
        let io = || std::io::Error::other("no");
        let wrong = mistake(anyhow::Error::new(io()).context("read f"));
        assert_eq!((of(&wrong), wrong.to_string()), (Some(2), "read f".to_owned()));
        assert_eq!(wrong.chain().map(ToString::to_string).collect::<Vec<_>>(), ["read f", "no"]);
        assert_eq!((of(&lost(io())), of(&anyhow::Error::new(io()))), (Some(125), None));
        let interrupted = Err::<(), _>(Interrupted(15)).context("what stays").unwrap_err();
        assert_eq!(of(&interrupted), Some(143));
    }
}
