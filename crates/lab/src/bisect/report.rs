//! Results of a bisection, as JSON and as text.

use super::experiment::Run;
use super::figures::{Spread, shown};
use super::options::Options;
use super::search::{Side, Verdict, verdict};
use crate::guest::machine::Acceleration;
use crate::host::Host;
use crate::report::bytes;
use serde::Serialize;
use std::fmt::Write as _;

/// Columns of a kernel's name in the table.
const NAME: usize = 30;

/// What was found of one kernel.
#[derive(Debug, Clone, Serialize)]
pub struct Measured {
    /// The kernel as it was named, and settled to a package.
    pub kernel: String,
    /// File name of its package, or its path.
    pub source: String,
    /// The release that it has told (`uname -r`).
    pub release: Option<String>,
    /// On which side of the bound it is; without a bound `unknown`.
    pub side: Side,
    /// Time of the boot in seconds.
    pub boot_s: Option<f64>,
    /// The runs.
    pub runs: Vec<Run>,
    /// Why it could not be measured.
    pub skipped: Option<String>,
    /// The last lines of its log, if it could not be measured.
    pub log: Vec<String>,
}

/// The result of `wardian lab bisect`.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Whether it came to its end. If not, `error` has the reason, and the figures are those until then.
    pub complete: bool,
    /// Why it did not.
    pub error: Option<String>,
    /// When it began, in ms since 1970.
    pub begun_ms: i64,
    /// The options.
    pub options: Options,
    /// QEMU's version.
    pub qemu: String,
    /// The kernels, in their order. One without runs and without a reason to skip it was not needed, or not reached.
    pub kernels: Vec<Measured>,
    /// Between which two kernels the figure changed; `None` without a bound.
    pub verdict: Option<Verdict>,
    /// The verdict and what it means, as text.
    pub text: String,
    /// Duration in seconds.
    pub seconds: f64,
    /// The machine that the guests ran on.
    pub host: Host,
}

impl Measured {
    /// A kernel of which nothing is known yet.
    pub(super) fn unknown(kernel: &str) -> Self {
        Self {
            kernel: kernel.to_owned(),
            source: String::new(),
            release: None,
            side: Side::Unknown,
            boot_s: None,
            runs: Vec::new(),
            skipped: None,
            log: Vec::new(),
        }
    }

    /// A short name: that of a package without what all have in common.
    pub fn name(&self) -> &str {
        let name = self.kernel.trim_end_matches('/');
        let name =
            name.strip_prefix("linux-image-").and_then(|name| name.strip_suffix("-amd64")).unwrap_or(name);
        // The end of a path tells more than its beginning.
        let from = name.len().saturating_sub(NAME);
        (from..name.len()).find_map(|at| name.get(at..)).unwrap_or(name)
    }

    pub(crate) fn spread(&self, figure: &str) -> Option<Spread> {
        let values: Vec<f64> = self.runs.iter().filter_map(|run| run.figures.get(figure).copied()).collect();
        Spread::of(&values)
    }

    /// What the diagnosis recognised in most runs.
    pub(crate) fn recognised(&self) -> Vec<&str> {
        let mut all: Vec<&str> =
            self.runs.iter().flat_map(|run| run.recognised.iter().map(String::as_str)).collect();
        all.sort_unstable();
        let count = |id: &str| all.iter().filter(|other| **other == id).count();
        let often: Vec<&str> = all.iter().copied().filter(|id| count(id) * 2 > self.runs.len()).collect();
        let mut often = often;
        often.dedup();
        often
    }
}

impl Report {
    /// Evaluates the figures: fills in `verdict` and `text`.
    pub(super) fn evaluate(&mut self) {
        let sides: Vec<Side> = self.kernels.iter().map(|kernel| kernel.side).collect();
        self.verdict = self.options.bound.map(|_| verdict(&sides));
        self.text = self.words();
    }

