//! What is known of a process beside its streams: for lists, and beyond the life of this server for its record.

use crate::age::now_ms;
use crate::spec::ProcessSpec;
use serde::{Deserialize, Serialize};

/// The most bytes of a command line that are remembered: a container may have a thousand ended processes.
const SHOWN: usize = 1 << 10;

/// What a process was started as.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct About {
    /// The process's id.
    pub id: String,
    /// The program and its arguments; only the first ones if they are long, and then the last one ends in `…`. Empty:
    /// unknown, an earlier server has started it.
    pub command: Vec<String>,
    /// As [`ProcessSpec::user`].
    pub user: String,
    /// It has a terminal.
    pub terminal: bool,
    /// It has an image of its own.
    pub pea: bool,
    /// When it was started, in milliseconds since 1970; 0: unknown.
    pub started_ms: u64,
    /// See [`ProcessSpec::keep_output`].
    pub keep_output: u64,
    /// See [`ProcessSpec::remove_container`].
    pub remove_container: bool,
    /// See [`ProcessSpec::hold_input`].
    pub hold_input: bool,
    /// How it has ended, in a record.
    pub ending: Option<Ending>,
}

/// How a process has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    /// Its exit status, 128 + signal when killed.
    pub status: i32,
    /// When, in milliseconds since 1970; `None`: unknown, no server was running.
    pub at_ms: Option<u64>,
    /// The OOM killer has killed something in the container since the process before it was killed.
    #[serde(default)]
    pub out_of_memory: bool,
}

impl Ending {
    /// An end that has just been reported.
    pub fn now(status: i32, out_of_memory: bool) -> Self {
        Self { status, at_ms: Some(now_ms()), out_of_memory }
    }
}

impl About {
    /// Makes it for a process that is about to be started.
    pub fn new(spec: &ProcessSpec) -> Self {
        Self {
            id: spec.id.clone(),
            command: command(std::iter::once(&spec.path).chain(&spec.args)),
            user: spec.user.clone(),
            terminal: spec.tty.is_some(),
            pea: spec.image.is_some(),
            started_ms: now_ms(),
            keep_output: spec.keep_output,
            remove_container: spec.remove_container,
            hold_input: spec.hold_input,
            ending: None,
        }
    }

    /// Makes it for a process of which nothing but its id is known.
    pub fn unknown(id: String) -> Self {
        Self { id, ..Self::default() }
    }

    /// Whether the next server must know more of the process than its keeper tells.
    pub fn is_recorded(&self) -> bool {
        self.keep_output > 0 || self.remove_container || self.hold_input
    }
}

fn command<'a>(words: impl Iterator<Item = &'a String>) -> Vec<String> {
    let mut room = SHOWN;
    let mut all = Vec::new();
    for word in words {
        if word.len() + 1 > room {
            let cut = (0..room).rev().find(|at| word.is_char_boundary(*at)).unwrap_or(0);
            all.push(format!("{}…", &word[..cut]));
            break;
        }
        // Empty words take memory as well.
        room -= word.len() + 1;
        all.push(word.clone());
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_commands_are_cut() {
        let of = |words: &[&str]| command(words.iter().map(ToString::to_string).collect::<Vec<_>>().iter());
        assert_eq!(of(&["sh", "-c", ""]), ["sh", "-c", ""]);
        let long = "ä".repeat(SHOWN);
        let cut = of(&["a", &long, "b"]);
        assert_eq!(cut.len(), 2);
        assert!(cut[1].ends_with("ä…") && cut[1].len() <= SHOWN + 3);
        assert!(command(vec![String::new(); 5000].iter()).len() <= SHOWN + 2);
    }
}
