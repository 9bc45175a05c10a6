//! Results of `wardian lab teardown` as files.

use super::Results;
use crate::report::bytes;
use crate::teardown::options::{Options, Target};
use crate::teardown::report::{Report, Round};
use crate::timelines;
use anyhow::{Context, Result};
use wardian_pictures::{Look, Page, Part, Section, Unit, timeline};

impl Results for Report {
    fn json(&self) -> Result<String> {
        serde_json::to_string_pretty(self).context("encode the report")
    }

    fn csv(&self) -> Result<Vec<u8>> {
        let rounds = self.first_round.iter().chain([&self.round]);
        let rows = rounds.enumerate().flat_map(|(n, round)| {
            let before = [(n + 1).to_string()];
            round.phases.iter().flat_map(move |phase| super::instances(&before, phase)).collect::<Vec<_>>()
        });
        super::csv(&["round", "phase", "mount", "begin_ms", "ms"], rows)
    }

    fn svg(&self) -> String {
        timeline(&timelines::of_teardown(self), &Look::wide().titled(title(&self.options)))
    }

    fn page(&self) -> Page {
        let drawn = timelines::of_teardown(self);
        let explained = Part::Text(EXPLAINED.to_owned());
        let mut sections = vec![Section {
            heading: title(&self.options),
            parts: vec![explained, Part::picture(|look| timeline(&drawn, look))],
        }];
        let rounds: Vec<(&str, &Round)> = match &self.first_round {
            Some(first) => vec![("First round", first), ("Second round, on the same files", &self.round)],
            None => vec![("Phases", &self.round)],
        };
        for (heading, round) in rounds {
            let mut parts = vec![Part::Table(super::phases(round.phases.iter()))];
            parts.extend(super::record::tables(&round.diagnosis));
            sections.push(Section { heading: heading.to_owned(), parts });
        }
        Page {
            title: "wardian lab teardown".to_owned(),
            verdict: verdict(self),
            advice: self.round.diagnosis.advice.clone(),
            incomplete: self.error.clone(),
            machine: super::machine(&self.host),
            settings: settings(self),
            sections,
            ..Page::default()
        }
    }
}

const EXPLAINED: &str = "Each row is a mount, each bar a phase. Where a bar is hatched, a thread waited in the kernel: \
                         point at it to see for whom, and in which function. Below are the pages of the host that are \
                         not on disk yet, on the same axis.";

fn title(options: &Options) -> String {
    let mounts = match (options.target, options.mounts) {
        (Target::Plain, 1) => "A plain directory".to_owned(),
        (Target::Plain, n) => format!("{n} plain directories"),
        (target, n) => {
            let kind = if target == Target::Volatile { "volatile" } else { "durable" };
            if n == 1 {
                format!("Teardown of one {kind} overlay")
            } else {
                format!("Teardown of {n} {kind} overlays")
            }
        }
    };
    let each = if options.mounts == 1 { "" } else { " in each" };
    format!("{mounts}, {} MB{each}", options.mb)
}

fn verdict(report: &Report) -> String {
    let round = &report.round;
    let unmount = round.phase("unmount").map(|phase| {
        format!(
            "The slowest unmount took {} with {} dirty when it was called: ",
            Unit::Ms.show(phase.max_ms),
            bytes(round.dirty_at_unmount_bytes)
        )
    });
    format!("{}{}.", unmount.unwrap_or_default(), round.diagnosis.verdict)
}

fn settings(report: &Report) -> Vec<(String, String)> {
    let options = &report.options;
    let mut all: Vec<(String, String)> = [
        ("mounts", options.mounts.to_string()),
        ("MB in each", options.mb.to_string()),
        ("files in each", options.files.to_string()),
        ("overlays", format!("{:?}", options.target).to_lowercase()),
        ("written", format!("{:?}", options.source).to_lowercase()),
        ("unmounts", format!("{:?}", options.unmount).to_lowercase()),
        ("neighbour's MB", options.neighbour_mb.to_string()),
        ("directory", options.fs.display().to_string()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into();
    let vm = &report.round.diagnosis.tunables.vm;
    all.extend(vm.iter().map(|(name, value)| (format!("vm.{name}"), value.to_string())));
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Host;
    use crate::report::{Phase, Span};
    use std::time::{Duration, Instant};

    #[test]
    fn every_mount_is_in_every_file() {
        let since = Instant::now();
        let span = |n: u64| Span { begin: since + Duration::from_millis(n), took: Duration::from_millis(9) };
        let each = [(0, span(1)), (1, span(2))];
        let phases =
            ["mount", "write", "unmount", "remove"].map(|name| Phase::timed(name, since, span(0), &each));
        let report = Report {
            complete: false,
            error: Some("interrupted; <b>".into()),
            options: Options { mounts: 2, ..Options::default() },
            first_round: None,
            round: Round { phases: phases.into(), length_ms: 20.0, ..Round::default() },
            host: Host { kernel: "6.18".into(), ..Host::default() },
        };
        let csv = String::from_utf8(report.csv().unwrap()).unwrap();
        assert_eq!(csv.lines().count(), 1 + 4 * 2);
        assert!(
            csv.starts_with("round,phase,mount,begin_ms,ms\n1,mount,0,1.0,9.0\n")
                || csv.starts_with("round,phase,mount,begin_ms,ms\n1,mount,0,1,9\n"),
            "{csv}"
        );
        let svg = report.svg();
        assert!(
            svg.contains("data-row=\"mount 1\"")
                && svg.contains("Teardown of 2 durable overlays, 100 MB in each")
        );
        let page = report.page();
        assert_eq!(page.incomplete.as_deref(), Some("interrupted; <b>"));
        let html = wardian_pictures::page(&page);
        assert!(
            html.contains("interrupted; &lt;b&gt;")
                && html.contains("6.18")
                && html.contains("data-row=\"mount 0\"")
        );
        assert!(report.json().unwrap().contains("\"complete\": false"));
    }
}