    /// The report as text for the terminal.
    pub fn table(&self) -> String {
        let figure = &self.options.figure;
        let mut out = format!(
            "{}\n\n{:<NAME$} {:>9} {:>19} {:>4}  recognised\n",
            self.text,
            "kernel",
            figure_unit(figure),
            "least…most",
            "runs"
        );
        for kernel in &self.kernels {
            let _ = write!(out, "{:<NAME$} ", kernel.name());
            let _ = match (kernel.spread(figure), &kernel.skipped) {
                (_, Some(_)) => writeln!(out, "{:>9}", "skipped"),
                (None, None) => writeln!(out, "{:>9}", "–"),
                (Some(spread), None) => {
                    let range = format!("{}…{}", shown(figure, spread.least), shown(figure, spread.most));
                    let recognised = kernel.recognised();
                    let recognised =
                        if recognised.is_empty() { "–".to_owned() } else { recognised.join(", ") };
                    let median = shown(figure, spread.median);
                    writeln!(out, "{median:>9} {range:>19} {:>4}  {recognised}", kernel.runs.len())
                }
            };
        }
        for kernel in &self.kernels {
            if let Some(reason) = &kernel.skipped {
                let _ = writeln!(out, "\n{} was skipped: {reason}", kernel.name());
                for line in &kernel.log {
                    let _ = writeln!(out, "  {line}");
                }
            }
        }
        let _ = write!(out, "\n{}", self.conditions());
        out
    }

    fn conditions(&self) -> String {
        let options = &self.options;
        let speed = options.disk_bps.map_or("not throttled".to_owned(), |bps| format!("{}/s", bytes(bps)));
        let mut out = format!(
            "Guests: {} MiB, {} processor(s), {} on a disk of {} ({speed}), QEMU {}, {}. {:.0} s in all.\n",
            options.memory_mib,
            options.cpus,
            options.fs.name(),
            bytes(options.disk_bytes),
            self.qemu,
            options.acceleration.name(),
            self.seconds
        );
        if options.acceleration == Acceleration::Tcg {
            out += "Without KVM every instruction is translated: only sizes, counts, and durations that the throttled disk's speed determines can be compared.\n";
        }
        out
    }

    fn words(&self) -> String {
        let figure = &self.options.figure;
        let unmeasured = self.kernels.iter().filter(|kernel| kernel.skipped.is_some()).count();
        let Some(bound) = self.options.bound else {
            let measured: Vec<_> =
                self.kernels.iter().filter_map(|kernel| Some((kernel, kernel.spread(figure)?))).collect();
            let least = measured.iter().min_by(|a, b| a.1.median.total_cmp(&b.1.median));
            let most = measured.iter().max_by(|a, b| a.1.median.total_cmp(&b.1.median));
            return match least.zip(most) {
                Some((least, most)) if measured.len() > 1 && least.1.is_apart(most.1) => format!(
                    "{figure} is between {} ({}) and {} ({}).",
                    shown(figure, least.1.median),
                    least.0.name(),
                    shown(figure, most.1.median),
                    most.0.name()
                ),
                Some(_) if measured.len() > 1 => {
                    format!("{figure} does not differ between the kernels by more than it varies on each.")
                }
                Some((only, _)) => {
                    format!("{figure} is {} on {}.", shown(figure, only.1.median), only.0.name())
                }
                None => format!("No kernel could be measured ({unmeasured} skipped)."),
            };
        };
        let bound_text = shown(figure, bound);
        match self.verdict.as_ref() {
            Some(Verdict::Changed { before, after, suspects }) => {
                self.changed(*before, *after, suspects, bound)
            }
            Some(Verdict::Same { side }) => {
                let (how, what) = match side {
                    Side::Above => ("above", "a kernel before the change as the first one"),
                    _ => ("at most", "a kernel after the change as the last one, or a lower --slow-above"),
                };
                format!(
                    "No change was found: on the first kernel and on the last one {figure} is {how} {bound_text}.\nwhat to do: give {what}"
                )
            }
            Some(Verdict::TooFew) => {
                format!(
                    "No change can be found: fewer than two kernels could be measured ({unmeasured} skipped)."
                )
            }
            Some(Verdict::Unfinished) | None => {
                "No result: the bisection did not come to its end.".to_owned()
            }
        }
    }

