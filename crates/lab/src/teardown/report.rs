//! Results of a teardown, as JSON and as text.

use super::options::{Options, Target};
use crate::host::Host;
use crate::report::{Phase, bytes, table};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use wardian_recorder::{Diagnosis, Mark, Sample};

/// One round: mounted, written, unmounted, and the last one removed.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Round {
    /// Duration of its recording.
    pub length_ms: f64,
    /// The phases, in order: `mount` and `write` (alternating, as in the original script), `age` if the data was to
    /// age, `unmount` unless there is nothing to unmount, and in the last round `remove`.
    pub phases: Vec<Phase>,
    /// Dirty bytes on this machine when the unmounts began.
    pub dirty_at_unmount_bytes: u64,
    /// Bytes that this machine wrote to its disks, by phase; `write` includes those of `mount`.
    pub written_bytes: BTreeMap<&'static str, u64>,
    /// Dirty and writeback bytes and more, about every 20 ms.
    pub samples: Vec<Sample>,
    /// Begin of each phase, by the clock of the samples; `write` includes `mount`.
    pub marks: Vec<Mark>,
    /// What wrote the data, its owners, and the waits.
    pub diagnosis: Diagnosis,
}

impl Round {
    /// The phase of this name, if it was reached.
    pub fn phase(&self, name: &str) -> Option<&Phase> {
        self.phases.iter().find(|phase| phase.name == name)
    }
}

/// The result of `wardian lab teardown`.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Whether the experiment was completed. If not, `error` has the reason, and the figures are those until then.
    pub complete: bool,
    /// Why it was not completed.
    pub error: Option<String>,
    /// The options.
    pub options: Options,
    /// The round before the last one (`--again`).
    pub first_round: Option<Round>,
    /// The last round.
    #[serde(flatten)]
    pub round: Round,
    /// The machine.
    pub host: Host,
}

impl Report {
    /// The report as text for the terminal.
    pub fn text(&self, verbose: bool) -> String {
        let mut out = String::new();
        if let Some(first) = &self.first_round {
            let _ = writeln!(out, "The first round:\n\n{}", self.round_text(first, verbose));
            let _ = writeln!(out, "The second one, on the same files:\n");
        }
        out + &self.round_text(&self.round, verbose)
    }

    fn round_text(&self, round: &Round, verbose: bool) -> String {
        let mut out = String::new();
        if let Some(phase) = round.phase("unmount") {
            let _ = writeln!(
                out,
                "The slowest unmount took {:.1} ms with {} dirty when it was called.",
                phase.max_ms,
                bytes(round.dirty_at_unmount_bytes)
            );
        } else if self.options.target == Target::Plain {
            let _ = writeln!(out, "There was nothing to unmount.");
        }
        let _ = write!(out, "{}\n{}", round.diagnosis.text(verbose), table(&round.phases));
        out
    }
}
