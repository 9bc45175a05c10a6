//! One run of an experiment.

use crate::Timeline;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One run of one experiment in one mode.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Its number in the store; 0 until it is in one.
    #[serde(default)]
    pub id: i64,
    /// When it began, in ms since 1970-01-01 UTC.
    pub begun_ms: i64,
    /// The experiment: `scale`, `teardown`, `bench containers`, `compare scale`, …
    pub experiment: String,
    /// What distinguishes its line in a graph from others of the experiment: `stream`, `oci`, `durable`, …
    pub mode: String,
    /// The engine that was measured: `wardian`, `podman`, `containerd`, …; `kernel` if there was none.
    pub engine: String,
    /// The engine's version.
    pub version: String,
    /// The git revision of wardian, if the program knows it.
    #[serde(default)]
    pub revision: Option<String>,
    /// The parameters that determine the result, by their flags' names without the dashes: `to`, `code-mb`, …
    #[serde(default)]
    pub parameters: BTreeMap<String, String>,
    /// The machine.
    pub machine: Machine,
    /// Name in `figures` of the value that stands for the run in a graph: `waiting_ms`, `unmount_max_ms`.
    pub headline: String,
    /// The results. The unit ends the name: `_ms`, `_bytes`; a name without a unit is a number or a ratio.
    pub figures: BTreeMap<String, f64>,
    /// Whether the run ended as planned. A run that failed or was interrupted is kept, and is in no comparison.
    pub complete: bool,
    /// Why it did not.
    #[serde(default)]
    pub error: Option<String>,
    /// The command that repeats it, as words.
    #[serde(default)]
    pub command: Vec<String>,
    /// What happened when.
    #[serde(default)]
    pub timeline: Option<Timeline>,
}

/// The machine that a run was made on.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Its host name.
    pub host: String,
    /// Release of the kernel.
    pub kernel: String,
    /// Number of processors.
    pub cpus: u64,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Type of the file system under test.
    pub filesystem: String,
    /// Its mount options.
    pub mount_options: String,
    /// `v1`, `v2` or `none`.
    pub cgroups: String,
    /// One-minute load average when the run ended.
    pub load: f64,
}

impl Run {
    /// Names the runs that can be compared with this one: same host, experiment, engine, mode and parameters. Kernel,
    /// version and revision are not part of it, because a step between two of them is what is looked for.
    pub fn series(&self) -> String {
        let parameters: Vec<String> =
            self.parameters.iter().map(|(name, value)| format!("{name}={value}")).collect();
        [&self.machine.host, &self.experiment, &self.engine, &self.mode, &parameters.join(" ")]
            .map(String::as_str)
            .join("|")
    }

    /// The value that stands for the run in a graph.
    pub fn value(&self) -> Option<f64> {
        self.figures.get(&self.headline).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_is_what_can_be_compared() {
        let run = |kernel: &str, to: &str| Run {
            experiment: "scale".into(),
            engine: "wardian".into(),
            mode: "stream".into(),
            parameters: [("to".to_owned(), to.to_owned())].into(),
            machine: Machine { host: "h".into(), kernel: kernel.into(), ..Machine::default() },
            ..Run::default()
        };
        assert_eq!(run("6.1", "10").series(), "h|scale|wardian|stream|to=10");
        assert_eq!(run("6.1", "10").series(), run("6.12", "10").series());
        assert_ne!(run("6.1", "10").series(), run("6.1", "100").series());
    }

    #[test]
    fn a_run_survives_json() {
        let run = Run {
            headline: "waiting_ms".into(),
            figures: [("waiting_ms".into(), 1.5)].into(),
            ..Run::default()
        };
        let text = serde_json::to_string(&run).unwrap();
        let read: Run = serde_json::from_str(&text).unwrap();
        assert_eq!((read.value(), &read), (Some(1.5), &run));
    }
}