    fn changed(&self, before: usize, after: usize, suspects: &[usize], bound: f64) -> String {
        let figure = &self.options.figure;
        let (Some(a), Some(b)) = (self.kernels.get(before), self.kernels.get(after)) else {
            return String::new();
        };
        let (Some(x), Some(y)) = (a.spread(figure), b.spread(figure)) else { return String::new() };
        let mut out = if suspects.is_empty() {
            format!("{figure} changed with {}: ", b.name())
        } else {
            format!("{figure} changed between {} and {}: ", a.name(), b.name())
        };
        let _ = write!(
            out,
            "{} on {}, {} on {} (slow: above {}).",
            shown(figure, x.median),
            a.name(),
            shown(figure, y.median),
            b.name(),
            shown(figure, bound)
        );
        let runs = a.runs.len() + b.runs.len();
        let doubtful = x.is_doubtful(bound) || y.is_doubtful(bound);
        let _ = match (x.is_apart(y), doubtful, a.runs.len().min(b.runs.len())) {
            (true, false, 1) => {
                write!(out, "\nhow sure: each was measured once only; repeat it with --runs 3")
            }
            (true, false, _) => write!(
                out,
                "\nhow sure: all {runs} runs agree, and the two kernels differ by more than each varies"
            ),
            (true, true, _) => write!(
                out,
                "\nhow sure: the two kernels differ, but one is near the bound ({runs} runs); another bound would move the place"
            ),
            (false, ..) => write!(
                out,
                "\nhow sure: it is not: the runs on both overlap ({runs} runs); repeat it with more --runs, or with another bound"
            ),
        };
        let slow = if y.median > x.median { b } else { a };
        let recognised = slow.recognised();
        if !recognised.is_empty() {
            let _ = write!(out, "\ncause: {} (recognised on {})", recognised.join(", "), slow.name());
        } else if let Some(run) = slow.runs.last().filter(|run| !run.diagnosis.is_empty()) {
            let _ = write!(out, "\nThe diagnosis on {}: {}", slow.name(), run.diagnosis);
        }
        if !suspects.is_empty() {
            let names: Vec<&str> =
                suspects.iter().filter_map(|at| self.kernels.get(*at)).map(Measured::name).collect();
            let _ = write!(
                out,
                "\nThese between them could not be measured, and one of them may be the first: {}",
                names.join(", ")
            );
        }
        out
    }
}

fn figure_unit(figure: &str) -> &str {
    if figure.ends_with("_bytes") { "bytes" } else { "duration" }
}

#[cfg(test)]
mod tests {
    use super::super::options::tests::options;
    use super::*;
    use crate::results::Results as _;

    fn report(kernels: &[(&str, Side, &[f64])]) -> Report {
        let mut options = options();
        options.kernels = kernels.iter().map(|(name, ..)| (*name).to_owned()).collect();
        let kernels = kernels.iter().map(|(name, side, values)| {
            let run = |value: &f64| Run {
                figures: [(options.figure.clone(), *value)].into(),
                recognised: if *value > 300.0 { vec!["sync-at-unmount".into()] } else { Vec::new() },
                ..Run::default()
            };
            let skipped = (*side == Side::Skipped).then(|| "Kernel panic".to_owned());
            Measured {
                side: *side,
                runs: values.iter().map(run).collect(),
                skipped,
                ..Measured::unknown(name)
            }
        });
        let mut report = Report {
            complete: true,
            error: None,
            begun_ms: 0,
            kernels: kernels.collect(),
            options,
            qemu: "7.2".into(),
            verdict: None,
            text: String::new(),
            seconds: 1.0,
            host: Host::probe(None),
        };
        report.evaluate();
        report
    }

    #[test]
    fn the_verdict_is_first_and_names_the_kernel_and_the_cause() {
        let found = report(&[
            ("linux-image-6.1.0-50-cloud-amd64", Side::Below, &[10.0, 12.0]),
            ("linux-image-6.12.1-cloud-amd64", Side::Above, &[4000.0, 4100.0]),
            ("linux-image-6.12.2-cloud-amd64", Side::Above, &[4000.0]),
        ]);
        let text = found.table();
        assert!(
            text.starts_with("unmount_max_ms changed with 6.12.1-cloud: 11.0 ms on 6.1.0-50-cloud, 4050 ms"),
            "{text}"
        );
        assert!(text.contains("all 4 runs agree") && text.contains("cause: sync-at-unmount"), "{text}");
        assert!(text.contains("Without KVM"), "{text}");
        let row = text.lines().find(|line| line.starts_with("6.12.1-cloud ")).unwrap();
        assert!(row.ends_with("sync-at-unmount") && row.chars().count() <= 100, "{row}");
    }

