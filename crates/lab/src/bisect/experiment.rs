//! What is run in a guest, and what is kept of its report.

use super::figures;
use crate::guest::{Failure, Guest, said};
use crate::host::since_1970;
use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

/// An experiment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Experiment {
    /// `wardian lab teardown` with these arguments.
    Teardown(Vec<String>),
    /// A command, recorded as by `wardian lab record`.
    Command(Vec<String>),
}

/// Limits of an experiment's words.
const MOST_WORDS: usize = 256;
const MOST_LENGTH: usize = 16 << 10;
/// Where the guest's disk is mounted.
const DISK: &str = "/mnt";
/// The report in the guest.
const REPORT: &str = "/tmp/report.json";

/// One run of the experiment in a guest.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Run {
    /// Begin, in ms since 1970-01-01 UTC.
    pub begun_ms: i64,
    /// All figures, by their names.
    pub figures: BTreeMap<String, f64>,
    /// Kernel behaviours that the diagnosis recognised: `sync-at-unmount`, ….
    pub recognised: Vec<String>,
    /// What wrote most, and its share from 0 to 1.
    pub wrote_most: Option<(String, f64)>,
    /// The diagnosis, in one sentence.
    pub diagnosis: String,
    /// The experiment's own report, as it made it in the guest.
    #[serde(skip)]
    pub report: Value,
}

impl Experiment {
    /// Parses the words after `--`; without words the experiment is a small teardown.
    ///
    /// # Errors
    /// The first word is neither `teardown` nor `cmd`, or an argument is one that the bisection sets itself.
    pub fn parse(words: &[String]) -> Result<Self> {
        ensure!(words.len() <= MOST_WORDS, "an experiment has at most {MOST_WORDS} words");
        let length: usize = words.iter().map(String::len).sum();
        ensure!(length <= MOST_LENGTH, "the words of an experiment have at most {MOST_LENGTH} bytes");
        match words.split_first() {
            None => Ok(Self::Teardown(["--mounts", "10", "--mb", "20"].map(str::to_owned).into())),
            Some((first, rest)) if first == "teardown" => {
                for ours in ["--fs", "--json"] {
                    let is_ours = |word: &String| word.split('=').next() == Some(ours);
                    ensure!(
                        !rest.iter().any(is_ours),
                        "{ours} is set by the bisection: the guest's disk is under test, and its report is fetched"
                    );
                }
                Ok(Self::Teardown(rest.to_vec()))
            }
            Some((first, rest)) if first == "cmd" => {
                ensure!(!rest.is_empty(), "give a command after `cmd`");
                Ok(Self::Command(rest.to_vec()))
            }
            Some((first, _)) => {
                bail!(
                    "{first:?} is no experiment of a bisection: after `--` comes `teardown …`, or `cmd COMMAND …` for any other command"
                )
            }
        }
    }

