use super::*;
use crate::compare::engines::Engine;
use crate::compare::runs;
use crate::report::{Phase, Span};
use crate::results::Results as _;
use std::time::{Duration, Instant};

fn engine(name: &str, engine: Engine) -> Found {
    Found { name: name.into(), engine, version: "1.2".into(), how: "somehow".into(), cannot: Vec::new() }
}

/// A turn whose phases take so many ms, and begin a ms after each other. The first of three instances was there before.
fn turn(round: usize, engine: &str, series: Series, phases: &[(&'static str, u64)]) -> Turn {
    let since = Instant::now();
    let timed = |(n, (name, ms)): (usize, &(&'static str, u64))| {
        let span = Span { begin: since + Duration::from_millis(n as u64), took: Duration::from_millis(*ms) };
        let first = if *name == "destroy" { 0 } else { 1 };
        let each: Vec<(usize, Span)> = (first..3).map(|instance| (instance, span)).collect();
        Phase::timed(name, since, span, &each)
    };
    let phases: Vec<Phase> = phases.iter().enumerate().map(timed).collect();
    let (waited, destroy) = phases.split_at(phases.len() - 1);
    Turn {
        round,
        engine: engine.into(),
        series,
        begun_ms: 1_700_000_000_000,
        begin_ms: Some(5.0),
        waiting_ms: (series != Series::Teardown).then(|| waited.iter().map(|phase| phase.wall_ms).sum()),
        slowest_destroy_ms: destroy[0].max_ms,
        phases,
        dirty_at_destroy_bytes: 200_000_000,
        written_bytes: 0,
        disk_written_bytes: None,
        load: 0.5,
        samples: Vec::new(),
    }
}

fn report(turns: Vec<Turn>) -> Report {
    let options = Options { to: 3, code_mb: 7, fs: "/x".into(), ..Options::new("wardian".into()) };
    let engines = vec![engine("wardian", Engine::Wardian), engine("podman", Engine::Podman)];
    let mut report = Report::new(options, engines, Vec::new());
    report.host.cpus = 2;
    report.turns = turns;
    report.compare();
    report
}

/// Rounds in which podman takes 4 times as long, and the machine is slower in each.
fn four_times(rounds: usize) -> Vec<Turn> {
    let all = (1..=rounds).flat_map(|round| {
        let n = 100 + 10 * round as u64;
        let phases = |n| [("create", n), ("stream_in", n), ("start_app", n), ("pea", n), ("destroy", n)];
        [
            turn(round, "wardian", Series::Stream, &phases(n)),
            turn(round, "podman", Series::Stream, &phases(4 * n)),
        ]
    });
    all.collect()
}

#[test]
fn the_verdict_comes_first() {
    let text = report(four_times(5)).text();
    assert!(
        text.starts_with(
            "An app scaled from 1 to 3 waits 0.52 s with wardian, 2.08 s with podman (4.00\n  times, 4.00–4.00).\n"
        ),
        "{text}"
    );
    assert!(text.contains("\nscale, code streamed in: 1 → 3 instances, 7 MB each; 5 rounds\n"), "{text}");
    assert!(
        text.lines().any(|line| line.split_whitespace().eq(["podman", "520.0", "ms", "4.00", "4.00–4.00"])),
        "{text}"
    );
    assert!(text.lines().all(|line| line.chars().count() <= COLUMNS), "{text}");
}

#[test]
fn no_ratio_of_too_few_or_too_noisy_rounds() {
    let few = report(four_times(4)).text().replace("\n  ", " ");
    assert!(few.contains("4 rounds; a ratio needs 5") && !few.contains("4.00–"), "{few}");
    let mut turns = four_times(5);
    for turn in turns.iter_mut().filter(|turn| turn.engine == "podman") {
        turn.waiting_ms = turn.waiting_ms.map(|ms| ms * [0.1, 1.0, 9.0, 0.2, 3.0][turn.round - 1]);
    }
    let report = report(turns);
    let waiting = report.comparisons[0].rows_of("waiting").nth(1).unwrap();
    assert!(matches!(waiting.ratio, Some(Ratio::TooNoisy(_))), "{waiting:?}");
    let text = report.text().replace("\n  ", " ");
    assert!(
        text.contains("(too noisy: ") && text.contains("run more (`--runs 20`) or on a quieter machine"),
        "{text}"
    );
}

/// What one engine cannot do is in no sum that it is compared by.
#[test]
fn only_phases_that_both_have_are_compared() {
    let mut turns = four_times(5);
    for turn in turns.iter_mut().filter(|turn| turn.engine == "podman") {
        let pea = turn.phases.remove(3);
        turn.waiting_ms = turn.waiting_ms.map(|ms| ms - pea.wall_ms);
    }
    let report = report(turns);
    let rows: Vec<&Row> = report.comparisons[0].rows_of("waiting").collect();
    assert_eq!(rows[1].without, ["pea"]);
    // 3 of 4 phases, on both sides.
    assert!((rows[1].ratio.unwrap().known().unwrap().ratio - 4.0).abs() < 1e-9, "{rows:?}");
    assert!((rows[1].median - 3.0 * 520.0).abs() < 1e-9, "{rows:?}");
    let peas: Vec<&Row> = report.comparisons[0].rows_of("pea").collect();
    assert_eq!(peas.len(), 1);
    assert!(report.text().replace("\n  ", " ").contains("4.00–4.00, pea left out on both sides"));
}

#[test]
fn an_engine_that_failed_is_named_and_has_no_more_turns() {
    let mut report = report(four_times(5));
    assert!(!report.has_failed("podman", Series::Stream));
    report.fail("podman", Series::Stream, 2, &anyhow::anyhow!("no"), false);
    assert!(!report.has_failed("podman", Series::Stream), "once may be an accident");
    report.fail("podman", Series::Stream, 3, &anyhow::anyhow!("no"), false);
    assert!(report.has_failed("podman", Series::Stream) && !report.has_failed("podman", Series::Layer));
    report.fail("podman", Series::Layer, 2, &anyhow::anyhow!("hangs"), true);
    assert!(report.has_failed("podman", Series::Teardown) && !report.has_failed("wardian", Series::Stream));
    let text = report.text();
    assert!(text.contains("podman failed in round 2, scale stream: no\n"), "{text}");
    assert!(text.contains("podman failed in round 2, scale oci, and had no more turns: hangs\n"), "{text}");
}

#[test]
fn a_busy_machine_is_told_of() {
    let mut report = report(four_times(5));
    assert!(!report.text().contains("Warning"));
    // A turn's own load is in that of the next ones.
    report.turns[3].load = 2.5;
    assert!(!report.text().contains("Warning"));
    report.turns[0].load = 2.5;
    assert!(report.text().contains("Warning: the load average was 2.5 on 2 processors"));
}

#[test]
fn turns_are_runs_of_the_history() {
    let phases = [("create", 10), ("write", 20), ("destroy", 30)];
    let mut turns = four_times(1);
    turns.push(turn(1, "podman", Series::Teardown, &phases));
    let runs = runs(&report(turns));
    let seen: Vec<_> = runs.iter().map(|run| (&run.experiment[..], &run.mode[..], &run.engine[..])).collect();
    assert_eq!(
        seen,
        [
            ("compare scale", "stream", "wardian"),
            ("compare scale", "stream", "podman"),
            ("compare teardown", "dirty", "podman"),
        ]
    );
    assert_eq!((runs[1].value(), runs[2].value()), (Some(1760.0), Some(30.0)));
    assert_eq!(runs[1].version, "1.2");
    assert_ne!(runs[0].series(), runs[1].series());
    assert!(!runs[2].parameters.contains_key("from") && runs[0].parameters["from"] == "1");
    let timeline = runs[0].timeline.as_ref().unwrap();
    let bars: Vec<Vec<&str>> =
        timeline.rows.iter().map(|row| row.bars.iter().map(|bar| &bar.phase[..]).collect()).collect();
    let new = vec!["create", "stream_in", "start_app", "pea", "destroy"];
    // The first instance was there before.
    assert_eq!(bars, [vec!["destroy"], new.clone(), new]);
    assert!((timeline.length_ms - 114.0).abs() < 1e-9, "{timeline:?}");
}

#[test]
fn an_interrupted_comparison_is_a_run_as_well() {
    let mut report = report(four_times(1));
    report.error = Some("interrupted".into());
    let runs = runs(&report);
    let last = &runs[2];
    assert_eq!((runs.len(), &last.experiment[..], last.complete), (3, "compare", false));
    assert_eq!(last.error.as_deref(), Some("interrupted"));
}

#[test]
fn files_have_what_the_text_has() {
    let mut report = report(four_times(5));
    report.fail("podman", Series::Layer, 2, &anyhow::anyhow!("<b>no</b>"), false);
    let csv = String::from_utf8(report.csv().unwrap()).unwrap();
    // 4 phases of 2 instances and one of 3, by 2 engines in 5 rounds.
    assert_eq!(csv.lines().count(), 1 + 11 * 2 * 5);
    assert!(csv.contains("\n1,podman,scale,stream,create,1,0,440\n"), "{csv}");
    let svg = report.svg();
    for text in ["scale stream, wardian", "scale stream, podman", "4.00 × (4.00–4.00)"] {
        assert!(svg.contains(text), "{text}: {svg}");
    }
    let html = wardian_pictures::page(&report.page());
    for text in [
        "An app scaled from 1 to 3 waits 0.52 s with wardian",
        "&lt;b&gt;no&lt;/b&gt;",
        "podman, round 3",
        "<td>pea</td><td>podman</td>",
        "data-row=\"instance 2\"",
        "--seed 0",
    ] {
        assert!(html.contains(text), "{text}");
    }
}

#[test]
fn lines_are_folded_at_spaces() {
    let text = fold(&format!("  {} {}", "a".repeat(70), "b".repeat(20)));
    assert_eq!(text, format!("  {}\n    {}\n", "a".repeat(70), "b".repeat(20)));
    assert_eq!(fold("short"), "short\n");
}