    #[test]
    fn files_have_what_the_text_has() {
        let mut found = report(&[
            ("linux-image-6.1.0-50-amd64", Side::Below, &[10.0, 12.0]),
            ("c", Side::Unknown, &[]),
            ("e", Side::Below, &[11.0]),
            ("b", Side::Skipped, &[]),
            ("d", Side::Above, &[900.0]),
        ]);
        found.kernels[3].log = vec!["<panic>".into()];
        found.kernels[4].runs[0].report = serde_json::json!({
            "samples": [{"t_ms": 1.0, "dirty_bytes": 5, "writeback_bytes": 0}, {"t_ms": 9.0, "dirty_bytes": 0, "writeback_bytes": 7}],
            "marks": [{"t_ms": 2.0, "name": "unmount"}],
        });
        let csv = String::from_utf8(found.csv().unwrap()).unwrap();
        assert!(csv.contains("\nlinux-image-6.1.0-50-amd64,,2,unmount_max_ms,12\n"), "{csv}");
        assert_eq!(csv.lines().count(), 5);
        let svg = found.svg();
        for text in ["6.1.0-50", "bound 300 ms", "sync-at-unmount", "skipped: Kernel panic", "not needed"] {
            assert!(svg.contains(text), "{text}: {svg}");
        }
        let html = wardian_pictures::page(&found.page());
        for text in ["A run on d", "&lt;panic&gt;", "could not be measured", "unmount_max_ms changed between"]
        {
            assert!(html.contains(text), "{text}");
        }
        found.error = Some("interrupted".into());
        let runs = crate::bisect::runs(&found);
        let last = runs.last().unwrap();
        assert_eq!((runs.len(), &last.experiment[..], last.complete), (6, "bisect", false));
    }

    #[test]
    fn doubts_are_told() {
        let found = |values: &[f64], others: &[f64]| {
            report(&[("a", Side::Below, values), ("b", Side::Above, others)]).text
        };
        assert!(found(&[10.0], &[900.0]).contains("once only"));
        assert!(found(&[10.0, 20.0], &[310.0, 320.0]).contains("near the bound"));
        assert!(found(&[10.0, 800.0], &[700.0, 900.0]).contains("overlap"));
    }

    #[test]
    fn what_could_not_be_measured_is_told() {
        let found =
            report(&[("a", Side::Below, &[1.0]), ("b", Side::Skipped, &[]), ("c", Side::Above, &[900.0])]);
        let text = found.table();
        assert!(text.starts_with("unmount_max_ms changed between a and c"), "{text}");
        assert!(text.contains("could not be measured, and one of them may be the first: b"), "{text}");
        assert!(text.contains("b was skipped: Kernel panic"), "{text}");
        for (sides, words) in [
            ([Side::Below, Side::Below], "No change was found"),
            ([Side::Above, Side::Above], "before the change"),
            ([Side::Below, Side::Skipped], "fewer than two"),
            ([Side::Below, Side::Unknown], "did not come to its end"),
        ] {
            let text = report(&[("a", sides[0], &[1.0]), ("b", sides[1], &[1.0])]).text;
            assert!(text.contains(words), "{text}");
        }
    }

    #[test]
    fn without_a_bound_the_kernels_are_compared() {
        let compared = |values: &[f64], others: &[f64]| {
            let mut report = report(&[("a", Side::Unknown, values), ("b", Side::Unknown, others)]);
            report.options.bound = None;
            report.evaluate();
            assert_eq!(report.verdict, None);
            report.text
        };
        assert!(compared(&[10.0], &[4000.0]).contains("between 10.0 ms (a) and 4000 ms (b)"));
        assert!(compared(&[10.0, 12.0], &[11.0, 13.0]).contains("does not differ"));
        assert!(compared(&[10.0], &[]).contains("10.0 ms on a"));
        assert!(compared(&[], &[]).contains("No kernel could be measured"));
    }

    #[test]
    fn long_names_keep_their_end() {
        let long = Measured::unknown("/very/long/path/to/a/directory/with/kernels/without/");
        assert!(long.name().ends_with("/without") && long.name().len() <= NAME);
        assert_eq!(Measured::unknown("linux-image-6.1.0-50-amd64").name(), "6.1.0-50");
        assert!(Measured::unknown(&"ä".repeat(40)).name().len() <= NAME);
    }
}