    /// The figure that is looked at, if none is named.
    pub fn headline(&self) -> &'static str {
        match self {
            Self::Teardown(_) => "unmount_max_ms",
            Self::Command(_) => "duration_ms",
        }
    }

    /// Whether it can have a figure of this name; which it has is known only afterwards.
    pub fn may_have(&self, figure: &str) -> bool {
        match self {
            Self::Teardown(_) => figures::is_of_teardown(figure),
            Self::Command(_) => ["duration_ms", "written_bytes"].contains(&figure),
        }
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Teardown(_) => "teardown",
            Self::Command(_) => "cmd",
        }
    }

    /// Its words, as they are given after `--`.
    pub fn words(&self) -> Vec<String> {
        let (Self::Teardown(rest) | Self::Command(rest)) = self;
        [self.name().to_owned()].into_iter().chain(rest.iter().cloned()).collect()
    }

    /// The script that runs it in a guest. What was cached by the run before it is forgotten first.
    fn script(&self) -> String {
        let (how, words) = match self {
            Self::Teardown(words) => {
                (format!("wardian lab teardown --fs {DISK} --json {REPORT} --yes"), words)
            }
            Self::Command(words) => (format!("wardian lab record --fs {DISK} --json {REPORT} --"), words),
        };
        let words: String = words.iter().map(|word| format!(" '{}'", word.replace('\'', r"'\''"))).collect();
        format!("rm -f {REPORT}; cd {DISK} && sync && echo 3 > /proc/sys/vm/drop_caches\n{how}{words}")
    }

    /// Runs it once. `Err` in the result: it failed in the guest, for this reason.
    ///
    /// # Errors
    /// The guest, or this host.
    pub(super) async fn run(
        &self,
        guest: &mut Guest,
        patience: Duration,
    ) -> Result<Result<Run, String>, Failure> {
        let begun_ms = since_1970(SystemTime::now());
        let output = guest.sh(&self.script(), patience).await?;
        if output.status != 0 {
            return Ok(Err(format!("the experiment ended with {}: {}", output.status, said(&output.bytes))));
        }
        let report = guest.sh(&format!("cat {REPORT}"), patience).await?;
        let parsed = if report.status == 0 { serde_json::from_slice(&report.bytes) } else { Ok(Value::Null) };
        let report = match parsed.context("read the guest's report") {
            Ok(report) => report,
            Err(error) => return Ok(Err(format!("{error:#}"))),
        };
        Ok(Ok(Run { begun_ms, ..self.read(report) }))
    }

    fn read(&self, report: Value) -> Run {
        let figures = match self {
            Self::Teardown(_) => figures::of_teardown(&report),
            Self::Command(_) => figures::of_command(&report),
        };
        let diagnosis = &report["diagnosis"];
        let texts = |list: &Value, key: &str| -> Vec<String> {
            let items = list.as_array().into_iter().flatten();
            items.filter_map(|item| item[key].as_str().map(str::to_owned)).collect()
        };
        let mut recognised = texts(&diagnosis["fingerprints"], "id");
        recognised.retain(|id| id != "unknown");
        let most = &diagnosis["causes"][0];
        let wrote_most = most["cause"].as_str().zip(most["share"].as_f64());
        Run {
            begun_ms: 0,
            figures,
            recognised,
            wrote_most: wrote_most.map(|(cause, share)| (cause.replace('_', " "), share)),
            diagnosis: diagnosis["verdict"].as_str().unwrap_or_default().to_owned(),
            report,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(words: &[&str]) -> Result<Experiment> {
        Experiment::parse(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn words_are_an_experiment() {
        assert!(matches!(parse(&[]).unwrap(), Experiment::Teardown(words) if words.len() == 4));
        let given = parse(&["teardown", "--mounts", "3"]).unwrap();
        assert_eq!(given.words(), ["teardown", "--mounts", "3"]);
        assert_eq!(parse(&["cmd", "dd", "of=x"]).unwrap().headline(), "duration_ms");
        for (words, reason) in [
            (&["teardown", "--fs", "/tmp"][..], "--fs is set"),
            (&["teardown", "--json=x"], "--json is set"),
            (&["cmd"], "give a command"),
            (&["scale"], "no experiment"),
            (&["-x"], "no experiment"),
        ] {
            let error = parse(words).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
        assert!(parse(&["cmd", &"x".repeat(20_000)]).is_err() && parse(&["cmd"; 300]).is_err());
    }

    #[test]
    fn no_word_is_read_by_the_shell() {
        let script = parse(&["cmd", "echo", "a'b; $(reboot)", ""]).unwrap().script();
        assert!(script.ends_with(r#" 'echo' 'a'\''b; $(reboot)' ''"#), "{script}");
        let output = std::process::Command::new("sh")
            .args(["-c", script.rsplit_once("--").unwrap().1])
            .output()
            .unwrap();
        assert_eq!(output.stdout, b"a'b; $(reboot) \n");
    }

    #[test]
    fn a_report_is_read() {
        let teardown = parse(&[]).unwrap();
        let run = teardown.read(json!({
            "phases": [{"name": "unmount", "max_ms": 9.0}],
            "diagnosis": {
                "verdict": "v",
                "fingerprints": [{"id": "sync-at-unmount"}, {"id": "unknown"}],
                "causes": [{"cause": "journal_commit", "share": 0.5}],
            },
        }));
        assert_eq!((run.recognised, run.diagnosis), (vec!["sync-at-unmount".to_owned()], "v".to_owned()));
        assert_eq!(run.wrote_most, Some(("journal commit".to_owned(), 0.5)));
        assert_eq!(run.figures.get("unmount_max_ms"), Some(&9.0));
        // A guest may say anything.
        assert!(teardown.read(json!("x")).figures.is_empty());
    }
}
